"""How much a person has done alone within a day: many small steps are one large one."""

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from ..store import engine as db
from ..store import schema
from ..store.prepared import Prepared

WITHDRAWN, EVALUATIONS = "withdrawn", "evaluations"
_HOUR, _DAY = 3_600, 24
_table = schema.tally
_new = insert(_table)
_ADD = Prepared(
    _new.on_conflict_do_update(
        index_elements=["person", "what", "hour"], set_={"count": _table.c.count + _new.excluded.count}
    ),
    [column.name for column in _table.columns],
)


class Tally:
    """In memory, so that asking costs nothing; `write` makes it last."""

    def __init__(self, database: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._counts: dict[tuple[bytes, str], dict[int, int]] = {}
        with db.reading(database) as connection:
            rows = connection.execute(sa.select(_table).where(_table.c.hour > self._now() - _DAY))
            for person, what, hour, count in rows:
                self._counts.setdefault((person, what), {})[hour] = count

    def _now(self) -> int:
        return int(self._clock() // _HOUR)

    def take(self, person: bytes, what: str, count: int, limit: int) -> bool:
        """Count it, unless the last 24 hours would then be above the limit."""
        now = self._now()
        with self._guard:
            hours = self._counts.setdefault((person, what), {})
            for hour in [each for each in hours if each <= now - _DAY]:
                del hours[hour]
            if sum(hours.values()) + count > limit:
                return False
            hours[now] = hours.get(now, 0) + count
            return True

    def give_back(self, person: bytes, what: str, count: int) -> None:
        """What was taken was not done; to be written, too."""
        now = self._now()
        with self._guard:
            hours = self._counts.setdefault((person, what), {})
            hours[now] = hours.get(now, 0) - count

    def write(self, connection: sa.Connection, person: bytes, what: str, count: int) -> None:
        """What was taken is durable with the transaction."""
        _ADD.run(connection, {"person": person, "what": what, "hour": self._now(), "count": count})

    def purge(self, connection: sa.Connection) -> None:
        """Forget what no limit looks at any more."""
        connection.execute(_table.delete().where(_table.c.hour <= self._now() - _DAY))
