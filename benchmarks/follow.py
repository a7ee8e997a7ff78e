"""From the start of a change at its holder to the copies of five connected members, at the shipped tick of 60 s. Prints JSON.

Six processes and their logs share the machine's cores, so the figures are upper bounds of a deployment's.
"""

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict
from lianfang.v1 import admin_pb2 as pb
from network import POLICY, admin, quantiles, set_tick

from nodes.cli.lists import Format, _Upload
from nodes.contracts import draft as drafts
from nodes.demo.network import CONTRACT, MemberSettings, Network, free_port
from nodes.importers.table import Mapping
from nodes.people.roles import Role

HOLDER = "bank-a"
FOLLOWERS = ("bank-b", "bank-c", "bank-d", "bank-e", "centre")
NEW = [f"new-{i}" for i in range(5)]
POLL = 0.1  # between two looks at a follower's copies, seconds
Change = Callable[[], Iterable[pb.ImportProgress]]


class Six(Network):
    """The demonstration's members and two banks more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("bank-d", "bank-e"):
            self.members += (MemberSettings(name, "bank"),)
            self.ports[name], self.ledger_ports[name] = free_port(), free_port()


class Watch(threading.Thread):
    """When a follower first had each state of each of the holder's lists."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(daemon=True)
        self.node, self.seen = admin(network, name), {}

    def run(self) -> None:
        while True:
            try:
                status = MessageToDict(self.node.Status(pb.StatusRequest()))
            except grpc.RpcError:
                return  # the network stops
            for each in status["copies"]:
                if each["member"].endswith(f"/{HOLDER}"):
                    state = (each["list"], int(each["epoch"]), int(each["batch"]))
                    self.seen.setdefault(state, time.monotonic())
            time.sleep(POLL)

    def since(self, started: float, name: str, state: tuple[int, int]) -> float:
        """Seconds from `started` until this follower had `state` of the list or a later one."""
        while True:
            times = [
                at for (which, *found), at in list(self.seen.items()) if which == name and (*found,) >= state
            ]
            if times:
                return min(times) - started
            if time.monotonic() > started + 300:
                raise TimeoutError(f"no copy of {name} at {state}")
            time.sleep(POLL)


def rows(first: int, count: int) -> list[str]:
    return [f"13{i:09d}" for i in range(first, first + count)]


def write(path: Path, values: Iterable[str]) -> Path:
    lines = [f"phone,{value},mule-account,4,report,2026-10-01\n" for value in values]
    path.write_text("kind,value,category,severity,basis,observed_on\n" + "".join(lines))
    return path


def measure(network: Network, watches: list[Watch], name: str, change: Change) -> float:
    """Seconds until the slowest follower has what the change made."""
    time.sleep(random.uniform(0, 10))  # nobody waits with a change for the log's next head
    started = time.monotonic()
    result = None
    for event in change():
        if event.phase == "done":
            result = event.result
    assert result is not None
    return max(each.since(started, name, (1, result.batch)) for each in watches)


def main(rounds: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="lf-follow-") as folder:
        network = Six(Path(folder))
        try:
            network.start()
            for member in (HOLDER, *FOLLOWERS):
                (network.node(member) / "policy.toml").write_text(POLICY)
            draft = drafts.load(CONTRACT)
            grant = next(
                each for each in draft.lookup.grants if each.holder == HOLDER and each.asker == "centre"
            )
            del draft.lookup.grants[:]
            for asker in FOLLOWERS:
                draft.lookup.grants.add().CopyFrom(grant)
                draft.lookup.grants[-1].asker = asker
                draft.lookup.grants[-1].lists.extend(NEW)
            network.agree(draft, HOLDER)
            node = admin(network, HOLDER, Role.OPERATOR)

            def imported(values: list[str], name: str = "fraud") -> Iterator[pb.ImportProgress]:
                upload = _Upload(write(network.folder / "change.csv", values), Format.AUTO, Mapping())
                return node.Import(upload.requests(upload.parsed(), pb.ImportStart(list=name)))

            def activated(name: str) -> list[pb.ImportProgress]:
                return network.together(HOLDER, lambda: list(node.Activate(pb.ListRequest(list=name))))

            def withdrawn(request: pb.WithdrawRequest) -> list[pb.ImportProgress]:
                return network.together(HOLDER, lambda: list(node.Withdraw(request)))

            list(imported(rows(0, 100_000)))
            activated("fraud")
            set_tick(network, 60)
            node = admin(network, HOLDER, Role.OPERATOR)
            watches = [Watch(network, name) for name in FOLLOWERS]
            for each in watches:
                each.start()
                each.since(time.monotonic(), "fraud", (1, 1))
            times: dict[str, list[float]] = {}

            def note(what: str, name: str, change: Change) -> None:
                times.setdefault(what, []).append(measure(network, watches, name, change))
                print(what, round(times[what][-1], 2), file=sys.stderr)

            for i in range(rounds):
                few, many = rows(1_000_000 + 10 * i, 10), rows(2_000_000 + 10_000 * i, 10_000)
                gone = [pb.Row(kind="phone", value=value) for value in rows(10 * i, 10)]
                request = pb.WithdrawRequest(
                    list="fraud", only=gone, status="withdrawn", reason="appeal-upheld"
                )
                note("import of 10", "fraud", lambda few=few: imported(few))
                note("withdrawal of 10", "fraud", lambda request=request: withdrawn(request))
                note("import of 10,000", "fraud", lambda many=many: imported(many))
            for name in NEW[:rounds]:
                list(imported(rows(0, 1_000), name))
                note("activation of a list", name, lambda name=name: activated(name))
            return {what: quantiles(found) | {"count": len(found)} for what, found in times.items()} | {
                "all": quantiles([each for found in times.values() for each in found])
            }
        finally:
            network.stop()


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10), indent=2))
