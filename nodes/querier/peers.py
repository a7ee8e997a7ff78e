"""Channels to other members. Each trusts exactly the certificates that the member list binds to that member:
gRPC checks the DNS name, never the SPIFFE URI, so the pin is what tells one member from another."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from lianfang.v1 import (
    contract_pb2_grpc,
    learning_pb2_grpc,
    ledger_pb2_grpc,
    lookup_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    psi_pb2_grpc,
    sync_pb2_grpc,
    vertical_pb2_grpc,
)

from ..errors import NodeError, Refused
from ..identity.members import Member, MemberBook
from ..identity.own import Identity, OwnIdentity
from ..services import wire

_T = TypeVar("_T")
# Seconds within which gRPC tries again where it could not connect (`wire.CLIENT_OPTIONS`).
_NEXT_ATTEMPT = 2.5
# A member says so that has not heard of us, or of our newest certificate: it is shown the list that names us.
UNKNOWN_THERE = ("NOT_A_MEMBER", "UNBOUND_CERTIFICATE")


class PeerFailed(NodeError):
    """A call to another member failed; `outcome` is refused, timeout, unreachable or failed."""

    def __init__(self, outcome: str, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.outcome = outcome


def failed(member: Member, error: grpc.aio.AioRpcError) -> PeerFailed:
    """Say who failed and how, for a person."""
    name, code, reason = member.name.name, error.code(), wire.reason_of(error)
    details = wire.plain(error.details() or "")
    if reason != code.name:
        return PeerFailed("refused", f"{name}: {details}", reason)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerFailed("timeout", f"{name} did not answer in time", "TIMEOUT")
    if code is grpc.StatusCode.UNAVAILABLE:
        why = "its certificate is not the one the member list binds, or it refused ours"
        text = why if "handshake" in details.lower() or "ssl" in details.lower() else "it cannot be reached"
        return PeerFailed("unreachable", f"{name}: {text} ({member.endpoint})", "UNREACHABLE")
    return PeerFailed("failed", f"{name}: {code.name}: {details}", code.name)


class Peer:
    """The stubs of one member."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.info = node_pb2_grpc.NodeInfoStub(channel)
        self.sync = sync_pb2_grpc.ListSyncStub(channel)
        self.lookup = lookup_pb2_grpc.LookupStub(channel)
        self.learning = learning_pb2_grpc.LearningStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerStub(channel)
        self.contracts = contract_pb2_grpc.ContractsStub(channel)
        self.psi = psi_pb2_grpc.PsiStub(channel)
        self.vertical = vertical_pb2_grpc.VerticalStub(channel)


class Peers:
    """Opens a channel to a member when it is first needed and keeps it warm."""

    def __init__(self, book: MemberBook, identity: OwnIdentity) -> None:
        self._book, self._identity = book, identity
        self._open: dict[str, tuple[tuple[str, bytes, Identity], Peer]] = {}
        self._closing: set[asyncio.Future[None]] = set()

    def get(self, member: Member) -> Peer:
        """Raise `Refused` where the member's certificate has expired."""
        pin = (member.endpoint, member.trusted_pem(), self._identity.current)
        known = self._open.get(member.id)
        if known is not None and known[0] == pin:
            return known[1]
        channel = grpc.aio.secure_channel(*wire.secured(member, pin[2]))
        if known is not None:  # the member's address or certificate changed, or our own
            task = asyncio.ensure_future(known[1].channel.close(grace=5.0))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        peer = Peer(channel)
        self._open[member.id] = (pin, peer)
        return peer

    async def introducing(self, member: Member, call: Callable[[Peer], Awaitable[_T]], timeout: float) -> _T:
        """Make a call; where the member has not heard of us or of our new certificate, show it the list that names
        us, and call again. Raises `PeerFailed`.
        """
        peer = self.get(member)
        await self._tried_again(peer, timeout)
        try:
            try:
                return await call(peer)
            except grpc.aio.AioRpcError as error:
                if wire.reason_of(error) not in UNKNOWN_THERE:
                    raise
                introduction = node_pb2.IntroduceRequest(member_list=self._book.current.signed)
                await peer.info.Introduce(introduction, timeout=timeout)
                return await call(peer)
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error

    @staticmethod
    async def _tried_again(peer: Peer, timeout: float) -> None:
        """A member that was away when it was last tried may be back: a call would fail without another try."""
        away = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if peer.channel.get_state(try_to_connect=True) is away:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(timeout, _NEXT_ATTEMPT)):
                    await peer.channel.wait_for_state_change(away)

    def others(self, own_id: str) -> list[Member]:
        """All members but this node."""
        return [member for member in self._book.current if member.id != own_id]

    def find(self, text: str, own_id: str) -> Member:
        """A member by name; raises `NotFound`, or `Refused` for this node itself."""
        member = self._book.current.find(text)
        if member.id == own_id:
            raise Refused(f"{text} is this node itself", "SELF")
        return member

    async def close(self) -> None:
        """Close every channel."""
        for _, peer in self._open.values():
            await peer.channel.close()
        self._open.clear()
