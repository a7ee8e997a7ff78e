"""Bin edges that all banks compute alike: quantiles from dyadic counts over the grid of float32 numbers.

Sketches such as KLL do not add, counts do. A float32 is mapped to a 32-bit integer that orders the same; the
interval of all integers is halved into 16 parts, and every part that holds more than its share of the rows is divided
again, at most eight times. What is summed are counts of rows in public intervals; an edge is always the lower end
of such an interval, a number of the public grid. A value that many rows share is narrowed down to itself.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .data import Matrix
from .steps import Ask, Learner

Keys = npt.NDArray[np.uint64]
_BITS = 4
_DEPTH = 32
_TOP = np.uint32(0x80000000)
_SLACK = 2  # parts a bin is made of, at least


def keys_of(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Order-preserving integers for float32 numbers; -0.0 counts as 0.0. NaN must be gone."""
    bits = (values + np.float32(0)).view(np.uint32)
    return np.where(bits & _TOP, ~bits, bits | _TOP)


def value_of(key: int) -> np.float32:
    """The float32 number of a key."""
    bits = key & 0x7FFFFFFF if key & 0x80000000 else ~key & 0xFFFFFFFF
    return np.uint32(bits).view(np.float32)


@dataclass(frozen=True)
class Bins:
    """Per feature, ascending edges of float32. A value v is in bin i where edges[i-1] <= v < edges[i]."""

    edges: tuple[npt.NDArray[np.float32], ...]

    @property
    def width(self) -> int:
        """Bins a feature has, the one for missing values last."""
        return max((len(each) for each in self.edges), default=0) + 2

    def transform(self, x: Matrix) -> npt.NDArray[np.uint8]:
        """Bin numbers of shape (features, rows); missing values have number width-1."""
        out = np.empty((x.shape[1], x.shape[0]), dtype=np.uint8)
        for index, edges in enumerate(self.edges):
            column = np.ascontiguousarray(x[:, index])
            numbers = np.searchsorted(edges, column, side="right").astype(np.uint8)
            numbers[np.isnan(column)] = self.width - 1
            out[index] = numbers
        return out


class _Counter:
    """One bank's rows of one feature, sorted."""

    def __init__(self, column: npt.NDArray[np.float32]) -> None:
        self._keys = np.sort(keys_of(column[~np.isnan(column)])).astype(np.int64)

    def count(self, starts: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
        """Rows in each of the 16 parts of the intervals [start, start + 16*size)."""
        bounds = starts[:, None] + size * np.arange((1 << _BITS) + 1, dtype=np.int64)
        return np.diff(np.searchsorted(self._keys, bounds.ravel()).reshape(bounds.shape), axis=1)


def find(x: Matrix, most: int, floor: int = 20) -> Learner[Bins]:
    """A learner that returns `Bins` of at most `most` (<= 256) bins a feature, one of which is for missing values.

    No interval with `floor` rows or fewer, over all banks, is divided further.
    """
    counters = [_Counter(np.ascontiguousarray(x[:, index])) for index in range(x.shape[1])]
    open_: list[npt.NDArray[np.int64]] = [np.zeros(1, dtype=np.int64) for _ in counters]
    leaves: list[dict[int, int]] = [{} for _ in counters]  # start of an interval -> rows in it
    limits = [0] * len(counters)
    for depth in range(_BITS, _DEPTH + 1, _BITS):
        size = 1 << (_DEPTH - depth)
        asked = [counter.count(starts, size) for counter, starts in zip(counters, open_, strict=True)]
        if not any(part.size for part in asked):
            break
        total = yield Ask(
            np.concatenate([part.ravel() for part in asked]).astype(np.int64), f"bins {depth // _BITS}"
        )
        at = 0
        for index, part in enumerate(asked):
            counts = total[at : at + part.size].reshape(part.shape)
            at += part.size
            starts = (open_[index][:, None] + size * np.arange(1 << _BITS, dtype=np.int64)).ravel()
            flat = counts.ravel()
            if depth == _BITS:
                limits[index] = max(floor, int(flat.sum()) // (_SLACK * most))
            heavy = (flat > limits[index]) & (depth < _DEPTH)
            for start, rows in zip(starts[~heavy].tolist(), flat[~heavy].tolist(), strict=True):
                if rows:
                    leaves[index][start] = rows
            open_[index] = starts[heavy]
    return Bins(tuple(_edges(leaf, most) for leaf in leaves))


def _edges(leaves: dict[int, int], most: int) -> npt.NDArray[np.float32]:
    """Cut so that what is left is shared evenly among the bins that are left; one bin is for missing values."""
    starts = sorted(leaves)
    rows, bins = sum(leaves.values()), most - 1
    edges: list[np.float32] = []
    inside = 0
    for start, following in itertools.pairwise(starts):
        inside += leaves[start]
        if bins > 1 and inside * bins >= rows:
            edges.append(value_of(following))
            rows, bins, inside = rows - inside, bins - 1, 0
    return np.array(edges, dtype=np.float32)
