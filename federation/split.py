"""Dividing rows among banks, and training from test rows."""

import numpy as np
import numpy.typing as npt

from .data import Block
from .errors import DataError

KINDS = ("iid", "label", "quantity", "time", "column")


def divide(block: Block, count: int, kind: str, seed: int, concentration: float = 1.0) -> list[Block]:
    """`count` banks. Skews are Dirichlet with `concentration`: smaller is more uneven; banks have at least one row.

    Raises `DataError` where there are too few rows.
    """
    rows = len(block.y)
    if rows < 2 * count:
        raise DataError(f"{block.name}: {rows:,} rows are too few for {count} banks")
    rng = np.random.default_rng([seed, count])
    if kind == "iid":
        owner = rng.permutation(np.arange(rows) % count)
    elif kind == "quantity":
        owner = rng.choice(count, rows, p=_shares(rng, count, concentration))
    elif kind == "label":
        owner = np.empty(rows, dtype=np.int64)
        for label in (0, 1):
            of_label = np.flatnonzero(block.y == label)
            owner[of_label] = rng.choice(count, len(of_label), p=_shares(rng, count, concentration))
    else:
        raise DataError(f"split {kind!r} is not one of {', '.join(KINDS)}")
    for index in range(count):  # nobody is empty
        if not np.any(owner == index):
            owner[rng.choice(rows, 2, replace=False)] = index
    return [block.take(np.flatnonzero(owner == index), f"bank-{index + 1}") for index in range(count)]


def _shares(rng: np.random.Generator, count: int, concentration: float) -> npt.NDArray[np.float64]:
    if concentration <= 0:
        raise DataError("the Dirichlet parameter is above 0")
    return np.asarray(rng.dirichlet(np.full(count, concentration)))


def by_column(block: Block, owner: list[str]) -> list[Block]:
    """One bank for each value of a column, ascending."""
    values = np.array(owner)
    names = sorted(set(owner))
    if not 2 <= len(names) <= 200:
        raise DataError(f"{block.name}: the column that names the bank has {len(names):,} different values")
    return [block.take(np.flatnonzero(values == name), f"bank-{name}") for name in names]


def train_and_test(
    block: Block, test_share: float, seed: int, by_time: bool = False, delay_days: float = 0.0
) -> tuple[Block, Block]:
    """At random, or by time: test on the latest rows, train on those whose label was known before the first of them.

    A label is known `delay_days` after its row. Raises `DataError` where nothing is left of a part.
    """
    rows = len(block.y)
    if by_time:
        if block.time is None:
            raise DataError(f"{block.name}: a split by time needs a time column")
        start = float(np.quantile(block.time, 1 - test_share))
        test, train = block.time >= start, block.time < start - delay_days
    else:
        rng = np.random.default_rng([seed, rows, *block.name.encode()])
        test = rng.random(rows) < test_share
        train = ~test
    if not train.any() or not test.any():
        raise DataError(
            f"{block.name}: {int(train.sum()):,} rows to train on, {int(test.sum()):,} to test on"
        )
    return block.take(np.flatnonzero(train)), block.take(np.flatnonzero(test))
