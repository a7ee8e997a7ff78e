"""How good a score is where fraud is rare."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

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


def measure(y: Labels, score: Scores, weight: npt.NDArray[np.float64] | None = None) -> Quality:
    """`score` in [0, 1], all of shape (rows,); `weight` is how often a row stands, once by default.

    Raises `DataError` where one class is missing.
    """
    counts = np.ones(len(y)) if weight is None else weight
    total, positives = float(counts.sum()), float(counts[y == 1].sum())
    if not 0 < positives < total:
        raise DataError(f"{total:,.0f} rows, {positives:,.0f} positive: both classes are needed to measure")
    return Quality(
        *_areas(y, score, counts),
        recall_at(y, score, ALERT_RATES[0], counts),
        recall_at(y, score, ALERT_RATES[1], counts),
        calibration_error(y, score, counts),
    )


def _areas(y: Labels, score: Scores, counts: npt.NDArray[np.float64]) -> tuple[float, float]:
    """(average precision, area under the ROC curve) as scikit-learn defines them; ties count as one threshold.

    Written here because it is all that a node would need scikit-learn and SciPy for, 200 MB of its image.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # last row of each score
    caught = np.cumsum((counts * y)[order])[ends]
    flagged = np.cumsum(counts[order])[ends]
    positives, negatives = caught[-1], flagged[-1] - caught[-1]
    steps = np.diff(caught, prepend=0.0)
    precision = np.divide(caught, flagged, out=np.zeros_like(caught), where=flagged != 0)
    false = np.concatenate([[0.0], flagged - caught])
    area = float(np.trapezoid(np.concatenate([[0.0], caught]), false))
    return float((steps * precision).sum() / positives), area / float(positives * negatives)


def recall_at(y: Labels, score: Scores, rate: float, weight: npt.NDArray[np.float64] | None = None) -> float:
    """Part of the positives among the `rate` of rows with the highest scores; ties share evenly."""
    counts = np.ones(len(y)) if weight is None else weight
    alerts = max(1.0, round(float(counts.sum()) * rate))
    order = np.argsort(-score, kind="stable")
    edge = score[order[min(int(np.searchsorted(np.cumsum(counts[order]), alerts)), len(y) - 1)]]
    above, tied = score > edge, score == edge
    share = (alerts - counts[above].sum()) / counts[tied].sum()
    caught = (counts * y)[above].sum() + (counts * y)[tied].sum() * share
    return float(caught / (counts * y).sum())


def calibration_error(
    y: Labels, score: Scores, weight: npt.NDArray[np.float64] | None = None, groups: int = 10
) -> float:
    """Expected calibration error over groups of equal size."""
    counts = np.ones(len(y)) if weight is None else weight
    order = np.argsort(score, kind="stable")
    passed = np.cumsum(counts[order])
    group = np.minimum((passed - counts[order] / 2) / passed[-1] * groups, groups - 1).astype(np.int64)
    held = counts[order]
    gaps = np.bincount(group, held * score[order], groups) - np.bincount(group, held * y[order], groups)
    return float(np.abs(gaps).sum() / passed[-1])


def federated(model: Model, x: npt.NDArray[np.float32], y: Labels) -> Learner[Quality | None]:
    """The same over all banks' rows, from one sum of counts on a public grid of log-odds; None for one class only.

    Scores are rounded to 1/2,000 of 24 units of log-odds; the figures differ from the exact ones accordingly.
    """
    cell = np.clip(((model.margin(x) + _REACH) / (2 * _REACH) * _CELLS).astype(np.int64), 0, _CELLS - 1)
    counts = np.concatenate([np.bincount(cell[y == label], minlength=_CELLS) for label in (0, 1)])
    total = yield Ask(counts.astype(np.int64), "evaluation")
    middle = (np.arange(_CELLS) + 0.5) / _CELLS * 2 * _REACH - _REACH
    scores = np.tile(1 / (1 + np.exp(-middle)), 2)
    labels = np.repeat([0, 1], _CELLS).astype(np.uint8)
    held = total > 0  # a member that lies may make a count negative; it can spoil the figures, nothing else
    try:
        return measure(labels[held], scores[held], total[held].astype(np.float64))
    except DataError:
        return None
