"""Rows of this institution that sums were taken over, known by their content.

The difference of two sums over nearly the same rows shows the rows between them. So a node remembers, for each job, keyed hashes of
the rows that it used: a release. Two releases are the same, have no row in common, or overlap, whatever their files are called.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from protocols.encoding import expand, frame

from ..files import write_atomic
from ..identity.keys import Vault

Rows = npt.NDArray[np.uint64]
_BETWEEN, _NOTHING = "\x1f", "\x1e"
_AGAIN = np.uint64(
    0x9E3779B97F4A7C15
)  # odd: the second row of equal ones has another number, the third again another


@dataclass(frozen=True)
class Release:
    """`id` is 32 bytes, the same for the same rows in whatever order; `rows` are numbers of shape (rows,), ascending."""

    id: bytes
    rows: Rows

    def overlaps(self, other: "Release") -> bool:
        """Whether they have a row in common without being the same."""
        return self.id != other.id and bool(np.intersect1d(self.rows, other.rows, assume_unique=True).size)


class Releases:
    """A folder of releases; numbers of rows are keyed, so that nobody who reads it finds a row by trying."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder = folder
        self._key = expand(vault.index_key, b"lianfang/v1/releases", 32)

    def of_table(self, table: pa.Table) -> Release:
        """Of all rows and columns of a file, a row as often as it stands there. Numbers count by their value."""
        names = sorted(table.column_names)
        columns = [_text(table.column(name)) for name in names]
        header = frame("lianfang/v1/release", *names)
        texts = pc.binary_join_element_wise(
            *columns, _BETWEEN, null_handling="replace", null_replacement=_NOTHING
        ).to_pylist()
        return self._release(header, (text.encode() for text in texts))

    def of_counts(self, window: str, counts: Iterable[tuple[str, int]]) -> Release:
        """Of a list's entries in a window of time, known by how many there are of each category."""
        return self._release(frame("lianfang/v1/release-counts", window), [repr(sorted(counts)).encode()])

    def _release(self, header: bytes, rows: Iterable[bytes]) -> Release:
        seed = hashlib.blake2b(header, key=self._key, digest_size=32).digest()
        digests = b"".join(hashlib.blake2b(row, key=seed, digest_size=8).digest() for row in rows)
        numbers = np.sort(np.frombuffer(digests, dtype="<u8"))
        first = np.searchsorted(numbers, numbers)  # where the run of equal ones begins
        numbers = np.sort(numbers + (np.arange(len(numbers)) - first).astype(np.uint64) * _AGAIN)
        identity = hashlib.sha256(frame("lianfang/v1/release-id", numbers.tobytes())).digest()
        return Release(identity, numbers)

    def keep(self, release: Release) -> None:
        """Durable when it returns."""
        path = self._path(release.id)
        if not path.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, release.rows.astype("<u8").tobytes(), 0o600)

    def find(self, identity: bytes) -> Release | None:
        """One that was kept."""
        path = self._path(identity)
        if not path.exists():
            return None
        return Release(identity, np.frombuffer(path.read_bytes(), dtype="<u8"))

    def _path(self, identity: bytes) -> Path:
        return self._folder / f"{identity.hex()}.rows"


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as text, alike for CSV, XLSX and Parquet: where all of it are numbers, as these."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        filled = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
        try:
            return filled.cast(pa.float64()).cast(pa.string())
        except pa.ArrowException:
            return filled.cast(pa.string())
    try:
        return column.cast(pa.float64(), safe=False).cast(pa.string())
    except pa.ArrowException:
        return column.cast(pa.string())
