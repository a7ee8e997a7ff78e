"""Parquet files, their columns mapped to fields."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from federation.files import parquet

from .table import (
    REASON_COLUMN,
    Columns,
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
    """Rows, numbered as those of a CSV with the same header."""
    every = readable(parquet.records(path))
    names = next(every)[1]
    targets = mapping.resolve(path, names)
    columns = mapped(targets)
    others = further_of(targets, names) if mapping.keep_further else []
    for number, cells in every:
        further = {name: cells[place] for place, name in others}
        yield ReadRow(number, fields_of(columns, cells, mapping.constants), "", further)


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """Some fields of the same rows by column."""
    return by_column(rows(path, mapping), fields)


def write_bad(source: Path, target: Path, bad: dict[int, str], mapping: Mapping) -> None:
    """Write the bad rows as CSV with their reasons, readable by their owner alone, to be mended."""
    every = readable(parquet.records(source))
    with private_file(target) as file:
        writer = csv.writer(file)
        writer.writerow([*next(every)[1], REASON_COLUMN])
        writer.writerows([*cells, bad[number]] for number, cells in every if number in bad)
