"""One writer for `node.db`: what arrives together shares one commit, and so one wait for the disk."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import sqlalchemy as sa

from ..errors import NodeError, StorageError
from . import engine as db

_T = TypeVar("_T")
_Done = Future[Any] | asyncio.Future[Any]
_Work = tuple[Callable[[sa.Connection], Any], _Done]
_TOGETHER = 256
_QUIET_SECONDS = 0.001  # without a commit: whoever writes next is alone
_FAST_SECONDS = 0.004  # a commit that takes longer is a slow disk's
_SLOW_COMMITS = 3  # one after the other, after which the event loop waits for none
_WARY_SECONDS = 1.0  # for so long
_log = logging.getLogger("lianfang.store")


class GroupWriter:
    """A thread that runs pieces of work in shared transactions; each future is set once its commit is durable.

    What a piece has written before it raises a `NodeError` is committed with the others' (so the gate records a
    refusal and raises it); any other error undoes the whole group.
    """

    def __init__(self, database: sa.Engine) -> None:
        self._database, self._closed = database, False
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._connection: sa.Connection | None = None  # of whoever has the database's turn
        self._turn = db.turn(database)
        self._ended, self._wary_until = 0.0, 0.0  # by the monotonic clock
        self._slow = 0  # commits, one after the other
        self.undone: list[
            Callable[[], None]
        ] = []  # who is told, within the turn, that a group's transaction has failed
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[sa.Connection], _T]) -> "Future[_T]":
        """Queue a piece of work. Cancelling the future before its turn withdraws it."""
        future: Future[_T] = Future()
        self._put(work, future)
        return future

    def write(self, work: Callable[[sa.Connection], _T], small: bool = False) -> "asyncio.Future[_T]":
        """`submit` for the event loop, which is woken once for all that came through together.

        `small` work of somebody who is alone is done at once, while the disk is a fast one: to hand it to the thread and to be woken
        takes as long as a commit (decision 20).
        """
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        if small and self._alone() and self._turn.acquire(blocking=False):
            try:
                (outcome,) = self._commit([(work, future)])
            finally:
                self._turn.release()
            _settle(future, outcome)
        else:
            self._put(work, future)
        return future

    def _alone(self) -> bool:
        now = time.monotonic()
        return (
            not self._closed
            and self._queue.empty()
            and now > self._wary_until
            and now - self._ended > _QUIET_SECONDS
        )

    def _put(self, work: Callable[[sa.Connection], Any], future: _Done) -> None:
        if self._closed:
            raise StorageError("the node is stopping")
        self._queue.put((work, future))

    def close(self) -> None:
        """Do what is queued, then stop."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group = [self._queue.get()]
            while len(group) < _TOGETHER:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            stopping = None in group
            # Whoever has gone meanwhile is passed over, and from here on cannot go.
            work = [each for each in group if each is not None and _begins(each[1])]
            if work:
                with self._turn:
                    outcomes = self._commit(work)
                _settle_each(work, outcomes)
        if self._connection is not None:
            self._connection.close()

    @contextlib.contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        if self._connection is None:
            self._connection = self._database.connect().execution_options(begun=True)
        try:
            # By the driver, of which SQLAlchemy need not know: its own way takes as long as a statement.
            db.driver(self._connection).execute("BEGIN IMMEDIATE")
            yield self._connection
            db.driver(self._connection).commit()
        except BaseException:
            self._connection.close()  # which rolls back
            self._connection = None
            raise

    def _commit(self, group: list[_Work]) -> list[Any]:
        """What each piece comes to, durably, in one transaction. The turn is the caller's."""
        outcomes: list[Any] = []
        started = time.monotonic()
        try:
            with db.translated(str(self._database.url.database)), self._begun() as connection:
                for work, _ in group:
                    try:
                        outcomes.append(work(connection))
                    except NodeError as error:
                        outcomes.append(error)
        except StorageError as error:
            outcomes = self._undo(error, group)
        except Exception as error:  # a defect must not leave callers waiting for ever
            _log.exception("a transaction failed")
            outcomes = self._undo(NodeError(f"the node's store failed: {type(error).__name__}"), group)
        self._ended = time.monotonic()
        self._slow = self._slow + 1 if self._ended - started > _FAST_SECONDS * len(group) else 0
        if self._slow >= _SLOW_COMMITS:
            self._wary_until = self._ended + _WARY_SECONDS
        return outcomes

    def _undo(self, error: Exception, group: list[_Work]) -> list[Any]:
        for tell in self.undone:
            tell()
        return [error] * len(group)


def _settle_each(group: list[_Work], outcomes: list[Any]) -> None:
    """From the writer's thread: each loop is woken once."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for (_, future), outcome in zip(group, outcomes, strict=True):
        if isinstance(future, asyncio.Future):
            loops.setdefault(future.get_loop(), []).append((future, outcome))
        else:
            _settle(future, outcome)
    for loop, settled in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended, and who waited with it
            loop.call_soon_threadsafe(_settle_all, settled)


def _begins(future: _Done) -> bool:
    if isinstance(future, asyncio.Future):
        return not future.cancelled()
    return future.set_running_or_notify_cancel()


def _settle(future: _Done, outcome: Any) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _settle_all(settled: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in settled:
        if not future.done():  # its caller has gone
            _settle(future, outcome)
