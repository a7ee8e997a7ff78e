"""A dataset's column as identifiers: each distinct one once, with the row that it stands in first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from .. import words
from ..importers import table
from ..importers.table import BadCell, Mapping


@dataclass
class Counts:
    """What became of a file's rows."""

    rows: int = 0
    empty: int = 0
    bad: int = 0
    repeated: int = 0
    elements: int = 0


def read(
    path: Path, column: str, kind: str, region: str, counts: Counts, seen: Callable[[bytes], bool]
) -> Iterator[tuple[int, bytes]]:
    """(row number, canonical identifier) of each first occurrence; `seen` says whether one came before.

    Cells that are empty, or no identifier of this kind, are counted and left out. Raises `FileError`.
    """
    for row in _cells(path, column):
        counts.rows += 1
        if isinstance(row, BadCell):
            counts.bad += 1
            continue
        value = row.fields.get("value", "")
        if not value.strip():
            counts.empty += 1
            continue
        try:
            canonical = normalise(Kind(kind), value, "", "", region).canonical
        except IdentifierError:
            counts.bad += 1
            continue
        if seen(canonical):
            counts.repeated += 1
            continue
        counts.elements += 1
        yield row.number, canonical


def _cells(path: Path, column: str) -> Iterator[table.Parsed]:
    return table.rows(path, Mapping(columns={words.key(column): "value"}, needed=("value",)))


def values(path: Path, column: str, numbers: set[int]) -> Iterator[tuple[int, str]]:
    """(row number, cell as written) of the given rows, in the file's order."""
    for row in _cells(path, column):
        if isinstance(row, table.ReadRow) and row.number in numbers:
            yield row.number, row.fields.get("value", "")
