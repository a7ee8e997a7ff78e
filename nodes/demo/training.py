"""The demonstration's training: three banks, rows of their own, one model."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

from federation import data, generate, metrics, steps
from federation.data import Block
from federation.models import registry
from federation.split import train_and_test

from ..contracts import draft as drafts
from .network import Network

BANKS = ("bank-a", "bank-b", "bank-c")
_SETTINGS = {"trees": 8, "depth": 3, "learning_rate": 0.4}
_ROWS, _RATE = 4_000, 0.02
LABEL = "fraud"


def write_rows(network: Network, seed: int) -> dict[str, tuple[Block, Block]]:
    """Each bank's rows as CSV files in its own folder, named in its configuration."""
    rows = {}
    for bank in BANKS:
        whole = generate.accounts(_ROWS, _RATE, seed, bank)
        train, test = train_and_test(whole, 0.3, seed)
        rows[bank] = (train, test)
        folder = network.node(bank) / "rows"
        folder.mkdir(mode=0o700)
        for name, block in (("train", train), ("test", test)):
            _write(folder / f"{name}.csv", block)
        config = network.node(bank) / "node.toml"
        section = '\n[learn.datasets.accounts]\npath = "rows/train.csv"\ntest = "rows/test.csv"\n'
        config.write_text(config.read_text("utf-8") + section, "utf-8")
    return rows


def _write(path: Path, block: Block) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*generate.FEATURES, LABEL])
        for values, label in zip(block.x.tolist(), block.y.tolist(), strict=True):
            writer.writerow(["" if math.isnan(value) else repr(value) for value in values] + [label])


def train(network: Network) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write the job, agree on it, launch it; how it ended and each bank's model file."""
    job = network.folder / "training.json"
    settings = [word for name, value in _SETTINGS.items() for word in ("--set", f"{name}={value}")]
    network.run(
        BANKS[0],
        *("train", "new", "--name", "accounts", "--dataset", "accounts", "--label", LABEL),
        *("--features", ",".join(generate.FEATURES), "--out", str(job), *settings),
    )
    network.agree(drafts.over_job(job.read_bytes(), 30, 365, time.time()), BANKS[0])
    outcome = json.loads(network.run("coordinator", "train", "run", str(job), "--json").stdout)
    found = {bank: sorted(network.node(bank).glob("data/models/accounts-*/model.json")) for bank in BANKS}
    return outcome, {bank: files[0] for bank, files in found.items() if files}


def compare(rows: dict[str, tuple[Block, Block]], model: Path) -> dict[str, metrics.Quality]:
    """Each bank's own model and the common one, on all banks' test rows."""
    test = data.pool([block for _, block in rows.values()])
    chosen = registry.settings_for("trees", dict(_SETTINGS))
    found = {}
    for bank, (own, _) in rows.items():
        (alone,) = steps.one_by_one([registry.learner("trees", chosen, [own], generate.FEATURES, 0, 1)])
        found[bank] = metrics.measure(test.y, alone.predict(test.x))
    found[""] = metrics.measure(test.y, registry.read(model.read_bytes()).predict(test.x))
    return found
