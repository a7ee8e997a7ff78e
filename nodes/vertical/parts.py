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
from federation.vertical.partner import pack_rows, unpack_rows
from protocols.errors import DecodeError

from ..errors import Refused
from ..files import write_atomic

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
    note: str = ""  # why there is no quality


def folder(models: Path, job: JobDescriptor) -> Path:
    """Of a job's own."""
    return models / f"{job.name}-{job.hash().hex()[:12]}"


def save(models: Path, job: JobDescriptor, trained: Trained) -> Path:
    """Write part and card; the folder."""
    target = folder(models, job)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(target / "part.json", trained.part.to_bytes(), 0o600)
    importance = trained.part.importance() if hasattr(trained.part, "importance") else {}
    card = {
        "lianfang_part_card": 1,
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
        "quality_note": trained.note or None,
        "importance": importance,
        "code": job.code,
    }
    write_atomic(target / "card.json", (json.dumps(card, indent=2, sort_keys=True) + "\n").encode(), 0o600)
    return target


def load(models: Path, job: JobDescriptor, model: str = "") -> Part:
    """This side's part; of the `model` where one is named. Raises `Refused` where the job has left none here."""
    place = folder(models, job)
    try:
        of = json.loads((place / "card.json").read_bytes())["model"]["of"]
        part = registry.read((place / "part.json").read_bytes())
    except OSError as error:
        raise Refused(f"{job.name} has left no model here yet", "NO_MODEL") from error
    if model and of != model:  # of an earlier run, or a later one: its splits are others
        raise Refused(f"{job.name} has left another model here", "NO_MODEL")
    return part


def say(part: Any, x: Any, absent: npt.NDArray[np.bool_]) -> pb.VerticalReply:
    """What a partner's part says of rows; `x` has its features. Of rows that are absent it says nothing that counts."""
    reply = pb.VerticalReply(absent=pack_rows(absent) if absent.any() else b"")
    if hasattr(part, "left"):
        reply.bits.left = np.packbits(part.left(x), axis=1).tobytes()
    else:
        reply.scores.values.extend(part.scores(x))
    return reply


def read_absent(reply: pb.VerticalReply, rows: int) -> npt.NDArray[np.bool_]:
    """Which of the rows a partner has no longer. Raises `DecodeError`."""
    return unpack_rows(reply.absent, rows) if reply.absent else np.zeros(rows, dtype=np.bool_)


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
