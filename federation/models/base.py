"""What every model has in common."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from protocols.sums.modular import Vector

from ..data import Block, Matrix
from ..errors import JobError
from ..steps import Ask, Learner

Scores = npt.NDArray[np.float64]


class Part(ABC):
    """What one party holds of a model, or all of it."""

    kind: str
    features: tuple[str, ...]

    @abstractmethod
    def to_document(self) -> dict[str, Any]:
        """All of it as JSON values."""

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal models have equal bytes."""
        return json.dumps(self.to_document(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def hash(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class Model(Part):
    """A trained model: the same bytes at every bank."""

    @abstractmethod
    def margin(self, x: Matrix) -> Scores:
        """Log-odds of fraud, shape (rows,)."""

    def importance(self) -> dict[str, float]:
        """Per feature; empty where the model has no such notion."""
        return {}

    def notes(self) -> list[str]:
        """What a person should know before using the model."""
        return []

    def predict(self, x: Matrix) -> Scores:
        """Probability of fraud, shape (rows,)."""
        return sigmoid(self.margin(x))


def sigmoid(margin: Scores) -> Scores:
    """1 / (1 + exp(-margin)) without overflow."""
    small = np.exp(-np.abs(margin))
    return np.where(margin >= 0, 1 / (1 + small), small / (1 + small))


@dataclass(frozen=True)
class Shape:
    """What all banks together have, from the first sum of a job."""

    rows: int
    positives: int
    held_out: int  # rows for validation, not trained on
    parties: int

    @property
    def base(self) -> float:
        """Log-odds of a positive, kept away from infinity."""
        rate = min(max(self.positives / max(self.rows, 1), 1e-6), 1 - 1e-6)
        return float(np.log(rate / (1 - rate)))


def drawn(seed: int, block: Block, what: str, step: int = 0) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row of a block: the same at the bank and in a pooled reference."""
    digest = hashlib.sha256(f"{seed}/{block.name}/{what}/{step}".encode()).digest()
    words = [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8)]
    generator = np.random.Generator(np.random.Philox(key=np.array(words, dtype=np.uint64)))
    return generator.random(len(block.y))


def public_rng(seed: int, what: str, step: int = 0) -> np.random.Generator:
    """What all banks draw alike."""
    digest = hashlib.sha256(f"{seed}/public/{what}/{step}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))


# How much a positive row weighs: a number, or `balanced`.
PositiveWeight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | Literal["balanced"]


def weight_of_positives(setting: float | str, shape: Shape) -> float:
    """`balanced` makes both classes weigh the same, at most 1,000."""
    if setting == "balanced":
        return float(min(max((shape.rows - shape.positives) / max(shape.positives, 1), 1.0), 1000.0))
    return float(setting)


def weighted(shape: Shape, weight: float) -> Shape:
    """Under class weights the start is the weighted rate's."""
    positives = weight * shape.positives
    rows = int(shape.rows - shape.positives + positives)
    return Shape(rows, int(positives), shape.held_out, shape.parties)


def find_shape(blocks: list[Block], held_out: list[npt.NDArray[np.bool_]], parties: int) -> Learner[Shape]:
    """Rows, positives and validation rows over all banks. Raises `JobError` for what no model can learn from."""
    counts = np.zeros(3, dtype=np.int64)
    for block, out in zip(blocks, held_out, strict=True):
        counts += [int((~out).sum()), int(block.y[~out].sum()), int(out.sum())]
    total = yield Ask(counts, "rows")
    shape = Shape(int(total[0]), int(total[1]), int(total[2]), parties)
    if not 0 < shape.positives < shape.rows:
        raise JobError(
            f"all banks together have {shape.rows:,} rows to train on, {shape.positives:,} of them positive: "
            "both classes are needed",
            "all banks together have rows of one class only",
        )
    return shape


def checked(total: Vector, size: int, what: str) -> Vector:
    """A sum of the size that was asked for."""
    if total.shape != (size,):
        raise JobError(f"{what}: {total.shape} values came, {size} were asked for")
    return total


def known(document: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Raise `JobError` unless a model's document is of a kind and version that this code reads."""
    if document.get("lianfang_model") != kind or document.get("version") != 1:
        raise JobError(f"not a {kind} model of version 1")
    features = document["features"]
    if not features or not all(isinstance(each, str) for each in features):
        raise JobError("the model's features are not names")
    return document


def numbers(values: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Finite numbers of a shape; raises `ValueError`."""
    array = np.array(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"numbers of shape {array.shape}, not {shape}")
    return array
