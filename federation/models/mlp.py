"""A small multilayer perceptron: local epochs of Adam, then the average of weights by rows (federated averaging).

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ..data import Block, Matrix, pool
from ..errors import JobError
from ..steps import Ask, Learner, fixed_point, quantise
from . import base, scaling
from .base import Model, Scores
from .scaling import Scaling

Floats = npt.NDArray[np.float64]
_LARGEST = 32.0  # of a weight


class MlpSettings(BaseModel):
    """One hidden layer of rectified units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(20, ge=1, le=1000)
    epochs: int = Field(1, ge=1, le=20, description="local, between two averages")
    hidden: int = Field(32, ge=1, le=1024)
    batch: int = Field(256, ge=8, le=65_536)
    learning_rate: float = Field(0.003, gt=0, le=1)
    l2: float = Field(1e-4, ge=0)
    positive_weight: base.PositiveWeight = 1.0


class MlpModel(Model):
    """`hidden` of shape (features + 1, units), `out` of shape (units + 1,); the bias is the last row."""

    kind = "mlp"

    def __init__(self, features: Sequence[str], scale: Scaling, hidden: Floats, out: Floats) -> None:
        self.features, self.scale, self.hidden, self.out = tuple(features), scale, hidden, out

    def margin(self, x: Matrix) -> Scores:
        """Log-odds."""
        return _forward(self.scale.apply(x), self.hidden, self.out)[1]

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "scaling": self.scale.to_document(),
            "hidden": self.hidden.tolist(),
            "out": self.out.tolist(),
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "MlpModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        features, units = document["features"], len(document["out"]) - 1
        scale = Scaling.from_document(document["scaling"], len(features))
        hidden = base.numbers(document["hidden"], (len(features) + 1, units))
        return cls(features, scale, hidden, base.numbers(document["out"], (units + 1,)))


def _forward(x: Floats, hidden: Floats, out: Floats) -> tuple[Floats, Floats]:
    units = np.maximum(x @ hidden[:-1] + hidden[-1], 0.0)
    return units, units @ out[:-1] + out[-1]


class _Adam:
    def __init__(self, rate: float) -> None:
        self._rate, self._step = rate, 0
        self._first: dict[str, Floats] = {}
        self._second: dict[str, Floats] = {}

    def next(self) -> None:
        self._step += 1

    def move(self, name: str, gradient: Floats) -> Floats:
        first = 0.9 * self._first.get(name, np.zeros_like(gradient)) + 0.1 * gradient
        second = 0.999 * self._second.get(name, np.zeros_like(gradient)) + 0.001 * gradient**2
        self._first[name], self._second[name] = first, second
        unbiased = first / (1 - 0.9**self._step)
        return self._rate * unbiased / (np.sqrt(second / (1 - 0.999**self._step)) + 1e-8)


def learn(
    blocks: list[Block], features: Sequence[str], settings: MlpSettings, seed: int, parties: int
) -> Learner[MlpModel]:
    """The learner of one party."""
    none = [np.zeros(len(block.y), dtype=bool) for block in blocks]
    shape = yield from base.find_shape(blocks, none, parties)
    pooled = pool(blocks)
    x, y = pooled.x, pooled.y.astype(np.float64)
    scale = yield from scaling.find(x, parties)
    scaled = scale.apply(x)
    weights = np.where(y > 0, base.weight_of_positives(settings.positive_weight, shape), 1.0)
    rng = base.public_rng(seed, "weights")
    width = x.shape[1]
    hidden = np.concatenate(
        [rng.normal(0, np.sqrt(2 / width), (width, settings.hidden)), np.zeros((1, settings.hidden))]
    )
    out = np.concatenate([rng.normal(0, np.sqrt(1 / settings.hidden), settings.hidden), [shape.base]])
    fixed = fixed_point(shape.rows * _LARGEST, parties)
    for step in range(settings.rounds):
        order = np.argsort(np.concatenate([base.drawn(seed, block, "order", step) for block in blocks]))
        hidden, out = _local(scaled, y, weights, (hidden, out), order, settings)
        flat = np.clip(np.concatenate([hidden.ravel(), out]), -_LARGEST, _LARGEST)
        asked = quantise(flat * len(y), fixed)
        total = base.checked((yield Ask(asked, f"round {step + 1}")), asked.size, "round")
        mean = total / fixed / shape.rows
        if not np.isfinite(mean).all():
            raise JobError(f"round {step + 1}: the average is not finite")
        hidden, out = mean[: hidden.size].reshape(hidden.shape), mean[hidden.size :]
    return MlpModel(features, scale, hidden, out)


def _local(
    x: Floats,
    y: Floats,
    weights: Floats,
    start: tuple[Floats, Floats],
    order: npt.NDArray[np.int64],
    settings: MlpSettings,
) -> tuple[Floats, Floats]:
    hidden, out = start[0].copy(), start[1].copy()
    adam = _Adam(settings.learning_rate)
    for _ in range(settings.epochs):
        for begin in range(0, len(order), settings.batch):
            rows = order[begin : begin + settings.batch]
            units, margin = _forward(x[rows], hidden, out)
            slope = weights[rows] * (base.sigmoid(margin) - y[rows]) / weights[rows].sum()
            back = np.outer(slope, out[:-1]) * (units > 0)
            adam.next()
            out_gradient = np.append(units.T @ slope, slope.sum()) + settings.l2 * out
            hidden_gradient = (
                np.concatenate([x[rows].T @ back, back.sum(axis=0)[None, :]]) + settings.l2 * hidden
            )
            out -= adam.move("out", out_gradient)
            hidden -= adam.move("hidden", hidden_gradient)
    return hidden, out
