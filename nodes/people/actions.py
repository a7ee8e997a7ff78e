"""What a person does, on the record; and what waits for a second person.

The first one's request leaves a pending action and is refused. A second person approves it, and the first one sends
the same bytes again: the action is found by a keyed hash over method and bytes, and is carried out once. Whoever may do
less by then than when the action was proposed or approved is asked again.

waiting → approved → done; waiting or approved → rejected or expired. What breaks off is approved again.
"""

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import sqlalchemy as sa
from lianfang.v1 import ledger_pb2

from protocols.encoding import expand, frame

from .. import limits
from ..errors import NotFound, Refused, invalid
from ..identity.keys import Vault
from ..ledger.book import LogBook, random_id
from ..policy import PolicyFile
from ..report import iso
from ..store import engine as db
from ..store import schema
from ..store.writer import GroupWriter
from .book import Caller, PeopleBook, Person, caller
from .roles import NEEDS
from .tally import WITHDRAWN, Tally

WAITING, APPROVED, REJECTED, DONE, EXPIRED = "waiting", "approved", "rejected", "done", "expired"
_CONTENT = b"pending action"
_ID = re.compile(r"[0-9a-f]{4,32}")
_KEPT = 30 * 86_400.0  # seconds for which one that has ended is still shown


@dataclass(frozen=True)
class Action:
    """Something that a person of this institution wants to do."""

    method: str  # as in `NEEDS`
    request: bytes  # every byte that decides what happens
    title: str  # for people, one line
    content: dict[str, Any]  # what the second person has to see
    count: int = 0  # of what one person may do so much a day alone
    counted_as: str = WITHDRAWN  # entries withdrawn, or evaluations

    def digest(self, vault: Vault) -> bytes:
        """32 bytes, keyed: identifiers in a request cannot be found by trying."""
        return expand(vault.index_key, b"action\x1f" + frame(self.method, self.request), 32)


@dataclass(frozen=True)
class Begun:
    """Something that is on record as done, until it breaks off."""

    action: Action
    id: bytes
    digest: bytes
    who: bytes  # pseudonym
    pending: bool = False  # a second person had approved it
    counted: int = 0  # for what this person does alone within a day


class Actions:
    """One per node. Every method may be called from any thread, and waits for the disk."""

    def __init__(
        self,
        database: sa.Engine,
        writer: GroupWriter,
        log: LogBook,
        vault: Vault,
        people: PeopleBook,
        policy: PolicyFile,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._writer, self._log, self._vault = database, writer, log, vault
        self._people, self._policy, self._clock = people, policy, clock
        self.tally = Tally(database, clock)

    # -- doing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def doing(self, action: Action, second: bool = False) -> Iterator[None]:
        """The block is what the caller does; it is recorded first. Raises `Refused` where a second person is needed."""
        begun = self.begin(action, second)
        try:
            yield
        except BaseException:
            self.break_off(begun)
            raise

    def begin(self, action: Action, second: bool = False) -> Begun:
        """Record that the caller does this now. Raises `Refused`: it waits for a second person, or may not be any more."""
        who = caller()
        digest, person, count = action.digest(self._vault), who.person, action.count
        if person is not None and count and not second:
            limits_now = self._policy.current.second_person
            limit = (
                limits_now.withdraw_entries
                if action.counted_as == WITHDRAWN
                else limits_now.evaluations_a_day
            )
            second = not self.tally.take(person.pseudonym, action.counted_as, count, limit)

        def work(connection: sa.Connection) -> Begun:
            self._people.check_again(who, action.method)
            if second and person is not None:
                identity = self._carry_out(connection, action, digest, person)
                return Begun(action, identity, digest, who.pseudonym, pending=True)
            if count and person is not None:
                self.tally.write(connection, person.pseudonym, action.counted_as, count)
            begun = Begun(action, random_id(), digest, who.pseudonym, counted=count if person else 0)
            self._record(connection, begun.id, 0, action.method, digest, who.pseudonym, "did")
            return begun

        return self._writer.submit(work).result()

    def _carry_out(self, connection: sa.Connection, action: Action, digest: bytes, person: Person) -> bytes:
        table, now = schema.pending_action, self._clock()
        row = connection.execute(
            sa.select(table)
            .where(
                table.c.digest == digest,
                table.c.person == person.id,
                table.c.state.in_((WAITING, APPROVED)),
                table.c.expires_at > now,
            )
            .order_by(table.c.at.desc())
        ).first()
        if row is None:
            raise self._propose(connection, action, digest, person)
        if row.state == WAITING:
            raise self._waits(row.id, action, row.expires_at)
        approver = self._people.get(row.second)
        lost = approver.removed or not approver.roles & NEEDS[action.method].second
        if lost or row.decided_at <= approver.reset_at:
            self._move(connection, row, WAITING, "approval lapsed", b"", second=b"")
            raise Refused(
                f"{approver.name}, who approved this, may not approve it any more; it waits for another: "
                f"{row.id.hex()[:12]}",
                "PENDING",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        self._move(connection, row, DONE, "done", person.pseudonym)
        return bytes(row.id)

    def _propose(self, connection: sa.Connection, action: Action, digest: bytes, person: Person) -> Refused:
        table, now = schema.pending_action, self._clock()
        waiting = connection.execute(
            sa.select(sa.func.count()).where(
                table.c.person == person.id, table.c.state == WAITING, table.c.expires_at > now
            )
        ).scalar_one()
        if waiting >= limits.ACTIONS_A_PERSON:
            return Refused(
                f"{waiting} actions of yours wait for a second person already",
                "ACTIONS",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        identity = secrets.token_bytes(16)
        expires = now + self._policy.current.second_person.hours * 3600
        content = json.dumps({"title": action.title, **action.content}, ensure_ascii=False)
        connection.execute(
            table.insert().values(
                id=identity,
                method=action.method,
                digest=digest,
                person=person.id,
                second=b"",
                state=WAITING,
                content=self._vault.encrypt(content.encode(), _CONTENT + identity),
                step=1,
                at=now,
                expires_at=expires,
            )
        )
        self._record(connection, identity, 1, action.method, digest, person.pseudonym, "proposed")
        return self._waits(identity, action, expires)

    def _waits(self, identity: bytes, action: Action, expires: float) -> Refused:
        roles = " or ".join(sorted(NEEDS[action.method].second))
        return Refused(
            f"{action.title}: this needs a second person, until {iso(expires)}. Another {roles} runs "
            f"`lianfang pending approve {identity.hex()[:12]}`; then send the same again",
            "PENDING",
            grpc.StatusCode.FAILED_PRECONDITION,
        )

    def _record(
        self,
        connection: sa.Connection,
        identity: bytes,
        step: int,
        method: str,
        digest: bytes,
        pseudonym: bytes,
        what: str,
    ) -> None:
        entry = self._log.prepare(
            ledger_pb2.EVENT_TYPE_ACTION,
            "",
            identity,
            number=step,
            resource=method,
            digest=digest,
            asker=pseudonym,
            reason=what,
        )
        self._log.record(connection, entry)

    def _move(
        self,
        connection: sa.Connection,
        row: Any,
        state: str,
        what: str,
        pseudonym: bytes,
        **values: Any,
    ) -> None:
        table = schema.pending_action
        connection.execute(
            table.update().where(table.c.id == row.id).values(state=state, step=row.step + 1, **values)
        )
        self._record(connection, row.id, row.step + 1, row.method, row.digest, pseudonym, what)

    def break_off(self, begun: Begun | None) -> None:
        """It did not come to its end: on record, and what was approved may be done again. Does not wait."""
        if begun is None:
            return
        # Entries were not withdrawn; what was evaluated has been told and stays counted.
        gives_back = begun.counted and begun.action.counted_as == WITHDRAWN
        if gives_back:
            self.tally.give_back(begun.who, WITHDRAWN, begun.counted)

        def work(connection: sa.Connection) -> None:
            if not begun.pending:
                if gives_back:
                    self.tally.write(connection, begun.who, WITHDRAWN, -begun.counted)
                self._record(
                    connection, begun.id, 1, begun.action.method, begun.digest, begun.who, "broke off"
                )
                return
            row = self._row(connection, begun.id)
            if row is not None and row.state == DONE:
                self._move(connection, row, APPROVED, "broke off", begun.who)

        self._writer.submit(work)

    def _row(self, connection: sa.Connection, identity: bytes) -> Any:
        table = schema.pending_action
        return connection.execute(sa.select(table).where(table.c.id == identity)).first()

    # -- the second person ---------------------------------------------------------------------------------------

    def decide(self, who: Caller, text: str, approve: bool) -> dict[str, Any]:
        """Approve, or reject, also what was approved; who proposed an action may reject it.

        Raises `Refused` or `NotFound`.
        """
        person, found = who.whoever(), self._find(who, text)  # own, or one that this person may decide

        def work(connection: sa.Connection) -> None:
            row = self._row(connection, found.id)
            now = self._clock()
            self._people.check_again(who, "People/DecideAction")
            if row.state not in ((WAITING,) if approve else (WAITING, APPROVED)) or row.expires_at <= now:
                stands = EXPIRED if row.expires_at <= now else row.state
                raise Refused(
                    f"the action {row.id.hex()[:12]} is {stands} already",
                    "ENDED",
                    grpc.StatusCode.FAILED_PRECONDITION,
                )
            if approve and row.person == person.id:
                raise Refused("a second person approves: this is your own", "OWN")
            self._move(
                connection,
                row,
                APPROVED if approve else REJECTED,
                "approved" if approve else "rejected",
                person.pseudonym,
                second=person.id,
                decided_at=now,
            )

        self._writer.submit(work).result()
        return self.show(who, found.id.hex())

    def _visible(self, who: Caller, row: Any) -> bool:
        person = who.whoever()
        return row.person == person.id or bool(person.roles & NEEDS[row.method].second)

    def _find(self, who: Caller, text: str) -> Any:
        if not _ID.fullmatch(text):
            raise invalid("an action is named by its id, or at least 4 characters of its beginning")
        table = schema.pending_action
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(table.c.id, table.c.person, table.c.method)).all()
            found = [row for row in rows if row.id.hex().startswith(text) and self._visible(who, row)]
            if len(found) != 1:
                raise NotFound(f"{text} names {len(found)} actions that you may see")
            return self._row(connection, found[0].id)

    def show(self, who: Caller, text: str) -> dict[str, Any]:
        """One action, with what is asked for. Raises `NotFound` for one that the caller has no part in."""
        row = self._find(who, text)
        content = {} if row.content is None else self._open(row)
        return {**self._document(who, row), "content": content}

    def _open(self, row: Any) -> dict[str, Any]:
        return dict(json.loads(self._vault.decrypt(row.content, _CONTENT + row.id)))

    def list(self, who: Caller) -> list[dict[str, Any]]:
        """Those that wait or are approved, and that the caller has a part in; oldest first."""
        table = schema.pending_action
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table)
                .where(table.c.state.in_((WAITING, APPROVED)), table.c.expires_at > self._clock())
                .order_by(table.c.at)
            ).all()
        return [self._document(who, row) for row in rows if self._visible(who, row)]

    def _document(self, who: Caller, row: Any) -> dict[str, Any]:
        stands = row.state
        if stands in (WAITING, APPROVED) and row.expires_at <= self._clock():
            stands = EXPIRED
        own = row.person == who.whoever().id
        return {
            "id": row.id.hex(),
            "method": row.method,
            "title": self._open(row)["title"] if row.content is not None else row.method,
            "state": stands,
            "by": self._people.get(row.person).name,
            "decided_by": self._people.get(row.second).name if row.second else "",
            "at": iso(row.at),
            "expires_at": iso(row.expires_at),
            "own": own,
            "to_decide": stands == WAITING and not own,
        }

    def waiting(self) -> int:
        """How many wait for a second person now."""
        table = schema.pending_action
        with db.reading(self._database) as connection:
            return int(
                connection.execute(
                    sa.select(sa.func.count()).where(
                        table.c.state == WAITING, table.c.expires_at > self._clock()
                    )
                ).scalar_one()
            )

    def purge(self) -> None:
        """Expire what is due, erase what ended actions asked for, and later the actions themselves."""
        table, now = schema.pending_action, self._clock()
        due = sa.and_(table.c.state.in_((WAITING, APPROVED)), table.c.expires_at <= now)
        over = sa.and_(table.c.expires_at <= now, table.c.content.is_not(None))
        old = table.c.expires_at < now - _KEPT
        with db.reading(self._database) as connection:
            if (
                connection.execute(sa.select(table.c.id).where(sa.or_(due, over, old)).limit(1)).first()
                is None
            ):
                return

        def work(connection: sa.Connection) -> None:
            for row in connection.execute(sa.select(table).where(due)).all():
                self._move(connection, row, EXPIRED, "expired", b"")
            connection.execute(table.update().where(table.c.expires_at <= now).values(content=None))
            connection.execute(table.delete().where(old))
            self.tally.purge(connection)

        self._writer.submit(work).result()
