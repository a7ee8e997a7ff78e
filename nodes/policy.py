"""What `policy.toml` narrows the contracts to: read by the gate and by nothing else.

Without `[[allow]]` the contracts alone decide. Else the first one that names the member and the list narrows what they
allow, and what none names is refused.
"""

from pathlib import Path

from lianfang.v1 import common_pb2 as pb
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import limits
from .config import explain, read_toml
from .errors import ConfigError
from .identity.names import MemberName

PURPOSES = {
    name.removeprefix("PURPOSE_").lower().replace("_", "-"): number
    for name, number in pb.Purpose.items()
    if number
}
BASES = {
    name.removeprefix("LEGAL_BASIS_").lower().replace("_", "-"): number
    for name, number in pb.LegalBasis.items()
    if number
}
PURPOSE_NAMES: dict[int, str] = {number: name for name, number in PURPOSES.items()}
URGENT = frozenset({pb.PURPOSE_PAYMENT, pb.PURPOSE_CASE_INVESTIGATION})  # may draw on the reserve
BASIS_NAMES: dict[int, str] = {number: name for name, number in BASES.items()}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetRule(_Model):
    """Evaluations one member may ask of one list."""

    epoch: int = Field(200_000, ge=0)
    day: int = Field(60_000, ge=0)
    burst: int = Field(20_000, ge=0)
    burst_seconds: int = Field(60, ge=1, le=limits.BURST_SECONDS)


class ListBudget(_Model):
    """Evaluations all members together may ask of one list: bounds those who pool what they learn."""

    epoch: int = Field(2_000_000, ge=0)
    day: int = Field(500_000, ge=0)
    renewal_credit: int = Field(
        0, ge=0, description="extra in a new epoch, at most what the closing one used"
    )


class Rule(_Model):
    """Members, lists and what they may do."""

    members: list[str] = Field(min_length=1)
    lists: list[str] = ["*"]
    purposes: list[str] = Field(min_length=1)
    bases: list[str] = []
    sync: bool = True
    budget: BudgetRule = BudgetRule()

    def names(self, member: MemberName, list_name: str) -> bool:
        """Whether the rule is about this member and list."""
        wanted = {
            "*",
            str(member),
            f"role:{member.role.value}",
            f"{member.role.value}/{member.name}",
            member.name,
        }
        return bool(wanted & set(self.members)) and bool({"*", list_name} & set(self.lists))


class SecondPerson(_Model):
    """What this institution's people do not do alone."""

    query_items: int = Field(100, ge=0, description="identifiers of one question")
    evaluations_a_day: int = Field(
        10_000, ge=0, description="that one person's questions and joint scores may cost"
    )
    withdraw_entries: int = Field(20, ge=0, description="whose status one person changes within a day")
    hours: float = Field(24, gt=0, le=24 * 14, description="for which an action waits")


class Vertical(_Model):
    """Models that this node has a part of, without the label."""

    scores_a_day: int = Field(
        1_000_000, ge=0, description="rows of one model that its label holder may have scored"
    )


class Policy(_Model):
    """The whole file."""

    second_person: SecondPerson = SecondPerson()
    allow: list[Rule] = []
    budgets: dict[str, ListBudget] = {}
    vertical: Vertical = Vertical()

    def rule(self, member: MemberName, list_name: str) -> Rule | None:
        """The rule that decides, or None where nothing is allowed."""
        return next((rule for rule in self.allow if rule.names(member, list_name)), None)

    def list_budget(self, list_name: str) -> ListBudget:
        """The list-wide bound."""
        return self.budgets.get(list_name) or self.budgets.get("*") or ListBudget()


def load(path: Path) -> Policy:
    """Raise `ConfigError` naming the file and the field."""
    try:
        policy = Policy(**read_toml(path))
    except ValidationError as error:
        raise explain(path, error) from error
    for number, rule in enumerate(policy.allow, 1):
        for purpose in rule.purposes:
            if purpose not in PURPOSES:
                raise ConfigError(
                    f"{path}: allow {number}: purpose {purpose!r} is not one of {', '.join(PURPOSES)}"
                )
        for basis in rule.bases:
            if basis not in BASES:
                raise ConfigError(f"{path}: allow {number}: basis {basis!r} is not one of {', '.join(BASES)}")
    return policy


class PolicyFile:
    """The policy, read again when the file changes. A broken file keeps the last good one and says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = path.stat().st_mtime_ns if path.exists() else 0
        self._policy = load(path)
        self.trouble = ""

    @property
    def current(self) -> Policy:
        """The policy in force."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._stamp = stamp
                self._policy = load(self._path)
                self.trouble = ""
        except (OSError, ConfigError) as error:
            self.trouble = f"{self._path}: the policy from before stays in force: {error}"
        return self._policy


TEMPLATE = """\
# Contracts say who may ask this node for what. This file narrows them: the first [[allow]] that names the
# member and the list does, and once there is one, what none names is refused. Budgets count evaluations, padded.

# [[allow]]
# members = ["role:centre"]        # "*", "role:bank", a member's name or its spiffe:// id
# lists = ["*"]
# purposes = ["case-investigation", "payment"]
# budget = { epoch = 400000, day = 150000, burst = 70000, burst_seconds = 60 }

# What this institution's people do only with a second one.
# [second_person]
# query_items = 100            # identifiers of one question, more than so many
# evaluations_a_day = 10000    # that one person's questions and joint scores cost
# withdraw_entries = 20        # whose status one person changes within a day
# hours = 24                   # an action waits so long

# Rows of one vertical model that its label holder may have scored a day.
# [vertical]
# scores_a_day = 1000000

# All members together: bounds those who pool what they learn.
[budgets."*"]
epoch = 1000000
day = 300000
renewal_credit = 20000
"""
