"""Settings of vertical models; readable without the extra, as a coordinator or an approver does."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import JobError
from ..models import base
from ..models.growing import TreeSettings

KINDS = ("trees", "linear")
# Under Paillier each bin is a ciphertext, and each small leaf tells more of a few rows.
_TREES = {"bins": 64, "min_child_weight": 1.0}


class LinearSettings(BaseModel):
    """Of both sides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(2, ge=1, le=5, description="Newton's; each shows one linear score a row")
    bins: int = Field(32, ge=4, le=64, description="numbers that a partner's column takes")
    l2: float = Field(1.0, gt=0)
    positive_weight: base.PositiveWeight = 1.0


def check_trees(settings: TreeSettings) -> None:
    """Raise `JobError` for what vertical trees have not."""
    for name, value in (("rows", 1.0), ("columns", 1.0), ("validation", 0.0)):
        if getattr(settings, name) != value:
            raise JobError(f"vertical trees have no setting {name}")


def settings_for(kind: str, values: dict[str, Any]) -> BaseModel:
    """Checked; raises `JobError` naming the setting."""
    if kind not in KINDS:
        raise JobError(f"model {kind!r} is not one of {', '.join(KINDS)}")
    try:
        if kind == "linear":
            return LinearSettings(**values)
        trees = TreeSettings(**{**_TREES, **values})
    except ValidationError as error:
        lines = [f"{kind}.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise JobError("; ".join(lines)) from error
    check_trees(trees)
    return trees
