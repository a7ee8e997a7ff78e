"""How much members have asked lately: what bursts are counted from, without a look through every decision of the hour."""

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


class Pace:
    """Evaluations of each member and resource by the second, for the longest stretch that a burst may have.

    Kept by whoever has the database's turn to write, ahead of the commit; forgotten after one that fails, and read from the decisions
    when needed again.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[tuple[int, int]]] = {}  # (second, evaluations), newest last

    def since(self, connection: sa.Connection, peer: str, resource: str, moment: float) -> int:
        """Evaluations later than `moment`, to the decision. For everybody, in any thread."""
        counts = self._counts.get((peer, resource))
        if counts is None:
            return self._between(connection, peer, resource, moment, _EVER)
        total, first = 0, int(moment)
        for second, count in reversed(counts):
            if second <= first:
                if second == first:  # it counts in part
                    total += self._between(connection, peer, resource, moment, first + 1)
                break
            total += count
        return total

    def load(self, connection: sa.Connection, peer: str, resource: str, now: float) -> None:
        """Know of a member and resource from here on. With the turn to write."""
        if (peer, resource) not in self._counts:
            values = {"in_peer": peer, "in_resource": resource, "in_since": now - limits.BURST_SECONDS - 1}
            self._counts[peer, resource] = _SECONDS.run(connection, values).fetchall()

    def add(self, peer: str, resource: str, now: float, count: int) -> None:
        """A decision that is being recorded. With the turn to write, after `load`."""
        counts, second = self._counts[peer, resource], int(now)
        if counts and counts[-1][0] == second:
            counts[-1] = (second, counts[-1][1] + count)
            return
        counts.append((second, count))
        if len(counts) > 2 * limits.BURST_SECONDS:
            oldest = second - limits.BURST_SECONDS - 1
            self._counts[peer, resource] = [each for each in counts if each[0] >= oldest]

    def forget(self) -> None:
        """A commit failed: the decisions say what holds. With the turn to write."""
        self._counts = {}

    @staticmethod
    def _between(connection: sa.Connection, peer: str, resource: str, moment: float, until: float) -> int:
        values = {"in_peer": peer, "in_resource": resource, "in_since": moment, "in_until": until}
        return int(_BETWEEN.run(connection, values).fetchone()[0])
