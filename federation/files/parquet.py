"""Parquet files, through pyarrow where it is installed."""

from collections.abc import Iterator
from pathlib import Path

from . import NATURAL, Reading, UnreadableFile, guarded


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The header as row 1, then each row as text; row numbers as a CSV of the same rows would have.

    Raises `UnreadableFile`, also where a column of floating-point numbers holds what may be an identifier's digits.
    """
    return guarded.records("parquet", path)


def records_here(
    path: Path, _reading: Reading = NATURAL, at_once: int = 1_024
) -> Iterator[tuple[int, list[str]]]:
    """The same, read in this process: for `guarded`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UnreadableFile(path, "Parquet files need the extra `learn`; or save it as CSV") from error
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > guarded.ROWS:
                raise UnreadableFile(path, f"{file.metadata.num_rows:,} rows; at most {guarded.ROWS:,}")
            yield 1, list(file.schema_arrow.names)
            number = 2
            for batch in file.iter_batches(batch_size=at_once):
                columns = [column.cast(pa.string()).to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    yield number, ["" if cell is None else cell for cell in cells]
                    number += 1
    except (pa.ArrowMemoryError, MemoryError) as error:
        raise MemoryError from error
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(path, f"not a Parquet file that can be read: {error}") from error
