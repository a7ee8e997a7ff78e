"""Search for data on which the federated linear model is worse than scikit-learn's plain pipeline on the pooled rows.

    .venv/bin/python benchmarks/linear.py [SETS]

Ten kinds of columns (heavy tails, mostly zeros, rare flags, collinear, missing, …), 200 to 4,000 rows, 2 to 24 columns, three banks.
Prints the worst differences in AUROC on rows of nobody's training, and how many sets lie below -0.005.
"""

import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from federation import steps
from federation.data import Block
from federation.models import registry

Floats = npt.NDArray[np.float64]
Draw = np.random.Generator
COLUMNS: dict[str, Callable[[Draw, Floats], Floats]] = {
    "normal": lambda _, z: z,
    "lognormal": lambda draw, z: np.exp(z * draw.uniform(0.5, 2.5)),
    "sparse": lambda draw, z: z * (draw.random(z.shape) < 0.05),
    "flags": lambda draw, z: (z > draw.normal(size=z.shape[1]) * 1.5).astype(float),
    "cauchy": lambda draw, z: draw.standard_cauchy(z.shape),
    "counts": lambda draw, z: draw.poisson(draw.uniform(0.1, 30, size=z.shape[1]), size=z.shape).astype(
        float
    ),
    "collinear": lambda draw, z: np.column_stack(
        [w := z @ draw.normal(size=(z.shape[1],) * 2), w[:, 0] * 1.0001]
    ),
    "tiny and rare": lambda draw, z: np.where(draw.random(z.shape) < 0.98, 0, np.exp(z * 2) * 1e-6),
    "missing": lambda draw, z: np.where(draw.random(z.shape) < 0.2, np.nan, z),
    "far scales": lambda draw, z: z * 10.0 ** draw.integers(-8, 8, size=z.shape[1]),
}


def draw_set(seed: int) -> tuple[str, Floats, npt.NDArray[np.uint8]]:
    """(kind, rows, labels)."""
    draw = np.random.default_rng(seed)
    kind = str(draw.choice(list(COLUMNS)))
    rows, columns = int(draw.integers(200, 4_000)), int(draw.integers(2, 25))
    x = COLUMNS[kind](draw, draw.normal(size=(rows, columns)))
    scaled = np.nan_to_num((x - np.nanmean(x, axis=0)) / (np.nanstd(x, axis=0) + 1e-30))
    logit = scaled @ draw.normal(size=x.shape[1]) * draw.uniform(0.2, 3)
    logit = np.clip(logit - np.quantile(logit, 1 - draw.uniform(0.02, 0.5)), -30, 30)
    return kind, x, (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)


def difference(x: Floats, y: npt.NDArray[np.uint8]) -> float:
    """AUROC of three banks' model less the peer's, on every second row."""
    half = np.arange(len(y)) % 2 == 0
    bank = np.arange(int(half.sum())) % 3
    small = x.astype(np.float32)
    blocks = [Block(f"bank {i}", small[half][bank == i], y[half][bank == i]) for i in range(3)]
    names = [f"f{i}" for i in range(x.shape[1])]
    chosen = registry.settings_for("linear", {})
    model = steps.one_by_one([registry.learner("linear", chosen, [each], names, 0, 3) for each in blocks])[0]
    peer = make_pipeline(
        SimpleImputer(keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(tol=1e-8, max_iter=20_000),
    ).fit(small[half], y[half])
    ours, theirs = model.predict(small[~half]), peer.predict_proba(small[~half])[:, 1]
    return float(roc_auc_score(y[~half], ours) - roc_auc_score(y[~half], theirs))


def main() -> None:
    """Print the worst ten."""
    found = []
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 400):
        kind, x, y = draw_set(seed)
        if min(np.bincount(y[::2], minlength=2).min(), np.bincount(y[1::2], minlength=2).min()) >= 10:
            found.append((difference(x, y), seed, kind, x.shape))
    found.sort()
    for less, seed, kind, shape in found[:10]:
        print(f"{less:+.4f}  seed {seed}, {kind}, {shape[0]:,} rows, {shape[1]} columns")
    below = sum(each[0] < -0.005 for each in found)
    print(f"{len(found)} sets; {below} below -0.005; median {np.median([each[0] for each in found]):+.5f}")


if __name__ == "__main__":
    main()
