"""How much of a holder's budget a screening takes at a time, and when it will have taken what it needs."""

import math
from dataclasses import dataclass

from lianfang.v1 import common_pb2 as common

from ..gate import deciding

EPOCH_DAYS = 30.0  # of an epoch whose end is not known
_DAYS = 3_660  # beyond these nothing is foreseen


@dataclass(frozen=True)
class Spent:
    """What screenings of this node have had of a list: today, and in its epoch."""

    today: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Pace:
    """A share of each budget is for screenings, so that other questions of the same member are not refused behind them."""

    share: float  # of a list's budget for a day and for an epoch, from 0 to 1

    def a_day(self, budget: common.Budget, purpose: int) -> int:
        """Evaluations of a whole day."""
        bounds = [budget.day_limit, *(each.day_limit for each in budget.purposes if each.purpose == purpose)]
        return min(self._part(min(bounds)), self.an_epoch(budget))

    def an_epoch(self, budget: common.Budget) -> int:
        """Evaluations of a whole epoch of the list's key."""
        return self._part(budget.epoch_limit)

    def _part(self, limit: int) -> int:
        return math.floor(limit * self.share)

    def today(self, budget: common.Budget, purpose: int, spent: Spent) -> int:
        """Evaluations that may still be spent today; not more than others have left of what is theirs together."""
        left = deciding(budget, purpose, budget.day_limit + budget.epoch_limit)[1]
        bounds = (left, self.a_day(budget, purpose) - spent.today, self.an_epoch(budget) - spent.epoch)
        return max(0, min(bounds))

    def days(
        self, need: int, budget: common.Budget, purpose: int, spent: Spent, epoch_left: float = EPOCH_DAYS
    ) -> int | None:
        """How many midnights pass before `need` evaluations are spent, if budgets stay; None for never.

        `epoch_left`: days until the list has a new key, and with it a new budget of the epoch.
        """
        need -= self.today(budget, purpose, spent)
        a_day, an_epoch = self.a_day(budget, purpose), self.an_epoch(budget)
        in_epoch = max(0, an_epoch - spent.epoch - self.today(budget, purpose, spent))
        day = 0
        while need > 0:
            day += 1
            if day > _DAYS or not a_day:
                return None
            if day >= epoch_left:
                in_epoch, epoch_left = an_epoch, epoch_left + EPOCH_DAYS
            taken = min(a_day, in_epoch)
            need, in_epoch = need - taken, in_epoch - taken
        return day
