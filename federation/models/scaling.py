"""Features on one scale for models that need it: mean and standard deviation over all banks, alike at every bank.

The median bin edge is a first centre. Then two sums: counts of the distances from it by powers of two, which give each
feature's largest distance, and in units of that the first two moments.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import bins as binning
from ..data import Matrix
from ..steps import Ask, Learner, fixed_point, quantise
from . import base

LIMIT = 10.0  # scaled values are clipped to +- this much, unless a model says otherwise
_BINS = 32
_LOWEST, _HIGHEST = -150, 129  # powers of two of float32 distances, subnormal ones included

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """(value - centre) / spread, clipped; a missing value is 0. Shapes (features,)."""

    centre: Floats
    spread: Floats
    limit: float = LIMIT

    def apply(self, x: Matrix) -> Floats:
        """Shape (rows, features), within +-`limit`."""
        scaled = (x.astype(np.float64) - self.centre) / self.spread
        return np.clip(np.nan_to_num(scaled, nan=0.0), -self.limit, self.limit)

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {"centre": self.centre.tolist(), "spread": self.spread.tolist(), "limit": self.limit}

    @classmethod
    def from_document(cls, document: dict[str, Any], features: int) -> "Scaling":
        """The inverse; raises `ValueError`. A model of before has no limit in it: then it is `LIMIT`."""
        limit = float(document.get("limit", LIMIT))
        if not 0 < limit < np.inf:
            raise ValueError("a limit above zero is needed")
        centre, spread = (base.numbers(document[name], (features,)) for name in ("centre", "spread"))
        return cls(centre, spread, limit)


def find(x: Matrix, parties: int) -> Learner[Scaling]:
    """Mean and standard deviation of the values that are there; 1 for the spread of a constant feature."""
    found = yield from binning.find(x, _BINS)
    centre = np.array([float(edges[len(edges) // 2]) if len(edges) else 0.0 for edges in found.edges])
    distance = x.astype(np.float64) - centre
    there = ~np.isnan(distance)
    distance[~there] = 0.0
    # frexp: |distance| = fraction · 2^power with a fraction from 1/2 to 1, so 2^power bounds it.
    powers = np.where(distance == 0, _LOWEST, np.frexp(distance)[1]) - _LOWEST
    width = _HIGHEST - _LOWEST + 1
    counts = np.stack([np.bincount(powers[there[:, i], i], minlength=width) for i in range(x.shape[1])])
    total = base.checked((yield Ask(counts.ravel().astype(np.int64), "scales")), counts.size, "scales")
    held = total.reshape(counts.shape) > 0
    rows = np.maximum(total.reshape(counts.shape).sum(axis=1), 1)
    largest = 2.0 ** (_LOWEST + width - 1 - np.argmax(held[:, ::-1], axis=1))
    unit = distance / largest
    fixed = fixed_point(float(rows.max()), parties)
    moments = np.stack([unit.sum(axis=0), (unit**2).sum(axis=0)])
    asked = quantise(moments, fixed)
    sums = base.checked((yield Ask(asked, "moments")), asked.size, "moments").reshape(2, -1) / fixed
    mean, square = sums / rows
    spread = np.sqrt(np.maximum(square - mean**2, 0.0)) * largest
    spread[~held[:, 1:].any(axis=1) | (spread < np.abs(centre) * 1e-12)] = 1.0
    return Scaling(centre + mean * largest, np.where(spread > 0, spread, 1.0))
