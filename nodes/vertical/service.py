"""Vertical jobs on the wire: runs, aligned rows, and what this node's part of a model says."""

import asyncio
import contextlib
import functools
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from lianfang.v1 import ledger_pb2, vertical_pb2_grpc
from lianfang.v1 import vertical_pb2 as pb

from federation.errors import LearningError
from federation.job import JobDescriptor

from .. import limits
from ..config import Home
from ..errors import NodeError, NotFound, Refused, invalid
from ..gate import SCORE, WORK, Ask
from ..identity.members import Member
from ..people.actions import Action
from ..people.tally import EVALUATIONS
from ..services import wire
from . import parts
from .relay import Relay
from .rows import Aligned, Rows, holder_rows, least_rows, split
from .scoring import Scoring

if TYPE_CHECKING:
    from ..learning.desk import Desk
    from ..node import Node

_log = logging.getLogger("lianfang.vertical")
_PIECE = 20_000  # aligned rows in one message
_KNOWN = 4  # alignments kept in memory


class Vertical:
    """What both services share: jobs, what was aligned, and this node's part of models."""

    def __init__(self, node: "Node", desk: "Desk") -> None:
        self.node, self.desk = node, desk
        learn = node.home.config.learn
        self.relay = Relay(learn.entry_seconds, learn.compute_seconds)
        self._own = str(node.home.name)
        self._lock = threading.Lock()
        self._known: dict[bytes, Aligned] = {}  # by session

    def job(self, job_hash: bytes) -> JobDescriptor:
        """A vertical job whose contract is in force, of which this node is a party. Raises `Refused` or `NotFound`."""
        job = self.desk.find(job_hash)
        if job.kind != "vertical" or self._own not in job.parties:
            raise Refused(f"{job.name} is no vertical job of this node", "NOT_A_PARTY")
        self.node.contracts.job(job_hash)
        return job

    def asked_by(self, job_hash: bytes, member: Member) -> JobDescriptor:
        """The same, asked for by its label holder."""
        job = self.job(job_hash)
        if job.holder != member.id or self._own == job.holder:
            raise Refused(f"{member.name.name} is not the label holder of {job.name}", "NOT_A_PARTY")
        return job

    def aligned(self, job: JobDescriptor) -> list[Aligned]:
        """With every partner, or with the label holder. Raises `Refused` where that was not done here."""
        partners = job.partners if job.holder == self._own else [self._own]
        return [self._aligned(job, partner) for partner in partners]

    def _aligned(self, job: JobDescriptor, partner: str) -> Aligned:
        contract, session = job.alignment_of(partner)
        other = partner if job.holder == self._own else job.holder
        with self._lock:
            if session not in self._known:
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[session] = self._read(other, contract, session)
            return self._known[session]

    def _read(self, other: str, contract: bytes, session: bytes) -> Aligned:
        name = other.rpartition("/")[2]
        try:
            held = self.node.contracts.find(contract.hex())
            data = self.node.sessions.aligned(self.node.book.current.get(other), contract, session)
        except NotFound as error:
            raise Refused(
                f"the session {session.hex()[:12]} with {name} was not held here", "ALIGNMENT"
            ) from error
        terms = held.terms.psi
        if {each.party for each in terms.inputs} != {self._own, other}:
            raise Refused(f"{held.name} is no alignment with {name}", "ALIGNMENT")
        own = next(each for each in terms.inputs if each.party == self._own)
        pairs = {data[i : i + 16]: data[i + 16 : i + 32] for i in range(0, len(data), 32)}
        return Aligned(other, own.dataset, own.column, terms.kind, terms.minimum_cardinality, pairs)

    def check(self, job: JobDescriptor) -> None:
        """Before this node signs a contract over it: all that a run would need. Raises `Refused` or `LearningError`."""
        home, vault, sides = Home(self.node.home.file), self.node.keys.vault, self.aligned(job)
        if job.holder == self._own:
            holder_rows(home, vault, job, sides)
            return
        (aligned,) = sides
        Rows(home, vault, aligned).all_places(list(aligned.identifiers.values()))
        if len(aligned.identifiers) < least_rows(aligned):
            raise Refused(f"{len(aligned.identifiers)} aligned rows are too few for a job", "ALIGNMENT")

    def say(
        self, job: JobDescriptor, ids: list[bytes], model: str, admit: Callable[[], object]
    ) -> pb.VerticalReply:
        """At a partner: what its part says of aligned rows. Raises `Refused`; `admit` is called before the work begins."""
        part = parts.load(self.node.home.data / "models", job, model)
        (aligned,) = self.aligned(job)
        if not set(ids) <= aligned.identifiers.keys():
            raise Refused("a row that was not aligned", "ALIGNMENT")
        admit()
        rows = Rows(Home(self.node.home.file), self.node.keys.vault, aligned, features=part.features)
        places = rows.places([aligned.identifiers[each] for each in ids])
        return parts.say(part, rows.x[places], places < 0)

    def ask(self, action: str, job_hash: bytes, member: Member, count: int = 0) -> Ask:
        """For the gate; refused is who is not the job's label holder."""
        query_id = secrets.token_bytes(16)
        check = functools.partial(self.asked_by, job_hash, member)
        return Ask(member, action, job_hash.hex(), 0, count, query_id, job_hash, check=check)

    def record_own(self, job_hash: bytes, count: int) -> None:
        """That this node, the label holder, has scored rows."""
        entry = self.node.log.prepare(
            ledger_pb2.EVENT_TYPE_JOB_ROUND,
            "",
            secrets.token_bytes(16),
            resource=job_hash.hex(),
            reason="scored",
            count=count,
        )
        self.node.writer.submit(lambda connection: self.node.log.record(connection, entry)).result()


_GATES = frozenset({"BUDGET", "UNPUBLISHED"})  # what the gate has said itself, and has recorded


def _refuse(error: NodeError) -> None:
    raise error


class VerticalService(vertical_pb2_grpc.VerticalServicer):
    """On the peer port."""

    def __init__(self, authenticator: wire.Authenticator, vertical: Vertical) -> None:
        self._authenticator, self._vertical = authenticator, vertical

    @wire.streaming
    async def Work(
        self, request_iterator: AsyncIterator[pb.VerticalFrame], context: Any
    ) -> AsyncIterator[pb.VerticalFrame]:
        """See vertical.proto."""
        member = self._authenticator.member(context)
        job_hash = await _entered(request_iterator)
        await self._vertical.node.gate.decide(self._vertical.ask(WORK, job_hash, member))
        job = await asyncio.to_thread(self._vertical.asked_by, job_hash, member)

        def check() -> None:
            self._vertical.node.contracts.job(job_hash)

        _log.info("%s works on %s", member.name.name, job.name)
        async with contextlib.aclosing(
            self._vertical.relay.work(job_hash, request_iterator, check)
        ) as frames:
            async for frame in frames:
                yield frame

    @wire.unary
    async def Score(self, request: pb.VerticalScoreRequest, context: Any) -> pb.VerticalReply:
        """See vertical.proto."""
        member = self._authenticator.member(context)
        vertical = self._vertical
        ids = split(request.ids, 16)
        if len(request.job) != 32 or not 0 < len(ids) <= parts.SCORED or len(request.ids) % 16:
            raise invalid(f"1 to {parts.SCORED:,} rows are scored at once")

        gate, ask = vertical.node.gate, vertical.ask(SCORE, request.job, member, len(ids))

        def work() -> pb.VerticalReply:
            try:
                job = vertical.asked_by(request.job, member)
                return vertical.say(job, ids, request.model.hex(), lambda: gate.admit(ask))
            except LearningError as error:
                raise Refused(error.public, "DATASET", grpc.StatusCode.FAILED_PRECONDITION) from error
            except (Refused, NotFound) as error:
                if error.reason not in _GATES:
                    gate.admit(replace(ask, check=functools.partial(_refuse, error)))  # on record
                raise

        return await asyncio.to_thread(work)


class VerticalAdminService(vertical_pb2_grpc.VerticalAdminServicer):
    """On the node's socket."""

    def __init__(self, vertical: Vertical) -> None:
        self._vertical = vertical

    @wire.streaming
    async def Attend(
        self, request_iterator: AsyncIterator[pb.VerticalFrame], context: Any
    ) -> AsyncIterator[pb.VerticalFrame]:
        """See vertical.proto."""
        job_hash = await _entered(request_iterator)
        await asyncio.to_thread(self._vertical.job, job_hash)
        async with contextlib.aclosing(self._vertical.relay.attend(job_hash, request_iterator)) as frames:
            async for frame in frames:
                yield frame

    @wire.streaming
    async def Aligned(self, request: pb.AlignedRequest, context: Any) -> AsyncIterator[pb.AlignedRows]:
        """See vertical.proto."""

        def work() -> list[Aligned]:
            return self._vertical.aligned(self._vertical.job(request.job))

        for each in await asyncio.to_thread(work):
            pairs = list(each.identifiers.items())
            for i in range(0, len(pairs), _PIECE):
                piece = pairs[i : i + _PIECE]
                yield pb.AlignedRows(
                    partner=each.partner,
                    ids=b"".join(id_ for id_, _ in piece),
                    identifiers=b"".join(index for _, index in piece),
                    dataset=each.dataset,
                    column=each.column,
                    kind=each.kind,
                    minimum=each.minimum,
                )

    @wire.streaming
    async def Predict(self, request: pb.PredictRequest, context: Any) -> AsyncIterator[pb.PredictReply]:
        """See vertical.proto."""
        vertical, node = self._vertical, self._vertical.node
        asked = request.SerializeToString(deterministic=True)
        shown = [value[: limits.ACTION_CHARACTERS] for value in request.values[: limits.ACTION_SHOWN]]
        title = f"score {len(request.values):,} customers by {request.job[:60]}"
        action = Action(
            "VerticalAdmin/Predict", asked, title, {"values": shown}, len(request.values), EVALUATIONS
        )

        def prepare() -> Scoring:
            job = vertical.job(vertical.desk.named(request.job))
            if job.holder != vertical._own:
                raise Refused(f"{node.home.name.name} is not the label holder of {job.name}", "NOT_A_PARTY")
            return Scoring(vertical, job)

        scoring = await asyncio.to_thread(prepare)
        bulk = len(request.values) > node.policy.current.second_person.query_items
        begun = await asyncio.to_thread(node.actions.begin, action, bulk)
        try:
            for i in range(0, len(request.values), scoring.step):
                yield await scoring.score(list(request.values[i : i + scoring.step]))
        except BaseException:
            node.actions.break_off(begun)
            raise


async def _entered(incoming: AsyncIterator[pb.VerticalFrame]) -> bytes:
    first = await anext(aiter(incoming), None)
    if first is None or first.WhichOneof("part") != "enter" or len(first.enter.job) != 32:
        raise invalid("a run begins with the job's hash")
    return first.enter.job
