"""CSV files, their columns mapped to fields."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from federation.files.csv_file import Part, parts, plain

from .table import (
    REASON_COLUMN,
    BadCell,
    Columns,
    FileError,
    Mapping,
    Parsed,
    ReadRow,
    fields_of,
    further_of,
    mapped,
    private_file,
    readable,
)

_ROWS = 1_024  # read at once


def _each(parts: Iterable[Part]) -> "Iterator[tuple[int, list[str] | str]]":
    """Records as (row, cells), or what is wrong with the record instead of its cells. Rows without a value are passed over."""
    for first, records, trouble in parts:
        yield from _with_a_value(first, records)
        if trouble:
            yield first + len(records), trouble


def _with_a_value(first: int, records: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    return ((number, cells) for number, cells in enumerate(records, first) if "".join(cells).strip())


def _after_header(path: Path, mapping: Mapping) -> tuple[list[str], Iterator[Part]]:
    """The first row with a value, and what comes after it."""
    every = readable(parts(path, mapping.reading, _ROWS))
    for first, records, trouble in every:
        for number, cells in _with_a_value(first, records):
            rest = Part(number + 1, records[number + 1 - first :], trouble)
            return [plain(cell) for cell in cells], itertools.chain([rest], every)
        if trouble:
            raise FileError(path, trouble)
    raise FileError(path, "the file is empty")


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows, numbered as a spreadsheet shows them."""
    header, every = _after_header(path, mapping)
    targets = mapping.resolve(path, header)
    columns, constants = mapped(targets), mapping.constants
    others = further_of(targets, header) if mapping.keep_further else []
    widths = _widths(header)
    for number, cells in _each(every):
        if isinstance(cells, str):
            yield BadCell(number, "", cells)
        elif len(cells) not in widths:
            yield BadCell(number, "", _uneven(cells, header))
        else:
            texts = [plain(cell) if cell[:1] == "=" else cell for cell in cells]
            further = {name: texts[place] for place, name in others if place < len(texts)}
            yield ReadRow(number, fields_of(columns, texts, constants), "", further)


def _widths(header: list[str]) -> tuple[int, ...]:
    """How many cells a row may have: a file of bad rows may have lost its last column when it was mended."""
    width = len(header)
    return (width, width - 1) if header[-1] == REASON_COLUMN else (width,)


def _uneven(cells: list[str], header: list[str]) -> str:
    return f"{len(cells)} cells, the header has {len(header)}"


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """The same rows, some fields of them by column; `mapping` has no constants."""
    header, every = _after_header(path, mapping)
    targets, widths = mapping.resolve(path, header), _widths(header)
    places = [targets.index(each) for each in fields]
    for first, records, trouble in every:
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


def write_bad(source: Path, target: Path, bad: dict[int, str], mapping: Mapping) -> None:
    """Write the bad records of a CSV with their reasons, readable by their owner alone, to be mended."""
    header, every = _after_header(source, mapping)
    width = len(header) - (header[-1] == REASON_COLUMN)
    with private_file(target) as file:
        writer = csv.writer(file)
        writer.writerow([*header[:width], REASON_COLUMN])
        for number, cells in _each(every):
            if number in bad and isinstance(cells, list):
                padded = [*cells, *[""] * (width - len(cells))]
                writer.writerow([*padded[:width], bad[number]])
