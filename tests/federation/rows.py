"""Rows for tests."""

import numpy as np

from federation.data import Block


def blocks(count=3, rows=400, features=5, seed=0, missing=0.1, rate=0.3):
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        size = rows + 37 * index
        x = rng.normal(size=(size, features)).astype(np.float32)
        x[:, 0] = rng.integers(0, 4, size)
        if features > 3:
            x[:, 3] = np.round(np.exp(3 * x[:, 3]), 2)
        margin = x[:, 1] * 1.5 + (x[:, 0] == 2) * 2 - (x[:, 2] > 0.5) * x[:, 1]
        y = (rng.random(size) < 1 / (1 + np.exp(-margin - np.log(rate / (1 - rate))))).astype(np.uint8)
        x[rng.random(x.shape) < missing] = np.nan
        out.append(Block(f"bank-{index}", x, y))
    return out


NAMES = [f"f{i}" for i in range(5)]
