"""Several members' ledgers in one process: the real log, witness, mirrors, publisher and HTTP routes over real
databases. Only TLS and the sockets are replaced, so that a test may cut, lose and replay what passes between them.
"""

import asyncio
import shutil
from pathlib import Path

import httpx
from cryptography import x509
from lianfang.v1 import ledger_pb2

from nodes.config import LedgerSection
from nodes.identity import keys as node_keys
from nodes.identity.authority import Authority, make_request, read_request
from nodes.identity.keys import NodeKeys
from nodes.identity.members import Member, MemberBook
from nodes.identity.names import MemberName, Role
from nodes.ledger.book import LogBook, random_id
from nodes.ledger.changes import Changes
from nodes.ledger.client import LedgerClient
from nodes.ledger.mark import Mark
from nodes.ledger.mirrors import Mirrors
from nodes.ledger.publisher import Publisher
from nodes.ledger.web import LedgerWeb
from nodes.ledger.witness import Witness
from nodes.querier.pins import Pins
from nodes.store import engine as db
from nodes.store.writer import GroupWriter

NETWORK = "ledger.example"
NAMES = ("bank-a", "bank-b", "bank-c", "centre", "regulator")
_ROLES = {"centre": Role.CENTRE, "regulator": Role.REGULATOR}


class Template:
    """Keys, member list and empty databases, made once."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES) -> None:
        self.folder, self.names = folder, names
        ca = Authority.create(folder / "ca", NETWORK)
        for name in names:
            node_keys.create(folder / name / "keys")
            keys = NodeKeys.load(folder / name / "keys")
            member = MemberName(NETWORK, _ROLES.get(name, Role.BANK), name)
            ca.sign(read_request(make_request(keys, member, f"{name}:1", f"{name}:2")))
        self.ca: x509.Certificate = ca.certificate
        for kind in ("node", "mirrors"):
            db.connect(folder / f"{kind}.db", kind).dispose()


class _Client(LedgerClient):
    def __init__(self, cluster: "Cluster", name: str) -> None:
        self._cluster, self._name = cluster, name

    def _client(self, member: Member) -> httpx.AsyncClient:
        transport = _Transport(self._cluster, self._name, member.name.name)
        return httpx.AsyncClient(transport=transport, base_url="https://ledger/")


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, cluster: "Cluster", source: str, target: str) -> None:
        self._cluster, self._source, self._target = cluster, source, target

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        cluster, party = self._cluster, self._cluster.parties.get(self._target)
        if party is None or {self._source, self._target} in cluster.cut:
            raise httpx.ConnectError("cut")
        override = cluster.overrides.get((self._source, self._target, request.url.path))
        if override is not None:
            return httpx.Response(200, stream=httpx.ByteStream(override))
        answer = await httpx.ASGITransport(party.app).handle_async_request(request)
        body = await answer.aread()
        if request.url.path == "/add-checkpoint" and answer.status_code == 200:
            cluster.cosigned(self._target, request.content, body)
        if cluster.lose_answers:
            raise httpx.ReadError("lost")
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(body))


class Party:
    """One member's ledger, open."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        template = cluster.template
        self.folder, self.name = cluster.folder / name, name
        if not self.folder.exists():
            self.folder.mkdir()
            for kind in ("node", "mirrors"):
                shutil.copy(template.folder / f"{kind}.db", self.folder)
        self.keys = NodeKeys.load(template.folder / name / "keys")
        self.book = MemberBook(template.folder / "ca" / "members.bin", template.ca)
        self.member = self.book.current.find(name)
        self.database = db.connect(self.folder / "node.db", "node")
        self._mirrored = db.connect(self.folder / "mirrors.db", "mirrors")
        self.writer = GroupWriter(self.database)
        settings = LedgerSection(tick_seconds=1, leaves_a_tick=cluster.leaves)
        clock = cluster.clock
        self.mark = Mark(self.folder / "ledger.mark")
        self.log = LogBook(self.database, self.keys, self.member.name, settings, self.mark, clock)
        self.client = _Client(cluster, name)
        self.pins = Pins(self.database)
        self.mirrors = Mirrors(
            self._mirrored,
            self.database,
            self.book,
            self.member.id,
            self.client,
            self.pins,
            self.keys.vault,
            settings,
            self.folder / "evidence",
            clock,
        )
        changes = Changes(self.database, self.log, self.book, [])
        self.publisher = Publisher(self.log, self.writer, self.book, self.client, changes)
        self.witness = Witness(
            self.database, self.writer, self.keys, self.member.name, self.book, self.mark, clock
        )
        web = LedgerWeb(None, self.book, self.log, self.witness, self.mirrors)  # type: ignore[arg-type]
        self.app = web.app()

    def append(self, **fields) -> bytes:
        """Record an event; its leaf, once it is durable."""
        kind = ledger_pb2.EVENT_TYPE_QUERY_ASKED
        entry = self.log.prepare(kind, "spiffe://x", random_id(), **fields)
        return self.writer.submit(lambda c: self.log.record(c, entry)).result().committed.leaf

    def close(self) -> None:
        self.writer.close()
        self.database.dispose()
        self._mirrored.dispose()


class Cluster:
    """All members; those in `parties` are up."""

    def __init__(self, template: Template, folder: Path, leaves: int = 2) -> None:
        self.template, self.folder, self.leaves = template, folder, leaves
        self.now = 1_800_000_000.0
        self.cut: list[set[str]] = []
        self.lose_answers = False
        self.overrides: dict[tuple[str, str, str], bytes] = {}  # (source, target, path) → what arrives
        self.signatures: list[tuple[str, bytes]] = []  # (witness, the signed head that it cosigned)
        self.loop = asyncio.new_event_loop()
        self.parties: dict[str, Party] = {}
        for name in template.names:
            self.up(name)

    def clock(self) -> float:
        return self.now

    def up(self, name: str) -> Party:
        self.parties[name] = Party(self, name)
        return self.parties[name]

    def down(self, name: str) -> None:
        self.parties.pop(name).close()

    def restart(self, name: str) -> Party:
        self.down(name)
        return self.up(name)

    def run(self, work):
        return self.loop.run_until_complete(work)

    def tick(self, name: str):
        self.now += 1
        return self.run(self.parties[name].publisher.tick())

    def cosigned(self, witness: str, body: bytes, _answer: bytes) -> None:
        self.signatures.append((witness, body.partition(b"\n\n")[2]))

    def backup(self, name: str, to: Path) -> None:
        """The databases as a backup program copies them, with the node down; the mark is not in it."""
        self.down(name)
        to.mkdir(exist_ok=True)
        for kind in ("node", "mirrors"):
            shutil.copy(self.folder / name / f"{kind}.db", to)
        self.up(name)

    def restore(self, name: str, source: Path) -> None:
        self.down(name)
        for kind in ("node", "mirrors"):
            for path in (self.folder / name).glob(f"{kind}.db*"):
                path.unlink()
            shutil.copy(source / f"{kind}.db", self.folder / name)
        self.up(name)

    def close(self) -> None:
        for name in list(self.parties):
            self.down(name)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
