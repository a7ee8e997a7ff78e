"""What stands before every handler of a port: who calls is known first, and a stopping node ends its calls well."""

import asyncio
import collections
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from .. import limits
from ..errors import NodeError, Refused
from . import wire

# Open to every certificate of the CA, member or not.
OPEN_METHODS = frozenset({"/lianfang.v1.NodeInfo/Introduce"})


class Interceptor(grpc.aio.ServerInterceptor, ABC):
    """Asks `enter` before each call and `leave` after it; counts the calls under way."""

    def __init__(self) -> None:
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._stopping = False

    @abstractmethod
    async def enter(self, method: str, context: Any) -> Any:
        """Let the call in, or raise a `NodeError`; what it returns is given to `leave`."""

    def patience(self, method: str) -> float:
        """Seconds from a call's headers to its message."""
        return limits.MESSAGE_SECONDS

    @abstractmethod
    def leave(self, entered: Any) -> None:
        """The call is over."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        # As streams, whatever they are on the caller's side: the bytes are the same, and a handler of a stream is called
        # when the headers are there, before a message is read.
        if handler.request_streaming:
            serve = self._stream(details.method, handler.stream_stream)
        elif handler.response_streaming:
            serve = self._told(details.method, handler.unary_stream)
        else:
            serve = self._unary(details.method, handler.unary_unary)
        return grpc.stream_stream_rpc_method_handler(
            serve, handler.request_deserializer, handler.response_serializer
        )

    async def _enter(self, method: str, context: Any) -> Any:
        try:
            if self._stopping:
                raise Refused("this node is stopping", "STOPPING", grpc.StatusCode.UNAVAILABLE)
            entered = await self.enter(method, context)
        except NodeError as error:
            await wire.abort(context, method.rpartition("/")[2], error)
            raise AssertionError from error  # abort raises
        self._under_way += 1
        self._quiet.clear()
        return entered

    def _leave(self, entered: Any) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()
        self.leave(entered)

    def _unary(
        self, method: str, handler: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(incoming: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            entered = await self._enter(method, context)
            try:
                yield await handler(await self._message(method, incoming, context), context)
            finally:
                self._leave(entered)

        return guarded

    def _told(
        self, method: str, handler: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(incoming: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            entered = await self._enter(method, context)
            try:
                async for response in handler(await self._message(method, incoming, context), context):
                    yield response
            finally:
                self._leave(entered)

        return guarded

    def _stream(
        self, method: str, handler: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(incoming: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            entered = await self._enter(method, context)
            try:
                async for response in handler(incoming, context):
                    yield response
            finally:
                self._leave(entered)

        return guarded

    async def _message(self, method: str, incoming: AsyncIterator[Any], context: Any) -> Any:
        """The one message of a call; who opens a call and sends none holds its place for so long only."""
        try:
            async with asyncio.timeout(self.patience(method)):
                return await anext(aiter(incoming))
        except (TimeoutError, StopAsyncIteration) as error:
            refusal = Refused("a call without a message", "NO_MESSAGE", grpc.StatusCode.DEADLINE_EXCEEDED)
            await wire.abort(context, method.rpartition("/")[2], refusal)
            raise AssertionError from error  # abort raises

    async def drain(self, seconds: float) -> None:
        """Refuse new calls and wait for those under way, at most so long.

        gRPC closes a connection as soon as its last answer is written; what the peer sends meanwhile would make the
        system reset the connection, and the answer be lost on its way. So it stays open for a moment.
        """
        self._stopping = True
        if not self._under_way:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)
        await asyncio.sleep(limits.LINGER.total_seconds())


class MembersOnly(Interceptor):
    """Every method of the peer port, health and reflection too, is for members, each with so many calls at once."""

    def __init__(self, authenticator: wire.Authenticator) -> None:
        super().__init__()
        self._authenticator = authenticator
        self._calls: collections.Counter[str] = collections.Counter()

    async def enter(self, method: str, context: Any) -> str:
        """The caller's id; empty for a stranger who introduces itself."""
        member_id, most = "", limits.STRANGERS
        if method not in OPEN_METHODS:
            member_id, most = self._authenticator.member(context).id, limits.CONCURRENT_CALLS_A_MEMBER
        if self._calls[member_id] >= most:
            whose = "of yours " if member_id else ""
            raise Refused(
                f"{most} calls {whose}are under way; try later", "BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED
            )
        self._calls[member_id] += 1
        return member_id

    def leave(self, entered: str) -> None:
        """One call fewer."""
        self._calls[entered] -= 1
        if not self._calls[entered]:
            del self._calls[entered]
