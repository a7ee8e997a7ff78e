"""Through real processes over mutual TLS on loopback: import, sealing, latency, load, memory. Prints JSON."""

import asyncio
import csv
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from lianfang.v1 import admin_pb2 as pb
from lianfang.v1 import admin_pb2_grpc, contract_pb2, ledger_pb2, lookup_pb2, lookup_pb2_grpc
from transport import Transport

from nodes.cli.lists import Format, _Upload
from nodes.contracts import draft as drafts
from nodes.demo.network import CONTRACT, Network, family, free_port
from nodes.identity.authority import Authority, make_request, read_request
from nodes.identity.keys import NodeKeys
from nodes.identity.members import MemberBook
from nodes.importers.table import Mapping
from nodes.people.roles import Role
from nodes.services.lookup import event_fields
from nodes.services.wire import OPTIONS
from protocols import group, padding
from protocols.ledger import events
from protocols.statement import parse

BANKS = ("bank-a", "bank-b", "bank-c")
TURN = 25
POLICY = """
[second_person]
evaluations_a_day = 1000000000

[budgets."*"]
epoch = 1000000000
day = 1000000000
"""


def agree(network: Network, burst_seconds: int = 1) -> None:
    """A contract that lets everybody ask as much as these measurements do."""
    draft = drafts.load(CONTRACT)
    for grant in draft.lookup.grants:
        grant.budget.CopyFrom(
            contract_pb2.Allowance(epoch=10**8, day=10**8, burst=10**8, burst_seconds=burst_seconds)
        )
    network.agree(draft, "bank-a")


def admin(network: Network, name: str, role: Role = Role.ANALYST) -> admin_pb2_grpc.AdminStub:
    return admin_pb2_grpc.AdminStub(network.channel(name, role))


def anonymous_mb(pid: int) -> float:
    total = 0
    for each in family(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def import_list(network: Network, bank: str, path: Path) -> dict:
    """Import, then seal; seconds of each phase, and the most memory seen."""
    upload = _Upload(path, Format.AUTO, Mapping())
    start = pb.ImportStart(list="fraud")
    node, peak = admin(network, bank, Role.OPERATOR), 0.0

    def follow(calls) -> tuple[dict[str, list[float]], int]:
        nonlocal peak
        started, phases, rows = time.monotonic(), {}, 0
        for event in calls:
            now = time.monotonic() - started
            phases.setdefault(event.phase, [now, now])[1] = now
            peak = max(peak, anonymous_mb(network.pid(bank)))
            rows = max(rows, event.result.rows)
        return phases, rows

    phases, rows = follow(node.Import(upload.requests(upload.parsed(), start)))
    activate = pb.ListRequest(list="fraud")
    sealing, _ = network.together(bank, lambda: follow(node.Activate(activate)))
    return {
        "rows": rows,
        "import_rows_per_s": rows / phases["done"][0],
        "seal_wall_per_entry": (sealing["merge"][0] - sealing["seal"][0]) / rows if "merge" in sealing else 0,
        "peak_anonymous_mb": peak,
    }


def ask_once(
    stub: admin_pb2_grpc.AdminStub, value: str, streamed: bool = False, holders: Sequence[str] = ()
) -> float:
    """Seconds until the last holder's answer is here: in one message, as a program asks, or by the command line's stream.

    All three are asked, if none is named.
    """
    request = pb.QueryRequest(
        items=[pb.QueryItem(kind="phone", value=value)],
        purpose=2,
        basis=3,
        case_number="bench",
        members=holders,
    )
    started = time.perf_counter()
    events = list(stub.Query(request)) if streamed else stub.Ask(request).events
    seconds = time.perf_counter() - started
    assert sum(event.holder.outcome == "answered" for event in events) == len(holders or BANKS)
    return seconds


def set_tick(network: Network, seconds: float) -> None:
    """Restart every member with another tick of its log; the demonstration's is short, a deployment's is a minute."""
    for member in network.members:
        path = network.node(member.name) / "node.toml"
        path.write_text(re.sub(r"(?m)^tick_seconds = .*", f"tick_seconds = {seconds:g}", path.read_text()))
        network.stop_member(member.name)
        network.start_member(member)
    for member in network.members:
        network.wait(member.name)
    network.run("centre", "sync")


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"p{q}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1000, 2)
        for q in (50, 95, 99)
    }


def latency(
    network: Network, count: int, base: int, transport: Transport | None = None, **how: Any
) -> dict[str, Any]:
    """Of so many questions; with `transport` by turns with as many that nobody works at."""
    stub = admin(network, "centre")
    holders = len(how.get("holders") or BANKS)
    for i in range(20):
        ask_once(stub, f"137{base + i:08d}", **how)
    times, floor = [], []
    for start in range(0, count, TURN):
        numbers = range(start, min(start + TURN, count))
        times += [ask_once(stub, f"138{base + i:08d}", **how) for i in numbers]
        if transport:
            floor += [transport.ask(holders) for _ in numbers]
    return quantiles(times) | {"count": count} | ({"transport": quantiles(floor)} if floor else {})


class Load(threading.Thread):
    """bank-c asks bank-a for batches of so many, as padded, one after another."""

    def __init__(self, network: Network, count: int = 10_000) -> None:
        super().__init__(daemon=True)
        self.elements = padding.bucket(count)
        from cryptography import x509

        folder = network.node("bank-c")
        keys = NodeKeys.load(folder / "keys")
        ca = x509.load_pem_x509_certificate((folder / "certs" / "ca.crt").read_bytes())
        member = MemberBook(folder / "certs" / "members.bin", ca).current.find("bank-a")
        credentials = grpc.ssl_channel_credentials(
            member.trusted_pem(), keys.tls_pem(), (folder / "certs" / "node.crt").read_bytes()
        )
        channel = grpc.secure_channel(
            f"127.0.0.1:{network.ports['bank-a']}",
            credentials,
            [*OPTIONS, ("grpc.ssl_target_name_override", member.name.dns)],
        )
        self.stub = lookup_pb2_grpc.LookupStub(channel)
        from lianfang.v1 import node_pb2, node_pb2_grpc

        head = node_pb2_grpc.NodeInfoStub(channel).GetInfo(node_pb2.GetInfoRequest()).lists[0].epochs[-1]
        self.batch = parse(head.head.statement).batch.number
        self.blinded = group.hash_to_points(secrets.token_bytes(64 * self.elements))
        self.own, self.peer, self.signing = member.id.replace("bank-a", "bank-c"), member.id, keys.signing
        self.stopping, self.evaluations = threading.Event(), 0

    def once(self) -> None:
        request = lookup_pb2.EvaluateRequest(
            suite=1,
            list="fraud",
            epoch=1,
            table_batch=self.batch,
            query_id=secrets.token_bytes(16),
            purpose=2,
            basis=3,
            case_commitment=bytes(32),
            asker=bytes(16),
            asked_at=int(time.time()),
            blinded=self.blinded,
        )
        event = ledger_pb2.Event(
            log=self.own,
            type=ledger_pb2.EVENT_TYPE_QUERY_ASKED,
            id=request.query_id,
            peer=self.peer,
            at=int(time.time() * 1000),
            **event_fields(request),
        )
        receipt = events.receipt(events.commit(event), int(time.time()) + 60, self.signing)
        request.receipt.CopyFrom(receipt)
        self.stub.Evaluate(request, timeout=120)
        self.evaluations += self.elements

    def per_core(self, process: int, times: int) -> float:
        """Evaluations a CPU second of the holder, of so many batches."""
        self.once()
        before, evaluated = cpu_seconds(process), self.evaluations
        for _ in range(times):
            self.once()
        return (self.evaluations - evaluated) / (cpu_seconds(process) - before)

    def run(self) -> None:
        while not self.stopping.is_set():
            self.once()


class Delay(threading.Thread):
    """A relay that holds every byte back for half a round trip, each way."""

    def __init__(self, port: int, target: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.port, self.target, self.seconds = port, target, seconds

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader, writer) -> None:
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(
            self._pump(reader, upstream), self._pump(upstream_reader, writer), return_exceptions=True
        )

    async def _pump(self, source, target) -> None:
        queue: asyncio.Queue = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - time.monotonic()))
                target.write(data)

        task = asyncio.create_task(deliver())
        while data := await source.read(65_536):
            queue.put_nowait((time.monotonic() + self.seconds, data))
        task.cancel()


def move_behind_delay(network: Network, seconds: float) -> None:
    """Give the banks new addresses in the member list: relays with a delay."""
    ca = Authority(network.folder / "ca")
    for bank in BANKS:
        port = free_port()
        Delay(port, network.ports[bank], seconds).start()
        keys = NodeKeys.load(network.node(bank) / "keys")
        ca.sign(
            read_request(
                make_request(
                    keys,
                    ca.members.find(bank).name,
                    f"127.0.0.1:{port}",
                    f"127.0.0.1:{network.ledger_ports[bank]}",
                )
            )
        )
    (network.node("centre") / "certs" / "members.bin").write_bytes(ca.members.signed)
    time.sleep(2.5)


def main(entries: int, count: int) -> dict:
    out: dict = {"entries": entries}
    network = Network(Path(tempfile.mkdtemp(prefix="lf-bench-")))
    try:
        network.start()
        for name in (*BANKS, "centre"):
            (network.node(name) / "policy.toml").write_text(POLICY)
        agree(network)
        imports = []
        for i, bank in enumerate(BANKS):
            path = network.folder / f"{bank}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("kind", "value", "category", "severity", "basis", "observed_on"))
                writer.writerows(
                    ("phone", f"13{9 - i}{j:08d}", "mule-account", "4", "report", "2026-10-01")
                    for j in range(entries)
                )
            imports.append(import_list(network, bank, path))
            path.unlink()
            print(bank, imports[-1], file=sys.stderr)
        out["import"] = {key: statistics.median(each[key] for each in imports) for key in imports[0]}
        out["holder_anonymous_mb"] = anonymous_mb(network.pid("bank-a"))
        files = list(network.node("bank-a").glob("data/lists/fraud/1/*.batch"))
        out["list_file_mb"] = sum(each.stat().st_size for each in files) / 1e6
        started = time.monotonic()
        network.run("centre", "sync")
        out["sync_three_lists_s"] = time.monotonic() - started
        out["querier_anonymous_mb"] = anonymous_mb(network.pid("centre"))
        tables = list(network.node("centre").rglob("table.lmdb"))
        out["copy_file_mb"] = statistics.median(each.stat().st_blocks * 512 for each in tables) / 1e6
        out["one_identifier_three_holders_tick_3_s"] = latency(network, count, 0)
        set_tick(network, 60)
        transport = Transport(network, "centre", BANKS)
        out["one_identifier_three_holders"] = latency(network, count, 5_000, transport)
        out["one_identifier_one_holder"] = latency(network, count, 40_000, transport, holders=BANKS[:1])
        transport.close()
        out["by_stream"] = latency(network, count, 30_000, streamed=True)
        holder = network.pid("bank-a")
        out["evaluations_per_core_s_in_hundreds"] = Load(network, 100).per_core(holder, 300)
        load = Load(network)
        out["evaluations_per_core_s"] = load.per_core(holder, 3)
        load.start()
        out["while_another_runs_10000_batches"] = latency(network, count, 10_000)
        load.stopping.set()
        load.join()
        move_behind_delay(network, 0.015)
        out["with_30_ms_round_trip"] = latency(network, count // 2, 20_000)
    finally:
        network.stop()
        subprocess.run(["rm", "-rf", str(network.folder)], check=True)
    return out


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
