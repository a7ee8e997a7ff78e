"""What every service does at its edge: who is calling, errors as statuses, messages captured where asked."""

import base64
import functools
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import grpc
from cryptography import x509
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health

from protocols.errors import ProtocolError

from .. import limits
from ..errors import ConfigError, NodeError, Refused, StorageError
from ..identity.keys import NodeKeys
from ..identity.members import Member, MemberBook, MemberList
from ..identity.own import Identity

REASON = "lianfang-reason"
_log = logging.getLogger("lianfang.wire")
_S = TypeVar("_S")
_R = TypeVar("_R")
_P = ParamSpec("_P")

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16_384),
    ("grpc.keepalive_time_ms", int(limits.KEEPALIVE.total_seconds() * 1000)),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_ADMIN_BYTES = 1 << 26  # the node's own people send a whole question at once
ADMIN_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", _ADMIN_BYTES),
    ("grpc.max_send_message_length", _ADMIN_BYTES),
]
CLIENT_OPTIONS = [
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
SERVER_OPTIONS = [
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]


def secured(member: Member, own: Identity) -> tuple[str, grpc.ChannelCredentials, list[tuple[str, Any]]]:
    """Target, credentials and options of a channel that trusts exactly the certificates bound to a member."""
    credentials = grpc.ssl_channel_credentials(member.trusted_pem(), own.key, own.certificate)
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", member.name.dns)]
    return member.endpoint, credentials, options


class _Details(NamedTuple):
    """`grpc.ClientCallDetails`, which has no constructor."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class TokenUnread(grpc.RpcError):
    """The token that a call was to show cannot be read: the call was not made."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self._error = error

    def code(self) -> grpc.StatusCode:
        """As of a node that is not there."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Which file, and why."""
        return str(self._error)

    def trailing_metadata(self) -> tuple[Any, ...]:
        """None."""
        return ()


class _Shown(  # a plugin for call credentials would do the same, in a thread that each call waits for
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Shows a token with each call."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def _show(self, continuation: Any, details: Any, request: Any) -> Any:
        try:
            token = self._token()
        except OSError as error:
            raise TokenUnread(error) from error
        shown = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]
        fields = {name: getattr(details, name, None) for name in _Details._fields}
        return continuation(_Details(**fields | {"metadata": shown}), request)

    intercept_unary_unary = intercept_unary_stream = _show  # type: ignore[assignment]
    intercept_stream_unary = intercept_stream_stream = _show  # type: ignore[assignment]


def admin_channel(socket: Path, token: Callable[[], str] = str) -> grpc.Channel:
    """A blocking channel to a node's own admin socket; `token` is asked before each call for who makes it."""
    local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    return grpc.intercept_channel(grpc.secure_channel(f"unix:{socket}", local, ADMIN_OPTIONS), _Shown(token))


def sync_channel(member: Member, keys: NodeKeys, certificate: bytes) -> grpc.Channel:
    """A blocking channel to a member."""
    return grpc.secure_channel(*secured(member, Identity(keys.tls_pem(), certificate)))


class Capture:
    """Every wire message as sent, one JSON line each: for the demonstration and for transcript tests."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", encoding="ascii") if path else None
        if path is not None:
            path.chmod(0o600)
        self._lock = threading.Lock()
        self._written = 0

    def record(self, side: str, method: str, peer: str, message: Message) -> None:
        """`side` is who sent it: `in` (the peer) or `out` (this node)."""
        if self._file is None or self._written > limits.CAPTURE_BYTES:
            return
        line = json.dumps(
            {
                "at": time.time(),
                "side": side,
                "method": method,
                "peer": peer,
                "message": message.DESCRIPTOR.name,
                "bytes": base64.b64encode(message.SerializeToString()).decode(),
            }
        )
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()
            self._written += len(line)


_RECHECK = 10.0  # seconds for which a certificate that was good stays so, under the same member list


class Authenticator:
    """From a call to the member that makes it."""

    def __init__(self, book: MemberBook) -> None:
        self._book = book
        self._known: dict[bytes, tuple[MemberList, float, Member]] = {}
        self._certificate = functools.lru_cache(maxsize=1024)(x509.load_pem_x509_certificate)

    def member(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Member:
        """Raise `Refused` unless the caller's certificate is one the member list binds, and is valid now."""
        chain = list(context.auth_context().get("x509_pem_cert", ()))
        if not chain:
            raise Refused("a client certificate is needed", "NO_CERTIFICATE", grpc.StatusCode.UNAUTHENTICATED)
        shown = bytes(chain[0])
        members, now = self._book.current, time.monotonic()
        known = self._known.get(shown)
        if known is not None and known[0] is members and now - known[1] < _RECHECK:
            return known[2]
        try:
            certificate = self._certificate(shown)
        except ValueError as error:
            raise Refused(
                "the client certificate cannot be read", "BAD_CERTIFICATE", grpc.StatusCode.UNAUTHENTICATED
            ) from error
        try:
            member = members.authenticate(certificate)
            if len(self._known) > 1_000:
                self._known.clear()
            self._known[shown] = (members, now, member)
            return member
        except Refused as error:
            raise Refused(str(error), error.reason, grpc.StatusCode.UNAUTHENTICATED) from error


class Health(health.aio.HealthServicer):
    """Health without `Watch`: a stream that never ends is an easy way to hold a node's calls."""

    async def Watch(self, request: Any, context: Any) -> None:
        """Not offered; ask `Check`."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "use Check")


def struct(document: dict[str, Any]) -> Struct:
    """Plain data as a message."""
    out = Struct()
    out.update(document)
    return out


def plain(text: str) -> str:
    """What another node said, without control characters that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)[:500]


def status_of(error: Exception, remote: bool = False) -> tuple[grpc.StatusCode, str, str]:
    """(status, reason, message) for an error: whose fault it was, and nothing secret."""
    if isinstance(error, StorageError | ConfigError) and remote:
        return error.status, error.reason, "this node's storage failed; try again later"
    if isinstance(error, NodeError):
        return error.status, error.reason, str(error)
    if isinstance(error, ProtocolError):
        return grpc.StatusCode.INVALID_ARGUMENT, "INVALID", str(error)
    return grpc.StatusCode.INTERNAL, "INTERNAL", f"this node failed ({type(error).__name__}); see its log"


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", method: str, error: Exception) -> None:
    """End the call with the error's status; for a peer without what only this node's people may read."""
    remote = bool(context.auth_context().get("x509_pem_cert"))
    status, reason, message = status_of(error, remote)
    if remote:
        message = plain(message)  # what a peer sent may be quoted in it
    if remote and isinstance(error, StorageError | ConfigError):
        _log.error("%s failed: %s", method, error)
    if status is grpc.StatusCode.INTERNAL:
        _log.error("%s failed", method, exc_info=error)
    else:
        _log.info("%s refused: %s: %s", method, reason, message)
    await context.abort(status, message, ((REASON, reason),))


_Context = Any
# Errors that a caller gets as a status; others (cancellation among them) are gRPC's to handle.
_ANSWERED = (NodeError, ProtocolError, OSError, ValueError, LookupError, TypeError, AttributeError)


def unary(
    handler: Callable[[_S, Any, _Context], Awaitable[_R]],
) -> Callable[[_S, Any, _Context], Awaitable[_R]]:
    """A unary handler whose errors become statuses."""

    @functools.wraps(handler)
    async def wrapped(self: _S, request: Any, context: _Context) -> _R:
        try:
            return await handler(self, request, context)
        except _ANSWERED as error:
            await abort(context, handler.__name__, error)
            raise AssertionError from error  # abort raises

    return wrapped


def streaming(
    handler: Callable[Concatenate[_S, _P], AsyncIterator[_R]],
) -> Callable[Concatenate[_S, _P], AsyncIterator[_R]]:
    """A handler that yields; errors become statuses."""

    @functools.wraps(handler)
    async def wrapped(self: _S, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[_R]:
        try:
            async for item in handler(self, *args, **kwargs):
                yield item
        except _ANSWERED as error:
            await abort(args[-1], handler.__name__, error)  # type: ignore[arg-type]

    return wrapped  # type: ignore[return-value]  # the same parameters, by name too


def reason_of(error: Any) -> str:
    """The stable reason in a refused call's trailers, or the status's name."""
    for key, value in error.trailing_metadata() or ():
        if key == REASON:
            return str(value)
    return str(error.code().name)
