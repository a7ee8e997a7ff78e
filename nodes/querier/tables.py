"""Copies of others' sealed lists in LMDB: tag → batch number (4) ‖ salt ‖ sealed label.

A table is derived from batches whose hashes its holder signed. The watermark (newest whole batch) is stored in
the same transaction as the end of that batch; a crash in the middle repeats the batch, which changes nothing.
"""

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb

from protocols import sealed
from protocols.errors import TableError

from ..errors import StorageError

_MAP = 1 << 37  # bytes of address space; the file is sparse
_WATERMARK = b"\x00watermark"  # 10 bytes: no tag has this length
_DROPPED = "dropped-"
_STEP = 20_000  # records a transaction: bounds memory


class Table:
    """One holder's list in one epoch."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "table.lmdb"
        self._writing = threading.Lock()
        try:
            self._environment = self._open()
        except lmdb.Error:
            # A table is derived: one that is broken is made anew, and the next sync fills it.
            for path in (self._path, self._path.with_name("table.lmdb-lock")):
                path.unlink(missing_ok=True)
            try:
                self._environment = self._open()
            except lmdb.Error as error:
                raise StorageError(f"{self._path}: {error}") from error

    def _open(self) -> lmdb.Environment:
        return lmdb.open(str(self._path), map_size=_MAP, subdir=False, lock=True, mode=0o600, max_readers=512)

    @property
    def watermark(self) -> int:
        """Number of the newest batch that is wholly applied; 0 for none."""
        with self._environment.begin(buffers=False) as transaction:
            return int.from_bytes(transaction.get(_WATERMARK) or b"", "big")

    @property
    def entries(self) -> int:
        """Records, dummies included."""
        with self._environment.begin() as transaction:
            return int(transaction.stat()["entries"]) - bool(self.watermark)

    def get(self, tags: list[bytes]) -> list[tuple[int, bytes] | None]:
        """For each tag (batch number, salt ‖ sealed label), or None."""
        try:
            with self._environment.begin(buffers=False) as transaction:
                found = [transaction.get(tag) for tag in tags]
        except lmdb.Error as error:
            raise StorageError(f"{self._path}: {error}") from error
        return [(int.from_bytes(value[:4], "big"), value[4:]) if value else None for value in found]

    def apply(
        self,
        path: Path,
        number: int,
        counts: tuple[int, int],
        report: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """Apply a batch whose hash has been verified; raises `TableError` where tags do not ascend.

        Applying one that is applied already changes nothing; two threads take turns.
        """
        try:
            with self._writing:
                if self.watermark < number:
                    self._apply(path, number, counts, report)
        except lmdb.Error as error:
            raise StorageError(f"{path.parent}: {error}") from error

    def _apply(self, path: Path, number: int, counts: tuple[int, int], report: Callable[[int], None]) -> None:
        additions, removals = counts
        prefix = number.to_bytes(4, "big")
        fresh = number == 1 and self.watermark == 0
        if fresh:
            with self._environment.begin(write=True) as transaction:
                transaction.drop(self._environment.open_db(), delete=False)
        done = 0
        with path.open("rb") as file:
            for records in _groups(file.read, additions, sealed.RECORD):
                with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                    put = cursor.putmulti(
                        [(record[: sealed.TAG], prefix + record[sealed.TAG :]) for record in records],
                        append=fresh,
                    )
                    if put[1] != len(records):
                        raise TableError("a record could not be stored")
                done += len(records)
                report(done)
            for tags in _groups(file.read, removals, sealed.TAG):
                with self._environment.begin(write=True) as transaction:
                    for tag in tags:
                        transaction.delete(tag)
                done += len(tags)
                report(done)
        with self._environment.begin(write=True) as transaction:
            transaction.put(_WATERMARK, prefix)

    def close(self) -> None:
        """Unmap the file."""
        self._environment.close()


def _groups(read: Callable[[int], bytes], count: int, unit: int) -> Iterator[list[bytes]]:
    last = b""
    while count > 0:
        size = min(_STEP, count)
        content = read(size * unit)
        if len(content) != size * unit:
            raise TableError("the batch is shorter than its descriptor says")
        group = list(sealed.ascending(content, unit, last))
        last = group[-1][: sealed.TAG]
        count -= size
        yield group


class Tables:
    """All tables of this node, opened when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, str, int], Table] = {}
        self._guard = threading.Lock()
        for gone in folder.glob(f"*/*/{_DROPPED}*"):  # a crash came between
            shutil.rmtree(gone, ignore_errors=True)

    def folder(self, holder: str, list_name: str, epoch: int) -> Path:
        """Where a table and its incoming batches lie; `holder` is a SPIFFE id."""
        return self._folder / holder.removeprefix("spiffe://").replace("/", "_") / list_name / str(epoch)

    def get(self, holder: str, list_name: str, epoch: int) -> Table:
        """The table, made if it is new."""
        key = (holder, list_name, epoch)
        with self._guard:
            if key not in self._open:
                self._open[key] = Table(self.folder(*key))
            return self._open[key]

    def existing(self, holder: str, list_name: str, epoch: int, batch: int) -> Table:
        """The table if it holds at least that batch; raises `StorageError` where it was dropped or rebuilt."""
        with self._guard:
            table = self._open.get((holder, list_name, epoch))
        if table is None or table.watermark < batch:
            raise StorageError(f"the copy of {list_name} went away meanwhile: sync and ask again")
        return table

    def drop(self, holder: str, list_name: str, epoch: int) -> None:
        """Forget a table for good."""
        folder = self.folder(holder, list_name, epoch)
        gone = folder.with_name(f"{_DROPPED}{secrets.token_hex(8)}")
        with self._guard:
            table = self._open.pop((holder, list_name, epoch), None)
            if table is not None:
                table.close()
            if folder.exists():
                folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)  # takes a moment, and others look tables up meanwhile

    def close(self) -> None:
        """Unmap everything."""
        with self._guard:
            for table in self._open.values():
                table.close()
            self._open.clear()
