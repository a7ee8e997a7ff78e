"""CSV: UTF-8 with or without BOM, GB18030, UTF-16 with BOM; comma, semicolon or tab; any column order."""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path

from .. import limits
from .table import (
    REASON_COLUMN,
    BadCell,
    FileError,
    Mapping,
    Parsed,
    ReadRow,
    fields_of,
    mapped,
    private_file,
)

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


def reader(path: Path) -> "Iterator[tuple[int, list[str] | str]]":
    """Records as (row as a spreadsheet counts, cells), or what is wrong with the record instead of its cells.

    Rows without a value are passed over. Raises `FileError` for a file that is no CSV.
    """
    encoding = encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        first = file.readline(1 << 20)
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        csv.field_size_limit(limits.CELL_CHARACTERS)
        records = csv.reader(file, delimiter=delimiter, strict=True)
        number = 0
        while True:
            number += 1
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise FileError(
                        path, f"line {records.line_num}: not CSV: a quote is not closed"
                    ) from error
                yield number, f"not CSV: {error}"
                continue
            except UnicodeError as error:
                raise FileError(path, f"line {records.line_num}: not {encoding}") from error
            if "".join(cells).strip():
                yield number, cells


def _header(path: Path, records: "Iterator[tuple[int, list[str] | str]]") -> list[str]:
    header = next(records, (0, ""))[1]
    if not isinstance(header, list):
        raise FileError(path, header or "the file is empty")
    return header


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Rows, numbered as a spreadsheet shows them."""
    records = reader(path)
    header = _header(path, records)
    columns, constants = mapped(mapping.resolve(path, header)), mapping.constants
    width = len(header)
    # A file of bad rows may have lost its last column when it was mended.
    widths = (width, width - 1) if header[-1] == REASON_COLUMN else (width,)
    for number, cells in records:
        if isinstance(cells, str):
            yield BadCell(number, "", cells)
            continue
        if len(cells) not in widths:
            yield BadCell(number, "", f"{len(cells)} cells, the header has {width}")
            continue
        yield ReadRow(number, fields_of(columns, cells, constants))


def write_bad(source: Path, target: Path, bad: dict[int, str]) -> None:
    """Write the bad records of a CSV with their reasons, readable by their owner alone, to be mended."""
    records = reader(source)
    header = _header(source, records)
    width = len(header) - (header[-1] == REASON_COLUMN)
    with private_file(target) as file:
        writer = csv.writer(file)
        writer.writerow([*header[:width], REASON_COLUMN])
        for number, cells in records:
            if number in bad and isinstance(cells, list):
                padded = [*cells, *[""] * (width - len(cells))]
                writer.writerow([*padded[:width], bad[number]])
