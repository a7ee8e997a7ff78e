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
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import bins as binning
from ..bins import Bins
from ..data import Block, Matrix
from ..errors import JobError
from ..steps import Ask, Learner, fixed_point
from . import base
from .base import Model, Scores, Shape
from .growing import (
    Ints,
    Node,
    Rows,
    Scale,
    Tree,
    TreeSettings,
    best_splits,
    binned_values,
    divide,
    goes_left,
    histograms,
    leaf,
    quantised,
    totals,
    unpack,
)


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


class Grower:
    """Grows the trees of one party. `blocks` is one bank's block, or all of them for the pooled reference."""

    def __init__(
        self,
        settings: TreeSettings,
        features: Sequence[str],
        seed: int,
        parties: int,
        keep: Callable[[TreeModel], None] = lambda _model: None,
        first: Sequence[int] | None = None,
    ) -> None:
        """`keep` is given the model after each tree: what stays where a job ends early.

        `first` are the columns that the first tree may use, where not all.
        """
        self._settings, self._features, self._seed, self._parties = settings, tuple(features), seed, parties
        self._keep, self._first = keep, first

    def learn(self, blocks: list[Block]) -> Learner[TreeModel]:
        """The learner of this party; the same model comes out at each."""
        settings = self._settings
        held = [base.drawn(self._seed, block, "validation") < settings.validation for block in blocks]
        shape = yield from base.find_shape(blocks, held, self._parties)
        if settings.validation and not shape.held_out:
            raise JobError("no rows are held out for validation: too few rows")
        train_x = np.concatenate([b.x[~out] for b, out in zip(blocks, held, strict=True)])
        bins = yield from binning.find(train_x, settings.bins)
        rows = Rows(blocks, held, bins)
        weight = base.weight_of_positives(settings.positive_weight, shape)
        bias = float(np.float32(base.weighted(shape, weight).base))
        rows.margin[:] = np.float32(bias)
        scale = Scale.choose(shape, max(weight, 1.0))
        model = TreeModel(self._features, bias, [], bins.width)
        best, best_at = np.inf, 0
        for step in range(settings.trees):
            tree = yield from self._tree(rows, bins, scale, weight, step)
            model.trees.append(tree)
            self._keep(model)
            rows.margin += binned_values(tree, rows.bins, bins.width)
            if settings.validation:
                loss = yield from self._loss(rows, shape, step)
                if loss < best:
                    best, best_at = loss, len(model.trees)
                elif len(model.trees) - best_at >= settings.patience:
                    break
        if settings.validation:
            del model.trees[best_at:]
        return model

    def _loss(self, rows: Rows, shape: Shape, step: int) -> Learner[float]:
        margin = rows.margin[rows.held].astype(np.float64)
        loss = np.logaddexp(0, margin) - rows.y[rows.held] * margin
        scale = min(2.0**20, fixed_point(shape.held_out * 100.0, self._parties))
        # Rounded per row, so that the sum is the same however the rows are dispersed.
        total = yield Ask(
            np.array([np.rint(np.minimum(loss, 100.0) * scale).astype(np.int64).sum()]),
            f"tree {step + 1} validation",
        )
        return int(total[0]) / scale / shape.held_out

    def _tree(self, rows: Rows, bins: Bins, scale: Scale, weight: float, step: int) -> Learner[Tree]:
        settings = self._settings
        columns = self._columns(step)
        used, gradient, hessian = quantised(rows, scale, weight, settings.rows, self._seed, step)
        build = functools.partial(histograms, rows.bins, columns, bins.width, gradient, hessian, scale)
        tree = Tree()
        total = yield Ask(build([used]), f"tree {step + 1} level 1")
        (histogram,) = unpack(total, 1, len(columns), bins.width, scale)
        g, h = totals(histogram, scale)
        level = [Node(tree.add(leaf(g, h, settings), h), used, histogram)]
        for depth in range(settings.depth):
            splits = best_splits(np.stack([node.histogram for node in level]), scale, settings, bins, columns)
            children: list[tuple[Node, Node, bool]] = []
            for node, split in zip(level, splits, strict=True):
                if split is not None:
                    to_left = goes_left(rows, bins.width, node, split)
                    threshold = float(bins.edges[split.feature][split.edge])
                    children.append(divide(tree, node, split, to_left, threshold, settings))
            if not children or depth + 1 == settings.depth:
                break
            asked = [small_left for _, _, small_left in children]
            small = [
                left if is_left else right for (left, right, _), is_left in zip(children, asked, strict=True)
            ]
            total = yield Ask(build([node.rows for node in small]), f"tree {step + 1} level {depth + 2}")
            found = unpack(total, len(small), len(columns), bins.width, scale)
            parents = [node.histogram for node, split in zip(level, splits, strict=True) if split is not None]
            level = []
            for (left, right, is_left), histogram, parent in zip(children, found, parents, strict=True):
                (left if is_left else right).histogram = histogram
                (right if is_left else left).histogram = parent - histogram
                level += [left, right]
        return tree

    def _columns(self, step: int) -> Ints:
        if step == 0 and self._first is not None:
            return np.array(self._first, dtype=np.int64)
        count = len(self._features)
        if self._settings.columns >= 1:
            return np.arange(count)
        rng = base.public_rng(self._seed, "columns", step)
        return np.sort(rng.permutation(count)[: max(1, round(count * self._settings.columns))])
