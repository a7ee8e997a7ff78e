"""The aggregation service: a room per job, where each party's stream meets the coordinator's state machine.

It belongs to the coordinator's node. Who calls is told by `identify`; which jobs have a room by `find`. A party's messages
are handled in order, those of a room by one worker thread, never on the event loop.
"""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from lianfang.v1 import sums_pb2 as pb
from lianfang.v1 import sums_pb2_grpc

from protocols.sums.coordinator import Coordinator, Sending
from protocols.sums.errors import SumAborted
from protocols.sums.job import Job

_log = logging.getLogger("lianfang.aggregation")
_TICK = 0.5  # seconds between two looks at who is late
_KEPT = 3600.0  # seconds for which an ended room still says why it ended
_ROOMS = 64  # at once


@dataclass(frozen=True)
class Patience:
    """Seconds before the coordinator goes on without a party, or ends the job."""

    entry: float = 180.0  # for all to come
    lost: float = 30.0  # for a broken stream to be taken up again
    answer: float = 120.0  # for a message of a phase that needs no computing
    compute: float = 1800.0  # for a contribution


_Stream = asyncio.Queue[pb.SumToMember | None]


class Room:
    """One job under way."""

    def __init__(self, job: Job, patience: Patience) -> None:
        self._coordinator = Coordinator(job)
        self._patience = patience
        self._streams: dict[str, _Stream] = {}
        self._worker = ThreadPoolExecutor(1, "room")
        self._lock = asyncio.Lock()
        self._waiting: tuple[str, int, tuple[str, ...]] = ("", 0, ())
        self._since = time.monotonic()
        self._lost: dict[str, float] = {}
        self._steps: set[asyncio.Task[None]] = set()
        self.ended_at: float | None = None
        self.outcome = ""
        self._task = asyncio.create_task(self._tend())

    def status(self) -> dict[str, Any]:
        """Phase, number of sums, and who is waited for: nothing of what is summed."""
        coordinator = self._coordinator
        return {
            "phase": self.outcome or coordinator.phase,
            "sums": coordinator.sums,
            "members": len(coordinator.members),
            "waiting_for": [] if self.outcome else coordinator.waiting_for(),
        }

    async def _apply(
        self, action: Callable[[], Sending], entering: "tuple[str, _Stream] | None" = None
    ) -> None:
        """Run one step of the state machine and send what it says, whole even where the caller goes away."""
        await asyncio.shield(self._begin(self._step(action, entering)))

    def _begin(self, step: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(step)
        self._steps.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, step: asyncio.Task[None]) -> None:
        self._steps.discard(step)
        if not step.cancelled():
            step.exception()  # `SumAborted`, of which everybody was told

    async def _step(self, action: Callable[[], Sending], entering: "tuple[str, _Stream] | None") -> None:
        async with self._lock:
            if self.outcome:
                raise SumAborted("end", "", self.outcome)
            try:
                sending = await asyncio.get_running_loop().run_in_executor(self._worker, action)
            except SumAborted as error:
                if entering is not None:
                    self._register(*entering)
                self._end(str(error), self._coordinator.farewell(error))
                raise
            if entering is not None:  # what it hears begins with the answer to its entry
                self._register(*entering)
            self._send(sending)
            if self._coordinator.finished:
                self._end("finished", [])

    def _register(self, party: str, stream: "_Stream") -> None:
        before = self._streams.get(party)
        if before is not None:
            before.put_nowait(None)  # a newer stream of the same party takes over
        self._streams[party] = stream
        self._lost.pop(party, None)

    def _send(self, sending: Sending) -> None:
        for party, message in sending:
            stream = self._streams.get(party)
            if stream is not None:
                stream.put_nowait(message)

    def _end(self, outcome: str, sending: Sending) -> None:
        _log.info("job ended: %s", outcome)
        self.outcome, self.ended_at = outcome, time.monotonic()
        self._send(sending)
        for stream in self._streams.values():
            stream.put_nowait(None)
        self._worker.shutdown(wait=False)

    async def join(
        self, party: str, opened: int, requests: AsyncIterator[pb.SumFromMember]
    ) -> AsyncIterator[pb.SumToMember]:
        """One party's stream, from its entry to its end."""
        stream: _Stream = asyncio.Queue()
        reader: asyncio.Task[None] | None = None
        try:
            await self._apply(lambda: self._coordinator.enter(party, opened), (party, stream))
            reader = asyncio.create_task(self._read(party, stream, requests))
            while (message := await stream.get()) is not None:
                yield message
        except SumAborted as error:
            abort = pb.SumAbort(phase=error.phase, party=error.party, reason=error.reason)
            yield pb.SumToMember(abort=abort)
        finally:
            if reader is not None:
                reader.cancel()
            if self._streams.get(party) is stream:
                del self._streams[party]
                if not self.outcome:
                    self._lost[party] = time.monotonic()
                    self._begin(self._step(lambda: self._lose(party), None))

    async def _read(
        self,
        party: str,
        stream: "_Stream",
        requests: AsyncIterator[pb.SumFromMember],
    ) -> None:
        try:
            async for message in requests:
                if self._streams.get(party) is not stream:
                    return
                await self._apply(functools.partial(self._coordinator.receive, party, message))
        except SumAborted:
            return  # everyone was told by `_end`
        except grpc.aio.AioRpcError:
            pass
        finally:
            stream.put_nowait(None)

    def _stands(self) -> tuple[str, int, tuple[str, ...]]:
        coordinator = self._coordinator
        return coordinator.phase, coordinator.sums, tuple(coordinator.waiting_for())

    async def _tend(self) -> None:
        while not self.outcome:
            await asyncio.sleep(_TICK)
            async with self._lock:  # nothing moves while it is looked at
                now = self._stands()
            if now != self._waiting:
                self._waiting, self._since = now, time.monotonic()
            phase, _, waiting = now
            long_ago = time.monotonic() - self._patience.lost
            gone = {party for party, at in self._lost.items() if party in waiting and at < long_ago}
            # Between sums somebody has to be there who goes on; else all that others wanted is done.
            needed = phase != "entry" and (
                phase != "between sums" or any(p not in self._lost for p in waiting)
            )
            late = time.monotonic() - self._since > self._limit(phase)
            if late or (needed and gone):
                self._since = time.monotonic()
                # Who is lost stays lost: what went on without it ends where it is needed again.
                try:
                    await self._apply(functools.partial(self._give_up, now, set() if late else gone))
                except SumAborted as error:
                    _log.warning("job ended: %s", error)

    def _give_up(self, judged: tuple[str, int, tuple[str, ...]], gone: set[str]) -> Sending:
        # What was missing, or who, may have come meanwhile.
        return self._coordinator.give_up() if self._stands() == judged and gone <= self._lost.keys() else []

    def _lose(self, party: str) -> Sending:
        if party not in self._streams:  # it may have come back meanwhile
            self._coordinator.lost(party)
        return []

    def _limit(self, phase: str) -> float:
        if phase == "entry":
            return self._patience.entry
        return self._patience.compute if phase in ("upload", "between sums") else self._patience.answer

    async def close(self, why: str) -> None:
        """End the room, telling everybody."""
        self._task.cancel()
        if not self.outcome:
            async with self._lock:
                self._end(why, self._coordinator.farewell(SumAborted(self._coordinator.phase, "", why)))


Find = Callable[[bytes, str], Awaitable[Job]]
Identify = Callable[[Any], str]


class SecureSumService(sums_pb2_grpc.SecureSumServicer):
    """`find(job hash, party)` returns a job or raises; what it raises is the caller's to turn into a status."""

    def __init__(self, identify: Identify, find: Find, patience: Patience = Patience()) -> None:
        self._identify, self._find, self._patience = identify, find, patience
        self._rooms: dict[bytes, Room] = {}
        self._called_off: dict[bytes, tuple[str, float]] = {}  # launches that failed: why, and when

    def status(self) -> dict[str, dict[str, Any]]:
        """Rooms by job hash, in hexadecimal."""
        return {job.hex(): room.status() for job, room in self._rooms.items()}

    async def Join(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.SumToMember]:
        """One party's stream."""
        party = self._identify(context)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("step") != "enter" or len(first.enter.job) != 32:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message names the job")
            return
        job = await self._find(first.enter.job, party)
        if (called_off := self._called_off.get(first.enter.job)) is not None:
            yield pb.SumToMember(abort=pb.SumAbort(phase="entry", reason=called_off[0]))
            return
        room = self._room(job, first.enter)
        if room is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many jobs are under way here")
            return
        async for message in room.join(party, first.enter.opened, request_iterator):
            yield message

    def _room(self, job: Job, enter: pb.SumEnter) -> Room | None:
        self._forget()
        room = self._rooms.get(enter.job)
        if room is not None and room.outcome and enter.opened == 0:
            # The same job is launched again: its first party opens a new room.
            del self._rooms[enter.job]
            room = None
        if room is None:
            if sum(not each.outcome for each in self._rooms.values()) >= _ROOMS:
                return None
            room = self._rooms[enter.job] = Room(job, self._patience)
        return room

    def _forget(self) -> None:
        now = time.monotonic()
        for key, room in list(self._rooms.items()):
            if room.ended_at is not None and now - room.ended_at > _KEPT:
                del self._rooms[key]
        for key, (_, at) in list(self._called_off.items()):
            if now - at > _KEPT:
                del self._called_off[key]

    def launch(self, job: bytes) -> None:
        """A job begins, perhaps once more: its parties may come."""
        self._called_off.pop(job, None)

    async def call_off(self, job: bytes, why: str) -> None:
        """End a job's room, and turn away who comes to it later, until it is launched again."""
        self._called_off[job] = (why, time.monotonic())
        room = self._rooms.get(job)
        if room is not None:
            await room.close(why)

    async def close(self) -> None:
        """End every room."""
        for room in self._rooms.values():
            await room.close("the coordinator's node stops")
