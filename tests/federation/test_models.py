"""Models on secure sums: what comes out is what the pooled rows give, and what other libraries say."""

import json

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from federation import bins, data, metrics, steps
from federation.data import Block
from federation.errors import JobError
from federation.models import base, registry
from federation.models.growing import Scale
from federation.models.trees import Grower, TreeModel, TreeSettings
from tests.federation.rows import NAMES, blocks

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def grow(parts, parties=None, seed=0, **values):
    """All parties' models: `parts` is a list of lists of blocks, one list a party."""
    chosen = TreeSettings(**{"trees": 5, "depth": 3, "bins": 16, **values})
    names = [f"f{i}" for i in range(parts[0][0].x.shape[1])]
    learners = [Grower(chosen, names, seed, parties or len(parts)).learn(part) for part in parts]
    return steps.one_by_one(learners)


# -- bins ------------------------------------------------------------------------------------------------------------


@given(st.lists(FLOATS, min_size=2, max_size=50))
def test_keys_order_as_the_numbers_do_and_lead_back(values):
    numbers = np.array(values, dtype=np.float32)
    keys = bins.keys_of(numbers)
    for i, left in enumerate(numbers):
        assert bins.value_of(int(keys[i])) == left
        for j, right in enumerate(numbers):
            assert (keys[i] < keys[j]) == (left < right)


def test_zero_has_one_key():
    zero = np.array([0.0, -0.0], dtype=np.float32)
    assert len(set(bins.keys_of(zero).tolist())) == 1


@given(st.lists(FLOATS, min_size=1, max_size=300), st.integers(4, 256), st.integers(1, 4))
@settings(max_examples=60)
def test_edges_are_the_same_however_rows_are_dispersed_and_bins_are_at_most_as_many(values, most, banks):
    x = np.array(values, dtype=np.float32)[:, None]
    (pooled,) = steps.one_by_one([bins.find(x, most, floor=0)])
    for found in steps.one_by_one([bins.find(x[bank::banks], most, floor=0) for bank in range(banks)]):
        assert found.edges[0].tolist() == pooled.edges[0].tolist()
    edges = pooled.edges[0]
    assert len(edges) <= most - 2
    assert np.all(np.diff(edges) > 0)
    assert np.isfinite(edges).all()
    assert pooled.width <= 256


@pytest.mark.parametrize(
    "shape", ["normal", "lognormal", "few values", "negative", "constant", "one outlier"]
)
def test_bins_are_nearly_quantiles(shape):
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.normal(size=20_000),
        "lognormal": np.exp(rng.normal(size=20_000) * 4),
        "few values": rng.integers(0, 5, 20_000),
        "negative": -np.exp(rng.normal(size=20_000)),
        "constant": np.full(20_000, 3.5),
        "one outlier": np.append(rng.normal(size=19_999), 1e30),
    }[shape].astype(np.float32)
    (found,) = steps.one_by_one([bins.find(values[:, None], 32)])
    counts = np.bincount(found.transform(values[:, None])[0], minlength=32)
    distinct = len(np.unique(values))
    assert np.count_nonzero(counts) == min(distinct, 31)
    if distinct > 31:
        assert counts.max() < 3 * 20_000 / 31


def test_missing_values_have_the_last_bin_of_their_own():
    x = np.array([[1.0, np.nan], [np.nan, 2.0], [3.0, 4.0]], dtype=np.float32)
    (found,) = steps.one_by_one([bins.find(x, 8, floor=0)])
    numbers = found.transform(x)
    assert numbers[0, 1] == numbers[1, 0] == found.width - 1
    assert numbers[0, 0] < numbers[0, 2] < found.width - 1


# -- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rows": 0.7, "columns": 0.5},
        {"positive_weight": "balanced", "l1": 0.5, "gamma": 0.1},
        {"validation": 0.2, "patience": 2, "trees": 20},
        {"bins": 256, "depth": 6, "min_child_weight": 0.1},
    ],
)
@pytest.mark.parametrize("count", [3, 5])
def test_federated_trees_are_those_of_the_pooled_rows_bit_for_bit(values, count):
    parts = blocks(count)
    models = grow([[block] for block in parts], **values)
    (pooled,) = grow([parts], parties=count, **values)
    assert {model.to_bytes() for model in models} == {pooled.to_bytes()}
    assert models[0].trees


def test_two_slots_give_identical_trees_too(monkeypatch):
    parts = blocks(3)
    assert Scale.choose(base.Shape(10**6, 10**3, 0, 3), 1.0).shift > 0
    assert Scale.choose(base.Shape(10**8, 10**3, 0, 3), 1.0).shift == 0  # too many rows for one slot
    one = grow([[block] for block in parts])
    monkeypatch.setattr("federation.models.growing._ONE_SLOT_BITS", 99)
    models = grow([[block] for block in parts])
    (pooled,) = grow([parts], parties=3)
    assert models[0].to_bytes() == pooled.to_bytes() != one[0].to_bytes()


@pytest.mark.parametrize("rows", [2, 1_000, 24_000, 10**6, 10**8])
@pytest.mark.parametrize("parties", [3, 30])
@pytest.mark.parametrize("weight", [1.0, 300.0])
def test_the_largest_possible_histogram_stays_in_range(rows, parties, weight):
    scale = Scale.choose(base.Shape(rows, 1, 0, parties), weight)
    from protocols.sums import modular

    if scale.shift:
        largest = rows * (weight * scale.gradient + 1) * 2.0**scale.shift + 2.0**scale.shift
        assert rows * (weight / 4 * scale.hessian + 1) <= 2.0**scale.shift
    else:
        largest = rows * (weight * scale.gradient + 1)
    assert largest * parties < modular.HALF
    assert scale.gradient >= 2.0**8


def test_xgboost_loads_the_model_and_predicts_the_same(tmp_path):
    parts = blocks(3, rows=800)
    model = grow([[block] for block in parts], trees=20, depth=5)[0]
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model.to_xgboost()))
    booster = xgboost.Booster(model_file=path)
    x = blocks(1, rows=500, seed=9)[0].x  # with missing values
    matrix = xgboost.DMatrix(x, feature_names=NAMES, feature_types=["float"] * 5)
    assert np.abs(booster.predict(matrix) - model.predict(x)).max() < 1e-6
    assert booster.num_boosted_rounds() == 20
    used = {NAMES[f] for tree in model.trees for f in tree.feature if f >= 0}
    assert set(booster.get_score(importance_type="total_gain")) == used
    for name, gain in booster.get_score(importance_type="total_gain").items():
        assert model.importance()[name] == pytest.approx(gain, rel=1e-5)


def test_the_engine_is_as_good_as_xgboost():
    train, test = blocks(3, rows=4000), blocks(1, rows=4000, seed=5)[0]
    pooled = data.pool(train)
    ours = grow([[block] for block in train], trees=20, depth=4, bins=64)[0]
    matrix = xgboost.DMatrix(pooled.x, label=pooled.y)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 4, "tree_method": "hist", "max_bin": 64}, matrix, 20
    )
    peer = roc_auc_score(test.y, booster.predict(xgboost.DMatrix(test.x)))
    assert abs(roc_auc_score(test.y, ours.predict(test.x)) - peer) < 0.005


def test_rows_in_bins_and_in_numbers_reach_the_same_leaf():
    """The margin that training uses is the one that prediction gives."""
    parts = blocks(3)
    model = grow([[block] for block in parts], trees=6)[0]
    again = registry.read(model.to_bytes())
    assert isinstance(again, TreeModel)
    assert again.to_bytes() == model.to_bytes()
    longer = grow([[block] for block in parts], trees=7)[0]
    assert longer.to_document()["trees"][:6] == model.to_document()["trees"]
    (found,) = steps.one_by_one([bins.find(data.pool(parts).x, 16)])
    from federation.models import trees

    for tree in model.trees:
        x = data.pool(parts).x
        assert np.array_equal(
            trees._leaf_values(tree, x), trees.binned_values(tree, found.transform(x), found.width)
        )


def test_settings_matter():
    parts = [[block] for block in blocks(3)]
    plain = grow(parts)[0].hash()
    for values in (
        {"l2": 5.0},
        {"l1": 1.0},
        {"learning_rate": 0.3},
        {"min_child_weight": 20.0},
        {"rows": 0.5},
    ):
        assert grow(parts, **values)[0].hash() != plain, values
    assert grow(parts, seed=1)[0].hash() != plain
    heavy = grow(parts, min_child_weight=30.0)[0]
    covers = [c for tree in heavy.trees for c, f in zip(tree.cover, tree.feature, strict=True)]
    assert min(covers) >= 30.0


def test_early_stopping_keeps_the_best_trees():
    parts = [[block] for block in blocks(3, rows=150)]
    stopped = grow(parts, trees=200, depth=6, learning_rate=1.0, validation=0.3, patience=3)[0]
    assert 0 < len(stopped.trees) < 100


def test_a_bank_of_one_row_and_a_bank_without_positives_take_part():
    parts = blocks(3)
    parts[0] = parts[0].take(np.array([0]))
    parts[1] = Block("bank-1", parts[1].x, np.zeros_like(parts[1].y))
    models = grow([[block] for block in parts])
    (pooled,) = grow([parts], parties=3)
    assert models[0].to_bytes() == pooled.to_bytes()


@pytest.mark.parametrize("kind", ["trees", "linear", "mlp"])
def test_without_any_positive_at_all_the_job_says_so(kind):
    parts = [Block(b.name, b.x, np.zeros_like(b.y)) for b in blocks(3)]
    chosen = registry.settings_for(kind, {})
    with pytest.raises(JobError, match="0 of them positive: both classes are needed"):
        steps.one_by_one([registry.learner(kind, chosen, [b], NAMES, 0, 3) for b in parts])


# -- linear, MLP -----------------------------------------------------------------------------------------------------


def test_logistic_regression_agrees_with_scikit_learn():
    parts = blocks(3, rows=1500)
    chosen = registry.settings_for("linear", {"steps": 30, "l2": 2.0})
    model = steps.one_by_one([registry.learner("linear", chosen, [b], NAMES, 0, 3) for b in parts])[0]
    pooled = data.pool(parts)
    scaled = model.scale.apply(pooled.x)
    peer = LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=1000).fit(scaled, pooled.y)
    assert model.coefficients[1:] == pytest.approx(peer.coef_[0], abs=1e-3)
    assert model.coefficients[0] == pytest.approx(peer.intercept_[0], abs=1e-3)


def test_the_mlp_learns_what_a_line_cannot():
    rng = np.random.default_rng(0)
    parts = []
    for i in range(4):
        x = rng.normal(size=(2000, 5)).astype(np.float32)
        parts.append(Block(f"bank-{i}", x, (x[:, 0] * x[:, 1] > 0).astype(np.uint8)))
    test = parts.pop()
    scores = {}
    for kind, values in (("mlp", {"rounds": 15, "epochs": 2, "learning_rate": 0.01}), ("linear", {})):
        chosen = registry.settings_for(kind, values)
        models = steps.one_by_one([registry.learner(kind, chosen, [b], NAMES, 0, 3) for b in parts])
        assert len({model.hash() for model in models}) == 1
        again = registry.read(models[0].to_bytes())
        assert np.array_equal(again.predict(test.x), models[0].predict(test.x))
        scores[kind] = roc_auc_score(test.y, models[0].predict(test.x))
    assert scores["linear"] < 0.6
    assert scores["mlp"] > 0.9


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_recall_at_an_alert_rate_shares_ties_evenly():
    y = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], dtype=np.uint8)
    assert metrics.recall_at(y, np.linspace(1, 0, 10), 0.1) == 0.5
    assert metrics.recall_at(y, np.linspace(1, 0, 10), 0.2) == 1.0
    assert metrics.recall_at(y, np.zeros(10), 0.1) == pytest.approx(0.1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(1, 5)), min_size=2, max_size=40))
def test_areas_are_scikit_learns(rows):
    y, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(y)) < 2:
        return
    found = metrics.measure(y.astype(np.uint8), score / 6, weight.astype(float))
    assert found.auprc == pytest.approx(average_precision_score(y, score, sample_weight=weight))
    assert found.auroc == pytest.approx(roc_auc_score(y, score, sample_weight=weight))


def test_federated_metrics_are_near_the_exact_ones():
    parts = blocks(3, rows=3000)
    model = grow([[block] for block in parts])[0]
    pooled = data.pool(parts)
    exact = metrics.measure(pooled.y, model.predict(pooled.x)).as_dict()
    found = steps.one_by_one([metrics.federated(model, block.x, block.y) for block in parts])
    for quality in found:
        found_values = quality.as_dict()
        # Few trees give few different scores, and groups of equal size cut through ties.
        assert found_values.pop("calibration") == pytest.approx(exact["calibration"], abs=0.03)
        assert found_values == pytest.approx({k: exact[k] for k in found_values}, abs=0.01)


def test_calibration_of_a_true_probability_is_near_zero_and_of_a_shifted_one_is_not():
    rng = np.random.default_rng(0)
    probability = rng.random(50_000)
    y = (rng.random(50_000) < probability).astype(np.uint8)
    assert metrics.calibration_error(y, probability) < 0.01
    assert metrics.calibration_error(y, np.clip(probability + 0.2, 0, 1)) > 0.1


# -- what does not fit together ---------------------------------------------------------------------------------------


def test_different_settings_are_noticed_at_the_first_different_sum():
    parts = blocks(3)
    learners = [
        Grower(TreeSettings(trees=2, bins=16 + (i == 2)), NAMES, 0, 3).learn([block])
        for i, block in enumerate(parts)
    ]
    with pytest.raises(JobError, match="different sums"):
        steps.one_by_one(learners)


@pytest.mark.parametrize(
    ("data_", "message"),
    [
        (b"", "not a model file"),
        (b"[]", "not a model file"),
        (b'{"lianfang_model":"tree"}', "not known here"),
        (b'{"lianfang_model":"trees","version":2}', "version 1"),
        (b'{"lianfang_model":"trees","version":1}', "not a model file"),
    ],
)
def test_a_file_that_is_no_model_is_refused(data_, message):
    with pytest.raises(JobError, match=message):
        registry.read(data_)


def test_settings_out_of_range_are_named():
    with pytest.raises(JobError, match=r"trees\.depth"):
        registry.settings_for("trees", {"depth": 99})
    with pytest.raises(JobError, match="not one of trees, linear, mlp"):
        registry.settings_for("forest", {})


def toys():
    """Rows on which undamped Newton steps, or a scale from quantiles, went wrong."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(422, 3))
    yield "separable", x, (x[:, 0] + 0.1 * x[:, 1] > 0.4).astype(np.uint8)
    yield "few positives", x, (x[:, 0] > 2.0).astype(np.uint8)
    zeros = np.where(rng.random((3000, 2)) < 0.98, 0.0, rng.lognormal(3, 2, size=(3000, 2)))
    noise = rng.normal(size=3000)
    yield "mostly zeros", np.column_stack([zeros, noise]), (zeros[:, 0] + 5 * noise > 9).astype(np.uint8)
    amount = rng.lognormal(4, 1.5, size=(3000, 1))
    other = rng.normal(1.7e9, 1e5, size=(3000, 1))  # a time: large mean, small spread
    far = np.column_stack([amount, other, rng.random(3000) < 0.002])
    score = np.log(amount[:, 0]) + (other[:, 0] - 1.7e9) / 1e5 + rng.logistic(size=3000)
    yield "large mean", far, (score > 6).astype(np.uint8)
    for seed in (
        15,
        16,
        49,
    ):  # found by search: values beyond ten standard deviations decide, and were clipped
        drawn = np.random.default_rng(seed)
        tails = drawn.standard_cauchy((1_200, 10))
        logit = (tails - tails.mean(0)) / tails.std(0) @ drawn.normal(size=10) * 2
        chance = 1 / (1 + np.exp(np.quantile(logit, 0.8) - logit))
        yield f"heavy tails {seed}", tails, (drawn.random(1_200) < chance).astype(np.uint8)
    gap = rng.normal(size=(2000, 2))
    gap[rng.random((2000, 2)) < 0.3] = np.nan
    yield "missing", gap, (np.nan_to_num(gap[:, 0]) + rng.logistic(size=2000) > 1).astype(np.uint8)


@pytest.mark.parametrize(("name", "x", "y"), list(toys()), ids=[each[0] for each in toys()])
def test_the_linear_model_is_never_much_below_scikit_learns_plain_pipeline(name, x, y):
    x = x.astype(np.float32)
    half = np.arange(len(y)) % 2 == 0
    third = np.arange(int(half.sum())) % 3
    parts = [Block(f"b{i}", x[half][third == i], y[half][third == i]) for i in range(3)]
    names = [f"f{i}" for i in range(x.shape[1])]
    chosen = registry.settings_for("linear", {})
    model = steps.one_by_one([registry.learner("linear", chosen, [b], names, 0, 3) for b in parts])[0]
    assert model.notes() == []
    imputed = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(max_iter=5000))
    peer = roc_auc_score(y[~half], imputed.fit(x[half], y[half]).predict_proba(x[~half])[:, 1])
    assert roc_auc_score(y[~half], model.predict(x[~half])) >= peer - 0.005


def test_a_linear_model_of_before_is_read_with_its_narrower_limit():
    parts = blocks(3, rows=300)
    model = steps.one_by_one(
        [registry.learner("linear", registry.settings_for("linear", {}), [b], NAMES, 0, 3) for b in parts]
    )[0]
    document = json.loads(model.to_bytes())
    assert document["scaling"].pop("limit") == 100.0
    old = registry.read(json.dumps(document).encode())
    far = np.full((1, len(NAMES)), 1e30, dtype=np.float32)
    assert np.array_equal(old.scale.apply(far), np.full((1, len(NAMES)), 10.0))
    assert np.array_equal(model.scale.apply(far), np.full((1, len(NAMES)), 100.0))
    for limit in (0, -1, float("inf"), "x"):
        document["scaling"]["limit"] = limit
        with pytest.raises(JobError):
            registry.read(json.dumps(document).encode())


def test_a_linear_model_that_has_not_converged_says_so():
    parts = blocks(3, rows=300)
    chosen = registry.settings_for("linear", {"steps": 1})
    model = steps.one_by_one([registry.learner("linear", chosen, [b], NAMES, 0, 3) for b in parts])[0]
    assert "not converged" in model.notes()[0]
    assert registry.read(model.to_bytes()).notes() == model.notes()
