"""Answers that a node keeps for a rerun, in a real database."""

import secrets

import pytest

from nodes.people.tally import Tally
from nodes.querier import questions as module
from nodes.querier.questions import Answer, Job, Questions
from nodes.store import engine as db
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
