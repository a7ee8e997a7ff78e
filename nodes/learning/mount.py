"""Puts the desk's services, and at a coordinator the rooms of secure sums, on a node's servers."""

import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from lianfang.v1 import (
    learning_pb2,
    learning_pb2_grpc,
    sums_pb2,
    sums_pb2_grpc,
    vertical_pb2,
    vertical_pb2_grpc,
)

from federation.aggregation import Patience, SecureSumService

from ..contracts.book import JOB
from ..services import wire
from .desk import Desk
from .releases import Releases
from .service import LearningAdminService, LearningService

if TYPE_CHECKING:
    from ..node import Node
    from ..vertical.service import Vertical


def _name(module: Any, service: str) -> str:
    return str(module.DESCRIPTOR.services_by_name[service].full_name)


class _Rooms(SecureSumService):
    """With refusals as statuses."""

    @wire.streaming
    async def Join(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        """One party's stream."""
        async for message in super().Join(request_iterator, context):
            yield message


class Mount:
    """One per node that learns."""

    def __init__(self, node: "Node", authenticator: wire.Authenticator, coordinates: bool) -> None:
        releases = Releases(node.home.data / "releases", node.keys.vault)
        self.desk = Desk(node.database, node.gate, node.contracts, node.book, node.home, node.log, releases)
        self._authenticator = authenticator
        self._vertical: Vertical | None = None
        if not coordinates and importlib.util.find_spec("phe") is not None:
            from ..vertical import service

            self._vertical = service.Vertical(node, self.desk)
            self.desk.check_vertical(self._vertical.check)
        node.contracts.check_before_signing(JOB, self.desk.check_terms)
        settings = node.home.config.learn
        self._rooms: SecureSumService | None = None
        self._peer: LearningService | None = None

        def identify(context: Any) -> str:
            return authenticator.member(context).id

        if coordinates:
            self._peer = LearningService(authenticator, self.desk, node.home)
            patience = Patience(
                settings.entry_seconds,
                settings.lost_seconds,
                settings.answer_seconds,
                settings.compute_seconds,
            )
            self._rooms = _Rooms(identify, self._peer.find, patience)
        self._admin = LearningAdminService(
            self.desk, node.peers, node.lists, node.home, node.actions, self._rooms
        )

    def add_to(self, server: grpc.aio.Server, admin: grpc.aio.Server) -> None:
        """Register everything; before the servers start."""
        learning_pb2_grpc.add_LearningAdminServicer_to_server(self._admin, admin)
        if self._peer is not None and self._rooms is not None:
            learning_pb2_grpc.add_LearningServicer_to_server(self._peer, server)
            sums_pb2_grpc.add_SecureSumServicer_to_server(self._rooms, server)
        if self._vertical is not None:
            from ..vertical.service import VerticalAdminService, VerticalService

            vertical_pb2_grpc.add_VerticalServicer_to_server(
                VerticalService(self._authenticator, self._vertical), server
            )
            vertical_pb2_grpc.add_VerticalAdminServicer_to_server(VerticalAdminService(self._vertical), admin)

    @property
    def peer_services(self) -> list[str]:
        """Full names of the services on the peer port, for health and reflection."""
        found = []
        if self._peer is not None and self._rooms is not None:
            found += [_name(learning_pb2, "Learning"), _name(sums_pb2, "SecureSum")]
        if self._vertical is not None:
            found.append(_name(vertical_pb2, "Vertical"))
        return found

    @property
    def admin_services(self) -> list[str]:
        """Those on the socket."""
        vertical = [_name(vertical_pb2, "VerticalAdmin")] if self._vertical is not None else []
        return [_name(learning_pb2, "LearningAdmin"), *vertical]

    async def close(self) -> None:
        """End every room, telling its parties, and every vertical run."""
        if self._vertical is not None:
            self._vertical.relay.close()
        if self._rooms is not None:
            await self._rooms.close()
