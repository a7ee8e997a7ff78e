"""Answers of one question, recorded together."""

import asyncio
from collections.abc import Callable, Sequence

from ..errors import NodeError
from .questions import Outcome

_TOGETHER_SECONDS = 0.003  # a transaction costs as much


class Recording:
    """Answers of one question that arrive close together share a transaction.

    One that has arrived waits for others, at most `_TOGETHER_SECONDS`, and for none that is not under way.
    """

    def __init__(self, write: Callable[[Sequence[Outcome]], "asyncio.Future[None]"], under_way: int) -> None:
        self._write, self._under_way = write, under_way
        self._arrived: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def record(self, outcome: Outcome) -> "asyncio.Future[None]":
        """Done once it is durable."""
        loop = asyncio.get_running_loop()
        recorded: asyncio.Future[None] = loop.create_future()
        self._arrived.append((outcome, recorded))
        if self._timer is None:
            self._timer = loop.call_later(_TOGETHER_SECONDS, self._flush)
        self._look()
        return recorded

    def leave(self) -> None:
        """A holder records nothing more."""
        self._under_way -= 1
        self._look()

    def _look(self) -> None:
        if self._arrived and len(self._arrived) >= self._under_way:
            self._flush()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, arrived, self._arrived = None, self._arrived, []

        def tell(error: BaseException | None) -> None:
            for _, recorded in arrived:
                if recorded.done():  # its caller has gone
                    continue
                if error is not None:
                    recorded.set_exception(error)
                else:
                    recorded.set_result(None)

        try:
            written = self._write([outcome for outcome, _ in arrived])
        except NodeError as error:
            tell(error)
        else:
            written.add_done_callback(lambda done: tell(done.exception()))
