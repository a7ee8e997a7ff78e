"""XLSX: the first sheet; cells that a spreadsheet may have turned into numbers are not trusted past 15 digits."""

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from .. import limits
from .table import REASON_COLUMN, BadCell, FileError, Mapping, Parsed, ReadRow, excel_text, fields_of


def _records(path: Path) -> Iterator[tuple[int, tuple[Any, ...]]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise FileError(path, "not an XLSX workbook") from error
    try:
        sheet = book.worksheets[0]
        if (sheet.max_column or 0) > limits.IMPORT_COLUMNS:
            raise FileError(path, f"{sheet.max_column} columns; at most {limits.IMPORT_COLUMNS}")
        number = 0
        for cells in sheet.iter_rows(values_only=True):
            if number == 0 or any(cell is not None for cell in cells):
                yield number, cells
                number += 1
    finally:
        book.close()


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows numbered from 1 behind the header."""
    records = _records(path)
    header = [excel_text(cell)[0] for cell in next(records, (0, ()))[1]]
    if not any(header):
        raise FileError(path, "the first sheet is empty")
    targets = mapping.resolve(path, header)
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
            yield ReadRow(number, fields_of(targets, [text for text, _ in texts], mapping.constants))


def write_bad(source: Path, target: Path, bad: dict[int, str]) -> None:
    """Write the bad rows as CSV with their reasons, readable by their owner alone, to be mended."""
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    with target.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        for number, cells in _records(source):
            texts = ["" if cell is None else str(cell) for cell in cells]
            if number == 0:
                writer.writerow([*texts, REASON_COLUMN])
            elif number in bad:
                writer.writerow([*texts, bad[number]])
