"""Own lists: what an import takes, changes, keeps and refuses."""

import datetime as dt
import re
import shutil

import pytest
import sqlalchemy as sa
from alembic.util import CommandError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.errors import NotFound, Refused, StorageError
from nodes.holder import lists
from nodes.holder.lists import ListStore, today
from nodes.holder.rows import RowOptions, prepare_chunk
from nodes.identity.keys import Vault
from nodes.store import engine as db
from nodes.store import schema
from protocols.identifiers import normalise
from protocols.label import Reason, Status, date_of

PHONE = {"kind": "phone", "value": "13800138000", "category": "mule-account"}
CARD = {"kind": "card", "value": "6222021234567890128", "severity": "5"}
MAIL = {"kind": "email", "value": "someone@qq.com"}


def canonical(row):
    return normalise(row["kind"], row["value"]).canonical


def entries(holder, name="fraud"):
    return {entry.identifier.value: entry for entry in holder.store.entries(name)}


def test_repeating_an_import_changes_nothing(holder):
    first = holder.load(PHONE, CARD, MAIL)
    assert (first.rows, first.added, first.unchanged) == (3, 3, 0)
    seq = holder.store.seq("fraud")
    again = holder.load(MAIL, CARD, PHONE)
    assert (again.added, again.changed, again.unchanged) == (0, 0, 3)
    assert holder.store.seq("fraud") == seq


def test_details_that_differ_change_the_entry_and_keep_its_reference(holder):
    holder.load(PHONE, CARD)
    before = entries(holder)
    outcome = holder.load(PHONE, {**CARD, "severity": "2"})
    assert (outcome.changed, outcome.unchanged) == (1, 1)
    after = entries(holder)
    assert after[CARD["value"]].severity == 2
    assert after[CARD["value"]].ref == before[CARD["value"]].ref


def test_one_bad_row_refuses_the_whole_file(holder):
    outcome = holder.load(PHONE, {"kind": "card", "value": "12"}, MAIL)
    assert outcome.refused
    assert [(bad.number, bad.column) for bad in outcome.bad] == [(2, "value")]
    assert not entries(holder)


def test_skipping_bad_rows_takes_the_good_ones(holder):
    outcome = holder.load(PHONE, {"kind": "card", "value": "12"}, MAIL, skip_bad=True)
    assert (outcome.added, len(outcome.bad), outcome.refused) == (2, 1, False)


def test_equal_rows_count_once_and_contradicting_ones_are_bad(holder):
    outcome = holder.load(PHONE, PHONE, {**PHONE, "severity": "1"}, skip_bad=True)
    assert (outcome.added, outcome.duplicates) == (1, 1)
    assert [(bad.number, bad.reason) for bad in outcome.bad] == [
        (3, "same identifier as row 1, other details")
    ]


def test_replacing_withdraws_what_the_file_lacks_and_a_later_file_brings_it_back(holder):
    holder.load(PHONE, CARD, MAIL)
    outcome = holder.load(PHONE, replace=True)
    assert outcome.withdrawn == 2
    assert entries(holder)[CARD["value"]].status == Status.WITHDRAWN
    assert holder.load(PHONE, CARD, replace=True).changed == 1
    assert entries(holder)[CARD["value"]].status == Status.ACTIVE


def test_replacing_by_a_file_without_a_good_row_is_refused(holder):
    holder.load(PHONE)
    with pytest.raises(Refused, match="withdraw everything"):
        holder.load({"kind": "card", "value": "1"}, replace=True, skip_bad=True)
    assert entries(holder)[f"+86{PHONE['value']}"].status == Status.ACTIVE


def test_a_persons_decision_stands_against_the_file(holder):
    holder.load(PHONE, CARD, MAIL)
    holder.store.set_status("fraud", [canonical(PHONE)], [], Status.WITHDRAWN, Reason.APPEAL_UPHELD)
    holder.store.set_status("fraud", [canonical(CARD)], [], Status.CONTESTED, Reason.OTHER)
    outcome = holder.load(PHONE, {**CARD, "severity": "1"}, MAIL)
    assert (outcome.held, outcome.changed) == (1, 1)
    found = entries(holder)
    assert found["+8613800138000"].status == Status.WITHDRAWN
    assert found[CARD["value"]].status == Status.CONTESTED


def test_changing_entries_is_all_or_nothing(holder):
    holder.load(PHONE, CARD)
    with pytest.raises(NotFound, match="entry 2 of 2"):
        holder.store.set_status(
            "fraud", [canonical(PHONE), canonical(MAIL)], [], Status.SUSPENDED, Reason.OTHER
        )
    assert entries(holder)["+8613800138000"].status == Status.ACTIVE
    with pytest.raises(Refused):
        holder.store.set_status("fraud", [canonical(PHONE)], [], Status.EXPIRED, Reason.OTHER)


def test_phones_are_valid_180_days_and_official_ones_until_removed(holder):
    day = dt.date.today() - dt.timedelta(days=10)
    holder.load({**PHONE, "observed_on": day.isoformat()}, {"kind": "phone", "value": "13900139000"}, CARD)
    found = entries(holder)
    assert date_of(found["+8613800138000"].valid_until) == day + dt.timedelta(days=180)
    assert found["+8613900139000"].valid_until == today() + 180
    assert found[CARD["value"]].valid_until == 0
    holder.load(PHONE, name="official", official=True)
    assert entries(holder, "official")["+8613800138000"].valid_until == 0


def test_a_default_date_does_not_make_a_repeated_import_a_change(holder, workers):
    holder.load(PHONE)
    later = holder.load(PHONE, today=today() + 3)
    assert (later.changed, later.unchanged) == (0, 1)


def test_an_expired_phone_does_not_flip_with_each_undated_import(holder):
    holder.load(PHONE)
    holder.store.expire("fraud", today() + 181)
    outcome = holder.load(PHONE)
    assert outcome.changed == 1  # its date has not passed: it is listed again
    holder.load({**PHONE, "observed_on": "2020-01-01"})
    assert entries(holder)["+8613800138000"].status == Status.EXPIRED
    again = holder.load(PHONE)
    assert (again.changed, again.unchanged) == (0, 1)


def test_a_reference_that_changes_is_stored(holder):
    holder.load({**PHONE, "reference": "case 1"})
    assert holder.load({**PHONE, "reference": "case 2"}, replace=True).changed == 1
    assert entries(holder)["+8613800138000"].own_reference == "case 2"


def test_two_cases_about_one_identifier_are_one_entry_with_both(holder):
    first, second = {**CARD, "reference": "K-2", "observed_on": "2026-01-05"}, {**CARD, "reference": "K-1"}
    outcome = holder.load(
        first, {**second, "observed_on": "2026-02-01"}, MAIL, second | {"reference": "K-3; K-1"}
    )
    assert (outcome.rows, outcome.added, outcome.merged, outcome.bad) == (4, 2, 2, [])
    entry = entries(holder)[CARD["value"]]
    assert entry.own_reference == "K-1; K-2; K-3"
    assert str(date_of(entry.observed_on)) == "2026-02-01"
    # What an export writes comes back unchanged, and so does any of the rows alone.
    again = {**CARD, "reference": entry.own_reference, "observed_on": "2026-02-01"}
    assert holder.load(again, MAIL).unchanged == 2
    assert holder.load({**CARD, "reference": "K-2"}, CARD).unchanged == 1


def test_a_later_file_adds_its_case_and_a_replacement_has_the_last_word(holder):
    holder.load({**PHONE, "reference": "K-1"})
    assert holder.load({**PHONE, "reference": "K-0"}).changed == 1
    assert entries(holder)["+8613800138000"].own_reference == "K-0; K-1"
    assert holder.load(PHONE).unchanged == 1
    assert holder.load({**PHONE, "reference": "K-9"}, replace=True).changed == 1
    assert entries(holder)["+8613800138000"].own_reference == "K-9"


@pytest.mark.parametrize("other", [{"severity": "1"}, {"category": "gambling"}, {"status": "contested"}])
def test_two_cases_that_contradict_each_other_are_a_persons_to_decide(holder, other):
    outcome = holder.load({**PHONE, "reference": "K-1"}, {**PHONE, "reference": "K-2", **other})
    assert [bad.number for bad in outcome.bad] == [2]


ROW = st.builds(
    lambda row, reference, severity, status: {
        **row,
        "reference": reference,
        "severity": severity,
        "status": status,
    },
    st.sampled_from([PHONE, CARD, MAIL, {"kind": "card", "value": "12"}]),
    st.sampled_from(["", "K-1", "K-2"]),
    st.sampled_from(["", "2", "9"]),
    st.sampled_from(["", "withdrawn"]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(ROW, max_size=6), st.booleans())
def test_every_row_of_a_file_is_in_one_count(holder, rows, replace):
    try:
        outcome = holder.load(*rows, replace=replace, skip_bad=True)
    except Refused:
        return  # no good row to replace by
    counted = outcome.added + outcome.changed + outcome.unchanged + outcome.held + outcome.duplicates
    assert counted + outcome.merged + len(outcome.bad) == outcome.rows == len(rows)


def test_replacing_keeps_an_entry_whose_row_is_bad_in_another_column(holder):
    holder.load(PHONE, CARD, MAIL)
    outcome = holder.load(PHONE, {**CARD, "severity": "99"}, replace=True, skip_bad=True)
    assert outcome.withdrawn == 1
    assert entries(holder)[CARD["value"]].status == Status.ACTIVE


def test_entries_expire_after_their_last_day(holder):
    until = dt.date.today() + dt.timedelta(days=5)
    holder.load({**CARD, "valid_until": until.isoformat()}, MAIL)
    assert holder.store.expire("fraud", today() + 5) == 0
    assert holder.store.expire("fraud", today() + 6) == 1
    assert holder.store.expire("fraud", today() + 6) == 0
    past = {**MAIL, "value": "old@qq.com", "valid_until": "2020-01-01"}
    holder.load(past)
    assert entries(holder)["old@qq.com"].status == Status.EXPIRED


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"kind": "", "value": "x"}, "kind"),
        ({"kind": "fax", "value": "x"}, "kind"),
        ({**CARD, "severity": "9"}, "severity"),
        ({**CARD, "confidence": "-1"}, "confidence"),
        ({**CARD, "category": "nonsense"}, "category"),
        ({**CARD, "basis": "hearsay"}, "basis"),
        ({**CARD, "observed_on": "yesterday"}, "observed_on"),
        ({**CARD, "observed_on": "2999-01-01"}, "observed_on"),
        ({**CARD, "observed_on": "2026-02-30"}, "observed_on"),
        ({**CARD, "observed_on": "2026-02-20", "valid_until": "2026-02-19"}, "valid_until"),
        ({"kind": "passport", "value": "A1234567"}, "country"),
        ({"kind": "account", "value": "1234567"}, "institution"),
    ],
)
def test_bad_fields_are_named_and_never_repeated(holder, row, column):
    good, (bad,) = prepare_chunk(
        holder.keys.list_vault.root, holder.rows(row), RowOptions("CN", 180, False, today())
    )
    assert not good
    assert bad.column == column
    if len(row["value"]) > 3:
        assert row["value"] not in bad.reason


def test_chinese_words_and_dates(holder):
    outcome = holder.load(
        {
            "kind": "手机号",
            "value": "13800138000",
            "category": "涉案账户",
            "basis": "公安认定",
            "observed_on": "2026年1月2日",
        },
        {"kind": "身份证", "value": "11010519491231002X", "status": "有异议", "observed_on": "2026/01/02"},
    )
    assert outcome.added == 2
    assert entries(holder)["11010519491231002X"].status == Status.CONTESTED


def test_nothing_of_an_identifier_is_on_disk(holder):
    holder.load({**PHONE, "reference": "case-4711-secret"}, CARD, MAIL)
    data = b"".join(path.read_bytes() for path in holder.folder.rglob("*") if path.is_file())
    for needle in (b"13800138000", CARD["value"].encode(), b"someone", b"case-4711-secret"):
        assert needle not in data


def test_a_full_disk_during_import_changes_nothing(holder):
    holder.load(PHONE)
    database = holder.store._database
    with database.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.rollback()

    @sa.event.listens_for(database, "begin")
    def shrink(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")

    many = [{"kind": "email", "value": f"someone{i}@qq.com"} for i in range(3_000)]
    with pytest.raises(StorageError, match="full"):
        holder.load(*many)
    sa.event.remove(database, "begin", shrink)
    with database.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        connection.rollback()
    assert len(entries(holder)) == 1
    assert holder.load(*many).added == 3_000


def test_the_schema_is_what_the_migrations_make(holder):
    for metadata, engine in ((schema.lists, holder.store._database), (schema.node, holder.database)):
        inspector = sa.inspect(engine)
        for table in metadata.sorted_tables:
            made = {column["name"] for column in inspector.get_columns(table.name)}
            assert made == {column.name for column in table.columns}, table.name
            indexes = {index["name"] for index in inspector.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes


def test_entries_of_earlier_versions_move_under_the_key_of_lists(tmp_path, holder, make_holder, monkeypatch):
    monkeypatch.setattr(lists, "_MOVED", 2)  # several steps
    rows = [PHONE | {"reference": "case 7"}, CARD, MAIL | {"status": "withdrawn"}]
    database, keys = holder.store._database, holder.keys
    with monkeypatch.context() as earlier:
        earlier.setattr(type(keys), "list_vault", property(lambda keys: keys.vault))
        holder.store = ListStore(database, keys.vault)
        holder.load(*rows)
        before = list(holder.store.entries("fraud"))
    with db.writing(database) as connection:
        connection.execute(schema.entry_key.delete())

    def stored():
        with db.reading(database) as connection:
            return connection.execute(sa.select(schema.entry)).all()

    kept = stored()
    for wrong in (Vault(bytes(32)), None):
        with pytest.raises(StorageError):
            ListStore(database, keys.list_vault, before=wrong)
        assert stored() == kept
    second, steps = Vault.index, []

    def broken_off(vault, canonical):  # within the second step
        steps.append(canonical)
        if len(steps) > 3:
            raise KeyboardInterrupt
        return second(vault, canonical)

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(Vault, "index", broken_off)
        ListStore(database, keys.list_vault, before=keys.vault)
    holder.store = ListStore(database, keys.list_vault, before=keys.vault)
    assert list(holder.store.entries("fraud")) == before
    moved = stored()
    for old, new in zip(kept, moved, strict=True):
        assert not {old.identifier, old.secret, old.own_mark or b"-"} & set(new)
        with pytest.raises(StorageError):
            keys.vault.decrypt(new.secret, b"entry")
    again = holder.load(*rows)
    assert (again.added, again.changed, again.withdrawn) == (0, 0, 0)
    ListStore(database, keys.list_vault, before=keys.vault)  # nothing is left to move
    assert stored() == moved
    assert len(holder.epochs.seal_changes("fraud")) == 1


def test_a_database_of_a_later_version_is_not_opened(holder, tmp_path):
    """An earlier version would not find the entries under the key it knows, and import them a second time."""
    with db.writing(holder.store.database) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CommandError, match="9999"):
        db.connect(holder.folder / "lists.db", "lists")


def test_what_was_erased_is_in_neither_file_once_settled(holder):
    holder.load(PHONE, CARD)
    database = holder.store.database
    with db.reading(database) as connection:
        gone = connection.execute(sa.select(schema.entry.c.secret)).scalars().all()

    def found():
        files = [holder.folder / f"lists.db{suffix}" for suffix in ("", "-wal")]
        return [each in file.read_bytes() for each in gone for file in files if file.exists()]

    assert any(found())
    with db.writing(database) as connection:
        connection.execute(schema.entry.delete())
    with db.reading(database) as connection:
        connection.execute(sa.select(schema.entry)).all()
        db.settle(database)  # a reader is in the way: no error, and nothing is lost
    with db.writing(database):
        db.settle(database)  # nor does it wait for a long transaction
    db.settle(database)
    assert not any(found())
    assert (holder.folder / "lists.db-wal").stat().st_size == 0


def copied(database, folder):
    """Both files as a crash now would leave them."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{database.url.database}{suffix}", folder / f"lists.db{suffix}")
    return folder / "lists.db"


def rows(path):
    database = db.connect(path, "lists")
    with db.reading(database) as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        return connection.execute(sa.select(sa.func.count()).select_from(schema.entry)).scalar()


@pytest.fixture
def open_lists(holder):
    """Its database, which somebody has open: who closes it last empties its log."""
    held = holder.store.database.raw_connection()
    yield holder.store.database
    held.close()


def test_room_in_the_log_is_no_frame(holder, open_lists, tmp_path):
    """Zeros behind what is written, or where nothing is: a crash loses nothing and finds nothing else."""
    log = holder.folder / "lists.db-wal"
    holder.load(PHONE)
    room = 3 * 2**20 + 17
    assert 4_096 < db.settle(open_lists, room) < room
    assert log.read_bytes() == bytes(room)
    assert rows(copied(open_lists, tmp_path / "settled")) == 1
    holder.load(PHONE, CARD)
    assert log.stat().st_size == room
    assert rows(copied(open_lists, tmp_path / "written")) == 2
    with db.reading(open_lists) as connection:
        connection.execute(sa.select(schema.entry)).all()
        # A reader is in the way: only what is behind the log's end is written.
        db.settle(open_lists, 2 * room)
        assert rows(copied(open_lists, tmp_path / "longer")) == 2
    assert log.stat().st_size == 2 * room
    assert db.settle(open_lists, room) > 0
    assert log.read_bytes() == bytes(room)
    assert db.settle(open_lists, 0) == 0, "nothing has come since: nothing is written"
    assert log.stat().st_size == room


def test_what_a_crash_left_in_the_log_goes_though_it_is_no_frame(holder, open_lists, tmp_path):
    holder.load(PHONE)
    db.settle(open_lists)
    with open_lists.connect() as connection:
        connection.exec_driver_sql("PRAGMA cache_size=5")  # so that pages are written before the commit
        connection.execute(schema.entry.update().values(secret=b"LEFTOVER" * 40_000))
        torn = copied(open_lists, tmp_path / "torn")
        connection.rollback()
    left = torn.with_name("lists.db-wal")
    assert b"LEFTOVER" in left.read_bytes()
    again = db.connect(torn, "lists")
    held = again.raw_connection()
    assert db.settle(again, 10_000) == 0
    assert left.read_bytes() == bytes(10_000)
    held.close()
    assert rows(torn) == 1


def test_what_is_done_every_day_looks_at_the_whole_list_nowhere(holder):
    """A small import and the count of a batch go by indexes: of a long list both would take seconds else."""
    holder.load(*({"kind": "phone", "value": f"139{i:08d}"} for i in range(300)))
    database, seen = holder.store._database, []

    def plan(connection, cursor, statement, parameters, _context, _many):
        if statement.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            rows = cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            seen.extend(row[3] for row in rows)

    sa.event.listen(database, "before_cursor_execute", plan)
    holder.load(
        {"kind": "phone", "value": "13900000007", "severity": "5"}, {"kind": "phone", "value": "13912345678"}
    )
    assert holder.store.count_live("fraud") == 301
    sa.event.remove(database, "before_cursor_execute", plan)
    whole = [
        step
        for step in seen
        if re.match(r"(SCAN|SEARCH) (e|entry)\b", step)
        and not re.search(r"identifier=|rowid=|entry_live", step)
    ]
    assert len(seen) > 5
    assert whole == []


@pytest.mark.parametrize(
    ("changes", "leaving"),
    [
        ({"status": "contested"}, 4),
        ({"status": "contested", "severity": "1", "confidence": "0"}, 4),
        ({"status": "withdrawn", "reason": "operator-decision"}, 4),
        ({"status": "suspended"}, 4),
        ({"valid_until": date_of(today() + 3).isoformat()}, 4),
        ({"valid_until": date_of(today() - 3).isoformat()}, 4),
        ({"valid_until": date_of(today() + 300).isoformat()}, 0),
        ({"severity": "5"}, 0),
    ],
)
def test_what_an_import_takes_from_others_is_counted_before_it_happens(holder, changes, leaving):
    rows = [{"kind": "phone", "value": f"1390000000{i}", "category": "gambling"} for i in range(4)]
    holder.load(*rows)
    assert holder.load(*({**row, **changes} for row in rows)).leaving == leaving


def test_entries_withdrawn_before_they_are_listed_are_counted_too(holder):
    """A later file would not list them: a person's decision stands against it."""
    rows = [
        {"kind": "phone", "value": f"1390000000{i}", "status": "withdrawn", "reason": "operator-decision"}
        for i in range(3)
    ]
    outcome = holder.load(*rows)
    assert (outcome.leaving, len(outcome.leaving_refs)) == (3, 3)
    assert holder.load(*({**row, "status": "", "reason": ""} for row in rows)).held == 3


def test_a_replacement_counts_what_the_file_lacks(holder):
    rows = [{"kind": "phone", "value": f"1390000000{i}"} for i in range(5)]
    holder.load(*rows)
    outcome = holder.load(rows[0], replace=True)
    assert (outcome.leaving, outcome.withdrawn, len(outcome.leaving_refs)) == (4, 4, 4)
