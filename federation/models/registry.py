"""Model kinds by name."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..data import Block
from ..errors import JobError
from ..steps import Learner
from . import linear, mlp, trees
from .base import Model
from .growing import TreeSettings
from .linear import LinearModel, LinearSettings
from .mlp import MlpModel, MlpSettings
from .trees import TreeModel

SETTINGS: dict[str, type[BaseModel]] = {"trees": TreeSettings, "linear": LinearSettings, "mlp": MlpSettings}


def settings_for(kind: str, values: dict[str, Any]) -> BaseModel:
    """Raise `JobError` naming the setting."""
    if kind not in SETTINGS:
        raise JobError(f"model {kind!r} is not one of {', '.join(SETTINGS)}")
    try:
        return SETTINGS[kind](**values)
    except ValidationError as error:
        lines = [f"{kind}.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise JobError("; ".join(lines)) from error


def learner(
    kind: str,
    settings: BaseModel,
    blocks: list[Block],
    features: Sequence[str],
    seed: int,
    parties: int,
    keep: Callable[[Model], None] = lambda _model: None,
) -> Learner[Any]:
    """The learner of one party; it returns a `Model`. `keep` is given a model of trees after each of them."""
    if isinstance(settings, TreeSettings):
        return trees.Grower(settings, features, seed, parties, keep).learn(blocks)
    if isinstance(settings, LinearSettings):
        return linear.learn(blocks, features, settings, seed, parties)
    if isinstance(settings, MlpSettings):
        return mlp.learn(blocks, features, settings, seed, parties)
    raise JobError(f"model {kind!r} is not known")


def read(data: bytes) -> Model:
    """A model from its bytes; raises `JobError`."""
    try:
        document = json.loads(data)
        kind = document["lianfang_model"]
        for model in (TreeModel, LinearModel, MlpModel):
            if model.kind == kind:
                return model.from_document(document)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JobError("not a model file") from error
    raise JobError(f"a model of kind {kind!r} is not known here")
