"""One session, from this side: reads the column, masks, sends, doubles, compares. Runs in a thread.

The caller's and the callee's sides do the same work at the same time; what they send takes turns (`psi.proto`), so that
neither ever waits for a peer that waits for it.
"""

import asyncio
import collections
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lianfang.v1 import contract_pb2
from lianfang.v1 import psi_pb2 as pb

from protocols import group, psi
from protocols.errors import DecodeError

from .. import limits
from ..errors import NodeError
from ..identity.keys import Vault
from ..workers import Workers
from .rows import Column, Counts

if TYPE_CHECKING:
    from .summing import Adding, Owning
    from .workspace import Workspace

Tell = Callable[[str, int, int], None]  # phase, done, total
_Terms = contract_pb2.PsiTerms
_Input = contract_pb2.PsiTerms.Input
_Rows = tuple[list[int], list[bytes], list[int]]  # row numbers, canonical identifiers, values
_KNOWN = 1 << 18  # identifiers that are remembered, so as not to mask them again


@dataclass(frozen=True)
class Plan:
    """A session as its contract has it, from this side."""

    contract: bytes
    session: bytes
    terms: contract_pb2.PsiTerms
    own: _Input
    peer: _Input
    column: Column
    calls: bool  # this side opened the session
    check: Callable[[], None]  # raises `Refused` where the contract has ended meanwhile

    @property
    def learns(self) -> bool:
        """Whether the outcome is output to this side."""
        return self.own.party in self.terms.output_to

    @property
    def peer_learns(self) -> bool:
        """Whether it is output to the other."""
        return self.peer.party in self.terms.output_to

    @property
    def in_order(self) -> bool:
        """Whether doubled points come as the masked ones came, so that their owner finds its elements."""
        return self.terms.variant in (_Terms.VARIANT_INTERSECTION, _Terms.VARIANT_ALIGNMENT)

    @property
    def compares(self) -> bool:
        """Whether this side is given its points doubled: of a sum only who adds up."""
        return not self.own.values if self.adds else self.learns

    @property
    def peer_compares(self) -> bool:
        """Whether the other side is."""
        return not self.peer.values if self.adds else self.peer_learns

    @property
    def adds(self) -> bool:
        """Whether values are added up."""
        return self.terms.variant == _Terms.VARIANT_SUM

    @property
    def aligns(self) -> bool:
        """Whether both keep ids of what they have in common."""
        return self.terms.variant == _Terms.VARIANT_ALIGNMENT


@dataclass(frozen=True)
class Outcome:
    """What this side has learnt. `common` is None where it learns nothing, or less than the minimum met."""

    counts: Counts
    theirs: int  # the other's set, padded
    common: int | None
    rows: list[int] = field(default_factory=list)  # of the own file; of an intersection
    total: int | None = None  # of a sum, in units of 10^-decimals
    # (id, keyed hash of the identifier, row), ascending by id; of an alignment
    aligned: list[tuple[bytes, bytes, int]] = field(default_factory=list)


class Line:
    """The stream between the two, for a thread: what comes is what the order asks for, or an error."""

    def __init__(
        self,
        read_: Callable[[], Awaitable[pb.PsiMessage | None]],
        write: Callable[[pb.PsiMessage], Awaitable[None]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._read, self._write = read_, write
        self._under_way: Future[Any] | None = None
        self._closed = False
        self._end = time.monotonic() + limits.MEETING_SECONDS

    def check(self) -> None:
        """Raise `NodeError` where nobody is there any more, or it has taken too long."""
        if self._closed:
            raise NodeError("the session was broken off", "BROKEN")
        if time.monotonic() > self._end:
            raise NodeError(f"the session has taken {limits.MEETING_SECONDS} s", "TIMEOUT")

    def _wait(self, work: Awaitable[Any]) -> Any:
        self.check()
        self._under_way = asyncio.run_coroutine_threadsafe(_coroutine(work), self._loop)
        if self._closed:
            self._under_way.cancel()
        try:
            return self._under_way.result(limits.MEETING_SILENCE)
        except TimeoutError as error:
            raise NodeError(
                f"the other side has said nothing for {limits.MEETING_SILENCE} s", "TIMEOUT"
            ) from error
        except CancelledError as error:
            raise NodeError("the session was broken off", "BROKEN") from error

    def close(self) -> None:
        """Nobody is there any more: whoever waits is told."""
        self._closed = True
        if self._under_way is not None:
            self._under_way.cancel()

    def send(self, message: pb.PsiMessage) -> None:
        """Wait until it is on its way."""
        self._wait(self._write(message))

    def receive(self, *kinds: str) -> pb.PsiMessage:
        """The next message; raises `DecodeError` for another than is due."""
        message = self._wait(self._read())
        if message is None:
            raise DecodeError(f"the other side ended where {' or '.join(kinds)} was due")
        if message.WhichOneof("part") not in kinds:
            raise DecodeError(f"the other side sent {message.WhichOneof('part')}, not {' or '.join(kinds)}")
        found: pb.PsiMessage = message
        return found


async def _coroutine(work: Awaitable[Any]) -> Any:
    return await work


class Meeting:
    """A session after both sides have said hello and admitted it."""

    def __init__(
        self, plan: Plan, line: Line, space: "Workspace", workers: Workers, vault: Vault, tell: Tell
    ) -> None:
        self._plan, self._line, self._space = plan, line, space
        self._workers, self._vault, self._tell = workers, vault, tell
        self._exponent = psi.Exponent()
        self._adding: Adding | None = None
        self._owning: Owning | None = None
        if plan.adds:
            from . import summing  # needs the extra `vertical`

            if plan.own.values:
                self._owning = summing.Owning(plan, line, space, workers, tell)
            else:
                self._adding = summing.Adding(plan, line, space, workers, tell)

    def exchange(self) -> Outcome:
        """Until everything has been sent and has come; `compare` completes the outcome.

        Raises `DecodeError`, `Refused`, or a `NodeError` about the own file; then nothing is output here.
        """
        plan = self._plan
        try:
            counts = self._mask()
            for sends in (plan.calls, not plan.calls):
                if sends:
                    self._send_points(psi.size(counts.elements))
                else:
                    theirs = self._receive_points()
            self._double(theirs)
            # The callee gives first. Whoever has what it wants could go: that the other gets its share is not enforced.
            for sends in (not plan.calls, plan.calls):
                plan.check()
                if sends and plan.peer_compares:
                    self._send("send", self._space.their_doubled(plan.in_order), theirs)
                elif not sends and plan.compares:
                    self._receive_doubled(psi.size(counts.elements))
            plan.check()
            outcome = Outcome(counts, theirs, None)
            if self._owning is not None:
                return self._owning.finish(outcome)
            if self._adding is not None:
                return self._adding.finish(outcome)
            return self._agree_on_ids(outcome) if plan.aligns else outcome
        finally:
            self._exponent.forget()

    def compare(self, outcome: Outcome) -> Outcome:
        """What this side learns, when nobody is listening any more: how long it takes says nothing to the other.

        Of a sum or an alignment both sides know it by now.
        """
        plan = self._plan
        if plan.adds or plan.aligns or not plan.learns:
            return outcome
        self._space.prepare_to_compare()
        rows = self._space.common_rows() if plan.in_order else []
        common = len(rows) if plan.in_order else self._space.common()
        if common < plan.terms.minimum_cardinality:
            return outcome
        return replace(outcome, common=common, rows=rows)

    def _agree_on_ids(self, outcome: Outcome) -> Outcome:
        """Both have the same ids, or the session fails."""
        plan = self._plan
        self._space.prepare_to_compare()
        where = psi.domain(plan.contract, plan.session)
        found = sorted(
            (psi.random_id(where, point), identifier, row)
            for point, identifier, row in self._space.common_elements()
        )
        ids = b"".join(each for each, _, _ in found)
        for sends in (plan.calls, not plan.calls):
            if sends:
                self._line.send(pb.PsiMessage(aligned=psi.ids_digest(plan.own.party, ids)))
            elif self._line.receive("aligned").aligned != psi.ids_digest(plan.peer.party, ids):
                raise DecodeError("the other side has found other elements in common")
        if len(found) < plan.terms.minimum_cardinality:
            return outcome
        return replace(outcome, common=len(found), aligned=found)

    def _mask(self) -> Counts:
        plan, counts = self._plan, Counts()
        where, scalar = psi.domain(plan.contract, plan.session), self._exponent.scalar
        waiting: collections.deque[tuple[list[int], list[int], list[bytes]]] = collections.deque()
        done = 0

        def chunks() -> Iterator[tuple[bytes, bytes, list[bytes]]]:
            for rows, canonicals, values in self._elements(counts):
                self._line.check()
                # An aligned element is known by its identifier's keyed hash afterwards.
                waiting.append((rows, values, self._vault.index_each(canonicals) if plan.aligns else []))
                yield where, scalar, canonicals

        for points in self._workers.stream(psi.mask_chunk, chunks()):
            self._space.add_masked(points, *waiting.popleft())
            done += len(points) // group.POINT
            self._tell("mask", done, counts.rows)
        self._tell("mask", done, done)
        counts.found(self._space.sort_own(self._dummies))
        if not counts.elements:
            raise NodeError(
                f"the column {plan.own.column} has no {plan.terms.kind} ({counts.rows} rows, {counts.empty} empty, "
                f"{counts.bad} bad)",
                "EMPTY",
            )
        return counts

    def _elements(self, counts: Counts) -> Iterator[_Rows]:
        """Each identifier once, with its first row and the sum of its values, as far as they are remembered; beyond that, and where none
        of those was repeated, repeated ones become one when points are sorted.
        """
        if self._plan.own.values:
            yield from self._weighted(counts)
            return
        known: set[bytes] = set()
        repeats = False
        rows: list[int] = []
        canonicals: list[bytes] = []
        for numbers, found, _ in self._plan.column.elements(counts):
            self._line.check()
            fresh = set(found) if repeats or len(known) < _KNOWN else None
            if fresh is None or (len(fresh) == len(found) and known.isdisjoint(fresh)):
                rows += numbers
                canonicals += found
            else:
                repeats = True
                first = dict(zip(reversed(found), reversed(numbers), strict=True))
                fresh -= known
                rows += [first[each] for each in fresh]
                canonicals += fresh
            if fresh is not None and len(known) < _KNOWN:
                known |= fresh
                self._check_count(len(known))
            while len(rows) >= psi.CHUNK:
                yield rows[: psi.CHUNK], canonicals[: psi.CHUNK], []
                del rows[: psi.CHUNK], canonicals[: psi.CHUNK]
        if rows:
            yield rows, canonicals, []

    def _weighted(self, counts: Counts) -> Iterator[_Rows]:
        """With values: what is remembered waits until all of its values are known."""
        plan, total = self._plan, 0
        known: dict[bytes, tuple[int, int]] = {}  # row, value so far
        for part in plan.column.elements(counts):
            self._line.check()
            beyond: list[tuple[int, bytes, int]] = []
            for row, canonical, value in zip(*part, strict=True):
                total += value
                if total >> plan.terms.sum_bits:
                    raise NodeError(
                        f"the values of {plan.own.values} up to row {row} are together more than the contract's sum of "
                        f"{plan.terms.sum_bits} bits holds",
                        "SIZE",
                    )
                if (first := known.get(canonical)) is not None:
                    known[canonical] = (first[0], first[1] + value)
                elif len(known) < _KNOWN:
                    known[canonical] = (row, value)
                    self._check_count(len(known))
                else:
                    beyond.append((row, canonical, value))
            yield from _pieces(beyond)
        yield from _pieces((row, canonical, value) for canonical, (row, value) in known.items())

    def _check_count(self, elements: int) -> None:
        if elements > self._plan.own.max_elements:
            raise NodeError(
                f"the column has more than the {self._plan.own.max_elements:,} elements of the contract",
                "SIZE",
            )

    def _dummies(self, elements: int) -> Iterator[bytes]:
        """What fills a set up to its public bucket; raises `NodeError` for a set larger than the contract has it."""
        self._check_count(elements)
        missing = psi.size(elements) - elements if elements else 0
        fill = ((min(psi.CHUNK, missing - i),) for i in range(0, missing, psi.CHUNK))
        return self._workers.stream(psi.dummies, fill)

    def _send_points(self, elements: int) -> None:
        self._plan.check()
        self._line.send(pb.PsiMessage(elements=elements))
        if self._owning is not None:
            self._owning.send_weighted(elements)
        else:
            self._send("send", self._space.own(), elements)

    def _send(self, phase: str, messages: Iterable[bytes], total: int) -> None:
        done = 0
        for points in messages:
            self._plan.check()
            self._line.send(pb.PsiMessage(points=points))
            done += len(points) // group.POINT
            self._tell(phase, done, total)
        self._line.send(pb.PsiMessage(end=pb.PsiEnd()))

    def _receive_points(self) -> int:
        announced = self._line.receive("elements").elements
        arrivals = psi.Arrivals(announced, self._plan.peer.max_elements)
        if self._adding is not None:
            self._adding.receive_weighted(arrivals)
            return announced
        for points in self._receive(arrivals):
            self._space.add_theirs(points)
        return announced

    def _receive(self, arrivals: psi.Arrivals) -> Iterator[bytes]:
        while (message := self._line.receive("points", "end")).WhichOneof("part") == "points":
            self._plan.check()
            yield arrivals.take(message.points)
            self._tell("receive", arrivals.count, arrivals.announced)
        arrivals.end()

    def _double(self, theirs: int) -> None:
        """Of both sides at the same time. Finds out, too, whether these are points at all."""
        done, scalar = 0, self._exponent.scalar
        chunk = psi.CHUNK * group.POINT

        def chunks() -> Iterator[tuple[bytes, bytes]]:
            for points in self._space.theirs():
                self._line.check()
                self._plan.check()
                for i in range(0, len(points), chunk):
                    yield scalar, points[i : i + chunk]

        for points in self._workers.stream(psi.double_chunk, chunks()):
            self._space.add_their_doubled(points)
            done += len(points) // group.POINT
            self._tell("double", done, theirs)

    def _receive_doubled(self, own: int) -> None:
        plan = self._plan
        for points in self._receive(psi.Arrivals(own, plan.own.max_elements, ascending=not plan.in_order)):
            # Never decoded, only compared with points that were made here: what is none of those meets nothing.
            self._space.add_own_doubled(points)


def _pieces(elements: Iterable[tuple[int, bytes, int]]) -> Iterator[_Rows]:
    each = iter(elements)
    while chunk := list(itertools.islice(each, psi.CHUNK)):
        rows, canonicals, values = zip(*chunk, strict=True)
        yield list(rows), list(canonicals), list(values)
