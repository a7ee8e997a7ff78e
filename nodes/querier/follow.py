"""Following holders: each tells on a stream what its lists stand at, and copies are brought up when that changes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from lianfang.v1 import sync_pb2

from .. import limits
from ..errors import NodeError
from ..identity.members import Member, MemberBook
from .peers import Peer, Peers
from .sync import Synced, Syncer

_log = logging.getLogger("lianfang.follow")
_RETRY = (0.5, 15.0)  # seconds before a stream that broke is opened again: first, at most
_OLD_PEER = 300.0  # seconds before a member that knows no such stream is tried again
_LOOK_SECONDS = 1.0  # after which a changed member list is noticed


@dataclass(frozen=True)
class Heard:
    """What a holder said last: newest (epoch, batch) of each list that it offers this node."""

    at: float  # seconds since 1970
    lists: dict[str, tuple[int, int]]


class Follower:
    """One per node."""

    def __init__(
        self,
        own: str,
        peers: Peers,
        book: MemberBook,
        syncer: Syncer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own, self._peers, self._book, self._syncer, self._clock = own, peers, book, syncer, clock
        self._heard: dict[str, Heard] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def heard(self, holder: str) -> Heard | None:
        """The holder's last word, if it is no older than `limits.HEARD_SECONDS`."""
        found = self._heard.get(holder)
        return found if found and self._clock() - found.at <= limits.HEARD_SECONDS else None

    def confirms(self, copy: Synced) -> bool:
        """Whether the copy is the holder's newest, by its own word within the last minute."""
        heard = self.heard(copy.holder)
        if heard is not None:
            return heard.lists.get(copy.list) == (copy.epoch, copy.batch)
        return self._clock() - copy.checked_at <= limits.HEARD_SECONDS

    def as_of(self, copy: Synced) -> float:
        """When the holder last said that the copy is its newest, in seconds since 1970."""
        found = self._heard.get(copy.holder)
        same = found is not None and found.lists.get(copy.list) == (copy.epoch, copy.batch)
        return max(copy.checked_at, found.at if found is not None and same else 0.0)

    async def run(self) -> None:
        """Follow everybody for ever."""
        members = None
        try:
            while True:
                if self._book.current is not members:
                    newer, members = members is not None, self._book.current
                    self._adapt()
                    if newer:  # a renewal or a revocation: whoever has not heard of it asks for the list
                        await asyncio.gather(*map(self._tell, self._peers.others(self._own)))
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()

    def _adapt(self) -> None:
        others = {member.id: member for member in self._peers.others(self._own)}
        for gone in set(self._tasks) - set(others):
            self._tasks.pop(gone).cancel()
            self._heard.pop(gone, None)
        for member_id in set(others) - set(self._tasks):
            self._tasks[member_id] = asyncio.create_task(self._follow(member_id))

    async def _tell(self, member: Member) -> None:
        try:
            await self._syncer.info(member, limits.HEARTBEAT_SECONDS)
        except NodeError as error:
            _log.info("%s does not hear of the member list: %s", member.name.name, error)

    async def _follow(self, member_id: str) -> None:
        wait, most = _RETRY
        while True:
            try:
                member = self._book.current.get(member_id)
                await self._listen(member)
                wait = _RETRY[0]
            except (NodeError, grpc.aio.AioRpcError) as error:
                code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
                if code is grpc.StatusCode.UNIMPLEMENTED:
                    wait = _OLD_PEER
                _log.info("%s is not followed: %s", member_id, error if code is None else code.name)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                _log.info("the channel to %s was closed", member_id)  # its certificate changed, or our own
            except Exception:
                _log.exception("following %s failed", member_id)
            await asyncio.sleep(wait)
            wait = min(2 * wait, most)

    async def _listen(self, member: Member) -> None:
        call = await self._peers.introducing(member, self._opened, limits.HEARTBEAT_SECONDS)
        try:
            while True:
                async with asyncio.timeout(2.5 * limits.HEARTBEAT_SECONDS):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    return
                await self._take(member, response)
        except TimeoutError:
            _log.info("%s has not been heard for some time", member.name.name)
        finally:
            call.cancel()

    @staticmethod
    async def _opened(peer: Peer) -> Any:
        call = peer.sync.Follow(sync_pb2.FollowRequest())
        await call.wait_for_connection()
        return call

    async def _take(self, member: Member, response: sync_pb2.FollowResponse) -> None:
        lists = {each.list: (each.epoch, each.batch) for each in response.lists[: limits.LISTS_A_HOLDER]}
        self._heard[member.id] = Heard(self._clock(), lists)
        held = {copy.list: (copy.epoch, copy.batch) for copy in self._syncer.copies(member.id)}
        if held != lists or not self._syncer.contact(member.id):
            with contextlib.suppress(NodeError):  # a question says why, and the next word tries again
                await self._syncer.sync(member)
