"""gRPC: events for the member that they name, and what the node's own people ask of the ledger."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from lianfang.v1 import ledger_pb2 as pb
from lianfang.v1 import ledger_pb2_grpc

from protocols.ledger import events
from protocols.ledger.events import Committed
from protocols.ledger.proofs import LogProof

from .. import limits, report
from ..errors import NodeError, NotFound, invalid
from ..identity.members import Member
from ..people.actions import Action
from ..people.book import PeopleBook
from ..policy import PURPOSE_NAMES
from ..services import wire
from . import bundle
from .book import LogBook, Recorded
from .bundle import Evidence, Evidences
from .reconcile import Reconciler

if TYPE_CHECKING:
    from ..node import Node

_ENTRIES_A_MESSAGE = 500


class LedgerService(ledger_pb2_grpc.LedgerServicer):
    """Open to every member, each for the events that name it."""

    def __init__(self, authenticator: wire.Authenticator, log: LogBook) -> None:
        self._authenticator, self._log = authenticator, log

    @wire.streaming
    async def Events(self, request: pb.EventsRequest, context: Any) -> AsyncIterator[pb.EventsResponse]:
        """See ledger.proto."""
        member = self._authenticator.member(context)
        if len(request.ids) > limits.EVENTS_BY_ID or any(len(each) != events.ID for each in request.ids):
            raise invalid(f"at most {limits.EVENTS_BY_ID} ids of {events.ID} bytes")
        found = await asyncio.to_thread(self._find, member.id, request)
        for i in range(0, len(found), _ENTRIES_A_MESSAGE):
            self._authenticator.member(context)
            yield pb.EventsResponse(entries=found[i : i + _ENTRIES_A_MESSAGE])

    def _find(self, peer: str, request: pb.EventsRequest) -> list[pb.EventsResponse.Entry]:
        if request.ids:
            found = list(self._log.find(peer=peer, event_ids=[bytes(each) for each in request.ids]))
        else:
            found = list(self._log.find(peer=peer, since=request.since, until=request.until))
        return [_entry(each, self._log.published_size) for each in found]


def _subject(people: PeopleBook, event: pb.Event) -> str:
    """A person's name for the pseudonym, where the event is about one."""
    if event.type != pb.EVENT_TYPE_PERSON:
        return event.resource
    return people.name_of(bytes.fromhex(event.resource)) or event.resource


def _entry(each: Recorded, published: int) -> pb.EventsResponse.Entry:
    included = each.position is not None and each.position < published
    return pb.EventsResponse.Entry(
        opening=each.committed.opening, index=each.position or 0 if included else 0, included=included
    )


class LedgerAdminService(ledger_pb2_grpc.LedgerAdminServicer):
    """Thin: reads the request, calls the ledger's parts, writes the answer."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._reconciler = Reconciler(node.log, node.mirrors, node.peers)

    @wire.unary
    async def Head(self, request: pb.HeadRequest, context: Any) -> pb.HeadResponse:
        """How this node's log stands, and its newest published head."""
        status = await asyncio.to_thread(report.ledger, self._node)
        published = self._node.log.published
        return pb.HeadResponse(
            status=wire.struct(status), note=bytes(published.head.note) if published else b""
        )

    @wire.unary
    async def Prove(self, request: pb.ProveRequest, context: Any) -> pb.ProveResponse:
        """Proofs of one event in this log, and in others' of what they promised about it."""
        node = self._node
        if not request.id:  # a leaf as everybody sees it
            proof = await asyncio.to_thread(node.log.prove, request.index)
            return pb.ProveResponse(proofs=[pb.ProveResponse.Proof(log=node.log.owner, proof=str(proof))])
        recorded = await asyncio.to_thread(self._find, request.id)
        if not recorded:
            raise NotFound("this node's log has no such event, or its opening has been erased")
        async with self._exporting("Prove", request, f"the event {request.id.hex()}"):
            evidence = await self._evidence(recorded)
            return pb.ProveResponse(
                proofs=[
                    pb.ProveResponse.Proof(
                        log=events.open_commitment(each.opening).event.log,
                        proof=str(each.proof),
                        opening=each.opening,
                    )
                    for each in evidence.found
                ]
            )

    @wire.unary
    async def Bundle(self, request: pb.BundleRequest, context: Any) -> pb.BundleResponse:
        """The evidence of a case, once all of it is published."""
        node = self._node
        case = None
        if request.query_id:
            recorded = await asyncio.to_thread(self._find, request.query_id)
        else:
            case = await asyncio.to_thread(node.questions.case, request.case_number)
            recorded = await asyncio.to_thread(self._of_case, case)
        if not recorded:
            raise NotFound("this node's log has no event of that case or query")
        ca, what = (
            node.ca,
            "a case" if case else f"the query {request.query_id.hex()}",
        )
        async with self._exporting("Bundle", request, what):
            evidence = await self._evidence(recorded)
            data = await asyncio.to_thread(
                bundle.make, node.log.owner, node.keys, node.book.current, ca, case, evidence
            )
            await asyncio.to_thread(bundle.verify, data, ca)  # what is handed out holds
        return pb.BundleResponse(bundle=data, entries=len(evidence.found), promises=len(evidence.promises))

    @contextlib.asynccontextmanager
    async def _exporting(self, method: str, request: Message, what: str) -> AsyncIterator[None]:
        """What leaves the node as evidence takes two people."""
        actions = self._node.actions
        asked = request.SerializeToString(deterministic=True)
        content = {"case": request.case_number} if isinstance(request, pb.BundleRequest) else {}
        action = Action(f"LedgerAdmin/{method}", asked, f"export the evidence of {what}", content)
        begun = await asyncio.to_thread(actions.begin, action, True)
        try:
            yield
        except BaseException:
            actions.break_off(begun)
            raise

    def _of_case(self, case: bundle.Case) -> list[Recorded]:
        log = self._node.log
        return [
            each for salt in case.salts for each in log.find(case=bundle.case_commitment(salt, case.number))
        ]

    async def _evidence(self, recorded: list[Recorded]) -> Evidences:
        """Own events and the other parties' receipts under the same ids; waits for the heads that hold them.

        A receipt whose log does not show what it promised goes along as a promise: nobody can veto the evidence.
        """
        node = self._node
        if not recorded:
            raise NotFound("this node's log has no such event, or its opening has been erased")
        ids = sorted({each.committed.event.id for each in recorded})
        own = [each for id_ in ids for each in await asyncio.to_thread(self._find, id_)]
        receipts = [each for id_ in ids for each, _ in await asyncio.to_thread(node.log.promised, id_)]
        end = time.monotonic() + 2 * node.log.settings.tick_seconds + 15
        found: list[Evidence] = []
        for each in own:
            found.append(await self._own_proof(each.committed, end))
        promises = []
        owners = {events.open_commitment(each.opening).event.log for each in receipts}
        members = {member.id: member for member in node.book.current if member.id in owners}
        await asyncio.gather(*(self._refreshed(member) for member in members.values()))
        for receipt in receipts:
            committed = events.open_commitment(receipt.opening)
            member = members.get(committed.event.log)
            if member is None:
                continue  # struck off since: nothing binds its key any more
            try:
                found.append(Evidence(receipt.opening, await self._their_proof(member, committed, end)))
            except NodeError:
                promises.append(receipt)
        return Evidences(tuple(found), tuple(promises))

    async def _refreshed(self, member: Member) -> None:
        with contextlib.suppress(NodeError):
            await self._node.mirrors.refresh(member)

    async def _own_proof(self, committed: Committed, end: float) -> Evidence:
        while True:
            for each in await asyncio.to_thread(self._find, committed.event.id):
                if each.committed == committed and each.position is not None:
                    with contextlib.suppress(NotFound):
                        proof = await asyncio.to_thread(self._node.log.prove, each.position)
                        return Evidence(committed.opening, proof)
            await self._pause(end)

    async def _their_proof(self, member: Member, committed: Committed, end: float) -> LogProof:
        mirrors = self._node.mirrors
        while True:
            position = await asyncio.to_thread(mirrors.find_leaf, member, committed.leaf)
            if position is not None:
                with contextlib.suppress(NotFound):
                    return await asyncio.to_thread(mirrors.prove, member, position)
            await self._pause(end)
            await mirrors.refresh(member)

    async def _pause(self, end: float) -> None:
        if time.monotonic() > end:
            raise NotFound("an event stands in no published head yet; wait for the next tick")
        await asyncio.sleep(min(1.0, self._node.log.settings.tick_seconds / 4))

    def _find(self, event_id: bytes) -> list[Recorded]:
        return list(self._node.log.find(event_id=event_id))

    @wire.unary
    async def Reconcile(self, request: pb.ReconcileRequest, context: Any) -> Struct:
        """Both sides' records side by side, member by member."""
        node = self._node
        own = node.log.owner
        members = [node.peers.find(text, own) for text in request.members] or node.peers.others(own)
        outcomes = await self._reconciler.run(members, request.since, request.until)
        return wire.struct(
            {
                "agrees": all(each.agrees for each in outcomes),
                "members": [
                    {
                        "member": each.member,
                        "matched": each.matched,
                        "unanswered": each.unanswered,
                        "missing_here": each.missing_here,
                        "missing_there": each.missing_there,
                        "differing": each.differing,
                        "trouble": each.trouble,
                    }
                    for each in outcomes
                ],
            }
        )

    @wire.unary
    async def List(self, request: pb.ListEventsRequest, context: Any) -> Struct:
        """This node's own events, opened, newest last."""
        found = await asyncio.to_thread(lambda: list(self._node.log.find(since=request.since)))
        published = self._node.log.published_size
        rows = []
        for each in found[-(request.limit or 1_000) :]:
            event = each.committed.event
            rows.append(
                {
                    "at": report.iso(event.at / 1000),
                    "type": bundle.type_name(event.type),
                    "id": event.id.hex(),
                    "peer": event.peer.rpartition("/")[2],
                    "resource": _subject(self._node.people, event),
                    "count": event.count,
                    "purpose": PURPOSE_NAMES.get(event.purpose, ""),
                    "reason": event.reason,
                    "by": self._node.people.name_of(event.asker) if event.asker else "",
                    "digest": event.digest.hex(),
                    "contract": event.contract.hex(),
                    "position": -1 if each.position is None else each.position,
                    "published": each.position is not None and each.position < published,
                }
            )
        return wire.struct({"events": rows, "total": len(found)})

    @wire.unary
    async def Monitor(self, request: pb.MonitorRequest, context: Any) -> Struct:
        """Look at every member's log now."""
        mirrors = self._node.mirrors

        async def one(member: Any) -> None:
            try:
                await mirrors.refresh(member)
                if request.compare:
                    await mirrors.compare(member)
            except NodeError:
                pass  # told in the overview

        await asyncio.gather(*(one(member) for member in mirrors.followed()))
        alarms = [
            {**each, "at": report.iso(each["at"])} for each in self._node.pins.alarms() if not each["list"]
        ]
        return wire.struct(
            {
                "logs": await asyncio.to_thread(mirrors.overview),
                "alarms": alarms,
                "evidence": str(self._node.home.data / "evidence") if alarms else "",
            }
        )
