"""Answers that a node keeps for a rerun, in a real database."""

import secrets

import pytest

from nodes.people.tally import Tally
from nodes.querier import questions as module
from nodes.querier.questions import Answer, Job, Questions
from nodes.store import engine as db
from nodes.store import schema
from nodes.store.writer import GroupWriter

KNOWN, NEW = 450, 130


@pytest.fixture
def questions(holder):
    writer = GroupWriter(holder.database)
    made = Questions(
        holder.database, writer, holder.keys.vault, 24.0, holder.log, Tally(holder.database)
    )  # fmt: skip
    yield made
    made.close()
    writer.close()


def job(number):
    return Job(bytes([number]) * 16, bytes(32), 1, 1, bytes(16))


def keep(questions, job, holder, answers):
    """As `answered` records what is kept."""
    batch = questions.prepare(job, holder, "fraud", 1, [each.identifier for each in answers])
    outcome = questions.outcome(job, batch, answers, b"", None)
    with db.writing(questions._database) as connection:
        module._ANSWERS.run_many(connection, outcome.kept)


def test_each_jobs_own_answers_are_found_whatever_their_number(questions):
    identifiers = [f"phone\x1f+86138{i:08d}".encode() for i in range(KNOWN + NEW)]
    answers = {
        each: Answer(each, secrets.token_bytes(48) if i % 3 else b"", secrets.token_bytes(16), 1, i)
        for i, each in enumerate(identifiers[:KNOWN])
    }
    keep(questions, job(1), "a", list(answers.values()))
    keep(questions, job(1), "b", list(answers.values())[:7])
    for mine, asked in ((1, identifiers[:1]), (1, identifiers), (1, identifiers[KNOWN:]), (2, identifiers)):
        known, pending = questions.recall(job(mine), asked, again=False)
        expected = {each: answers[each] for each in asked if each in answers} if mine == 1 else {}
        assert known.get(("a", "fraud"), {}) == expected
        assert known.get(("b", "fraud"), {}) == {
            each: expected[each] for each in identifiers[:7] if each in expected
        }
        assert pending == []
    assert questions.recall(job(1), identifiers, again=True) == ({}, [])


def begin(questions, job, batch):
    """As `begin` records a batch, without the log's event."""
    with db.writing(questions._database) as connection:
        module._BEGIN.run_many(connection, [questions._row(job, batch, len(batch.inputs))])


def test_each_jobs_own_open_batches_are_found_whatever_is_asked_with_them(questions):
    identifiers = [f"phone\x1f+86138{i:08d}".encode() for i in range(KNOWN)]
    batches = [
        questions.prepare(job(1), "a", "fraud", 1, inputs)
        for inputs in (identifiers[:1], identifiers[300:301], identifiers[5:7], identifiers[440:441])
    ]
    for batch in batches:
        begin(questions, job(1), batch)
    before = questions.prepare(job(1), "b", "fraud", 1, identifiers[1:2])
    begin(questions, job(1), before)
    with db.writing(questions._database) as connection:  # of a version that kept no index
        asked = schema.asked
        connection.execute(asked.update().where(asked.c.query_id == before.query_id).values(sole=None))

    def found(number, inputs):
        return {each.query_id for each in questions.recall(job(number), inputs, again=False)[1]}

    ids = [each.query_id for each in batches]
    assert found(1, identifiers) == {*ids, before.query_id}
    assert found(1, identifiers[2:430]) == {ids[1], ids[2]}
    assert found(1, identifiers[6:7]) == {ids[2]}
    assert found(1, identifiers[1:2]) == {before.query_id}
    assert found(2, identifiers) == set()
    questions.end(batches[1], "refused").result()
    assert found(1, identifiers) == {ids[0], ids[2], ids[3], before.query_id}
