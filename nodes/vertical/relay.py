"""The relay between a label holder's call and this node's learning process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc
from lianfang.v1 import vertical_pb2 as pb

from federation.vertical.links import FRAME

from ..errors import Refused, invalid

_T = TypeVar("_T")
_AHEAD = 4  # frames on their way through the relay, each way
_LOOK = 64  # frames between two looks at the contract
_Frames = asyncio.Queue[pb.VerticalFrame | None]


class _Attendance:
    """A learning process that waits for the label holder, or works with it."""

    def __init__(self) -> None:
        self.inward: _Frames = asyncio.Queue(_AHEAD)
        self.outward: _Frames = asyncio.Queue(_AHEAD)
        self.taken = asyncio.Event()
        self.over = asyncio.Event()


class Relay:
    """Brings the two together, one run of a job at a time."""

    def __init__(self, patience: float, silence: float) -> None:
        """Seconds to wait for the other one, and between two frames."""
        self._patience, self._silence = patience, silence
        self._waiting: dict[bytes, _Attendance] = {}
        self._running: set[_Attendance] = set()
        self._closed = False
        self._came = asyncio.Condition()

    def close(self) -> None:
        """End all runs: the node is stopping."""
        self._closed = True
        for each in self._running:
            each.over.set()

    async def attend(
        self, job: bytes, incoming: AsyncIterator[pb.VerticalFrame]
    ) -> AsyncGenerator[pb.VerticalFrame, None]:
        """The learning process's side: yields what the label holder sends."""
        here = _Attendance()
        async with self._came:
            if self._closed:
                raise Refused("this node is stopping", "STOPPING", grpc.StatusCode.UNAVAILABLE)
            if job in self._waiting:
                raise Refused("this job is attended already", "BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED)
            self._waiting[job] = here
            self._running.add(here)
            self._came.notify_all()
        pump = asyncio.create_task(_pump(incoming, here.outward, here.over))
        try:
            await self._or_over(here, here.taken.wait(), self._patience, "the label holder did not come")
            while frame := await self._or_over(
                here, here.inward.get(), self._silence, "the label holder is silent"
            ):
                yield frame
        finally:
            here.over.set()
            self._waiting.pop(job, None)
            self._running.discard(here)
            pump.cancel()

    async def work(
        self, job: bytes, incoming: AsyncIterator[pb.VerticalFrame], check: Callable[[], None]
    ) -> AsyncGenerator[pb.VerticalFrame, None]:
        """The label holder's side: yields what the learning process answers. `check` raises where the contract has ended."""
        here = await self._find(job)
        here.taken.set()

        async def checked() -> AsyncIterator[pb.VerticalFrame]:
            number = 0
            async for frame in incoming:
                if number % _LOOK == 0:
                    check()
                number += 1
                if frame.WhichOneof("part") == "enter" or len(frame.data) > FRAME:
                    raise invalid("a frame that is no part of a message")
                yield frame

        pump = asyncio.create_task(_pump(checked(), here.inward, here.over))
        try:
            while frame := await self._or_over(
                here, here.outward.get(), self._silence, "this side is silent"
            ):
                yield frame
            if pump.done() and not pump.cancelled() and (error := pump.exception()) is not None:
                raise error
        finally:
            here.over.set()
            pump.cancel()

    async def _find(self, job: bytes) -> _Attendance:
        try:
            async with asyncio.timeout(self._patience), self._came:
                await self._came.wait_for(
                    lambda: job in self._waiting and not self._waiting[job].taken.is_set()
                )
                return self._waiting[job]
        except TimeoutError as error:
            raise Refused(
                "this node's learning process did not take its seat", "NO_SEAT", grpc.StatusCode.UNAVAILABLE
            ) from error

    @staticmethod
    async def _or_over(here: _Attendance, what: Awaitable[_T], seconds: float, why: str) -> _T | None:
        """What comes, or `None` once the other side is gone and nothing is left. Raises `Refused` after too long."""
        wanted, over = asyncio.ensure_future(what), asyncio.ensure_future(here.over.wait())
        try:
            await asyncio.wait({wanted, over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            if over.done():
                return None
            raise Refused(why, "SILENT", grpc.StatusCode.DEADLINE_EXCEEDED)
        finally:
            wanted.cancel()
            over.cancel()


async def _pump(incoming: AsyncIterator[pb.VerticalFrame], to: _Frames, over: asyncio.Event) -> None:
    """Until its sender has said everything."""
    try:
        async for frame in incoming:
            await to.put(frame)
        await to.put(None)
    except BaseException:
        over.set()
        raise
