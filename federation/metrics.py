"""How good a score is where fraud is rare."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from .data import Labels
from .errors import DataError
from .models.base import Model, Scores
from .steps import Ask, Learner

ALERT_RATES = (0.001, 0.01)
_CELLS = 2_000  # of the federated evaluation's grid of scores
_REACH = 12.0  # log-odds at the grid's ends


@dataclass(frozen=True)
class Quality:
    """Each in [0, 1]. `calibration` is the mean gap between score and rate over ten groups of equal size."""

    auprc: float
    auroc: float
    recall_at_0_1_percent: float
    recall_at_1_percent: float
    calibration: float

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def measure(y: Labels, score: Scores) -> Quality:
    """`score` in [0, 1], both of shape (rows,). Raises `DataError` where one class is missing."""
    positives = int(y.sum())
    if not 0 < positives < len(y):
        raise DataError(f"{len(y):,} rows, {positives:,} positive: both classes are needed to measure")
    return Quality(
        float(average_precision_score(y, score)),
        float(roc_auc_score(y, score)),
        recall_at(y, score, ALERT_RATES[0]),
        recall_at(y, score, ALERT_RATES[1]),
        calibration_error(y, score),
    )


def recall_at(y: Labels, score: Scores, rate: float) -> float:
    """Part of the positives among the `rate` of rows with the highest scores; ties share evenly."""
    alerts = max(1, round(len(y) * rate))
    order = np.argsort(-score, kind="stable")
    edge = score[order[alerts - 1]]
    above, tied = score > edge, score == edge
    caught = float(y[above].sum()) + float(y[tied].sum()) * (alerts - above.sum()) / tied.sum()
    return float(caught / y.sum())


def calibration_error(y: Labels, score: Scores, groups: int = 10) -> float:
    """Expected calibration error over groups of equal size."""
    parts = np.array_split(np.argsort(score, kind="stable"), min(groups, len(y)))
    return float(sum(len(part) * abs(score[part].mean() - y[part].mean()) for part in parts) / len(y))


def federated(model: Model, x: npt.NDArray[np.float32], y: Labels) -> Learner[Quality]:
    """The same over all banks' rows, from one sum of counts on a public grid of log-odds.

    Scores are rounded to 1/2,000 of 24 units of log-odds; the figures differ from the exact ones accordingly.
    """
    cell = np.clip(((model.margin(x) + _REACH) / (2 * _REACH) * _CELLS).astype(np.int64), 0, _CELLS - 1)
    counts = np.concatenate([np.bincount(cell[y == label], minlength=_CELLS) for label in (0, 1)])
    total = yield Ask(counts.astype(np.int64), "evaluation")
    negatives, positives = total[:_CELLS], total[_CELLS:]
    middle = (np.arange(_CELLS) + 0.5) / _CELLS * 2 * _REACH - _REACH
    grid = 1 / (1 + np.exp(-middle))
    labels = np.repeat([0, 1], [int(negatives.sum()), int(positives.sum())]).astype(np.uint8)
    scores = np.concatenate([np.repeat(grid, negatives), np.repeat(grid, positives)])
    return measure(labels, scores)
