"""Files of people into rows of text: one reader for lists, questions, sets and training data.

    text        encoding, delimiter and header of a CSV file
    csv_file    CSV records
    xlsx_file   one sheet of a workbook
    parquet     Parquet, through pyarrow where it is installed

A file is read as it is, or `UnreadableFile` says why not. Nothing here knows what a column means.
"""

from pathlib import Path
from typing import NamedTuple


class UnreadableFile(Exception):
    """The file as a whole cannot be read; nothing of it was taken. The message names it, and no value in it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message


class Reading(NamedTuple):
    """How to read a file, where that is not to be found in it."""

    encoding: str = ""  # of a CSV; empty: UTF-8 or GB18030, whichever it is
    sheet: str = ""  # of a workbook; empty: the only one that holds data


NATURAL = Reading()
