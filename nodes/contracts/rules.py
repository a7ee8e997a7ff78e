"""What another member may do here: the terms of the contracts in force, narrowed by the policy file. Read by the gate."""

from collections.abc import Sequence
from dataclasses import dataclass

from lianfang.v1 import contract_pb2 as contract

from .. import policy
from ..errors import Refused
from ..identity.members import Member
from .book import ContractBook, Granted, Held


@dataclass(frozen=True)
class Terms:
    """Evaluations that one member may ask of one list."""

    contract: bytes  # hash
    epoch: int
    day: int
    bursts: tuple[tuple[int, int], ...]  # (evaluations, seconds): each holds
    reserve: int = 0  # of a day's, for urgent questions
    purposes: tuple[tuple[int, int], ...] = ()  # (purpose, evaluations a day)

    @property
    def epoch_reserve(self) -> int:
        """The reserve's part of an epoch."""
        return self.reserve * self.epoch // self.day if self.day else 0


class Rules:
    """One per node. Every method raises `Refused` saying which contract, rule or term is in the way."""

    def __init__(self, contracts: ContractBook, file: policy.PolicyFile, own: str) -> None:
        self._contracts, self._file, self._own = contracts, file, own

    def sync(self, member: Member, list_name: str) -> Terms:
        """May the member copy the list?"""
        return self._terms(
            member, list_name, self._contracts.grants(self._own, member.id, list_name), sync=True
        )

    def use(self, member: Member, list_name: str) -> Terms:
        """What the member may use a list for at most."""
        return self._terms(member, list_name, self._contracts.grants(self._own, member.id, list_name))

    def evaluate(self, member: Member, list_name: str, purpose: int, basis: int) -> Terms:
        """May the member ask it for this purpose, on this legal basis?"""
        grants = self._contracts.grants(self._own, member.id, list_name)
        fitting = _fitting(grants, member, list_name, purpose, basis)
        return self._terms(member, list_name, fitting, purpose=purpose, basis=basis)

    def agreed(self) -> dict[str, set[str]]:
        """By holder, the lists that contracts in force let this node ask."""
        return self._contracts.agreed(self._own)

    def why_none(self, holder: Member) -> str:
        """Why this node may ask no list of `holder`, for a person."""
        return self._contracts.why_none(holder.id, self._own)

    def check_own(self, holder: Member, list_name: str, purpose: int, basis: int) -> None:
        """May this node ask a list of `holder`? The holder's gate decides; this one keeps us to our word."""
        grants = self._contracts.grants(holder.id, self._own, list_name)
        _fitting(grants, holder, list_name, purpose, basis)

    def train(self, job_hash: bytes) -> Held:
        """The contract in force over a job."""
        return self._contracts.job(job_hash)

    def meet(self, member: Member, contract_hash: bytes) -> Held:
        """The contract in force under which this node's and the member's sets meet."""
        return self._contracts.meeting(contract_hash, {self._own, member.id})

    def purposes(self, member: Member, list_name: str) -> list[int]:
        """Purposes the member may ask the list for; empty where it may not use it at all."""
        try:
            grants = self._contracts.grants(self._own, member.id, list_name)
            rule = self._rule(member, list_name)
        except Refused:
            return []
        agreed = {purpose for each in grants for purpose in each.purposes}
        return sorted(agreed & {policy.PURPOSES[each] for each in rule.purposes} if rule else agreed)

    def reserves(self, list_name: str) -> tuple[int, int]:
        """(a day's, an epoch's) evaluations of a list that are kept for urgent questions, all members together."""
        return self._contracts.reserves(self._own, list_name)

    def list_budget(self, list_name: str) -> policy.ListBudget:
        """What all members together may ask of a list: this institution's own bound."""
        return self._file.current.list_budget(list_name)

    def scores_a_day(self) -> int:
        """Rows of one model that its label holder may have scored: this institution's own bound."""
        return self._file.current.vertical.scores_a_day

    def _rule(self, member: Member, list_name: str) -> policy.Rule | None:
        """The file's rule, `None` where the file leaves everything to the contracts."""
        file = self._file.current
        rule = file.rule(member.name, list_name)
        if rule is None and file.allow:
            raise Refused(
                f"policy.toml lets {member.name.name} do nothing with the list {list_name}", "POLICY"
            )
        return rule

    def _terms(
        self,
        member: Member,
        list_name: str,
        grants: Sequence[Granted],
        *,
        sync: bool = False,
        purpose: int = 0,
        basis: int = 0,
    ) -> Terms:
        rule = self._rule(member, list_name)
        best = max(grants, key=lambda each: (each.budget.epoch, each.budget.day))
        agreed: contract.Allowance = best.budget
        bursts = ((agreed.burst, agreed.burst_seconds),)
        bounded = tuple((each.purpose, each.day) for each in agreed.purposes)
        if rule is None:
            return Terms(best.contract.hash, agreed.epoch, agreed.day, bursts, agreed.reserve, bounded)
        if sync and not rule.sync:
            raise Refused(f"{member.name.name} may not sync the list {list_name}", "POLICY")
        if purpose and policy.PURPOSE_NAMES.get(purpose) not in rule.purposes:
            name = policy.PURPOSE_NAMES.get(purpose, "none")
            raise Refused(f"{member.name.name} may not ask {list_name} for the purpose {name}", "PURPOSE")
        if purpose and rule.bases and policy.BASIS_NAMES.get(basis) not in rule.bases:
            raise Refused(f"{member.name.name} may not ask {list_name} on this legal basis", "BASIS")
        own = rule.budget
        return Terms(
            best.contract.hash,
            min(agreed.epoch, own.epoch),
            min(agreed.day, own.day),
            (*bursts, (own.burst, own.burst_seconds)),
            min(agreed.reserve, own.day),
            bounded,
        )


def _fitting(
    grants: Sequence[Granted], member: Member, list_name: str, purpose: int, basis: int
) -> list[Granted]:
    for_purpose = [each for each in grants if purpose in each.purposes]
    if not for_purpose:
        raise Refused(
            f"no contract with {member.name.name} is for asking {list_name} for the purpose "
            f"{policy.PURPOSE_NAMES.get(purpose, 'none')}",
            "PURPOSE",
        )
    fitting = [each for each in for_purpose if not each.bases or basis in each.bases]
    if not fitting:
        raise Refused(
            f"no contract with {member.name.name} lets {list_name} be asked on the legal basis "
            f"{policy.BASIS_NAMES.get(basis, 'none')}",
            "BASIS",
        )
    return fitting
