"""Vertical learning beside plain phe and XGBoost, in one run.

python benchmarks/vertical.py [--data ../shared/data] [--only paillier|trees|quality] [--encrypted-folds 1] [--large]

The quality of the other folds is that of our engine on the joined columns with the same first tree; the encrypted folds
check that the two are the same, bit for bit.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import xgboost
from phe import paillier as phe
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from federation.data import Block
from federation.models.growing import TreeSettings
from federation.models.trees import Grower
from federation.simulate import vertical
from federation.steps import one_by_one
from federation.vertical import drive, slots
from federation.vertical.holder import Holder, new_key
from federation.vertical.linear import LinearHolder, LinearPartner
from federation.vertical.partner import TreePartner
from federation.vertical.settings import LinearSettings
from nodes.workers import Workers
from protocols import paillier

QUALITY = TreeSettings(trees=30, depth=3, bins=32, learning_rate=0.3)


def row(what: str, mine: float, other: float | None, unit: str, target: str = "") -> None:
    """One line."""
    theirs, ratio = (f"{other:12.4g}", f"{mine / other:8.2f}") if other else (" " * 12, " " * 8)
    print(f"{what:66}{mine:12.4g}{theirs}{ratio}  {unit:8}{target}", flush=True)


def each(work, count: int) -> float:
    """CPU seconds of one of `count`."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / count


def arithmetic(rounds: int = 3) -> None:
    """Per core: encrypted, added, opened."""
    key = paillier.generate()
    modulus = key.public.encode()
    p, q = key.secret
    public = phe.PaillierPublicKey(p * q)
    private = phe.PaillierPrivateKey(public, p, q)
    list(key.encrypt([1]))  # tables
    found: dict[str, list[tuple[float, float]]] = {
        "encrypted": [],
        "added": [],
        "added in histograms": [],
        "opened": [],
    }
    randomiser = paillier.Randomiser(key.public)
    randomised = []
    for _ in range(rounds):
        mine = each(lambda: list(key.encrypt(range(1500))), 1500)
        theirs = each(lambda: [public.encrypt(i) for i in range(60)], 60)
        found["encrypted"].append((1 / mine, 1 / theirs))
        own, others = list(key.encrypt(range(500))), [public.encrypt(i) for i in range(50)] * 20
        mine = each(lambda own=own: key.public.add(own * 20), 10_000)

        def add(others=others) -> None:
            total = others[0]
            for other in others[1:]:
                total = total + other

        found["added"].append((1 / mine, 1 / each(add, len(others))))
        mine = each(lambda own=own: list(key.decrypt(own[:200])), 200)
        theirs = each(lambda others=others: [private.decrypt(other) for other in others[:200]], 200)
        found["opened"].append((1 / mine, 1 / theirs))
        randomised.append(1 / each(lambda own=own: [randomiser.randomise(c) for c in own], 500))
        # As a partner adds: each of 20,000 rows into a bin of each of ten columns, checks and preparation included.
        rows = np.random.default_rng(0).integers(0, 32, (10, 20_000)).astype(np.uint8)
        data_ = key.public.write(own * 40)

        def buckets(rows=rows, data_=data_) -> None:
            prepared = slots.split_chunk(modulus, paillier.BITS, data_)
            edges, missing = [31] * len(rows), [False] * len(rows)
            slots.bucket_chunk(modulus, paillier.BITS, prepared, [20_000], rows, edges, missing)

        found["added in histograms"].append((1 / each(buckets, rows.size), found["added"][-1][1]))
    targets = {"encrypted": "≥ 25", "added": "≥ 2", "opened": "", "added in histograms": "≥ 2"}
    for name, pairs in found.items():
        mine, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        row(
            f"ciphertexts {name} a second and core, 2,048 bits (plain phe)", mine, theirs, "/s", targets[name]
        )
    row("ciphertexts randomised by a partner a second and core", statistics.median(randomised), None, "/s")


def per_tree(rows: int, features: int, workers: Workers, trees: int = 3, target: str = "") -> None:
    """Both parties' work on this machine's cores, without the network."""
    rng = np.random.default_rng(0)
    x, other = (rng.normal(size=(rows, count)).astype(np.float32) for count in (10, features))
    y = (x[:, 0] + other[:, 0] + other[:, 1] + rng.logistic(size=rows) > 1).astype(np.uint8)
    settings = TreeSettings(trees=trees, depth=3, bins=32)
    key = new_key(b"benchmark", workers.stream, workers.count)
    partner = TreePartner(
        other, [f"p{i}" for i in range(features)], settings, b"benchmark", workers.stream, workers.count
    )
    stamps: list[float] = []
    holder = Holder(
        settings,
        [f"g{i}" for i in range(10)],
        ["p"],
        0,
        key,
        tell=lambda _: stamps.append(time.perf_counter()),
    )
    drive.together(holder.learn(Block("g", x, y)), [partner])
    stamps.append(time.perf_counter())
    seconds = np.diff(stamps)[1:]  # the first tree is the holder's alone
    row(
        f"{rows:,} rows × {features} partner columns, wall a tree, {workers.count} cores",
        float(np.median(seconds)),
        None,
        "s",
        target,
    )


def linear(workers: Workers, block: Block, names: list[str], x: np.ndarray, theirs: list[str]) -> None:
    """Wall seconds and quality on all rows."""
    key = new_key(b"benchmark", workers.stream, workers.count)
    partner = LinearPartner(x, theirs, LinearSettings(), b"benchmark", workers.stream)
    started = time.perf_counter()
    model = drive.together(LinearHolder(LinearSettings(), names, ["p"], key).learn(block), [partner])
    seconds = time.perf_counter() - started
    order = [theirs.index(name) for name in partner.model.features]
    score = model.margin(block.x, [partner.model.scores(x[:, order])])
    row(f"linear, {len(x):,} rows × {x.shape[1]} partner columns, 2 steps, wall", seconds, None, "s")
    row("linear, AUROC on its own rows", float(roc_auc_score(block.y, score)), None, "")


def load(folder: Path) -> tuple[Block, list[str], np.ndarray, list[str]]:
    """default_credit in two: the label holder's block, and the partner's columns about the same rows."""
    config = vertical.configure(
        {
            "data": folder / "default_credit_hetero_guest.csv",
            "partners": [folder / "default_credit_hetero_host.csv"],
        }
    )
    found = vertical.world(config, 0)
    return found.block, found.features, found.theirs[0], found.their_features[0]


def quality(folder: Path, encrypted: int, workers: Workers) -> None:
    """Five folds of default_credit."""
    block, names, x, theirs = load(folder)
    joined = np.concatenate([block.x, x], axis=1)
    flat = [*(f"g.{name}" for name in names), *(f"h.{name}" for name in theirs)]
    scores: dict[str, list[float]] = {}
    parameters = {
        "max_depth": 3,
        "eta": 0.3,
        "max_bin": 32,
        "tree_method": "hist",
        "objective": "binary:logistic",
    }
    for fold, (train, test) in enumerate(
        StratifiedKFold(5, shuffle=True, random_state=0).split(joined, block.y)
    ):
        whole = Block(block.name, joined[train], block.y[train])
        grower = Grower(QUALITY, flat, 0, 1, first=range(len(names)))
        (model,) = one_by_one([grower.learn([whole])])
        margin = model.margin(joined[test])
        if fold < encrypted:
            started = time.perf_counter()
            key = new_key(b"benchmark", workers.stream, workers.count)
            partner = TreePartner(x[train], theirs, QUALITY, b"benchmark", workers.stream, workers.count)
            mine = drive.together(Holder(QUALITY, names, ["p"], 0, key).learn(block.take(train)), [partner])
            same = (mine.margin(block.x[test], [partner.model.left(x[test])]) == margin).all()
            assert same, "the encrypted model differs from the joined one"
            row(
                f"fold {fold + 1}, encrypted: bit for bit the joined engine's; wall",
                time.perf_counter() - started,
                None,
                "s",
            )
        scores.setdefault("vertical", []).append(float(roc_auc_score(block.y[test], margin)))
        for arm, columns in (("joint", joined), ("guest", block.x), ("host", x)):
            booster = xgboost.train(
                parameters, xgboost.DMatrix(columns[train], block.y[train]), QUALITY.trees
            )
            score = booster.predict(xgboost.DMatrix(columns[test]))
            scores.setdefault(arm, []).append(float(roc_auc_score(block.y[test], score)))
    mean = {arm: statistics.mean(values) for arm, values in scores.items()}
    row(
        "default_credit, AUROC of five folds: vertical (XGBoost on all columns)",
        mean["vertical"],
        mean["joint"],
        "",
        "≥ joint − 0.003",
    )
    row("  XGBoost on the guest's columns alone, on the host's alone", mean["guest"], mean["host"], "")


def main() -> None:
    """All of it, or one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=("paillier", "trees", "linear", "quality"))
    parser.add_argument("--encrypted-folds", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="also 100,000 rows × 50 columns")
    given = parser.parse_args()
    print(f"{'':66}{'ours':>12}{'peer':>12}{'ratio':>8}")
    workers = Workers()
    try:
        if given.only in (None, "paillier"):
            arithmetic()
        if given.only in (None, "trees"):
            per_tree(30_000, 10, workers, target="≤ 15")
            if given.large:
                per_tree(100_000, 50, workers, trees=2)
        if given.only in (None, "linear"):
            block, names, x, theirs = load(given.data)
            linear(workers, block, names, x, theirs)
        if given.only in (None, "quality"):
            quality(given.data, given.encrypted_folds, workers)
    finally:
        workers.close()


if __name__ == "__main__":
    main()
