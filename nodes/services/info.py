"""NodeInfo: who this node is and which lists the caller may use."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from typing import Any

from lianfang.v1 import common_pb2 as common
from lianfang.v1 import node_pb2 as pb
from lianfang.v1 import node_pb2_grpc

from .. import limits
from ..errors import ConfigError, invalid
from ..gate import Gate
from ..holder.epochs import Epochs
from ..holder.lists import ListStore
from ..identity.institutions import Institutions
from ..identity.members import Member, MemberBook
from ..identity.names import MemberName
from . import wire

_CLOSED_SHOWN = 12  # closed epochs whose end is still told


class NodeInfoService(node_pb2_grpc.NodeInfoServicer):
    """Open to every member; lists and budgets appear only where policy gives the caller a use of them."""

    def __init__(
        self,
        name: MemberName,
        book: MemberBook,
        authenticator: wire.Authenticator,
        store: ListStore,
        epochs: Epochs,
        gate: Gate,
        capture: wire.Capture,
        on_newer_list: Callable[[], None],
        institutions: Institutions,
    ) -> None:
        self._institutions = institutions
        self._on_newer_list = on_newer_list
        self._name, self._book, self._store, self._epochs, self._gate = name, book, store, epochs, gate
        self._capture = capture
        self._authenticator = authenticator

    @wire.unary
    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.GetInfoResponse:
        """See node.proto."""
        member = self._authenticator.member(context)
        self._capture.record("in", "GetInfo", member.id, request)
        if request.member_list_version > self._book.current.version:
            self._on_newer_list()  # the caller knows of a change that we do not
        response = await asyncio.to_thread(self._answer, request, member)
        self._capture.record("out", "GetInfo", member.id, response)
        return response

    @wire.unary
    async def Introduce(self, request: pb.IntroduceRequest, context: Any) -> pb.IntroduceResponse:
        """Take a newer member list from whoever brings it: the CA's signature speaks for it."""
        try:
            await asyncio.to_thread(self._book.offer, request.member_list)
        except ConfigError as error:
            raise invalid("not a member list of this network's CA") from error
        return pb.IntroduceResponse(member_list_version=self._book.current.version)

    @wire.streaming
    async def GetInstitutions(
        self, request: pb.GetInstitutionsRequest, context: Any
    ) -> AsyncIterator[pb.GetInstitutionsResponse]:
        """See node.proto."""
        self._authenticator.member(context)
        data = await asyncio.to_thread(self._institutions.read, request.hash)
        for start in range(0, len(data), limits.SYNC_CHUNK):
            yield pb.GetInstitutionsResponse(content=data[start : start + limits.SYNC_CHUNK])

    def _answer(self, request: pb.GetInfoRequest, member: Member) -> pb.GetInfoResponse:
        members = self._book.current
        return pb.GetInfoResponse(
            member=str(self._name),
            software=f"lianfang {metadata.version('lianfang')}",
            now=int(time.time()),
            suites=[common.SUITE_RISTRETTO255_SHA512],
            member_list=members.signed if members.version > request.member_list_version else b"",
            lists=[head for name in self._store.names() if (head := self._head(name, member)) is not None],
        )

    def _head(self, name: str, member: Member) -> pb.ListHead | None:
        purposes = self._gate.purposes(member, name)
        if not purposes:
            return None
        epochs = []
        known = self._epochs.all(name)
        for epoch in known:
            if epoch.state == "sealing" or (epoch.closed and epoch.number < known[-1].number - _CLOSED_SHOWN):
                continue
            if not self._epochs.is_published(epoch.opened):
                continue  # others believe what stands in the log
            batches = self._epochs.published(name, epoch.number)
            epochs.append(
                pb.EpochHead(
                    opened=epoch.opened,
                    head=batches[-1].descriptor if batches else None,
                    closed=epoch.closed if self._epochs.is_published(epoch.closed) else None,
                )
            )
        budget = self._gate.budget(member, name)
        return pb.ListHead(list=name, epochs=epochs, purposes=purposes, budget=budget)  # type: ignore[arg-type]
