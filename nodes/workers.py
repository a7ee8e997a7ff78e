"""Worker processes for bulk work: curve arithmetic and normalising never run on the event loop.

Work goes out in pieces of some ten milliseconds, and each caller has only a few pieces under way at once, so
large jobs take turns. Workers run at low priority: a single lookup, which has a thread of its own, goes first.
"""

import collections
import gc
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from protocols import group

from . import limits
from .errors import NodeError

_PRELOAD = ["protocols.sealed", "protocols.lookup", "protocols.identifiers", "nodes.holder.rows"]


def _start_worker() -> None:
    os.nice(10)
    gc.freeze()  # the modules: no collection need look through them
    gc.set_threshold(limits.GARBAGE)
    group.backend.threads = 1
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:  # an orphan of a killed node must not live on
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A pool that starts with its first use. `count` 0 means one process a core."""

    def __init__(self, count: int = 0) -> None:
        self.count = count or os.cpu_count() or 1
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def _executor(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise NodeError(
                    "the node is stopping; what was under way resumes at its next start", "STOPPING"
                )
            if self._pool is None:
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload(_PRELOAD)
                self._pool = ProcessPoolExecutor(self.count, context, initializer=_start_worker)
            return self._pool

    def stream(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], ahead: int = 2
    ) -> Iterator[Any]:
        """Results in order, with at most `ahead` pieces a worker under way. Raises what the function raises."""
        pool = self._executor()
        window: collections.deque[Future[Any]] = collections.deque()
        try:
            for each in arguments:
                window.append(pool.submit(function, *each))
                if len(window) >= self.count * ahead:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = None
            raise NodeError("a worker process died (out of memory?); try again", "WORKER") from error
        except (CancelledError, RuntimeError) as error:
            if self._closed:
                raise NodeError("the node is stopping", "STOPPING") from error
            raise
        finally:
            for future in window:
                future.cancel()

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The `Runner` of the protocol library, over processes."""
        return list(self.stream(function, arguments))

    def close(self) -> None:
        """End the processes for good; who waits for them gets a `NodeError`."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._pool = None
