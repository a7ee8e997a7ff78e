"""A node's parts without its servers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodes.config import LedgerSection, ListsSection
from nodes.gate import Gate
from nodes.holder.epochs import Epochs
from nodes.holder.lists import ImportOutcome, ListStore, today
from nodes.holder.rows import RowOptions, prepare_chunk
from nodes.identity import keys as node_keys
from nodes.identity.authority import Authority, make_request, read_request
from nodes.identity.keys import NodeKeys
from nodes.identity.members import Member
from nodes.identity.names import MemberName, Role
from nodes.ledger.book import LogBook
from nodes.ledger.mark import Mark
from nodes.policy import PolicyFile
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from nodes.workers import Workers
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
        chosen = RowOptions(
            **{"default_region": "CN", "phone_valid_days": 180, "official": False, "today": today()} | options
        )
        prepared = prepare_chunk(self.keys.storage, self.rows(*rows), chosen)
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
        store = ListStore(db.connect(folder / "lists.db", "lists"), keys.vault)
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


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Member]:
    """Members of a real CA: three banks and the centre."""
    folder = tmp_path_factory.mktemp("network")
    ca = Authority.create(folder / "ca", NETWORK)
    for name, role in (
        ("holder", Role.BANK),
        ("bank-b", Role.BANK),
        ("bank-c", Role.BANK),
        ("centre", Role.CENTRE),
    ):
        node_keys.create(folder / name / "keys")
        keys = NodeKeys.load(folder / name / "keys")
        request = make_request(keys, MemberName(NETWORK, role, name), "127.0.0.1:1", "127.0.0.1:2")
        ca.sign(read_request(request))
    return {member.name.name: member for member in ca.members}


@pytest.fixture
def policy_file(tmp_path: Path) -> Callable[[str], PolicyFile]:
    def write(text: str) -> PolicyFile:
        path = tmp_path / "policy.toml"
        path.write_text(text, "utf-8")
        return PolicyFile(path)

    return write


@pytest.fixture
def make_gate(holder: Holder) -> Iterator[Callable[..., Gate]]:
    made: list[GroupWriter] = []

    def make(rules: PolicyFile, **options) -> Gate:
        writer = GroupWriter(holder.database)  # type: ignore[attr-defined]
        made.append(writer)
        publish(holder.log, writer)  # type: ignore[attr-defined]
        return Gate(holder.database, writer, rules, holder.log, **options)  # type: ignore[attr-defined]

    yield make
    for writer in made:
        writer.close()
