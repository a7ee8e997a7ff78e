"""Histogram gradient-boosted trees on secure sums.

Per row, gradient and hessian are quantised to integers by stochastic rounding with a draw that belongs to the row,
so that sums are exact and the trees are those of the same engine on the pooled rows, bit for bit. Both share one slot
of a sum while the rows allow it. Per level the banks contribute the histograms of one of each two siblings; the
other is the parent's less its. All banks then choose the same splits from the same sums.

Quantised training with stochastic rounding: Shi et al., "Quantized training of gradient boosting decision trees",
NeurIPS 2022. Split gains and leaf values: Chen and Guestrin, "XGBoost", KDD 2016, §2.2 and §3.4 (missing values).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from protocols.sums import modular
from protocols.sums.modular import Vector

from .. import bins as binning
from ..bins import Bins
from ..data import Block, Matrix, pool
from ..errors import JobError
from ..steps import Ask, Learner, fixed_point
from . import base
from .base import Model, Scores, Shape

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ONE_SLOT_BITS = 8  # fewer bits for a gradient than this and gradient and hessian get a slot each
_EXACT = 2.0**53


class TreeSettings(BaseModel):
    """Names and meanings are XGBoost's where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trees: int = Field(100, ge=1, le=5000)
    depth: int = Field(6, ge=1, le=12)
    learning_rate: float = Field(0.3, gt=0, le=1)
    bins: int = Field(64, ge=4, le=256, description="per feature, one of them for missing values")
    l2: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    gamma: float = Field(0.0, ge=0, description="least gain of a split")
    min_child_weight: float = Field(1.0, ge=0)
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


class TreeModel(Model):
    """Boosted trees: the margin is `bias` plus each tree's leaf, summed as float32 like XGBoost's."""

    kind = "trees"

    def __init__(self, features: Sequence[str], bias: float, trees: list[Tree], bins: int) -> None:
        self.features = tuple(features)
        self.bias, self.trees, self.bins = bias, trees, bins

    def margin(self, x: Matrix) -> Scores:
        """Log-odds, from float32 features with NaN for missing values."""
        total = np.full(len(x), np.float32(self.bias), dtype=np.float32)
        for tree in self.trees:
            total += _leaf_values(tree, x)
        return total.astype(np.float64)

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "bias": self.bias,
            "bins": self.bins,
            "trees": [tree.document() for tree in self.trees],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "TreeModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        trees = [Tree(**tree) for tree in document["trees"]]
        for tree in trees:
            tree.check(len(document["features"]))
        bias = float(base.numbers(document["bias"], ()))
        return cls(document["features"], bias, trees, int(document["bins"]))

    def importance(self) -> dict[str, float]:
        """Total gain of each feature's splits."""
        gains = dict.fromkeys(self.features, 0.0)
        for tree in self.trees:
            for feature, gain in zip(tree.feature, tree.gain, strict=True):
                if feature >= 0:
                    gains[self.features[feature]] += gain
        return gains

    def to_xgboost(self) -> dict[str, Any]:
        """A document that `xgboost.Booster.load_model` reads (JSON format, version 3.2)."""
        return {
            "version": [3, 2, 0],
            "learner": {
                "attributes": {},
                "feature_names": list(self.features),
                "feature_types": ["float"] * len(self.features),
                "gradient_booster": {
                    "name": "gbtree",
                    "model": {
                        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
                        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(self.trees))},
                        "iteration_indptr": list(range(len(self.trees) + 1)),
                        "tree_info": [0] * len(self.trees),
                        "trees": [
                            _xgboost_tree(index, tree, len(self.features))
                            for index, tree in enumerate(self.trees)
                        ],
                    },
                },
                "learner_model_param": {
                    "base_score": f"[{float(base.sigmoid(np.array(self.bias))):.9E}]",
                    "boost_from_average": "0",
                    "num_class": "0",
                    "num_feature": str(len(self.features)),
                    "num_target": "1",
                },
                "objective": {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}},
            },
        }


def _xgboost_tree(index: int, tree: Tree, features: int) -> dict[str, Any]:
    count = len(tree.feature)
    parents = [2147483647] * count
    for node, (left, right) in enumerate(zip(tree.left, tree.right, strict=True)):
        if left >= 0:
            parents[left] = parents[right] = node
    leaf = [feature < 0 for feature in tree.feature]
    return {
        "id": index,
        "base_weights": tree.value,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [int(each) for each in tree.missing_left],
        "left_children": tree.left,
        "right_children": tree.right,
        "loss_changes": tree.gain,
        "parents": parents,
        "split_conditions": [
            v if is_leaf else t for v, t, is_leaf in zip(tree.value, tree.threshold, leaf, strict=True)
        ],
        "split_indices": [max(feature, 0) for feature in tree.feature],
        "split_type": [0] * count,
        "sum_hessian": tree.cover,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(count),
            "size_leaf_vector": "1",
        },
    }


def _leaf_values(tree: Tree, x: Matrix) -> npt.NDArray[np.float32]:
    node = np.zeros(len(x), dtype=np.int64)
    feature, threshold = np.array(tree.feature), np.array(tree.threshold, dtype=np.float32)
    left, right, missing = np.array(tree.left), np.array(tree.right), np.array(tree.missing_left)
    rows = np.arange(len(x))
    while True:
        inner = feature[node[rows]] >= 0
        rows = rows[inner]
        if not rows.size:
            break
        at = node[rows]
        values = x[rows, feature[at]]
        goes_left = np.where(np.isnan(values), missing[at], values < threshold[at])
        node[rows] = np.where(goes_left, left[at], right[at])
    return np.array(tree.value, dtype=np.float32)[node]


# -- growing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """How a row's gradient and hessian become integers: |g| <= `weight`, 0 <= h <= `weight`/4."""

    gradient: float
    hessian: float
    shift: int  # bits of the hessian's part; 0 where each has a slot of its own
    row: float  # largest packed value of one row

    @classmethod
    def choose(cls, shape: Shape, weight: float) -> "_Scale":
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


class _Rows:
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


@dataclass
class _Node:
    number: int  # in the tree
    rows: Ints  # of this party
    histogram: Ints  # of all parties, shape (2, features, width)


class Grower:
    """Grows the trees of one party. `blocks` is one bank's block, or all of them for the pooled reference."""

    def __init__(
        self,
        settings: TreeSettings,
        features: Sequence[str],
        seed: int,
        parties: int,
        keep: Callable[[TreeModel], None] = lambda _model: None,
    ) -> None:
        """`keep` is given the model after each tree: what stays where a job ends early."""
        self._settings, self._features, self._seed, self._parties = settings, tuple(features), seed, parties
        self._keep = keep

    def learn(self, blocks: list[Block]) -> Learner[TreeModel]:
        """The learner of this party; the same model comes out at each."""
        settings = self._settings
        held = [base.drawn(self._seed, block, "validation") < settings.validation for block in blocks]
        shape = yield from base.find_shape(blocks, held, self._parties)
        if settings.validation and not shape.held_out:
            raise JobError("no rows are held out for validation: too few rows")
        train_x = np.concatenate([b.x[~out] for b, out in zip(blocks, held, strict=True)])
        bins = yield from binning.find(train_x, settings.bins)
        rows = _Rows(blocks, held, bins)
        weight = base.weight_of_positives(settings.positive_weight, shape)
        # Under class weights the start is the weighted rate's.
        weighted = Shape(
            int(shape.rows - shape.positives + weight * shape.positives),
            int(weight * shape.positives),
            shape.held_out,
            shape.parties,
        )
        bias = float(np.float32(weighted.base))
        rows.margin[:] = np.float32(bias)
        scale = _Scale.choose(shape, max(weight, 1.0))
        model = TreeModel(self._features, bias, [], bins.width)
        best, best_at = np.inf, 0
        for step in range(settings.trees):
            tree = yield from self._tree(rows, bins, scale, weight, step)
            model.trees.append(tree)
            self._keep(model)
            rows.margin += _binned_values(tree, rows.bins, bins.width)
            if settings.validation:
                loss = yield from self._loss(rows, shape, step)
                if loss < best:
                    best, best_at = loss, len(model.trees)
                elif len(model.trees) - best_at >= settings.patience:
                    break
        if settings.validation:
            del model.trees[best_at:]
        return model

    def _loss(self, rows: _Rows, shape: Shape, step: int) -> Learner[float]:
        margin = rows.margin[rows.held].astype(np.float64)
        loss = np.logaddexp(0, margin) - rows.y[rows.held] * margin
        scale = min(2.0**20, fixed_point(shape.held_out * 100.0, self._parties))
        # Rounded per row, so that the sum is the same however the rows are dispersed.
        total = yield Ask(
            np.array([np.rint(np.minimum(loss, 100.0) * scale).astype(np.int64).sum()]),
            f"tree {step + 1} validation",
        )
        return int(total[0]) / scale / shape.held_out

    def _quantised(self, rows: _Rows, scale: _Scale, weight: float, step: int) -> tuple[Ints, Floats, Floats]:
        """Row numbers in use, and their quantised gradients and hessians."""
        used = ~rows.held
        if self._settings.rows < 1:
            used &= rows.drawn(self._seed, "rows", step) < self._settings.rows
        probability = base.sigmoid(rows.margin.astype(np.float64))
        weights = np.where(rows.y > 0, weight, 1.0)
        gradient = np.floor(
            (probability - rows.y) * weights * scale.gradient + rows.drawn(self._seed, "gradient", step)
        )
        hessian = np.floor(
            probability * (1 - probability) * weights * scale.hessian
            + rows.drawn(self._seed, "hessian", step)
        )
        return np.flatnonzero(used), gradient, hessian

    def _tree(self, rows: _Rows, bins: Bins, scale: _Scale, weight: float, step: int) -> Learner[Tree]:
        settings = self._settings
        columns = self._columns(step)
        used, gradient, hessian = self._quantised(rows, scale, weight, step)
        build = functools.partial(_histograms, rows.bins, columns, bins.width, gradient, hessian, scale)
        tree = Tree()
        total = yield Ask(build([used]), f"tree {step + 1} level 1")
        (histogram,) = _unpack(total, 1, len(columns), bins.width, scale)
        g, h = _totals(histogram, scale)
        level = [_Node(tree.add(_leaf(g, h, settings), h), used, histogram)]
        for depth in range(settings.depth):
            splits = _best_splits(
                np.stack([node.histogram for node in level]), scale, settings, bins, columns
            )
            children: list[tuple[_Node, _Node, bool]] = []
            for node, split in zip(level, splits, strict=True):
                if split is not None:
                    children.append(_divide(tree, node, split, rows, bins, settings))
            if not children or depth + 1 == settings.depth:
                break
            asked = [small_left for _, _, small_left in children]
            small = [
                left if is_left else right for (left, right, _), is_left in zip(children, asked, strict=True)
            ]
            total = yield Ask(build([node.rows for node in small]), f"tree {step + 1} level {depth + 2}")
            found = _unpack(total, len(small), len(columns), bins.width, scale)
            parents = [node.histogram for node, split in zip(level, splits, strict=True) if split is not None]
            level = []
            for (left, right, is_left), histogram, parent in zip(children, found, parents, strict=True):
                (left if is_left else right).histogram = histogram
                (right if is_left else left).histogram = parent - histogram
                level += [left, right]
        return tree

    def _columns(self, step: int) -> Ints:
        count = len(self._features)
        if self._settings.columns >= 1:
            return np.arange(count)
        rng = base.public_rng(self._seed, "columns", step)
        return np.sort(rng.permutation(count)[: max(1, round(count * self._settings.columns))])


def _histograms(
    binned: npt.NDArray[np.uint8],
    columns: Ints,
    width: int,
    gradient: Floats,
    hessian: Floats,
    scale: _Scale,
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


def _unpack(total: Vector, groups: int, columns: int, width: int, scale: _Scale) -> list[Ints]:
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


def _totals(histogram: Ints, scale: _Scale) -> tuple[float, float]:
    """Sum of gradients and hessians: of any feature, as each has every row in some bin."""
    return float(histogram[0, 0].sum()) / scale.gradient, float(histogram[1, 0].sum()) / scale.hessian


def _shrunk(g: Floats, l1: float) -> Floats:
    return np.sign(g) * np.maximum(np.abs(g) - l1, 0.0) if l1 else g


def _leaf(g: float, h: float, settings: TreeSettings) -> float:
    shrunk = float(_shrunk(np.array(g), settings.l1))
    return (
        float(np.float32(-settings.learning_rate * shrunk / (h + settings.l2)))
        if h + settings.l2 > 0
        else 0.0
    )


@dataclass(frozen=True)
class _Split:
    feature: int
    edge: int
    missing_left: bool
    gain: float
    left: tuple[float, float]
    right: tuple[float, float]


def _best_splits(
    histograms: Ints, scale: _Scale, settings: TreeSettings, bins: Bins, columns: Ints
) -> list[_Split | None]:
    """The best split of each node, shape (nodes, 2, columns, width); ties go to the first feature and edge."""
    sums = np.cumsum(histograms[..., :-1], axis=-1)
    missing = histograms[..., -1:]
    everything = sums[..., -1:] + missing
    valid = np.arange(sums.shape[-1])[None, :] < np.array([len(bins.edges[c]) for c in columns])[:, None]

    def floats(part: Ints) -> tuple[Floats, Floats]:
        return part[:, 0] / scale.gradient, part[:, 1] / scale.hessian

    def score(g: Floats, h: Floats) -> Floats:
        shrunk = _shrunk(g, settings.l1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(h + settings.l2 > 0, shrunk * shrunk / (h + settings.l2), 0.0)

    parent = score(*floats(everything))
    gains, sides = [], []
    for left in (sums, sums + missing):  # missing values go right, or left
        right = everything - left
        (gl, hl), (gr, hr) = floats(left), floats(right)
        gain = score(gl, hl) + score(gr, hr) - parent
        allowed = valid & (hl >= settings.min_child_weight) & (hr >= settings.min_child_weight)
        gains.append(np.where(allowed & (left[:, 1] > 0) & (right[:, 1] > 0), gain, -np.inf))
        sides.append(((gl, hl), (gr, hr)))
    stacked = np.stack(gains, axis=1)  # nodes, 2, columns, edges
    result: list[_Split | None] = []
    for node in range(len(histograms)):
        flat = int(np.argmax(stacked[node]))
        way, column, edge = np.unravel_index(flat, stacked.shape[1:])
        best = float(stacked[node, way, column, edge])
        if not best > max(settings.gamma, 1e-9):
            result.append(None)
            continue
        (gl, hl), (gr, hr) = sides[int(way)]
        at = (node, column, edge)
        result.append(
            _Split(
                int(columns[column]),
                int(edge),
                bool(way),
                best,
                (float(gl[at]), float(hl[at])),
                (float(gr[at]), float(hr[at])),
            )
        )
    return result


def _divide(
    tree: Tree, node: _Node, split: _Split, rows: _Rows, bins: Bins, settings: TreeSettings
) -> tuple[_Node, _Node, bool]:
    """Split a node; the two children, and whether the left one is the smaller (by all banks' hessians)."""
    number = node.number
    column = rows.bins[split.feature][node.rows]
    goes_left = column <= split.edge
    if split.missing_left:
        goes_left |= column == bins.width - 1
    left = tree.add(_leaf(*split.left, settings), split.left[1])
    right = tree.add(_leaf(*split.right, settings), split.right[1])
    tree.feature[number], tree.edge[number] = split.feature, split.edge
    tree.threshold[number] = float(bins.edges[split.feature][split.edge])
    tree.missing_left[number], tree.gain[number] = split.missing_left, split.gain
    tree.left[number], tree.right[number], tree.value[number] = left, right, 0.0
    empty = np.zeros(0, dtype=np.int64)
    return (
        _Node(left, node.rows[goes_left], empty),
        _Node(right, node.rows[~goes_left], empty),
        split.left[1] <= split.right[1],
    )


def _binned_values(tree: Tree, binned: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.float32]:
    """Leaf values of rows given by their bins, shape (features, rows)."""
    out = np.zeros(binned.shape[1], dtype=np.float32)
    stack = [(0, np.arange(binned.shape[1]))]
    while stack:
        node, rows = stack.pop()
        feature = tree.feature[node]
        if feature < 0:
            out[rows] = np.float32(tree.value[node])
            continue
        column = binned[feature][rows]
        goes_left = column <= tree.edge[node]
        if tree.missing_left[node]:
            goes_left |= column == width - 1
        stack += [(tree.left[node], rows[goes_left]), (tree.right[node], rows[~goes_left])]
    return out
