"""Statements of the hot path: written in SQLAlchemy Core, compiled once, then run on the driver's own cursor.

At each question the toolkit's machinery around a statement costs ten times what SQLite takes to run it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

from .engine import driver


class Prepared:
    """One statement; `values` are its bind parameters by name. Results are the driver's tuples."""

    def __init__(self, statement: sa.Executable, columns: Sequence[str] | None = None) -> None:
        self._statement, self._columns = statement, columns
        self._compiled: dict[str, tuple[str, Sequence[str] | None, dict[str, Any]]] = {}

    def _for(self, connection: sa.Connection) -> tuple[str, Sequence[str] | None, dict[str, Any]]:
        dialect = connection.dialect
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)  # type: ignore[attr-defined]
            assert isinstance(compiled, SQLCompiler)
            known = str(compiled), compiled.positiontup, dict(compiled.params)
            self._compiled[dialect.name] = known
        return known

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        """Execute in the connection's transaction; the driver's cursor."""
        text, positions, constants = self._for(connection)
        given = {**constants, **values}
        parameters: Any = tuple(given[name] for name in positions) if positions is not None else given
        return driver(connection).execute(text, parameters)

    def run_many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute once for each row."""
        text, positions, constants = self._for(connection)
        given = [{**constants, **row} for row in rows]
        parameters: Any = (
            given if positions is None else [tuple(row[name] for name in positions) for row in given]
        )
        driver(connection).executemany(text, parameters)
