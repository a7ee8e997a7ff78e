"""Screenings: bulk questions that go on by themselves, within budgets, over days and restarts.

Each has a folder: `record` (the question, encrypted), parts in the order in which lists answered (encrypted), and `ended` once it has.
What a list has answered is not asked again, so each answer is as old as it says.
"""

import asyncio
import contextlib
import datetime as dt
import json
import logging
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.message import DecodeError
from lianfang.v1 import admin_pb2 as pb
from lianfang.v1 import common_pb2 as common

from protocols import padding
from protocols.sealed import ListEpoch

from .. import limits
from ..errors import NodeError, NotFound, Refused, invalid
from ..files import write_atomic
from ..people.book import caller
from ..people.roles import Role
from ..policy import PURPOSE_NAMES
from ..querier.pace import EPOCH_DAYS, Pace, Spent
from ..querier.query import Finished, Target
from ..querier.questions import Job
from ..store.engine import translated
from .asking import Asking, Values, answer_messages, check_question, plan_message, problems_of

if TYPE_CHECKING:
    from ..node import Node

_log = logging.getLogger("lianfang.screening")
_PART = re.compile(r"[0-9]{3}-[0-9]{6}")  # number of the list, number of its answer
_PURPOSE = b"screening\x1f"
_ID = re.compile(r"[0-9a-f]{4,32}")
PAUSE = 20.0  # seconds between two looks at budgets that were used up
_CHUNK = 4_096  # values asked of a list at once
_LEAST = 32  # fewer wait for the next day's budget, unless they are the last
_DAY = 86_400
_DEFAULT_DAYS = 30
_KEPT = 30 * _DAY  # seconds for which results stay


@dataclass
class _Place:
    """One list of a screening, and how far it is."""

    member: str  # SPIFFE id
    list: str
    done: int = 0
    parts: int = 0
    charged: int = 0
    days: Counter[dt.date] = field(default_factory=Counter)
    epochs: Counter[int] = field(default_factory=Counter)
    detail: str = ""


@dataclass
class _Screening:
    id: bytes
    folder: Path
    record: pb.ScreeningRecord
    places: list[_Place]
    ended: dict[str, str] = field(default_factory=dict)  # state, detail, at

    @property
    def total(self) -> int:
        return len(self.record.asked.question.items)

    @property
    def complete(self) -> bool:
        return all(place.done == self.total for place in self.places)


class Screenings:
    """One per node."""

    def __init__(self, node: "Node", asking: Asking) -> None:
        self._node, self._asking = node, asking
        self._root = node.home.data / "screenings"
        self._zone = ZoneInfo(node.home.config.node.time_zone)
        self._pace = Pace(node.home.config.ask.screening_share)
        self._known: dict[bytes, _Screening] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}

    # -- keeping -----------------------------------------------------------------------------------------------

    def _seal(self, screening: _Screening, name: str, data: bytes) -> None:
        sealed = self._node.keys.vault.encrypt(data, _PURPOSE + screening.id + name.encode())
        with translated(screening.folder / name):
            write_atomic(screening.folder / name, sealed, 0o600)

    def _open(self, folder: Path, identity: bytes, name: str) -> bytes:
        return self._node.keys.vault.decrypt(
            (folder / name).read_bytes(), _PURPOSE + identity + name.encode()
        )

    def _parts(self, screening: _Screening) -> Iterator[pb.ScreeningPart]:
        names = sorted(each.name for each in screening.folder.iterdir() if _PART.fullmatch(each.name))
        for name in names:
            yield pb.ScreeningPart.FromString(self._open(screening.folder, screening.id, name))

    def _load(self, folder: Path) -> _Screening:
        identity = bytes.fromhex(folder.name)
        record = pb.ScreeningRecord.FromString(self._open(folder, identity, "record"))
        places = [_Place(each.member, each.list) for each in record.targets]
        screening = _Screening(identity, folder, record, places)
        for part in self._parts(screening):
            self._count(places[part.target], part)
        with contextlib.suppress(FileNotFoundError):
            screening.ended = json.loads((folder / "ended").read_text("utf-8"))
        return screening

    def _count(self, place: _Place, part: pb.ScreeningPart) -> None:
        place.done, place.parts, place.detail = part.end, place.parts + 1, ""
        place.charged += part.charged
        place.days[self._date(part.at)] += part.charged
        place.epochs[part.epoch] += part.charged

    def _date(self, at: float | None = None) -> dt.date:
        return dt.datetime.fromtimestamp(time.time() if at is None else at, self._zone).date()

    async def resume(self) -> None:
        """Read what is kept, and go on with what has not ended. To be called once."""
        for screening in await asyncio.to_thread(lambda: list(self._load_all())):
            self._known[screening.id] = screening
            if not screening.ended:
                self._go_on(screening)

    def _load_all(self) -> Iterator[_Screening]:
        for folder in sorted(self._root.iterdir()) if self._root.exists() else ():
            try:
                yield self._load(folder)
            except (NodeError, OSError, ValueError, DecodeError):
                _log.exception("%s cannot be read", folder)

    def _go_on(self, screening: _Screening) -> None:
        task = asyncio.create_task(self._run(screening))
        self._tasks[screening.id] = task
        task.add_done_callback(lambda _done: self._tasks.pop(screening.id, None))

    async def close(self) -> None:
        """Stop asking; what was answered is kept."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def purge(self) -> None:
        """Erase what ended a month ago."""
        for screening in list(self._known.values()):
            if screening.ended and float(screening.ended["at"]) < time.time() - _KEPT:
                shutil.rmtree(screening.folder)
                del self._known[screening.id]

    def _end(self, screening: _Screening, state: str, detail: str = "") -> None:
        screening.ended = {"state": state, "detail": detail, "at": f"{time.time():.0f}"}
        write_atomic(screening.folder / "ended", json.dumps(screening.ended).encode(), 0o600)

    # -- for people --------------------------------------------------------------------------------------------

    async def start(self, request: pb.ScreeningRequest) -> pb.ScreeningStarted:
        """Plan a screening, and begin it unless it is to be planned only. Raises `Refused`."""
        node, question = self._node, request.question
        check_question(question)
        if not 0 <= request.days <= 366:
            raise invalid("a screening runs for 1 to 366 days")
        running = sum(not each.ended for each in self._known.values())
        if running >= limits.SCREENINGS and not question.plan_only:
            raise Refused(
                f"{running} screenings are under way: stop one", "LIMIT", grpc.StatusCode.RESOURCE_EXHAUSTED
            )
        values = Values(node, question)
        recognised = await asyncio.to_thread(values.read)
        problems = problems_of(recognised)
        if len(problems) == len(recognised):
            raise invalid(f"there is nothing to ask: {problems[0].reason}")
        person, own = caller(), str(node.home.name)
        members = [node.peers.find(text, own) for text in question.members] or node.peers.others(own)
        job = await node.questions.job(
            question.case_number, question.purpose, question.basis, person.pseudonym
        )
        deadline = node.home.config.ask.deadline_seconds
        lists = list(question.lists)
        targets = await node.asker.plan(job, values, members, lists, True, deadline, bool(question.members))
        await node.asker.fresh_budgets(targets, deadline)
        nameless = [each for each in targets if not each.list_name]
        targets = [each for each in targets if each.list_name]
        if not targets:
            why = (
                nameless[0].trouble[1]
                if nameless and nameless[0].trouble
                else "no contract in force lets this node ask"
            )
            raise Refused(why, "CONTRACT")
        plan = plan_message(targets, problems, values.count, recognised, question.purpose)
        plan.asker = person.person.name if person.person else ""
        now = time.time()
        record = pb.ScreeningRecord(
            asked=request,
            plan=plan,
            asker=person.pseudonym,
            by=plan.asker,
            started_at=now,
            expires_at=now + (request.days or _DEFAULT_DAYS) * _DAY,
            targets=[pb.ScreeningTarget(member=each.member.id, list=each.list_name) for each in targets],
        )
        places = [_Place(each.member.id, each.list_name) for each in targets]
        for place, target in zip(places, targets, strict=True):
            place.detail = target.trouble[1] if target.trouble else ""
        identity = secrets.token_bytes(16)
        screening = _Screening(identity, self._root / identity.hex(), record, places)
        if question.plan_only:
            return pb.ScreeningStarted(plan=plan, screening=self._message(screening, person.pseudonym))
        begun = await self._asking.begin_query(
            question, targets, problems, person.pseudonym, "Admin/StartScreening", bulk=True
        )
        try:
            await asyncio.to_thread(self._write, screening)
        except BaseException:
            node.actions.break_off(begun)
            raise
        self._known[identity] = screening
        self._go_on(screening)
        message = self._message(screening, person.pseudonym)
        return pb.ScreeningStarted(id=identity.hex(), plan=plan, screening=message)

    def _write(self, screening: _Screening) -> None:
        screening.folder.mkdir(mode=0o700, parents=True)
        self._seal(screening, "record", screening.record.SerializeToString())

    def _find(self, text: str) -> _Screening:
        found = [each for each in self._known.values() if each.id.hex().startswith(text)]
        if not _ID.fullmatch(text) or len(found) != 1:
            raise NotFound(f"{text[:32]!r} names {len(found)} screenings of this node: lianfang screen list")
        return found[0]

    def shown(self) -> pb.ScreeningsReply:
        """All that are kept, oldest first; values stand in none."""
        asker = caller().pseudonym
        known = sorted(self._known.values(), key=lambda each: each.record.started_at)
        return pb.ScreeningsReply(screenings=[self._message(each, asker) for each in known])

    async def stop(self, text: str) -> pb.ScreeningsReply:
        """End one; what it has is kept. Raises `NotFound`."""
        screening = self._find(text)
        if not screening.ended:
            if (task := self._tasks.get(screening.id)) is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if not screening.ended:
                by = caller().person
                self._end(screening, "stopped", f"by {by.name}" if by else "")
        return pb.ScreeningsReply(screenings=[self._message(screening, caller().pseudonym)])

    async def results(self, text: str) -> AsyncIterator[pb.ScreeningResult]:
        """What there is so far, to who asked: the question, then events as a question's. Raises `NotFound` or `Refused`."""
        screening = self._find(text)
        record, asker = screening.record, caller().pseudonym
        if asker != record.asker:
            raise Refused(
                f"{record.by or 'another person'} asked this: results are for who asked alone", "OWN"
            )
        message = self._message(screening, asker)
        yield pb.ScreeningResult(asked=record.asked, screening=message)
        yield pb.ScreeningResult(event=pb.QueryEvent(plan=record.plan))
        for part in self._parts(screening):
            yield pb.ScreeningResult(event=pb.QueryEvent(answers=part.answers))
        for place, shown in zip(screening.places, message.places, strict=True):
            done = place.done == screening.total
            holder = pb.QueryHolder(
                member=shown.member,
                list=shown.list,
                outcome="answered" if done else "pending",
                detail=""
                if done
                else f"{place.done:,} of {screening.total:,} values; {place.detail}".rstrip("; "),
                charged=place.charged,
            )
            yield pb.ScreeningResult(event=pb.QueryEvent(holder=holder))

    def _spent(self, member: str, list_name: str, epoch: int) -> Spent:
        today, same = self._date(), []
        for screening in self._known.values():
            same += [each for each in screening.places if (each.member, each.list) == (member, list_name)]
        return Spent(sum(each.days[today] for each in same), sum(each.epochs[epoch] for each in same))

    def _message(self, screening: _Screening, asker: bytes) -> pb.Screening:
        record = screening.record
        places = [self._place_message(screening, place) for place in screening.places]
        ends = [each.ends_at for each in places]
        ended = screening.ended
        return pb.Screening(
            id=screening.id.hex(),
            by=record.by,
            purpose=PURPOSE_NAMES[record.asked.question.purpose],
            case_number=record.asked.question.case_number if asker == record.asker else "",
            started_at=record.started_at,
            expires_at=record.expires_at,
            ends_at=float(ended["at"]) if ended else max(ends) if all(ends) else 0.0,
            state=ended.get("state", "running"),
            detail=ended.get("detail", ""),
            values=screening.total,
            places=places,
        )

    def _place_message(self, screening: _Screening, place: _Place) -> pb.ScreeningPlace:
        node, purpose = self._node, screening.record.asked.question.purpose
        copies = [each for each in node.syncer.copies(place.member) if each.list == place.list]
        epoch = copies[-1].epoch if copies else 0
        budget = node.syncer.offer(place.member, place.list) or common.Budget()
        spent = self._spent(place.member, place.list, epoch)
        need = screening.total - place.done
        need = padding.bucket(need) if need else 0
        days = self._pace.days(need, budget, purpose, spent, self._epoch_left(place, epoch))
        ends_at = 0.0
        if days is not None:
            midnight = dt.datetime.combine(
                self._date() + dt.timedelta(days), dt.time(), self._zone
            ).timestamp()
            ends_at = max(time.time(), midnight)
        member = (
            node.book.current.get(place.member).name.name
            if node.book.current.has(place.member)
            else place.member
        )
        return pb.ScreeningPlace(
            member=member,
            list=place.list,
            done=place.done,
            charged=place.charged,
            today=self._pace.today(budget, purpose, spent),
            a_day=self._pace.a_day(budget, purpose),
            ends_at=ends_at,
            detail=place.detail,
        )

    def _epoch_left(self, place: _Place, epoch: int) -> float:
        where = ListEpoch(self._node.home.name.network, place.member, place.list, epoch)
        opened = self._node.pins.signed(where, "epoch-opened")
        if opened is None:
            return EPOCH_DAYS
        closes_at = common.Statement.FromString(opened.statement).epoch_opened.closes_at
        return max(0.0, (closes_at - time.time()) / _DAY)

    # -- asking ------------------------------------------------------------------------------------------------

    def _may_go_on(self, record: pb.ScreeningRecord) -> bool:
        """Whether the person who asked may still ask."""
        if not record.asker:
            return True
        people = [each for each in self._node.people.all() if each.pseudonym == record.asker]
        return any(not each.removed and Role.ANALYST in each.roles for each in people)

    async def _run(self, screening: _Screening) -> None:
        while not screening.complete:
            if time.time() > screening.record.expires_at:
                self._end(screening, "expired", "its days are over")
                return
            if not self._may_go_on(screening.record):
                self._end(screening, "stopped", f"{screening.record.by} may not ask any more")
                return
            open_places = [place for place in screening.places if place.done < screening.total]
            moved = await asyncio.gather(*(self._step(screening, place) for place in open_places))
            if not any(moved):
                await asyncio.sleep(PAUSE)
        self._end(screening, "finished")
        _log.info("the screening %s has finished", screening.id.hex()[:12])

    async def _step(self, screening: _Screening, place: _Place) -> bool:
        """Ask a list about the next values, as many as its budget has room for now; whether it answered."""
        try:
            return await self._ask(screening, place)
        except NodeError as error:
            place.detail = str(error)
        except Exception as error:  # one list's failure is not the others'
            _log.exception("a screening's question failed")
            place.detail = f"this node failed: {type(error).__name__}"
        return False

    async def _ask(self, screening: _Screening, place: _Place) -> bool:
        node, question = self._node, screening.record.asked.question
        member = node.book.current.get(place.member)
        job = await node.questions.job(
            question.case_number, question.purpose, question.basis, screening.record.asker
        )
        deadline = node.home.config.ask.deadline_seconds
        end = min(screening.total, place.done + _CHUNK)
        while True:
            part = pb.QueryRequest()
            part.CopyFrom(question)
            del part.items[:]
            part.items.extend(question.items[place.done : end])
            values = Values(node, part)
            await asyncio.to_thread(values.read)
            (target,) = await node.asker.plan(job, values, [member], [place.list], False, deadline)
            if target.trouble is not None or target.copy is None:
                place.detail = target.trouble[1] if target.trouble else "no copy of the list"
                return False
            await node.asker.fresh_budgets([target], deadline)
            room = self._room(screening, place, target)
            if target.cost <= room:
                break
            if room < _LEAST:
                place.detail = "waits for its budget"
                return False
            end = place.done + max(_LEAST, min(end - place.done - 1, room - room // 8))
        return await self._ask_target(screening, place, job, target, values, end)

    def _room(self, screening: _Screening, place: _Place, target: Target) -> int:
        budget, copy = target.budget or common.Budget(), target.copy
        assert copy is not None
        spent = self._spent(place.member, place.list, copy.epoch)
        today = self._pace.today(budget, screening.record.asked.question.purpose, spent)
        return min(today, budget.burst_left) if today > _LEAST else today

    async def _ask_target(
        self, screening: _Screening, place: _Place, job: Job, target: Target, values: Values, end: int
    ) -> bool:
        node, start = self._node, place.done
        answers: list[pb.QueryAnswer] = []
        finished: Finished | None = None
        async for event in node.asker.ask(job, [target], node.home.config.ask.deadline_seconds):
            if isinstance(event, Finished):
                finished = event
            else:
                answers += answer_messages(event, values.places)
        if finished is None or finished.outcome != "answered":
            place.detail = finished.detail if finished else ""
            return False
        for answer in answers:
            answer.index += start
        assert target.copy is not None
        part = pb.ScreeningPart(
            target=screening.places.index(place),
            start=start,
            end=end,
            answers=pb.QueryAnswers(answers=answers),
            charged=finished.charged,
            epoch=target.copy.epoch,
            at=time.time(),
        )
        name = f"{part.target:03d}-{place.parts:06d}"
        await asyncio.to_thread(self._seal, screening, name, part.SerializeToString())
        self._count(place, part)
        return True
