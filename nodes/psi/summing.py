"""The two roles of a session that adds up one party's values; see `protocols.psi_sum`. Needs the `vertical` extra."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lianfang.v1 import psi_pb2 as pb

from protocols import group, psi, psi_sum
from protocols.errors import DecodeError

from ..workers import Workers

if TYPE_CHECKING:
    from .meeting import Line, Outcome, Plan, Tell
    from .workspace import Workspace

_ELEMENTS = 256  # of a message, with their ciphertexts; also of one piece of work
_ADDED = 4_096  # ciphertexts in one piece of work


class Owning:
    """Whose values are added up: encrypts them, and opens the sum."""

    def __init__(
        self, plan: "Plan", line: "Line", space: "Workspace", workers: Workers, tell: "Tell"
    ) -> None:
        self._plan, self._line, self._space, self._workers, self._tell = plan, line, space, workers, tell
        self._bits = plan.terms.sum_bits
        self._secret: psi_sum.Secret = (0, 0)

    def send_weighted(self, elements: int) -> None:
        """A key for this session, then points with ciphertexts."""
        plan = self._plan
        ((self._secret, modulus, proof),) = self._workers.run(
            psi_sum.new_key, [(plan.contract, plan.session)]
        )
        self._line.send(pb.PsiMessage(key=pb.PsiKey(modulus=modulus, proof=proof)))
        waiting: list[bytes] = []

        def chunks() -> Iterator[tuple[psi_sum.Secret, list[int]]]:
            for points, values in self._space.own_weighted(_ELEMENTS):
                self._line.check()
                waiting.append(points)
                yield self._secret, values

        done = 0
        for ciphertexts in self._workers.stream(psi_sum.encrypt_chunk, chunks()):
            plan.check()
            points = waiting.pop(0)
            self._line.send(pb.PsiMessage(weighted=pb.PsiWeighted(points=points, ciphertexts=ciphertexts)))
            done += len(points) // group.POINT
            self._tell("send", done, elements)
        self._line.send(pb.PsiMessage(end=pb.PsiEnd()))

    def finish(self, outcome: "Outcome") -> "Outcome":
        """Open what the other has added up, and tell it where it is to know."""
        plan = self._plan
        found = self._line.receive("sum").sum
        if found.below_minimum:
            if not plan.learns:
                raise DecodeError("the other side says more than the contract lets it")
            return outcome
        opened = psi_sum.open_sum(self._secret, found.ciphertext, self._bits)
        if plan.peer_learns:
            self._line.send(pb.PsiMessage(opened=opened))
        if not plan.learns:
            return outcome
        if not plan.terms.minimum_cardinality <= found.common <= min(outcome.counts.elements, outcome.theirs):
            raise DecodeError(f"the other side says that {found.common} elements are in common")
        return replace(outcome, common=found.common, total=opened)


class Adding:
    """Who adds up: finds which of the other's elements are here, too, and adds their ciphertexts."""

    def __init__(
        self, plan: "Plan", line: "Line", space: "Workspace", workers: Workers, tell: "Tell"
    ) -> None:
        self._plan, self._line, self._space, self._workers, self._tell = plan, line, space, workers, tell
        self._bits = plan.terms.sum_bits
        self._modulus, self._size = b"", 0

    def receive_weighted(self, arrivals: psi.Arrivals) -> None:
        """All of it is checked: whether an element is here, too, must not show in an error."""
        plan, said = self._plan, self._line.receive("key").key
        given = (said.modulus, said.proof, plan.contract, plan.session)
        (self._size,) = self._workers.run(psi_sum.check_key, [given])
        self._modulus = said.modulus

        def chunks() -> Iterator[tuple[bytes, bytes]]:
            while (message := self._line.receive("weighted", "end")).WhichOneof("part") == "weighted":
                plan.check()
                points, ciphertexts = arrivals.take(message.weighted.points), message.weighted.ciphertexts
                if len(ciphertexts) * group.POINT != len(points) * self._size:
                    raise DecodeError("not every element has one ciphertext")
                self._space.add_theirs(points, ciphertexts, self._size)
                self._tell("receive", arrivals.count, arrivals.announced)
                yield self._modulus, ciphertexts

        for _ in self._workers.stream(psi_sum.check_chunk, chunks()):
            pass
        arrivals.end()

    def finish(self, outcome: "Outcome") -> "Outcome":
        """Add up, blind, send; take the blinding off what comes back."""
        plan = self._plan
        self._space.prepare_to_compare()
        common = self._space.common()
        enough = common >= plan.terms.minimum_cardinality
        if not enough and plan.peer_learns:
            self._line.send(pb.PsiMessage(sum=pb.PsiSum(below_minimum=True)))
            return outcome
        # Below the minimum the other, who is to learn nothing, sees no difference: it opens a random number. What is not
        # in common is added up all the same, for nothing, so that the time taken does not tell how much is.
        parts = self._add()
        parts = parts if enough else b""
        total = psi_sum.add_chunk(self._modulus, parts)
        blinded, offset = psi_sum.blind(self._modulus, total, self._bits, not (plan.peer_learns and enough))
        shown = common if plan.peer_learns else 0
        self._line.send(pb.PsiMessage(sum=pb.PsiSum(ciphertext=blinded, common=shown)))
        if not plan.learns:
            return outcome
        opened = self._line.receive("opened").opened
        if not enough:
            return outcome
        return replace(outcome, common=common, total=psi_sum.unblind(opened, offset, self._bits))

    def _add(self) -> bytes:
        def chunks() -> Iterator[tuple[bytes, bytes, list[bool]]]:
            for ciphertexts, met in self._space.ciphertexts(_ADDED):
                self._line.check()
                yield self._modulus, ciphertexts, met

        return b"".join(self._workers.stream(psi_sum.add_some_chunk, chunks()))
