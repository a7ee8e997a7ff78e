"""XLSX: the first sheet; cells that a spreadsheet may have turned into numbers are not trusted past 15 digits."""

import csv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from .. import limits
from .table import (
    REASON_COLUMN,
    BadCell,
    Columns,
    FileError,
    Mapping,
    Parsed,
    ReadRow,
    by_column,
    excel_text,
    fields_of,
    mapped,
    private_file,
)


def _records(path: Path) -> Iterator[tuple[int, tuple[Any, ...]]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise FileError(path, "not an XLSX workbook") from error
    try:
        sheet = book.worksheets[0]
        if (sheet.max_column or 0) > limits.IMPORT_COLUMNS:
            raise FileError(path, f"{sheet.max_column} columns; at most {limits.IMPORT_COLUMNS}")
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            if any(cell is not None and str(cell).strip() for cell in cells):
                yield number, cells
    finally:
        book.close()


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows, numbered as the sheet shows them."""
    records = _records(path)
    header = [excel_text(cell)[0] for cell in next(records, (0, ()))[1]]
    if not any(header):
        raise FileError(path, "the first sheet is empty")
    targets = mapping.resolve(path, header)
    columns = mapped(targets)
    for number, cells in records:
        texts = [excel_text(cell) for cell in cells]
        wrong = [
            (targets[i] or header[i], trouble)
            for i, (_, trouble) in enumerate(texts[: len(targets)])
            if trouble and targets[i]
        ]
        if wrong:
            yield BadCell(number, *wrong[0])
        else:
            yield ReadRow(number, fields_of(columns, [text for text, _ in texts], mapping.constants))


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """Some fields of the same rows by column."""
    return by_column(rows(path, mapping), fields)


def write_bad(source: Path, target: Path, bad: dict[int, str]) -> None:
    """Write the bad rows as CSV with their reasons, readable by their owner alone, to be mended."""
    records = _records(source)
    with private_file(target) as file:
        writer = csv.writer(file)
        writer.writerow([*("" if cell is None else str(cell) for cell in next(records)[1]), REASON_COLUMN])
        for number, cells in records:
            if number in bad:
                writer.writerow([*("" if cell is None else str(cell) for cell in cells), bad[number]])
