"""Logistic regression by Newton steps on summed gradients and Hessians (iteratively reweighted least squares)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..data import Block, Matrix, pool
from ..steps import Ask, Learner, fixed_point, quantise
from . import base, scaling
from .base import Model, Scores
from .scaling import Scaling

Floats = npt.NDArray[np.float64]


_GRID = 2.0**24  # coefficients are multiples of 1/_GRID
LIMIT = 100.0  # of scaled values: with 10, heavy tails and rare flags lost up to 0.02 of AUC against a model without bounds
_EQUAL = 1e-9  # of a loss: what rounding may add


class LinearSettings(BaseModel):
    """Logistic regression."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(40, ge=1, le=100, description="Newton steps at most, halved ones included")
    l2: float = Field(1.0, gt=0)
    tolerance: float = Field(1e-4, gt=0, description="stop once no coefficient moves by more")
    positive_weight: base.PositiveWeight = 1.0


class LinearModel(Model):
    """Coefficients of scaled features, the intercept first."""

    kind = "linear"

    def __init__(
        self, features: Sequence[str], scale: Scaling, coefficients: Floats, converged: bool = True
    ) -> None:
        self.features, self.scale, self.coefficients = tuple(features), scale, coefficients
        self.converged = converged

    def notes(self) -> list[str]:
        """Whether training ended before it had converged."""
        if self.converged:
            return []
        return ["the linear model has not converged: give it more steps, or a larger l2"]

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
            "converged": self.converged,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "LinearModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        features = document["features"]
        coefficients = base.numbers(document["coefficients"], (len(features) + 1,))
        scale = Scaling.from_document(document["scaling"], len(features))
        return cls(features, scale, coefficients, bool(document["converged"]))


def learn(
    blocks: list[Block], features: Sequence[str], settings: LinearSettings, seed: int, parties: int
) -> Learner[LinearModel]:
    """The learner of one party: Newton's method, each step halved until the loss falls (Boyd and
    Vandenberghe, "Convex Optimization", §9.5.2, with the decrease itself as the test).
    """
    none = [np.zeros(len(block.y), dtype=bool) for block in blocks]
    shape = yield from base.find_shape(blocks, none, parties)
    pooled = pool(blocks)
    x, y = pooled.x, pooled.y.astype(np.float64)
    scale = replace((yield from scaling.find(x, parties)), limit=LIMIT)
    weight = base.weight_of_positives(settings.positive_weight, shape)
    design = np.concatenate([np.ones((len(x), 1)), scale.apply(x)], axis=1)
    weights = np.where(y > 0, weight, 1.0)
    size = design.shape[1]
    upper = np.triu_indices(size)
    fixed = fixed_point(shape.rows * max(weight, 1.0) * LIMIT * LIMIT, parties)
    ridge = np.full(size, settings.l2)
    ridge[0] = 0.0
    at = np.zeros(size)
    at[0] = shape.base
    best, lowest = at, np.inf
    for step in range(settings.steps):
        margin = design @ at
        probability = base.sigmoid(margin)
        losses = np.minimum(np.logaddexp(0.0, np.where(y > 0, -margin, margin)), LIMIT * LIMIT)
        gradient = design.T @ (weights * (probability - y))
        curvature = design.T @ (design * (weights * probability * (1 - probability))[:, None])
        asked = quantise(np.concatenate([gradient, curvature[upper], [weights @ losses]]), fixed)
        total = base.checked((yield Ask(asked, f"step {step + 1}")), asked.size, "step") / fixed
        loss = float(total[-1] + 0.5 * (ridge * at * at).sum())
        if loss > lowest * (1 + _EQUAL):
            at = _on_grid((at + best) / 2)  # the step was too long: the loss rose, so halve it
            if np.abs(at - best).max() < settings.tolerance:
                return LinearModel(features, scale, best)
            continue
        best, lowest = at, loss
        hessian = np.zeros((size, size))
        hessian[upper] = total[size:-1]
        hessian = hessian + np.triu(hessian, 1).T + np.diag(ridge + 1e-6)
        move = np.linalg.solve(hessian, total[:size] + ridge * at)
        at = _on_grid(at - move)
        if np.rint(np.abs(move).max() * _GRID) < settings.tolerance * _GRID:
            return LinearModel(features, scale, at)
    return LinearModel(features, scale, best, converged=False)


def _on_grid(coefficients: Floats) -> Floats:
    """Linear algebra differs in the last bits between processors; the banks' models must not."""
    return np.rint(coefficients * _GRID) / _GRID
