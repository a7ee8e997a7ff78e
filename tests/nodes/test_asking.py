"""Answers that arrive close together: one transaction, nobody waits for who has gone, and no error is lost."""

import asyncio

import pytest

from nodes.errors import NodeError, StorageError
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
