"""Answers that arrive close together: one transaction, nobody waits for who has gone, and no error is lost."""

import asyncio
import concurrent.futures
import time
from types import SimpleNamespace

import pytest

from nodes.errors import NodeError, StorageError
from nodes.querier.peers import PeerFailed
from nodes.querier.query import Asker
from nodes.querier.questions import Batch, Job, Questions
from nodes.querier.recording import Recording


class Written:
    """What was handed on together, and what becomes of it."""

    def __init__(self, error: Exception | None = None, stopping: bool = False) -> None:
        self.groups: list[list[str]] = []
        self.error, self.stopping = error, stopping

    def __call__(self, outcomes):
        if self.stopping:
            raise StorageError("the node is stopping")
        self.groups.append(list(outcomes))
        done = asyncio.get_running_loop().create_future()
        if self.error:
            done.set_exception(self.error)
        else:
            done.set_result(None)
        return done


def test_all_that_are_under_way_are_recorded_at_once():
    async def work():
        written = Written()
        recording = Recording(written, 3)
        first = asyncio.ensure_future(recording.record("a"))
        second = asyncio.ensure_future(recording.record("b"))
        assert written.groups == []
        recording.leave()  # the third has failed
        assert written.groups == [["a", "b"]]
        await asyncio.gather(first, second)
        recording.leave()
        recording.leave()
        assert written.groups == [["a", "b"]]

    asyncio.run(work())


def test_one_that_is_slow_is_not_waited_for():
    async def work():
        written = Written()
        recording = Recording(written, 2)
        await asyncio.wait_for(recording.record("a"), 5)
        recording.leave()
        await asyncio.wait_for(recording.record("b"), 5)
        assert written.groups == [["a"], ["b"]]

    asyncio.run(work())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("written", [Written(error=NodeError("disk")), Written(stopping=True)])
def test_an_error_reaches_everybody_who_waits(written, late):
    async def work():
        recording = Recording(written, 3 if late else 2)  # late: by the timer
        waiting = [asyncio.ensure_future(recording.record(each)) for each in "ab"]
        for error in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
            assert isinstance(error, NodeError)

    asyncio.run(work())


def test_who_has_gone_does_not_disturb_the_others():
    async def work():
        written = Written()
        recording = Recording(written, 2)
        gone = recording.record("a")
        gone.cancel()
        await recording.record("b")
        assert written.groups == [["a", "b"]]

    asyncio.run(work())


def test_a_question_that_never_arrived_is_asked_anew_under_a_record_of_now():
    """The asker crashed between its record and sending it: the holder takes no old record, and nothing is lost or charged twice."""

    async def work(age: float):
        old = Batch(b"q" * 16, bytes(32), [b"phone\x1f+8613800138000"], "holder", "fraud", 1, bytes(16))
        ended = []

        def end(batch, outcome):
            ended.append((batch.query_id, outcome))
            future = concurrent.futures.Future()
            future.set_result(None)
            return future

        event = SimpleNamespace(at=int((time.time() - age) * 1000))
        opened = SimpleNamespace(
            question=SimpleNamespace(size=1),
            request=None,
            recorded=SimpleNamespace(committed=SimpleNamespace(event=event)),
        )
        asker = Asker.__new__(Asker)
        asker._questions = SimpleNamespace(end=end, prepare=Questions.prepare)

        async def send(*_):
            raise PeerFailed("refused", "record it anew", "AGED")

        asker._send = send
        opening = asyncio.get_running_loop().create_future()
        opening.set_result({old.query_id: opened})
        job = Job(b"j" * 16, bytes(32), 2, 3, bytes(16))
        asked = await asker._ask_batch(job, SimpleNamespace(), old, opening, None, 1.0, [0])
        return asked, ended, old

    (answers, again), ended, old = asyncio.run(work(age=3_600))
    assert answers == []
    assert [(each.inputs, each.holder, each.list, each.epoch) for each in again] == [
        (old.inputs, "holder", "fraud", 1)
    ]
    assert again[0].query_id != old.query_id
    assert ended == [(old.query_id, "void")]
    with pytest.raises(PeerFailed):  # a holder that says so of a record of now is not asked for ever
        asyncio.run(work(age=1))
