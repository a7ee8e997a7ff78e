"""The node's one writer: at once for who is alone, together for many, and never half done."""

import asyncio
import contextlib
import threading
import time

import pytest
import sqlalchemy as sa

from nodes.errors import NodeError, Refused, StorageError
from nodes.store import engine as db
from nodes.store import schema, writer
from nodes.store.prepared import Prepared
from nodes.store.writer import GroupWriter

CONTACT = schema.contact


@pytest.fixture
def database(tmp_path):
    return db.connect(tmp_path / "node.db", "node")


@pytest.fixture
def group(database):
    group = GroupWriter(database)
    yield group
    group.close()


def note(name, threads):
    def work(connection):
        threads.append(threading.current_thread().name)
        connection.execute(CONTACT.insert().values(holder=name, at=1.0))
        return name

    return work


def names(database):
    with db.reading(database) as connection:
        return set(connection.execute(sa.select(CONTACT.c.holder)).scalars())


def test_who_is_alone_is_served_at_once_and_durably(group, database):
    threads = []

    async def alone():
        done = group.write(note("a", threads), small=True)
        assert done.done()
        return await done

    assert asyncio.run(alone()) == "a"
    assert threads == ["MainThread"]
    assert names(database) == {"a"}


def test_what_is_not_small_or_comes_close_behind_another_goes_to_the_thread(group, database):
    threads = []

    async def several():
        large = await group.write(note("a", threads))
        behind = group.write(note("b", threads), small=True)
        assert not behind.done()
        return large, await behind

    assert asyncio.run(several()) == ("a", "b")
    assert threads == ["writer"] * 2
    assert names(database) == {"a", "b"}


def test_the_event_loop_waits_for_nobody_who_writes_already(group, database):
    threads = []

    async def meanwhile():
        with db.writing(database):
            waiting = group.write(note("a", threads), small=True)
            await asyncio.sleep(0.05)
            assert not waiting.done()
        return await waiting

    assert asyncio.run(meanwhile()) == "a"
    assert threads == ["writer"]


def test_after_slow_commits_the_event_loop_waits_for_none(group, monkeypatch):
    monkeypatch.setattr(writer, "_FAST_SECONDS", 0.0)
    threads = []

    async def slowly():
        for name in "abcde":
            await group.write(note(name, threads), small=True)
            await asyncio.sleep(0.002)

    asyncio.run(slowly())
    assert threads == ["MainThread"] * 3 + ["writer"] * 2


def test_one_slow_commit_is_forgiven(group, monkeypatch):
    threads = []

    async def once():
        await group.write(lambda _: time.sleep(0.01), small=True)
        await asyncio.sleep(0.002)
        await group.write(note("a", threads), small=True)

    asyncio.run(once())
    assert threads == ["MainThread"]


PREPARED = Prepared(CONTACT.insert(), ["holder", "at"])


def by_the_driver(name, _threads):
    return lambda connection: PREPARED.run(connection, {"holder": name, "at": 1.0}) and name


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("note", [note, by_the_driver])
def test_a_refusal_keeps_what_it_recorded_and_a_defect_keeps_nothing(group, database, small, note):
    def refuse(connection):
        note("refused", [])(connection)
        raise Refused("no", "POLICY")

    def fail(connection):
        note("failed", [])(connection)
        raise ZeroDivisionError

    async def both():
        with pytest.raises(Refused, match="no"):
            await group.write(refuse, small=small)
        await asyncio.sleep(0.002)
        with pytest.raises(NodeError, match="ZeroDivisionError"):
            await group.write(fail, small=small)
        await asyncio.sleep(0.002)
        return await group.write(note("after", []), small=small)

    assert asyncio.run(both()) == "after"
    assert names(database) == {"refused", "after"}


def test_a_writer_that_is_closed_takes_nothing(database):
    group = GroupWriter(database)
    group.close()

    async def late():
        with pytest.raises(StorageError, match="stopping"):
            group.write(note("a", []), small=True)

    asyncio.run(late())
    assert names(database) == set()


def test_many_at_once_share_the_thread_and_all_are_durable(group, database):
    async def many():
        return await asyncio.gather(*(group.write(note(str(i), []), small=True) for i in range(200)))

    assert asyncio.run(many()) == [str(i) for i in range(200)]
    assert names(database) == {str(i) for i in range(200)}


def test_a_reader_that_fails_holds_nothing_and_reads_again(database):
    reader = db.Reader(database)
    count = Prepared(sa.select(sa.func.count()).select_from(CONTACT))
    with pytest.raises(ZeroDivisionError), reader.reading() as connection:
        count.run(connection, {})
        raise ZeroDivisionError
    for name in ("a", "b"):
        with db.writing(database) as connection:
            PREPARED.run(connection, {"holder": name, "at": 1.0})
        db.settle(database)  # would leave the log as it is, were a reader in the way
        assert not db._written(database)
    with reader.reading() as first, reader.reading() as second:
        assert first is not second
        assert count.run(first, {}).fetchone() == count.run(second, {}).fetchone() == (2,)
    reader.close()


def test_many_readers_at_once_leave_connections_to_others(database):
    reader = db.Reader(database)
    with contextlib.ExitStack() as stack:
        for _ in range(15):  # as many as the pool has
            stack.enter_context(reader.reading())
    for _ in range(13):
        stack.enter_context(db.reading(database))
    stack.close()


def test_a_commit_that_fails_leaves_no_transaction_open(group, database):
    """As a constraint does that is looked at in the end."""

    def prepare(connection):
        for text in (
            "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
            "CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        ):
            connection.exec_driver_sql(text)

    async def both():
        await group.write(prepare)
        with pytest.raises(NodeError, match="FOREIGN KEY"):
            await group.write(lambda connection: connection.exec_driver_sql("INSERT INTO child VALUES (1)"))
        return await group.write(note("after", []))

    assert asyncio.run(both()) == "after"
    with db.writing(database) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM child").scalar() == 0
    assert names(database) == {"after"}


def test_a_prepared_statement_has_its_own_values_and_misses_none(database):
    asked = schema.asked
    end = Prepared(
        asked.update().where(asked.c.query_id == sa.bindparam("in_id")).values(outcome="void", secret=None)
    )
    begin = Prepared(asked.insert(), [column.name for column in asked.columns])
    row = dict.fromkeys((column.name for column in asked.columns), 1) | {"secret": b"seed"}
    with db.writing(database) as connection:
        begin.run_many(connection, [row | {"query_id": b"a"}, row | {"query_id": b"b"}])
        end.run(connection, {"in_id": b"a"})
        with pytest.raises(KeyError, match="in_id"):
            end.run(connection, {})
        del row["holder"]
        with pytest.raises(KeyError, match="holder"):
            begin.run(connection, row | {"query_id": b"c"})
    with db.reading(database) as connection:
        rows = connection.execute(sa.select(asked.c.query_id, asked.c.outcome, asked.c.secret)).all()
    assert sorted(rows) == [(b"a", "void", None), (b"b", "1", b"seed")]
