"""A dataset's column as identifiers, with the rows that they stand in."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from .. import words
from ..importers import table
from ..importers.table import BadCell, FileError, Mapping

_VALUES = "amount"  # what the reader calls the column of values
_AMOUNT = re.compile(r"(\d{1,18})(?:\.(\d{1,6}))?", re.ASCII)


@dataclass
class Counts:
    """What became of a file's rows."""

    rows: int = 0
    empty: int = 0
    bad: int = 0
    repeated: int = 0
    elements: int = 0  # distinct ones

    def found(self, elements: int) -> None:
        """So many of the rows' identifiers are distinct."""
        self.elements = elements
        self.repeated = self.rows - self.empty - self.bad - elements


@dataclass(frozen=True)
class Column:
    """Where a party's elements stand, and where a sum is asked for, their values."""

    path: Path
    name: str
    kind: str
    region: str
    values: str = ""
    decimals: int = 0

    def elements(self, counts: Counts) -> Iterator[tuple[int, bytes, int]]:
        """(row number, canonical identifier, value) of each row that has an identifier, also of one that is repeated.

        Cells that are empty, or no identifier of this kind, are counted and left out. Raises `FileError`, also for
        a value that cannot be added up.
        """
        kind, region = Kind(self.kind), self.region
        for row in self._cells():
            counts.rows += 1
            if isinstance(row, BadCell):
                if self.values and words.key(row.column) == words.key(self.values):
                    raise FileError(self.path, f"row {row.number}: {row.column}: {row.reason}")
                counts.bad += 1
                continue
            cell = row.fields.get("value", "")
            if not cell.strip():
                counts.empty += 1
                continue
            try:
                canonical = normalise(kind, cell, "", "", region).canonical
            except IdentifierError:
                counts.bad += 1
                continue
            yield row.number, canonical, self._value(row) if self.values else 0

    def written(self, numbers: set[int]) -> Iterator[tuple[int, str]]:
        """(row number, cell as written) of the given rows, in the file's order."""
        for row in self._cells():
            if isinstance(row, table.ReadRow) and row.number in numbers:
                yield row.number, row.fields.get("value", "")

    def _cells(self) -> Iterator[table.Parsed]:
        columns, needed = {words.key(self.name): "value"}, ["value"]
        if self.values:
            columns[words.key(self.values)] = _VALUES
            needed.append(_VALUES)
        return table.rows(self.path, Mapping(columns=columns, needed=tuple(needed)))

    def _value(self, row: table.ReadRow) -> int:
        """In units of 10^-decimals."""
        text = unicodedata.normalize("NFKC", row.fields.get(_VALUES, "")).strip()
        found = _AMOUNT.fullmatch(text)
        if found is None or len(found[2] or "") > self.decimals:
            raise FileError(
                self.path,
                f"row {row.number}: {self.values} is not a number of 0 or more with at most {self.decimals} decimals, "
                "without separators",
            )
        return int(found[1] + (found[2] or "").ljust(self.decimals, "0"))
