"""The demonstration network as processes: the same members, settings and commands as docker-compose.yml."""

import collections
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from lianfang.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    contract_pb2,
    contract_pb2_grpc,
    people_pb2,
    people_pb2_grpc,
)

from ..contracts import draft as drafts
from ..errors import NodeError
from ..people.roles import Role
from ..services import wire
from . import people

_FILE = Path(__file__).with_name("network.toml")
CONTRACT = Path(__file__).with_name("contract.toml")
START_SECONDS = 300.0  # a busy machine of two cores loads seven programs at once
STOP_SECONDS = 40.0
_COMMAND_SECONDS = 1800.0
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 12_000
# Ports that were handed out: whoever got one listens there only later.
_given: collections.deque[int] = collections.deque(maxlen=256)
_T = TypeVar("_T")
_PENDING = re.compile(r"pending\s+approve\s+([0-9a-f]{12})")
# Whose work a command is; else the operator's.
_WORK = {
    "query": Role.ANALYST,
    "screen": Role.ANALYST,
    "ledger": Role.AUDITOR,
    "user": Role.ADMINISTRATOR,
    "pending": Role.APPROVER,
    "vertical score": Role.ANALYST,
}


@dataclass(frozen=True)
class MemberSettings:
    """One member of `network.toml`."""

    name: str
    role: str


@dataclass(frozen=True)
class NetworkSettings:
    """All of `network.toml`."""

    network: str
    list: str
    tick_seconds: float  # of every member's log
    members: tuple[MemberSettings, ...]

    @property
    def coordinator(self) -> str:
        """The name of the member that coordinates."""
        return next(member.name for member in self.members if member.role == "coordinator")


@dataclass(frozen=True)
class Addresses:
    """Where a member listens and is reached; the last two at the coordinator."""

    listen: str
    advertise: str
    superlink: str = ""
    superlink_advertise: str = ""
    ledger_listen: str = "127.0.0.1:7444"
    ledger_advertise: str = "127.0.0.1:7444"


def settings() -> NetworkSettings:
    """Read `network.toml`."""
    document = tomllib.loads(_FILE.read_text("utf-8"))
    members = tuple(MemberSettings(each["name"], each["role"]) for each in document["member"])
    return NetworkSettings(document["network"], document["list"], document["tick_seconds"], members)


def environment(
    network: NetworkSettings,
    member: MemberSettings,
    addresses: Addresses,
    enrol: str,
    learning: bool = True,
) -> dict[str, str]:
    """A member's environment; compose gives the same with other addresses and paths."""
    values = {
        "LIANFANG_NAME": member.name,
        "LIANFANG_ROLE": member.role,
        "LIANFANG_NETWORK": network.network,
        "LIANFANG_LISTEN": addresses.listen,
        "LIANFANG_ADVERTISE": addresses.advertise,
        "LIANFANG_LEDGER_LISTEN": addresses.ledger_listen,
        "LIANFANG_LEDGER_ADVERTISE": addresses.ledger_advertise,
        "LIANFANG_TICK_SECONDS": f"{network.tick_seconds:g}",
        "LIANFANG_ENROL": enrol,
        "LIANFANG_POLICY": "demo",
    }
    if learning and member.role == "coordinator":
        values["LIANFANG_SUPERLINK"] = addresses.superlink
        values["LIANFANG_SUPERLINK_ADVERTISE"] = addresses.superlink_advertise
    elif learning and member.role != "regulator":
        values["LIANFANG_COORDINATOR"] = network.coordinator
    return values


def learn_command(folder: str) -> list[str]:
    """What a member runs beside its node, to learn with the others."""
    return ["lianfang", "learn", "serve", "--config", f"{folder}/node.toml"]


def node_command(folder: str) -> list[str]:
    """What a member runs."""
    return ["lianfang", "dev", "node", folder]


def ca_command(folder: str) -> list[str]:
    """What the development CA runs; it ends once all members are signed."""
    return ["lianfang", "dev", "ca", "--ca", folder]


def ca_environment(
    network: NetworkSettings, enrol: str, members: tuple[MemberSettings, ...] = ()
) -> dict[str, str]:
    """The development CA's environment."""
    return {
        "LIANFANG_NETWORK": network.network,
        "LIANFANG_MEMBERS": ",".join(member.name for member in members or network.members),
        "LIANFANG_ENROL": enrol,
    }


def family(pid: int) -> list[int]:
    """A process, those that it has started, and theirs."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += family(int(child))
    return found


def free_port() -> int:
    """A port of the loopback that nobody listens on, below those that outgoing connections are given; none twice in a row of 256."""
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    while True:
        port = _LOWEST + secrets.randbelow(max(first, _LOWEST + 1_000) - _LOWEST)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.append(port)
            return port


def program(command: list[str]) -> list[str]:
    """`lianfang …` as this interpreter runs it."""
    assert command[0] == "lianfang"
    return [sys.executable, "-m", "nodes", *command[1:]]


class Process(Protocol):
    """What a network needs of a process that it started."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def spawn(
    command: Sequence[str],
    env: Mapping[str, str],
    stdin: IO[bytes] | None,
    stdout: IO[bytes],
    stderr: IO[bytes] | None,
) -> Process:
    """Start a command; without `stdin` it is given nothing, without `stderr` its error output passes through."""
    return subprocess.Popen(command, env=env, stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=stderr)


def _inherited() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")} | {
        "LIANFANG_LANG": os.environ.get("LIANFANG_LANG", "en")
    }


def _text(file: IO[bytes]) -> str:
    """All of it, with line ends as text has them."""
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


class Failed(NodeError):
    """A command of the network ended with another status than expected."""


class Network:
    """Runs processes in a folder; ends exactly those it started.

    With `learning` the coordinator takes part, and each member but the centre has its learning process beside its node.
    """

    spawn = staticmethod(spawn)

    def __init__(self, folder: Path, capture: bool = False, learning: bool = False) -> None:
        self.folder = folder
        self.settings = settings()
        self.learning = learning
        self.members = tuple(
            member for member in self.settings.members if learning or member.role != "coordinator"
        )
        self.ports = {member.name: free_port() for member in self.members}
        self.ledger_ports = {member.name: free_port() for member in self.members}
        self.superlink = f"127.0.0.1:{free_port()}"
        self._capture = capture
        self._processes: dict[str, Process] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def node(self, name: str) -> Path:
        """A member's folder."""
        return self.folder / name

    def log(self, name: str) -> Path:
        """What a member's process printed."""
        return self.folder / f"{name}.log"

    def start(self) -> None:
        """The CA and all members; returns once every member answers."""
        for member in self.members:
            self.start_member(member)
        ca = subprocess.run(
            program(ca_command(str(self.folder / "ca"))),
            env=_inherited() | ca_environment(self.settings, str(self.folder / "enrol"), self.members),
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        if ca.returncode:
            raise Failed(f"the CA failed: {ca.stderr.decode()}")
        for member in self.members:
            self.wait(member.name)

    def start_learning(self, *names: str) -> None:
        """The members' learning processes; they find each other by themselves."""
        for name in names or [member.name for member in self.members if member.role != "regulator"]:
            key = f"{name}-learn"
            with self.log(key).open("ab") as log:
                command = program(learn_command(str(self.node(name))))
                self._processes[key] = self.spawn(command, _inherited(), None, log, log)

    def start_member(self, member: MemberSettings, extra: dict[str, str] | None = None) -> None:
        """Start one member's process."""
        address = f"127.0.0.1:{self.ports[member.name]}"
        ledger = f"127.0.0.1:{self.ledger_ports[member.name]}"
        addresses = Addresses(address, address, self.superlink, self.superlink, ledger, ledger)
        enrol = str(self.folder / "enrol")
        values = environment(self.settings, member, addresses, enrol, self.learning)
        if self._capture:
            values["LIANFANG_DEBUG__CAPTURE"] = "data/capture.jsonl"
        with self.log(member.name).open("ab") as log:
            command = program(node_command(str(self.node(member.name))))
            env = _inherited() | values | (extra or {})
            self._processes[member.name] = self.spawn(command, env, None, log, log)

    def member(self, name: str) -> MemberSettings:
        """By name."""
        return next(member for member in self.settings.members if member.name == name)

    def pid(self, name: str) -> int:
        """A member's process id."""
        return self._processes[name].pid

    def wait(self, name: str, published: bool = True) -> None:
        """Until the member answers on its socket and its log is published; raises `Failed` where its process ended."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._processes[name].poll() is not None:
                raise Failed(f"{name} ended: {self.log(name).read_text()[-2000:]}")
            if self._socket(name).exists() and self._answers(name, published):
                return
            time.sleep(0.1)
        raise Failed(f"{name} did not start within {START_SECONDS:.0f} s")

    def _answers(self, name: str, published: bool) -> bool:
        """Whether the member answers; its people enrol as soon as it does."""
        try:
            people.enrol(self.node(name))
            with self.channel(name) as channel:
                node = admin_pb2_grpc.AdminStub(channel)
                document = MessageToDict(node.Status(admin_pb2.StatusRequest(), timeout=30))
        except grpc.RpcError:
            return False
        return not published or bool(document["ledger"]["published_size"])

    def _socket(self, name: str) -> Path:
        return self.node(name) / "data" / "admin.sock"

    def session(self, name: str, role: Role, number: int = 0) -> Path:
        """The session of one of a member's people: the first, or another, with that role."""
        return people.session(
            self.node(name), [who for who, has in people.PEOPLE.items() if has is role][number]
        )

    def channel(self, name: str, role: Role = Role.OPERATOR, number: int = 0) -> grpc.Channel:
        """To a member's socket, as one of its people."""
        return wire.admin_channel(self._socket(name), self.session(name, role, number).read_text)

    def approve(self, name: str, action: str, role: Role = Role.APPROVER) -> None:
        """A member's second person approves what waits."""
        with self.channel(name, role, 1 if role is Role.ADMINISTRATOR else 0) as channel:
            people_pb2_grpc.PeopleStub(channel).DecideAction(
                people_pb2.ActionDecision(id=action, verdict=people_pb2.ActionDecision.VERDICT_APPROVE)
            )

    def together(self, name: str, call: Callable[[], _T]) -> _T:
        """A call that takes two people: proposed, approved, carried out."""
        try:
            return call()
        except grpc.RpcError as error:
            waiting = _PENDING.search(error.details() or "")
            if waiting is None:
                raise
            self.approve(name, waiting[1])
        return call()

    def run(
        self,
        name: str,
        *arguments: str,
        text: str | None = None,
        check: bool = True,
        show: bool = False,
        alone: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a `lianfang` command as the member's person whose work it is; with `show` its error output passes through.

        What takes two people is approved and run again, unless `alone`.
        """
        done = self._run(name, arguments, text, show)
        waiting = _PENDING.search(done.stderr or "")
        if done.returncode and waiting is not None and not alone:
            role = Role.ADMINISTRATOR if arguments[0] == "user" else Role.APPROVER
            self.approve(name, waiting[1], role)
            done = self._run(name, arguments, text, show)
        if check and done.returncode:
            said = "\n".join(filter(None, [done.stdout.strip(), (done.stderr or "").strip()]))
            raise Failed(f"{name}: lianfang {arguments[0]} ended with {done.returncode}: {said}")
        return done

    def command(self, name: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """A `lianfang` command of the member's person whose work it is, and its environment."""
        role = _WORK.get(" ".join(arguments[:2])) or _WORK.get(arguments[0], Role.OPERATOR)
        return (
            [*program(["lianfang", *arguments]), "--config", str(self.node(name) / "node.toml")],
            _inherited() | {"LIANFANG_SESSION": str(self.session(name, role))},
        )

    def _run(
        self, name: str, arguments: Sequence[str], text: str | None, show: bool
    ) -> subprocess.CompletedProcess[str]:
        command, environment = self.command(name, *arguments)
        with contextlib.ExitStack() as files:
            given = None
            if text is not None:
                given = files.enter_context(tempfile.TemporaryFile())
                given.write(text.encode())
                given.seek(0)
            out = files.enter_context(tempfile.TemporaryFile())
            errors = None if show else files.enter_context(tempfile.TemporaryFile())
            process = self.spawn(command, environment, given, out, errors)
            try:
                status = process.wait(_COMMAND_SECONDS)
            except BaseException:
                process.kill()
                process.wait()
                raise
            return subprocess.CompletedProcess(command, status, _text(out), _text(errors) if errors else None)

    @contextlib.contextmanager
    def contracts(self, name: str) -> Iterator[contract_pb2_grpc.ContractAdminStub]:
        """A member's contracts, on its socket."""
        with self.channel(name) as channel:
            yield contract_pb2_grpc.ContractAdminStub(channel)

    def agree(self, draft: contract_pb2.Contract, proposer: str) -> str:
        """Propose a contract, approve it at every signer, wait until all see it in force; its hash."""
        with self.contracts(proposer) as node:
            made = MessageToDict(self.together(proposer, lambda: node.Propose(draft)).document)
        name: str = made["contract"]
        for signer in made["signers"]:
            if signer != proposer:
                self.wait_for_contract(signer, name, "proposed")
                approval = contract_pb2.ContractDecision(
                    contract=name, action=contract_pb2.ContractAct.ACTION_APPROVE
                )
                with self.contracts(signer) as node:
                    self.together(signer, functools.partial(node.Decide, approval))
        for signer in made["signers"]:
            self.wait_for_contract(signer, name, "active")
        return name

    def agree_on_lookups(self, lists: Sequence[str] = ()) -> str:
        """The demonstration's contract, over more lists where given; its hash."""
        draft = drafts.load(CONTRACT)
        for grant in draft.lookup.grants:
            grant.lists.extend(lists)
        return self.agree(draft, "bank-a")

    def wait_for_contract(self, member: str, contract: str, state: str) -> None:
        """Until a contract stands so at a member; raises `Failed`."""
        end, request = time.monotonic() + START_SECONDS, contract_pb2.ListContractsRequest(contract=contract)
        with self.contracts(member) as node:
            while time.monotonic() < end:
                try:
                    if node.List(request).document["state"] == state:
                        return
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                time.sleep(0.05)
        raise Failed(f"{member}: the contract {contract[:12]} does not become {state}")

    def json(self, name: str, *arguments: str, text: str | None = None, check: bool = True) -> Any:
        """A reporting command's JSON."""
        return json.loads(self.run(name, *arguments, "--json", text=text, check=check).stdout)

    def kill(self, name: str) -> None:
        """`kill -9`, and wait for the end."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop_member(self, name: str) -> int:
        """SIGTERM; the exit status."""
        process = self._processes.pop(name)
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop(self) -> None:
        """End every process that was started here."""
        # Learning processes first: they speak to their nodes.
        for key, process in sorted(self._processes.items(), key=lambda item: not item[0].endswith("-learn")):
            if process.poll() is None:
                process.terminate()
            if key.endswith("-learn"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


@contextlib.contextmanager
def running(
    folder: Path, capture: bool = False, keep: bool = True, learning: bool = False
) -> Iterator[Network]:
    """A network that is up; its processes end with the block."""
    network = Network(folder, capture, learning)
    try:
        network.start()
        yield network
    finally:
        network.stop()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
