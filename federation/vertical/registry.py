"""Kinds of vertical models: what makes their two sides."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from protocols.paillier import BITS

from ..data import Matrix
from ..errors import JobError
from ..models.base import Part
from ..models.growing import TreeSettings
from . import slots
from .holder import Holder, HolderModel, Key
from .linear import LinearHolder, LinearHolderModel, LinearPartner, LinearPartnerModel
from .partner import PartnerModel, TreePartner
from .settings import LinearSettings
from .slots import Stream

_PARTS: tuple[type[Any], ...] = (HolderModel, PartnerModel, LinearHolderModel, LinearPartnerModel)


def holder(
    settings: BaseModel,
    features: Sequence[str],
    partners: Sequence[str],
    seed: int,
    key: Key,
    keep: Callable[[Part], None] = lambda _model: None,
    tell: Callable[[str], None] = lambda _what: None,
    ids: Sequence[bytes] = (),
) -> Holder | LinearHolder:
    """The label holder of a kind of model."""
    if isinstance(settings, LinearSettings):
        return LinearHolder(settings, features, partners, key, tell, ids)
    assert isinstance(settings, TreeSettings)
    return Holder(settings, features, partners, seed, key, keep, tell, ids)


def partner(
    settings: BaseModel,
    x: Matrix,
    features: Sequence[str],
    context: bytes,
    run: Stream = slots.inline,
    pieces: int = 1,
    least: int = BITS,
    keep: Callable[[Part], None] = lambda _model: None,
) -> TreePartner | LinearPartner:
    """A partner of a kind of model. `x` has the aligned rows in the order of their ids."""
    if isinstance(settings, LinearSettings):
        return LinearPartner(x, features, settings, context, run, least, keep)
    assert isinstance(settings, TreeSettings)
    return TreePartner(x, features, settings, context, run, pieces, least, keep)


def read(data: bytes) -> Part:
    """A part of a model. Raises `JobError` for anything else."""
    try:
        document = json.loads(data)
        for each in _PARTS:
            if document["lianfang_model"] == each.kind:
                part: Part = each.from_document(document)
                return part
    except (ValueError, KeyError, TypeError) as error:
        raise JobError("not a part of a vertical model") from error
    raise JobError("not a part of a vertical model")
