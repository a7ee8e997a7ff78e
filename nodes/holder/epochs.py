"""Key epochs of own lists and the sealing of their batches.

An epoch goes sealing → open → closing → closed. Its key lives in one file of its own and nowhere else, so that
closing can destroy it; the file is not to be backed up, for a lost key costs no more than a new epoch.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lianfang.v1 import common_pb2 as pb

from protocols import group, sealed, statement, voprf
from protocols.ledger import events
from protocols.sealed import BatchHash, ListEpoch
from protocols.voprf import KeyPair

from .. import limits
from ..cluster import Pool
from ..config import ListsSection
from ..errors import NotFound, Refused, StorageError
from ..files import destroy, write_secret
from ..identity.keys import NodeKeys, Vault
from ..identity.names import MemberName
from ..ledger.book import LogBook
from ..store import engine as db
from ..store import schema
from .batches import BatchBuilder
from .lists import ListStore
from .rows import SealRow, seal_rows

Report = Callable[[str, int, int], None]  # phase, done, total
ANSWERING = ("open", "closing")


def _not_answering(list_name: str, number: int) -> Refused:
    return Refused(
        f"epoch {number} of {list_name} does not answer: sync and ask the newest",
        "EPOCH",
        grpc.StatusCode.FAILED_PRECONDITION,
    )


def silent(_phase: str, _done: int, _total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class SealedBatch:
    """A committed batch."""

    number: int
    to_seq: int
    additions: int
    removals: int
    sealed: int
    tombstones: int
    table_hash: bytes
    descriptor: pb.SignedStatement


@dataclass(frozen=True)
class Epoch:
    """An epoch as the node knows it."""

    list: str
    number: int
    public_key: bytes
    closes_at: int
    state: str
    opened: pb.SignedStatement
    closed: pb.SignedStatement | None


def _signed(data: bytes) -> pb.SignedStatement:
    return pb.SignedStatement.FromString(data)


class Epochs:
    """All epochs of this node's lists."""

    def __init__(
        self,
        database: sa.Engine,
        store: ListStore,
        keys: NodeKeys,
        name: MemberName,
        folder: Path,
        key_folder: Path,
        settings: ListsSection,
        workers: Pool,
        log: LogBook,
    ) -> None:
        self._log = log
        self._database, self._store, self._name, self._folder = database, store, name, folder
        self._settings, self._workers = settings, workers
        self._signing: Ed25519PrivateKey = keys.signing
        self._vault: Vault = keys.vault
        self._entries: Vault = keys.list_vault
        self._key_folder = key_folder
        self._key_folder.mkdir(mode=0o700, exist_ok=True)
        self._keys: dict[tuple[str, int], tuple[KeyPair, float]] = {}  # and until when it answers
        self._destroyed: set[tuple[str, int]] = set()
        self._heads: dict[tuple[str, int], int] = {}
        self._guard = threading.Lock()
        log.on_published(self._forget_heads)

    # -- reading ---------------------------------------------------------------------------------------------

    def where(self, list_name: str, number: int) -> ListEpoch:
        """The context of an epoch of ours."""
        return ListEpoch(self._name.network, str(self._name), list_name, number)

    def all(self, list_name: str) -> list[Epoch]:
        """All epochs of a list, oldest first."""
        table = schema.epoch
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table).where(table.c.list == list_name).order_by(table.c.number)
            ).all()
        return [
            Epoch(
                row.list,
                row.number,
                row.public_key,
                row.closes_at,
                row.state,
                _signed(row.opened),
                _signed(row.closed) if row.closed else None,
            )
            for row in rows
        ]

    @staticmethod
    def form(epoch: Epoch) -> bytes:
        """The normal form that an epoch announces."""
        return bytes(pb.Statement.FromString(epoch.opened.statement).epoch_opened.form)

    def _find(self, list_name: str, number: int) -> Epoch | None:
        return next((each for each in self.all(list_name) if each.number == number), None)

    def _existing(self, list_name: str, number: int) -> Epoch:
        epoch = self._find(list_name, number)
        assert epoch is not None
        return epoch

    def answering(self, list_name: str) -> list[Epoch]:
        """Epochs that answer questions."""
        return [each for each in self.all(list_name) if each.state in ANSWERING]

    def batches(self, list_name: str, number: int) -> list[SealedBatch]:
        """Committed batches of an epoch, in order."""
        table = schema.batch
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table)
                .where(table.c.list == list_name, table.c.epoch == number)
                .order_by(table.c.number)
            ).all()
        return [
            SealedBatch(
                row.number,
                row.to_seq,
                row.additions,
                row.removals,
                row.sealed,
                row.tombstones,
                row.table_hash,
                _signed(row.descriptor),
            )
            for row in rows
        ]

    def _forget_heads(self) -> None:
        with self._guard:
            self._heads.clear()

    def published(self, list_name: str, number: int) -> list[SealedBatch]:
        """Batches whose descriptors stand in the log's published head: what others may have."""
        batches = self.batches(list_name, number)
        while batches and not self.is_published(batches[-1].descriptor):
            batches.pop()
        return batches

    def is_published(self, signed: pb.SignedStatement | None) -> bool:
        """Whether a statement stands in the log's published head."""
        return signed is not None and self._log.holds(events.statement_leaf(signed))

    def head(self, list_name: str, number: int) -> int:
        """Number of the newest published batch, from memory; 0 before the first."""
        key = (list_name, number)
        known = self._heads.get(key)
        if known is None:
            size = self._log.published_size
            batches = self.published(list_name, number)
            known = batches[-1].number if batches else 0
            with self._guard:
                if size == self._log.published_size:  # else it may be old already
                    self._heads[key] = known
        return known

    def batch_path(self, list_name: str, number: int, batch: int) -> Path:
        """The batch's file."""
        return self._folder / list_name / str(number) / f"{batch:06d}.batch"

    def _key_path(self, list_name: str, number: int) -> Path:
        return self._key_folder / f"{list_name}-{number}.key"

    def _purpose(self, list_name: str, number: int) -> bytes:
        return f"epoch\x1f{list_name}\x1f{number}".encode()

    def key(self, list_name: str, number: int) -> KeyPair:
        """The key of an epoch that answers questions. Raises `Refused` for any other."""
        with self._guard:
            known = self._keys.get((list_name, number))
        if known is None:
            epoch = self._find(list_name, number)
            if epoch is None or epoch.state not in ANSWERING:
                raise _not_answering(list_name, number)
            pair = self._read_key(list_name, epoch)
            known = pair, epoch.closes_at if epoch.state == "closing" else float("inf")
            with self._guard:
                if (list_name, number) in self._destroyed:
                    raise _not_answering(list_name, number)
                self._keys[(list_name, number)] = known
        if time.time() >= known[1]:
            raise _not_answering(list_name, number)
        return known[0]

    def _read_key(self, list_name: str, epoch: Epoch) -> KeyPair:
        number = epoch.number
        path = self._key_path(list_name, number)
        try:
            secret = self._vault.decrypt(path.read_bytes(), self._purpose(list_name, number))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; rotate the list to open a new epoch") from error
        pair = KeyPair(secret, group.multiply_base(secret))
        if pair.public != epoch.public_key:
            raise StorageError(f"{path} is not the key of epoch {number}; rotate the list")
        return pair

    def _sealing_key(self, list_name: str, number: int) -> KeyPair:
        """The key of an epoch that exists, whether it answers yet or not."""
        return self._read_key(list_name, self._existing(list_name, number))

    # -- opening and closing -----------------------------------------------------------------------------------

    def open(self, list_name: str) -> int:
        """A new epoch in state sealing; returns its number. One that is being sealed already is taken up."""
        existing, form = self.all(list_name), self._store.form(list_name)
        if existing and existing[-1].state == "sealing":
            if self.form(existing[-1]) == form:
                return existing[-1].number
            self.close(list_name, existing[-1].number)  # its entries would not be what it announces
        number = max([0, *(each.number for each in existing), *self._log.spoken(list_name)]) + 1
        pair = voprf.generate_key_pair()
        path = self._key_path(list_name, number)
        path.unlink(missing_ok=True)  # of a crash before its record was committed: never used
        write_secret(path, self._vault.encrypt(pair.secret, self._purpose(list_name, number)))
        now = int(time.time())
        closes_at = now + max(1, int(self._settings.epoch_days * 86_400))
        opened = statement.sign(
            self._signing,
            statement.epoch_opened(self.where(list_name, number), now, pair.public, closes_at, form),
        )
        with db.writing(self._database) as connection:
            connection.execute(
                schema.epoch.insert().values(
                    list=list_name,
                    number=number,
                    public_key=pair.public,
                    opened_at=now,
                    closes_at=closes_at,
                    state="sealing",
                    opened=opened.SerializeToString(),
                )
            )
            self._log.record_clear(connection, events.statement_leaf(opened))
        return number

    def rotate(self, list_name: str, close_now: bool, report: Report = silent) -> SealedBatch:
        """Open the next epoch, seal everything under it, and let the old one close after the overlap."""
        with self._store.lock(list_name), self._log.together():
            if not self._store.is_active(list_name):
                raise Refused(
                    f"the list {list_name} is not active: lianfang list activate {list_name}",
                    "INACTIVE",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
            number = self.open(list_name)
            batch = self.seal(list_name, number, report)
            if close_now:
                for epoch in self.answering(list_name):
                    if epoch.number < number:
                        self.close(list_name, epoch.number)
        if batch is None:
            raise NotFound(f"the list {list_name} has nothing to seal")
        return batch

    def close(self, list_name: str, number: int) -> None:
        """Destroy the epoch's key, then record that it is gone."""
        path = self._key_path(list_name, number)
        epoch = self._existing(list_name, number)
        with self._guard:
            self._destroyed.add((list_name, number))
            self._keys.pop((list_name, number), None)
            if path.exists():
                destroy(path)
        closed = statement.sign(
            self._signing,
            statement.epoch_closed(
                self.where(list_name, number),
                int(time.time()),
                epoch.public_key,
                len(self.batches(list_name, number)),
            ),
        )
        table = schema.epoch
        with db.writing(self._database) as connection:
            connection.execute(
                table.update()
                .where(table.c.list == list_name, table.c.number == number)
                .values(state="closed", closed=closed.SerializeToString())
            )
            self._log.record_clear(connection, events.statement_leaf(closed))
        shutil.rmtree(self._folder / list_name / str(number), ignore_errors=True)

    def tend(self, list_name: str, report: Report = silent) -> None:
        """Housekeeping: expire entries, seal what changed, rotate and close what is due."""
        with self._store.lock(list_name):
            self._store.renormalise(list_name)
            self._store.expire(list_name)
            now = time.time()
            epochs = self.all(list_name)
            for epoch in epochs:
                lost = not self._key_path(list_name, epoch.number).exists()
                if epoch.state == "closing" and (now >= epoch.closes_at or lost):
                    self.close(list_name, epoch.number)
            newest = epochs[-1] if epochs else None
            if newest is not None and newest.state == "open" and now >= newest.closes_at:
                self.rotate(list_name, close_now=False, report=report)
            self.seal_changes(list_name, report)

    # -- sealing -----------------------------------------------------------------------------------------------

    def seal_changes(self, list_name: str, report: Report = silent) -> list[SealedBatch]:
        """Seal what changed, in each epoch that answers or is being built; opens the first one.

        Nothing is sealed of a list that is not active yet. Where its entries have another form than its epochs
        announce, it gets a new epoch.
        """
        with self._store.lock(list_name), self._log.together():
            if not self._store.is_active(list_name):
                return []
            epochs = [each for each in self.all(list_name) if each.state != "closed"]
            form = self._store.form(list_name)
            if any(self.form(each) != form for each in epochs):
                # Asked under the old form, entries of the new one would be missed.
                return [self.rotate(list_name, close_now=True, report=report)]
            numbers = [each.number for each in epochs] or [self.open(list_name)]
            return [
                batch for number in numbers if (batch := self.seal(list_name, number, report)) is not None
            ]

    def seal(self, list_name: str, number: int, report: Report = silent) -> SealedBatch | None:
        """Seal the next batch of an epoch; None where nothing changed. Resumes after a crash."""
        done = self.batches(list_name, number)
        after = done[-1].to_seq if done else 0
        until = self._store.seq(list_name)
        if until == after:
            return None
        next_number = len(done) + 1
        if f"batch-{next_number}" in self._log.spoken(list_name).get(number, ()):
            raise StorageError(
                f"{list_name}: this node's log has batch {next_number} of epoch {number}, its restored database has "
                f"not: run `lianfang list rotate {list_name} --close-now`"
            )
        folder = self._folder / list_name / str(number)
        builder = BatchBuilder(folder / f"work-{next_number:06d}", next_number, after, until)
        self._make_runs(list_name, number, builder, report)
        batch = self._commit(list_name, number, builder, done, report)
        builder.discard()
        return batch

    def _make_runs(self, list_name: str, number: int, builder: BatchBuilder, report: Report) -> None:
        progress = builder.progress
        total = self._store.count_changes(list_name, progress.after, progress.until)
        finished = progress.sealed + progress.tombstones
        secret = self._sealing_key(list_name, number).secret
        context = self.where(list_name, number).context
        pages: list[tuple[int, tuple[int, int]]] = []  # (pieces of the page, where it ends)

        def pieces() -> Iterator[tuple[object, ...]]:
            last = progress.last
            while True:
                live, gone, end = self._store.changes(
                    list_name, progress.after, progress.until, last, limits.SEAL_CHUNK
                )
                if end is None:
                    return
                work = list(_pieces(live, gone if progress.number > 1 else []))
                pages.append((len(work), end))
                for some_live, some_gone in work:
                    yield self._entries.root, secret, context, progress.number, some_live, some_gone
                last = end

        report("seal", finished, total)
        records: list[bytes] = []
        tags: list[bytes] = []
        for some_records, some_tags in self._workers.stream(seal_rows, pieces()):
            records.append(some_records)
            tags.append(some_tags)
            finished += len(some_records) // sealed.RECORD + len(some_tags) // sealed.TAG
            report("seal", min(finished, total), total)
            if len(records) == pages[0][0]:
                builder.add_run(records, tags, pages.pop(0)[1])
                records, tags = [], []

    def _commit(
        self,
        list_name: str,
        number: int,
        builder: BatchBuilder,
        done: list[SealedBatch],
        report: Report,
    ) -> SealedBatch:
        progress = builder.progress
        table = schema.batch
        with db.reading(self._database) as connection:
            row = connection.execute(
                sa.select(table.c.dummies_added, table.c.dummies_removed).where(
                    table.c.list == list_name, table.c.epoch == number, table.c.number == len(done)
                )
            ).first()
        added, removed = (row.dummies_added, row.dummies_removed) if row else (0, 0)
        padding = sealed.pad_batch(
            progress.sealed,
            progress.tombstones,
            self._store.count_live(list_name),
            added - removed,
            first=not done,
        )
        key = sealed.dummy_key(self._sealing_key(list_name, number).secret)
        dummies = (
            _dummies(key, added, padding.added, sealed.RECORD - sealed.TAG),
            _dummies(key, removed, padding.removed, 0),
        )
        additions, removals = progress.sealed + padding.added, progress.tombstones + padding.removed
        previous = done[-1].table_hash if done else bytes(32)
        where = self.where(list_name, number)
        hasher = BatchHash(where, progress.number, previous, additions, removals)
        total = additions + removals
        builder.finish(
            self.batch_path(list_name, number, progress.number),
            hasher,
            dummies,
            lambda count: report("merge", count, total),
        )
        now = int(time.time())
        descriptor = statement.sign(
            self._signing,
            statement.batch(where, now, progress.number, previous, hasher.digest(), (additions, removals)),
        )
        batch = SealedBatch(
            progress.number,
            progress.until,
            additions,
            removals,
            progress.sealed,
            progress.tombstones,
            hasher.digest(),
            descriptor,
        )
        self._record(list_name, number, batch, (added + padding.added, removed + padding.removed), now)
        return batch

    def _record(
        self, list_name: str, number: int, batch: SealedBatch, dummies: tuple[int, int], now: int
    ) -> None:
        epochs = schema.epoch
        with db.writing(self._database) as connection:
            connection.execute(
                schema.batch.insert().values(
                    list=list_name,
                    epoch=number,
                    number=batch.number,
                    to_seq=batch.to_seq,
                    additions=batch.additions,
                    removals=batch.removals,
                    sealed=batch.sealed,
                    tombstones=batch.tombstones,
                    dummies_added=dummies[0],
                    dummies_removed=dummies[1],
                    table_hash=batch.table_hash,
                    descriptor=batch.descriptor.SerializeToString(),
                    at=now,
                )
            )
            if batch.number == 1:  # the epoch answers from now on, the one before it soon no more
                closes_at = now + int(self._settings.overlap_hours * 3600)
                connection.execute(
                    epochs.update()
                    .where(epochs.c.list == list_name, epochs.c.state == "open")
                    .values(state="closing", closes_at=closes_at)
                )
                connection.execute(
                    epochs.update()
                    .where(epochs.c.list == list_name, epochs.c.number == number)
                    .values(state="open")
                )
            self._log.record_clear(connection, events.statement_leaf(batch.descriptor))
        with self._guard:
            if batch.number == 1:
                self._keys = {key: pair for key, pair in self._keys.items() if key[0] != list_name}


def _dummies(key: bytes, start: int, count: int, fill: int) -> Iterator[list[bytes]]:
    """By the chunk: a first batch has as many as a twentieth of its list."""
    for i in range(start, start + count, limits.SEAL_CHUNK):
        tags = sealed.dummy_tags(key, i, min(i + limits.SEAL_CHUNK, start + count))
        yield [tag + os.urandom(fill) for tag in tags]


def _pieces(live: list[SealRow], gone: list[bytes]) -> Iterator[tuple[list[SealRow], list[bytes]]]:
    step = limits.SEAL_TASK
    for start in range(0, max(len(live), len(gone), 1), step):
        yield live[start : start + step], gone[start : start + step]
