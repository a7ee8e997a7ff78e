"""Real nodes as processes on loopback."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from google.protobuf import empty_pb2
from lianfang.v1 import (
    common_pb2,
    ledger_pb2,
    lookup_pb2,
    lookup_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    sync_pb2_grpc,
)

from nodes.demo.network import Network, spawn
from nodes.identity import certificates
from nodes.identity.keys import NodeKeys
from nodes.identity.members import Member, MemberBook
from nodes.services import wire
from nodes.services.lookup import event_fields
from protocols.ledger import events
from tests.system import warm


def make_network(name: str, capture: bool = False) -> Network:
    # A socket's path is short, pytest's folders are long.
    return Network(Path(tempfile.mkdtemp(prefix=f"lf-{name}-")), capture)


@pytest.fixture(scope="session", autouse=True)
def forker() -> Iterator[None]:
    """Networks' processes come from one that has loaded the program."""
    folder = Path(tempfile.mkdtemp(prefix="lf-fork-"))
    made = warm.Forker(folder)
    Network.spawn = staticmethod(made.spawn)
    try:
        yield
    finally:
        Network.spawn = staticmethod(spawn)
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


# Lists that tests make; a contract names the lists it is about.
LISTS = (
    "awful",
    "big",
    "damaged",
    "lies",
    "mass",
    "pooled",
    "quick",
    "round",
    "sdn",
    "turning",
    "typo",
    "whole",
)


def start(network: Network) -> None:
    """Processes up, and a contract between the banks and the centre in force."""
    network.start()
    network.agree_on_lookups(LISTS)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Three banks and the centre, up for the whole session. Tests use lists and cases of their own."""
    made = make_network("shared", capture=True)
    try:
        start(made)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def own_network() -> Iterator[Network]:
    """A network that a test may kill, revoke and break."""
    made = make_network("own")
    try:
        start(made)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def write_list(path: Path, rows: list[tuple[str, ...]], header: str = "kind,value,category,severity") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", "utf-8")
    return path


def phones(start: int, count: int) -> list[str]:
    return [f"139{start + i:08d}" for i in range(count)]


def import_phones(network: Network, bank: str, values: list[str], name: str = "fraud", **fields: str) -> dict:
    path = network.folder / f"{bank}-{name}-{time.monotonic_ns()}.csv"
    write_list(path, [("phone", value, fields.get("category", "mule-account"), "4") for value in values])
    return import_list(network, bank, path, name)


def import_list(network: Network, bank: str, path: Path, name: str, *options: str) -> dict:
    """Import a file; a new list is activated, which takes two people."""
    result = network.json(bank, "list", "import", str(path), "--list", name, *options)
    if result["inactive"]:
        network.run(bank, "list", "activate", name)
    return result


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `condition` holds; raises `AssertionError` after so many seconds, which no working network needs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def query(
    network: Network, member: str, values: list[str], *options: str, check: bool = True, case: str = "C-1"
) -> dict:
    """Ask about mobiles: the list `fraud`, unless `options` name others."""
    if "--list" not in options and "-l" not in options:
        options = (*options, "--list", "fraud")
    return network.json(
        member,
        *(
            "query",
            "-",
            "--kind",
            "phone",
            "--purpose",
            "payment",
            "--case",
            case,
            "--basis",
            "police-request",
        ),
        *options,
        text="\n".join(values) + "\n",
        check=check,
    )


def outcomes(document: dict, member: str, name: str = "fraud") -> dict[str, str]:
    return {
        row["value"]: answer["outcome"]
        for row in document["rows"]
        for answer in row["answers"]
        if (answer["member"], answer["list"]) == (member, name)
    }


class Wire:
    """Speaks to a node as another member would, with whatever messages a test likes."""

    def __init__(self, network: Network, who: str) -> None:
        folder = network.node(who)
        self.keys = NodeKeys.load(folder / "keys")
        self.certificate = (folder / "certs" / "node.crt").read_bytes()
        ca = x509.load_pem_x509_certificate((folder / "certs" / "ca.crt").read_bytes())
        self.book = MemberBook(folder / "certs" / "members.bin", ca)
        self.own = str(certificates.member_of(x509.load_pem_x509_certificate(self.certificate)))
        self._channels: list[grpc.Channel] = []

    def member(self, name: str) -> Member:
        return self.book.current.find(name)

    def channel(self, to: str, endpoint: str | None = None) -> grpc.Channel:
        member = self.member(to)
        credentials = grpc.ssl_channel_credentials(
            member.trusted_pem(), self.keys.tls_pem(), self.certificate
        )
        options = [*wire.OPTIONS, ("grpc.ssl_target_name_override", member.name.dns)]
        channel = grpc.secure_channel(endpoint or member.endpoint, credentials, options)
        self._channels.append(channel)
        return channel

    def lookup(self, to: str) -> lookup_pb2_grpc.LookupStub:
        return lookup_pb2_grpc.LookupStub(self.channel(to))

    def sync(self, to: str) -> sync_pb2_grpc.ListSyncStub:
        return sync_pb2_grpc.ListSyncStub(self.channel(to))

    def info(self, to: str) -> node_pb2.GetInfoResponse:
        return node_pb2_grpc.NodeInfoStub(self.channel(to)).GetInfo(node_pb2.GetInfoRequest(), timeout=60)

    def request(
        self, blinded: bytes, query: bytes, to: str = "bank-a", **changes
    ) -> lookup_pb2.EvaluateRequest:
        """With a receipt that is as good as the request is."""
        values = {
            "suite": common_pb2.SUITE_RISTRETTO255_SHA512,
            "list": "fraud",
            "epoch": 1,
            "table_batch": 1,
            "query_id": query,
            "purpose": common_pb2.PURPOSE_PAYMENT,
            "basis": common_pb2.LEGAL_BASIS_POLICE_REQUEST,
            "case_commitment": bytes(32),
            "asker": bytes(16),
            "asked_at": int(time.time()),
            "blinded": blinded,
        }
        request = lookup_pb2.EvaluateRequest(**values | changes)
        if len(query) == 16 and "query_id" not in changes:
            request.receipt.CopyFrom(self.receipt(request, to))
        return request

    def receipt(self, request: lookup_pb2.EvaluateRequest, to: str, **changes) -> ledger_pb2.Receipt:
        """This member's word that it has recorded the request; a liar's, for nothing is recorded."""
        fields = event_fields(request) | {
            "log": self.own,
            "type": ledger_pb2.EVENT_TYPE_QUERY_ASKED,
            "id": request.query_id,
            "peer": self.member(to).id,
            "at": int(time.time() * 1000),
        }
        event = ledger_pb2.Event(**fields | changes)
        return events.receipt(events.commit(event), int(time.time()) + 60, self.keys.signing)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def call(channel: grpc.Channel, method: str) -> str:
    """The reason of a refusal, or nothing. Every message may be empty; a stream of requests is one."""
    path = f"/lianfang.v1.{method}"
    empty, bytes_of = empty_pb2.Empty(), empty_pb2.Empty.SerializeToString
    kinds = {"Admin/Import": channel.stream_stream}
    streams = {"Withdraw", "Rotate", "Activate", "ListEntries", "Sync", "Query", "Run", "Outcome"}
    name = method.partition("/")[2]
    make = kinds.get(method) or (channel.unary_stream if name in streams else channel.unary_unary)
    stub = make(path, request_serializer=bytes_of, response_deserializer=bytes)
    try:
        answer = stub(iter([empty]) if method == "Admin/Import" else empty, timeout=60)
        if not isinstance(answer, bytes):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return wire.reason_of(error)
    return ""


@pytest.fixture
def centre(network: Network) -> Iterator[Wire]:
    wire_client = Wire(network, "centre")
    yield wire_client
    wire_client.close()
