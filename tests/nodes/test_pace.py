"""When a screening ends: the days counted, against spending them one by one."""

from hypothesis import given
from hypothesis import strategies as st
from lianfang.v1 import common_pb2 as common

from nodes.querier.pace import Pace, Spent

SCREENING = common.PURPOSE_SCREENING


def budget(day=1_000, epoch=100_000, day_left=None, epoch_left=None, **purposes):
    return common.Budget(
        day_limit=day,
        day_left=day if day_left is None else day_left,
        epoch_limit=epoch,
        epoch_left=epoch if epoch_left is None else epoch_left,
        purposes=[
            common.PurposeBudget(purpose=SCREENING, day_limit=each, day_left=each)
            for each in purposes.values()
        ],
    )


def test_half_a_days_budget_stays_for_others():
    pace = Pace(0.5)
    assert pace.today(budget(), SCREENING, Spent()) == 500
    assert pace.today(budget(), SCREENING, Spent(today=480)) == 20
    assert pace.today(budget(day_left=300), SCREENING, Spent()) == 300
    assert pace.today(budget(day_left=0), SCREENING, Spent()) == 0
    assert pace.today(budget(bound=200), SCREENING, Spent()) == 100
    assert pace.today(budget(epoch=600), SCREENING, Spent(epoch=290)) == 10


def test_days_are_midnights():
    pace = Pace(0.5)
    assert pace.days(500, budget(), SCREENING, Spent()) == 0
    assert pace.days(501, budget(), SCREENING, Spent()) == 1
    assert pace.days(1_501, budget(), SCREENING, Spent()) == 3
    assert pace.days(1, budget(day_left=0), SCREENING, Spent()) == 1
    assert pace.days(10_000, budget(day=0), SCREENING, Spent()) is None
    assert pace.days(0, budget(day=0), SCREENING, Spent()) == 0


def test_an_epochs_budget_is_waited_for():
    pace = Pace(1.0)
    small = budget(day=1_000, epoch=2_500)
    assert pace.days(2_500, small, SCREENING, Spent(), epoch_left=10) == 2
    assert pace.days(2_501, small, SCREENING, Spent(), epoch_left=10) == 10
    assert pace.days(5_001, small, SCREENING, Spent(), epoch_left=10) == 40


@given(
    st.integers(0, 20_000),
    st.integers(1, 400),
    st.integers(1, 5_000),
    st.floats(0.1, 1.0),
    st.integers(0, 300),
    st.integers(1, 30),
)
def test_what_is_foreseen_is_what_happens_where_budgets_stay(
    need, day, epoch, share, spent_today, epoch_left
):
    pace, left = Pace(share), need
    bounds = {"day": day, "epoch": epoch}
    foreseen = pace.days(
        need, budget(**bounds), SCREENING, Spent(min(spent_today, day), min(spent_today, epoch)), epoch_left
    )
    today, in_epoch = min(spent_today, day), min(spent_today, epoch)
    passed, until = 0, epoch_left
    while True:
        can = pace.today(
            budget(**bounds, day_left=day - today, epoch_left=epoch - in_epoch),
            SCREENING,
            Spent(today, in_epoch),
        )
        if passed == 0:  # the budget itself says that nothing is used yet
            can = pace.today(budget(**bounds), SCREENING, Spent(today, in_epoch))
        taken = min(can, left)
        left, today, in_epoch = left - taken, today + taken, in_epoch + taken
        if left <= 0:
            break
        passed, today = passed + 1, 0
        if passed >= until:
            in_epoch, until = 0, until + 30
        if passed > 4_000:
            passed = None
            break
    if passed is None or passed > 3_660:
        assert foreseen is None or foreseen > 3_000
    else:
        assert foreseen == passed
