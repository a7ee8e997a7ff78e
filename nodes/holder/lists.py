"""Own lists in `lists.db`: entries, imports, withdrawals, expiry. Each change gets a sequence number."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from protocols import label as labels
from protocols import statement
from protocols.errors import IdentifierError
from protocols.identifiers import Directory, Identifier, Kind, normalise
from protocols.identifiers.kinds import WITH_COUNTRY
from protocols.label import Reason, Status

from .. import limits
from ..errors import NotFound, StorageError, invalid
from ..identity.institutions import NONE, DirectoryFile
from ..identity.keys import Vault
from ..store import engine as db
from ..store import schema
from .rows import MARK, Bad, Prepared, SealRow, StoredRow, references

_log = logging.getLogger("lianfang.lists")
_LIVE = tuple(sorted(int(status) for status in labels.LIVE))
# A person's decision stands against a file that still has the entry.
_HELD = (
    f"(e.status IN ({Status.WITHDRAWN:d}, {Status.SUSPENDED:d}) AND e.reason <> {Reason.REMOVED_BY_SOURCE:d})"
)
_SAME = ("category", "severity", "confidence", "basis", "reason")
_DETAILS = (*_SAME, "own_mark")
_SOON = 30  # days: an end that near is as good as a withdrawal
_KEY = schema.entry_key
_MOVED = 10_000  # entries in a step of moving them under the key of lists
_MOVE = (
    schema.entry.update()
    .where(schema.entry.c.id == sa.bindparam("in_id"))
    .values({name: sa.bindparam(name) for name in ("identifier", "secret", "own_reference", "own_mark")})
)
_COLUMNS = tuple(column for column in StoredRow._fields)


def today() -> int:
    """Days since 1970-01-01 UTC."""
    return int(time.time() // 86_400)


@dataclass
class ImportOutcome:
    """What an import did, or would have done."""

    rows: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    duplicates: int = 0
    merged: int = 0  # rows that add a reference to the entry of an earlier row
    held: int = 0
    leaving: int = 0  # entries that leave, end soon, become contested, or are kept from being listed
    leaving_refs: list[bytes] = field(default_factory=list)  # the first of them
    bad: list[Bad] = field(default_factory=list)
    refused: bool = False


@dataclass(frozen=True)
class StoredEntry:
    """An entry with its identifier in clear, for the node's own people."""

    identifier: Identifier
    own_reference: str  # several are parted by semicolons
    ref: bytes
    category: int
    severity: int
    confidence: int
    basis: int
    status: int
    reason: int
    observed_on: int
    valid_until: int


def _note_leaving(
    run: Callable[..., Any], outcome: ImportOutcome, column: str, source: str, *values: int
) -> None:
    outcome.leaving += run(f"SELECT COUNT(*) FROM {source}", values).scalar_one()  # noqa: S608
    if len(outcome.leaving_refs) < limits.ACTION_SHOWN:
        shown = f"SELECT {column} FROM {source} LIMIT {limits.ACTION_SHOWN}"  # noqa: S608
        outcome.leaving_refs.extend(run(shown, values).scalars())


def _normalised_again(canonical: bytes, directory: Directory | None) -> bytes | None:
    """An identifier in the normal form of now, from that of before; `None` where it has none.

    An account whose institution the directory lacks stays as it is: nobody can ask for it until the directory has it.
    """
    identifier = Identifier.from_canonical(canonical)
    value, country, institution = identifier.value, "", ""
    if identifier.kind in WITH_COUNTRY:
        country, _, value = value.partition("/")
    elif identifier.kind is Kind.ACCOUNT:
        institution, _, value = value.partition("/")
    elif identifier.kind is Kind.NAME_BIRTH:
        name, _, birth = value.rpartition("/")
        value = f"{name} {birth}"
    try:
        return normalise(identifier.kind, value, country, institution, "", directory).canonical
    except IdentifierError as error:
        return canonical if error.code == "institution" else None


class ListStore:
    """`lists.db`. Imports into one list take turns; readers never wait."""

    def __init__(
        self,
        database: sa.Engine,
        vault: Vault,
        before: Vault | None = None,
        directory: Callable[[], DirectoryFile] = lambda: NONE,
    ) -> None:
        """`before` is the vault under which earlier versions kept entries: what is still under it is moved to `vault`.

        By steps, each of which lasts. `directory` gives the directory of institutions that is in force. Raises
        `StorageError` where an entry does not open.
        """
        self._database, self._vault, self._directory = database, vault, directory
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()
        self._move_from(before)

    def _move_from(self, before: Vault | None) -> None:
        done = moved = 0
        while not done:
            with db.writing(self._database) as connection:
                last, done = connection.execute(sa.select(_KEY.c.moved_to, _KEY.c.done)).first() or (0, 0)
                if done:
                    return
                table = schema.entry
                query = sa.select(table.c.id, table.c.secret, table.c.own_reference)
                rows = connection.execute(
                    query.where(table.c.id > last).order_by(table.c.id).limit(_MOVED)
                ).all()
                if rows:
                    if before is None:
                        raise StorageError(f"{self._database.url.database}: entries of an earlier version")
                    connection.execute(_MOVE, [self._moved(before, *row) for row in rows])
                    last, moved = rows[-1].id, moved + len(rows)
                    _log.info("%d entries moved under the key of lists alone", moved)
                done = int(len(rows) < _MOVED)
                state = {"moved_to": last, "done": done}
                upsert = insert(_KEY).values(id=1, **state)
                connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=state))

    def _moved(
        self, before: Vault, row_id: int, secret: bytes, own_reference: bytes | None
    ) -> dict[str, object]:
        vault, canonical = self._vault, before.decrypt(secret, b"entry")
        reference = before.decrypt(own_reference, b"reference") if own_reference else None
        return {
            "in_id": row_id,
            "identifier": vault.index(canonical),
            "secret": vault.encrypt(canonical, b"entry"),
            "own_reference": reference and vault.encrypt(reference, b"reference"),
            "own_mark": reference and vault.index(MARK + reference),
        }

    @property
    def database(self) -> sa.Engine:
        """`lists.db`."""
        return self._database

    def lock(self, name: str) -> threading.RLock:
        """Held while a list is imported into, sealed, withdrawn from or rotated."""
        with self._guard:
            return self._locks.setdefault(name, threading.RLock())

    def names(self) -> list[str]:
        """All lists, by name."""
        with db.reading(self._database) as connection:
            table = schema.named_list
            return list(connection.execute(sa.select(table.c.name).order_by(table.c.name)).scalars())

    def create(self, name: str) -> None:
        """Make a list unless it exists; raises `Refused` for a name that is none."""
        if not statement.LIST_NAME.fullmatch(name):
            raise invalid(f"list name {name!r}: lower-case letters, digits and hyphens, at most 40")
        with db.writing(self._database) as connection:
            connection.exec_driver_sql(
                "INSERT INTO named_list (name, created_at, seq, form) VALUES (?, ?, 0, ?) ON CONFLICT DO NOTHING",
                (name, time.time(), self._directory().form),
            )

    def forget_empty(self, name: str) -> None:
        """Remove a list that nothing was ever imported into: an import that failed leaves none behind."""
        table, entry = schema.named_list, schema.entry
        with db.writing(self._database) as connection:
            connection.execute(
                table.delete().where(
                    table.c.name == name,
                    table.c.seq == 0,
                    table.c.activated_at.is_(None),
                    ~sa.exists().where(entry.c.list_id == table.c.id),
                )
            )

    def described(self, name: str, refs: Sequence[bytes]) -> list[str]:
        """Entries by reference, for the node's own people: kind and value, or the reference of one that is not stored yet."""
        table = schema.entry
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            query = sa.select(table.c.ref, table.c.secret).where(
                table.c.list_id == list_id, table.c.ref.in_(refs)
            )
            found = {row.ref: row.secret for row in connection.execute(query)}
        known = {
            ref: self._vault.decrypt(secret, b"entry").decode().replace("\x1f", " ")
            for ref, secret in found.items()
        }
        return [known.get(ref, ref.hex()) for ref in refs]

    def renormalise(self, name: str) -> tuple[int, int]:
        """Bring a list's entries to the normal form of now, if they are in another: (changed, withdrawn).

        An entry that cannot be normalised any more, or becomes one that is listed already, is withdrawn.
        """
        file = self._directory()
        if self.form(name) == file.form:
            return 0, 0
        directory = file.load()
        table = schema.named_list
        with db.writing(self._database) as connection:
            list_id, seq = self._id(connection, name)
            of_list = table.c.id == list_id
            changed = gone = last = 0
            entry = schema.entry
            while rows := connection.execute(
                sa.select(entry.c.id, entry.c.secret)
                .where(entry.c.list_id == list_id, entry.c.id > last, entry.c.status.in_(_LIVE))
                .order_by(entry.c.id)
                .limit(_MOVED)
            ).all():
                for row in rows:
                    old = self._vault.decrypt(row.secret, b"entry")
                    new = _normalised_again(old, directory)
                    if new == old:
                        continue
                    values: dict[str, object] = {"seq": seq + 1}
                    index = self._vault.index(new) if new else b""
                    taken = (
                        new
                        and connection.execute(
                            sa.select(entry.c.id).where(
                                entry.c.list_id == list_id, entry.c.identifier == index
                            )
                        ).first()
                    )
                    if new and not taken:
                        values |= {"identifier": index, "secret": self._vault.encrypt(new, b"entry")}
                        changed += 1
                    else:
                        values |= {"status": int(Status.WITHDRAWN), "reason": int(Reason.OTHER)}
                        gone += 1
                    connection.execute(entry.update().where(entry.c.id == row.id).values(values))
                last = rows[-1].id
            newest = seq + 1 if changed or gone else seq
            connection.execute(table.update().where(of_list).values(form=file.form, seq=newest))
        if changed or gone:
            _log.warning(
                "%s: %d entries have another normal form now, %d have none any more and were withdrawn",
                name,
                changed,
                gone,
            )
        return changed, gone

    def form(self, name: str) -> bytes:
        """The form that a list's entries are in; raises `NotFound`."""
        table = schema.named_list
        with db.reading(self._database) as connection:
            self._id(connection, name)
            return connection.execute(sa.select(table.c.form).where(table.c.name == name)).scalar() or b""

    def is_active(self, name: str) -> bool:
        """Whether the list is offered to others; raises `NotFound`."""
        table = schema.named_list
        with db.reading(self._database) as connection:
            self._id(connection, name)
            query = sa.select(table.c.activated_at).where(table.c.name == name)
            return connection.execute(query).scalar() is not None

    def activate(self, name: str) -> None:
        """Offer it to others from now on; raises `NotFound`."""
        table = schema.named_list
        with db.writing(self._database) as connection:
            self._id(connection, name)
            connection.execute(
                table.update()
                .where(table.c.name == name, table.c.activated_at.is_(None))
                .values(activated_at=time.time())
            )

    def _id(self, connection: sa.Connection, name: str) -> tuple[int, int]:
        table = schema.named_list
        row = connection.execute(sa.select(table.c.id, table.c.seq).where(table.c.name == name)).first()
        if row is None:
            raise NotFound(f"there is no list {name!r} here")
        return row.id, row.seq

    def seq(self, name: str) -> int:
        """Number of the newest change; raises `NotFound`."""
        with db.reading(self._database) as connection:
            return self._id(connection, name)[1]

    # -- import ----------------------------------------------------------------------------------------------

    def import_rows(
        self,
        name: str,
        prepared: Iterable[Prepared],
        replace: bool,
        skip_bad: bool,
        refused_before: Callable[[], int] = lambda: 0,
        on_store: Callable[[], None] = lambda: None,
        check: Callable[[ImportOutcome], None] = lambda _outcome: None,
    ) -> ImportOutcome:
        """Take a whole file in one transaction, or (with bad rows and no `skip_bad`) nothing of it.

        Equal rows change nothing. `replace` withdraws what the file lacks; it is refused for a file without one
        good row. `refused_before` counts rows that the reader refused, once all have been read. `check` sees what would
        become of it before it is committed, and may raise.
        Raises `StorageError` where the disk is full, and then nothing has changed.
        """
        outcome = ImportOutcome()
        with db.translated("lists.db"), self._database.connect() as connection:
            try:
                connection.execution_options(read=True)
                with connection.begin():
                    self._stage(connection, prepared, outcome)
                if (outcome.bad or refused_before()) and not skip_bad:
                    outcome.refused = True
                    return outcome
                if replace and not outcome.rows - len(outcome.bad):
                    raise invalid(
                        "the file has no good row: replacing the list by it would withdraw everything"
                    )
                on_store()
                connection.execution_options(read=False)
                with db.turn(self._database), connection.begin():
                    self._apply(connection, name, replace, outcome)
                    check(outcome)
            finally:
                connection.execution_options(read=True)
                with connection.begin():
                    connection.exec_driver_sql("DROP TABLE IF EXISTS temp.incoming")
                connection.execution_options(read=False)
        return outcome

    def _stage(self, connection: sa.Connection, prepared: Iterable[Prepared], outcome: ImportOutcome) -> None:
        connection.exec_driver_sql("DROP TABLE IF EXISTS temp.incoming")
        connection.exec_driver_sql(f"CREATE TEMP TABLE incoming ({', '.join(_COLUMNS)})")
        marks = ", ".join("?" * len(_COLUMNS))
        insert = f"INSERT INTO temp.incoming VALUES ({marks})"  # noqa: S608
        driver = connection.connection.driver_connection
        assert driver is not None
        for good, bad in prepared:
            outcome.rows += len(good) + len(bad)
            outcome.bad.extend(bad)
            driver.cursor().executemany(insert, good)
        connection.exec_driver_sql("CREATE INDEX temp.incoming_identifier ON incoming (identifier, number)")
        # Of equal rows the first stands; other cases add their references to it; rows that contradict it are bad.
        same = " AND ".join(f"d.{c} IS f.{c}" for c in (*_SAME, "status"))
        repeated = connection.exec_driver_sql(
            f"""SELECT d.number, f.number, {same}, d.own_mark IS f.own_mark,
              d.observed_on IS f.observed_on AND d.valid_until IS f.valid_until FROM temp.incoming d
            JOIN (SELECT identifier, MIN(number) AS number FROM temp.incoming
                  GROUP BY identifier HAVING COUNT(*) > 1) g ON g.identifier = d.identifier
            JOIN temp.incoming f ON f.identifier = g.identifier AND f.number = g.number
            WHERE d.number > f.number ORDER BY d.number"""  # noqa: S608
        ).all()
        cases: dict[int, list[int]] = {}
        for number, first, same_details, same_reference, same_dates in repeated:
            if same_details and same_reference and same_dates:
                outcome.duplicates += 1
            elif same_details and not same_reference:
                cases.setdefault(first, []).append(number)
                outcome.merged += 1
            else:
                outcome.bad.append(Bad(number, "value", f"same identifier as row {first}, other details"))
        for first, numbers in cases.items():
            self._merge_cases(connection, first, numbers)
        if repeated:
            connection.exec_driver_sql(
                """DELETE FROM temp.incoming WHERE EXISTS (SELECT 1 FROM temp.incoming f
                WHERE f.identifier = incoming.identifier AND f.number < incoming.number)"""
            )
        outcome.bad.sort(key=lambda bad: bad.number)

    def _merge_cases(self, connection: sa.Connection, first: int, others: Sequence[int]) -> None:
        """Rows of several cases about one identifier, in the file that is being taken, become the first one's.

        It keeps all references, the latest observation and the longest validity.
        """
        identifier = connection.exec_driver_sql(
            "SELECT identifier FROM temp.incoming WHERE number = ?", (first,)
        ).scalar_one()
        found = connection.exec_driver_sql(
            "SELECT number, own_reference, observed_on, valid_until, dated FROM temp.incoming WHERE identifier = ?",
            (identifier,),
        ).all()
        rows = [row for row in found if row.number in (first, *others)]
        until = 0 if any(not row.valid_until for row in rows) else max(row.valid_until for row in rows)
        secret, mark = self._references(row.own_reference for row in rows)
        connection.exec_driver_sql(
            """UPDATE temp.incoming SET own_reference = ?, own_mark = ?, observed_on = ?, valid_until = ?, dated = ?
            WHERE identifier = ? AND number = ?""",
            (
                secret,
                mark,
                max(row.observed_on for row in rows),
                until,
                max(row.dated for row in rows),
                identifier,
                first,
            ),
        )

    def _references(self, secrets: Iterable[bytes | None]) -> tuple[bytes | None, bytes | None]:
        """Stored references put together: (encrypted, keyed index)."""
        texts = [self._vault.decrypt(secret, b"reference").decode() for secret in secrets if secret]
        joined = references(*texts)
        if not joined:
            return None, None
        return self._vault.encrypt(joined, b"reference"), self._vault.index(MARK + joined)

    def _keep_references(self, connection: sa.Connection, list_id: int) -> None:
        """A file that does not replace the list adds its references to those that an entry has."""
        differing = connection.exec_driver_sql(
            """SELECT i.number, i.identifier, e.own_reference AS before, i.own_reference AS now
            FROM temp.incoming i CROSS JOIN entry e ON e.list_id = ? AND e.identifier = i.identifier
            WHERE e.own_mark IS NOT NULL AND e.own_mark IS NOT i.own_mark""",
            (list_id,),
        ).all()
        for row in differing:
            secret, mark = self._references((row.before, row.now))
            connection.exec_driver_sql(
                "UPDATE temp.incoming SET own_reference = ?, own_mark = ? WHERE identifier = ? AND number = ?",
                (secret, mark, row.identifier, row.number),
            )

    def _apply(self, connection: sa.Connection, name: str, replace: bool, outcome: ImportOutcome) -> None:
        list_id, last = self._id(connection, name)
        seq = last + 1
        live = f"({', '.join(map(str, _LIVE))})"
        run = connection.exec_driver_sql
        good = run("SELECT COUNT(*) FROM temp.incoming").scalar_one()
        if not replace:
            self._keep_references(connection, list_id)
        outcome.held = run(
            f"""SELECT COUNT(*) FROM temp.incoming i CROSS JOIN entry e
            ON e.list_id = ? AND e.identifier = i.identifier WHERE {_HELD}""",  # noqa: S608
            (list_id,),
        ).scalar_one()
        differs = " OR ".join(f"e.{c} IS NOT i.{c}" for c in _DETAILS)
        # A contested entry stays contested although the file says active; one whose time has passed stays
        # expired while the file gives no new date.
        status = f"""CASE WHEN e.status = {Status.CONTESTED:d} AND i.status = {Status.ACTIVE:d} THEN e.status
            WHEN NOT i.dated AND i.status IN {live} AND e.valid_until BETWEEN 1 AND {today() - 1} THEN {Status.EXPIRED:d}
            ELSE i.status END"""
        # A row that is bad in another column is no reason to withdraw its entry.
        run("CREATE TEMP TABLE IF NOT EXISTS unread (identifier)")
        run("DELETE FROM temp.unread")
        unread = [(bad.identifier,) for bad in outcome.bad if bad.identifier]
        if unread:
            run("INSERT INTO temp.unread VALUES (?)", unread)
        run("CREATE TEMP TABLE IF NOT EXISTS changing (id INTEGER PRIMARY KEY, number INTEGER)")
        run("DELETE FROM temp.changing")
        run(
            f"""INSERT INTO temp.changing SELECT e.id, i.number FROM temp.incoming i CROSS JOIN entry e
            ON e.list_id = ? AND e.identifier = i.identifier
            WHERE NOT {_HELD} AND ({differs} OR e.status IS NOT ({status})
              OR (i.dated AND (e.observed_on IS NOT i.observed_on OR e.valid_until IS NOT i.valid_until)))""",  # noqa: S608
            (list_id,),
        )
        outcome.changed = run("SELECT COUNT(*) FROM temp.changing").scalar_one()
        stays_out = f"(i.status IN ({Status.WITHDRAWN:d}, {Status.SUSPENDED:d}) AND i.reason <> {Reason.REMOVED_BY_SOURCE:d})"
        _note_leaving(
            run,
            outcome,
            "e.ref",
            f"""temp.changing c JOIN entry e ON e.id = c.id
            JOIN temp.incoming i ON i.number = c.number AND i.identifier = e.identifier
            WHERE {stays_out} OR (e.status IN {live} AND (({status}) NOT IN {live}
              OR (e.status <> {Status.CONTESTED:d} AND ({status}) = {Status.CONTESTED:d})
              OR (i.dated AND i.valid_until > 0 AND i.valid_until < {today() + _SOON}
                AND (e.valid_until = 0 OR i.valid_until < e.valid_until))))""",
        )
        _note_leaving(  # a later file would not list these again
            run,
            outcome,
            "i.ref",
            f"""temp.incoming i WHERE {stays_out}
            AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.list_id = ? AND e.identifier = i.identifier)""",  # noqa: S608
            list_id,
        )
        sets = ", ".join(f"{c} = i.{c}" for c in (*_DETAILS, "own_reference"))
        run(
            f"""UPDATE entry AS e SET {sets}, status = {status}, seq = ?,
              observed_on = CASE WHEN i.dated THEN i.observed_on ELSE e.observed_on END,
              valid_until = CASE WHEN i.dated THEN i.valid_until ELSE e.valid_until END,
              listed = CASE WHEN e.listed = 0 AND i.status IN {live} THEN ? ELSE e.listed END
            FROM temp.changing c, temp.incoming i
            WHERE e.id IN (SELECT id FROM temp.changing) AND c.id = e.id
              AND i.number = c.number AND i.identifier = e.identifier""",  # noqa: S608
            (seq, seq),
        )
        columns = [*_DETAILS, "identifier", "secret", "kind", "own_reference", "ref", "status"]
        columns += ["observed_on", "valid_until"]
        outcome.added = run(
            f"""INSERT INTO entry (list_id, seq, listed, {", ".join(columns)})
            SELECT ?, ?, CASE WHEN i.status IN {live} THEN ? ELSE 0 END, {", ".join("i." + c for c in columns)}
            FROM temp.incoming i
            WHERE NOT EXISTS (SELECT 1 FROM entry e WHERE e.list_id = ? AND e.identifier = i.identifier)
            ORDER BY i.identifier""",  # noqa: S608
            (list_id, seq, seq, list_id),
        ).rowcount
        if replace:
            lacking = f"""list_id = ? AND status IN {live} AND identifier NOT IN (SELECT identifier FROM temp.incoming)
                AND identifier NOT IN (SELECT identifier FROM temp.unread)"""  # noqa: S608
            _note_leaving(run, outcome, "ref", f"entry WHERE {lacking}", list_id)
            outcome.withdrawn = run(
                f"UPDATE entry SET status = ?, reason = ?, seq = ? WHERE {lacking}",  # noqa: S608
                (int(Status.WITHDRAWN), int(Reason.REMOVED_BY_SOURCE), seq, list_id),
            ).rowcount
        run("DROP TABLE temp.changing")
        run("DROP TABLE temp.unread")
        outcome.unchanged = good - outcome.added - outcome.changed - outcome.held
        if outcome.added or outcome.changed or outcome.withdrawn:
            run("UPDATE named_list SET seq = ? WHERE id = ?", (seq, list_id))

    # -- single entries --------------------------------------------------------------------------------------

    def set_status(
        self, name: str, identifiers: Sequence[bytes], refs: Sequence[bytes], status: Status, reason: Reason
    ) -> int:
        """Withdraw, suspend, contest or re-activate entries given by canonical bytes or reference.

        All or nothing: raises `NotFound` where one is not on the list. Returns how many changed.
        """
        if status is Status.EXPIRED:
            raise invalid("entries expire by their date")
        table = schema.entry
        with db.writing(self._database) as connection:
            list_id, last = self._id(connection, name)
            seq, changed = last + 1, 0
            wanted = [("identifier", self._vault.index(each)) for each in identifiers]
            wanted += [("ref", each) for each in refs]
            for position, (column, value) in enumerate(wanted, 1):
                where = (table.c.list_id == list_id) & (table.c[column] == value)
                row = connection.execute(sa.select(table.c.id, table.c.status).where(where)).first()
                if row is None:
                    raise NotFound(f"entry {position} of {len(wanted)} is not on the list {name}")
                if row.status == status:
                    continue
                values: dict[str, object] = {"status": int(status), "reason": int(reason), "seq": seq}
                if status in labels.LIVE:
                    values["listed"] = sa.case((table.c.listed == 0, seq), else_=table.c.listed)
                connection.execute(table.update().where(table.c.id == row.id).values(values))
                changed += 1
            if changed:
                connection.execute(
                    schema.named_list.update().where(schema.named_list.c.id == list_id).values(seq=seq)
                )
        return changed

    def expire(self, name: str, day: int | None = None) -> int:
        """Entries whose last valid day has passed leave with the next batch; returns how many."""
        marks = ", ".join(map(str, _LIVE))
        before = today() if day is None else day
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            due = connection.exec_driver_sql(
                f"""SELECT 1 FROM entry WHERE list_id = ? AND valid_until > 0 AND valid_until < ?
                AND status IN ({marks}) LIMIT 1""",  # noqa: S608
                (list_id, before),
            ).first()
        if due is None:
            return 0
        with db.writing(self._database) as connection:
            list_id, last = self._id(connection, name)
            count = connection.exec_driver_sql(
                f"""UPDATE entry SET status = ?, seq = ? WHERE list_id = ? AND status IN ({marks})
                AND valid_until > 0 AND valid_until < ?""",  # noqa: S608
                (int(Status.EXPIRED), last + 1, list_id, before),
            ).rowcount
            if count:
                connection.exec_driver_sql("UPDATE named_list SET seq = ? WHERE id = ?", (last + 1, list_id))
        return int(count)

    def entries(self, name: str, only: Sequence[bytes] = (), limit: int = 0) -> Iterator[StoredEntry]:
        """Entries with their identifiers in clear, page by page; raises `NotFound` for an unknown list."""
        table = schema.entry
        last, given = 0, 0
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
        while True:
            query = sa.select(table).where(table.c.list_id == list_id, table.c.id > last)
            if only:
                query = query.where(table.c.identifier.in_([self._vault.index(each) for each in only]))
            with db.reading(self._database) as connection:
                rows = connection.execute(query.order_by(table.c.id).limit(2_000)).all()
            if not rows:
                return
            for row in rows:
                if limit and given >= limit:
                    return
                given += 1
                reference = self._vault.decrypt(row.own_reference, b"reference") if row.own_reference else b""
                yield StoredEntry(
                    Identifier.from_canonical(self._vault.decrypt(row.secret, b"entry")),
                    reference.decode().replace("\n", "; "),
                    *(getattr(row, c) for c in ("ref", "category", "severity", "confidence", "basis")),
                    *(getattr(row, c) for c in ("status", "reason", "observed_on", "valid_until")),
                )
            last = rows[-1].id

    def institutions(self, name: str) -> dict[str, int]:
        """Live accounts by their institution's code, in clear; IBANs name none."""
        table, found, last = schema.entry, Counter[str](), 0
        while True:
            with db.reading(self._database) as connection:
                list_id = self._id(connection, name)[0]
                rows = connection.execute(
                    sa.select(table.c.id, table.c.secret)
                    .where(
                        table.c.list_id == list_id,
                        table.c.id > last,
                        table.c.kind == Kind.ACCOUNT.value,
                        table.c.status.in_(_LIVE),
                    )
                    .order_by(table.c.id)
                    .limit(_MOVED)
                ).all()
            if not rows:
                del found["IBAN"]
                return dict(found)
            values = self._vault.decrypt_each([row.secret for row in rows], b"entry")
            found.update(Identifier.from_canonical(each).value.partition("/")[0] for each in values)
            last = rows[-1].id

    def statistics(self, name: str) -> dict[str, dict[str, int]]:
        """Counts by status, kind, category and basis (the last three of live entries)."""
        table = schema.entry
        out: dict[str, dict[str, int]] = {}
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            for column in ("status", "kind", "category", "basis"):
                query = sa.select(table.c[column], sa.func.count()).where(table.c.list_id == list_id)
                if column != "status":
                    query = query.where(table.c.status.in_(_LIVE))
                rows = connection.execute(query.group_by(table.c[column]))
                out[column] = {str(value): int(count) for value, count in rows}
        return out

    # -- for sealing -----------------------------------------------------------------------------------------

    def count_by_category(self, since: int | None = None, until: int | None = None) -> dict[str, int]:
        """Live entries of all lists by category, observed from `since` to `until` (days since 1970, inclusive)."""
        table = schema.entry
        query = sa.select(table.c.category, sa.func.count()).where(table.c.status.in_(_LIVE))
        if since is not None:
            query = query.where(table.c.observed_on >= since)
        if until is not None:
            query = query.where(table.c.observed_on <= until)
        with db.reading(self._database) as connection:
            rows = connection.execute(query.group_by(table.c.category)).all()
        return {labels.slug(labels.Category(row[0])): row[1] for row in rows}

    def count_live(self, name: str) -> int:
        """Entries that are sealed once everything is."""
        table = schema.entry
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            # Written out, as in the index: with parameters SQLite could not tell that it serves.
            live = sa.text(f"status IN ({', '.join(map(str, _LIVE))})")
            query = sa.select(sa.func.count()).where(table.c.list_id == list_id, live)
            return int(connection.execute(query).scalar_one())

    def count_changes(self, name: str, after: int, until: int) -> int:
        """Entries whose newest change lies in (after, until]."""
        table = schema.entry
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            query = sa.select(sa.func.count()).where(
                table.c.list_id == list_id, table.c.seq > after, table.c.seq <= until
            )
            return int(connection.execute(query).scalar_one())

    def changes(
        self, name: str, after: int, until: int, last: tuple[int, int], limit: int
    ) -> tuple[list[SealRow], list[bytes], tuple[int, int] | None]:
        """The next page of changes in (after, until], ordered by (seq, id), behind `last`.

        Returns live rows, secrets of those that leave a table sealed up to `after`, and the new `last`.
        """
        query = """SELECT secret, category, severity, confidence, basis, status, reason, observed_on, valid_until, ref,
              listed, seq, id FROM entry WHERE list_id = ? AND """
        # Two seeks in the index instead of one condition on both columns, which scans all pages before this one.
        rest_of_import = query + "seq = ? AND id > ? ORDER BY id LIMIT ?"
        later_imports = query + "seq > ? AND seq <= ? ORDER BY seq, id LIMIT ?"
        seq, row_id = max(last, (after, 0))
        with db.reading(self._database) as connection:
            list_id = self._id(connection, name)[0]
            driver = connection.connection.driver_connection
            assert driver is not None
            # The driver's own tuples: rows of SQLAlchemy cost more than everything else that is done here.
            rows = []
            if after < seq <= until:
                rows = driver.execute(rest_of_import, (list_id, seq, row_id, limit)).fetchall()
            if len(rows) < limit:
                behind = (list_id, seq, until, limit - len(rows))
                rows += driver.execute(later_imports, behind).fetchall()
        live: list[SealRow] = [row[:10] for row in rows if row[5] in _LIVE]
        gone = [row[0] for row in rows if row[5] not in _LIVE and 0 < row[10] <= after]
        return live, gone, (rows[-1][11:] if rows else None)
