"""What a job computes at a party, and what it leaves there: the same model and model card at every bank."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federation import metrics, stats, steps
from federation.data import Block
from federation.errors import DataError, LearningError
from federation.job import JobDescriptor
from federation.metrics import Quality
from federation.models import registry
from federation.models.base import Model
from federation.models.trees import TreeModel
from federation.steps import Ask, Learner

from ..files import write_atomic


@dataclass(frozen=True)
class Trained:
    """A model, how good it is over all banks' test rows, and what it was trained on."""

    model: Model
    rows: int
    positives: int
    quality: Quality | None
    test_rows: int


@dataclass
class Kept:
    """What is there so far: finished trees stay where a job ends early."""

    model: Model | None = None
    rows: int = 0
    positives: int = 0


def training(job: JobDescriptor, block: Block, test: Block | None, kept: Kept) -> Learner[Trained]:
    """The learner of one bank for a training job."""

    def keep(model: Model) -> None:
        kept.model = model

    own = [len(block.y), int(block.y.sum()), len(test.y) if test is not None else 0]
    total = yield Ask(np.array(own, dtype=np.int64), "size")
    kept.rows, kept.positives = int(total[0]), int(total[1])
    model = yield from registry.learner(
        job.model, job.model_settings(), [block], job.features, job.seed, len(job.parties), keep
    )
    quality = None
    if test is not None:
        quality = yield from metrics.federated(model, test.x, test.y)
    return Trained(model, int(total[0]), int(total[1]), quality, int(total[2]))


@dataclass(frozen=True)
class Alone:
    """The common model beside one of this bank's own rows, both measured on this bank's own test rows.

    It is nobody's business but the bank's: nothing of it is sent, and the card, which is alike at all banks, has it not.
    """

    rows: int  # test rows
    together: Quality | None
    alone: Quality | None
    trouble: str = ""  # why there is nothing to compare

    @property
    def loses(self) -> bool:
        """Whether this bank is better off alone."""
        return bool(self.together and self.alone and self.alone.auprc > self.together.auprc)

    def said(self) -> str:
        """What a person is told; empty where learning together pays or nothing is known."""
        if not (self.loses and self.together and self.alone):
            return ""
        return (
            "WARNING: a model of this bank's own rows alone is better on its own test rows "
            f"(AUPRC {self.alone.auprc:.4f}, together {self.together.auprc:.4f}): learning together does not pay here"
        )

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "test_rows": self.rows,
            "together": self.together.as_dict() if self.together else None,
            "alone": self.alone.as_dict() if self.alone else None,
            "better_alone": self.loses,
            "trouble": self.trouble,
        }


def compare_alone(job: JobDescriptor, block: Block, test: Block | None, trained: Trained) -> Alone:
    """Train on this bank's rows alone, with the job's settings, and measure both models on its test rows.

    Says why where it has no test rows, or too few of a class to learn from or to measure by.
    """
    if test is None:
        return Alone(0, None, None, "this bank has no test rows of its own: learn.datasets.NAME.test")
    try:
        learner = registry.learner(job.model, job.model_settings(), [block], job.features, job.seed, 1)
        own = steps.one_by_one([learner])[0]
        if not isinstance(own, Model):
            raise DataError("the learner gave no model")
        together = metrics.measure(test.y, trained.model.predict(test.x))
        return Alone(len(test.y), together, metrics.measure(test.y, own.predict(test.x)))
    except LearningError as error:
        return Alone(len(test.y), None, None, str(error))


def statistics(job: JobDescriptor, own: Mapping[str, int]) -> Learner[dict[str, int]]:
    """The learner of one party for counts by category."""
    return stats.counts(job.categories, own)


def card(job: JobDescriptor, trained: Trained, cohort: tuple[str, ...], ended: str = "") -> dict[str, Any]:
    """The model card: nothing in it differs between banks. `ended` says why a job ended before its last tree."""
    return {
        "ended_early": ended or None,
        "lianfang_model_card": 1,
        "job": {"name": job.name, "hash": job.hash().hex(), "seed": job.seed, "dataset": job.dataset},
        "model": {
            "kind": job.model,
            "sha256": trained.model.hash(),
            "settings": job.model_settings().model_dump(mode="json"),
            "features": list(job.features),
            "label": job.label,
        },
        "data": {"rows": trained.rows, "positives": trained.positives, "test_rows": trained.test_rows},
        # Rounded, as elementary functions differ in the last bits between processors.
        "quality": {name: round(value, 6) for name, value in trained.quality.as_dict().items()}
        if trained.quality
        else None,
        "quality_note": "over all banks' test rows, from summed counts on a grid of 2,000 scores",
        "cohort": list(cohort),
        "privacy": {
            "sums": "one-time masks under BFV; the coordinator sees no update, sum, model or metric",
            "minimum_cohort": job.minimum,
            "differential_privacy": None,
            "leaks": "global sums and the model itself, to the members of the cohort",
        },
        "code": job.code,
        "importance": trained.model.importance(),
    }


def save_kept(folder: Path, job: JobDescriptor, kept: Kept, cohort: tuple[str, ...], why: str) -> Path | None:
    """The trees that were finished when a job ended early, marked as such; None where there are none."""
    if kept.model is None:
        return None
    return save_model(folder, job, Trained(kept.model, kept.rows, kept.positives, None, 0), cohort, why)


def save_model(
    folder: Path, job: JobDescriptor, trained: Trained, cohort: tuple[str, ...], ended: str = ""
) -> Path:
    """Write model and card into a folder of the job's own; the folder."""
    target = folder / f"{job.name}-{job.hash().hex()[:12]}{'-partial' if ended else ''}"
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(target / "model.json", trained.model.to_bytes(), 0o600)
    if isinstance(trained.model, TreeModel):
        write_atomic(target / "model.xgboost.json", json.dumps(trained.model.to_xgboost()).encode(), 0o600)
    document = card(job, trained, cohort, ended)
    write_atomic(
        target / "card.json", (json.dumps(document, indent=2, sort_keys=True) + "\n").encode(), 0o600
    )
    return target


def save_alone(target: Path, found: Alone) -> None:
    """Write the comparison beside the model, for this bank."""
    write_atomic(target / "alone.json", (json.dumps(found.document(), indent=2) + "\n").encode(), 0o600)


def digest(result: Trained | dict[str, int]) -> bytes:
    """SHA-256 of a model, or of statistics: the same at every party."""
    if isinstance(result, Trained):
        return hashlib.sha256(result.model.to_bytes()).digest()
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).digest()


def save_counts(folder: Path, job: JobDescriptor, counts: dict[str, int], cohort: tuple[str, ...]) -> Path:
    """Write statistics as JSON; the file."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{job.name}-{job.hash().hex()[:12]}.json"
    contributors = sorted(set(cohort) - set(job.observers))
    document = {
        "name": job.name,
        "since": job.since,
        "until": job.until,
        "contributors": len(contributors),
        "counts": counts,
    }
    write_atomic(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), 0o600)
    return path
