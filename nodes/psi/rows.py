"""A dataset's column as identifiers, with the rows that they stand in."""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from protocols.identifiers import Kind, canonical_each

from .. import words
from ..importers import table
from ..importers.table import FileError, Mapping

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

    def elements(self, counts: Counts) -> Iterator[tuple[list[int], list[bytes], list[int]]]:
        """(row numbers, canonical identifiers, values) of rows that have an identifier, some thousand at a time; also of one that is repeated.
        Without a column of values there are none.

        Cells that are empty, or no identifier of this kind, are counted and left out. Raises `FileError`, also for
        a value that cannot be added up.
        """
        kind = Kind(self.kind)
        for numbers, (cells, *values), bad in self._columns():
            for each in bad:
                if each.column == table.AMOUNT:
                    raise FileError(self.path, f"row {each.number}: {self.values}: {each.reason}")
            found = canonical_each(kind, cells, self.region)
            if not (bad or values or None in found):
                counts.rows += len(cells)
                yield list(numbers), cast(list[bytes], found), []
                continue
            good = [place for place, canonical in enumerate(found) if canonical is not None]
            empty = sum(not cells[place].strip() for place, each in enumerate(found) if each is None)
            counts.rows += len(cells) + len(bad)
            counts.empty += empty
            counts.bad += len(bad) + len(cells) - len(good) - empty
            rows = [numbers[place] for place in good]
            yield (
                rows,
                [canonical for canonical in found if canonical is not None],
                [self._value(numbers[place], values[0][place]) for place in good] if self.values else [],
            )

    def written(self, wanted: set[int]) -> tuple[list[int], list[str]]:
        """Those of the given rows that the file has, in its order: (row numbers, cells as written)."""
        rows: list[int] = []
        written: list[str] = []
        for numbers, (cells, *_), _ in self._columns():
            chosen = list(map(wanted.__contains__, numbers))
            rows += itertools.compress(numbers, chosen)
            written += itertools.compress(cells, chosen)
        return rows, written

    def _columns(self) -> Iterator[table.Columns]:
        columns, fields = {words.key(self.name): "value"}, ["value"]
        if self.values:
            columns[words.key(self.values)] = table.AMOUNT
            fields.append(table.AMOUNT)
        return table.columns(self.path, Mapping(columns=columns, needed=tuple(fields)), fields)

    def _value(self, number: int, text: str) -> int:
        """In units of 10^-decimals."""
        found = _AMOUNT.fullmatch(unicodedata.normalize("NFKC", text).strip())
        if found is None or len(found[2] or "") > self.decimals:
            raise FileError(
                self.path,
                f"row {number}: {self.values} is not a number of 0 or more with at most {self.decimals} decimals, "
                "without separators",
            )
        return int(found[1] + (found[2] or "").ljust(self.decimals, "0"))
