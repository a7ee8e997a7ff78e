"""Tells every signer of a contract what this node knows of it, until they know it too."""

import asyncio
import functools
import logging
import time

from lianfang.v1 import contract_pb2 as pb

from protocols.contract import APPROVE, State, waiting_for

from ..errors import NodeError, Refused
from ..identity.members import Member
from ..querier.peers import PeerFailed, Peers
from .book import ContractBook, Held

_log = logging.getLogger("lianfang.contracts")
_LOOK = 0.2  # seconds between two looks at what is new
_FIRST, _LONGEST = 2.0, 60.0  # seconds between two attempts
_DEADLINE = 10.0
_Acts = frozenset[tuple[str, int]]
_AFTERWARDS = 30 * 86_400  # seconds for which an expired contract is still told


class Courier:
    """One per node. What a signer answers is added here, so that both end with the same acts."""

    def __init__(self, book: ContractBook, peers: Peers, own: str) -> None:
        self._book, self._peers, self._own = book, peers, own
        self._told: dict[tuple[bytes, str], _Acts] = {}
        self._waits: dict[tuple[bytes, str], tuple[float, _Acts]] = {}  # not before, unless there is news
        self._tries: dict[tuple[bytes, str], int] = {}
        self._under_way: dict[str, asyncio.Task[bool]] = {}
        self._look_again = False

    async def run(self) -> None:
        """Until cancelled."""
        seen, retry = -1, 0.0
        try:
            while True:
                if self._book.version != seen or self._look_again or time.monotonic() >= retry:
                    seen, self._look_again = self._book.version, False
                    retry = self._begin()
                await asyncio.sleep(_LOOK)
        finally:
            for task in self._under_way.values():
                task.cancel()

    def _begin(self) -> float:
        """Begin to tell each member what it does not know; none waits for another. When to look again at the latest."""
        now, due = self._book.now(), time.monotonic()
        todo: dict[str, list[Held]] = {}
        for held in sorted(self._book.all(), key=_urgency):
            stands = held.state(now)
            never = stands is State.EXPIRED and waiting_for(held.terms, held.acts)
            if never or now > held.terms.expires_at + _AFTERWARDS:
                continue
            for signer in held.terms.signers:
                if signer != self._own and self._told.get((held.hash, signer)) != _acts(held):
                    todo.setdefault(signer, []).append(held)
        for member in self._peers.others(self._own):
            if member.id in todo and member.id not in self._under_way:
                task = asyncio.create_task(self._tell_all(member, todo[member.id], due))
                self._under_way[member.id] = task
                task.add_done_callback(functools.partial(self._ended, member.id))
        return max(due + _FIRST, min((until for until, _ in self._waits.values()), default=due + _LONGEST))

    def _ended(self, member_id: str, task: "asyncio.Task[bool]") -> None:
        del self._under_way[member_id]
        if not task.cancelled():
            self._look_again |= task.result()

    async def _tell_all(self, member: Member, found: list[Held], due: float) -> bool:
        """Whether there was news meanwhile."""
        version = self._book.version
        for held in found:
            if self._book.version != version:
                break  # what is new may be more urgent
            place, told = (held.hash, member.id), _acts(held)
            until, news = self._waits.get(place, (0.0, frozenset()))
            if due < until and news == told:
                continue
            try:
                await self._tell(member, held)
                self._waits.pop(place, None)
                self._tries.pop(place, None)
            except Exception as error:  # whatever it is, the other contracts are told
                # A refusal may pass too: clocks are set right, member lists spread.
                tries = self._tries[place] = self._tries.get(place, 0) + 1
                if not isinstance(error, NodeError):
                    _log.exception("telling %s of %s failed", member.name.name, held.name)
                elif tries in (1, 5):
                    _log.warning("%s was not told of %s: %s", member.name.name, held.name, error)
                gone = isinstance(error, PeerFailed) and error.outcome in ("unreachable", "timeout")
                wait = min(_FIRST * 2 ** min(tries, 12), _LONGEST if gone else _LONGEST * 30)
                self._waits[place] = (time.monotonic() + wait, told)
                if gone:
                    break
        return self._book.version != version

    async def _tell(self, member: Member, held: Held) -> None:
        answer = await self._peers.introducing(
            member, lambda peer: peer.contracts.Tell(held.signed(), timeout=_DEADLINE), _DEADLINE
        )
        if answer.contract != held.data:
            raise Refused(f"{member.name.name} answers with another contract", "MISBEHAVES")
        if not _acts(held) <= _acts(answer):
            raise Refused(f"{member.name.name} does not take what it is told", "MISBEHAVES")
        await asyncio.to_thread(self._book.told, member.id, answer)
        # What it says it knows, not what is known here by now: this node may have acted while the call was under way.
        self._told[(held.hash, member.id)] = _acts(answer)


def _urgency(held: Held) -> int:
    return 0 if any(act.action != APPROVE for act in held.acts) else 1  # ends first


def _acts(known: Held | pb.SignedContract) -> _Acts:
    return frozenset((act.party, act.action) for act in known.acts)
