"""How a learner asks for sums: a generator that yields `Ask` and is sent the sum, and returns its result.

The same generator runs in one process, in a simulation and across institutions; who adds up is the driver's
business. Everything that depends on a sum depends on it alone, so all banks decide alike.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from protocols.sums import modular
from protocols.sums.modular import Vector

from .errors import JobError

R = TypeVar("R")


@dataclass(frozen=True)
class Ask:
    """One contribution: int64 of shape (length,), and a label that says what is summed."""

    vector: Vector
    label: str


Learner = Generator[Ask, Vector, R]


def one_by_one(learners: Sequence[Learner[R]]) -> list[R]:
    """Run learners in lock-step, adding in the clear: the reference, and `encryption = "none"`.

    Raises `JobError` where they ask for different things, which no honest federation does.
    """
    asks: list[Ask | None] = [next(learner) for learner in learners]
    results: list[R | None] = [None] * len(learners)
    while True:
        first = asks[0]
        if first is None:
            break
        vectors = []
        for ask in asks:
            if ask is None or ask.label != first.label or ask.vector.shape != first.vector.shape:
                raise JobError(f"banks ask for different sums at {first.label!r}")
            modular.check_range(ask.vector, len(learners))
            vectors.append(ask.vector)
        total = np.sum(vectors, axis=0)
        for index, learner in enumerate(learners):
            try:
                asks[index] = learner.send(total)
            except StopIteration as end:
                asks[index], results[index] = None, end.value
    if any(ask is not None for ask in asks):
        raise JobError("some banks have finished and others not")
    return results  # type: ignore[return-value]  # every learner has returned


def fixed_point(largest: float, parties: int) -> float:
    """The power of two by which to scale values of up to `largest` (one bank's sum) so that the range holds."""
    room = (modular.HALF - 1) / (parties * max(largest, 2.0**-20))
    return float(2.0 ** min(40, int(np.floor(np.log2(room)))))


def quantise(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", scale: float) -> Vector:
    """Rounded to integers of 1/scale."""
    return np.rint(np.ravel(values) * scale).astype(np.int64)
