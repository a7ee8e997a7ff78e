"""Trees with the shipped defaults beside those of version 0.1.0, the best bank alone, and XGBoost, untuned.

    .venv/bin/python benchmarks/defaults.py

Rows of three banks with rare fraud (generated), and UCI's credit defaults. Average precision on rows of no bank's training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xgboost
from sklearn.metrics import average_precision_score

from federation import data, generate, split, steps
from federation.data import Block, pool
from federation.models import registry
from federation.models.growing import TreeSettings

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
BEFORE = {"trees": 20, "depth": 4, "learning_rate": 0.3, "bins": 64, "min_child_weight": 1.0}
SEEDS = (1, 2, 3)


def worlds() -> Iterator[tuple[str, list[Block], Block]]:
    """(name, training rows of each bank, test rows)."""
    for rate in (0.005, 0.02):
        for seed in SEEDS:
            parts = [split.train_and_test(each, 0.3, seed) for each in generate.banks(3, 8_000, rate, seed)]
            yield (
                f"generated, {rate:.1%} fraud",
                [train for train, _ in parts],
                pool([test for _, test in parts]),
            )
    table = data.read_table(SHARED / "default_credit_homo_guest.csv")
    names = data.feature_names(table, "y", ["id"])
    parts_ = ("guest", "host_1", "host_2")
    banks = [data.load(SHARED / f"default_credit_homo_{part}.csv", names, "y", part) for part in parts_]
    yield "credit defaults", banks, data.load(SHARED / "default_credit_homo_test.csv", names, "y", "test")


def quality(blocks: list[Block], test: Block, **values: float) -> float:
    """Average precision of a model of these banks."""
    names = [f"f{i}" for i in range(test.x.shape[1])]
    settings = TreeSettings(**values)  # type: ignore[arg-type]
    learners = [registry.learner("trees", settings, [each], names, 0, len(blocks)) for each in blocks]
    model = steps.one_by_one(learners)[0]
    return float(average_precision_score(test.y, model.predict(test.x)))


def main() -> None:
    """Print a row a data set: means over seeds."""
    rows: dict[str, list[list[float]]] = {}
    for name, train, test in worlds():
        pooled = pool(train)
        peer = xgboost.XGBClassifier().fit(pooled.x, pooled.y).predict_proba(test.x)[:, 1]
        rows.setdefault(name, []).append(
            [
                quality(train, test),
                quality(train, test, **BEFORE),
                max(quality([each], test) for each in train),
                float(average_precision_score(test.y, peer)),
            ]
        )
    print(f"{'average precision':<24}{'shipped':>10}{'0.1.0':>10}{'best alone':>12}{'XGBoost':>10}")
    for name, each in rows.items():
        shipped, before, alone, peer = np.mean(each, axis=0)
        print(f"{name:<24}{shipped:>10.3f}{before:>10.3f}{alone:>12.3f}{peer:>10.3f}")


if __name__ == "__main__":
    main()
