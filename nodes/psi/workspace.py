"""One session's points on disk, in a database that goes with the session: sets may be larger than memory.

SQLite sorts in runs of its own on disk. What lies here are points, and numbers of rows; nobody else's, and nothing that
names anybody without the exponents, which are in memory alone.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from protocols import group
from protocols.errors import DecodeError

_ROWS = 8_192  # points in one message


class Workspace:
    """Made for one session by one thread, and removed with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        run = self._database.execute
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-32000"):
            run(f"PRAGMA {pragma}")
        run("CREATE TABLE element (identifier BLOB PRIMARY KEY, row INTEGER, value INTEGER) WITHOUT ROWID")
        run("CREATE TABLE masked (point BLOB, row INTEGER)")
        run("CREATE TABLE own (position INTEGER PRIMARY KEY, point BLOB, row INTEGER)")
        run("CREATE TABLE theirs (number INTEGER PRIMARY KEY, points BLOB)")  # read in one go: in pieces
        run("CREATE TABLE weighted (position INTEGER PRIMARY KEY, ciphertext BLOB)")
        run("CREATE TABLE own_doubled (position INTEGER PRIMARY KEY, point BLOB)")
        run("CREATE TABLE their_doubled (position INTEGER PRIMARY KEY, point BLOB)")
        run("BEGIN")

    def add_element(self, identifier: bytes, row: int, value: int) -> bool:
        """Whether it is new; the values of one that is repeated are added up. `identifier` is a keyed hash."""
        done = self._database.execute(
            "INSERT OR IGNORE INTO element VALUES (?, ?, ?)", (identifier, row, value)
        )
        if not done.rowcount and value:
            self._database.execute(
                "UPDATE element SET value = value + ? WHERE identifier = ?", (value, identifier)
            )
        return bool(done.rowcount)

    def add_masked(self, points: bytes, rows: Iterable[int]) -> None:
        """Own masked points; row 0 for dummies."""
        pairs = zip(group.split(points), rows, strict=True)
        self._database.executemany("INSERT INTO masked VALUES (?, ?)", pairs)

    def sort_own(self) -> None:
        """Put them in ascending order."""
        self._database.execute("INSERT INTO own (point, row) SELECT point, row FROM masked ORDER BY point")
        self._database.execute("DROP TABLE masked")

    def own(self) -> Iterator[bytes]:
        """Own masked points in messages, ascending."""
        return self._messages("SELECT point FROM own ORDER BY position")

    def own_weighted(self, count: int) -> Iterator[tuple[bytes, list[int]]]:
        """Own masked points in messages of `count`, ascending, with their values; 0 for dummies."""
        self._by_row()
        cursor = self._database.cursor()
        cursor.execute(
            "SELECT point, COALESCE(value, 0) FROM own LEFT JOIN element USING (row) ORDER BY position"
        )
        while rows := cursor.fetchmany(count):
            yield b"".join(point for point, _ in rows), [value for _, value in rows]

    def _by_row(self) -> None:
        self._database.execute("CREATE UNIQUE INDEX IF NOT EXISTS stands ON element (row)")

    def add_theirs(self, points: bytes, ciphertexts: bytes = b"", size: int = 1) -> None:
        """The other's masked points, as they come, and for a sum the ciphertexts of their values."""
        self._database.execute("INSERT INTO theirs (points) VALUES (?)", (points,))
        if ciphertexts:
            self._add("INSERT INTO weighted (ciphertext) VALUES (?)", ciphertexts, size)

    def theirs(self) -> Iterator[bytes]:
        """In messages, as they came."""
        cursor = self._database.cursor()
        cursor.execute("SELECT points FROM theirs ORDER BY number")
        waiting = b""  # however small the pieces were that they came in
        for (points,) in cursor:
            waiting += points
            if len(waiting) >= _ROWS * group.POINT:
                yield waiting
                waiting = b""
        if waiting:
            yield waiting

    def add_own_doubled(self, points: bytes) -> None:
        """Own points, doubled by the other, as they come."""
        self._add("INSERT INTO own_doubled (point) VALUES (?)", points)

    def add_their_doubled(self, points: bytes) -> None:
        """The other's points, doubled here, as they came."""
        self._add("INSERT INTO their_doubled (point) VALUES (?)", points)

    def their_doubled(self, as_they_came: bool) -> Iterator[bytes]:
        """In messages; else ascending."""
        if as_they_came:
            return self._messages("SELECT point FROM their_doubled ORDER BY position")
        return self._messages("SELECT point FROM their_doubled ORDER BY point")

    def prepare_to_compare(self) -> None:
        """Both doubled sequences are here."""
        self._database.execute("CREATE INDEX met ON their_doubled (point)")
        try:
            self._database.execute("CREATE UNIQUE INDEX once ON own_doubled (point)")
        except sqlite3.IntegrityError as error:
            raise DecodeError("the other side doubled two points to the same one") from error

    def _add(self, statement: str, points: bytes, size: int = group.POINT) -> None:
        self._database.executemany(statement, ((point,) for point in group.split(points, size)))

    def _messages(self, query: str) -> Iterator[bytes]:
        cursor = self._database.cursor()
        cursor.execute(query)
        while rows := cursor.fetchmany(_ROWS):
            yield b"".join(row[0] for row in rows)

    def common(self) -> int:
        """How many doubled points both sequences have; of a cardinality nobody can say whose they are."""
        return int(
            self._database.execute(
                "SELECT COUNT(*) FROM own_doubled JOIN their_doubled USING (point)"
            ).fetchone()[0]
        )

    def common_rows(self) -> Iterator[int]:
        """Own rows whose points met one of the other's."""
        cursor = self._database.cursor()
        cursor.execute(
            """SELECT own.row FROM own_doubled JOIN their_doubled USING (point)
            JOIN own ON own.position = own_doubled.position WHERE own.row > 0 ORDER BY own.row"""
        )
        for (row,) in cursor:
            yield row

    def ciphertexts(self, count: int) -> Iterator[tuple[bytes, list[bool]]]:
        """Of all of the other's elements, so many together, and which of them met one."""
        cursor = self._database.cursor()
        cursor.execute(
            """SELECT ciphertext, own_doubled.point IS NOT NULL FROM weighted
            JOIN their_doubled ON their_doubled.position = weighted.position
            LEFT JOIN own_doubled ON own_doubled.point = their_doubled.point ORDER BY weighted.position"""
        )
        while rows := cursor.fetchmany(count):
            yield b"".join(row[0] for row in rows), [bool(row[1]) for row in rows]

    def common_elements(self) -> Iterator[tuple[bytes, bytes, int]]:
        """(doubled point, keyed hash of the own identifier, its row) of what both have."""
        self._by_row()
        cursor = self._database.cursor()
        cursor.execute(
            """SELECT own_doubled.point, identifier, row FROM own_doubled JOIN their_doubled USING (point)
            JOIN own ON own.position = own_doubled.position JOIN element USING (row)"""
        )
        yield from cursor

    def close(self) -> None:
        """Remove everything."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        self._path.unlink(missing_ok=True)
