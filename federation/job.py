"""What a federation agrees on before it starts: a job descriptor, approved by each bank by its hash.

The descriptor is canonical JSON: what parses serialises to the same bytes. Its SHA-256 is part of every signature
and key of the job's sums.
"""

import hashlib
import json
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocols.contract import job_hash
from protocols.encoding import frame
from protocols.sums.cohorts import MINIMUM

from .errors import JobError
from .models import registry
from .vertical import settings as vertical

_SCHEMA_DOMAIN = "lianfang/v1/job-schema"
MAX_BYTES = 500_000  # of a descriptor
# A column's name is what a person can read in a table.
Column = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f\[\]]{1,100}$")]
# The hash of the contract under which two sides aligned, and the session.
Alignment = Annotated[str, Field(pattern="^[0-9a-f]{64}:[0-9a-f]{32}$")]


class JobDescriptor(BaseModel):
    """A job: who, on what, to what end. No data and no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lianfang_job: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$")
    kind: Literal["train", "stats", "vertical"]
    network: str
    coordinator: str = Field(description="SPIFFE id")
    parties: list[str] = Field(min_length=2, max_length=80, description="SPIFFE ids, ascending")
    observers: list[str] = Field([], description="parties that add zeros and learn the sums")
    minimum: int = Field(MINIMUM, ge=MINIMUM, description="contributors at least")
    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="each bank maps it to rows of its own"
    )
    code: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the learning code")
    bundle: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the launching bundle")
    seed: int = Field(0, ge=0, lt=2**31)
    # training
    features: list[Column] = Field([], max_length=2000)
    label: str = Field("", pattern=r"^[^\x00-\x1f\x7f\[\]]{0,100}$")
    model: str = ""
    settings: dict[str, float | int | str] = {}
    exposure: Literal["refused", "accepted"] = Field(
        "refused",
        description="accepted: these rows may be in several sums from which some can compute others' parts",
    )
    evaluate: Literal["none", "test"] = Field("none", description="measure on each bank's test rows, summed")
    # columns at several institutions
    holder: str = Field("", description="SPIFFE id of the party with the label")
    alignments: list[Alignment] = Field([], description="the holder's with each other party, in their order")
    # statistics
    categories: list[str] = Field([], max_length=1000)
    since: str = Field("", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    until: str = Field("", pattern=r"^(\d{4}-\d{2}-\d{2})?$")

    @model_validator(mode="after")
    def _consistent(self) -> "JobDescriptor":
        for name in ("parties", "observers"):
            values = getattr(self, name)
            if values != sorted(set(values)):
                raise ValueError(f"{name} are not ascending or repeat")
        if not set(self.observers) <= set(self.parties):
            raise ValueError("an observer is not a party")
        if self.coordinator in self.parties:
            raise ValueError("the coordinator is no party of a job")
        if (self.kind == "vertical") != bool(self.holder):
            raise ValueError("a vertical job, and no other, has a label holder")
        if self.kind != "vertical" and len(self.parties) - len(self.observers) < self.minimum:
            raise ValueError(f"fewer than {self.minimum} parties contribute")
        if self.kind == "vertical":
            if self.holder not in self.parties or self.observers:
                raise ValueError("the label holder is a party, and nobody observes")
            if len(self.alignments) != len(self.parties) - 1 or not self.label:
                raise ValueError("a vertical job names the label and one alignment a partner")
            if self.model == "linear" and len(self.parties) != 2:
                raise ValueError("a vertical linear model has one partner")
        if self.kind == "train":
            if not self.features or len(set(self.features)) != len(self.features) or not self.label:
                raise ValueError("a training names its features, each once, and the label")
            if self.label in self.features:
                raise ValueError("the label is among the features")
            if self.observers:
                raise ValueError("a training has no observers")
        for day in (self.since, self.until):
            if day:
                date.fromisoformat(day)
        if self.since and self.until and self.since > self.until:
            raise ValueError("since is after until")
        if self.kind == "stats" and (
            not self.categories or len(set(self.categories)) != len(self.categories)
        ):
            raise ValueError("statistics name their categories, each once")
        return self

    def to_bytes(self) -> bytes:
        """The one encoding."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def hash(self) -> bytes:
        """32 bytes that stand for the job."""
        return job_hash(self.to_bytes())

    def schema_hash(self) -> bytes:
        """32 bytes that stand for which rows and columns are used: the dataset's, or the lists' entries."""
        columns = {
            "train": (*self.features, self.label),
            "stats": (*self.categories, self.since, self.until),
            "vertical": (self.holder, *self.alignments, self.label),
        }[self.kind]
        return hashlib.sha256(frame(_SCHEMA_DOMAIN, self.kind, self.dataset, *columns)).digest()

    def model_settings(self) -> BaseModel:
        """Raise `JobError` naming a setting that is out of range."""
        if self.kind == "vertical":
            return vertical.settings_for(self.model, dict(self.settings))
        return registry.settings_for(self.model, dict(self.settings))

    @property
    def partners(self) -> list[str]:
        """Of a vertical job: the parties without the label, ascending; `alignments` are in their order."""
        return [party for party in self.parties if party != self.holder]

    def alignment_of(self, partner: str) -> tuple[bytes, bytes]:
        """(hash of the contract, session)."""
        contract, _, session = self.alignments[self.partners.index(partner)].partition(":")
        return bytes.fromhex(contract), bytes.fromhex(session)

    @classmethod
    def read(cls, data: bytes, where: str = "job") -> "JobDescriptor":
        """Raise `JobError` unless it is the canonical encoding of a job that holds together."""
        if len(data) > MAX_BYTES:
            raise JobError(f"{where}: {len(data):,} bytes, at most {MAX_BYTES:,}")
        try:
            job = cls(**json.loads(data))
            same = job.to_bytes() == data.strip()
        except ValidationError as error:
            raise JobError(f"{where}: {explain(error)}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise JobError(f"{where}: not a job descriptor") from error
        if job.kind != "stats":
            job.model_settings()
        if not same:
            raise JobError(f"{where}: not in canonical form")
        return job


def make(**values: Any) -> JobDescriptor:
    """Raise `JobError` naming the field."""
    try:
        job = JobDescriptor(**values)
    except ValidationError as error:
        raise JobError(explain(error)) from error
    if job.kind != "stats":
        job.model_settings()
    return job


def explain(error: ValidationError) -> str:
    """One line a field."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'job'}: {each['msg']}" for each in error.errors())
