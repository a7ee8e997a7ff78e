"""What a vertical job leaves at each side: its part of the model, and a card that says of which."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lianfang.v1 import vertical_pb2 as pb

from federation.job import JobDescriptor
from federation.metrics import Quality
from federation.models.base import Part, Scores, sigmoid
from federation.vertical import registry
from federation.vertical.holder import HolderModel
from protocols.errors import DecodeError

from ..errors import Refused
from ..files import write_atomic

LEAST_ROWS = 50
SCORED = 10_000  # rows in one call at most
_REPLY = 500_000  # bytes of an answer at most


@dataclass(frozen=True)
class Trained:
    """A side's part; `model` is the SHA-256 of the label holder's, by which both know it."""

    part: Part
    model: str
    rows: int
    positives: int
    quality: Quality | None
    test_rows: int


def folder(models: Path, job: JobDescriptor, ended: bool = False) -> Path:
    """Of a job's own."""
    return models / f"{job.name}-{job.hash().hex()[:12]}{'-partial' if ended else ''}"


def save(models: Path, job: JobDescriptor, trained: Trained, ended: str = "") -> Path:
    """Write part and card; the folder."""
    target = folder(models, job, bool(ended))
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(target / "part.json", trained.part.to_bytes(), 0o600)
    importance = trained.part.importance() if hasattr(trained.part, "importance") else {}
    card = {
        "lianfang_part_card": 1,
        "ended_early": ended or None,
        "job": {"name": job.name, "hash": job.hash().hex(), "seed": job.seed},
        "model": {
            "kind": trained.part.kind,
            "sha256": trained.part.hash(),
            "of": trained.model,
            "settings": job.model_settings().model_dump(mode="json"),
            "features": list(trained.part.features),
        },
        "data": {"rows": trained.rows, "positives": trained.positives, "test_rows": trained.test_rows},
        "quality": {name: round(value, 6) for name, value in trained.quality.as_dict().items()}
        if trained.quality
        else None,
        "importance": importance,
        "code": job.code,
    }
    write_atomic(target / "card.json", (json.dumps(card, indent=2, sort_keys=True) + "\n").encode(), 0o600)
    return target


def load(models: Path, job: JobDescriptor) -> Part:
    """Raise `Refused` where the job has left none here."""
    path = folder(models, job) / "part.json"
    try:
        return registry.read(path.read_bytes())
    except OSError as error:
        raise Refused(f"{job.name} has left no model here yet", "NO_MODEL") from error


def say(part: Any, x: Any) -> pb.VerticalReply:
    """What a partner's part says of rows; `x` has its features."""
    if hasattr(part, "left"):
        packed = np.packbits(part.left(x), axis=1)
        return pb.VerticalReply(bits=pb.VerticalBits(left=packed.tobytes()))
    return pb.VerticalReply(scores=pb.VerticalScores(values=part.scores(x)))


def rows_at_once(holder: Part) -> int:
    """Rows whose bits fit one answer."""
    records = 0
    if isinstance(holder, HolderModel):
        for tree in holder.trees:
            records += sum(feature >= len(holder.features) for feature in tree.feature)
    return max(1, min(SCORED, _REPLY // (-(-records // 8) or 1)))


def read_said(reply: pb.VerticalReply, holder: Part, rows: int) -> npt.NDArray[Any]:
    """Bits of shape (rows, records), or scores of shape (rows,). Raises `DecodeError`."""
    kind = "bits" if isinstance(holder, HolderModel) else "scores"
    if reply.WhichOneof("part") != kind:
        raise DecodeError(f"a partner answers {reply.WhichOneof('part')}, not {kind}")
    if kind == "scores":
        values = np.array(reply.scores.values)
        if values.shape != (rows,) or not np.isfinite(values).all():
            raise DecodeError("a partner's scores are not one finite number a row")
        return values
    data = np.frombuffer(reply.bits.left, dtype=np.uint8)
    if len(data) % max(rows, 1):
        raise DecodeError("a partner's bits are not as many for each row")
    return np.unpackbits(data.reshape(rows, -1), axis=1).astype(np.bool_)


def probability(holder: Any, x: Any, said: list[npt.NDArray[Any]]) -> Scores:
    """Of fraud, shape (rows,), from own features and what each partner said."""
    return sigmoid(holder.margin(x, said))
