"""A directory of institutions from a table: a column `institution` with the code, all other columns further codes and names."""

import re
from pathlib import Path

from federation.files import NATURAL, Reading
from protocols.errors import MisuseError
from protocols.identifiers import Directory
from protocols.identifiers.institutions import code_of

from .. import words
from . import table
from .table import BadCell, FileError, Mapping

_HEADERS = ("institution", "institution code", "机构代码", "机构")
_SEVERAL = re.compile(r"[;；|\n]")


def read(path: Path, reading: Reading = NATURAL) -> Directory:
    """One line an institution, CSV, XLSX or Parquet; several codes in a cell are separated by semicolons.

    Raises `FileError` naming the row.
    """
    mapping = Mapping(
        columns={words.key(each): "institution" for each in _HEADERS},
        needed=("institution",),
        reading=reading,
        keep_further=True,
    )
    found: dict[str, list[str]] = {}
    for row in table.rows(path, mapping):
        if isinstance(row, BadCell):
            raise FileError(path, f"row {row.number}: {row.column} {row.reason}")
        code = code_of(row.fields.get("institution", ""))
        if code in found:
            raise FileError(path, f"row {row.number}: {code} stands in an earlier row too")
        names = [
            part.strip() for cell in row.further.values() for part in _SEVERAL.split(cell) if part.strip()
        ]
        try:
            Directory({code: names})
        except MisuseError as error:
            raise FileError(path, f"row {row.number}: {error}") from error
        found[code] = names
    try:
        return Directory(found)
    except MisuseError as error:
        raise FileError(path, str(error)) from error
