"""This node's log in `node.db`. An event is recorded in the transaction of what it records; at each tick all that
wait are ordered by hash, padded to a public size and appended to the tree, and a head is signed.

So an event is durable before anything is acknowledged, and a crash at any point leaves whole ticks: what was recorded
and not yet appended waits for the next one.
"""

import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import grpc
import sqlalchemy as sa
from lianfang.v1 import common_pb2, ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols import merkle, statement
from protocols.encoding import frame
from protocols.errors import MisuseError
from protocols.ledger import checkpoints, events, notes, tiles
from protocols.ledger.checkpoints import Checkpoint, Head
from protocols.ledger.events import Committed
from protocols.ledger.notes import VerifierKey
from protocols.ledger.proofs import LogProof
from protocols.ledger.witnessing import Seen

from ..config import LedgerSection
from ..errors import NotFound, Refused, StorageError
from ..identity.keys import NodeKeys
from ..identity.members import origin
from ..identity.names import MemberName
from ..store import engine as db
from ..store import schema
from ..store.prepared import Prepared
from ..store.writer import GroupWriter
from .mark import Mark

_STRETCH = 5_000  # promises looked at together
CLEAR_ROOM = 8  # leaves in clear, padding included, that a head between ticks adds
STEP = 2_048  # leaves appended in one transaction: bounds how long others wait
HEADS_KEPT = 1_000
_PATIENCE_TICKS, _PATIENCE_SECONDS = 3, 15.0  # without a published head before the quorum counts as lost
_DAY_MS = 86_400_000

_INSERT = Prepared(
    insert(schema.ledger_entry).on_conflict_do_nothing(),
    [column.name for column in schema.ledger_entry.columns if column.name not in ("id", "position")],
)
_STORED = Prepared(
    sa.select(schema.ledger_entry.c.opening, schema.ledger_entry.c.include_by).where(
        schema.ledger_entry.c.key == sa.bindparam("in_key")
    )
)
_PROMISE = Prepared(
    insert(schema.promise).on_conflict_do_nothing(),
    [column.name for column in schema.promise.columns if column.name != "position"],
)


@dataclass(frozen=True)
class Entry:
    """An event as it is recorded: its salted commitment and by when the log holds it (seconds since 1970)."""

    key: bytes
    committed: Committed
    include_by: int


@dataclass(frozen=True)
class Recorded:
    """An event of this log, opened, and where it stands; `position` is `None` until the tick."""

    committed: Committed
    include_by: int
    position: int | None


@dataclass(frozen=True)
class Published:
    """The newest head that a quorum has cosigned."""

    head: Head
    at: float


class LogBook:
    """One per node. What writes runs in a transaction of the caller; ticks go through the node's one writer."""

    def __init__(
        self,
        database: sa.Engine,
        keys: NodeKeys,
        name: MemberName,
        settings: LedgerSection,
        mark: Mark,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._keys, self._mark, self._clock = database, keys, mark, clock
        self.settings = settings
        self.owner = str(name)
        self.origin = origin(name)
        self.key = VerifierKey(self.origin, notes.ED25519, keys.log_public())
        self.ready = False  # until it is known how far this log has signed
        self._listeners: list[Callable[[], None]] = []
        self._ticking = threading.Lock()
        self._announced = threading.Condition()
        self._clear_waits, self._gathering = True, 0  # a crash may have left some
        with db.reading(database) as connection:
            head = schema.ledger_head
            newest = connection.execute(sa.select(head).order_by(head.c.size.desc())).first()
            first = connection.execute(sa.select(sa.func.min(head.c.signed_at))).scalar()
            published = connection.execute(
                sa.select(head).where(head.c.published_at.is_not(None)).order_by(head.c.size.desc())
            ).first()
        self.signed = checkpoints.open_head(newest.note, self.key, ()) if newest else None
        self._started = min(clock(), first) if first is not None else clock()
        self._published: Published | None = None
        if published is not None:
            # Cosignatures were verified when they came; the head is our own.
            self._published = Published(_unverified(published.note), published.published_at)
        # A head was handed out of which this database knows nothing: it was restored from a backup.
        known = self.signed.checkpoint.size if self.signed else 0
        self.lost: Seen | None = mark.own if mark.own.size > known else None
        if self.lost is not None:
            self._published = None  # an older head than others have seen: nobody is to see it again

    # -- recording, in a transaction of the caller -----------------------------------------------------------

    def prepare(
        self, kind: "ledger_pb2.EventType.ValueType", peer: str, event_id: bytes, **fields: Any
    ) -> Entry:
        """Commit to an event that is about to be recorded. Raises `MisuseError` for one that no reader accepts."""
        now = self._clock()
        event = ledger_pb2.Event(
            log=self.owner, type=kind, id=event_id, peer=peer, at=int(now * 1000), **fields
        )
        by = int(now + 2 * self.settings.tick_seconds) + 1
        return Entry(events.event_key(event), events.commit(event), by)

    def record(self, connection: sa.Connection, entry: Entry) -> Entry:
        """Durable with the transaction. An event that is recorded already stays as it is, and is returned."""
        event = entry.committed.event
        opening = entry.committed.opening.SerializeToString()
        cursor = _INSERT.run(
            connection,
            {
                "key": entry.key,
                "type": event.type,
                "peer": event.peer,
                "event_id": event.id,
                "case_commitment": event.case_commitment,
                "at": event.at,
                "include_by": entry.include_by,
                "leaf": entry.committed.leaf,
                "opening": self._keys.vault.encrypt(opening, b"opening" + entry.key),
            },
        )
        if cursor.rowcount == 1:
            return entry
        stored, include_by = _STORED.run(connection, {"in_key": entry.key}).fetchone()
        if stored is None:
            raise Refused("this event's opening has been erased", "ERASED")
        return Entry(entry.key, self._open(entry.key, stored), include_by)

    def record_clear(self, connection: sa.Connection, leaf: bytes) -> None:
        """A leaf that everybody may read; the same one twice is one. Raises `MisuseError` for one that nobody parses."""
        if len(leaf) > events.MAX_LEAF:
            raise MisuseError(f"a leaf has at most {events.MAX_LEAF} bytes")
        _INSERT.run(
            connection,
            {
                "key": clear_key(leaf),
                "type": 0,
                "peer": "",
                "event_id": b"",
                "case_commitment": b"",
                "at": int(self._clock() * 1000),
                "include_by": 0,
                "leaf": leaf,
                "opening": None,
            },
        )
        self._clear_waits = True

    def record_promise(
        self, connection: sa.Connection, receipt: ledger_pb2.Receipt, committed: Committed
    ) -> None:
        """Keep another member's receipt until its log keeps its word."""
        _PROMISE.run(
            connection,
            {
                "commitment": committed.commitment,
                "peer": committed.event.log,
                "event_id": committed.event.id,
                "include_by": receipt.include_by,
                "receipt": self._keys.vault.encrypt(
                    receipt.SerializeToString(), b"promise" + committed.commitment
                ),
            },
        )

    def now(self) -> float:
        """Seconds since 1970, by this node's clock."""
        return self._clock()

    def receipt(self, entry: Entry) -> ledger_pb2.Receipt:
        """This node's word for an event that is durable."""
        return events.receipt(entry.committed, entry.include_by, self._keys.signing)

    def _open(self, key: bytes, stored: bytes) -> Committed:
        data = self._keys.vault.decrypt(stored, b"opening" + key)
        return events.open_commitment(ledger_pb2.Opening.FromString(data))

    # -- ticks -----------------------------------------------------------------------------------------------

    def tick(self, writer: GroupWriter) -> Head:
        """Append what waits and sign the new head: events padded to a public size, leaves in clear apart from them.

        Not for the event loop; one at a time. Raises `Refused` while this log's own entries are not all here.
        """
        with self._ticking:
            self._check_whole()
            self._append_clear(writer, None)
            waiting = writer.submit(lambda connection: self._waiting(connection, clear=False)).result()
            room = self.settings.leaves_a_tick
            while room < len(waiting):
                room *= 4
            self._append_padded(writer, waiting, room, events.dummy_leaf)
            return self._signed(writer)

    def tick_clear(self, writer: GroupWriter) -> Head | None:
        """A head between ticks: at most `CLEAR_ROOM` leaves in clear, padded to that, and no commitment; `None` where none wait.

        What everybody may read need not wait for the tick, whose padding hides how many events there were.
        """
        with self._ticking:
            self._check_whole()
            return self._signed(writer) if self._append_clear(writer, CLEAR_ROOM) else None

    def _check_whole(self) -> None:
        if self.lost is not None:
            raise Refused(
                f"this node's database is older than the head of {self.lost.size} leaves that it has signed",
                "RESTORED",
            )

    def _append_clear(self, writer: GroupWriter, most: int | None) -> int:
        """Append leaves in clear, the oldest first; how many there were."""
        waiting = writer.submit(lambda connection: self._waiting(connection, clear=True)).result()[:most]
        self._clear_waits = False
        if waiting:
            room = -(-len(waiting) // CLEAR_ROOM) * CLEAR_ROOM
            self._append_padded(writer, waiting, room, events.padding_leaf)
        return len(waiting)

    def _append_padded(
        self, writer: GroupWriter, waiting: Sequence[int], room: int, pad: Callable[[], bytes]
    ) -> None:
        # Steps take at random what is real, so that they say nothing of what came when.
        real: list[int | None] = [*waiting, *[None] * (room - len(waiting))]
        secrets.SystemRandom().shuffle(real)
        for i in range(0, room, STEP):
            step = functools.partial(self._append, step=real[i : i + STEP], pad=pad)
            writer.submit(step).result()

    def _signed(self, writer: GroupWriter) -> Head:
        head: Future[Head] = writer.submit(self._sign)
        signed = head.result()
        self._mark.note_own(Seen(signed.checkpoint.size, signed.checkpoint.root))
        self.signed = signed
        return signed

    @staticmethod
    def _waiting(connection: sa.Connection, clear: bool | None = None) -> Sequence[int]:
        table = schema.ledger_entry
        waiting = sa.select(table.c.id).where(table.c.position.is_(None)).order_by(table.c.id)
        if clear is not None:
            waiting = waiting.where(table.c.type == 0 if clear else table.c.type > 0)
        return connection.execute(waiting).scalars().all()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is recorded in clear meanwhile is to leave in one head: an epoch and its first batch."""
        with self._announced:
            self._gathering += 1
        try:
            yield
        finally:
            with self._announced:
                self._gathering -= 1

    @property
    def clear_waits(self) -> bool:
        """Whether leaves in clear may wait for a head, and nothing is about to follow them."""
        return self._clear_waits and not self._gathering

    def _append(
        self, connection: sa.Connection, step: Sequence[int | None], pad: Callable[[], bytes]
    ) -> None:
        """Append the entries of a step, and for each `None` a leaf that stands for nothing."""
        table = schema.ledger_entry
        chosen = [each for each in step if each is not None]
        rows = connection.execute(sa.select(table.c.id, table.c.leaf).where(table.c.id.in_(chosen))).all()
        leaves: list[tuple[bytes, bytes, int | None]] = [
            (merkle.leaf_hash(row.leaf), row.leaf, row.id) for row in rows
        ]
        for _ in range(len(step) - len(chosen)):
            leaf = pad()
            leaves.append((merkle.leaf_hash(leaf), leaf, None))
        leaves.sort(key=lambda each: each[0])  # hashes of random bytes: the order of arrival is gone
        start = self._extend(connection, [(hash_, leaf) for hash_, leaf, _ in leaves])
        places = [
            {"in_id": row_id, "in_position": start + i}
            for i, (_, _, row_id) in enumerate(leaves)
            if row_id is not None
        ]
        if places:
            connection.execute(
                table.update()
                .where(table.c.id == sa.bindparam("in_id"))
                .values(position=sa.bindparam("in_position")),
                places,
            )

    def _extend(self, connection: sa.Connection, leaves: list[tuple[bytes, bytes]]) -> int:
        """Append (hash, data) to the tree; the position of the first."""
        size = self._tree_size(connection)

        def read(level: int, number: int) -> bytes:
            return read_tile(connection, level, number)

        changed = tiles.grow(size, [hash_ for hash_, _ in leaves], read)
        changed |= grow_bundles(size, [leaf for _, leaf in leaves], read)
        write_tiles(connection, schema.ledger_tile, changed, {})
        tree = schema.ledger_tree
        total = size + len(leaves)
        connection.execute(
            insert(tree)
            .values(id=1, size=total)
            .on_conflict_do_update(index_elements=["id"], set_={"size": total})
        )
        return size

    @staticmethod
    def _tree_size(connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(schema.ledger_tree.c.size)).scalar() or 0)

    def _sign(self, connection: sa.Connection) -> Head:
        size = self._tree_size(connection)
        root = merkle.root(size, tiles.nodes(lambda level, number: read_tile(connection, level, number)))
        head = schema.ledger_head
        known = connection.execute(sa.select(head.c.note).where(head.c.size == size)).scalar()
        if known is not None:
            return checkpoints.open_head(known, self.key, ())
        note = checkpoints.sign(Checkpoint(self.origin, size, root), self._keys.log)
        connection.execute(head.insert().values(size=size, note=bytes(note), signed_at=self._clock()))
        old = connection.execute(
            sa.select(head.c.size).order_by(head.c.size.desc()).offset(HEADS_KEPT).limit(1)
        ).scalar()
        if old is not None:
            # The newest published head stays, however long there has been no quorum.
            kept = (
                sa.select(sa.func.max(head.c.size)).where(head.c.published_at.is_not(None)).scalar_subquery()
            )
            connection.execute(
                head.delete().where(head.c.size <= old, head.c.size < sa.func.coalesce(kept, 1 << 62))
            )
        return checkpoints.open_head(bytes(note), self.key, ())

    # -- publication -----------------------------------------------------------------------------------------

    def publish(self, connection: sa.Connection, head: Head) -> None:
        """A quorum has cosigned `head`. In the writer's thread; `announce` follows once it is durable."""
        connection.execute(
            schema.ledger_head.update()
            .where(schema.ledger_head.c.size == head.checkpoint.size)
            .values(note=bytes(head.note), published_at=self._clock())
        )

    def announce(self, head: Head) -> None:
        """The head is durable as published: tell who waits."""
        if self._published is None or head.checkpoint.size >= self._published.head.checkpoint.size:
            self._published = Published(head, self._clock())
        for listener in self._listeners:
            listener()
        with self._announced:
            self._announced.notify_all()

    def on_published(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each publication, in the thread that announces it."""
        self._listeners.append(listener)

    @property
    def published(self) -> Published | None:
        """The newest published head."""
        return self._published

    @property
    def published_size(self) -> int:
        """Its size; 0 before the first."""
        return self._published.head.checkpoint.size if self._published else 0

    def unpublished_for(self) -> float:
        """Seconds since a quorum last cosigned, beyond what a tick may take; 0 while all is well."""
        patience = max(_PATIENCE_TICKS * self.settings.tick_seconds, _PATIENCE_SECONDS)
        since = self._clock() - (self._published.at if self._published else self._started)
        if self._published is not None and since <= patience:
            return 0.0
        return max(since, 0.001)

    def check_standing(self, purpose: str) -> None:
        """Raise `Refused` where no quorum witnesses this log and `purpose` is not urgent, or has been for too long."""
        gone = self.unpublished_for()
        if not gone:
            return
        if purpose not in self.settings.urgent:
            raise Refused(
                f"no quorum has witnessed this node's log for {gone:.0f} s, and {purpose} is not urgent",
                "UNPUBLISHED",
                grpc.StatusCode.UNAVAILABLE,
            )
        if gone > self.settings.unpublished_hours * 3600:
            raise Refused(
                f"no quorum has witnessed this node's log for {gone / 3600:.1f} hours, longer than configured",
                "UNPUBLISHED",
                grpc.StatusCode.UNAVAILABLE,
            )

    def holds(self, leaf: bytes) -> bool:
        """Whether a leaf in clear stands in the newest published head."""
        table = schema.ledger_entry
        with db.reading(self._database) as connection:
            position = connection.execute(
                sa.select(table.c.position).where(table.c.key == clear_key(leaf))
            ).scalar()
        return position is not None and position < self.published_size

    def wait_for(self, leaf: bytes) -> bool:
        """Wait until a leaf in clear is published, for as long as that may take; whether it is."""
        end = time.monotonic() + 2 * self.settings.tick_seconds + _PATIENCE_SECONDS
        with self._announced:
            while not self.holds(leaf):
                left = end - time.monotonic()
                if left <= 0 or not self._announced.wait(left):
                    return self.holds(leaf)
        return True

    # -- reading ---------------------------------------------------------------------------------------------

    def tile(self, level: int, number: int, width: int) -> bytes:
        """A tile of the newest signed head for a reader; raises `NotFound` beyond it."""
        size = self.signed.checkpoint.size if self.signed else 0
        if not 0 < width <= tiles.width(level, number, size):
            raise NotFound("no such tile in a signed head of this log")
        with db.reading(self._database) as connection:
            content = read_tile(connection, level, number)
        return tiles.cut(level, content, width)

    def nodes(self) -> merkle.Nodes:
        """The tree, read in transactions of its own."""

        def read(level: int, number: int) -> bytes:
            with db.reading(self._database) as connection:
                return read_tile(connection, level, number)

        return tiles.nodes(read)

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """From one size of this log to a later one."""
        return tuple(merkle.consistency(old, new, self.nodes()))

    def prove(self, position: int) -> LogProof:
        """An entry in the newest published head; raises `NotFound` where it stands in none yet."""
        published = self._published
        if published is None or position >= published.head.checkpoint.size:
            raise NotFound("the entry stands in no published head yet; wait for the next tick")
        size = published.head.checkpoint.size
        path = tuple(merkle.inclusion(position, size, self.nodes()))
        return LogProof(position, path, bytes(published.head.note))

    def find(
        self,
        peer: str | None = None,
        since: int = 0,
        until: int = 1 << 62,
        case: bytes | None = None,
        event_id: bytes | None = None,
        event_ids: Sequence[bytes] = (),
    ) -> Iterator[Recorded]:
        """Events that this node can still open, oldest first. Times in milliseconds."""
        table = schema.ledger_entry
        chosen = sa.select(table).where(
            table.c.type > 0, table.c.opening.is_not(None), table.c.at >= since, table.c.at < until
        )
        for column, value in (
            (table.c.peer, peer),
            (table.c.case_commitment, case),
            (table.c.event_id, event_id),
        ):
            if value is not None:
                chosen = chosen.where(column == value)
        if event_ids:
            chosen = chosen.where(table.c.event_id.in_(event_ids))
        with db.reading(self._database) as connection:
            rows = connection.execute(chosen.order_by(table.c.at, table.c.id)).all()
        for row in rows:
            yield Recorded(self._open(row.key, row.opening), row.include_by, row.position)

    def promised(self, event_id: bytes) -> list[tuple[ledger_pb2.Receipt, int | None]]:
        """Others' receipts under an event's id, and where their logs hold what they promise."""
        table = schema.promise
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(table).where(table.c.event_id == event_id)).all()
        vault = self._keys.vault
        return [
            (
                ledger_pb2.Receipt.FromString(vault.decrypt(row.receipt, b"promise" + row.commitment)),
                row.position,
            )
            for row in rows
        ]

    @property
    def size(self) -> int:
        """Leaves appended so far."""
        with db.reading(self._database) as connection:
            return self._tree_size(connection)

    def waiting(self) -> int:
        """Events that wait for the next tick."""
        with db.reading(self._database) as connection:
            return len(self._waiting(connection))

    # -- erasing and restoring -------------------------------------------------------------------------------

    def erase(self, before_days: float) -> int:
        """Destroy the openings of events older than so many days; their commitments stay and say nothing."""
        table = schema.ledger_entry
        limit = int(self._clock() * 1000 - before_days * _DAY_MS)
        with db.writing(self._database) as connection:
            erased = connection.execute(
                table.update()
                .where(table.c.opening.is_not(None), table.c.at < limit, table.c.position.is_not(None))
                .values(opening=None, peer="", event_id=b"", case_commitment=b"")
            )
        self._forget_promises(limit // 1000)
        return erased.rowcount

    def _forget_promises(self, before: int) -> None:
        """In the order in which they came, until a stretch has none that is due.

        Of a question that was asked again days later a receipt may go so much later.
        """
        table, done, due = schema.promise, 0, True
        row_id: sa.ColumnClause[int] = sa.literal_column("rowid")
        oldest = sa.select(row_id, table.c.include_by).select_from(table).order_by(row_id).limit(_STRETCH)
        while due:
            with db.reading(self._database) as connection:
                rows = connection.execute(oldest.where(row_id > done)).all()
            if due := any(include_by < before for _, include_by in rows):
                until = rows[-1][0]
                stretch = (row_id > done, row_id <= until, table.c.include_by < before)
                with db.writing(self._database) as connection:
                    connection.execute(table.delete().where(*stretch))
                done = until

    def adopt(self, leaves: Sequence[bytes]) -> None:
        """Take back own entries that a restored database lacks, from a copy of this log, up to the mark.

        Raises `StorageError` where they do not lead to the head that was signed; nothing is changed then.
        """
        lost = self.lost
        if lost is None:
            return
        with self._ticking, db.writing(self._database) as connection:
            size = self._tree_size(connection)
            if size + len(leaves) != lost.size:
                raise StorageError(f"{lost.size - size} leaves are missing, {len(leaves)} were found")
            start = self._extend(connection, [(merkle.leaf_hash(leaf), leaf) for leaf in leaves])
            self._remember_statements(connection, leaves)
            root = merkle.root(
                lost.size, tiles.nodes(lambda level, number: read_tile(connection, level, number))
            )
            if root != lost.root:
                raise StorageError("the copy's entries do not lead to the head that this node signed")
            table = schema.ledger_entry
            places = {leaf: start + i for i, leaf in enumerate(leaves)}
            waiting = sa.select(table.c.key, table.c.leaf).where(table.c.position.is_(None))
            for row in connection.execute(waiting).all():
                if row.leaf in places:
                    connection.execute(
                        table.update().where(table.c.key == row.key).values(position=places[row.leaf])
                    )
            note = checkpoints.sign(Checkpoint(self.origin, lost.size, root), self._keys.log)
            connection.execute(schema.ledger_head.update().values(published_at=None))
            connection.execute(
                insert(schema.ledger_head)
                .values(size=lost.size, note=bytes(note), signed_at=self._clock())
                .on_conflict_do_nothing()
            )
        self._mark.note_own(lost)
        self.signed = checkpoints.open_head(bytes(note), self.key, ())
        self.lost = None

    @staticmethod
    def _remember_statements(connection: sa.Connection, leaves: Sequence[bytes]) -> None:
        """What this node has said of its lists and forgotten: no slot may be filled a second time."""
        table = schema.spoken
        for data in leaves:
            leaf = events.parse_leaf(data)
            if leaf.WhichOneof("body") != "statement":
                continue
            said = statement.parse(common_pb2.SignedStatement.FromString(leaf.statement).statement)
            connection.execute(
                insert(table)
                .values(list=said.list, epoch=said.epoch, slot=statement.slot(said))
                .on_conflict_do_nothing()
            )

    def spoken(self, list_name: str) -> dict[int, set[str]]:
        """Slots of a list, by epoch, about which this log says something that the node has forgotten."""
        table = schema.spoken
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table.c.epoch, table.c.slot).where(table.c.list == list_name)
            ).all()
        found: dict[int, set[str]] = {}
        for row in rows:
            found.setdefault(row.epoch, set()).add(row.slot)
        return found


def clear_key(leaf: bytes) -> bytes:
    """The key of a leaf in clear."""
    return merkle.leaf_hash(leaf)[:16]


def read_tile(connection: sa.Connection, level: int, number: int) -> bytes:
    """A tile of this node's log, all there is of it; empty where it does not exist."""
    table = schema.ledger_tile
    content = connection.execute(
        sa.select(table.c.content).where(table.c.level == level, table.c.number == number)
    ).scalar()
    return bytes(content or b"")


def grow_bundles(size: int, leaves: list[bytes], read: tiles.Reader) -> dict[tuple[int, int], bytes]:
    """New contents of the entry bundles when leaves are appended to a tree of `size`."""
    changed: dict[tuple[int, int], bytes] = {}
    place = 0
    while place < len(leaves):
        number, used = divmod(size + place, tiles.WIDTH)
        part = leaves[place : place + tiles.WIDTH - used]
        before = tiles.unpack(read(tiles.ENTRIES, number))[:used] if used else []
        changed[(tiles.ENTRIES, number)] = tiles.pack([*before, *part])
        place += len(part)
    return changed


def write_tiles(
    connection: sa.Connection, table: sa.Table, changed: dict[tuple[int, int], bytes], owner: dict[str, str]
) -> None:
    """Store tiles; `owner` are the other columns of the table's key."""
    for (level, number), content in changed.items():
        values = {"level": level, "number": number, "content": content, **owner}
        connection.execute(
            insert(table)
            .values(**values)
            .on_conflict_do_update(index_elements=[*owner, "level", "number"], set_={"content": content})
        )


def _unverified(data: bytes) -> Head:
    """A head out of this node's own database: its witnesses may have left since."""
    note = notes.Note.parse(data)
    times = {
        each.name: int.from_bytes(each.data[:8], "big") for each in note.signatures if len(each.data) == 72
    }
    return Head(Checkpoint.parse(note.text), note, times)


def random_id() -> bytes:
    """For an event that no query names."""
    return secrets.token_bytes(events.ID)


def derived_id(*parts: bytes | str | int) -> bytes:
    """For an event that is to be recorded once, however often it happens."""
    return merkle.leaf_hash(frame("lianfang/v1/event-id", *parts))[: events.ID]
