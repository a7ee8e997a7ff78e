"""What holders have signed about their lists, slot by slot: two different statements for one slot prove misbehaviour.

A statement counts once it stands in the holder's published log; contradictions are kept as alarms, with both sides.
"""

import threading
import time
from typing import Any

import sqlalchemy as sa
from lianfang.v1 import common_pb2 as common

from protocols import statement
from protocols.sealed import ListEpoch

from ..errors import Refused
from ..identity.members import Member
from ..store import engine as db
from ..store import schema

# Alarms about a whole log (their list is empty) that end all use of its owner's lists.
BLOCKING = ("split view", "broken promise")


class Pins:
    """Tables `pin` and `alarm` of `node.db`."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._alarms: list[dict[str, Any]] | None = None

    def pin(
        self,
        member: Member,
        where: ListEpoch,
        signed: common.SignedStatement,
        kind: str,
        position: int | None = None,
    ) -> Any:
        """Verify a statement and hold its maker to it; `position` is where its log holds it, if it was read there.

        Returns the statement. Raises `Refused` for a second, different one, and a `PeerError` where it does not verify.
        """
        said = statement.verify(member.verifier, signed, where, kind)
        slot = statement.slot(said)
        table = schema.pin
        key = {"holder": member.id, "list": where.list, "epoch": where.epoch, "slot": slot}
        data = signed.SerializeToString(deterministic=True)
        with db.writing(self._database) as connection:
            row = connection.execute(sa.select(table.c.signed, table.c.position).filter_by(**key)).first()
            if row is None:
                connection.execute(
                    table.insert().values(**key, signed=data, at=time.time(), position=position)
                )
                return said
            if common.SignedStatement.FromString(row.signed).statement == signed.statement:
                if row.position is None and position is not None:
                    connection.execute(table.update().filter_by(**key).values(position=position))
                return said
        what = f"two statements for epoch {where.epoch}, {slot}"
        self.alarm(member.id, where.list, what, row.signed, data)
        self.check(member.id, where.list)
        return said

    def logged(self, holder: str, where: ListEpoch, slot: str) -> bool:
        """Whether the pinned statement of a slot stands in its maker's published log."""
        table = schema.pin
        with db.reading(self._database) as connection:
            position = connection.execute(
                sa.select(table.c.position).filter_by(
                    holder=holder, list=where.list, epoch=where.epoch, slot=slot
                )
            ).scalar()
        return position is not None

    def signed(self, where: ListEpoch, slot: str) -> common.SignedStatement | None:
        """The pinned statement of a slot."""
        table = schema.pin
        with db.reading(self._database) as connection:
            data = connection.execute(
                sa.select(table.c.signed).filter_by(
                    holder=where.holder, list=where.list, epoch=where.epoch, slot=slot
                )
            ).scalar()
        return None if data is None else common.SignedStatement.FromString(data)

    def newest(self, holder: str) -> dict[str, tuple[int, int]]:
        """By list, the (epoch, batch) that a holder's log announces last, among epochs that it has not closed."""
        table = schema.pin
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table.c.list, table.c.epoch, table.c.slot).where(
                    table.c.holder == holder, table.c.position.is_not(None)
                )
            ).all()
        closed = {(row.list, row.epoch) for row in rows if row.slot == "epoch-closed"}
        found: dict[str, tuple[int, int]] = {}
        for row in rows:
            if row.slot.startswith("batch-") and (row.list, row.epoch) not in closed:
                place = (row.epoch, int(row.slot.removeprefix("batch-")))
                found[row.list] = max(place, found.get(row.list, (0, 0)))
        return found

    # -- alarms ----------------------------------------------------------------------------------------------

    def alarm(self, holder: str, list_name: str, what: str, first: bytes, second: bytes) -> int | None:
        """Keep a contradiction, once; its number, or `None` where it is known already."""
        table = schema.alarm
        with db.writing(self._database) as connection:
            known = connection.execute(
                sa.select(table.c.id).filter_by(holder=holder, list=list_name, what=what)
            ).scalar()
            if known is not None:
                return None
            made = connection.execute(
                table.insert().values(
                    holder=holder, list=list_name, what=what, first=first, second=second, at=time.time()
                )
            )
        with self._guard:
            self._alarms = None
        return int(made.inserted_primary_key[0]) if made.inserted_primary_key else None

    def alarms(self) -> list[dict[str, Any]]:
        """Contradictions, newest first."""
        with self._guard:
            known = self._alarms
        if known is None:
            with db.reading(self._database) as connection:
                rows = connection.execute(sa.select(schema.alarm).order_by(schema.alarm.c.id.desc())).all()
            known = [{"holder": r.holder, "list": r.list, "what": r.what, "at": r.at} for r in rows]
            with self._guard:
                self._alarms = known
        return known

    def check(self, holder: str, list_name: str) -> None:
        """Raise `Refused` where the holder has contradicted itself about this list or with its log."""
        for each in self.alarms():
            if each["holder"] != holder:
                continue
            if each["list"] == list_name or (not each["list"] and each["what"].startswith(BLOCKING)):
                raise Refused(
                    f"{holder}: {each['what']}; what contradicts itself is kept as evidence",
                    "MISBEHAVIOUR",
                )
