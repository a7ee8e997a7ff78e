"""Features on one scale for models that need it: centre and spread from public bin edges, alike at every bank."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import bins as binning
from ..data import Matrix
from ..steps import Learner
from . import base

LIMIT = 5.0  # scaled values are clipped to +-LIMIT
_BINS = 32

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """(value - centre) / spread, clipped; a missing value is 0. Shapes (features,)."""

    centre: Floats
    spread: Floats

    def apply(self, x: Matrix) -> Floats:
        """Shape (rows, features), within +-LIMIT."""
        scaled = (x.astype(np.float64) - self.centre) / self.spread
        return np.clip(np.nan_to_num(scaled, nan=0.0), -LIMIT, LIMIT)

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {"centre": self.centre.tolist(), "spread": self.spread.tolist()}

    @classmethod
    def from_document(cls, document: dict[str, Any], features: int) -> "Scaling":
        """The inverse; raises `ValueError`."""
        return cls(
            base.numbers(document["centre"], (features,)), base.numbers(document["spread"], (features,))
        )


def find(x: Matrix) -> Learner[Scaling]:
    """Median and interquartile range of the edges of at most 32 bins; 0 and 1 for a constant feature."""
    found = yield from binning.find(x, _BINS)
    centre, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    for index, edges in enumerate(found.edges):
        if not len(edges):
            continue
        low, centre[index], high = np.quantile(edges.astype(np.float64), (0.25, 0.5, 0.75), method="nearest")
        spread[index] = high - low or (abs(centre[index]) or 1.0)
    return Scaling(centre, spread)
