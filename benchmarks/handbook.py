"""The Fraud Detection Handbook's transactions: shipped defaults beside those of version 0.1.0, the best bank alone, and XGBoost.

    .venv/bin/python benchmarks/handbook.py TRANSACTIONS

TRANSACTIONS is CSV or Parquet with the columns of the Handbook's transformed data set (github.com/Fraud-Detection-Handbook/
simulated-data-transformed; its files are pickles, one a day, to be put together). Trained on 25 to 31 July 2018, tested on
8 to 14 August, as the Handbook does; customers belong to three banks. Average precision on all banks' test rows.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from federation import steps
from federation.data import Block
from federation.models import registry
from federation.models.base import Model

FEATURES = [
    "TX_AMOUNT",
    "TX_DURING_WEEKEND",
    "TX_DURING_NIGHT",
    *(
        f"{who}_{what}_{days}DAY_WINDOW"
        for who, whats in (("CUSTOMER_ID", ("NB_TX", "AVG_AMOUNT")), ("TERMINAL_ID", ("NB_TX", "RISK")))
        for what in whats
        for days in (1, 7, 30)
    ),
]
BEFORE = {"trees": 20, "depth": 4, "learning_rate": 0.3, "bins": 64, "min_child_weight": 1.0}
FIRST, DAYS, GAP = "2018-07-25", 7, 7
SHARES = {"evenly": (1, 1, 1), "6 : 3 : 1": (6, 3, 1)}


def read(path: Path) -> pa.Table:
    """Parquet or CSV."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path)
    return pyarrow.csv.read_csv(path)


def block(table: pa.Table, rows: "np.ndarray[tuple[int], np.dtype[np.bool_]]", name: str) -> Block:
    """Some rows of the table."""
    x = np.column_stack([table[each].to_numpy().astype(np.float32)[rows] for each in FEATURES])
    return Block(name, x, table["TX_FRAUD"].to_numpy().astype(np.uint8)[rows])


def learn(kind: str, blocks: list[Block], **values: float) -> Model:
    """A model of these banks, sums in the clear."""
    settings = registry.settings_for(kind, values)  # type: ignore[arg-type]
    learners = [registry.learner(kind, settings, [each], FEATURES, 0, len(blocks)) for each in blocks]
    return steps.one_by_one(learners)[0]


def main() -> None:
    """Print a row a split and model."""
    table = read(Path(sys.argv[1]))
    day = table["TX_DATETIME"].to_numpy().astype("datetime64[D]")
    first = np.datetime64(FIRST)
    training = (day >= first) & (day < first + DAYS)
    testing = (day >= first + DAYS + GAP) & (day < first + 2 * DAYS + GAP)
    customer = table["CUSTOMER_ID"].to_numpy().astype(np.int64)
    test = block(table, testing, "test")
    print(f"{training.sum():,} training rows, {int(test.y.sum()):,} of {len(test.y):,} test rows fraud")
    print(f"{'trees, AP':<16}{'shipped':>10}{'0.1.0':>10}{'best alone':>12}{'pooled':>10}{'XGBoost':>10}")
    pooled = block(table, training, "all")

    def quality(model: Model) -> float:
        return float(average_precision_score(test.y, model.predict(test.x)))

    peer = xgboost.XGBClassifier().fit(pooled.x, pooled.y).predict_proba(test.x)[:, 1]
    one = quality(learn("trees", [pooled]))
    for name, shares in SHARES.items():
        edges = np.cumsum(shares)
        bank = np.searchsorted(edges, customer % edges[-1], side="right")
        banks = [block(table, training & (bank == i), f"bank {i}") for i in range(3)]
        found = (
            quality(learn("trees", banks)),
            quality(learn("trees", banks, **BEFORE)),
            max(quality(learn("trees", [each])) for each in banks),
            one,
            float(average_precision_score(test.y, peer)),
        )
        print(f"{name:<16}" + "".join(f"{each:>{12 if i == 2 else 10}.3f}" for i, each in enumerate(found)))
        linear = learn("linear", banks)
        plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(pooled.x, pooled.y)
        ours, theirs = (
            float(roc_auc_score(test.y, score))
            for score in (linear.predict(test.x), plain.predict_proba(test.x)[:, 1])
        )
        print(f"{'':<16}linear, AUROC: {ours:.4f}, scikit-learn on the pooled rows {theirs:.4f}")


if __name__ == "__main__":
    main()
