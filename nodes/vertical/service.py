"""The relay between a label holder's call and this node's learning process, aligned rows, and joint scores."""

import asyncio
import contextlib
import functools
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from lianfang.v1 import ledger_pb2, vertical_pb2_grpc
from lianfang.v1 import vertical_pb2 as pb

from federation.errors import LearningError
from federation.job import JobDescriptor
from federation.vertical.links import FRAME
from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from .. import limits
from ..config import Home
from ..errors import NodeError, NotFound, Refused, invalid
from ..gate import SCORE, WORK, Ask
from ..identity.members import Member
from ..people.actions import Action
from ..querier.peers import failed
from ..services import wire
from . import parts
from .rows import Aligned, Rows, holder_rows, least_rows, split

if TYPE_CHECKING:
    from ..learning.desk import Desk
    from ..node import Node

_log = logging.getLogger("lianfang.vertical")
_T = TypeVar("_T")
_AHEAD = 4  # frames on their way through the relay, each way
_LOOK = 64  # frames between two looks at the contract
_PIECE = 20_000  # aligned rows in one message
_KNOWN = 4  # alignments kept in memory
_Frames = asyncio.Queue[pb.VerticalFrame | None]


class _Attendance:
    """A learning process that waits for the label holder, or works with it."""

    def __init__(self) -> None:
        self.inward: _Frames = asyncio.Queue(_AHEAD)
        self.outward: _Frames = asyncio.Queue(_AHEAD)
        self.taken = asyncio.Event()
        self.over = asyncio.Event()


class Relay:
    """Brings the two together, one run of a job at a time."""

    def __init__(self, patience: float, silence: float) -> None:
        """Seconds to wait for the other one, and between two frames."""
        self._patience, self._silence = patience, silence
        self._waiting: dict[bytes, _Attendance] = {}
        self._running: set[_Attendance] = set()
        self._closed = False
        self._came = asyncio.Condition()

    def close(self) -> None:
        """End all runs: the node is stopping."""
        self._closed = True
        for each in self._running:
            each.over.set()

    async def attend(
        self, job: bytes, incoming: AsyncIterator[pb.VerticalFrame]
    ) -> AsyncGenerator[pb.VerticalFrame, None]:
        """The learning process's side: yields what the label holder sends."""
        here = _Attendance()
        async with self._came:
            if self._closed:
                raise Refused("this node is stopping", "STOPPING", grpc.StatusCode.UNAVAILABLE)
            if job in self._waiting:
                raise Refused("this job is attended already", "BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED)
            self._waiting[job] = here
            self._running.add(here)
            self._came.notify_all()
        pump = asyncio.create_task(_pump(incoming, here.outward, here.over))
        try:
            await self._or_over(here, here.taken.wait(), self._patience, "the label holder did not come")
            while frame := await self._or_over(
                here, here.inward.get(), self._silence, "the label holder is silent"
            ):
                yield frame
        finally:
            here.over.set()
            self._waiting.pop(job, None)
            self._running.discard(here)
            pump.cancel()

    async def work(
        self, job: bytes, incoming: AsyncIterator[pb.VerticalFrame], check: Callable[[], None]
    ) -> AsyncGenerator[pb.VerticalFrame, None]:
        """The label holder's side: yields what the learning process answers. `check` raises where the contract has ended."""
        here = await self._find(job)
        here.taken.set()

        async def checked() -> AsyncIterator[pb.VerticalFrame]:
            number = 0
            async for frame in incoming:
                if number % _LOOK == 0:
                    check()
                number += 1
                if frame.WhichOneof("part") == "enter" or len(frame.data) > FRAME:
                    raise invalid("a frame that is no part of a message")
                yield frame

        pump = asyncio.create_task(_pump(checked(), here.inward, here.over))
        try:
            while frame := await self._or_over(
                here, here.outward.get(), self._silence, "this side is silent"
            ):
                yield frame
            if pump.done() and not pump.cancelled() and (error := pump.exception()) is not None:
                raise error
        finally:
            here.over.set()
            pump.cancel()

    async def _find(self, job: bytes) -> _Attendance:
        try:
            async with asyncio.timeout(self._patience), self._came:
                await self._came.wait_for(
                    lambda: job in self._waiting and not self._waiting[job].taken.is_set()
                )
                return self._waiting[job]
        except TimeoutError as error:
            raise Refused(
                "this node's learning process did not take its seat", "NO_SEAT", grpc.StatusCode.UNAVAILABLE
            ) from error

    @staticmethod
    async def _or_over(here: _Attendance, what: Awaitable[_T], seconds: float, why: str) -> _T | None:
        """What comes, or `None` once the other side is gone and nothing is left. Raises `Refused` after too long."""
        wanted, over = asyncio.ensure_future(what), asyncio.ensure_future(here.over.wait())
        try:
            await asyncio.wait({wanted, over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            if over.done():
                return None
            raise Refused(why, "SILENT", grpc.StatusCode.DEADLINE_EXCEEDED)
        finally:
            wanted.cancel()
            over.cancel()


async def _pump(incoming: AsyncIterator[pb.VerticalFrame], to: _Frames, over: asyncio.Event) -> None:
    """Until its sender has said everything."""
    try:
        async for frame in incoming:
            await to.put(frame)
        await to.put(None)
    except BaseException:
        over.set()
        raise


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
        action = Action("VerticalAdmin/Predict", asked, title, {"values": shown})

        def prepare() -> "_Scoring":
            job = vertical.job(vertical.desk.named(request.job))
            if job.holder != vertical._own:
                raise Refused(f"{node.home.name.name} is not the label holder of {job.name}", "NOT_A_PARTY")
            return _Scoring(vertical, job)

        scoring = await asyncio.to_thread(prepare)
        bulk = len(request.values) > node.policy.current.second_person.query_items
        begun = await asyncio.to_thread(node.actions.begin, action, bulk)
        try:
            for i in range(0, len(request.values), scoring.step):
                yield await scoring.score(list(request.values[i : i + scoring.step]))
        except BaseException:
            node.actions.break_off(begun)
            raise


class _Scoring:
    """One person's question to the joint model."""

    def __init__(self, vertical: Vertical, job: JobDescriptor) -> None:
        self._vertical, self._job = vertical, job
        self._part: Any = parts.load(vertical.node.home.data / "models", job)
        self.step = parts.rows_at_once(self._part)
        self._sides = sides = vertical.aligned(job)
        self._kind = Kind(sides[0].kind)
        home = Home(vertical.node.home.file)
        self._region = home.config.lists.default_region
        try:
            self._rows = Rows(home, vertical.node.keys.vault, sides[0], features=self._part.features)
        except LearningError as error:
            raise Refused(str(error), "DATASET", grpc.StatusCode.FAILED_PRECONDITION) from error

    async def score(self, values: list[str]) -> pb.PredictReply:
        """Rows in the order of the values; why there is no score where there is none."""
        rows, found = await asyncio.to_thread(self._find, values)
        if found:
            identifiers = [index for _, index in found]
            replies = await asyncio.gather(
                *(
                    self._ask(partner, [side.ids[index] for index in identifiers])
                    for partner, side in zip(self._job.partners, self._sides, strict=True)
                )
            )
            await asyncio.to_thread(self._complete, rows, found, replies)
        return pb.PredictReply(rows=rows)

    def _find(self, values: list[str]) -> tuple[list[pb.PredictReply.Row], list[tuple[int, bytes]]]:
        rows = [pb.PredictReply.Row(value=value) for value in values]
        found: list[tuple[int, bytes]] = []
        vault = self._vertical.node.keys.vault
        for number, value in enumerate(values):
            try:
                index = vault.index(normalise(self._kind, value, "", "", self._region).canonical)
            except IdentifierError as error:
                rows[number].trouble = str(error)
                continue
            if not all(index in side.ids for side in self._sides):
                rows[number].trouble = "not aligned"
            elif self._rows.places([index])[0] < 0:
                rows[number].trouble = "not in the dataset any more"
            else:
                found.append((number, index))
        return rows, found

    async def _ask(self, partner: str, ids: list[bytes]) -> pb.VerticalReply:
        node = self._vertical.node
        member = node.book.current.get(partner)
        request = pb.VerticalScoreRequest(
            job=self._job.hash(),
            ids=b"".join(ids),
            model=bytes.fromhex(self._part.hash()),
        )
        try:
            reply: pb.VerticalReply = await node.peers.get(member).vertical.Score(
                request, timeout=node.home.config.ask.deadline_seconds + 10
            )
            return reply
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error

    def _complete(
        self,
        rows: list[pb.PredictReply.Row],
        found: list[tuple[int, bytes]],
        replies: list[pb.VerticalReply],
    ) -> None:
        said = [parts.read_said(reply, self._part, len(found)) for reply in replies]
        absent = [parts.read_absent(reply, len(found)) for reply in replies]
        x = self._rows.x[self._rows.places([index for _, index in found])]
        scores = parts.probability(self._part, x, said)
        for place, (number, _) in enumerate(found):
            gone = [
                name.rpartition("/")[2]
                for name, of in zip(self._job.partners, absent, strict=True)
                if of[place]
            ]
            if gone:
                rows[number].trouble = f"{', '.join(gone)} has no row of this customer any more"
            else:
                rows[number].score = float(scores[place])
        self._vertical.record_own(self._job.hash(), len(found))


async def _entered(incoming: AsyncIterator[pb.VerticalFrame]) -> bytes:
    first = await anext(aiter(incoming), None)
    if first is None or first.WhichOneof("part") != "enter" or len(first.enter.job) != 32:
        raise invalid("a run begins with the job's hash")
    return first.enter.job
