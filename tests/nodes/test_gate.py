"""The gate: rules, budgets, idempotence, durability."""

import asyncio
import datetime as dt
import secrets
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from zoneinfo import ZoneInfo

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from lianfang.v1 import contract_pb2

from nodes import gate as gates
from nodes import limits
from nodes.errors import NodeError, Refused, StorageError
from nodes.gate import Ask
from nodes.pace import Pace
from nodes.store import schema
from tests.nodes.conftest import lookups

POLICY = """
[[allow]]
members = ["centre"]
purposes = ["payment", "case-investigation"]
bases = ["police-request"]
budget = { epoch = 100, day = 60, burst = 40, burst_seconds = 60 }

[[allow]]
members = ["role:bank"]
lists = ["fraud"]
purposes = ["payment"]
sync = false
budget = { epoch = 100, day = 100, burst = 100, burst_seconds = 60 }

[budgets."*"]
epoch = 150
day = 120
"""
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(make_gate, policy_file, clock, holder):
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    return make_gate(policy_file(POLICY), clock=clock)


def ask(member, count=10, query_id=None, **changes):
    values = {
        "action": gates.EVALUATE,
        "resource": "fraud",
        "epoch": 1,
        "query_id": query_id or secrets.token_bytes(16),
        "request_hash": b"h" * 32,
        "purpose": 2,
        "basis": 3,
    }
    return Ask(member, count=count, **values | changes)


def refused(gate, request) -> Refused:
    with pytest.raises(Refused) as caught:
        gate.admit(request)
    return caught.value


def test_a_grant_is_charged_and_told(gate, members):
    decision = gate.admit(ask(members["centre"]))
    assert not decision.repeated
    assert (decision.budget.epoch_left, decision.budget.day_left, decision.budget.burst_left) == (90, 50, 30)


@pytest.mark.parametrize(
    ("member", "changes", "reason"),
    [
        ("centre", {"purpose": 1}, "PURPOSE"),
        ("centre", {"purpose": 0}, "PURPOSE"),
        ("centre", {"basis": 1}, "BASIS"),
        ("bank-b", {"resource": "other"}, "POLICY"),
        ("bank-b", {"action": gates.SYNC}, "POLICY"),
        ("centre", {"asked_at": NOW - 301}, "CLOCK"),
        ("centre", {"asked_at": NOW + 301}, "CLOCK"),
        ("centre", {"asked_at": NOW, "recorded_at": NOW - 301}, "AGED"),
        ("centre", {"asked_at": NOW, "recorded_at": NOW - 7 * 86_400}, "AGED"),
        ("centre", {"asked_at": NOW, "recorded_at": NOW + 301}, "AGED"),
    ],
)
def test_what_no_rule_allows(gate, members, member, changes, reason):
    assert refused(gate, ask(members[member], **changes)).reason == reason


def test_clock_skew_of_five_minutes_is_tolerated(gate, members):
    for skew in (-300, 300):
        gate.admit(ask(members["centre"], count=1, asked_at=NOW + skew))


def test_what_is_on_record_here_is_answered_again_however_old_the_askers_record(gate, members, clock):
    first = ask(members["centre"], query_id=b"q" * 16, asked_at=NOW, recorded_at=NOW - 1)
    assert not gate.admit(first).repeated
    clock.now += 3 * 86_400
    again = replace(first, asked_at=clock.now)
    assert gate.admit(again).repeated


def test_burst_day_and_epoch_budgets(gate, members, clock):
    centre = members["centre"]
    gate.admit(ask(centre, 40))
    error = refused(gate, ask(centre, 1))
    assert (error.reason, error.status) == ("BUDGET", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "burst" in str(error)
    clock.now += 61
    gate.admit(ask(centre, 20))
    assert "day" in str(refused(gate, ask(centre, 1)))
    clock.now += 86_400
    gate.admit(ask(centre, 40))
    clock.now += 61
    assert "epoch" in str(refused(gate, ask(centre, 1)))


@pytest.mark.parametrize("into_the_second", [0.0, 0.25, 0.999])
def test_a_burst_is_counted_to_the_moment(gate, members, clock, into_the_second):
    """It is added up by the second, and the second in which its stretch begins by the decision."""
    centre, began = members["centre"], clock.now + into_the_second
    for after, count in ((0.0, 10), (0.5, 20), (1.0, 10)):
        clock.now = began + after
        gate.admit(ask(centre, count))
    for after, left in ((59.9, 0), (60.1, 10), (60.4, 10), (60.6, 30), (60.9, 30), (61.1, 40)):
        clock.now = began + after
        assert gate.budget(centre, "fraud").burst_left == left
        assert refused(gate, ask(centre, left + 1)).reason == "BUDGET"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 1.0, 7.25, 59.5, 600.0, 3_000.0, 4_000.0, -0.4, -65.0, -5_000.0]),
            st.integers(0, 9),
            st.sampled_from(["", "", "", "forget", "restart"]),
        ),
        max_size=25,
    )
)
def test_a_pace_is_what_the_decisions_add_up_to_whatever_the_clock_does(holder, steps):
    pace, now, resource = Pace(), NOW, secrets.token_hex(8)
    connection = holder.database.connect()
    for wait, count, event in steps:
        now += wait
        pace = Pace() if event == "restart" else pace
        if event == "forget":
            pace.forget()
        pace.load(connection, "a", resource, now)
        for span in (1, 60, 3_600):
            rows = connection.execute(
                sa.select(schema.decision.c.count).where(
                    schema.decision.c.resource == resource, schema.decision.c.at > now - span
                )
            ).scalars()
            assert pace.since(connection, "a", resource, now - span) == sum(rows)
        row = dict.fromkeys((c.name for c in schema.decision.columns if c.name != "id"), b"") | {
            "query_id": secrets.token_bytes(16), "peer": "a", "action": gates.EVALUATE, "resource": resource,
            "epoch": 1, "purpose": 1, "basis": 1, "count": count, "at": now, "repeats": 0,
        }  # fmt: skip
        connection.execute(schema.decision.insert().values(row))
        pace.add("a", resource, now, count)
    connection.rollback()
    connection.close()


def test_old_seconds_leave_the_memory_of_a_pace(holder):
    pace = Pace()
    with holder.database.connect() as connection:
        pace.load(connection, "a", "x", NOW)
        for i in range(10_000):
            pace.add("a", "x", NOW + i, 1)
        assert len(pace._known["a", "x"].seconds) <= limits.BURST_SECONDS + 700
        assert pace.since(connection, "a", "x", NOW + 9_999 - 3_599) == 3_599


def test_a_burst_is_known_after_a_restart_and_after_a_failed_commit(
    gate, make_gate, policy_file, members, clock
):
    centre = members["centre"]
    gate.admit(ask(centre, 10))
    again = make_gate(policy_file(POLICY), clock=clock)
    assert again.budget(centre, "fraud").burst_left == 30
    again.admit(ask(centre, 5))

    def fail(_connection):
        raise RuntimeError("a defect")

    async def together():
        """One transaction, which the second piece undoes."""
        begun, busy = threading.Event(), threading.Event()
        held = again._writer.write(lambda _connection: begun.set() or busy.wait(10))
        await asyncio.to_thread(begun.wait, 10)
        pieces = [again.decide(ask(centre, 25)), again._writer.write(fail)]
        busy.set()
        await held
        return await asyncio.gather(*pieces, return_exceptions=True)

    assert all(isinstance(each, NodeError) for each in asyncio.run(together()))
    assert again.budget(centre, "fraud").burst_left == 25
    assert again.admit(ask(centre, 25)).budget.burst_left == 0
    assert refused(again, ask(centre, 1)).reason == "BUDGET"


def test_a_refused_charge_costs_nothing(gate, members):
    refused(gate, ask(members["centre"], 41))
    assert gate.budget(members["centre"], "fraud").epoch_left == 100


def test_members_who_collude_share_the_lists_budget(gate, members):
    gate.admit(ask(members["bank-b"], 100))
    gate.admit(ask(members["bank-c"], 20))
    # bank-c has 80 of its own left, but the list's day has 120 for all together.
    assert gate.budget(members["bank-c"], "fraud").day_left == 0
    assert refused(gate, ask(members["bank-c"], 1)).reason == "BUDGET"
    assert refused(gate, ask(members["centre"], 1)).reason == "BUDGET"


def test_one_budget_spans_both_epochs_of_a_rotation(gate, members, holder, clock):
    gate.admit(ask(members["centre"], 40))
    holder.epochs.rotate("fraud", close_now=False)
    clock.now += 61
    gate.admit(ask(members["centre"], 20, epoch=2))
    assert gate.budget(members["centre"], "fraud").epoch_left == 40
    holder.epochs.close("fraud", 1)
    assert gate.budget(members["centre"], "fraud").epoch_left == 80


def test_renewal_credit_is_what_the_old_epoch_had_metered_and_for_the_new_one_only(
    make_gate, policy_file, members, holder, clock
):
    clock.now = time.time()
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    gate = make_gate(policy_file(POLICY + "renewal_credit = 15\n"), clock=clock)
    centre = members["centre"]
    gate.admit(ask(centre, 10))
    clock.now += 1.0
    time.sleep(1.1)  # an epoch's opening is told in seconds
    holder.epochs.rotate("fraud", close_now=False)
    clock.now = time.time() + 61
    assert gate.budget(centre, "fraud").epoch_limit == 110
    gate.admit(ask(centre, 40, epoch=1))
    assert gate.budget(centre, "fraud").epoch_limit == 110, "what is spent now earns no credit"
    clock.now += 86_400
    gate.admit(ask(centre, 40, epoch=2))
    clock.now += 86_400
    assert "10 evaluations left" in str(refused(gate, ask(centre, 11, epoch=1)))  # the plain limit
    gate.admit(ask(centre, 20, epoch=2))  # the credit too


def test_renewal_credit_counts_days_and_the_day_of_the_opening(
    make_gate, policy_file, members, holder, clock
):
    opening = time.time()
    rules = policy_file(
        POLICY.replace("epoch = 150\nday = 120", "epoch = 900\nday = 900\nrenewal_credit = 900")
    )
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    gate, centre = make_gate(rules, clock=clock), members["centre"]
    for days, count in ((3, 12), (2, 9), (1, 7)):
        clock.now = opening - days * 86_400
        gate.admit(ask(centre, count))
    clock.now = opening - 2
    gate.admit(ask(centre, 5))
    gate.admit(ask(members["bank-b"], 50))
    holder.epochs.rotate("fraud", close_now=False)
    clock.now = time.time() + 2
    gate.admit(ask(centre, 11, epoch=1))  # too late for a credit
    assert gate.budget(centre, "fraud").epoch_limit == 100 + 12 + 9 + 7 + 5
    assert make_gate(rules, clock=clock).budget(centre, "fraud").epoch_limit == 133


def test_an_idle_member_earns_no_credit(make_gate, policy_file, members, holder, clock):
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    holder.epochs.rotate("fraud", close_now=False)
    gate = make_gate(policy_file(POLICY + "renewal_credit = 15\n"), clock=clock)
    assert gate.budget(members["centre"], "fraud").epoch_limit == 100


def test_a_caller_that_goes_is_not_charged_and_stops_nothing(gate, members):
    begun, busy = threading.Event(), threading.Event()

    def hold(_connection):
        begun.set()
        busy.wait(10)

    async def come_and_go():
        held = gate._writer.write(hold)
        await asyncio.to_thread(begun.wait, 10)
        futures = [gate.decide(ask(members["centre"], 1)) for _ in range(50)]
        for future in futures[1:]:
            future.cancel()
        busy.set()
        await held
        return (await futures[0]).budget.epoch_left

    assert asyncio.run(come_and_go()) == 99
    assert gate.admit(ask(members["centre"], 0)).budget.epoch_left == 99

    async def leave():  # its loop ends before the decision
        busy.clear()
        gate._writer.write(hold)
        gate.decide(ask(members["centre"], 1))

    asyncio.run(leave())
    busy.set()
    gate.admit(ask(members["bank-b"], 1))


def test_an_epoch_that_is_not_open_yet_is_metered_too(gate, members, holder, clock):
    gate.admit(ask(members["centre"], 40))
    number = holder.epochs.open("fraud")
    with pytest.raises(Refused):
        holder.epochs.key("fraud", number)
    clock.now += 86_400
    gate.admit(ask(members["centre"], 40, epoch=number))
    assert gate.budget(members["centre"], "fraud").epoch_left == 20


def test_pulls_are_counted_in_one_row_and_bounded(gate, members, holder, monkeypatch):
    monkeypatch.setattr(limits, "PULLS_A_DAY", 5)
    for _ in range(6):
        gate.admit(ask(members["centre"], 0, action=gates.SYNC))
    assert refused(gate, ask(members["centre"], 0, action=gates.SYNC)).reason == "BUDGET"
    with holder.database.connect() as connection:
        assert len(connection.execute(sa.select(schema.decision)).all()) == 1


def test_what_is_refused_before_any_work_is_recorded_all_the_same(gate, members, holder):
    with pytest.raises(Refused):
        gate.precheck(ask(members["centre"], purpose=1))
    gate.admit(ask(members["centre"]))
    with holder.database.connect() as connection:
        assert connection.execute(sa.select(schema.refusal.c.reason)).scalars().all() == ["PURPOSE"]


def test_the_same_question_twice_is_charged_once(gate, members):
    request = ask(members["centre"])
    assert not gate.admit(request).repeated
    for _ in range(limits.RETRIES_ANSWERED):
        assert gate.admit(request).repeated
    assert gate.budget(members["centre"], "fraud").epoch_left == 90
    assert refused(gate, request).reason == "BUDGET"


def test_a_query_id_does_not_serve_another_request(gate, members):
    query_id = secrets.token_bytes(16)
    gate.admit(ask(members["centre"], query_id=query_id))
    assert (
        refused(gate, ask(members["centre"], query_id=query_id, request_hash=b"x" * 32)).reason
        == "QUERY_ID_REUSED"
    )
    gate.admit(ask(members["bank-b"], query_id=query_id))  # another member's id is its own


def test_the_same_question_at_once_is_charged_once(gate, members):
    request = ask(members["centre"])
    with ThreadPoolExecutor(6) as pool:
        decisions = list(pool.map(lambda _: gate.admit(request), range(6)))
    assert sum(not decision.repeated for decision in decisions) == 1
    assert gate.budget(members["centre"], "fraud").epoch_left == 90


def test_many_at_once_never_overdraw(gate, members):
    def one(_):
        try:
            gate.admit(ask(members["centre"], 3))
        except Refused:
            return 0
        return 3

    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(one, range(60)))
    assert granted == 39  # 13 × 3 of 40


def test_a_check_of_the_resource_comes_after_the_rules_and_before_the_charge(gate, members):
    def fail():
        raise Refused("behind", "BEHIND")

    assert refused(gate, ask(members["centre"], check=fail)).reason == "BEHIND"
    assert refused(gate, ask(members["centre"], purpose=1, check=fail)).reason == "PURPOSE"
    assert gate.budget(members["centre"], "fraud").epoch_left == 100


def test_every_decision_is_recorded(gate, members, holder):
    gate.admit(ask(members["centre"], case_commitment=b"c" * 32, asker=b"a" * 16))
    for _ in range(3):
        refused(gate, ask(members["centre"], purpose=1))
    with holder.database.connect() as connection:
        decision = connection.execute(sa.select(schema.decision)).one()
        refusal = connection.execute(sa.select(schema.refusal)).one()
    assert (decision.peer, decision.count, decision.case_commitment) == (members["centre"].id, 10, b"c" * 32)
    assert (refusal.reason, refusal.times) == ("PURPOSE", 3)


def test_charges_survive_a_restart(gate, members, make_gate, policy_file, make_holder, clock):
    gate.admit(ask(members["centre"], 33))
    again = make_gate(policy_file(POLICY), clock=clock)
    assert again.budget(members["centre"], "fraud").epoch_left == 67


def test_a_full_disk_grants_nothing(gate, members, monkeypatch):
    real, full = gates._CHARGE.run, threading.Event()

    def run(connection, values):
        if full.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        return real(connection, values)

    monkeypatch.setattr(gates._CHARGE, "run", run)
    full.set()
    with pytest.raises(StorageError, match="full"):
        gate.admit(ask(members["centre"]))
    full.clear()
    assert gate.budget(members["centre"], "fraud").epoch_left == 100
    gate.admit(ask(members["centre"]))


def test_a_changed_policy_counts_at_once_and_a_broken_one_changes_nothing(
    make_gate, policy_file, members, tmp_path
):
    rules = policy_file(POLICY)
    gate = make_gate(rules)
    path = tmp_path / "policy.toml"
    path.write_text("[[allow]\nbroken")
    assert gate.purposes(members["centre"], "fraud")
    assert "policy.toml" in rules.trouble
    path.write_text('[[allow]]\nmembers = ["bank-b"]\npurposes = ["payment"]\n')
    assert not gate.purposes(members["centre"], "fraud")


def test_budgets_under_any_sequence(gate, members, clock, holder):
    """The gate against a model that adds up what was granted."""

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.granted: list[tuple[float, str, int]] = []
            clock.now += 10 * 86_400  # burst and day start afresh
            with holder.database.begin() as connection:
                connection.execute(schema.usage.delete())

        @rule(name=st.sampled_from(["centre", "bank-b", "bank-c"]), count=st.integers(1, 45))
        def ask(self, name, count):
            try:
                gate.admit(ask(members[name], count))
            except Refused as error:
                assert error.reason == "BUDGET"
            else:
                self.granted.append((clock.now, name, count))

        @rule(seconds=st.sampled_from([1, 61, 86_400]))
        def wait(self, seconds):
            clock.now += seconds

        @invariant()
        def never_overdrawn(self):
            today = [each for each in self.granted if each[0] // 86_400 == clock.now // 86_400]
            burst = [each for each in self.granted if each[0] > clock.now - 60]
            assert sum(count for _, _, count in self.granted) <= 150
            assert sum(count for _, _, count in today) <= 120
            mine = [count for _, name, count in self.granted if name == "centre"]
            assert sum(mine) <= 100
            assert sum(count for _, name, count in today if name == "centre") <= 60
            assert sum(count for _, name, count in burst if name == "centre") <= 40

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# -- reserves, purposes, days ------------------------------------------------------------------------------------------

PAYMENT, SCREENING = 2, 4


@pytest.fixture
def reserved(make_gate, policy_file, clock, holder):
    """Each of three members: 1,000 a day, 200 of them in reserve; all together 1,500 a day."""
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    bound = [contract_pb2.PurposeAllowance(purpose=SCREENING, day=600)]
    draft = lookups(
        "holder", ("bank-b", "bank-c", "centre"), NOW, epoch=30_000, day=1_000, reserve=200, purposes=bound
    )
    return make_gate(policy_file('[budgets."*"]\nepoch = 100000\nday = 1500\n'), draft, clock=clock)


def test_a_screening_leaves_the_reserve_to_payments(reserved, members, clock):
    """A screening used up the day, and the payment behind it was refused."""
    bank = members["bank-b"]
    reserved.admit(ask(bank, 600, purpose=SCREENING))
    assert "screening budget" in str(refused(reserved, ask(bank, 1, purpose=SCREENING)))
    reserved.admit(ask(bank, 200, purpose=PAYMENT))  # the rest of the shared part
    error = refused(reserved, ask(bank, 33, purpose=PAYMENT))  # bulk that calls itself payment
    assert "200 in reserve for urgent questions" in str(error)
    left = reserved.budget(bank, "fraud")
    assert (left.day_left, left.reserve_left) == (0, 200)
    for _ in range(6):
        decision = reserved.admit(ask(bank, 32, purpose=PAYMENT))
    assert decision.budget.reserve_left == 8
    assert "8 evaluations left" in str(refused(reserved, ask(bank, 16, purpose=PAYMENT)))
    clock.now += 86_400
    assert reserved.budget(bank, "fraud").reserve_left == 200


def test_others_use_up_the_lists_bound_and_not_ones_reserve(reserved, members):
    """The centre was starved by banks through the list-wide default."""
    for name in ("bank-b", "bank-c"):
        reserved.admit(ask(members[name], 450, purpose=1))
    assert reserved.budget(members["centre"], "fraud").day_left == 0  # 1,500 less three reserves
    for _ in range(6):
        reserved.admit(ask(members["centre"], 32, purpose=PAYMENT))
    spent = 2 * 450 + 6 * 32
    for name in ("bank-b", "bank-c"):
        for _ in range(6):
            reserved.admit(ask(members[name], 32, purpose=PAYMENT))
            spent += 32
    assert spent <= 1_500  # reserves and shared part together keep the list's bound


def test_the_reserve_is_drawn_on_slowly(make_gate, policy_file, clock, holder, members):
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    draft = lookups("holder", ("bank-b",), NOW, epoch=10**6, day=10_000, reserve=9_999)
    gate = make_gate(policy_file(""), draft, clock=clock)
    gate.admit(ask(members["bank-b"], 1, purpose=1))
    for _ in range(limits.RESERVE_A_MINUTE // 32):
        gate.admit(ask(members["bank-b"], 32, purpose=PAYMENT))
    refused(gate, ask(members["bank-b"], 32, purpose=PAYMENT))
    clock.now += 61
    gate.admit(ask(members["bank-b"], 32, purpose=PAYMENT))


def test_a_day_begins_at_midnight_of_the_networks_time_zone(make_gate, policy_file, clock, holder, members):
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")
    draft = lookups("holder", ("bank-b",), NOW, day=50)
    gate = make_gate(policy_file(""), draft, clock=clock, zone=ZoneInfo("Asia/Shanghai"))
    clock.now = dt.datetime(2027, 1, 31, 15, 59, tzinfo=dt.UTC).timestamp()  # 23:59 in Shanghai
    gate.admit(ask(members["bank-b"], 50))
    refused(gate, ask(members["bank-b"], 1))
    clock.now += 120
    gate.admit(ask(members["bank-b"], 50))
