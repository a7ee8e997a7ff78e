"""Rows of one bank: a matrix of float32 features with NaN for missing values, and labels 0 or 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from .errors import DataError

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


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
    """A CSV (UTF-8, header) or Parquet file, its column `text` as text; raises `DataError` naming it."""
    try:
        parquet = path.suffix.lower() in (".parquet", ".pq")
        if parquet:
            table = pyarrow.parquet.read_table(path)
            if text in table.column_names:
                place = table.column_names.index(text)
                table = table.set_column(place, text, table.column(text).cast(pa.string()))
        else:
            convert = pyarrow.csv.ConvertOptions(column_types={text: pa.string()} if text else {})
            table = pyarrow.csv.read_csv(path, convert_options=convert)
        names = list(table.column_names)
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


def _numbers(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = table.column(name)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(table.num_rows, np.nan)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        levels = pc.count_distinct(column).as_py()
        first = next((str(each) for each in column.to_pylist() if each is not None), "")
        raise DataError(
            f"{path}: column {name} holds {kind} such as {first[:40]!r} ({levels:,} different values), not numbers; "
            "encode it before training, alike at every bank",
            f"its column {name} does not hold numbers",
        )
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name} of {kind} cannot be read as numbers") from error
    return np.asarray(values, dtype=np.float64)


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
                f"{path}: row {row + 2}: column {feature} is {values[row]:g}, beyond what a feature can be; "
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
            f"{path}: row {wrong[0] + 2}: column {label} is {labels[wrong[0]]:g}; a label is 0 or 1 "
            f"({wrong.size:,} rows differ)",
            f"its column {label} holds other labels than 0 and 1",
        )
    x = to_matrix(path, table, features)
    days = _numbers(path, table, time) if time else None
    if days is not None and not np.isfinite(days).all():
        raise DataError(
            f"{path}: row {int(np.flatnonzero(~np.isfinite(days))[0]) + 2}: column {time} is empty"
        )
    return Block(name, x, labels.astype(np.uint8), days)


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
