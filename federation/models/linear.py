"""Logistic regression by Newton steps on summed gradients and Hessians (iteratively reweighted least squares)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..data import Block, Matrix, pool
from ..steps import Ask, Learner, fixed_point, quantise
from . import base, scaling
from .base import Model, Scores
from .scaling import LIMIT, Scaling

Floats = npt.NDArray[np.float64]


_GRID = 2.0**24  # coefficients are multiples of 1/_GRID


class LinearSettings(BaseModel):
    """Logistic regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(8, ge=1, le=100, description="Newton steps at most")
    l2: float = Field(1.0, gt=0)
    tolerance: float = Field(1e-4, gt=0, description="stop once no coefficient moves by more")
    positive_weight: base.PositiveWeight = 1.0


class LinearModel(Model):
    """Coefficients of scaled features, the intercept first."""

    kind = "linear"

    def __init__(self, features: Sequence[str], scale: Scaling, coefficients: Floats) -> None:
        self.features, self.scale, self.coefficients = tuple(features), scale, coefficients

    def margin(self, x: Matrix) -> Scores:
        """Log-odds."""
        return np.asarray(self.scale.apply(x) @ self.coefficients[1:] + self.coefficients[0])

    def importance(self) -> dict[str, float]:
        """Size of each coefficient of a scaled feature."""
        return dict(zip(self.features, np.abs(self.coefficients[1:]).tolist(), strict=True))

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "scaling": self.scale.to_document(),
            "coefficients": self.coefficients.tolist(),
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "LinearModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        features = document["features"]
        coefficients = base.numbers(document["coefficients"], (len(features) + 1,))
        return cls(features, Scaling.from_document(document["scaling"], len(features)), coefficients)


def learn(
    blocks: list[Block], features: Sequence[str], settings: LinearSettings, seed: int, parties: int
) -> Learner[LinearModel]:
    """The learner of one party."""
    none = [np.zeros(len(block.y), dtype=bool) for block in blocks]
    shape = yield from base.find_shape(blocks, none, parties)
    pooled = pool(blocks)
    x, y = pooled.x, pooled.y.astype(np.float64)
    scale = yield from scaling.find(x)
    weight = base.weight_of_positives(settings.positive_weight, shape)
    design = np.concatenate([np.ones((len(x), 1)), scale.apply(x)], axis=1)
    weights = np.where(y > 0, weight, 1.0)
    size = design.shape[1]
    upper = np.triu_indices(size)
    fixed = fixed_point(shape.rows * max(weight, 1.0) * LIMIT * LIMIT, parties)
    coefficients = np.zeros(size)
    coefficients[0] = shape.base
    ridge = np.full(size, settings.l2)
    ridge[0] = 0.0
    for step in range(settings.steps):
        probability = base.sigmoid(design @ coefficients)
        gradient = design.T @ (weights * (probability - y))
        curvature = design.T @ (design * (weights * probability * (1 - probability))[:, None])
        asked = quantise(np.concatenate([gradient, curvature[upper]]), fixed)
        total = base.checked((yield Ask(asked, f"step {step + 1}")), asked.size, "step") / fixed
        hessian = np.zeros((size, size))
        hessian[upper] = total[size:]
        hessian = hessian + np.triu(hessian, 1).T + np.diag(ridge + 1e-6)
        move = np.linalg.solve(hessian, total[:size] + ridge * coefficients)
        # A step that long leaves the range where the quadratic holds.
        coefficients = coefficients - move * min(1.0, 10.0 / max(float(np.abs(move).max()), 1e-12))
        # Linear algebra differs in the last bits between processors; the banks' models must not.
        coefficients = np.rint(coefficients * _GRID) / _GRID
        if np.rint(np.abs(move).max() * _GRID) < settings.tolerance * _GRID:
            break
    return LinearModel(features, scale, coefficients)
