"""Local, federated and pooled models of each seed, measured on the same test rows."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from .. import metrics, steps
from ..data import Block, pool
from ..errors import DataError, JobError
from ..models import registry
from ..models.base import Model
from . import engines, worlds
from .config import SimulationConfig
from .worlds import World

Progress = Callable[[int, int, str], None]  # done, of, what
METRICS = ("auprc", "auroc", "recall_at_0_1_percent", "recall_at_1_percent", "calibration")
_CURVE = 200  # points of a stored curve


@dataclass
class Results:
    """Tidy rows: `scores` (seed, arm, bank, metric, value), `costs` (seed, bank, phase, seconds, bytes)."""

    scores: list[dict[str, Any]] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    banks: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: Model | None = None  # federated, of the first seed

    def add(self, seed: int, arm: str, bank: str, quality: metrics.Quality) -> None:
        """One model's quality."""
        for metric, value in quality.as_dict().items():
            self.scores.append({"seed": seed, "arm": arm, "bank": bank, "metric": metric, "value": value})

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """By arm and metric: mean over seeds (local: over banks first) and half the 95 % interval (Student's t)."""
        out: dict[str, dict[str, dict[str, float]]] = {}
        for arm in ("local", "federated", "pooled"):
            for metric in METRICS:
                by_seed: dict[int, list[float]] = {}
                for row in self.scores:
                    if row["arm"] == arm and row["metric"] == metric:
                        by_seed.setdefault(row["seed"], []).append(row["value"])
                means = [float(np.mean(values)) for values in by_seed.values()]
                if not means:
                    continue
                half = float("nan")
                if len(means) > 1:
                    half = float(
                        stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
                    )
                out.setdefault(arm, {})[metric] = {"mean": float(np.mean(means)), "half_width_95": half}
        return out


def run(config: SimulationConfig, progress: Progress) -> Results:
    """All seeds. Raises `LearningError`."""
    results = Results()
    for number, seed in enumerate(config.seeds):
        world = worlds.make(config, seed)
        _one_seed(config, world, seed, results, functools.partial(progress, number, len(config.seeds)))
    progress(len(config.seeds), len(config.seeds), "report")
    return results


def _one_seed(
    config: SimulationConfig, world: World, seed: int, results: Results, progress: Callable[[str], None]
) -> None:
    test = world.test
    for block in world.train:
        results.banks.append(
            {"seed": seed, "bank": block.name, "rows": len(block.y), "positives": int(block.y.sum())}
        )
    for block in world.train:
        progress(f"local {block.name}")
        try:
            model = _alone(config, world, [block], seed, 1)
        except JobError as error:
            results.notes.append(f"seed {seed}: {block.name} alone cannot learn: {error}")
            continue
        results.add(seed, "local", block.name, metrics.measure(test.y, model.predict(test.x)))
    progress("pooled")
    pooled = _alone(config, world, world.train, seed, len(world.train))
    score = pooled.predict(test.x)
    results.add(seed, "pooled", "", metrics.measure(test.y, score))
    _curves(results, seed, "pooled", test, score)
    started = time.perf_counter()
    model, costs = engines.run(config, world, seed, lambda label: progress(f"federated: {label}"))
    seconds = time.perf_counter() - started
    score = model.predict(test.x)
    results.add(seed, "federated", "", metrics.measure(test.y, score))
    _curves(results, seed, "federated", test, score)
    results.notes += [f"seed {seed}: {note}" for note in model.notes()]
    results.notes += _beaten(results, seed)
    if results.model is None:
        results.model = model
    for bank, cost in costs.items():
        for phase in ("compute", "cryptography", "waiting"):
            results.costs.append(
                {"seed": seed, "bank": bank, "phase": phase, "seconds": getattr(cost, phase), "bytes": 0}
            )
        for phase, size in (("sent", cost.sent), ("received", cost.received)):
            results.costs.append({"seed": seed, "bank": bank, "phase": phase, "seconds": 0.0, "bytes": size})
    results.costs.append({"seed": seed, "bank": "", "phase": "wall", "seconds": seconds, "bytes": 0})


def _beaten(results: Results, seed: int) -> list[str]:
    """What says so where the federation was no better than its best bank alone."""
    of_seed = [row for row in results.scores if row["seed"] == seed and row["metric"] == "auprc"]
    together = next(row["value"] for row in of_seed if row["arm"] == "federated")
    alone = [(row["value"], row["bank"]) for row in of_seed if row["arm"] == "local"]
    if not alone or max(alone)[0] <= together:
        return []
    value, bank = max(alone)
    return [
        f"seed {seed}: the federated model is worse than {bank} alone (AUPRC {together:.4f}, alone {value:.4f}): "
        "learning together does not pay with these settings"
    ]


def _alone(config: SimulationConfig, world: World, blocks: list[Block], seed: int, parties: int) -> Model:
    chosen = registry.settings_for(config.model, dict(config.settings))
    learner = registry.learner(config.model, chosen, blocks, world.features, seed, parties)
    if config.model == "mlp" and len(blocks) > 1:
        # One party with all rows: the average of one is its own.
        learner = registry.learner(config.model, chosen, [pool(blocks)], world.features, seed, 1)
    model = steps.one_by_one([learner])[0]
    if not isinstance(model, Model):
        raise DataError("the learner gave no model")
    return model


def _curves(results: Results, seed: int, arm: str, test: Block, score: "np.ndarray[Any, Any]") -> None:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(test.y, score)
    # Points at even steps of recall, which falls along the arrays.
    at = np.unique(np.searchsorted(-recall, -np.linspace(1, 0, _CURVE)).clip(0, len(recall) - 1))
    results.curves += [
        {
            "seed": seed,
            "arm": arm,
            "curve": "precision-recall",
            "x": float(recall[i]),
            "y": float(precision[i]),
        }
        for i in at
    ]
    for part in np.array_split(np.argsort(score, kind="stable"), min(10, len(score))):
        results.curves.append(
            {
                "seed": seed,
                "arm": arm,
                "curve": "calibration",
                "x": float(score[part].mean()),
                "y": float(test.y[part].mean()),
            }
        )
