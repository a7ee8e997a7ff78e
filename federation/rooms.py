"""Driving secure sums: one party over a link, or a whole federation in one process."""

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from lianfang.v1 import sums_pb2 as pb

from protocols.sums.coordinator import Coordinator, Sending
from protocols.sums.errors import SumAborted
from protocols.sums.job import Job
from protocols.sums.members import Member
from protocols.sums.modular import Vector

from .errors import LearningError, TrainingEnded
from .steps import Ask, Learner

R = TypeVar("R")
RETRIES = 5  # times a broken link is taken up again in a row


@dataclass
class Cost:
    """What one party spent: seconds and bytes, and how many sums it took part in."""

    compute: float = 0.0  # on its own rows
    cryptography: float = 0.0
    waiting: float = 0.0
    sent: int = 0
    received: int = 0
    sums: int = 0

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


class LinkBroken(LearningError):
    """A link to the coordinator broke; it may be opened again."""


class Link(Protocol):
    """One stream to the coordinator."""

    def open(self, opened: int) -> None:
        """(Re)enter the room, saying how many sums were opened. Raises `LinkBroken` or `TrainingEnded`."""

    def send(self, message: pb.SumFromMember) -> None:
        """Raise `LinkBroken`."""

    def receive(self) -> pb.SumToMember:
        """The next message; raises `LinkBroken` or `TrainingEnded`."""

    def close(self) -> None:
        """No more messages."""


Watch = Callable[[Ask, int], None]


def _quiet(_ask: Ask, _number: int) -> None:
    """Watch nothing."""


def _closing(learner: Learner[R]) -> Learner[R]:
    """One more sum, of a zero: each upload signs what the sum before it was, so the last real one is compared too."""
    result = yield from learner
    yield Ask(np.zeros(1, dtype=np.int64), "closing")
    return result


class Party:
    """One party of a job: its member, its learner and what it spent."""

    def __init__(self, member: Member, learner: Learner[Any], watch: Watch = _quiet) -> None:
        self.member, self.cost = member, Cost()
        self._learner, self._watch = _closing(learner), watch
        self._ask: Ask | None = None
        self._contributed = False
        self.result: Any = None
        self.done = False

    def advance(self, total: Vector | None = None) -> None:
        """Let the learner work until its next question or its end."""
        started = time.perf_counter()
        try:
            self._ask = next(self._learner) if total is None else self._learner.send(total)
            self._contributed = False
            self._watch(self._ask, self.member.opened + 1)
        except StopIteration as end:
            self._ask, self.result, self.done = None, end.value, True
        finally:
            self.cost.compute += time.perf_counter() - started

    def contribution(self) -> Iterator[pb.SumFromMember]:
        """What to send now: empty where nothing is due."""
        if self._ask is None or self._contributed or not self.member.ready:
            return iter(())
        self._contributed = True
        return self.member.contribute(self._ask.vector, self._ask.label)

    def step(self, message: pb.SumToMember, send: Callable[[pb.SumFromMember], None]) -> None:
        """Answer a message; may let the learner work."""
        self.cost.received += message.ByteSize()
        self._forward(self.member.receive(message), send)
        total = self.member.result()
        if total is not None:
            self.cost.sums += 1
            self.advance(total)
        if not self.done:
            self._forward(self.contribution(), send)

    def _forward(
        self, messages: Iterator[pb.SumFromMember], send: Callable[[pb.SumFromMember], None]
    ) -> None:
        """Send an iterator's messages, each as it is made. Raises what `send` raises."""
        while True:
            started = time.perf_counter()
            message = next(messages, None)
            self.cost.cryptography += time.perf_counter() - started
            if message is None:
                return
            self.cost.sent += message.ByteSize()
            send(message)


def drive(member: Member, learner: Learner[R], link: Link, watch: Watch = _quiet) -> tuple[R, Cost]:
    """Run one party to its end over a link; the learner's result and what it cost.

    Raises `TrainingEnded` saying in which phase, at whose fault and why. The others are told.
    """
    party = Party(member, learner, watch)
    try:
        party.advance()
        _run(party, link)
    except SumAborted as error:
        _tell(link, error.phase, error.party, error.reason)
        raise TrainingEnded(str(error)) from error
    except LearningError as error:
        if not isinstance(error, TrainingEnded | LinkBroken):
            _tell(link, member.phase.value, "", error.public)
        if isinstance(error, LinkBroken):
            raise TrainingEnded(str(error)) from error
        raise
    except Exception:
        _tell(link, member.phase.value, "", "this party's program failed")
        raise
    finally:
        member.end()
        link.close()
    return party.result, party.cost


def _tell(link: Link, phase: str, party: str, reason: str) -> None:
    # Where the link is broken too, the coordinator notices that.
    with contextlib.suppress(LearningError):
        link.send(pb.SumFromMember(abort=pb.SumAbort(phase=phase, party=party, reason=reason[:300])))


def _run(party: Party, link: Link) -> None:
    broken = 0
    link.open(0)
    while not party.done:
        try:
            started = time.perf_counter()
            message = link.receive()
            party.cost.waiting += time.perf_counter() - started
            party.step(message, link.send)
            broken = 0
        except LinkBroken:
            broken += 1
            if broken > RETRIES:
                raise
            time.sleep(min(0.2 * 2**broken, 5.0))
            try:
                link.open(party.member.opened)
            except LinkBroken:
                continue
    link.send(pb.SumFromMember(leave=pb.SumLeave()))


class LocalRoom:
    """A whole federation in one process: real members, real coordinator, messages in memory."""

    def __init__(self, job: Job, members: Mapping[str, Member]) -> None:
        self._coordinator = Coordinator(job)
        self._members = members

    def run(
        self, learners: Mapping[str, Learner[R]], watch: Watch = _quiet
    ) -> tuple[dict[str, R], dict[str, Cost]]:
        """Every party's result and cost. Raises `TrainingEnded`, or what a learner raises."""
        first = min(learners)
        parties = {
            name: Party(self._members[name], learner, watch if name == first else _quiet)
            for name, learner in learners.items()
        }
        down: dict[str, deque[pb.SumToMember]] = {name: deque() for name in parties}

        def deliver(sending: Sending) -> None:
            for name, message in sending:
                down[name].append(message)

        def receive(name: str, message: pb.SumFromMember) -> None:
            deliver(self._coordinator.receive(name, message))

        try:
            for name in sorted(parties):
                parties[name].advance()
                deliver(self._coordinator.enter(name))
            while any(down.values()):
                for name, party in parties.items():
                    for _ in range(len(down[name])):
                        message = down[name].popleft()
                        party.step(message, functools.partial(receive, name))
        except SumAborted as error:
            raise TrainingEnded(str(error)) from error
        finally:
            for party in parties.values():
                party.member.end()
        left = [name for name, party in parties.items() if not party.done]
        if left:
            raise TrainingEnded(f"{', '.join(left)} did not come to an end")
        return (
            {name: party.result for name, party in parties.items()},
            {name: party.cost for name, party in parties.items()},
        )
