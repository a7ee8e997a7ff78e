"""The one gate: every use of this node by another member is admitted or refused here, and durably recorded.

`admit` returns once the decision and the charge are on disk, in one transaction; only then may the action
begin. Requests that arrive together share one commit. A repeated query id is answered from the record: charged
once, refused with another request. Rules come from the policy file; contracts will be added here and nowhere else.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import sqlalchemy as sa
from lianfang.v1 import common_pb2 as pb
from sqlalchemy.dialects.sqlite import insert

from protocols.encoding import frame

from . import limits, policy
from .errors import NodeError, Refused, StorageError
from .identity.members import Member
from .store import engine as db
from .store import schema

EVALUATE = "evaluate"
SYNC = "sync"
_DAY = 86_400
_STOP = object()


@dataclass(frozen=True)
class Ask:
    """What a member wants. `count` is in evaluations as charged; 0 for what costs nothing."""

    member: Member
    action: str
    resource: str  # list name
    epoch: int
    count: int
    query_id: bytes
    request_hash: bytes
    purpose: int = 0
    basis: int = 0
    case_commitment: bytes = b""
    asker: bytes = b""
    asked_at: float | None = None
    # Raises `Refused` for what depends on the resource's state; runs after the rules, before the charge.
    check: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Decision:
    """Granted: `repeated` says that this query id was charged before."""

    repeated: bool
    budget: pb.Budget


def exhausted(message: str) -> Refused:
    """A budget is used up."""
    return Refused(message, "BUDGET", grpc.StatusCode.RESOURCE_EXHAUSTED)


class Gate:
    """Runs one writer thread; `admit` may be called from any thread, `submit` from the event loop."""

    def __init__(
        self, database: sa.Engine, rules: policy.PolicyFile, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._rules, self._clock = database, rules, clock
        self._queue: queue.SimpleQueue[tuple[Ask, Future[Decision]] | object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()
        self._log = logging.getLogger("lianfang.gate")

    def close(self) -> None:
        """Decide what is queued, then stop."""
        self._queue.put(_STOP)
        self._thread.join()

    def admit(self, ask: Ask) -> Decision:
        """Durably record and grant, or raise `Refused` (recorded too) or `StorageError` (nothing was)."""
        return self.submit(ask).result()

    def submit(self, ask: Ask) -> "Future[Decision]":
        """`admit` without waiting."""
        future: Future[Decision] = Future()
        self._queue.put((ask, future))
        return future

    def precheck(self, ask: Ask) -> None:
        """The rules alone: keeps strangers from costing work. Raises `Refused`, which is recorded too."""
        try:
            self._rule(ask.member, ask.resource, ask.action, ask.purpose, ask.basis)
        except Refused:
            self.submit(ask)  # decided again behind the others, and recorded
            raise

    def purposes(self, member: Member, resource: str) -> list[int]:
        """Purposes the member may ask for; empty where it may not use the list at all."""
        rule = self._rules.current.rule(member.name, resource)
        return [policy.PURPOSES[each] for each in rule.purposes] if rule else []

    def budget(self, member: Member, resource: str) -> pb.Budget:
        """What the member has left for a list."""
        with db.reading(self._database) as connection:
            return self._budget(connection, member, resource)

    # -- the writer thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            group = [] if first is _STOP else [first]
            while len(group) < 256:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is _STOP:
                    first = _STOP
                    break
                group.append(item)
            if group:
                self._decide_together(group)  # type: ignore[arg-type]
            if first is _STOP:
                return

    def _decide_together(self, group: list[tuple[Ask, "Future[Decision]"]]) -> None:
        outcomes: list[Decision | Exception] = []
        # Whoever has gone meanwhile is not charged, and from here on cannot go.
        group = [each for each in group if each[1].set_running_or_notify_cancel()]
        try:
            with db.writing(self._database) as connection:
                for ask, _ in group:
                    try:
                        outcomes.append(self._decide(connection, ask))
                    except NodeError as refusal:
                        if isinstance(refusal, Refused):
                            self._record_refusal(connection, ask, refusal)
                        outcomes.append(refusal)
        except StorageError as error:
            outcomes = [error] * len(group)
        except Exception as error:  # a defect must not leave callers waiting for ever
            self._log.exception("gate failed")
            outcomes = [NodeError(f"the gate failed: {type(error).__name__}")] * len(group)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _decide(self, connection: sa.Connection, ask: Ask) -> Decision:
        table = schema.decision
        known = connection.execute(
            sa.select(table.c.id, table.c.request_hash, table.c.repeats).where(
                table.c.peer == ask.member.id, table.c.query_id == ask.query_id
            )
        ).first()
        if known is not None and known.request_hash != ask.request_hash:
            raise Refused(
                "this query id was used for another request",
                "QUERY_ID_REUSED",
                grpc.StatusCode.ALREADY_EXISTS,
            )
        self._rule(ask.member, ask.resource, ask.action, ask.purpose, ask.basis)
        now = self._clock()
        if ask.action == SYNC:
            return self._decide_sync(connection, ask, now)
        if known is None and ask.asked_at is not None:
            skew = abs(now - ask.asked_at)
            if skew > limits.CLOCK_SKEW.total_seconds():
                raise Refused(
                    f"the clocks differ by {skew:.0f} s, more than {limits.CLOCK_SKEW.total_seconds():.0f}",
                    "CLOCK",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
        ask.check()
        if known is not None:
            if known.repeats >= limits.RETRIES_ANSWERED:
                raise exhausted("this question has been answered often enough; ask a new one")
            connection.execute(table.update().where(table.c.id == known.id).values(repeats=known.repeats + 1))
            return Decision(True, self._budget(connection, ask.member, ask.resource))
        if ask.count:
            self._charge(connection, ask, now)
        self._insert(connection, ask, now, ask.query_id)
        return Decision(False, self._budget(connection, ask.member, ask.resource))

    @staticmethod
    def _insert(connection: sa.Connection, ask: Ask, now: float, query_id: bytes) -> None:
        connection.execute(
            schema.decision.insert().values(
                query_id=query_id,
                peer=ask.member.id,
                action=ask.action,
                resource=ask.resource,
                epoch=ask.epoch,
                purpose=ask.purpose,
                basis=ask.basis,
                count=ask.count,
                request_hash=ask.request_hash,
                case_commitment=ask.case_commitment,
                asker=ask.asker,
                at=now,
                repeats=0,
            )
        )

    def _decide_sync(self, connection: sa.Connection, ask: Ask, now: float) -> Decision:
        """Pulls cost no evaluations; one row counts a day's, so that a million of them fill no disk."""
        ask.check()
        table = schema.decision
        day = int(now // _DAY)
        row_id = hashlib.sha256(frame("sync", ask.resource, ask.epoch, day)).digest()[:16]
        mine = (table.c.peer == ask.member.id) & (table.c.query_id == row_id)
        times = connection.execute(sa.select(table.c.repeats).where(mine)).scalar()
        if times is not None and times >= limits.PULLS_A_DAY:
            raise exhausted(f"{limits.PULLS_A_DAY} pulls of {ask.resource} today; more tomorrow (UTC)")
        if times is not None:
            connection.execute(table.update().where(mine).values(repeats=times + 1, at=now))
        else:
            self._insert(connection, ask, now, row_id)
        return Decision(False, pb.Budget())

    def _rule(self, member: Member, resource: str, action: str, purpose: int, basis: int) -> policy.Rule:
        rule = self._rules.current.rule(member.name, resource)
        if rule is None:
            raise Refused(f"{member.name.name} may not use the list {resource}", "POLICY")
        if action == SYNC and not rule.sync:
            raise Refused(f"{member.name.name} may not sync the list {resource}", "POLICY")
        if action == EVALUATE:
            name = policy.PURPOSE_NAMES.get(purpose, "none")
            if name not in rule.purposes:
                raise Refused(f"{member.name.name} may not ask {resource} for the purpose {name}", "PURPOSE")
            if rule.bases and policy.BASIS_NAMES.get(basis) not in rule.bases:
                raise Refused(f"{member.name.name} may not ask {resource} on this legal basis", "BASIS")
        return rule

    # -- budgets ---------------------------------------------------------------------------------------------

    def _used(self, connection: sa.Connection, resource: str, peer: str | None, **where: object) -> int:
        table = schema.usage
        query = sa.select(sa.func.coalesce(sa.func.sum(table.c.evaluations), 0)).where(
            table.c.resource == resource
        )
        if peer is not None:
            query = query.where(table.c.peer == peer)
        for column, value in where.items():
            condition = table.c[column].in_(value) if isinstance(value, list) else table.c[column] == value
            query = query.where(condition)
        return int(connection.execute(query).scalar_one())

    def _epochs(self, connection: sa.Connection, resource: str) -> list[int]:
        """All epochs whose key exists: one budget spans them."""
        table = schema.epoch
        return list(
            connection.execute(
                sa.select(table.c.number)
                .where(table.c.list == resource, table.c.state != "closed")
                .order_by(table.c.number)
            ).scalars()
        )

    def _renewal(self, connection: sa.Connection, resource: str, peer: str, epochs: list[int]) -> int:
        """What the epochs before had metered when the newest one opened: fixed from then on."""
        if len(epochs) < 2:
            return 0
        epoch, decision = schema.epoch, schema.decision
        opened = connection.execute(
            sa.select(epoch.c.opened_at).where(epoch.c.list == resource, epoch.c.number == epochs[-1])
        ).scalar_one()
        return int(
            connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(decision.c.count), 0)).where(
                    decision.c.peer == peer,
                    decision.c.resource == resource,
                    decision.c.epoch.in_(epochs[:-1]),
                    decision.c.at < opened,
                )
            ).scalar_one()
        )

    def _burst_used(self, connection: sa.Connection, peer: str, resource: str, seconds: int) -> int:
        table = schema.decision
        return int(
            connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(table.c.count), 0)).where(
                    table.c.peer == peer,
                    table.c.resource == resource,
                    table.c.at > self._clock() - seconds,
                )
            ).scalar_one()
        )

    def _budget(
        self, connection: sa.Connection, member: Member, resource: str, epoch: int | None = None
    ) -> pb.Budget:
        """What is left for questions of `epoch`, by default the newest one."""
        rules = self._rules.current
        rule = rules.rule(member.name, resource)
        if rule is None:
            return pb.Budget()
        whole = rules.list_budget(resource)
        epochs = self._epochs(connection, resource)
        today = int(self._clock() // _DAY)
        peer = member.id
        credit = 0
        if epochs and epoch in (None, epochs[-1]):
            # What an epoch before has answered may be asked again of the new one, and of that one only.
            credit = min(whole.renewal_credit, self._renewal(connection, resource, peer, epochs))
        mine = self._used(connection, resource, peer, epoch=epochs)
        mine_today = self._used(connection, resource, peer, day=today)
        all_epoch = self._used(connection, resource, None, epoch=epochs)
        all_today = self._used(connection, resource, None, day=today)
        burst = self._burst_used(connection, peer, resource, rule.budget.burst_seconds)
        epoch_limit = rule.budget.epoch + credit

        def left(limit: int, used: int) -> int:
            return max(0, limit - used)

        return pb.Budget(
            epoch_limit=epoch_limit,
            epoch_left=min(left(epoch_limit, mine), left(whole.epoch + credit, all_epoch)),
            day_limit=rule.budget.day,
            day_left=min(left(rule.budget.day, mine_today), left(whole.day, all_today)),
            burst_limit=rule.budget.burst,
            burst_left=left(rule.budget.burst, burst),
            burst_seconds=rule.budget.burst_seconds,
        )

    def _charge(self, connection: sa.Connection, ask: Ask, now: float) -> None:
        budget = self._budget(connection, ask.member, ask.resource, ask.epoch)
        for name, left, again in (
            ("epoch", budget.epoch_left, "when the list's next epoch opens"),
            ("day", budget.day_left, "tomorrow (UTC)"),
            ("burst", budget.burst_left, f"within {budget.burst_seconds} s"),
        ):
            if ask.count > left:
                raise exhausted(
                    f"the {name} budget for {ask.resource} has {left} evaluations left, "
                    f"{ask.count} are needed; more {again}"
                )
        table = schema.usage
        connection.execute(
            insert(table)
            .values(
                peer=ask.member.id,
                resource=ask.resource,
                epoch=ask.epoch,
                day=int(now // _DAY),
                evaluations=ask.count,
            )
            .on_conflict_do_update(
                index_elements=["peer", "resource", "epoch", "day"],
                set_={"evaluations": table.c.evaluations + ask.count},
            )
        )

    def _record_refusal(self, connection: sa.Connection, ask: Ask, refusal: Refused) -> None:
        # Counted by kind, so that a member that is refused a million times cannot fill the disk.
        table, now = schema.refusal, self._clock()
        day = int(now // _DAY)
        resource = ask.resource
        known = connection.execute(
            sa.select(sa.func.count()).where(table.c.peer == ask.member.id, table.c.day == day)
        ).scalar_one()
        if known >= limits.REASONS_A_DAY:
            resource = "*"
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
