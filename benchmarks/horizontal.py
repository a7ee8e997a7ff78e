"""Horizontal learning: quality and cost beside XGBoost, in one run. `--only quality|cost|growth|deployed`.

Rows of all banks are worked on by one core in turn, as in a simulation; XGBoost has one thread. Ratios and medians count.
"""

import argparse
import itertools
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import xgboost

from federation import data, generate, metrics, steps
from federation.data import Block
from federation.models.trees import Grower, TreeSettings
from federation.rooms import LocalRoom
from federation.simulate.engines import Keys, party_id, secure_job
from federation.split import train_and_test
from protocols.sums.members import Member

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CREDIT = [f"x{i}" for i in range(23)]


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print as a Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|---" + "|---:" * (len(header) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def timed(learner, marks):
    """The learner, noting when each tree begins."""
    total = None
    while True:
        try:
            ask = next(learner) if total is None else learner.send(total)
        except StopIteration as end:
            marks.append(time.perf_counter())
            return end.value
        if re.fullmatch(r"tree \d+ level 1", ask.label):
            marks.append(time.perf_counter())
        total = yield ask


def federate(blocks: list[Block], settings: TreeSettings, names: list[str], lock: str, seed: int = 0):
    """(model, seconds per tree, costs by bank)."""
    marks: list[float] = []
    learners = {}
    for index, block in enumerate(blocks):
        learner = Grower(settings, names, seed, len(blocks)).learn([block])
        learners[block.name] = timed(learner, marks) if index == 0 else learner
    if lock == "clear":
        models = steps.one_by_one(list(learners.values()))
        costs = {}
    else:
        keys = {block.name: Keys.generate() for block in blocks}
        job = secure_job(b"\x01" * 32, keys, "full" if lock == "masks+BFV" else "masks")
        members = {party_id(n): Member(job, party_id(n), key.signing, key.sealing) for n, key in keys.items()}
        found, costs = LocalRoom(job, members).run({party_id(n): each for n, each in learners.items()})
        models = list(found.values())
    return models[0], [b - a for a, b in itertools.pairwise(marks)], costs


def xgb(block: Block, settings: TreeSettings, seed: int = 0) -> xgboost.Booster:
    """XGBoost `hist` with the same settings, one thread."""
    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": settings.depth,
        "eta": settings.learning_rate,
        "max_bin": settings.bins,
        "nthread": 1,
        "seed": seed,
        "subsample": settings.rows,
        "colsample_bytree": settings.columns,
    }
    return xgboost.train(parameters, xgboost.DMatrix(block.x, label=block.y), settings.trees)


def quality() -> None:
    """default_credit in three banks, and rare fraud at unlike banks; five seeds."""
    parts = ("guest", "host_1", "host_2")
    blocks = [data.load(SHARED / f"default_credit_homo_{part}.csv", CREDIT, "y", part) for part in parts]
    test = data.load(SHARED / "default_credit_homo_test.csv", CREDIT, "y", "test")
    found: dict[str, list[float]] = {
        "federated": [],
        "pooled XGBoost": [],
        **{f"{p} alone": [] for p in parts},
    }
    for seed in range(5):
        chosen = TreeSettings(trees=50, depth=4, learning_rate=0.15, rows=0.8)
        model, _, _ = federate(blocks, chosen, CREDIT, "masks+BFV", seed)
        found["federated"].append(metrics.measure(test.y, model.predict(test.x)).auroc)
        peer = xgb(data.pool(blocks), chosen, seed).predict(xgboost.DMatrix(test.x)).astype(float)
        found["pooled XGBoost"].append(metrics.measure(test.y, peer).auroc)
        for part, block in zip(parts, blocks, strict=True):
            (alone,) = steps.one_by_one([Grower(chosen, CREDIT, seed, 1).learn([block])])
            found[f"{part} alone"].append(metrics.measure(test.y, alone.predict(test.x)).auroc)
    rows = [[name, f"{np.mean(v):.4f}", f"{np.std(v, ddof=1):.4f}"] for name, v in found.items()]
    table("default_credit_homo, AUROC, five seeds", ["", "mean", "s.d."], rows)
    gap = np.mean(found["federated"]) - np.mean(found["pooled XGBoost"])
    print(f"\nfederated - pooled XGBoost: {gap:+.4f} (to reach: >= -0.002)")
    ratios, scores = [], []
    for seed in range(5):
        world = [train_and_test(block, 0.3, seed) for block in generate.banks(5, 40_000, 0.003, seed)]
        train, tests = [a for a, _ in world], data.pool([b for _, b in world])
        chosen = TreeSettings(trees=40, depth=4, learning_rate=0.2)
        names = list(generate.FEATURES)
        model, _, _ = federate(train, chosen, names, "masks+BFV", seed)
        ours = metrics.measure(tests.y, model.predict(tests.x)).auprc
        (pooled,) = steps.one_by_one([Grower(chosen, names, seed, len(train)).learn(train)])
        same = metrics.measure(tests.y, pooled.predict(tests.x)).auprc
        peer = xgb(data.pool(train), chosen, seed).predict(xgboost.DMatrix(tests.x)).astype(float)
        other = metrics.measure(tests.y, peer).auprc
        alone = []
        for block in train:
            (own,) = steps.one_by_one([Grower(chosen, names, seed, 1).learn([block])])
            alone.append(metrics.measure(tests.y, own.predict(tests.x)).auprc)
        ratios.append((ours / same, ours / other))
        scores.append([f"{seed}", *(f"{v:.4f}" for v in (np.mean(alone), max(alone), ours, same, other))])
    header = ["seed", "local, mean", "local, best", "federated", "pooled, same engine", "pooled XGBoost"]
    table("0.3 % fraud, five unlike banks of 40,000, AUPRC", header, scores)
    same, other = np.mean(ratios, axis=0)
    print(f"\nfederated / pooled: {same:.3f} same engine, {other:.3f} XGBoost (to reach: >= 0.98)")


def made(count: int, rows: int, features: int, seed: int = 0) -> list[Block]:
    """Rows without meaning but with something to learn; `rows` in all."""
    rng = np.random.default_rng(seed)
    blocks = []
    for index in range(count):
        x = rng.normal(size=(rows // count, features)).astype(np.float32)
        y = rng.random(len(x)) < 1 / (1 + np.exp(4 - x[:, 0] * x[:, 1] - x[:, 2]))
        blocks.append(Block(f"b{index}", x, y.astype(np.uint8)))
    return blocks


def per_tree_xgb(blocks: list[Block], settings: TreeSettings) -> float:
    """Seconds per tree of XGBoost on the pooled rows, without making its bins."""
    block = data.pool(blocks)
    matrix = xgboost.QuantileDMatrix(block.x, label=block.y, max_bin=settings.bins, nthread=1)
    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": settings.depth,
        "max_bin": settings.bins,
        "nthread": 1,
    }
    times = []
    for _ in range(3):
        started = time.perf_counter()
        xgboost.train(parameters, matrix, settings.trees)
        times.append((time.perf_counter() - started) / settings.trees)
    return statistics.median(times)


def cost() -> None:
    """Seconds per tree, and the cryptography of a wide job."""
    names = [f"f{i}" for i in range(30)]
    blocks = made(3, 1_000_000, 30)
    chosen = TreeSettings(trees=4, depth=6, bins=64)
    found = {"XGBoost, pooled, one thread": per_tree_xgb(blocks, chosen)}
    for lock in ("clear", "masks", "masks+BFV"):
        _, seconds, _ = federate(blocks, chosen, names, lock)
        found[lock] = statistics.median(seconds)
    rows = [[name, f"{value:.3f}", f"{value / found['clear']:.2f}"] for name, value in found.items()]
    table("30 features x 64 bins x depth 6, 3 banks, 10^6 rows in all", ["", "s a tree", "of clear"], rows)
    ratio = found["clear"] / found["XGBoost, pooled, one thread"]
    full = found["masks+BFV"] / found["clear"]
    print(f"\nmasks+BFV / clear {full:.2f} (to reach <= 3); clear / XGBoost {ratio:.1f} (to reach <= 12)")
    names = [f"f{i}" for i in range(100)]
    chosen = TreeSettings(trees=3, depth=6, bins=256)
    _, _, costs = federate(made(3, 90_000, 100), chosen, names, "masks+BFV")
    _, _, before = federate(made(3, 90_000, 100), chosen.model_copy(update={"trees": 1}), names, "masks+BFV")
    rows = []
    for name, each in costs.items():
        first = before[name]
        rows.append(
            [
                name.rpartition("/")[2],
                f"{(each.cryptography - first.cryptography) / 2:.2f}",
                f"{(each.sent - first.sent) / 2e6:.1f}",
            ]
        )
    header = ["bank", "cryptography, s a tree (<= 0.9)", "MB up a tree (<= 25)"]
    table("100 features x 256 bins x depth 6, 3 banks", header, rows)


def growth() -> None:
    """How seconds per tree grow, masks+BFV."""
    rows = []
    for banks, size, features in (
        (3, 30_000, 30),
        (10, 30_000, 30),
        (30, 30_000, 30),
        (3, 30_000, 100),
        (3, 30_000, 300),
        (3, 300_000, 30),
        (3, 1_000_000, 30),
    ):
        chosen = TreeSettings(trees=3, depth=6, bins=64)
        blocks = made(banks, size, features)
        _, seconds, costs = federate(blocks, chosen, [f"f{i}" for i in range(features)], "masks+BFV")
        sent = statistics.median(each.sent for each in costs.values()) / chosen.trees / 1e6
        each_bank = statistics.median(seconds) / banks
        rows.append(
            [
                str(banks),
                f"{size:,}",
                str(features),
                f"{statistics.median(seconds):.2f}",
                f"{each_bank:.2f}",
                f"{sent:.1f}",
            ]
        )
    header = [
        "banks",
        "rows in all",
        "features",
        "s a tree, all banks on one core",
        "s a tree and bank",
        "MB up a tree and bank",
    ]
    table("Growth, depth 6, 64 bins, masks+BFV", header, rows)


def deployed() -> None:
    """30 trees of depth 6 at three banks: real processes, mutual TLS, Flower."""
    from nodes.contracts import draft as drafts
    from nodes.demo.network import Network

    network = Network(Path(tempfile.mkdtemp(prefix="lf-bench-")), learning=True)
    parts = {"bank-a": "guest", "bank-b": "host_1", "bank-c": "host_2"}
    try:
        network.start()
        network.start_learning("coordinator", *parts)
        for bank, part in parts.items():
            path = network.node(bank) / "node.toml"
            rows = SHARED / f"default_credit_homo_{part}.csv"
            path.write_text(path.read_text() + f'\n[learn.datasets.credit]\npath = "{rows}"\n')
        job = network.folder / "job.json"
        network.run(
            "bank-a",
            *("train", "new", "--name", "bench", "--dataset", "credit", "--label", "y", "--no-test"),
            *("--features", ",".join(CREDIT), "--out", str(job), "--set", "trees=30", "--set", "depth=6"),
        )
        network.agree(drafts.over_job(job.read_bytes(), 30, 365, time.time()), "bank-a")
        while any("SuperNode ID" not in network.log(f"{bank}-learn").read_text() for bank in parts):
            time.sleep(0.5)
        import json

        outcome = json.loads(network.run("coordinator", "train", "run", str(job), "--json").stdout)
        said = re.findall(
            r"(\d+) sums; computing ([\d.]+) s, cryptography ([\d.]+) s, waiting ([\d.]+) s",
            network.log("bank-a-learn").read_text(),
        )[-1]
        sums, compute, cryptography, waiting = (float(each) for each in said)
        inside = compute + cryptography + waiting
        table(
            "Deployed: 30 trees, depth 6, 3 banks x 8,000 rows, 23 features, on this machine",
            [
                "wall, s",
                "of which in sums, s",
                "Flower and start, s",
                "sums",
                "ms a sum",
                "bank: computing",
                "cryptography",
                "waiting",
            ],
            [
                [
                    f"{outcome['seconds']:.1f}",
                    f"{inside:.1f}",
                    f"{outcome['seconds'] - inside:.1f}",
                    f"{sums:.0f}",
                    f"{inside / sums * 1000:.0f}",
                    f"{compute:.1f}",
                    f"{cryptography:.1f}",
                    f"{waiting:.1f}",
                ]
            ],
        )
    finally:
        network.stop()
        shutil.rmtree(network.folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("quality", "cost", "growth", "deployed"))
    only = parser.parse_args().only
    for part in (quality, cost, growth, deployed):
        if only in (None, part.__name__):
            part()
