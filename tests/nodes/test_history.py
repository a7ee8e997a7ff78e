"""What a question and the housekeeping cost does not grow with what was asked before: nothing looks through a whole table."""

import asyncio
import re
import secrets

import pytest
import sqlalchemy as sa
from lianfang.v1 import ledger_pb2

from nodes.people.tally import Tally
from nodes.querier.questions import Answer, Questions
from nodes.store import engine as db
from nodes.store import schema
from nodes.store.prepared import Prepared
from nodes.store.writer import GroupWriter
from protocols.ledger import events
from tests.nodes.test_gate import ask, clock, gate  # noqa: F401  (fixtures)
from tests.nodes.test_questions import job

GROWING = {"decision", "usage", "asked", "answer", "hit", "ledger_entry", "promise"}


@pytest.fixture
def plans(monkeypatch):
    """How SQLite goes about every statement that runs from now on: (what it does, statement)."""
    found: list[tuple[str, str]] = []

    def explain(execute, text, values):
        if not text.startswith(("PRAGMA", "BEGIN", "COMMIT", "ROLLBACK", "EXPLAIN")):
            found.extend((row[3], text) for row in execute("EXPLAIN QUERY PLAN " + text, values).fetchall())

    run, run_many = Prepared.run, Prepared.run_many

    def explained(prepared, connection, values):
        text, ordered, own = prepared._compiled
        explain(db.driver(connection).execute, text, ordered({**own, **values}))
        return run(prepared, connection, values)

    def each_explained(prepared, connection, rows):
        text, ordered, own = prepared._compiled
        for row in rows[:1]:
            explain(db.driver(connection).execute, text, ordered({**own, **row}))
        run_many(prepared, connection, rows)

    monkeypatch.setattr(Prepared, "run", explained)
    monkeypatch.setattr(Prepared, "run_many", each_explained)

    def before(_connection, cursor, statement, parameters, _context, executemany):
        rows = parameters if executemany else [parameters]
        explain(cursor.connection.execute, statement, rows[0] if rows else ())

    sa.event.listen(sa.Engine, "before_cursor_execute", before)
    yield found
    sa.event.remove(sa.Engine, "before_cursor_execute", before)


def looked_through(plans):
    """What goes through a table that grows. The index of what has no answer yet holds little; of the oldest so many are taken."""
    whole = ((done, text) for done, text in plans if "\n LIMIT " not in text)
    scans = ((re.match(r"SCAN (\w+)\b(?! USING INDEX asked_open)", done), text) for done, text in whole)
    return [(scan[0], text) for scan, text in scans if scan and scan[1] in GROWING]


def test_a_holder_finds_by_index_what_it_decides_by(gate, members, holder, clock, plans):  # noqa: F811
    gate.admit(ask(members["centre"], 5))
    holder.epochs.rotate("fraud", close_now=False)
    clock.now += 61.5
    plans.clear()
    gate.admit(ask(members["centre"], 5, epoch=2))
    assert looked_through(plans) == []
    told = {done for done, _ in plans}
    assert "SEARCH usage USING INDEX usage_list (resource=? AND epoch>?)" in told
    assert "SEARCH usage USING INDEX usage_day (resource=? AND day=?)" in told
    # Of the decisions of before only one second's are added up, and once the day of the epoch's opening.
    bursts = [text for done, text in plans if "decision_burst" in done]
    assert all(re.search(r"decision\.at <", text) for text in bursts)
    assert len(bursts) <= 2
    plans.clear()
    gate.admit(ask(members["centre"], 5, epoch=2))
    assert not [text for done, text in plans if "decision_burst" in done and "epoch" in text]


def promised(holder):
    event = ledger_pb2.Event(log="spiffe://test.example/bank/a", type=1, id=secrets.token_bytes(16), at=1)
    committed = events.commit(event)
    return events.receipt(committed, 1, holder.keys.signing), committed


@pytest.mark.parametrize("count", [1, 3])
def test_an_asker_finds_by_index_what_it_knows_and_tidies(holder, plans, count):
    writer = GroupWriter(holder.database)
    questions = Questions(
        holder.database, writer, holder.keys.vault, 24.0, holder.log, Tally(holder.database)
    )  # fmt: skip
    identifiers = [f"phone\x1f+86138{i:08d}".encode() for i in range(count)]
    batch = questions.prepare(job(1), "a", "fraud", 1, identifiers)
    entry = holder.log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ASKED, "a", batch.query_id)

    async def ask_and_answer():
        await questions.begin(job(1), [(batch, count, entry)])
        assert questions.recall(job(1), identifiers[:1], False)[1] == [batch]
        assert questions.recall(job(2), identifiers, False) == ({}, [])
        assert questions.recall(job(1), [b"phone\x1f+8613999999999"], False) == ({}, [])
        answers = [Answer(each, bytes(48), bytes(16), 1, 1) for each in identifiers]
        outcome = questions.outcome(job(1), batch, answers, b"", promised(holder))
        await questions.answered([outcome])

    asyncio.run(ask_and_answer())
    known, pending = questions.recall(job(1), identifiers, False)
    assert len(known["a", "fraud"]) == count
    assert pending == []
    questions.purge()
    holder.log.erase(1.0)
    assert looked_through(plans) == []
    told = " ".join(done for done, _ in plans)
    for by in (
        r"answer USING INDEX \w+ \(job=\? AND identifier=\?\)",
        r"asked USING INDEX asked_open \(job=\? AND sole=\?\)",
        r"ledger_entry USING INDEX ledger_age \(at<\?\)",
    ):
        assert re.search(by, told), (by, told)
    with db.reading(holder.database) as connection:
        assert connection.execute(sa.select(schema.asked.c.secret, schema.asked.c.sole)).all() == [
            (None, None)
        ]
    questions.close()
    writer.close()
