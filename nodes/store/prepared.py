"""Statements of the hot path: written in SQLAlchemy Core, compiled once, then run on the driver's own cursor.

At each question the toolkit's machinery around a statement costs ten times what SQLite takes to run it.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

from .engine import driver


class Prepared:
    """One statement; `values` are its bind parameters by name, each of them. Results are the driver's tuples."""

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement, self._columns = statement, columns

    @functools.cached_property
    def _compiled(self) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]], dict[str, Any]]:
        """Text, what puts values in its order, and the values that stand in the statement itself."""
        compiled = self._statement.compile(dialect=sqlite.dialect(), column_keys=self._columns)
        assert isinstance(compiled, SQLCompiler)
        names = compiled.positiontup or []
        own = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        if len(names) > 1:
            return str(compiled), operator.itemgetter(*names), own
        return str(compiled), lambda values: tuple(values[name] for name in names), own

    def run(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        """Execute in the connection's transaction; the driver's cursor. Raises `KeyError` for a value that is missing."""
        text, ordered, own = self._compiled
        return driver(connection).execute(text, ordered({**own, **values} if own else values))

    def run_many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute once for each row."""
        text, ordered, own = self._compiled
        driver(connection).executemany(text, [ordered({**own, **row} if own else row) for row in rows])
