"""CSV records, numbered as a spreadsheet numbers its rows."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from . import NATURAL, Reading, UnreadableFile
from .text import dialect_of, opened

ROWS = 1_024  # read at once
CELL_CHARACTERS = 4_000
_LINE = 1_000_000  # characters


class Part(NamedTuple):
    """Records of a file that follow each other, and what is wrong with the one after them, if it is."""

    first: int  # the first one's row
    records: list[list[str]]
    trouble: str


def parts(path: Path, reading: Reading = NATURAL, at_once: int = 0) -> Iterator[Part]:
    """All records from the header on. Raises `UnreadableFile` for a file that is no CSV."""
    dialect = dialect_of(path, reading.encoding)
    with opened(path, dialect) as file:
        csv.field_size_limit(CELL_CHARACTERS)
        parsed = csv.reader(lines(path, file, dialect.skipped), delimiter=dialect.delimiter, strict=True)
        first = 1 + dialect.skipped
        while True:
            records: list[list[str]] = []
            trouble = ""
            try:
                records.extend(
                    itertools.islice(parsed, at_once or ROWS)
                )  # keeps those before one that is wrong
            except csv.Error as error:
                if "unexpected end" in str(error):
                    line = parsed.line_num + dialect.skipped
                    raise UnreadableFile(path, f"line {line}: not CSV: a quote is not closed") from error
                trouble = f"not CSV: {error}"
            if not records and not trouble:
                return
            yield Part(first, records, trouble)
            first += len(records) + bool(trouble)


def lines(path: Path, file: TextIO, skipped: int) -> Iterator[str]:
    """Lines of bounded length: of a file that has none, nothing is put together. Raises `UnreadableFile`."""
    for number in itertools.count(1 + skipped):
        line = file.readline(_LINE + 1)
        if not line:
            return
        if len(line) > _LINE:
            raise UnreadableFile(path, f"line {number}: longer than {_LINE:,} characters")
        yield line


def plain(cell: str) -> str:
    """A cell's text where it is written as `="0123"`, which is how programs make a spreadsheet keep text as it is."""
    if cell[:2] == '="' and cell[-1] == '"' and len(cell) > 2:
        return cell[2:-1].replace('""', '"')
    return cell
