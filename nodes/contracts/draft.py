"""A contract as a person writes it, in TOML, and as it is proposed."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lianfang.v1 import contract_pb2 as pb
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from protocols.contract import MAX_DAYS, MAX_RETENTION

from .. import limits
from ..config import explain, read_toml
from ..errors import ConfigError
from ..policy import BASES, PURPOSES, URGENT

_DAY = 86_400
VARIANTS = {"intersection": 1, "cardinality": 2, "sum": 3, "alignment": 4}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Allowance(_Model):
    """Evaluations of one list by one asker, padded."""

    epoch: int = Field(gt=0)
    day: int = Field(gt=0)
    burst: int = Field(gt=0)
    burst_seconds: int = Field(60, ge=1, le=limits.BURST_SECONDS)
    reserve: int | None = Field(
        None, ge=0, description="of the day's, for urgent questions of at most 32 values; a tenth by default"
    )
    purposes: dict[str, int] = Field({}, description="of the day's, for one purpose: screening = 100000")

    def message(self, granted: list[int]) -> pb.Allowance:
        """For the wire; `granted` are the purposes of the grant."""
        reserve = self.reserve
        if reserve is None:
            reserve = self.day // 10 if set(granted) & URGENT else 0
        bounded = sorted((_code("purpose", name, PURPOSES), day) for name, day in self.purposes.items())
        return pb.Allowance(
            epoch=self.epoch,
            day=self.day,
            burst=self.burst,
            burst_seconds=self.burst_seconds,
            reserve=reserve,
            purposes=[pb.PurposeAllowance(purpose=purpose, day=day) for purpose, day in bounded],  # type: ignore[arg-type]
        )


class Grant(_Model):
    """Each asker may use these lists of each holder."""

    holder: Names
    asker: Names
    lists: Names
    purposes: Names
    bases: list[str] = []
    budget: Allowance


class PsiInput(_Model):
    """What one party brings."""

    party: str
    dataset: str
    column: str
    values: str = ""
    max_elements: int = Field(gt=0)


class Psi(_Model):
    """Set intersection: what is computed, over what, and who learns it."""

    variant: str
    kind: str
    sessions_a_day: int = Field(1, ge=1)
    inputs: list[PsiInput] = Field(alias="input")
    output_to: Names
    minimum_cardinality: int = Field(0, ge=0)
    sum_bits: int = Field(0, ge=0, le=62)
    decimals: int = Field(0, ge=0, le=6)


class Draft(_Model):
    """The file."""

    title: str = Field(min_length=1, max_length=100)
    days: float = Field(365, gt=0, le=MAX_DAYS)
    retention_days: int = Field(180, ge=1, le=MAX_RETENTION)
    must_stay: list[str] = Field(
        [],
        description="whose leaving the network ends all grants; the others' go on when anybody else leaves",
    )
    grants: list[Grant] = Field([], alias="grant")
    psi: Psi | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Draft":
        if bool(self.grants) == (self.psi is not None):
            raise ValueError("either [[grant]] or [psi]")
        return self

    def contract(self, now: float) -> pb.Contract:
        """For the node to complete; raises `ConfigError` for a purpose, basis or variant that is not known."""
        draft = pb.Contract(
            title=self.title, expires_at=int(now + self.days * _DAY), retention_days=self.retention_days
        )
        draft.must_stay.extend(self.must_stay)
        for grant in self.grants:
            draft.lookup.grants.extend(
                pb.Grant(
                    holder=holder,
                    asker=asker,
                    lists=grant.lists,
                    purposes=[_code("purpose", each, PURPOSES) for each in grant.purposes],  # type: ignore[misc]
                    bases=[_code("basis", each, BASES) for each in grant.bases],  # type: ignore[misc]
                    budget=grant.budget.message([PURPOSES.get(each, 0) for each in grant.purposes]),
                )
                for holder in grant.holder
                for asker in grant.asker
                if holder != asker
            )
        if self.psi is not None:
            draft.psi.CopyFrom(
                pb.PsiTerms(
                    variant=_code("variant", self.psi.variant, VARIANTS),  # type: ignore[arg-type]
                    inputs=[pb.PsiTerms.Input(**each.model_dump()) for each in self.psi.inputs],
                    output_to=self.psi.output_to,
                    kind=self.psi.kind,
                    sessions_a_day=self.psi.sessions_a_day,
                    minimum_cardinality=self.psi.minimum_cardinality,
                    sum_bits=self.psi.sum_bits,
                    decimals=self.psi.decimals,
                )
            )
        return draft


def _code(what: str, name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        raise ConfigError(f"{what} {name!r} is not one of {', '.join(known)}")
    return known[name]


def load(path: Path, now: float | None = None) -> pb.Contract:
    """Raise `ConfigError` naming the file and the field."""
    try:
        return Draft(**read_toml(path)).contract(time.time() if now is None else now)
    except ValidationError as error:
        raise explain(path, error) from error
    except ConfigError as error:
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error


def over_job(descriptor: bytes, days: float, retention_days: int, now: float) -> pb.Contract:
    """A contract over a job of learning; raises `LearningError` for what is no job. Needs the `learn` extra."""
    from federation.job import JobDescriptor

    job = JobDescriptor.read(descriptor)
    return pb.Contract(
        title=job.name,
        expires_at=int(now + days * _DAY),
        retention_days=retention_days,
        parties=[*job.parties, job.coordinator],
        job=pb.JobTerms(descriptor=job.to_bytes(), schema_hash=job.schema_hash()),
    )


TEMPLATE = """\
# What members agree on before a question is asked. `lianfang contract propose FILE` signs and sends it.
title = "Lookups between bank-a, bank-b and the centre"
days = 365               # until it expires
retention_days = 180     # how long what is learnt may be kept

# Each asker may sync the lists of each holder and ask them; the label of a hit is output to the asker alone.
[[grant]]
holder = ["bank-a", "bank-b"]
asker = ["centre"]
lists = ["fraud"]
purposes = ["case-investigation", "payment"]
bases = []               # empty: any legal basis
budget = { epoch = 400000, day = 150000, burst = 70000, burst_seconds = 60 }

# Or set intersection of two parties:
# [psi]
# variant = "cardinality"   # intersection, cardinality, sum, alignment
# kind = "phone"            # of identifier: both sides normalise alike
# sessions_a_day = 1
# output_to = ["bank-a"]
# [[psi.input]]
# party = "bank-a"
# dataset = "customers"
# column = "phone"
# max_elements = 1000000
# values = "loss"           # with sum, of one party: sum_bits = 50, decimals = 2, minimum_cardinality = 10
# [[psi.input]]
# party = "bank-b"
# ...
"""
