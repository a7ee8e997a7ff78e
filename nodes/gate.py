"""The one gate: every use of this node by another member is admitted or refused here, and durably recorded.

`admit` returns once the decision, the charge and the log's event are on disk, in one transaction; only then may the
action begin. Requests that arrive together share one commit. A repeated query id is answered from the record: charged
once, refused with another request. Rules come from the contracts in force, narrowed by the policy file.
"""

import asyncio
import datetime as dt
import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import sqlalchemy as sa
from lianfang.v1 import common_pb2 as pb
from lianfang.v1 import ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols.encoding import frame
from protocols.ledger.events import Committed

from . import limits, policy
from .contracts.rules import Rules, Terms
from .errors import Refused
from .identity.members import Member
from .ledger.book import Entry, LogBook, derived_id
from .pace import Pace
from .store import engine as db
from .store import schema
from .store.prepared import Prepared
from .store.writer import GroupWriter

EVALUATE = "evaluate"
SYNC = "sync"
TRAIN = "train"
MEET = "meet"
WORK = "work"  # on a vertical job, as its label holder
SCORE = "score"  # rows by a vertical model
_DAY = 86_400
_MINUTE = 60
_FIRST_DAY = dt.date(1970, 1, 1).toordinal()
_RENEWALS = 1_000  # remembered

# Built once: at each question, building a statement costs more than running it.
_KNOWN = Prepared(
    sa.select(schema.decision.c.id, schema.decision.c.request_hash, schema.decision.c.repeats).where(
        schema.decision.c.peer == sa.bindparam("in_peer"),
        schema.decision.c.query_id == sa.bindparam("in_query_id"),
    )
)
_REPEATED = Prepared(
    schema.decision.update()
    .where(schema.decision.c.id == sa.bindparam("in_id"))
    .values(repeats=sa.bindparam("in_repeats"))
)
_INSERT = Prepared(
    schema.decision.insert(), [column.name for column in schema.decision.columns if column.name != "id"]
)
# Epochs whose key exists, oldest first: one budget spans them, and all before them are closed.
_EPOCHS = Prepared(
    sa.select(schema.epoch.c.number)
    .where(schema.epoch.c.list == sa.bindparam("in_list"), schema.epoch.c.state != "closed")
    .order_by(schema.epoch.c.number)
)


def _used() -> sa.Select[int, int, int, int]:
    """Of the epochs that count, and of today: each by its index."""
    usage = schema.usage
    here = usage.c.resource == sa.bindparam("in_resource")
    first, day = sa.bindparam("in_first", type_=sa.Integer), sa.bindparam("in_day", type_=sa.Integer)
    part = sa.select(usage.c.peer, usage.c.epoch, usage.c.day, usage.c.evaluations)
    # "+ 0": or the planner goes through all epochs of before to find today's.
    of_today = part.where(here, usage.c.day == day, usage.c.epoch + 0 < first)
    table = sa.union_all(part.where(here, usage.c.epoch >= first), of_today).subquery()
    mine, current, today = table.c.peer == sa.bindparam("in_peer"), table.c.epoch >= first, table.c.day == day

    def total(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((condition, table.c.evaluations), else_=0)), 0)

    return sa.select(
        total(mine & current).label("mine"),
        total(mine & today).label("mine_today"),
        total(current).label("everyone"),
        total(today).label("everyone_today"),
    )


_USED = Prepared(_used())
_CHARGE = Prepared(
    insert(schema.usage).on_conflict_do_update(
        index_elements=["peer", "resource", "epoch", "day"],
        set_={"evaluations": schema.usage.c.evaluations + insert(schema.usage).excluded.evaluations},
    ),
    [column.name for column in schema.usage.columns],
)


Promised = tuple[ledger_pb2.Receipt, Committed]


class Used(NamedTuple):
    """Evaluations: one member's and everybody's, in the epochs that count and today."""

    mine: int
    mine_today: int
    everyone: int
    everyone_today: int


def reserve_of(resource: str) -> str:
    """Under which name the part of a list's evaluations is counted that came out of reserves."""
    return f"{resource}|reserve"


def purpose_of(resource: str, purpose: int) -> str:
    """Under which name a list's evaluations for one purpose are counted."""
    return f"{resource}|{purpose}"


def deciding(budget: pb.Budget, purpose: int, count: int) -> tuple[str, int, str]:
    """(which bound decides on a question of `count` evaluations, what it has left, when there is more)."""
    reserve = budget.reserve_left if purpose in policy.URGENT and count <= limits.URGENT_VALUES else 0
    found = [
        ("epoch", budget.epoch_left + reserve, "when the list's next epoch opens"),
        ("day", budget.day_left + reserve, "tomorrow"),
    ]
    found += [
        (policy.PURPOSE_NAMES[purpose], each.day_left, "tomorrow")
        for each in budget.purposes
        if each.purpose == purpose
    ]
    return min(found, key=lambda each: each[1])


@dataclass(frozen=True)
class Ask:
    """What a member wants. `count` is in evaluations as charged; 0 for what costs nothing."""

    member: Member
    action: str
    resource: str  # list name; a job's hash in hexadecimal
    epoch: int
    count: int  # of a score, rows
    query_id: bytes
    request_hash: bytes
    purpose: int = 0
    basis: int = 0
    case_commitment: bytes = b""
    asker: bytes = b""
    asked_at: float | None = None
    recorded_at: float | None = None  # as the asking member's own record of it says
    receipt: Promised | None = None  # of the asking member's own record
    # Raises `Refused` for what depends on the resource's state; runs after the rules, before the charge.
    check: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Decision:
    """Granted: `repeated` says that this query id was charged before."""

    repeated: bool
    budget: pb.Budget
    entry: Entry | None = None  # of the log, for the answer's receipt


def exhausted(message: str) -> Refused:
    """A budget is used up."""
    return Refused(message, "BUDGET", grpc.StatusCode.RESOURCE_EXHAUSTED)


class Gate:
    """Decides in the writer's thread; `admit` may be called from any other, `decide` from the event loop."""

    def __init__(
        self,
        database: sa.Engine,
        writer: GroupWriter,
        rules: Rules,
        log: LogBook,
        clock: Callable[[], float] = time.time,
        zone: dt.tzinfo = dt.UTC,
    ) -> None:
        """`zone`: where a day begins at midnight, alike at all members of a network."""
        self._database, self._writer, self._rules, self._clock = database, writer, rules, clock
        self._zone = zone
        self._log = log
        self._pace = Pace()
        # What was drawn from reserves within the last minute, by (member, list). Not kept over a restart: the reserve is.
        self._drawn: dict[tuple[str, str], deque[tuple[float, int]]] = {}
        writer.undone.append(self._pace.forget)
        self._renewals: dict[tuple[str, str, tuple[int, ...]], int] = {}

    def day(self, now: float | None = None) -> int:
        """The day on which what is asked now counts, in days since 1970."""
        at = dt.datetime.fromtimestamp(self._clock() if now is None else now, self._zone)
        return at.toordinal() - _FIRST_DAY

    def _midnight(self, day: int) -> float:
        date = dt.date.fromordinal(day + _FIRST_DAY)
        return dt.datetime.combine(date, dt.time(), self._zone).timestamp()

    def admit(self, ask: Ask) -> Decision:
        """Durably record and grant, or raise `Refused` (recorded too) or `StorageError` (nothing was)."""
        return self._writer.submit(self._decision(ask)).result()

    def decide(self, ask: Ask, entry: Entry | None = None) -> "asyncio.Future[Decision]":
        """`admit` for the event loop; a caller that has gone before its turn is not charged.

        Of an evaluation `entry` is the event that `prepare` committed to. It is recorded unless contracts have changed since, or
        the question was answered before: the decision holds the one that counts.
        """
        return self._writer.write(self._decision(ask, entry), small=True)

    def _decision(self, ask: Ask, entry: Entry | None = None) -> Callable[[sa.Connection], Decision]:
        return lambda connection: self._decide(connection, ask, entry)

    def prepare(self, ask: Ask, contract: bytes) -> Entry:
        """The event of an evaluation that is granted, committed to before the writer's turn."""
        return self._log.prepare(
            ledger_pb2.EVENT_TYPE_QUERY_ANSWERED,
            ask.member.id,
            ask.query_id,
            resource=ask.resource,
            epoch=ask.epoch,
            suite=pb.SUITE_RISTRETTO255_SHA512,
            purpose=ask.purpose,
            basis=ask.basis,
            count=ask.count,
            request_hash=ask.request_hash,
            case_commitment=ask.case_commitment,
            asker=ask.asker,
            peer_leaf=ask.receipt[1].commitment if ask.receipt else b"",
            contract=contract,
        )

    def precheck(self, ask: Ask) -> Terms:
        """The rules alone: keeps strangers from costing work. Raises `Refused`, which is recorded too."""
        try:
            return self._terms(ask)
        except Refused:
            self._writer.submit(self._decision(ask))  # decided again behind the others, and recorded
            raise

    def check_meeting(self, member: Member, contract: bytes) -> None:
        """May a meeting of sets that was admitted go on? Raises `Refused`."""
        self._rules.meet(member, contract)

    def check_pull(self, member: Member, resource: str) -> None:
        """May a pull that was admitted go on? Raises `Refused`."""
        self._rules.sync(member, resource)

    def purposes(self, member: Member, resource: str) -> list[int]:
        """Purposes the member may ask for; empty where it may not use the list at all."""
        return self._rules.purposes(member, resource)

    def budget(self, member: Member, resource: str) -> pb.Budget:
        """What the member has left for a list; all zero where it may not use it."""
        try:
            terms = self._rules.use(member, resource)
        except Refused:
            return pb.Budget()
        with db.reading(self._database) as connection:
            return self._budget(connection, member, resource, terms)

    # -- in the writer's thread ------------------------------------------------------------------------------

    def _decide(self, connection: sa.Connection, ask: Ask, entry: Entry | None) -> Decision:
        try:
            return self._grant(connection, ask, entry)
        except Refused as refusal:
            self._record_refusal(connection, ask, refusal)
            raise

    def _grant(self, connection: sa.Connection, ask: Ask, entry: Entry | None) -> Decision:
        known = _KNOWN.run(connection, {"in_peer": ask.member.id, "in_query_id": ask.query_id}).fetchone()
        if known is not None and known[1] != ask.request_hash:
            raise Refused(
                "this query id was used for another request",
                "QUERY_ID_REUSED",
                grpc.StatusCode.ALREADY_EXISTS,
            )
        now = self._clock()
        if ask.action == TRAIN:
            agreed = self._rules.train(ask.request_hash).hash
            self._log.check_standing(TRAIN)
            ask.check()
            if known is None:
                self._insert(connection, ask, now, ask.query_id)
                self._event(connection, ask, ledger_pb2.EVENT_TYPE_JOB_ENTERED, ask.query_id, contract=agreed)
            return Decision(known is not None, pb.Budget())
        if ask.action == MEET:
            return self._decide_meeting(connection, ask, now, known is not None)
        if ask.action in (WORK, SCORE):
            return self._decide_vertical(connection, ask, now)
        terms = self._terms(ask)
        if ask.action == SYNC:
            return self._decide_sync(connection, ask, now, terms)
        if known is None and ask.asked_at is not None:
            skew = abs(now - ask.asked_at)
            if skew > limits.CLOCK_SKEW.total_seconds():
                raise Refused(
                    f"the clocks differ by {skew:.0f} s, more than {limits.CLOCK_SKEW.total_seconds():.0f}",
                    "CLOCK",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
        if known is None and ask.recorded_at is not None:
            # A record of another time would be evidence of a date that nobody has checked.
            age = now - ask.recorded_at
            if abs(age) > limits.CLOCK_SKEW.total_seconds():
                raise Refused(
                    f"the asking member's record of this question is of {age:.0f} s ago: record it anew",
                    "AGED",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
        ask.check()
        if entry is None or entry.committed.event.contract != terms.contract:  # contracts changed meanwhile
            entry = self.prepare(ask, terms.contract)
        if known is None:
            self._log.check_standing(policy.PURPOSE_NAMES[ask.purpose])
        if known is not None:
            if known[2] >= limits.RETRIES_ANSWERED:
                raise exhausted("this question has been answered often enough; ask a new one")
            _REPEATED.run(connection, {"in_id": known[0], "in_repeats": known[2] + 1})
            budget = self._budget(connection, ask.member, ask.resource, terms)
            return Decision(True, budget, self._log.record(connection, entry))
        self._pace.load(connection, ask.member.id, ask.resource, now)
        budget = self._budget(connection, ask.member, ask.resource, terms, ask.epoch)
        if ask.count:
            self._charge(connection, ask, now, budget)
        self._insert(connection, ask, now, ask.query_id)
        self._pace.add(ask.member.id, ask.resource, now, ask.count)
        if ask.receipt is not None:
            self._log.record_promise(connection, *ask.receipt)
        return Decision(False, budget, self._log.record(connection, entry))

    def _event(
        self,
        connection: sa.Connection,
        ask: Ask,
        kind: "ledger_pb2.EventType.ValueType",
        event_id: bytes,
        reason: str = "",
        contract: bytes = b"",
    ) -> None:
        entry = self._log.prepare(
            kind,
            ask.member.id,
            event_id,
            resource=ask.resource,
            epoch=ask.epoch,
            purpose=ask.purpose,
            basis=ask.basis,
            count=ask.count,
            request_hash=ask.request_hash[:32],
            reason=reason,
            contract=contract,
        )
        self._log.record(connection, entry)

    @staticmethod
    def _insert(connection: sa.Connection, ask: Ask, now: float, query_id: bytes) -> None:
        _INSERT.run(
            connection,
            {
                "query_id": query_id,
                "peer": ask.member.id,
                "action": ask.action,
                "resource": ask.resource,
                "epoch": ask.epoch,
                "purpose": ask.purpose,
                "basis": ask.basis,
                "count": ask.count,
                "request_hash": ask.request_hash,
                "case_commitment": ask.case_commitment,
                "asker": ask.asker,
                "at": now,
                "repeats": 0,
            },
        )

    def _decide_meeting(self, connection: sa.Connection, ask: Ask, now: float, known: bool) -> Decision:
        """Two parties' sets: each session once, and so many a day."""
        held = self._rules.meet(ask.member, ask.request_hash)
        self._log.check_standing(MEET)
        if known:
            raise Refused("this session was held before", "SESSION_REUSED", grpc.StatusCode.ALREADY_EXISTS)
        ask.check()
        table, most = schema.decision, held.terms.psi.sessions_a_day
        today = connection.execute(
            sa.select(sa.func.count()).where(
                table.c.peer == ask.member.id,
                table.c.resource == ask.resource,
                table.c.action == MEET,
                table.c.at > now - _DAY,
            )
        ).scalar_one()
        if today >= most:
            raise exhausted(
                f"the contract allows {most} sessions a day, and so many were held within 24 hours"
            )
        self._insert(connection, ask, now, ask.query_id)
        self._event(
            connection, ask, ledger_pb2.EVENT_TYPE_MEETING, ask.query_id, "begun", contract=ask.request_hash
        )
        return Decision(False, pb.Budget())

    def _decide_vertical(self, connection: sa.Connection, ask: Ask, now: float) -> Decision:
        """A label holder's run of a job, or the rows that it has scored; of both, so many a day."""
        agreed = self._rules.train(ask.request_hash).hash
        self._log.check_standing(TRAIN)
        ask.check()
        what, most, count = "runs of a job are begun", limits.RUNS_A_DAY, 1
        if ask.action == SCORE:
            what, most, count = "rows of a model are scored", self._rules.scores_a_day(), ask.count
        # Counted in one row a day, not over the decisions, which may be as many as the rows.
        table, counted = schema.usage, f"{ask.action}:{ask.resource}"
        spent = connection.execute(
            sa.select(table.c.evaluations).where(
                table.c.peer == ask.member.id,
                table.c.resource == counted,
                table.c.epoch == 0,
                table.c.day == self.day(now),
            )
        ).scalar()
        if (left := most - (spent or 0)) < count:
            raise exhausted(f"at most {most:,} {what} a day, and {max(left, 0):,} are left")
        self._add(connection, ask, counted, 0, now, count)
        self._insert(connection, ask, now, ask.query_id)
        said = "scored" if ask.action == SCORE else "begun"
        round_ = ledger_pb2.EVENT_TYPE_JOB_ROUND
        self._event(connection, ask, round_, ask.query_id, said, contract=agreed)
        return Decision(False, pb.Budget())

    def _decide_sync(self, connection: sa.Connection, ask: Ask, now: float, terms: Terms) -> Decision:
        """Pulls cost no evaluations; one row counts a day's, so that a million of them fill no disk."""
        ask.check()
        table = schema.decision
        day = self.day(now)
        row_id = hashlib.sha256(frame("sync", ask.resource, ask.epoch, day)).digest()[:16]
        mine = (table.c.peer == ask.member.id) & (table.c.query_id == row_id)
        times = connection.execute(sa.select(table.c.repeats).where(mine)).scalar()
        if times is not None and times >= limits.PULLS_A_DAY:
            raise exhausted(f"{limits.PULLS_A_DAY} pulls of {ask.resource} today; more tomorrow")
        if times is not None:
            connection.execute(table.update().where(mine).values(repeats=times + 1, at=now))
        else:
            self._insert(connection, ask, now, row_id)
            pulled = ledger_pb2.EVENT_TYPE_LIST_PULLED
            self._event(connection, ask, pulled, row_id, contract=terms.contract)
        return Decision(False, pb.Budget())

    def _terms(self, ask: Ask) -> Terms:
        if ask.action == SYNC:
            return self._rules.sync(ask.member, ask.resource)
        return self._rules.evaluate(ask.member, ask.resource, ask.purpose, ask.basis)

    # -- budgets ---------------------------------------------------------------------------------------------

    def _renewal(self, connection: sa.Connection, resource: str, peer: str, epochs: list[int]) -> int:
        """What the epochs before had metered when the newest one opened: fixed from then on, and so counted once."""
        if len(epochs) < 2:
            return 0
        key = (resource, peer, tuple(epochs))
        metered = self._renewals.get(key)
        if metered is None:
            if len(self._renewals) > _RENEWALS:
                self._renewals.clear()
            metered = self._renewals[key] = self._metered(connection, resource, peer, epochs)
        return metered

    def _metered(self, connection: sa.Connection, resource: str, peer: str, epochs: list[int]) -> int:
        """See `_renewal`: whole days from `usage`, the day on which the newest epoch opened from the decisions."""
        epoch, decision, usage = schema.epoch, schema.decision, schema.usage
        opened = connection.execute(
            sa.select(epoch.c.opened_at).where(epoch.c.list == resource, epoch.c.number == epochs[-1])
        ).scalar_one()
        day = self.day(opened)
        days = sa.select(sa.func.coalesce(sa.func.sum(usage.c.evaluations), 0)).where(
            usage.c.peer == peer,
            usage.c.resource == resource,
            usage.c.epoch.in_(epochs[:-1]),
            usage.c.day < day,
        )
        rest = sa.select(sa.func.coalesce(sa.func.sum(decision.c.count), 0)).where(
            decision.c.peer == peer,
            decision.c.resource == resource,
            decision.c.epoch.in_(epochs[:-1]),
            decision.c.at >= self._midnight(day),
            decision.c.at < opened,
        )
        return int(sum(connection.execute(each).scalar_one() for each in (days, rest)))

    def _used(self, connection: sa.Connection, member: Member, resource: str, first: int) -> Used:
        now = self._clock()
        row = _USED.run(
            connection,
            {"in_peer": member.id, "in_resource": resource, "in_first": first, "in_day": self.day(now)},
        ).fetchone()
        return Used(*row)

    def _budget(
        self, connection: sa.Connection, member: Member, resource: str, terms: Terms, epoch: int | None = None
    ) -> pb.Budget:
        """What is left for questions of `epoch`, by default the newest one.

        `epoch_left` and `day_left` are the shared part: what members' reserves need stays out of it, for one member's
        own budget and for the list's bound alike, there at most half of it. Urgent questions have the reserve besides.
        """
        whole = self._rules.list_budget(resource)
        epochs = [row[0] for row in _EPOCHS.run(connection, {"in_list": resource})]
        first = epochs[0] if epochs else 0
        now = self._clock()
        used = self._used(connection, member, resource, first)
        kept_day, kept_epoch = self._rules.reserves(resource)
        # A list whose own bound is small still answers some bulk questions.
        kept_day, kept_epoch = min(kept_day, whole.day // 2), min(kept_epoch, whole.epoch // 2)
        drawn = self._used(connection, member, reserve_of(resource), first) if kept_day else Used(0, 0, 0, 0)
        credit = 0
        if epochs and epoch in (None, epochs[-1]):
            # What an epoch before has answered may be asked again of the new one, and of that one only.
            credit = min(whole.renewal_credit, self._renewal(connection, resource, member.id, epochs))
        epoch_limit = terms.epoch + credit

        def left(limit: int, spent: int) -> int:
            return max(0, limit - spent)

        spans = {seconds for _, seconds in terms.bursts}
        spent = {each: self._pace.since(connection, member.id, resource, now - each) for each in spans}
        tightest = min((left(limit, spent[seconds]), limit, seconds) for limit, seconds in terms.bursts)
        reserve_left = 0
        if terms.reserve:
            lately = sum(
                count for at, count in list(self._drawn.get((member.id, resource), ())) if at > now - _MINUTE
            )
            reserve_left = min(
                left(terms.reserve, drawn.mine_today),
                left(terms.epoch_reserve, drawn.mine),
                left(whole.day, used.everyone_today),
                left(whole.epoch + credit, used.everyone),
                left(limits.RESERVE_A_MINUTE, lately),
            )
        bounded = []
        for purpose, most in terms.purposes:
            asked = self._used(connection, member, purpose_of(resource, purpose), first).mine_today
            bounded.append(
                pb.PurposeBudget(purpose=purpose, day_limit=most, day_left=left(most, asked))  # type: ignore[arg-type]
            )
        return pb.Budget(
            epoch_limit=epoch_limit,
            epoch_left=min(
                left(epoch_limit - terms.epoch_reserve, used.mine - drawn.mine),
                left(whole.epoch + credit - kept_epoch, used.everyone - drawn.everyone),
            ),
            day_limit=terms.day,
            day_left=min(
                left(terms.day - terms.reserve, used.mine_today - drawn.mine_today),
                left(whole.day - kept_day, used.everyone_today - drawn.everyone_today),
            ),
            burst_left=tightest[0],
            burst_limit=tightest[1],
            burst_seconds=tightest[2],
            reserve_limit=terms.reserve,
            reserve_left=reserve_left,
            purposes=bounded,
        )

    def _add(
        self, connection: sa.Connection, ask: Ask, resource: str, epoch: int, now: float, count: int
    ) -> None:
        """To what the member has used of something on this day."""
        _CHARGE.run(
            connection,
            {
                "peer": ask.member.id,
                "resource": resource,
                "epoch": epoch,
                "day": self.day(now),
                "evaluations": count,
            },
        )

    def _charge(self, connection: sa.Connection, ask: Ask, now: float, budget: pb.Budget) -> None:
        """Record the evaluations and take them off `budget`; raises `Refused` where they are too many."""
        shared = min(budget.epoch_left, budget.day_left)
        urgent = ask.purpose in policy.URGENT and ask.count <= limits.URGENT_VALUES
        reserve = budget.reserve_left if urgent else 0
        mine = next((each for each in budget.purposes if each.purpose == ask.purpose), None)
        what, left, again = deciding(budget, ask.purpose, ask.count)
        if ask.count <= left and ask.count > budget.burst_left:
            what, left, again = "burst", budget.burst_left, f"within {budget.burst_seconds} s"
        if ask.count > left:
            beside = (
                f" and {budget.reserve_left} in reserve for urgent questions"
                if not reserve and budget.reserve_left
                else ""
            )
            raise exhausted(
                f"the {what} budget for {ask.resource} has {left} evaluations left{beside}, "
                f"{ask.count} are needed; more {again}"
            )
        self._add(connection, ask, ask.resource, ask.epoch, now, ask.count)
        drawn = max(0, ask.count - shared)
        if drawn:
            self._add(connection, ask, reserve_of(ask.resource), ask.epoch, now, drawn)
            lately = self._drawn.setdefault((ask.member.id, ask.resource), deque())
            lately.append((now, drawn))
            while lately[0][0] <= now - _MINUTE:
                lately.popleft()
            budget.reserve_left -= drawn
        if mine is not None:
            self._add(connection, ask, purpose_of(ask.resource, ask.purpose), ask.epoch, now, ask.count)
            mine.day_left -= ask.count
        budget.epoch_left -= min(ask.count - drawn, budget.epoch_left)
        budget.day_left -= min(ask.count - drawn, budget.day_left)
        budget.burst_left -= ask.count

    def _record_refusal(self, connection: sa.Connection, ask: Ask, refusal: Refused) -> None:
        # Counted by kind, so that a member that is refused a million times cannot fill the disk.
        table, now = schema.refusal, self._clock()
        day = self.day(now)
        resource = ask.resource
        known = connection.execute(
            sa.select(sa.func.count()).where(table.c.peer == ask.member.id, table.c.day == day)
        ).scalar_one()
        if known >= limits.REASONS_A_DAY:
            resource = "*"
        # The first of its kind a day is an event of the log; its repetitions are counted here.
        event_id = derived_id(
            "refusal", ask.member.id, ask.action, resource, refusal.reason, ask.purpose, day
        )
        self._event(connection, ask, ledger_pb2.EVENT_TYPE_REFUSED, event_id, refusal.reason)
        connection.execute(
            insert(table)
            .values(
                peer=ask.member.id,
                action=ask.action,
                resource=resource,
                reason=refusal.reason,
                purpose=ask.purpose,
                day=day,
                times=1,
                last_at=now,
            )
            .on_conflict_do_update(
                index_elements=["peer", "action", "resource", "reason", "purpose", "day"],
                set_={"times": table.c.times + 1, "last_at": now},
            )
        )
