"""Both sides' records of the same queries side by side, as at the end of a banking day."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from lianfang.v1 import ledger_pb2

from protocols.errors import PeerError
from protocols.ledger import events
from protocols.ledger.events import Committed

from .. import limits
from ..errors import NodeError, NotFound
from ..identity.members import Member
from ..querier.peers import PeerFailed, Peers, failed
from .book import LogBook, Recorded
from .mirrors import Mirrors

_ASKED, _ANSWERED = ledger_pb2.EVENT_TYPE_QUERY_ASKED, ledger_pb2.EVENT_TYPE_QUERY_ANSWERED
_SKEW_MS = limits.CLOCK_SKEW.total_seconds() * 1000
_MARGIN_MS = int(limits.CLOCK_SKEW.total_seconds() * 2_000)
_COMPARED = (
    "resource",
    "epoch",
    "suite",
    "purpose",
    "basis",
    "count",
    "request_hash",
    "case_commitment",
    "asker",
)
_SECONDS = 60.0


@dataclass(frozen=True)
class Theirs:
    """An event that another member says it has recorded about us."""

    committed: Committed
    position: int | None


@dataclass
class Outcome:
    """How our records and one member's agree. Lists hold one line for people per query."""

    member: str
    matched: int = 0
    unanswered: int = 0  # asked, and neither side has an answer: refused, or never arrived
    missing_here: list[str] = field(default_factory=list)
    missing_there: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def agrees(self) -> bool:
        """Whether nothing is missing, differs or could not be compared."""
        return not (self.missing_here or self.missing_there or self.differing or self.trouble)


def differences(asked: Committed, answered: Committed) -> list[str]:
    """Fields in which the two records of one query differ."""
    found = [name for name in _COMPARED if getattr(asked.event, name) != getattr(answered.event, name)]
    if asked.event.peer != answered.event.log or answered.event.peer != asked.event.log:
        found.append("parties")
    if answered.event.peer_leaf != asked.commitment:
        found.append("receipt")
    if (
        not -_SKEW_MS <= answered.event.at - asked.event.at <= _MARGIN_MS
    ):  # a first answer; later ones are not recorded
        found.append("time")
    return found


def compare(
    member: str,
    ours: dict[tuple[int, bytes], Committed],
    theirs: dict[tuple[int, bytes], Committed],
    answered_to_us: frozenset[bytes] | set[bytes],
) -> Outcome:
    """Pair by query id. `answered_to_us` are ids of which we hold the member's receipt for an answer."""
    outcome = Outcome(member)
    for mine, other in ((_ASKED, _ANSWERED), (_ANSWERED, _ASKED)):
        ids = {id_ for kind, id_ in ours if kind == mine} | {id_ for kind, id_ in theirs if kind == other}
        for id_ in sorted(ids):
            own, their = ours.get((mine, id_)), theirs.get((other, id_))
            if own is not None and their is not None:
                asked, answered = (own, their) if mine == _ASKED else (their, own)
                found = differences(asked, answered)
                if found:
                    outcome.differing.append(f"{id_.hex()}: {', '.join(found)}")
                else:
                    outcome.matched += 1
            elif own is None:
                if other == _ASKED:
                    outcome.unanswered += 1  # they asked; we have no answer on record
                else:
                    outcome.missing_here.append(f"{id_.hex()}: it says that it answered us")
            elif mine == _ANSWERED:
                outcome.missing_there.append(f"{id_.hex()}: we answered, it has no question on record")
            elif id_ in answered_to_us:
                outcome.missing_there.append(f"{id_.hex()}: it answered us, and has it not on record")
            else:
                outcome.unanswered += 1
    return outcome


class Reconciler:
    """One per node."""

    def __init__(self, log: LogBook, mirrors: Mirrors, peers: Peers) -> None:
        self._log, self._mirrors, self._peers = log, mirrors, peers

    async def run(self, members: Sequence[Member], since: int, until: int) -> list[Outcome]:
        """Compare with each member by itself; times in milliseconds."""
        return list(await asyncio.gather(*(self._one(member, since, until) for member in members)))

    async def _one(self, member: Member, since: int, until: int) -> Outcome:
        try:
            await self._mirrors.refresh(member)
            request = ledger_pb2.EventsRequest(since=since - _MARGIN_MS, until=until + _MARGIN_MS)
            theirs = await self._ask(member, request)
            ours = await asyncio.to_thread(self._ours, member, since - _MARGIN_MS, until + _MARGIN_MS)
            inside = {
                key[1]
                for source in (ours, {key: each.committed for key, each in theirs.items()})
                for key, each in source.items()
                if since <= each.event.at < until
            }
            # A retry may come long after its question: what misses its counterpart is looked for by name.
            lone = [id_ for id_ in inside if not (_both(ours, id_) and _both(theirs, id_))]
            for i in range(0, len(lone), limits.EVENTS_BY_ID):
                some = lone[i : i + limits.EVENTS_BY_ID]
                theirs |= await self._ask(member, ledger_pb2.EventsRequest(ids=some))
            ours |= await asyncio.to_thread(self._ours_by_id, member, lone)
            receipts = await asyncio.to_thread(self._answered_to_us, member, inside)
            outcome = compare(
                member.name.name,
                {key: each for key, each in ours.items() if key[1] in inside},
                {key: each.committed for key, each in theirs.items() if key[1] in inside},
                receipts,
            )
            await self._mirrors.refresh(member)  # a tick may have passed since we looked
            outcome.differing += await asyncio.to_thread(self._not_in_log, member, theirs, inside)
            return outcome
        except (NodeError, PeerError) as error:
            return Outcome(member.name.name, trouble=str(error))

    async def _ask(
        self, member: Member, request: ledger_pb2.EventsRequest
    ) -> dict[tuple[int, bytes], Theirs]:
        found: dict[tuple[int, bytes], Theirs] = {}
        try:
            async for response in self._peers.get(member).ledger.Events(request, timeout=_SECONDS):
                for entry in response.entries:
                    committed = events.open_commitment(entry.opening)
                    if committed.event.log != member.id:
                        raise PeerFailed(
                            "failed", f"{member.name.name} sends another log's events", "INVALID"
                        )
                    key = (committed.event.type, committed.event.id)
                    if len(found) >= limits.EVENTS_AT_ONCE:
                        raise PeerFailed("failed", f"{member.name.name} sends too many events", "INVALID")
                    found[key] = Theirs(committed, entry.index if entry.included else None)
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error
        return found

    def _ours(self, member: Member, since: int, until: int) -> dict[tuple[int, bytes], Committed]:
        return _keyed(self._log.find(peer=member.id, since=since, until=until))

    def _ours_by_id(self, member: Member, ids: Sequence[bytes]) -> dict[tuple[int, bytes], Committed]:
        found: dict[tuple[int, bytes], Committed] = {}
        for i in range(0, len(ids), limits.EVENTS_BY_ID):
            some = ids[i : i + limits.EVENTS_BY_ID]
            found |= _keyed(self._log.find(peer=member.id, event_ids=some))
        return found

    def _answered_to_us(self, member: Member, ids: set[bytes]) -> set[bytes]:
        """Ids of which we hold the member's receipt that it answered."""
        found = set()
        for id_ in ids:
            for receipt, _ in self._log.promised(id_):
                event = events.open_commitment(receipt.opening).event
                if event.log == member.id and event.type == _ANSWERED:
                    found.add(id_)
        return found

    def _not_in_log(
        self, member: Member, theirs: dict[tuple[int, bytes], Theirs], inside: set[bytes]
    ) -> list[str]:
        """Events that the member shows us and its published log does not hold where it says."""
        wrong = []
        for (_, id_), each in theirs.items():
            if id_ not in inside or each.position is None:
                continue
            try:
                leaf = self._mirrors.leaf(member, each.position)
            except NotFound:
                leaf = b""
            if leaf != each.committed.leaf:
                wrong.append(f"{id_.hex()}: not in its log at {each.position}")
        return wrong


def _both(source: dict[tuple[int, bytes], Any], id_: bytes) -> bool:
    return (_ASKED, id_) in source or (_ANSWERED, id_) in source


def _keyed(found: Any) -> dict[tuple[int, bytes], Committed]:
    out: dict[tuple[int, bytes], Committed] = {}
    each: Recorded
    for each in found:
        if each.committed.event.type in (_ASKED, _ANSWERED):
            out[(each.committed.event.type, each.committed.event.id)] = each.committed
    return out
