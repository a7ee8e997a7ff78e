"""Rows of one bank: a matrix of float32 features with NaN for missing values, and labels 0 or 1."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from .errors import DataError
from .files import UnreadableFile, csv_file, guarded, xlsx_file
from .files.text import dialect_of, opened

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
_NOTHING = ["", "na", "n/a", "nan", "null", "#n/a"]  # cells in which nothing stands, in lower case
_COUNTED = 20  # rows from which on a column of consecutive numbers is no chance


@dataclass(frozen=True)
class Block:
    """The rows of one bank: `x` of shape (rows, features), `y` of shape (rows,).

    `name` also seeds what is drawn per row, so that a row is treated alike at its bank and in a pooled reference.
    `time`, in days, where the data has it.
    """

    name: str
    x: Matrix
    y: Labels
    time: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.x.dtype != np.float32 or self.y.shape != (len(self.x),):
            raise DataError(f"{self.name}: features are {self.x.dtype} of shape {self.x.shape}")

    def take(self, rows: "npt.NDArray[np.int64] | npt.NDArray[np.bool_]", name: str = "") -> "Block":
        """A block of some of the rows, in their order."""
        time = None if self.time is None else self.time[rows]
        return Block(name or self.name, self.x[rows], self.y[rows], time)


def read_table(path: Path, text: str = "") -> pa.Table:
    """A CSV, XLSX or Parquet file with a header; cells of a CSV or XLSX are text, as they stand there.

    `text` names a column that is text in Parquet, too: an identifier. Raises `DataError` naming the file.
    """
    kind = path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            rows = pyarrow.parquet.read_metadata(path).num_rows
            if rows > guarded.ROWS:  # a few bytes of a file may stand for any number of rows
                raise DataError(f"{path}: {rows:,} rows; at most {guarded.ROWS:,}")
            table = pyarrow.parquet.read_table(path)
            if text in table.column_names:
                place = table.column_names.index(text)
                table = table.set_column(place, text, table.column(text).cast(pa.string()))
        elif kind in (".xlsx", ".xlsm"):
            table = _workbook(path)
        else:
            table = _csv(path)
        names = list(table.column_names)
    except UnreadableFile as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a column's name is not UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]}")
    return table


def _csv(path: Path) -> pa.Table:
    """All cells as text, by pyarrow; where it finds a row of another length, the row is looked up."""
    dialect = dialect_of(path)
    with opened(path, dialect) as file:
        header = next(
            csv.reader(csv_file.lines(path, file, dialect.skipped), delimiter=dialect.delimiter), []
        )
    read = pyarrow.csv.ReadOptions(
        encoding=dialect.encoding,
        skip_rows=dialect.skipped + 1,
        column_names=[str(i) for i in range(len(header))],
    )
    parse = pyarrow.csv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True)
    convert = pyarrow.csv.ConvertOptions(
        column_types={str(i): pa.string() for i in range(len(header))}, strings_can_be_null=False
    )
    try:
        table = pyarrow.csv.read_csv(path, read, parse, convert)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return pa.table({name.strip(): pa.array([], pa.string()) for name in header})
        for number, cells in _records(path):
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: row {number}: {len(cells)} cells, the header has {len(header)}",
                    "a row of its dataset has more or fewer cells than the header",
                ) from None
        raise
    return table.rename_columns([name.strip() for name in header])


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records below the header with their rows. Blank lines are none."""
    rows = csv_file.parts(path)
    numbered = ((part.first + i, cells) for part in rows for i, cells in enumerate(part.records))
    next(numbered, None)
    return (each for each in numbered if each[1])


def _workbook(path: Path) -> pa.Table:
    records = xlsx_file.records(path)
    names = xlsx_file.header(next(records, (0, [xlsx_file.EMPTY]))[1])
    columns: list[list[str]] = [[] for _ in names]
    for number, cells in records:
        for place, cell in enumerate(cells):
            if cell.trouble or (place >= len(names) and cell.text):
                name = names[place] if place < len(names) else place + 1
                raise DataError(
                    f"{path}: row {number}: column {name} is {cell.text[:40]!r}: "
                    f"{cell.trouble or 'there is no header above it'}"
                )
        for place, column in enumerate(columns):
            column.append(cells[place].text if place < len(cells) else "")
    return pa.table(dict(zip([name.strip() for name in names], map(pa.array, columns), strict=True)))


def row_of(path: Path, index: int) -> int:
    """The row in the file of the table's row `index`, as a spreadsheet numbers it."""
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        return next(itertools.islice(xlsx_file.records(path), index + 1, None), (index + 2, []))[0]
    if path.suffix.lower() in (".parquet", ".pq"):
        return index + 2
    return next(itertools.islice(_records(path), index, None), (index + 2, []))[0]


def _numbers(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column as float64, NaN where nothing stands. Raises `DataError` naming the row and what stands there."""
    column = table.column(name)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(table.num_rows, np.nan)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _numbers_of_text(path, column, name)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(
            f"{path}: column {name} holds {kind}, not numbers; encode it before training, alike at every bank",
            f"its column {name} does not hold numbers",
        )
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name} of {kind} cannot be read as numbers") from error
    return np.asarray(values, dtype=np.float64)


def _numbers_of_text(path: Path, column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    plain = pc.utf8_trim_whitespace(column)
    lower = pc.utf8_lower(plain)
    plain = pc.if_else(
        pc.is_in(lower, pa.array(["true", "false"])),
        pc.cast(pc.equal(lower, "true"), pa.int8()).cast(pa.string()),
        plain,
    )
    plain = pc.if_else(pc.is_in(lower, pa.array(_NOTHING)), pa.scalar(None, pa.string()), plain)
    try:
        values = plain.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        index, cell = next(
            (i, each) for i, each in enumerate(plain.to_pylist()) if each is not None and not _is_number(each)
        )
        raise DataError(
            f"{path}: row {row_of(path, index)}: column {name} is {cell[:40]!r}, not a number "
            f"({pc.count_distinct(column).as_py():,} different values); "
            "leave a cell empty where a value is not known, or encode it before training, alike at every bank",
            f"its column {name} does not hold numbers",
        ) from None
    return np.asarray(values, dtype=np.float64)


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowException:
        return False
    return True


def _present(path: Path, table: pa.Table, names: Sequence[str]) -> None:
    missing = [each for each in names if each not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; the file has {', '.join(table.column_names[:60])}",
            f"it has no column {', '.join(missing)}",
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: no rows", "it has no rows")


def to_matrix(path: Path, table: pa.Table, features: Sequence[str]) -> Matrix:
    """The named columns as float32, shape (rows, features). Raises `DataError` naming file, column and row."""
    _present(path, table, features)
    x = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for index, feature in enumerate(features):
        values = _numbers(path, table, feature)
        with np.errstate(over="ignore"):
            x[:, index] = values
        infinite = np.flatnonzero(np.isinf(x[:, index]))
        if infinite.size:
            row = infinite[0]
            raise DataError(
                f"{path}: row {row_of(path, int(row))}: column {feature} is {values[row]:g}, beyond what a feature can be; "
                "leave a cell empty where a value is not known",
                f"its column {feature} holds an infinite value",
            )
    return x


def to_block(
    path: Path, table: pa.Table, features: Sequence[str], label: str, name: str, time: str = ""
) -> Block:
    """The named columns of a table. Raises `DataError` naming file, column and row."""
    _present(path, table, [*features, label, *([time] if time else [])])
    labels = _numbers(path, table, label)
    wrong = np.flatnonzero(~np.isin(labels, (0.0, 1.0)))
    if wrong.size:
        raise DataError(
            f"{path}: row {row_of(path, int(wrong[0]))}: column {label} is {labels[wrong[0]]:g}; a label is 0 or 1 "
            f"({wrong.size:,} rows differ)",
            f"its column {label} holds other labels than 0 and 1",
        )
    x = to_matrix(path, table, features)
    _refuse_row_numbers(path, x, features)
    days = _numbers(path, table, time) if time else None
    if days is not None and not np.isfinite(days).all():
        raise DataError(
            f"{path}: row {row_of(path, int(np.flatnonzero(~np.isfinite(days))[0]))}: column {time} is empty"
        )
    return Block(name, x, labels.astype(np.uint8), days)


def _refuse_row_numbers(path: Path, x: Matrix, features: Sequence[str]) -> None:
    """A column that counts the rows tells a model where a row stands in the file, and nothing of a customer."""
    if len(x) < _COUNTED:
        return
    steps = np.diff(x, axis=0)
    for index, feature in enumerate(features):
        if x[0, index] in (0, 1) and (steps[:, index] == 1).all():
            raise DataError(
                f"{path}: column {feature} numbers the rows: it is no feature, leave it out",
                f"its column {feature} numbers the rows",
            )


def load(path: Path, features: Sequence[str], label: str, name: str, time: str = "") -> Block:
    """A file's named columns."""
    return to_block(path, read_table(path), features, label, name, time)


def feature_names(table: pa.Table, label: str, drop: Sequence[str] = ()) -> list[str]:
    """All columns that are neither the label nor dropped."""
    return [name for name in table.column_names if name != label and name not in drop]


def pool(blocks: Sequence[Block], name: str = "pooled") -> Block:
    """All rows as one block."""
    times = [block.time for block in blocks if block.time is not None]
    return Block(
        name,
        np.concatenate([block.x for block in blocks]),
        np.concatenate([block.y for block in blocks]),
        np.concatenate(times) if len(times) == len(blocks) else None,
    )
