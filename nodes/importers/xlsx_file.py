"""Workbooks, their columns mapped to fields; cells that a spreadsheet may have changed are not trusted."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from federation.files.xlsx_file import EMPTY, Cell, header, records

from .table import (
    AMOUNT,
    DATES,
    REASON_COLUMN,
    BadCell,
    Columns,
    FileError,
    Mapping,
    Parsed,
    ReadRow,
    by_column,
    fields_of,
    further_of,
    mapped,
    private_file,
    readable,
)


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows, numbered as the sheet shows them."""
    every = readable(records(path, mapping.reading))
    names = header(next(every, (0, [EMPTY]))[1])
    if not any(names):
        raise FileError(path, "the sheet is empty")
    targets = mapping.resolve(path, names)
    columns = mapped(targets)
    others = further_of(targets, names) if mapping.keep_further else []
    for number, cells in every:
        wrong = next(_wrong(targets, names, cells), None)
        if wrong:
            yield BadCell(number, *wrong)
            continue
        texts = [cell.text for cell in cells]
        further = {name: texts[place] for place, name in others if place < len(texts)}
        yield ReadRow(number, fields_of(columns, texts, mapping.constants), "", further)


def _wrong(targets: "list[str | None]", names: list[str], cells: list[Cell]) -> Iterator[tuple[str, str]]:
    """(column, why) of cells that cannot be taken as they are."""
    for place, cell in enumerate(cells):
        if place >= len(targets):
            if cell.text or cell.trouble:
                yield "", f"a value beyond the header's {len(targets)} columns"
            continue
        target = targets[place]
        if target is None:
            continue
        if cell.trouble:
            yield target, cell.trouble
        elif cell.kind == "date" and target not in DATES:
            yield target, "a date: re-export the column as text"
        elif cell.kind == "number" and target != AMOUNT and not cell.text.lstrip("-").isdigit():
            yield target, "a numeric cell that is no whole number of 15 digits: re-export the column as text"


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """Some fields of the same rows by column."""
    return by_column(rows(path, mapping), fields)


def write_bad(source: Path, target: Path, bad: dict[int, str], mapping: Mapping) -> None:
    """Write the bad rows as CSV with their reasons, readable by their owner alone, to be mended."""
    every = readable(records(source, mapping.reading))
    with private_file(target) as file:
        writer = csv.writer(file)
        names = header(next(every)[1])
        writer.writerow([*names, REASON_COLUMN])
        for number, cells in every:
            if number in bad:
                texts = [cell.text for cell in cells][: len(names)]
                writer.writerow([*texts, *[""] * (len(names) - len(texts)), bad[number]])
