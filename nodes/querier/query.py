"""Asking: one question to all holders at once, each reported by itself."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from lianfang.v1 import common_pb2 as common
from lianfang.v1 import ledger_pb2, lookup_pb2

from protocols import group, padding, sealed, voprf
from protocols.errors import PeerError, SignatureError
from protocols.identifiers import form_text
from protocols.label import Label
from protocols.ledger import events
from protocols.lookup import Question
from protocols.sealed import ListEpoch

from .. import limits
from ..config import AskSection
from ..contracts.rules import Rules
from ..errors import NodeError, NotFound, Refused
from ..gate import Promised
from ..identity.institutions import Institutions
from ..identity.members import Member
from ..identity.names import MemberName
from ..ledger.book import Entry, LogBook
from ..policy import PURPOSE_NAMES
from ..services import wire
from ..services.lookup import check_event, event_fields
from ..workers import Workers
from .follow import Follower
from .peers import UNKNOWN_THERE, PeerFailed, Peers, failed
from .questions import Answer, Batch, Job, Outcome, Questions
from .recording import Recording
from .sync import Synced, Syncer
from .tables import Tables

_T = TypeVar("_T")
_log = logging.getLogger("lianfang.ask")
_TRY_AGAIN = ("BEHIND", "UNREACHABLE", *UNKNOWN_THERE)
_AT_ONCE = max(4, group.AT_ONCE // 4)  # elements that are finished within a millisecond: tables are read, too
_SECONDS_PER_ELEMENT = 0.004  # allowed on top of the deadline for a batch's own arithmetic


class Inputs(Protocol):
    """The identifiers of a question; a list is asked for them in the form that its entries have."""

    @property
    def count(self) -> int:
        """How many there are, as this node writes them."""

    def under(self, form: bytes) -> Sequence[bytes]:
        """Canonical identifiers in a form that this node can write. Raises `Refused` where a value has none in it."""


@dataclass
class Target:
    """One holder's list, and what is to be asked of it."""

    member: Member
    copy: Synced | None
    list_name: str = ""  # empty where none is known
    todo: list[bytes] = field(default_factory=list)
    known: dict[bytes, Answer] = field(default_factory=dict)
    pending: list[Batch] = field(default_factory=list)
    budget: common.Budget | None = None
    trouble: tuple[str, str] | None = None  # outcome, why it cannot be asked
    as_of: float = 0.0  # when the holder last said that the copy is its newest

    def parts(self) -> list[tuple[list[bytes], int]]:
        """New batches: (inputs, padded size)."""
        step = limits.BATCH_ELEMENTS
        chunks = [self.todo[i : i + step] for i in range(0, len(self.todo), step)]
        return [(chunk, padding.bucket(len(chunk))) for chunk in chunks]

    @property
    def cost(self) -> int:
        """Evaluations that may be charged: new batches, and those that were asked without an answer."""
        again = sum(padding.bucket(len(batch.inputs)) for batch in self.pending)
        return again + sum(count for _, count in self.parts())


@dataclass(frozen=True)
class Answered:
    """Answers of one holder's list to some identifiers."""

    target: Target
    answers: Sequence[Answer]
    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """A holder is through: answered, refused, timeout, unreachable or failed."""

    target: Target
    outcome: str
    detail: str
    charged: int


@dataclass
class _Opened:
    """A batch that is blinded and on record, and may be sent."""

    question: Question
    request: lookup_pb2.EvaluateRequest
    fields: dict[str, Any]  # what both sides record of it
    recorded: Entry


_Opening = asyncio.Future[dict[bytes, _Opened]]  # by query id


class Asker:
    """One per node."""

    def __init__(
        self,
        name: MemberName,
        peers: Peers,
        syncer: Syncer,
        tables: Tables,
        questions: Questions,
        workers: Workers,
        settings: AskSection,
        capture: wire.Capture,
        log: LogBook,
        rules: Rules,
        follower: Follower,
        institutions: Institutions,
    ) -> None:
        self._institutions = institutions
        self._log, self._rules, self._follower = log, rules, follower
        self._name, self._peers, self._syncer, self._tables = name, peers, syncer, tables
        self._questions, self._workers, self._settings = questions, workers, settings
        self._capture = capture
        self._fast = ThreadPoolExecutor(2, "ask")
        self._bulk = ThreadPoolExecutor(16, "ask-bulk")

    def close(self) -> None:
        """Let what runs end."""
        self._fast.shutdown()
        self._bulk.shutdown()

    # -- planning --------------------------------------------------------------------------------------------

    async def plan(
        self,
        job: Job,
        inputs: Inputs,
        members: Sequence[Member],
        lists: Sequence[str],
        again: bool,
        deadline: float,
        named: bool = True,
    ) -> list[Target]:
        """Bring the copies up to date where they are too old, and see what each holder has to be asked.

        `inputs` are asked of each list in the form that its entries have. Takes no longer than `deadline` seconds,
        whatever a holder does. `named`: a person chose the members. Raises `NotFound` for a list that no contract names.
        """
        groups = await asyncio.gather(*(self._targets(member, lists, named, deadline) for member in members))
        targets = [target for group in groups for target in group]
        for name in lists:
            if not any(target.list_name == name for target in targets) and not named:
                raise NotFound(f"no contract in force lets this node ask a list {name!r}")
        if inputs.count <= limits.BATCH_INLINE:
            self._fill_all(job, inputs, targets, again)  # a few short reads; a thread hop costs as much
        else:
            await asyncio.to_thread(self._fill_all, job, inputs, targets, again)
        return targets

    def _fill_all(self, job: Job, inputs: Inputs, targets: list[Target], again: bool) -> None:
        asked: dict[bytes, Sequence[bytes]] = {}
        for target in targets:
            if target.copy is not None and target.trouble is None and target.copy.form not in asked:
                try:
                    asked[target.copy.form] = inputs.under(target.copy.form)
                except Refused as error:
                    target.trouble = ("not-asked", f"{target.member.name.name}: {error}")
        recalled = list(dict.fromkeys(each for form_inputs in asked.values() for each in form_inputs))
        kept, pending = self._questions.recall(job, recalled, again)
        for target in targets:
            if target.copy is not None and target.trouble is None:
                try:
                    self._rules.check_own(target.member, target.copy.list, job.purpose, job.basis)
                except Refused as error:
                    target.trouble = ("refused", str(error))
                    continue
                try:
                    self._fill(asked[target.copy.form], target, kept, pending)
                except NodeError as error:
                    target.trouble = ("failed", str(error))

    async def fresh_budgets(self, targets: Sequence[Target], deadline: float) -> None:
        """Ask holders what is left, for a plan that somebody decides by. Who does not answer stays as last told."""

        async def one(member: Member) -> None:
            try:
                info = await self._syncer.info(member, deadline)
            except NodeError:
                return
            for head in info.lists[: limits.LISTS_A_HOLDER]:
                self._syncer.note_budget(member.id, head.list, head.budget)

        asked = {target.member.id: target.member for target in targets if target.copy and not target.trouble}
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*map(one, asked.values())), deadline)
        for target in targets:
            if target.copy is not None:
                target.budget = self._syncer.offer(target.copy.holder, target.copy.list)

    async def _targets(
        self, member: Member, lists: Sequence[str], named: bool, deadline: float
    ) -> list[Target]:
        """All lists of a member that contracts in force let this node ask, each with its copy or why it has none."""
        agreed = self._rules.agreed().get(member.id, set())
        copies = {copy.list: copy for copy in self._syncer.copies(member.id)}
        known = self._syncer.contact(member.id)
        chosen = {name for name in agreed | set(copies) if not lists or name in lists}
        if not chosen and not named:
            return []
        if not agreed:
            why = f"{member.name.name}: no contract in force lets this node ask it: {self._rules.why_none(member)}"
            return [
                Target(member, copies.get(name), name, trouble=("refused", why))
                for name in sorted(chosen or {""})
            ]
        if not chosen:
            why = f"{member.name.name}: no contract in force lets this node ask the list {', '.join(lists)} of it"
            return [Target(member, None, trouble=("refused", why))]
        heard = self._follower.heard(member.id)
        said = {name: heard.lists.get(name) for name in chosen} if heard else {}
        held = {name: (copies[name].epoch, copies[name].batch) if name in copies else None for name in chosen}
        too_old = time.time() - self._settings.max_table_age_hours * 3600
        oldest = min((copies[name].checked_at for name in chosen if name in copies), default=known)
        trouble = None
        if said != held if heard else (min(oldest, known) < too_old or None in held.values()):
            trouble = await self._synced(member, deadline, too_old)
            copies = {copy.list: copy for copy in self._syncer.copies(member.id)}
        return [self._target(member, name, copies.get(name), trouble) for name in sorted(chosen)]

    async def _synced(self, member: Member, deadline: float, too_old: float) -> tuple[str, str] | None:
        """Bring the member's lists up to date; the outcome and why, where that failed."""
        name = member.name.name
        try:
            copies = await asyncio.wait_for(self._syncer.sync(member), deadline)
            if any(copy.checked_at < too_old for copy in copies):
                return "failed", f"{name} did not confirm what its newest list is"
        except TimeoutError:
            return "timeout", f"{name}: its list did not sync in time; run `lianfang sync {name}`"
        except PeerFailed as error:
            return error.outcome, str(error)
        except Exception as error:  # one holder's failure is not the others'
            if not isinstance(error, NodeError):
                _log.exception("sync of %s failed", name)
            return "failed", str(error)
        return None

    def _target(
        self, member: Member, name: str, copy: Synced | None, trouble: tuple[str, str] | None
    ) -> Target:
        if trouble is None and copy is None:
            why = f"{member.name.name} offers no list {name} to this node now: not activated, or withdrawn"
            trouble = ("not-offered", why)
        elif trouble is None and copy is not None and self._institutions.of(copy.form) is None:
            trouble = (
                "not-asked",
                f"{member.name.name} normalises identifiers of {name} in a form ({form_text(copy.form)}) that this node "
                f"({form_text(self._institutions.current.form)}) cannot write: entries would be missed; both need the "
                "same release and the network's directory of institutions",
            )
        return Target(member, copy, name, trouble=trouble)

    def _fill(
        self,
        inputs: Sequence[bytes],
        target: Target,
        kept: dict[tuple[str, str], dict[bytes, Answer]],
        pending: Sequence[Batch],
    ) -> None:
        assert target.copy is not None
        copy = target.copy
        self._syncer.pins.check(copy.holder, copy.list)
        target.budget = self._syncer.offer(copy.holder, copy.list)
        target.as_of = self._follower.as_of(copy)
        for batch in pending:
            if (batch.holder, batch.list) == (copy.holder, copy.list):
                if batch.epoch == copy.epoch:
                    target.pending.append(batch)
                else:
                    self._questions.end(batch, "void")
        target.known = self._current(copy, kept.get((copy.holder, copy.list), {}))
        under_way = {each for batch in target.pending for each in batch.inputs}
        target.todo = [each for each in inputs if each not in target.known and each not in under_way]

    def _current(self, copy: Synced, known: dict[bytes, Answer]) -> dict[bytes, Answer]:
        """A kept hit counts while its record is unchanged, a kept miss while the whole list is.

        Both only while the holder's own word, a minute old at most, confirms that the copy is its newest.
        """
        if not self._follower.confirms(copy):
            return {}
        known = {
            each.identifier: each
            for each in known.values()
            if each.label or (each.epoch, each.batch) == (copy.epoch, copy.batch)
        }
        hits = [each for each in known.values() if each.label]
        found = self._tables.get(copy.holder, copy.list, copy.epoch).get([each.tag for each in hits])
        for each, record in zip(hits, found, strict=True):
            if record is None or record[0] != each.batch:
                del known[each.identifier]
        return known

    # -- asking ----------------------------------------------------------------------------------------------

    async def ask(
        self, job: Job, targets: Sequence[Target], deadline: float
    ) -> AsyncIterator[Answered | Finished]:
        """Ask all targets at once. Each ends with one `Finished`; none waits for another."""
        told: asyncio.Queue[Answered | Finished] = asyncio.Queue()
        self._log.check_standing(PURPOSE_NAMES[job.purpose])
        queues = [self._batches(job, target) for target in targets]
        # Small questions to several holders wait for the disk once, together.
        together = [queue[0] for queue in queues if queue and len(queue[0].inputs) <= limits.BATCH_INLINE]
        opening = asyncio.ensure_future(self._open(job, together))
        recording = Recording(self._questions.answered, len(targets))
        tasks = [
            asyncio.create_task(self._ask_one(job, target, queue, opening, recording, deadline, told))
            for target, queue in zip(targets, queues, strict=True)
        ]
        try:
            remaining = len(tasks)
            while remaining:
                event = await told.get()
                remaining -= isinstance(event, Finished)
                yield event
        finally:
            for task in (*tasks, opening):
                task.cancel()

    def _batches(self, job: Job, target: Target) -> list[Batch]:
        """What is to be asked of a target: first again what has no answer yet."""
        if target.copy is None or target.trouble is not None:
            return []
        where = (target.copy.holder, target.copy.list, target.copy.epoch)
        new = [self._questions.prepare(job, *where, inputs) for inputs, _ in target.parts()]
        return [*target.pending, *new]

    async def _open(self, job: Job, batches: Sequence[Batch]) -> dict[bytes, _Opened]:
        """Blind batches and record them, with the log's events, in one transaction.

        Leaves out a batch whose epoch has gone.
        """
        copies = [self._syncer.copy(batch.holder, batch.list, batch.epoch) for batch in batches]
        asked = [
            (batch, Question(copy.public_key, batch.inputs, batch.seed))
            for batch, copy in zip(batches, copies, strict=True)
            if copy is not None
        ]
        Question.blind_together([question for _, question in asked])
        begun = []
        for batch, question in asked:
            blinded = await self._run(batch, question, question.request)
            request = lookup_pb2.EvaluateRequest(
                suite=common.SUITE_RISTRETTO255_SHA512,
                list=batch.list,
                epoch=batch.epoch,
                query_id=batch.query_id,
                purpose=job.purpose,  # type: ignore[arg-type]
                basis=job.basis,  # type: ignore[arg-type]
                case_commitment=job.case_commitment,
                asker=batch.asker,
                blinded=blinded,
            )
            fields = event_fields(request)
            entry = self._log.prepare(
                ledger_pb2.EVENT_TYPE_QUERY_ASKED, batch.holder, batch.query_id, **fields
            )
            begun.append((batch, _Opened(question, request, fields, entry)))
        if not begun:
            return {}
        recording = self._questions.begin(
            job, [(batch, opened.question.size, opened.recorded) for batch, opened in begun]
        )
        for _, opened in begun:  # while the disk is waited for; nothing is sent before
            opened.request.receipt.CopyFrom(self._log.receipt(opened.recorded))
        for (_, opened), recorded in zip(begun, await recording, strict=True):
            if recorded is not opened.recorded:  # it was begun before
                opened.recorded = recorded
                opened.request.receipt.CopyFrom(self._log.receipt(recorded))
        return {batch.query_id: opened for batch, opened in begun}

    async def _run(self, batch: Batch, question: Question, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work(*arguments, runner)`; off the event loop, and on the worker processes, as it is larger."""
        if question.size <= _AT_ONCE:
            return work(*arguments, voprf.inline)
        small = question.size <= max(limits.BATCH_INLINE, group.AT_ONCE)
        executor = self._fast if small else self._bulk
        run = voprf.inline if small else self._workers.run
        call = functools.partial(work, *arguments, run)
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    async def _ask_one(
        self,
        job: Job,
        target: Target,
        queue: list[Batch],
        opening: _Opening,
        recording: Recording,
        deadline: float,
        told: "asyncio.Queue[Answered | Finished]",
    ) -> None:
        charged = [0]
        try:
            if target.trouble is not None or target.copy is None:
                outcome, detail = target.trouble or ("failed", "no copy of a list")
                told.put_nowait(Finished(target, outcome, detail, 0))
                return
            total = len(target.known) + len(target.todo) + sum(len(each.inputs) for each in target.pending)
            done = len(target.known)
            if done:
                told.put_nowait(Answered(target, list(target.known.values()), done, total))
            while queue:
                batch = queue.pop(0)
                answers, replacement = await self._ask_batch(
                    job, target, batch, opening, recording, deadline, charged
                )
                if replacement is not None:
                    queue[:0] = replacement
                    continue
                done += len(answers)
                told.put_nowait(Answered(target, answers, done, total))
            told.put_nowait(Finished(target, "answered", "", charged[0]))
        except PeerFailed as error:
            told.put_nowait(Finished(target, error.outcome, str(error), charged[0]))
        except NodeError as error:
            told.put_nowait(Finished(target, "failed", str(error), charged[0]))
        except PeerError as error:
            detail = f"{target.member.name.name}: {error}"
            told.put_nowait(Finished(target, "failed", detail, charged[0]))
        except Exception as error:  # the other holders' answers must not be lost with this one's
            _log.exception("asking %s failed", target.member.name.name)
            told.put_nowait(
                Finished(target, "failed", f"this node failed: {type(error).__name__}", charged[0])
            )
        finally:
            recording.leave()

    async def _ask_batch(
        self,
        job: Job,
        target: Target,
        batch: Batch,
        opening: _Opening,
        recording: Recording,
        deadline: float,
        charged: list[int],
    ) -> tuple[list[Answer], list[Batch] | None]:
        """(answers, batches to ask instead); adds what the holder charged to `charged`."""
        opened = (await asyncio.shield(opening)).get(batch.query_id)
        if opened is None:
            opened = (await self._open(job, [batch])).get(batch.query_id)
        if opened is None:
            return [], await self._replace(job, target, batch)
        question, request = opened.question, opened.request
        try:
            response = await self._send(
                target, batch, request, deadline + _SECONDS_PER_ELEMENT * question.size
            )
        except PeerFailed as error:
            if error.reason == "EPOCH":
                replaced = await self._replace(job, target, batch)
                return [], replaced
            age = time.time() - opened.recorded.committed.event.at / 1000
            if error.reason == "AGED" and age > limits.CLOCK_SKEW.total_seconds():
                # It never reached the holder: asked under a record of now, and charged once as before.
                await asyncio.wrap_future(self._questions.end(batch, "void"))
                return [], [self._questions.prepare(job, batch.holder, batch.list, batch.epoch, batch.inputs)]
            if error.outcome == "refused":
                await asyncio.wrap_future(self._questions.end(batch, "refused"))
            raise
        charged[0] += 0 if response.repeated_answer else question.size
        promised = self._answered(target.member, opened, response)
        finish = functools.partial(
            self._finish, job, batch, request.table_batch, question, response, promised
        )
        outcome = await self._run(batch, question, finish)
        await recording.record(outcome)
        target.budget = response.budget
        self._syncer.note_budget(batch.holder, batch.list, response.budget)
        return outcome.answers, None

    def _answered(
        self,
        member: Member,
        opened: _Opened,
        response: lookup_pb2.EvaluateResponse,
    ) -> Promised:
        """The holder's receipt: that it has recorded this request, and our record of it. Raises a `PeerError`."""
        asked = opened.recorded.committed
        committed = events.verify_receipt(response.receipt, member.verifier, member.id)
        answered = {
            "type": ledger_pb2.EVENT_TYPE_QUERY_ANSWERED,
            "id": asked.event.id,
            "peer": self._log.owner,
        }
        check_event(committed.event, answered | opened.fields)
        if committed.event.peer_leaf != asked.commitment:
            raise SignatureError("the holder's receipt names another record of ours")
        at, skew = committed.event.at / 1000, limits.CLOCK_SKEW.total_seconds()
        if not asked.event.at / 1000 - skew <= at <= time.time() + skew:
            raise SignatureError("the holder's receipt is of another time than the question")
        if not 0 <= response.receipt.include_by - at <= limits.RECEIPT_SECONDS:
            raise SignatureError("the holder's receipt promises the log's entry for too late")
        return response.receipt, committed

    def _copy(self, batch: Batch) -> Synced:
        """The copy a batch was asked of; raises `PeerFailed` where its epoch has gone meanwhile."""
        copy = self._syncer.copy(batch.holder, batch.list, batch.epoch)
        if copy is None:
            raise PeerFailed("failed", f"the copy of {batch.list}, epoch {batch.epoch}, has gone", "EPOCH")
        return copy

    async def _send(
        self, target: Target, batch: Batch, request: lookup_pb2.EvaluateRequest, timeout: float
    ) -> lookup_pb2.EvaluateResponse:
        """Send, and once more where the holder was unreachable or our copy was behind."""
        end = time.monotonic() + timeout
        retried: set[str] = set()
        while True:
            request.table_batch = self._copy(batch).batch
            request.asked_at = int(time.time())
            self._capture.record("out", "Evaluate", target.member.id, request)
            try:
                response = await self._peers.get(target.member).lookup.Evaluate(
                    request, timeout=max(0.05, end - time.monotonic())
                )
                self._capture.record("in", "Evaluate", target.member.id, response)
                return response
            except grpc.aio.AioRpcError as error:
                failure = failed(target.member, error)
                if failure.reason in retried or failure.reason not in _TRY_AGAIN:
                    raise failure from error
                retried.add(failure.reason)
                if failure.reason in UNKNOWN_THERE:
                    await self._syncer.info(target.member, max(0.05, end - time.monotonic()))
                elif failure.reason == "BEHIND":
                    await self._resync(target, end)
                else:
                    await asyncio.sleep(0.1)

    async def _resync(self, target: Target, end: float) -> None:
        try:
            copies = await asyncio.wait_for(
                self._syncer.sync(target.member), max(0.05, end - time.monotonic())
            )
        except TimeoutError:
            name = target.member.name.name
            raise PeerFailed("timeout", f"{name}: syncing its list did not end in time", "TIMEOUT") from None
        same = [copy for copy in copies if copy.list == target.list_name]
        if not same:
            raise Refused(f"{target.member.name.name} no longer offers {target.list_name}", "POLICY")
        target.copy = same[0]

    async def _replace(self, job: Job, target: Target, batch: Batch) -> list[Batch]:
        """The epoch is closed: ask the same identifiers of the newest one."""
        await asyncio.wrap_future(self._questions.end(batch, "void"))
        before = batch.epoch
        await self._resync(target, time.monotonic() + self._settings.sync_deadline_seconds)
        copy = target.copy
        assert copy is not None
        if copy.epoch <= before:
            raise Refused(f"{target.member.name.name} closed epoch {before} and opened no other", "EPOCH")
        return [self._questions.prepare(job, copy.holder, copy.list, copy.epoch, batch.inputs)]

    def _finish(
        self,
        job: Job,
        batch: Batch,
        table_batch: int,
        question: Question,
        response: lookup_pb2.EvaluateResponse,
        promised: Promised,
        run: voprf.Runner,
    ) -> Outcome:
        outputs = question.finish(response.evaluated, response.proof, run)
        table = self._tables.existing(batch.holder, batch.list, batch.epoch, table_batch)
        tags = sealed.tags_of(outputs)
        records = table.get(tags)
        context = ListEpoch(self._name.network, batch.holder, batch.list, batch.epoch).context
        listed = [(o, *record) for o, record in zip(outputs, records, strict=True) if record is not None]
        labels = iter(sealed.open_each(context, listed))
        answers = []
        for identifier, tag, record in zip(batch.inputs, tags, records, strict=True):
            if record is None:
                answers.append(Answer(identifier, b"", bytes(sealed.TAG), batch.epoch, table_batch))
                continue
            label = next(labels)
            if isinstance(
                label, PeerError
            ):  # one record that its holder sealed wrongly does not cost the others
                answers.append(Answer(identifier, b"", tag, batch.epoch, record[0], unreadable=True))
            else:
                answers.append(Answer(identifier, label.encode(), tag, batch.epoch, record[0]))
        return self._questions.outcome(job, batch, answers, response.budget.SerializeToString(), promised)


def label_of(answer: Answer) -> Label | None:
    """The label of a hit."""
    return Label.decode(answer.label) if answer.label else None
