"""How much members have asked lately: what bursts are counted from, without a look through every decision of the hour."""

import bisect
from typing import NamedTuple

import sqlalchemy as sa

from . import limits
from .store import schema
from .store.prepared import Prepared

_decision = schema.decision
_mine = (_decision.c.peer == sa.bindparam("in_peer"), _decision.c.resource == sa.bindparam("in_resource"))
_after = _decision.c.at > sa.bindparam("in_since")
_second = sa.cast(_decision.c.at, sa.Integer)
_SECONDS = Prepared(
    sa.select(_second, sa.func.sum(_decision.c.count))
    .where(*_mine, _after)
    .group_by(_second)
    .order_by(_second)
)
_BETWEEN = Prepared(
    sa.select(sa.func.coalesce(sa.func.sum(_decision.c.count), 0)).where(
        *_mine, _after, _decision.c.at < sa.bindparam("in_until")
    )
)
_EVER = 1e12  # seconds
_ROOM = 600  # seconds more than the longest stretch, so that the old ones go a few at a time


class _Counts(NamedTuple):
    start: float  # all decisions later than this are counted
    seconds: list[tuple[int, int]]  # (second, evaluations), ascending


class Pace:
    """Evaluations of each member and resource by the second, for the longest stretch that a burst may have.

    Kept by whoever has the database's turn to write, ahead of the commit; forgotten after one that fails, and read from the decisions
    when needed again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Counts] = {}

    def since(self, connection: sa.Connection, peer: str, resource: str, moment: float) -> int:
        """Evaluations later than `moment`, to the decision. For everybody, in any thread."""
        known = self._known.get((peer, resource))
        if known is None or moment < known.start:
            return self._between(connection, peer, resource, moment, _EVER)
        total, first = 0, int(moment)
        for second, count in reversed(known.seconds):
            if second <= first:
                if second == first:  # it counts in part
                    total += self._between(connection, peer, resource, moment, first + 1)
                break
            total += count
        return total

    def load(self, connection: sa.Connection, peer: str, resource: str, now: float) -> None:
        """Know of a member and resource from here on. With the turn to write."""
        start = now - limits.BURST_SECONDS
        known = self._known.get((peer, resource))
        if known is None or start < known.start:  # also where the clock was set back
            values = {"in_peer": peer, "in_resource": resource, "in_since": start}
            self._known[peer, resource] = _Counts(start, _SECONDS.run(connection, values).fetchall())

    def add(self, peer: str, resource: str, now: float, count: int) -> None:
        """A decision that is being recorded. With the turn to write, after `load`."""
        known, second = self._known[peer, resource], int(now)
        counts = known.seconds
        place = bisect.bisect_left(counts, (second,))  # the end, but for a clock that was set back
        if place < len(counts) and counts[place][0] == second:
            counts[place] = (second, counts[place][1] + count)
        else:
            counts.insert(place, (second, count))
        if len(counts) > limits.BURST_SECONDS + _ROOM:
            start = max(known.start, now - limits.BURST_SECONDS)
            self._known[peer, resource] = _Counts(start, counts[bisect.bisect_left(counts, (int(start),)) :])

    def forget(self) -> None:
        """A commit failed: the decisions say what holds. With the turn to write."""
        self._known = {}

    @staticmethod
    def _between(connection: sa.Connection, peer: str, resource: str, moment: float, until: float) -> int:
        values = {"in_peer": peer, "in_resource": resource, "in_since": moment, "in_until": until}
        return int(_BETWEEN.run(connection, values).fetchone()[0])
