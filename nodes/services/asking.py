"""Questions of this node's own people: what was written becomes identifiers, what holders answered becomes messages."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from lianfang.v1 import admin_pb2 as pb
from lianfang.v1 import common_pb2 as common

from protocols import label as labels
from protocols.errors import IdentifierError
from protocols.identifiers import Directory, Identifier, Kind, form_text, normalise, recognise
from protocols.identifiers.kinds import REVIEW_ONLY
from protocols.identifiers.text import check_whole, clean
from protocols.label import Label, slug

from .. import limits, words
from ..errors import Refused, invalid
from ..gate import deciding
from ..holder.lists import today
from ..identity.institutions import DirectoryFile
from ..people.actions import Action, Begun
from ..people.book import caller
from ..people.tally import EVALUATIONS
from ..policy import BASIS_NAMES, PURPOSE_NAMES
from ..querier.query import Answered, Finished, Target, label_of
from ..querier.questions import Job
from ..report import date_text

if TYPE_CHECKING:
    from ..node import Node

_ANSWERS_A_MESSAGE = 1_000
_MARGIN = 0.5  # seconds before a caller's own deadline at which its answer leaves


class Asking:
    """One per node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def collected(self, request: pb.QueryRequest, remaining: float | None) -> list[pb.QueryEvent]:
        """All events at once, before `remaining` seconds are over: who is late then is told as such, and the others' answers are not lost.

        Raises `Refused`, also where not even the plan was ready.
        """
        # Copies may be synced first, for as long as each holder has for its answer.
        seconds = 2 * self._deadline(request) + 1
        if remaining is not None:
            seconds = max(0.0, min(seconds, remaining - _MARGIN))
        told: list[pb.QueryEvent] = []
        try:
            async with (
                asyncio.timeout(seconds),
                contextlib.aclosing(self.events(request, whole=True)) as events,
            ):
                async for event in events:
                    told.append(event)
        except TimeoutError as error:
            if not told:
                raise Refused(
                    "nothing was asked: there was no time left",
                    "TIMEOUT",
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ) from error
            ended = {(event.holder.member, event.holder.list) for event in told if event.HasField("holder")}
            for each in told[0].plan.holders:
                if (each.member, each.list) not in ended:
                    late = pb.QueryHolder(
                        member=each.member,
                        list=each.list,
                        outcome="timeout",
                        detail=f"{each.member} did not answer in time",
                    )
                    told.append(pb.QueryEvent(holder=late))
        return told

    def _deadline(self, request: pb.QueryRequest) -> float:
        return request.deadline_s or self._node.home.config.ask.deadline_seconds

    async def events(
        self, request: pb.QueryRequest, whole: bool = False
    ) -> AsyncGenerator[pb.QueryEvent, None]:
        """The plan, then answers as they come, then one end for each holder; see admin.proto. Raises `Refused`.

        `whole`: nothing counts as told before everything is.
        """
        node = self._node
        own = str(node.home.name)
        check_question(request)
        values = Values(node, request)
        if len(request.items) <= limits.BATCH_INLINE:
            recognised = values.read()
        else:
            recognised = await asyncio.to_thread(values.read)
        problems = problems_of(recognised)
        places = values.places
        members = [node.peers.find(text, own) for text in request.members] or node.peers.others(own)
        person = caller()
        job = await node.questions.job(request.case_number, request.purpose, request.basis, person.pseudonym)
        deadline = self._deadline(request)
        targets = await node.asker.plan(
            job, values, members, list(request.lists), request.again, deadline, bool(request.members)
        )
        if request.plan_only or values.count > limits.BATCH_INLINE:
            await node.asker.fresh_budgets(targets, deadline)
        plan = plan_message(targets, problems, values.count, recognised, request.purpose)
        plan.asker = person.person.name if person.person else ""
        yield pb.QueryEvent(plan=plan)
        if request.plan_only:
            return
        if not places:
            return
        method = "Admin/Ask" if whole else "Admin/Query"
        begun = await self.begin_query(request, targets, problems, person.pseudonym, method)
        # What is asked again costs again: then what broke off is not approved any more.
        complete, answered = request.again, False
        try:
            async for message in self._ask(replace(job, alone=begun is None), targets, places, deadline):
                answered = answered or message.holder.outcome == "answered"
                complete = complete or (answered and not whole)
                yield message
            complete = complete or answered
        finally:
            if not complete:
                node.actions.break_off(begun)

    async def begin_query(
        self,
        request: pb.QueryRequest,
        targets: list[Target],
        problems: list[pb.ItemProblem],
        asker: bytes,
        method: str,
        bulk: bool = False,
    ) -> Begun | None:
        """Raises `Refused` for a question that is `bulk` or large before a second person has approved it."""
        node, limit = self._node, self._node.policy.current.second_person
        cost = sum(each.cost for each in targets if each.trouble is None)
        if (
            not bulk
            and len(request.items) <= limit.query_items
            and node.actions.tally.take(asker, EVALUATIONS, cost, limit.evaluations_a_day)
        ):
            return None
        shown = request.items[: limits.ACTION_SHOWN]
        values = [f"{item.kind} {item.value}".strip()[: limits.ACTION_CHARACTERS] for item in shown]
        content: dict[str, Any] = {
            "case": request.case_number,
            "purpose": PURPOSE_NAMES[request.purpose],
            "basis": BASIS_NAMES[request.basis],
            "members": list(request.members),
            "lists": list(request.lists),
            "identifiers": len(request.items),
            "evaluations": cost,
            "values": values,
        }
        if problems:
            content["values not asked"] = len(problems)
            content["rows not asked"] = [
                f"row {each.index + 1}: {each.reason}" for each in problems[: limits.ACTION_SHOWN]
            ]
        if silent := [each for each in targets if each.trouble is not None]:
            content["lists not asked"] = [
                f"{each.member.name.name} / {each.list_name or '?'}: {each.trouble[1]}"
                for each in silent[: limits.ACTION_SHOWN]
                if each.trouble
            ]
        title = f"ask about {len(request.items):,} identifiers"  # titles stand in logs, the case does not
        asked = request.SerializeToString(deterministic=True)
        return await asyncio.to_thread(node.actions.begin, Action(method, asked, title, content), True)

    async def _ask(
        self, job: Job, targets: list[Target], places: dict[bytes, list[int]], deadline: float
    ) -> AsyncIterator[pb.QueryEvent]:
        kept: dict[tuple[str, str], list[pb.QueryAnswer]] = {}  # of small questions: a message costs as much
        async for event in self._node.asker.ask(job, targets, deadline):
            where = (event.target.member.id, event.target.list_name)
            if isinstance(event, Finished):
                answers = kept.pop(where, [])
                yield pb.QueryEvent(answers=pb.QueryAnswers(answers=answers), holder=_finished(event))
                continue
            answers = list(answer_messages(event, places))
            if event.total <= limits.BATCH_INLINE:  # over before anybody could watch
                kept.setdefault(where, []).extend(answers)
                continue
            for i in range(0, len(answers), _ANSWERS_A_MESSAGE):
                chunk = answers[i : i + _ANSWERS_A_MESSAGE]
                yield pb.QueryEvent(answers=pb.QueryAnswers(answers=chunk))
            yield pb.QueryEvent(
                progress=pb.QueryProgress(
                    member=event.target.member.name.name,
                    list=event.target.list_name,
                    done=event.done,
                    total=event.total,
                )
            )


class Values:
    """What a question asks about: each value as identifiers, in the form of each list that is asked."""

    def __init__(self, node: "Node", request: pb.QueryRequest) -> None:
        self._node, self._request = node, request
        self._items = [_item(item) for item in request.items]
        self._own = node.institutions.current
        self._forms: dict[bytes, list[bytes]] = {}
        self.places: dict[bytes, list[int]] = {}  # rows of each identifier

    @property
    def count(self) -> int:
        """How many identifiers there are, as this node writes them."""
        return len(self._forms[self._own.form])

    def read(self) -> "list[Recognised]":
        """How this node reads the values; to be called first, and once."""
        self._understood = self._read(self._own)
        return self._understood

    def _read(self, file: DirectoryFile) -> "list[Recognised]":
        recognised = self._recognised(file)
        found: dict[bytes, None] = {}
        for index, each in enumerate(recognised):
            for canonical, _ in each.read:
                found[canonical] = None
                rows = self.places.setdefault(canonical, [])
                if index not in rows[-1:]:
                    rows.append(index)
        self._forms[file.form] = list(found)
        return recognised

    def under(self, form: bytes) -> Sequence[bytes]:
        """Identifiers in a form. Raises `Refused` where a value that this node reads is none in it."""
        if form not in self._forms:
            file = self._node.institutions.of(form)
            if file is None:
                raise Refused(f"this node cannot write identifiers in the form {form_text(form)}", "FORM")
            recognised = self._read(file)
            if any(
                each.read and not other.read for each, other in zip(self._understood, recognised, strict=True)
            ):
                del self._forms[form]
                raise Refused(
                    "a value cannot be asked in the form that the list has: its institution is in another version of the "
                    "network's directory; try again in a minute",
                    "FORM",
                )
        return self._forms[form]

    def _recognised(self, file: DirectoryFile) -> "list[Recognised]":
        region, both, items = self._node.home.config.lists.default_region, self._request.both, self._items
        if len(items) <= limits.BATCH_INLINE:
            return recognise_chunk(items, region, both, file)
        step = 500
        work = [(items[i : i + step], region, both, file) for i in range(0, len(items), step)]
        return [each for part in self._node.workers.run(recognise_chunk, work) for each in part]


def check_question(request: pb.QueryRequest) -> None:
    if request.purpose not in PURPOSE_NAMES:
        raise invalid("a purpose is needed")
    if request.basis not in BASIS_NAMES:
        raise invalid("a legal basis is needed")
    if not request.case_number.strip() or len(request.case_number) > 100:
        raise invalid("a case number of at most 100 characters is needed")
    if not 1 <= len(request.items) <= limits.QUERY_ITEMS:
        raise invalid(f"a question has 1 to {limits.QUERY_ITEMS} values")


def _item(item: pb.QueryItem) -> tuple[str, str, str, str]:
    return item.kind, item.value, item.country, item.institution


class Recognised(NamedTuple):
    """What a value is: (canonical identifier, note) for each kind that it is asked under; else why it is not asked."""

    read: list[tuple[bytes, str]]
    trouble: str = ""
    candidates: tuple[str, ...] = ()  # kinds, where it is ambiguous


def recognise_item(
    kind: str,
    value: str,
    country: str,
    institution: str,
    region: str,
    both: bool,
    directory: Directory | None = None,
) -> Recognised:
    """Never a guess: what fits several kinds is asked under all of them where `both` is set, else under none."""
    given = (value, country, institution, region, directory)
    try:
        if kind:
            known = words.kind_of(kind)
            if known is None:
                return Recognised([], words.one_of("kind"))
            found = normalise(known, *given)
            return Recognised([(found.canonical, found.note)])
        kinds = recognise(*given)
        if len(kinds) > 1 and both:  # of those that can be asked: an account needs its institution
            read = [_normalised(each, *given) for each in kinds]
            return Recognised([(each.canonical, each.note) for each in read if each is not None])
        if len(kinds) > 1:
            why = f"it may be {' or '.join(kinds)}: give its kind, or ask under both (--both)"
            return Recognised([], why, tuple(kinds))
        if kinds:
            found = normalise(kinds[0], *given)
            return Recognised([(found.canonical, found.note)])
        check_whole(clean(value), x_may_stand=True)  # masked or shortened: that is the reason
        return Recognised([], "not recognised: give its kind")
    except IdentifierError as error:
        return Recognised([], str(error))


def _normalised(
    kind: Kind, value: str, country: str, institution: str, region: str, directory: Directory | None
) -> Identifier | None:
    try:
        return normalise(kind, value, country, institution, region, directory)
    except IdentifierError:
        return None


def recognise_chunk(
    items: list[tuple[str, str, str, str]], region: str, both: bool, file: DirectoryFile
) -> list[Recognised]:
    """For worker processes."""
    directory = file.load()
    return [recognise_item(*item, region, both, directory) for item in items]


def problems_of(recognised: "list[Recognised]") -> list[pb.ItemProblem]:
    """Values that are not asked, and why."""
    return [
        pb.ItemProblem(index=index, reason=each.trouble, candidates=each.candidates)
        for index, each in enumerate(recognised)
        if not each.read
    ]


def plan_message(
    targets: list[Target],
    problems: list[pb.ItemProblem],
    count: int,
    recognised: list[Recognised],
    purpose: int,
) -> pb.QueryPlan:
    decided = [deciding(target.budget or common.Budget(), purpose, target.cost) for target in targets]
    return pb.QueryPlan(
        holders=[
            pb.HolderPlan(
                member=target.member.name.name,
                list=target.list_name,
                cost=target.cost,
                answered=len(target.known),
                budget=target.budget or common.Budget(),
                budget_known=target.budget is not None,
                trouble=target.trouble[1] if target.trouble else "",
                outcome=target.trouble[0] if target.trouble else "",
                epoch=target.copy.epoch if target.copy else 0,
                batch=target.copy.batch if target.copy else 0,
                as_of=target.as_of,
                left=left,
                limit=limit,
            )
            for target, (limit, left, _) in zip(targets, decided, strict=True)
        ],
        problems=problems,
        identifiers=count,
        understood=[
            pb.Understood(index=index, kind=kind, value=value, note=note)
            for index, each in enumerate(recognised)
            for canonical, note in each.read
            for kind, _, value in [canonical.decode().partition("\x1f")]
        ],
    )


def answer_messages(event: Answered, places: dict[bytes, list[int]]) -> Iterator[pb.QueryAnswer]:
    day = today()
    now = time.time()
    for answer in event.answers:
        found = label_of(answer)
        outcome = "unreadable" if answer.unreadable else "miss"
        kind = Identifier.from_canonical(answer.identifier).kind
        if found is not None:
            expired = found.valid_until is not None and labels.days(found.valid_until) < day
            outcome = "expired" if expired else "review" if kind in REVIEW_ONLY else "hit"
        for index in places.get(answer.identifier, ()):
            yield pb.QueryAnswer(
                index=index,
                member=event.target.member.name.name,
                list=event.target.list_name,
                outcome=outcome,
                label=_label(found, day) if found is not None else None,
                epoch=answer.epoch,
                batch=answer.batch,
                answered_at=answer.kept_at or now,
                kept=bool(answer.kept_at),
                kind=kind,
            )


def _label(found: Label, day: int) -> pb.Label:
    seen = labels.days(found.observed_on)
    return pb.Label(
        category=slug(found.category),
        severity=found.severity,
        confidence=found.confidence,
        basis=slug(found.basis),
        status=slug(found.status),
        reason=slug(found.reason),
        observed_on=date_text(seen),
        valid_until=date_text(labels.days(found.valid_until)),
        age_days=day - seen if seen else -1,
        reference=found.reference,
    )


def _finished(event: Finished) -> pb.QueryHolder:
    return pb.QueryHolder(
        member=event.target.member.name.name,
        list=event.target.list_name,
        outcome=event.outcome,
        detail=event.detail,
        charged=event.charged,
        budget=event.target.budget or common.Budget(),
        epoch=event.target.copy.epoch if event.target.copy else 0,
        batch=event.target.copy.batch if event.target.copy else 0,
        as_of=event.target.as_of,
    )
