"""Changes of who belongs and of this node's settings, as events of its log: noticed, and recorded once each."""

import hashlib
from pathlib import Path

import sqlalchemy as sa
from lianfang.v1 import ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols.ledger import events

from ..identity.members import MemberBook, MemberList
from ..store import engine as db
from ..store import schema
from .book import LogBook, random_id

_MEMBER, _FILE = "member:", "file:"


class Changes:
    """One per node; asked at each tick, which costs nothing while nothing has changed."""

    def __init__(self, database: sa.Engine, log: LogBook, book: MemberBook, files: list[Path]) -> None:
        self._database, self._log, self._book, self._files = database, log, book, files
        self._seen: tuple[MemberList, list[int]] | None = None

    def record(self) -> None:
        """Write down what is new since the last time, restarts included."""
        now = (self._book.current, [path.stat().st_mtime_ns if path.exists() else 0 for path in self._files])
        if self._seen is not None and self._seen[0] is now[0] and self._seen[1] == now[1]:
            return
        current = self._digests(now[0])
        table = schema.logged_state
        with db.writing(self._database) as connection:
            rows = connection.execute(sa.select(table.c.name, table.c.digest)).all()
            known = {row.name: row.digest for row in rows}
            for name in sorted(current.keys() | known.keys()):
                if current.get(name) != known.get(name):
                    self._write(connection, name, current.get(name), known.get(name), now[0])
        self._seen = now

    def _digests(self, members: MemberList) -> dict[str, bytes]:
        digests = {
            _MEMBER + entry.id: hashlib.sha256(entry.SerializeToString(deterministic=True)).digest()
            for entry in members.message().members
        }
        for path in self._files:
            if path.exists():
                digests[_FILE + path.name] = hashlib.sha256(path.read_bytes()).digest()
        return digests

    def _write(
        self,
        connection: sa.Connection,
        name: str,
        now: bytes | None,
        before: bytes | None,
        members: MemberList,
    ) -> None:
        if name.startswith(_MEMBER):
            change = ledger_pb2.MemberEvent.CHANGE_CHANGED
            if now is None:
                change = ledger_pb2.MemberEvent.CHANGE_REMOVED
            elif before is None:
                change = ledger_pb2.MemberEvent.CHANGE_ADMITTED
            event = ledger_pb2.MemberEvent(
                network=members.network,
                member=name.removeprefix(_MEMBER),
                change=change,
                list_version=members.version,
                entry_hash=now or b"",
            )
            self._log.record_clear(connection, events.member_leaf(event))
        else:
            entry = self._log.prepare(
                ledger_pb2.EVENT_TYPE_CONFIGURATION,
                "",
                random_id(),
                resource=name.removeprefix(_FILE),
                digest=now or b"",
            )
            self._log.record(connection, entry)
        table = schema.logged_state
        if now is None:
            connection.execute(table.delete().where(table.c.name == name))
        else:
            connection.execute(
                insert(table)
                .values(name=name, digest=now)
                .on_conflict_do_update(index_elements=["name"], set_={"digest": now})
            )
