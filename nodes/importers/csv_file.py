"""CSV: UTF-8 with or without BOM, GB18030, UTF-16 with BOM; comma, semicolon or tab; any column order."""

import codecs
import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import limits
from .table import (
    REASON_COLUMN,
    BadCell,
    Columns,
    FileError,
    Mapping,
    Parsed,
    ReadRow,
    fields_of,
    mapped,
    private_file,
)

_ROWS = 1_024  # read at once
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def encoding_of(path: Path) -> str:
    """The file's encoding, from its BOM or by decoding all of it; raises `FileError`."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise FileError(path, str(error.strerror)) from error
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    trouble = ""
    for name in ("utf-8", "gb18030"):
        try:
            _decode_all(path, name)
            return name
        except UnicodeDecodeError as error:
            trouble = trouble or f"byte {error.start} is no UTF-8"
    raise FileError(path, f"neither UTF-8 nor GB18030 ({trouble}); save it as UTF-8")


def _decode_all(path: Path, name: str) -> None:
    decoder = codecs.getincrementaldecoder(name)()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            decoder.decode(block)
    decoder.decode(b"", final=True)


class _Part(NamedTuple):
    """Records of a file that follow each other, and what is wrong with the one after them, if it is."""

    first: int  # the first one's row, as a spreadsheet counts
    records: list[list[str]]
    trouble: str


def _parts(path: Path) -> Iterator[_Part]:
    """All records. Raises `FileError` for a file that is no CSV."""
    encoding = encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        first_line = file.readline(1 << 20)
        delimiter = max(",;\t", key=first_line.count)
        file.seek(0)
        csv.field_size_limit(limits.CELL_CHARACTERS)
        parsed = csv.reader(file, delimiter=delimiter, strict=True)
        first = 1
        while True:
            records: list[list[str]] = []
            trouble = ""
            try:
                records.extend(itertools.islice(parsed, _ROWS))  # keeps those before one that is wrong
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise FileError(
                        path, f"line {parsed.line_num}: not CSV: a quote is not closed"
                    ) from error
                trouble = f"not CSV: {error}"
            except UnicodeError as error:
                raise FileError(path, f"line {parsed.line_num}: not {encoding}") from error
            if not records and not trouble:
                return
            yield _Part(first, records, trouble)
            first += len(records) + bool(trouble)


def _each(parts: Iterable[_Part]) -> "Iterator[tuple[int, list[str] | str]]":
    """Records as (row, cells), or what is wrong with the record instead of its cells. Rows without a value are passed over."""
    for first, records, trouble in parts:
        yield from _with_a_value(first, records)
        if trouble:
            yield first + len(records), trouble


def _with_a_value(first: int, records: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    return ((number, cells) for number, cells in enumerate(records, first) if "".join(cells).strip())


def _after_header(path: Path) -> tuple[list[str], Iterator[_Part]]:
    """The first row with a value, and what comes after it."""
    parts = _parts(path)
    for first, records, trouble in parts:
        for number, cells in _with_a_value(first, records):
            rest = _Part(number + 1, records[number + 1 - first :], trouble)
            return cells, itertools.chain([rest], parts)
        if trouble:
            raise FileError(path, trouble)
    raise FileError(path, "the file is empty")


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows, numbered as a spreadsheet shows them."""
    header, parts = _after_header(path)
    columns, constants = mapped(mapping.resolve(path, header)), mapping.constants
    widths = _widths(header)
    for number, cells in _each(parts):
        if isinstance(cells, str):
            yield BadCell(number, "", cells)
        elif len(cells) not in widths:
            yield BadCell(number, "", _uneven(cells, header))
        else:
            yield ReadRow(number, fields_of(columns, cells, constants))


def _widths(header: list[str]) -> tuple[int, ...]:
    """How many cells a row may have: a file of bad rows may have lost its last column when it was mended."""
    width = len(header)
    return (width, width - 1) if header[-1] == REASON_COLUMN else (width,)


def _uneven(cells: list[str], header: list[str]) -> str:
    return f"{len(cells)} cells, the header has {len(header)}"


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """The same rows, some fields of them by column; `mapping` has no constants."""
    header, parts = _after_header(path)
    targets, widths = mapping.resolve(path, header), _widths(header)
    places = [targets.index(each) for each in fields]
    for first, records, trouble in parts:
        bad = [BadCell(first + len(records), "", trouble)] if trouble else []
        numbers: Sequence[int] = range(first, first + len(records))
        whole = records
        if not all(len(cells) == len(header) and cells[places[0]].strip() for cells in records):
            even = {}
            for number, cells in _with_a_value(first, records):
                if len(cells) in widths:
                    even[number] = [*cells, ""]
                else:
                    bad.append(BadCell(number, "", _uneven(cells, header)))
            numbers, whole = list(even), list(even.values())
        yield Columns(numbers, [[cells[place] for cells in whole] for place in places], bad)


def write_bad(source: Path, target: Path, bad: dict[int, str]) -> None:
    """Write the bad records of a CSV with their reasons, readable by their owner alone, to be mended."""
    header, parts = _after_header(source)
    width = len(header) - (header[-1] == REASON_COLUMN)
    with private_file(target) as file:
        writer = csv.writer(file)
        writer.writerow([*header[:width], REASON_COLUMN])
        for number, cells in _each(parts):
            if number in bad and isinstance(cells, list):
                padded = [*cells, *[""] * (width - len(cells))]
                writer.writerow([*padded[:width], bad[number]])
