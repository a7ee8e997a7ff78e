"""A node's parts without its servers."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lianfang.v1 import contract_pb2

from nodes.config import LedgerSection, ListsSection
from nodes.contracts.book import ContractBook, Held
from nodes.contracts.rules import Rules
from nodes.gate import Gate
from nodes.holder.epochs import Epochs
from nodes.holder.lists import ImportOutcome, ListStore, today
from nodes.holder.rows import RowOptions, prepare_chunk
from nodes.identity import keys as node_keys
from nodes.identity.authority import Authority, make_request, read_request
from nodes.identity.keys import NodeKeys
from nodes.identity.members import Member, MemberBook
from nodes.identity.names import MemberName, Role
from nodes.ledger.book import LogBook
from nodes.ledger.mark import Mark
from nodes.policy import PolicyFile
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from nodes.workers import Workers
from protocols import contract
from protocols.ledger.checkpoints import Head

NETWORK = "test.example"


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    pool = Workers(2)
    yield pool
    pool.close()


@dataclass
class Holder:
    """Lists, epochs and gate of one node, in a folder."""

    folder: Path
    keys: NodeKeys
    name: MemberName
    store: ListStore
    epochs: Epochs
    workers: Workers

    def rows(self, *rows: dict[str, str]) -> list[tuple[str, ...]]:
        names = "kind value country category severity confidence basis observed_on valid_until status reason reference institution"
        return [(i, *(row.get(name, "") for name in names.split())) for i, row in enumerate(rows, 1)]

    def load(
        self,
        *rows: dict[str, str],
        name: str = "fraud",
        replace: bool = False,
        skip_bad: bool = False,
        **options,
    ) -> ImportOutcome:
        self.store.create(name)
        self.store.activate(name)
        chosen = RowOptions(
            **{"default_region": "CN", "phone_valid_days": 180, "official": False, "today": today()} | options
        )
        prepared = prepare_chunk(self.keys.list_vault.root, self.rows(*rows), chosen)
        return self.store.import_rows(name, [prepared], replace, skip_bad)


def make_log(database, keys: NodeKeys, name: MemberName, folder: Path, **settings) -> LogBook:
    return LogBook(database, keys, name, LedgerSection(**settings), Mark(folder / "ledger.mark"))


def publish(log: LogBook, writer: GroupWriter) -> Head:
    """A tick of a log that nobody has to witness."""
    head = log.tick(writer)
    writer.submit(lambda connection: log.publish(connection, head)).result()
    log.announce(head)
    return head


@pytest.fixture
def make_holder(tmp_path: Path, workers: Workers) -> Callable[[], Holder]:
    def make(folder: Path = tmp_path / "holder", settings: ListsSection = ListsSection()) -> Holder:
        if not (folder / "keys").exists():
            folder.mkdir(parents=True)
            node_keys.create(folder / "keys")
        keys = NodeKeys.load(folder / "keys")
        store = ListStore(db.connect(folder / "lists.db", "lists"), keys.list_vault)
        database = db.connect(folder / "node.db", "node")
        name = MemberName(NETWORK, Role.BANK, "holder")
        log = make_log(database, keys, name, folder)
        epochs = Epochs(
            database, store, keys, name, folder / "lists", folder / "epoch-keys", settings, workers, log
        )
        holder = Holder(folder, keys, name, store, epochs, workers)
        holder.database = database  # type: ignore[attr-defined]
        holder.log = log  # type: ignore[attr-defined]
        return holder

    return make


@pytest.fixture
def holder(make_holder) -> Holder:
    return make_holder()


class Institutions:
    """A real CA with its members' keys."""

    def __init__(self, folder: Path, roles: dict[str, Role]) -> None:
        self.folder = folder
        self.ca = Authority.create(folder / "ca", NETWORK)
        self.keys: dict[str, NodeKeys] = {}
        for name, role in roles.items():
            node_keys.create(folder / name / "keys")
            member = MemberName(NETWORK, role, name)
            self.keys[str(member)] = keys = NodeKeys.load(folder / name / "keys")
            self.ca.sign(read_request(make_request(keys, member, "127.0.0.1:1", "127.0.0.1:2")))

    def book(self) -> MemberBook:
        return MemberBook(self.folder / "ca" / "members.bin", self.ca.certificate)

    def contracts(self, database, log: LogBook, name: str, clock=time.time) -> ContractBook:
        member = self.ca.members.find(name)
        return ContractBook(database, log, self.keys[member.id], self.book(), member.name, clock)


def everybody_signs(book: ContractBook, held: Held, keys: dict[str, NodeKeys]) -> Held:
    """The other signers' approvals arrive."""
    for signer in held.terms.signers:
        if not any(act.party == signer for act in held.acts):
            at = held.terms.proposed_at
            act = contract.sign(keys[signer].signing, held.hash, signer, contract.APPROVE, at)
            held = book.told(signer, contract_pb2.SignedContract(contract=held.data, acts=[*held.acts, act]))
    return held


def lookups(
    holder: str, askers: Sequence[str], now: float, lists=("fraud", "other"), **budget: int
) -> contract_pb2.Contract:
    """A draft that lets `askers` do everything."""
    allowance = {"epoch": 10**9, "day": 10**9, "burst": 10**9, "burst_seconds": 1} | budget
    draft = contract_pb2.Contract(title="everything", expires_at=int(now + 86_400 * 400), retention_days=30)
    draft.lookup.grants.extend(
        contract_pb2.Grant(
            holder=holder,
            asker=asker,
            lists=lists,
            purposes=[1, 2, 3, 4],
            budget=contract_pb2.Allowance(**allowance),
        )
        for asker in askers
    )
    return draft


@pytest.fixture(scope="session")
def institutions(tmp_path_factory: pytest.TempPathFactory) -> Institutions:
    """Three banks and the centre."""
    roles = {"holder": Role.BANK, "bank-b": Role.BANK, "bank-c": Role.BANK, "centre": Role.CENTRE}
    return Institutions(tmp_path_factory.mktemp("network"), roles)


@pytest.fixture(scope="session")
def members(institutions: Institutions) -> dict[str, Member]:
    return {member.name.name: member for member in institutions.ca.members}


@pytest.fixture
def policy_file(tmp_path: Path) -> Callable[[str], PolicyFile]:
    def write(text: str) -> PolicyFile:
        path = tmp_path / "policy.toml"
        path.write_text(text, "utf-8")
        return PolicyFile(path)

    return write


@pytest.fixture
def make_gate(holder: Holder, institutions: Institutions) -> Iterator[Callable[..., Gate]]:
    made: list[GroupWriter] = []

    def make(file: PolicyFile, draft: contract_pb2.Contract | None = None, **options) -> Gate:
        """With a contract that lets the others do everything, or the given one."""
        writer = GroupWriter(holder.database)  # type: ignore[attr-defined]
        made.append(writer)
        publish(holder.log, writer)  # type: ignore[attr-defined]
        clock = options.get("clock", time.time)
        book = institutions.contracts(holder.database, holder.log, "holder", clock)  # type: ignore[attr-defined]
        if not book.all():
            held = book.propose(draft or lookups("holder", ("bank-b", "bank-c", "centre"), clock()))
            everybody_signs(book, held, institutions.keys)
        gate = Gate(
            holder.database,  # type: ignore[attr-defined]
            writer,
            Rules(book, file, str(holder.name)),
            holder.log,  # type: ignore[attr-defined]
            **options,
        )
        gate.contracts = book  # type: ignore[attr-defined]
        return gate

    yield make
    for writer in made:
        writer.close()
