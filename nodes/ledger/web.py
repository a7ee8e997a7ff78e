"""The log and the witness over HTTPS: C2SP tlog-tiles v0.1.0 for reading, tlog-witness v1.0.0 for cosigning.

    GET  /checkpoint                            the newest published head
    GET  /tile/<L>/<N>[.p/<W>]                  hashes; /tile/entries/… the leaves' data
    POST /add-checkpoint                        this node cosigns another member's head
    GET  /witness/<origin hash>/checkpoint      the newest head of a log that this node has cosigned
    GET  /mirror/<origin hash>/tile/entries/…   this node's copy of another member's log

uvicorn does not hand on the peer's certificate, so members are told from strangers at the handshake (`tls`).
"""

import asyncio
import collections
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from protocols.errors import DecodeError
from protocols.ledger import tiles, witnessing
from protocols.ledger.witnessing import Refusal

from ..config import Home
from ..errors import ConfigError, NodeError, NotFound, Refused
from ..identity.members import MemberBook
from . import tls
from .book import LogBook
from .mirrors import Mirrors
from .witness import Witness

_log = logging.getLogger("lianfang.ledger")
_CONNECTIONS, _CONNECTIONS_A_MEMBER = 1_024, 16
_GRACE_SECONDS = 1.0
_FIRST_SECONDS = 20.0  # within which a connection's first request is answered
_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH = {"Cache-Control": "no-store"}
_Handler = Callable[[Request], Awaitable[Response]]


class _Protocol(H11Protocol):
    """So many connections a member, and none that says nothing."""

    _open: ClassVar[collections.Counter[bytes]] = collections.Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls_object = transport.get_extra_info("ssl_object")
        certificate = tls_object.getpeercert(True) if tls_object is not None else None
        self._peer = hashlib.sha256(certificate or b"").digest()
        self._open[self._peer] += 1
        self._served = False
        self._deadline = asyncio.get_running_loop().call_later(_FIRST_SECONDS, self._silent)
        if self._open[self._peer] > _CONNECTIONS_A_MEMBER:
            transport.close()

    def _silent(self) -> None:
        if not self._served:
            self.transport.close()

    def on_response_complete(self) -> None:
        self._served = True
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._open[self._peer] -= 1
        if not self._open[self._peer]:
            del self._open[self._peer]
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """Signals are the node's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class LedgerWeb:
    """One per node, on the node's event loop; what touches the disk runs in threads."""

    def __init__(
        self, home: Home, book: MemberBook, log: LogBook, witness: Witness, mirrors: Mirrors
    ) -> None:
        self._home, self._book, self._log, self._witness, self._mirrors = home, book, log, witness, mirrors
        self._members = book.current
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    def app(self) -> Starlette:
        """The routes, for any server."""
        return Starlette(
            routes=[
                Route("/checkpoint", self._guarded(self._checkpoint)),
                Route("/tile/{path:path}", self._guarded(self._tile)),
                Route("/add-checkpoint", self._guarded(self._add), methods=["POST"]),
                Route("/witness/{origin}/checkpoint", self._guarded(self._cosigned)),
                Route("/mirror/{origin}/tile/{path:path}", self._guarded(self._mirrored)),
            ]
        )

    async def start(self) -> None:
        """Listen on `ledger.listen`; raises `ConfigError` where that fails."""
        address = self._home.config.ledger.listen
        host, _, port = address.rpartition(":")
        config = uvicorn.Config(
            self.app(),
            host=host,
            port=int(port),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=int(3 * self._log.settings.tick_seconds) + 5,
            timeout_graceful_shutdown=5,
            ssl_context_factory=lambda _config, _default: tls.for_members(self._book, self._home),
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._serve(self._server))
        while not self._server.started:
            if self._task.done():
                raise ConfigError(f"{self._home.file}: ledger.listen: cannot listen on {address}")
            await asyncio.sleep(0.01)

    @staticmethod
    async def _serve(server: _Server) -> None:
        with contextlib.suppress(SystemExit):  # uvicorn's way to say that the port is taken
            await server.serve()

    async def stop(self) -> None:
        """Let requests in flight end."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            done, _ = await asyncio.wait([self._task], timeout=_GRACE_SECONDS)
            if not done:  # idle connections: a peer that keeps one open would hold up the end
                for connection in list(self._server.server_state.connections):
                    connection.transport.abort()
                await self._task

    def _guarded(self, handler: _Handler) -> _Handler:
        async def guarded(request: Request) -> Response:
            if self._book.current is not self._members:
                # Connections were authorised by an older member list: all have to shake hands again.
                self._members = self._book.current
                if self._server is not None:
                    for connection in list(self._server.server_state.connections):
                        connection.shutdown()
                return _refuse(503, "the member list has changed; connect again")
            try:
                self._members.check_current()
                return await handler(request)
            except Refused as error:
                return _refuse(503, str(error))
            except NotFound as error:
                return _refuse(404, str(error))
            except NodeError:
                _log.exception("%s failed", request.url.path)
                return _refuse(500, "this node failed; see its log")

        return guarded

    async def _checkpoint(self, _request: Request) -> Response:
        published = self._log.published
        if published is None or not self._log.ready:
            return _refuse(404, "no head is published yet")
        text = bytes(published.head.note)
        return Response(text, media_type="text/plain; charset=utf-8", headers=_FRESH)

    async def _tile(self, request: Request) -> Response:
        try:
            level, number, width = tiles.parse_path("tile/" + request.path_params["path"])
        except DecodeError as error:
            return _refuse(404, str(error))
        content = await asyncio.to_thread(self._log.tile, level, number, width)
        return Response(content, media_type="application/octet-stream", headers=_IMMUTABLE)

    async def _add(self, request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > witnessing.MAX_BODY:
                return _refuse(400, "the request is too long")
        try:
            signature = await asyncio.to_thread(self._witness.add, bytes(body))
        except Refusal as refusal:
            if refusal.size is not None:
                # Set by hand: given as a media type it would get a charset, which the protocol does not have.
                headers = {"Content-Type": witnessing.SIZE_TYPE}
                return Response(f"{refusal.size}\n", refusal.status, headers)
            return _refuse(refusal.status, str(refusal))
        return PlainTextResponse(str(signature), headers=_FRESH)

    async def _cosigned(self, request: Request) -> Response:
        note = await asyncio.to_thread(self._witness.newest, request.path_params["origin"])
        if note is None:
            return _refuse(404, "no head of that log was cosigned here")
        return Response(note, media_type="text/plain; charset=utf-8", headers=_FRESH)

    async def _mirrored(self, request: Request) -> Response:
        try:
            level, number, width = tiles.parse_path("tile/" + request.path_params["path"])
        except DecodeError as error:
            return _refuse(404, str(error))
        content = await asyncio.to_thread(
            self._mirrors.tile, request.path_params["origin"], level, number, width
        )
        return Response(content, media_type="application/octet-stream", headers=_IMMUTABLE)


def _refuse(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status, headers=_FRESH)
