"""ListSync: sealed batches to who may have them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from lianfang.v1 import common_pb2 as common
from lianfang.v1 import sync_pb2 as pb
from lianfang.v1 import sync_pb2_grpc

from protocols import sealed
from protocols.encoding import frame
from protocols.statement import LIST_NAME

from .. import gate as gates
from .. import limits
from ..errors import Refused, StorageError, invalid
from ..gate import Ask, Gate
from ..holder.epochs import Epochs
from ..holder.lists import ListStore
from ..identity.members import Member
from ..ledger.book import LogBook
from . import wire

_DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


class ListSyncService(sync_pb2_grpc.ListSyncServicer):
    """Streams batches; holds no transaction while it does. Tells who follows when there is something new."""

    def __init__(
        self,
        authenticator: wire.Authenticator,
        store: ListStore,
        epochs: Epochs,
        gate: Gate,
        capture: wire.Capture,
        log: LogBook,
    ) -> None:
        self._store, self._epochs, self._gate, self._capture = store, epochs, gate, capture
        self._authenticator = authenticator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._following: dict[str, asyncio.Event] = {}
        self._stopping = False
        log.on_published(self._wake)

    def _wake(self) -> None:
        """Something new stands in the log. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for event in self._following.values():
            event.set()

    def stop(self) -> None:
        """End all streams, so that nothing waits for them."""
        self._stopping = True
        self._wake_all()

    @wire.streaming
    async def Follow(self, request: pb.FollowRequest, context: Any) -> AsyncIterator[pb.FollowResponse]:
        """See sync.proto. A member's newer stream ends its older one."""
        member_id = self._authenticator.member(context).id
        self._loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        if (older := self._following.get(member_id)) is not None:
            older.set()
        self._following[member_id] = woken
        try:
            while not self._stopping and self._following.get(member_id) is woken:
                member = self._authenticator.member(context)  # raises for one that was revoked meanwhile
                woken.clear()
                response = pb.FollowResponse(lists=await asyncio.to_thread(self._states, member))
                self._capture.record("out", "Follow", member_id, response)
                yield response
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), limits.HEARTBEAT_SECONDS)
        finally:
            if self._following.get(member_id) is woken:
                del self._following[member_id]

    def _states(self, member: Member) -> list[pb.ListState]:
        found = []
        for name in self._store.names():
            if not self._gate.purposes(member, name):
                continue
            for epoch in reversed(self._epochs.answering(name)):
                if (batch := self._epochs.head(name, epoch.number)) and self._epochs.is_published(
                    epoch.opened
                ):
                    found.append(pb.ListState(list=name, epoch=epoch.number, batch=batch))
                    break
        return found

    @wire.streaming
    async def Pull(self, request: pb.PullRequest, context: Any) -> AsyncIterator[pb.PullResponse]:
        """See sync.proto."""
        member = self._authenticator.member(context)
        self._capture.record("in", "Pull", member.id, request)
        if request.suite != common.SUITE_RISTRETTO255_SHA512:
            raise invalid(f"suite {request.suite} is not known here")
        if len(request.pull_id) != 16 or request.from_batch < 1:
            raise invalid("a pull has a 16-byte id and starts at batch 1 or later")
        if not LIST_NAME.fullmatch(request.list):
            raise invalid("not a list name")
        ask = Ask(
            member,
            gates.SYNC,
            request.list,
            request.epoch,
            0,
            request.pull_id,
            frame(request.list, request.epoch, request.from_batch, request.from_offset),
            check=lambda: self._epochs.key(request.list, request.epoch),
        )
        await self._gate.decide(ask)
        end = time.monotonic() + limits.PULL_SECONDS
        batches = await asyncio.to_thread(self._epochs.published, request.list, request.epoch)
        for batch in batches[request.from_batch - 1 :]:
            response = pb.PullResponse(descriptor=batch.descriptor)
            self._capture.record("out", "Pull", member.id, response)
            yield response
            path = self._epochs.batch_path(request.list, request.epoch, batch.number)
            size = sealed.content_length(batch.additions, batch.removals)
            offset = request.from_offset if batch.number == request.from_batch else 0
            if offset > size:
                raise invalid(f"batch {batch.number} has {size} bytes, not {offset}")
            while offset < size:
                # Who is revoked meanwhile gets no more, nor does one whose contract has ended.
                self._gate.check_pull(self._authenticator.member(context), request.list)
                if time.monotonic() > end:
                    raise Refused("the pull took too long; take it up again", "TIMEOUT", _DEADLINE)
                content = await asyncio.to_thread(_read, path, offset, limits.SYNC_CHUNK)
                if not content:
                    raise StorageError(f"{path} is shorter than batch {batch.number}'s descriptor says")
                response = pb.PullResponse(content=content)
                self._capture.record("out", "Pull", member.id, response)
                yield response
                offset += len(content)
