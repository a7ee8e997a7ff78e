"""One sheet of a workbook, cell by cell, without believing what the file says about itself.

The sheet's `<dimension>` is ignored, a sheet is never chosen in silence, and a number that is shown in another way than
it is stored (leading zeros, a mask) is either taken as shown or left to the caller as trouble.
"""

import datetime as dt
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple

import openpyxl

from . import NATURAL, Reading, UnreadableFile, guarded

_EXACT = 10**15  # a spreadsheet stores numbers as doubles
_ZEROS = re.compile(r"0{2,}")
_SHOWN_OTHERWISE = re.compile(r"0{2,}|[#0?]+[ \-/.][#0?]+[ \-/.]|%")
_LITERAL = re.compile(r'"[^"]*[0-9A-Za-z\u4e00-\u9fff][^"]*"|\\[0-9A-Za-z]')
# A formula's end that is the cell's end, too: no result is stored.
_NO_RESULT = re.compile(
    rb"(?:</(?:\w+:)?f>|<(?:\w+:)?f(?:\s[^>]*)?/>)\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</(?:\w+:)?v>)?\s*</(?:\w+:)?c>"
)
_ROW_NUMBER = re.compile(rb"""<(?:\w+:)?row\s[^>]{0,200}?\br=["'](\d{1,30})["']""")
_LAST_ROW = 1_048_576
_UNPACKED = 3 << 30  # bytes
_STRICT = b"http://purl.oclc.org/ooxml/spreadsheetml/main"


class Cell(NamedTuple):
    """A cell's text, and why it may not be what a person sees; what kind of value it was."""

    text: str
    trouble: str = ""
    kind: str = "text"  # or number, date, empty


EMPTY = Cell("", kind="empty")
Record = tuple[int, list[Cell]]


def records(path: Path, reading: Reading = NATURAL) -> Iterator[Record]:
    """Rows that hold something, by the number that the sheet shows. Raises `UnreadableFile`."""
    for number, cells in guarded.records("xlsx", path, reading):
        yield number, [Cell(*cell) if cell else EMPTY for cell in cells]


def records_here(path: Path, reading: Reading = NATURAL) -> Iterator[Record]:
    """The same, read in this process: for `guarded`."""
    try:
        yield from _records(path, reading)
    except (UnreadableFile, MemoryError):
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UnreadableFile(path, "not an XLSX workbook, or cut short") from error
    except OSError as error:
        raise UnreadableFile(path, error.strerror or "not an XLSX workbook") from error
    except Exception as error:  # whatever the library meets in a damaged workbook: styles, relations, XML
        raise UnreadableFile(
            path, f"a damaged workbook ({type(error).__name__}): open it in a spreadsheet and save it again"
        ) from error


def _open(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise UnreadableFile(path, "not an XLSX workbook, or cut short")
    with zipfile.ZipFile(path) as archive:
        size = sum(each.file_size for each in archive.infolist())
        if size > _UNPACKED:
            raise UnreadableFile(path, f"unpacks to {size / 1e9:.1f} GB: save it as CSV, or in parts")
        for part in archive.infolist():
            try:
                _check_part(path, archive, part)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise UnreadableFile(
                    path, "a damaged workbook: a part of it does not match its check sum"
                ) from error
        for name in archive.namelist():
            if name.endswith("workbook.xml") and _STRICT in archive.read(name)[:4_096]:
                raise UnreadableFile(
                    path, "saved as Strict Open XML: save it as an ordinary Excel workbook (.xlsx) or CSV"
                )
    return openpyxl.load_workbook(path, read_only=True, data_only=True)


def _blocks(content: IO[bytes]) -> Iterator[bytes]:
    """A part by the megabyte, each with the end of the one before, so that nothing is cut in two."""
    held = b""
    while block := content.read(1 << 20):
        held = held[-512:] + block
        yield held


def _check_part(path: Path, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Read a part through, which checks its check sum; the library would count up to any number that a row gives itself."""
    is_sheet = "worksheets/" in part.filename
    with archive.open(part) as content:
        for held in _blocks(content):
            if is_sheet and any(int(number) > _LAST_ROW for number in _ROW_NUMBER.findall(held)):
                raise UnreadableFile(
                    path, f"a row number beyond {_LAST_ROW:,}, the last one that a sheet has"
                )


def _records(path: Path, reading: Reading) -> Iterator[Record]:
    book = _open(path)
    try:
        sheet = _sheet(path, book, reading.sheet)
        _check_results(path, sheet)
        for cells in sheet.iter_rows():
            record = [_cell(cell) for cell in cells]
            if any(cell.text or cell.trouble for cell in record):
                # Cells that hold nothing have no place of their own.
                number = next(cell.row for cell in cells if getattr(cell, "row", None) is not None)
                yield number, record
    finally:
        book.close()


def _sheet(path: Path, book: Any, wanted: str) -> Any:
    """The named sheet, or the only one that holds anything. Raises `UnreadableFile`."""
    for each in book.worksheets:
        each.reset_dimensions()
    names = [each.title for each in book.worksheets]
    if wanted:
        if wanted not in names:
            raise UnreadableFile(path, f"no sheet {wanted!r}; it has {', '.join(names)}")
        return next(each for each in book.worksheets if each.title == wanted)
    filled = [each for each in book.worksheets if _holds_something(each)]
    if not filled:
        raise UnreadableFile(path, "its sheets are empty")
    if len(filled) > 1:
        listed = ", ".join(
            each.title + (" (hidden)" if each.sheet_state != "visible" else "") for each in filled
        )
        raise UnreadableFile(path, f"several sheets hold data ({listed}): say which with --sheet")
    if filled[0].sheet_state != "visible":
        raise UnreadableFile(
            path, f"only a hidden sheet holds data: name it with --sheet {filled[0].title!r}"
        )
    return filled[0]


def _holds_something(sheet: Any) -> bool:
    rows = sheet.iter_rows(values_only=True)
    return any(value is not None and str(value).strip() for row in rows for value in row)


def _check_results(path: Path, sheet: Any) -> None:
    """Raise where a formula has no stored result: it would read as an empty cell."""
    with zipfile.ZipFile(path) as archive, archive.open(sheet._worksheet_path) as content:
        for held in _blocks(content):
            if _NO_RESULT.search(held):
                raise UnreadableFile(
                    path,
                    f"sheet {sheet.title!r} has formulas without results: open it in a spreadsheet and save it",
                )


def _cell(cell: Any) -> Cell:
    value = cell.value
    if value is None:
        return EMPTY
    if cell.data_type == "e":
        return Cell(str(value), "an error value")
    if isinstance(value, bool):
        return Cell(str(value))
    if isinstance(value, int | float):
        return _number(value, cell.number_format or "General")
    if isinstance(value, dt.datetime | dt.date):
        return Cell(value.isoformat()[:10], kind="date")
    text = str(value)
    return Cell(text) if text.strip() else EMPTY


def _number(value: int | float, shown: str) -> Cell:
    if abs(value) >= _EXACT:
        return Cell(str(value), "a numeric cell past 15 digits: re-export the column as text", "number")
    # 15 digits are what a spreadsheet shows of a double: 1234.56, not 1234.5599999999999.
    text = format(Decimal(f"{value:.15g}"), "f")
    form = re.sub(r"\[[^\]]*\]", "", shown.split(";", maxsplit=1)[0]).strip()
    if _ZEROS.fullmatch(form) and value >= 0 and float(value).is_integer():
        return Cell(text.zfill(len(form)), kind="number")
    whole = form.partition(".")[0] if re.fullmatch(r"[#0,]*\.[0#]+\s*_?\)?", form) else form
    if _LITERAL.search(form) or _SHOWN_OTHERWISE.search(whole):
        return Cell(text, f"a number shown in the format {shown}: re-export the column as text", "number")
    return Cell(text, kind="number")


def header(cells: Sequence[Cell]) -> list[str]:
    """A header's texts, without the empty cells at its end."""
    texts = [cell.text for cell in cells]
    while texts and not texts[-1].strip():
        texts.pop()
    return texts
