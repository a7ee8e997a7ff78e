"""SQLite as the node uses it: WAL, synchronous=FULL, one writer, migrations by Alembic."""

import contextlib
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

HEADS = {"node": "0005", "lists": "0004", "mirrors": "0001"}
_MIGRATIONS = Path(__file__).parent / "migrations"


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
            "wal_autocheckpoint=8000",  # pages: a checkpoint waits in a commit, and `settle` comes twice a minute
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql("BEGIN" if options.get("read") else "BEGIN IMMEDIATE")

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


def settle(engine: sa.Engine) -> None:
    """Copy the write-ahead log into the database and empty it: what was erased is then in neither file.

    Most of it is copied while others write; they wait for the rest. Where a reader or a long transaction is in the way, it waits for the next time.
    """
    connection = engine.raw_connection()
    try:
        with translated(str(engine.url.database)):
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            cursor.execute("PRAGMA busy_timeout=0")  # nobody who writes waits for somebody who reads
            if turn(engine).acquire(timeout=1):  # an import may take minutes
                try:
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                finally:
                    turn(engine).release()
            cursor.close()
    finally:
        connection.invalidate()  # its timeout is not the others'
        connection.close()


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


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction: all or nothing, durable when it returns."""
    with translated(str(engine.url.database)), turn(engine), engine.begin() as connection:
        yield connection


def turn(engine: sa.Engine) -> threading.Lock:
    """Held by the one writer: SQLite's own waiting polls and gives up, writers of one process queue here."""
    with _guard:
        return _locks.setdefault(engine, threading.Lock())
