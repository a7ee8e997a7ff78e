"""SQLite as the node uses it: WAL, synchronous=FULL, one writer, migrations by Alembic."""

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc

from ..errors import StorageError

# What SQLite takes as it is, and the driver looks for adapters of each time, in vain and at three times the cost of the rest.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(type(None), lambda none: none)

_guard = threading.Lock()
_locks: "weakref.WeakKeyDictionary[sa.Engine, threading.Lock]" = weakref.WeakKeyDictionary()

HEADS = {"node": "0006", "lists": "0004", "mirrors": "0001"}
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOG_HEADER, _FRAME_HEADER = 32, 24  # bytes: of a write-ahead log, and before each page in it
_KEPT = 2  # connections of a reader
_STEP = 1 << 20  # bytes: half a millisecond, for which nobody writes
# After so many a commit empties the log: it waits for that, and `settle` comes twice a minute.
_LOG_PAGES = 8_000
LOG_BYTES = _LOG_PAGES * 4_096  # about as many as are ever in use


def connect(path: Path, name: str) -> sa.Engine:
    """Open (and where needed create or upgrade) a database; raises `StorageError`."""
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # BEGIN is ours
        cursor = connection.cursor()  # type: ignore[attr-defined]
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            "temp_store=FILE",
            "cache_size=-16000",
            f"wal_autocheckpoint={_LOG_PAGES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("begun"):
            driver(connection).execute("BEGIN" if options.get("read") else "BEGIN IMMEDIATE")

    with translated(path):
        path.touch(mode=0o600, exist_ok=True)
        path.chmod(0o600)
        _upgrade(engine, name)
    return engine


def _upgrade(engine: sa.Engine, name: str) -> None:
    with engine.connect() as connection:
        if sa.inspect(connection).has_table("alembic_version"):
            row = connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
            if row is not None and row[0] == HEADS[name]:
                return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS / name))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def settle(engine: sa.Engine, room: int = 0) -> int:
    """Copy the write-ahead log into the database and empty it: what was erased is then in neither file.

    Most of it is copied while others write; they wait for the rest. Where a reader or a long transaction is in the way, it waits for the next time.
    Then zeros up to `room` bytes lie ready for what comes next (decision 19). Returns how many bytes of the log were in use.
    """
    connection = engine.raw_connection()
    try:
        with translated(str(engine.url.database)):
            cursor = connection.cursor()
            _, frames, _ = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if _written(engine):
                cursor.execute("PRAGMA busy_timeout=0")  # nobody who writes waits for somebody who reads
                with _turn_within(engine, 1) as ours:  # an import may take minutes
                    if ours:
                        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if room:
                _make_room(engine, room)
            (page,) = cursor.execute("PRAGMA page_size").fetchone()
            cursor.close()
            return max(0, int(frames)) * (int(page) + _FRAME_HEADER)
    finally:
        connection.invalidate()  # its timeout is not the others'
        connection.close()


def _written(engine: sa.Engine) -> bool:
    """Whether anything has begun to be written to the write-ahead log since it was emptied."""
    with contextlib.suppress(FileNotFoundError), open(f"{engine.url.database}-wal", "rb") as log:
        return any(log.read(_LOG_HEADER))
    return False


def _make_room(engine: sa.Engine, room: int) -> None:
    """Lengthen the write-ahead log with zeros, at its end alone: SQLite reads them as no frame."""
    with open(f"{engine.url.database}-wal", "ab") as log:
        while True:
            with _turn_within(engine, 1) as ours:
                missing = room - os.fstat(log.fileno()).st_size
                if not ours or missing <= 0:
                    return
                log.write(bytes(min(missing, _STEP)))
                log.flush()
            os.fsync(log.fileno())  # or the next commit would wait for it


@contextlib.contextmanager
def _turn_within(engine: sa.Engine, seconds: float) -> Iterator[bool]:
    ours = turn(engine).acquire(timeout=seconds)
    try:
        yield ours
    finally:
        if ours:
            turn(engine).release()


@contextlib.contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn a full disk or a broken database into `StorageError` that names the file."""
    try:
        yield
    except exc.DBAPIError as error:
        raise StorageError(f"{path}: {error.orig}") from error
    except sqlite3.Error as error:  # of statements that run on the driver's own cursor
        raise StorageError(f"{path}: {error}") from error
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror}") from error


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A short read transaction: a snapshot that blocks no writer."""
    with translated(str(engine.url.database)), engine.connect() as raw:
        connection = raw.execution_options(read=True)
        with connection.begin():
            yield connection


class Reader:
    """Short reads on connections that are kept: to take one from the pool and begin takes longer than to read. For any thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._idle: list[sa.Connection] = []

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A snapshot, for `Prepared` statements alone."""
        with translated(str(self._engine.url.database)):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._engine.connect()
            try:
                driver(connection).execute("BEGIN")
                yield connection
                driver(connection).execute("COMMIT")
            except BaseException:
                connection.close()  # and with it what it has begun
                raise
            if len(self._idle) < _KEPT:
                self._idle.append(connection)
            else:  # after many at once: the pool's connections are for others, too
                connection.close()

    def close(self) -> None:
        """Give back the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()


def driver(connection: sa.Connection) -> sqlite3.Connection:
    """What SQLAlchemy itself runs on: in the connection's transaction, without its machinery."""
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction: all or nothing, durable when it returns."""
    with translated(str(engine.url.database)), turn(engine), engine.begin() as connection:
        yield connection


def turn(engine: sa.Engine) -> threading.Lock:
    """Held by the one writer: SQLite's own waiting polls and gives up, writers of one process queue here."""
    with _guard:
        return _locks.setdefault(engine, threading.Lock())
