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

    @abstractmethod
    def leave(self, entered: Any) -> None:
        """The call is over."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.request_streaming and handler.response_streaming:
            kind, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        elif handler.response_streaming:
            kind, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            kind, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
        wrap = self._stream if handler.response_streaming else self._unary
        return make(wrap(details.method, kind), handler.request_deserializer, handler.response_serializer)

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
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            entered = await self._enter(method, context)
            try:
                return await handler(request, context)
            finally:
                self._leave(entered)

        return guarded

    def _stream(
        self, method: str, handler: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            entered = await self._enter(method, context)
            try:
                async for response in handler(request, context):
                    yield response
            finally:
                self._leave(entered)

        return guarded

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
