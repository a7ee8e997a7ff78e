"""What a boosted tree grows from: settings, nodes, quantised gradients, histograms and the choice of splits.

Split gains and leaf values: Chen and Guestrin, "XGBoost", KDD 2016, §2.2 and §3.4 (missing values).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from protocols.sums import modular
from protocols.sums.modular import Vector

from ..bins import Bins
from ..data import Block, pool
from ..steps import fixed_point
from . import base
from .base import Shape

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ONE_SLOT_BITS = 8  # fewer bits for a gradient than this and gradient and hessian get a slot each
_EXACT = 2.0**53


class TreeSettings(BaseModel):
    """Names and meanings are XGBoost's where it has them. Defaults were measured untuned (benchmarks/defaults.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trees: int = Field(100, ge=1, le=5000)
    depth: int = Field(4, ge=1, le=12)
    learning_rate: float = Field(0.1, gt=0, le=1)
    bins: int = Field(256, ge=4, le=256, description="per feature, one of them for missing values")
    l2: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    gamma: float = Field(0.0, ge=0, description="least gain of a split")
    min_child_weight: float = Field(
        0.1, ge=0, description="least sum of p(1-p): at a fraud rate of 1 %, ten rows"
    )
    rows: float = Field(1.0, gt=0, le=1, description="part of the rows that a tree is grown on")
    columns: float = Field(1.0, gt=0, le=1, description="part of the features that a tree may use")
    positive_weight: base.PositiveWeight = 1.0
    validation: float = Field(0.0, ge=0, le=0.5, description="part of the rows held out for early stopping")
    patience: int = Field(10, ge=1, description="trees without a better validation loss before stopping")


@dataclass
class Tree:
    """Arrays over nodes; node 0 is the root. A leaf has `feature` -1 and its value in `value`."""

    feature: list[int] = field(default_factory=list)
    edge: list[int] = field(default_factory=list)  # rows whose bin is <= edge go left
    threshold: list[float] = field(default_factory=list)  # rows below it go left
    missing_left: list[bool] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    cover: list[float] = field(default_factory=list)

    def add(self, value: float, cover: float) -> int:
        """A leaf; returns its number."""
        self.feature.append(-1)
        self.edge.append(0)
        self.threshold.append(0.0)
        self.missing_left.append(False)
        self.left.append(-1)
        self.right.append(-1)
        self.value.append(value)
        self.gain.append(0.0)
        self.cover.append(cover)
        return len(self.feature) - 1

    def check(self, features: int) -> None:
        """Raise `ValueError` unless this is a tree over so many features: children come after their parent."""
        count = len(self.feature)
        for name in ("threshold", "value", "gain", "cover"):
            base.numbers(getattr(self, name), (count,))
        if not count or any(len(getattr(self, name)) != count for name in self.__dataclass_fields__):
            raise ValueError("the arrays of a tree differ in length")
        for node in range(count):
            if self.feature[node] == -1:
                continue
            inside = 0 <= self.feature[node] < features
            if not inside or not all(node < each < count for each in (self.left[node], self.right[node])):
                raise ValueError(f"node {node} of a tree points nowhere")

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Scale:
    """How a row's gradient and hessian become integers: |g| <= `weight`, 0 <= h <= `weight`/4."""

    gradient: float
    hessian: float
    shift: int  # bits of the hessian's part; 0 where each has a slot of its own
    row: float  # largest packed value of one row

    @classmethod
    def choose(cls, shape: Shape, weight: float) -> "Scale":
        rows = max(shape.rows, 2)
        # In one slot: bits of the sum of hessians, then the sum of gradients above it, times the parties.
        room = int(np.floor(np.log2(modular.HALF / shape.parties)))
        spread = int(np.ceil(np.log2(rows * weight)))
        free = (
            room - 2 * spread + 2 - 2
        )  # a hessian is a quarter of a weight; rounding up and the sign take two
        bits = (free + 2) // 2  # the gradient gets two more than the hessian
        if bits >= _ONE_SLOT_BITS:
            bits = min(bits, 24)
            gradient, hessian = 2.0**bits, 2.0 ** (bits - 2)
            shift = int(np.ceil(np.log2(rows * (weight / 4 * hessian + 1))))
            return cls(gradient, hessian, shift, (weight * gradient + 1) * 2.0**shift)
        scale = fixed_point(rows * (weight + 1), shape.parties)
        scale = min(scale, 2.0**24)
        return cls(scale, scale, 0, weight * scale + 1)


class Rows:
    """The rows of one party: bins, and per tree quantised gradients."""

    def __init__(self, blocks: list[Block], held_out: list[npt.NDArray[np.bool_]], bins: Bins) -> None:
        self.blocks = blocks
        pooled = pool(blocks)
        self.y = pooled.y.astype(np.float64)
        self.held = np.concatenate(held_out)
        self.bins = bins.transform(pooled.x)
        self.margin = np.zeros(len(self.y), dtype=np.float32)

    def drawn(self, seed: int, what: str, step: int) -> Floats:
        return np.concatenate([base.drawn(seed, block, what, step) for block in self.blocks])


def quantised(
    rows: Rows, scale: Scale, weight: float, part: float, seed: int, step: int
) -> tuple[Ints, Floats, Floats]:
    """Row numbers that a tree is grown on (`part` of those not held out), and their quantised gradients and hessians.

    Rounded up or down by a draw that belongs to the row: unbiased, and the same wherever the row stands.
    """
    used = ~rows.held
    if part < 1:
        used &= rows.drawn(seed, "rows", step) < part
    probability = base.sigmoid(rows.margin.astype(np.float64))
    weights = np.where(rows.y > 0, weight, 1.0)
    gradient = np.floor(
        (probability - rows.y) * weights * scale.gradient + rows.drawn(seed, "gradient", step)
    )
    hessian = np.floor(
        probability * (1 - probability) * weights * scale.hessian + rows.drawn(seed, "hessian", step)
    )
    return np.flatnonzero(used), gradient, hessian


@dataclass
class Node:
    """One that may be split."""

    number: int  # in the tree
    rows: Ints  # of this party
    histogram: Ints  # of all parties, shape (2, features, width)


def histograms(
    binned: npt.NDArray[np.uint8],
    columns: Ints,
    width: int,
    gradient: Floats,
    hessian: Floats,
    scale: Scale,
    groups: list[Ints],
) -> Vector:
    """Histograms of groups of rows: shape (groups, columns, width) flattened; with two slots, (2, ...)."""
    rows = np.concatenate(groups)
    offset = np.repeat(np.arange(len(groups)) * width, [len(group) for group in groups])
    if scale.shift:
        packed = gradient[rows] * 2.0**scale.shift + hessian[rows]
        # Doubles add up exactly below 2^53: so many rows at once.
        step = max(1, int(_EXACT // scale.row))
        parts = [(packed, step)]
    else:
        step = max(1, int(_EXACT // scale.row))
        parts = [(gradient[rows], step), (hessian[rows], step)]
    size = len(groups) * width
    out = np.zeros((len(parts), len(columns), size), dtype=np.int64)
    for index, column in enumerate(columns):
        cell = binned[column][rows] + offset
        for part, (values, at_once) in enumerate(parts):
            for start in range(0, len(rows), at_once):
                chunk = slice(start, start + at_once)
                out[part, index] += np.bincount(cell[chunk], values[chunk], size).astype(np.int64)
    return np.ascontiguousarray(
        out.reshape(len(parts), len(columns), len(groups), width).transpose(0, 2, 1, 3)
    ).ravel()


def unpack(total: Vector, groups: int, columns: int, width: int, scale: Scale) -> list[Ints]:
    """Per group the sums of gradients and hessians, shape (2, columns, width)."""
    slots = 1 if scale.shift else 2
    shaped = base.checked(total, slots * groups * columns * width, "histogram").reshape(
        slots, groups, columns, width
    )
    if slots == 2:
        return [shaped[:, group] for group in range(groups)]
    hessian = shaped[0] & ((1 << scale.shift) - 1)
    gradient = shaped[0] >> scale.shift
    return [np.stack([gradient[group], hessian[group]]) for group in range(groups)]


def totals(histogram: Ints, scale: Scale) -> tuple[float, float]:
    """Sum of gradients and hessians: of any feature, as each has every row in some bin."""
    return float(histogram[0, 0].sum()) / scale.gradient, float(histogram[1, 0].sum()) / scale.hessian


def _shrunk(g: Floats, l1: float) -> Floats:
    return np.sign(g) * np.maximum(np.abs(g) - l1, 0.0) if l1 else g


def leaf(g: float, h: float, settings: TreeSettings) -> float:
    shrunk = float(_shrunk(np.array(g), settings.l1))
    return (
        float(np.float32(-settings.learning_rate * shrunk / (h + settings.l2)))
        if h + settings.l2 > 0
        else 0.0
    )


@dataclass(frozen=True)
class Split:
    """Sums are of gradient and hessian."""

    feature: int
    edge: int
    missing_left: bool
    gain: float
    left: tuple[float, float]
    right: tuple[float, float]


def gains(
    left: Ints, everything: Ints, scale: Scale, settings: TreeSettings
) -> tuple[Floats, tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Of sums left of a split, shape (2, ...), of nodes whose rows sum up to `everything`: what each gains (-inf where it
    is not allowed), and sums of gradient and hessian left and right."""

    def score(g: Floats, h: Floats) -> Floats:
        shrunk = _shrunk(g, settings.l1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(h + settings.l2 > 0, shrunk * shrunk / (h + settings.l2), 0.0)

    right = everything - left
    gl, hl = left[0] / scale.gradient, left[1] / scale.hessian
    gr, hr = right[0] / scale.gradient, right[1] / scale.hessian
    parent = score(everything[0] / scale.gradient, everything[1] / scale.hessian)
    allowed = (hl >= settings.min_child_weight) & (hr >= settings.min_child_weight)
    gain = score(gl, hl) + score(gr, hr) - parent
    return np.where(allowed & (left[1] > 0) & (right[1] > 0), gain, -np.inf), (gl, hl), (gr, hr)


def worth(gain: float, settings: TreeSettings) -> bool:
    """Whether a split is made at all."""
    return gain > max(settings.gamma, 1e-9)


def best_splits(
    histograms: Ints, scale: Scale, settings: TreeSettings, bins: Bins, columns: Ints
) -> list[Split | None]:
    """The best split of each node, shape (nodes, 2, columns, width); ties go to the first feature and edge."""
    sums = np.cumsum(histograms[..., :-1], axis=-1)
    missing = histograms[..., -1:]
    everything = np.moveaxis(sums[..., -1:] + missing, 1, 0)
    valid = np.arange(sums.shape[-1])[None, :] < np.array([len(bins.edges[c]) for c in columns])[:, None]
    found, sides = [], []
    for left in (sums, sums + missing):  # missing values go right, or left
        gain, *side = gains(np.moveaxis(left, 1, 0), everything, scale, settings)
        found.append(np.where(valid, gain, -np.inf))
        sides.append(side)
    stacked = np.stack(found, axis=1)  # nodes, 2, columns, edges
    result: list[Split | None] = []
    for node in range(len(histograms)):
        flat = int(np.argmax(stacked[node]))
        way, column, edge = np.unravel_index(flat, stacked.shape[1:])
        best = float(stacked[node, way, column, edge])
        if not worth(best, settings):
            result.append(None)
            continue
        (gl, hl), (gr, hr) = sides[int(way)]
        at = (node, column, edge)
        result.append(
            Split(
                int(columns[column]),
                int(edge),
                bool(way),
                best,
                (float(gl[at]), float(hl[at])),
                (float(gr[at]), float(hr[at])),
            )
        )
    return result


def goes_left(rows: Rows, width: int, node: Node, split: Split) -> npt.NDArray[np.bool_]:
    """Which of a node's rows do."""
    return bins_left(rows.bins[split.feature][node.rows], split.edge, split.missing_left, width - 1)


def bins_left(
    numbers: npt.NDArray[np.uint8], edge: int, missing_left: bool, missing: int
) -> npt.NDArray[np.bool_]:
    """Which of these bins of a column are left of an edge; `missing` is the bin of missing values."""
    left = numbers <= edge
    if missing_left:
        left = left | (numbers == missing)
    return np.asarray(left)


def divide(
    tree: Tree,
    node: Node,
    split: Split,
    left_rows: npt.NDArray[np.bool_],
    threshold: float,
    settings: TreeSettings,
) -> tuple[Node, Node, bool]:
    """Split a node; the two children, and whether the left one is the smaller (by all rows' hessians)."""
    number = node.number
    left = tree.add(leaf(*split.left, settings), split.left[1])
    right = tree.add(leaf(*split.right, settings), split.right[1])
    tree.feature[number], tree.edge[number], tree.threshold[number] = split.feature, split.edge, threshold
    tree.missing_left[number], tree.gain[number] = split.missing_left, split.gain
    tree.left[number], tree.right[number], tree.value[number] = left, right, 0.0
    empty = np.zeros(0, dtype=np.int64)
    return (
        Node(left, node.rows[left_rows], empty),
        Node(right, node.rows[~left_rows], empty),
        split.left[1] <= split.right[1],
    )


def binned_values(tree: Tree, binned: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.float32]:
    """Leaf values of rows given by their bins, shape (features, rows)."""

    def to_left(node: int, rows: Ints) -> npt.NDArray[np.bool_]:
        numbers = binned[tree.feature[node]][rows]
        return bins_left(numbers, tree.edge[node], tree.missing_left[node], width - 1)

    return walk(tree, binned.shape[1], to_left)


def walk(
    tree: Tree, count: int, to_left: Callable[[int, Ints], npt.NDArray[np.bool_]]
) -> npt.NDArray[np.float32]:
    """Leaf values of `count` rows; `to_left` says of a node's rows which go left."""
    out = np.zeros(count, dtype=np.float32)
    stack = [(0, np.arange(count))]
    while stack:
        node, rows = stack.pop()
        if tree.feature[node] < 0:
            out[rows] = np.float32(tree.value[node])
            continue
        left = to_left(node, rows)
        stack += [(tree.left[node], rows[left]), (tree.right[node], rows[~left])]
    return out
