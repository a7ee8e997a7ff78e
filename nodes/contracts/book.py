"""The contracts this node signs or is asked to sign, and every act on them that it has been told of.

Stored and logged in one transaction; the gate reads the newest state from memory. Rules: `protocols/contract.py`.
"""

import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa
from lianfang.v1 import contract_pb2 as pb
from lianfang.v1 import ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols import contract as contracts
from protocols.contract import State
from protocols.errors import PeerError
from protocols.ledger import events

from .. import limits
from ..errors import NotFound, Refused, invalid
from ..identity.keys import NodeKeys
from ..identity.members import MemberBook, MemberList
from ..identity.names import MemberName, Role
from ..ledger.book import LogBook
from ..store import engine as db
from ..store import schema

Check = Callable[[pb.Contract], None]
JOB, PSI = "job", "psi"
_OVER = (State.REJECTED, State.REVOKED, State.EXPIRED)
_DAY = 86_400
_KEPT = 30 * _DAY  # for which a proposal is remembered that came to nothing
_NAMED = 3  # contracts in a message
_ENDED_NAMED = 50  # ended grants of one asker that are kept at hand


@dataclass(frozen=True)
class Held:
    """A contract with the acts on it."""

    hash: bytes
    data: bytes
    terms: pb.Contract
    acts: tuple[pb.ContractAct, ...]
    heard_at: float  # when this node first heard of it

    @property
    def kind(self) -> str:
        """lookup, job or psi."""
        return str(self.terms.WhichOneof("terms"))

    @functools.cached_property
    def job_hash(self) -> bytes:
        """Of a contract over a job."""
        return contracts.job_hash(self.terms.job.descriptor)

    @property
    def name(self) -> str:
        """For people: title and the beginning of the hash."""
        return f"{self.terms.title} ({self.hash.hex()[:12]})"

    @functools.cached_property
    def _timeless(self) -> State:
        return contracts.state(self.terms, self.acts, 0)

    def state(self, now: float) -> State:
        """How it stands."""
        ends = self._timeless in (State.ACTIVE, State.PROPOSED) and now >= self.terms.expires_at
        return State.EXPIRED if ends else self._timeless

    def approved_by(self, party: str) -> bool:
        """Whether this signer has approved it."""
        return any((act.party, act.action) == (party, contracts.APPROVE) for act in self.acts)

    @functools.cached_property
    def granted(self) -> "list[tuple[tuple[str, str], Granted]]":
        """((holder, asker), grant) of each grant."""
        return [
            (
                (grant.holder, grant.asker),
                Granted(
                    self,
                    frozenset(grant.lists),
                    frozenset(grant.purposes),
                    frozenset(grant.bases),
                    grant.budget,
                ),
            )
            for grant in self.terms.lookup.grants
        ]

    def signed(self) -> pb.SignedContract:
        """For the wire."""
        return pb.SignedContract(contract=self.data, acts=self.acts)


@dataclass(frozen=True)
class Granted:
    """A grant of a contract, for quick decisions."""

    contract: Held
    lists: frozenset[str]
    purposes: frozenset[int]
    bases: frozenset[int]  # empty: any
    budget: pb.Allowance


class ContractBook:
    """One per node. Every method may be called from any thread."""

    def __init__(
        self,
        database: sa.Engine,
        log: LogBook,
        keys: NodeKeys,
        members: MemberBook,
        name: MemberName,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._log, self._keys, self._members = database, log, keys, members
        self._name, self._own, self._clock = name, str(name), clock
        self._changing = threading.Lock()
        self._checks: dict[str, Check] = {}
        self.version = 0  # grows with each change
        self._held: dict[bytes, Held] = {}
        self._live: dict[tuple[str, str], list[Granted]] = {}
        self._ended: dict[tuple[str, str], list[Granted]] = {}  # the newest, to say what became of them
        self._jobs: dict[bytes, list[Held]] = {}
        self._keep(self._load())

    def _keep(self, held: dict[bytes, Held]) -> None:
        now = self._clock()
        live: dict[tuple[str, str], list[Granted]] = {}
        ended: dict[tuple[str, str], list[Granted]] = {}
        jobs: dict[bytes, list[Held]] = {}
        for each in sorted(held.values(), key=lambda one: one.terms.proposed_at, reverse=True):
            if each.kind == JOB:
                jobs.setdefault(each.job_hash, []).append(each)
            over = each.state(now) in _OVER
            for pair, grant in each.granted:
                place = (ended if over else live).setdefault(pair, [])
                if not over or len(place) < _ENDED_NAMED:
                    place.append(grant)
        self._held, self._live, self._ended, self._jobs = held, live, ended, jobs

    def _load(self) -> dict[bytes, Held]:
        act = schema.contract_act
        with db.reading(self._database) as connection:
            bodies = connection.execute(sa.select(schema.contract)).all()
            rows = connection.execute(sa.select(act)).all()
        acts: dict[bytes, list[pb.ContractAct]] = {}
        for row in rows:
            acts.setdefault(row.contract, []).append(
                pb.ContractAct(party=row.party, action=row.action, at=row.at, signature=row.signature)
            )
        return {
            row.hash: Held(
                row.hash,
                row.body,
                pb.Contract.FromString(row.body),
                tuple(contracts.merge(acts.get(row.hash, ()))),
                row.at,
            )
            for row in bodies
        }

    def check_before_signing(self, kind: str, check: Check) -> None:
        """`check` raises `Refused` for terms of this kind that this node cannot keep."""
        self._checks[kind] = check

    # -- reading ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since 1970, by this node's clock."""
        return self._clock()

    def all(self) -> list[Held]:
        """Newest proposal first."""
        return sorted(self._held.values(), key=lambda each: each.terms.proposed_at, reverse=True)

    def find(self, text: str) -> Held:
        """By the beginning of its hash; raises `NotFound`."""
        found = [each for each in self.all() if each.hash.hex().startswith(text)]
        if len(text) < 4 or len(found) != 1:
            raise NotFound(f"{text!r} names {len(found)} contracts here")
        return found[0]

    def _in_force(self, held: Held, members: MemberList) -> bool:
        return held.state(self._clock()) is State.ACTIVE and not gone_of(held, members)

    def _grants_now(self, each: Granted, holder: str, asker: str, members: MemberList) -> bool:
        """Whether a grant holds: its own two members are there, whoever else has left."""
        return members.has(holder) and members.has(asker) and self._in_force(each.contract, members)

    def grants(self, holder: str, asker: str, list_name: str) -> list[Granted]:
        """What contracts in force let `asker` do with a list of `holder`; raises `Refused` where there is none."""
        members = self._members.current
        about = [each for each in self._live.get((holder, asker), ()) if list_name in each.lists]
        found = [each for each in about if self._grants_now(each, holder, asker, members)]
        if not found:
            about += [each for each in self._ended.get((holder, asker), ()) if list_name in each.lists]
            why = "; ".join(self._standing(each.contract) for each in about[:_NAMED]) or "none was proposed"
            raise Refused(
                f"no contract lets {_short([asker])} use the list {list_name} of {_short([holder])}: {why}",
                "CONTRACT",
            )
        return found

    def why_none(self, holder: str, asker: str) -> str:
        """What became of the contracts that let `asker` ask lists of `holder`, for a person."""
        ended = [*self._ended.get((holder, asker), ()), *self._live.get((holder, asker), ())]
        return "; ".join(self._standing(each.contract) for each in ended[:_NAMED]) or "none was proposed"

    def reserves(self, holder: str, list_name: str) -> tuple[int, int]:
        """(a day's, an epoch's) evaluations of a list that contracts in force keep for urgent questions, all askers together."""
        members = self._members.current
        day = epoch = 0
        for (who, asker), grants in self._live.items():
            mine = [
                each
                for each in grants
                if list_name in each.lists and self._grants_now(each, who, asker, members)
            ]
            if who == holder and mine:
                best = max(mine, key=lambda each: (each.budget.epoch, each.budget.day)).budget
                day += best.reserve
                epoch += best.reserve * best.epoch // best.day
        return day, epoch

    def agreed(self, asker: str) -> dict[str, set[str]]:
        """By holder, the lists that contracts in force let `asker` ask."""
        members = self._members.current
        found: dict[str, set[str]] = {}
        for (holder, who), grants in self._live.items():
            if who == asker:
                for each in grants:
                    if self._grants_now(each, holder, who, members):
                        found.setdefault(holder, set()).update(each.lists)
        return found

    def _standing(self, held: Held) -> str:
        stands = held.state(self._clock())
        if stands is State.PROPOSED:
            return f"{held.name} waits for {_short(contracts.waiting_for(held.terms, held.acts))}"
        if stands is State.ACTIVE:
            gone = gone_of(held, self._members.current)
            left = [each for each in held.terms.signers if not self._members.current.has(each)]
            return (
                f"{held.name} was signed by {_short(gone or left)}, no member any more" if left else held.name
            )
        if stands is State.EXPIRED:
            return f"{held.name} expired {_day(held.terms.expires_at)}"
        ended = [each for each in held.acts if each.action != contracts.APPROVE]
        return f"{held.name} was {stands} by {_short([each.party for each in ended])}"

    def meeting(self, key: bytes, parties: set[str]) -> Held:
        """The contract in force over these two parties' sets; raises `Refused` saying what is missing."""
        held = self._held.get(key)
        if held is None or held.kind != PSI or set(held.terms.parties) != parties:
            raise Refused(
                f"no contract {key.hex()[:12]} lets the sets of {_short(sorted(parties))} meet", "CONTRACT"
            )
        if not self._in_force(held, self._members.current):
            raise Refused(f"the contract is not in force: {self._standing(held)}", "CONTRACT")
        return held

    def gone(self, held: Held) -> list[str]:
        """Signers that have left the network although the contract needs them: it is dead. Of grants of lists also those
        between whom none is left."""
        members = self._members.current
        if gone := gone_of(held, members):
            return gone
        if held.terms.WhichOneof("terms") != "lookup":
            return []
        grants = held.terms.lookup.grants
        if any(members.has(grant.holder) and members.has(grant.asker) for grant in grants):
            return []
        return [each for each in held.terms.parties if not members.has(each)]

    def over_job(self, job_hash: bytes) -> list[Held]:
        """Contracts over a job, in force or not, newest first."""
        return self._jobs.get(job_hash, [])

    def job(self, job_hash: bytes) -> Held:
        """The contract in force over a job of learning; raises `Refused` saying what is missing."""
        found = self.over_job(job_hash)
        members = self._members.current
        for held in found:
            if self._in_force(held, members):
                return held
        why = "; ".join(map(self._standing, found[:_NAMED])) or "none was proposed here"
        raise Refused(
            f"no contract over the job {job_hash.hex()[:12] or '(none)'} is in force: {why}", "CONTRACT"
        )

    def complete(self, draft: pb.Contract) -> pb.Contract:
        """What would be proposed now. Raises `Refused` or `NotFound` for what this node cannot propose."""
        members = self._members.current
        terms = pb.Contract()
        terms.CopyFrom(draft)
        _complete(terms, members)
        if self._own not in terms.parties:
            raise Refused(f"{self._own} is no party of the contract: a party proposes it", "NOT_A_PARTY")
        terms.network, terms.id, terms.proposer = members.network, secrets.token_bytes(16), self._own
        terms.proposed_at = int(self._clock())
        terms.signers[:] = _signers(terms, members)
        try:
            contracts.serialise(terms)
        except PeerError as error:
            raise invalid(str(error)) from error
        self._check(terms)
        return terms

    # -- own acts --------------------------------------------------------------------------------------------

    def propose(self, draft: pb.Contract) -> Held:
        """Complete a draft and approve it for this node. Raises `Refused` or `NotFound`; nothing is stored then."""
        terms = self.complete(draft)
        data = contracts.serialise(terms)
        key = contracts.hash_of(data)
        act = contracts.sign(self._keys.signing, key, self._own, contracts.APPROVE, terms.proposed_at)
        with self._changing:
            return self._add(Held(key, data, terms, (), self._clock()), [act])

    def decide(self, text: str, action: "pb.ContractAct.Action.ValueType") -> Held:
        """This node's word on a contract. Raises `Refused` where that changes nothing any more, or does not fit."""
        held = self.check_decision(text, action)
        with self._changing:
            held = self._held[held.hash]
            self._check_decision(held, action)
            # Where this clock is behind the proposer's, an act is no older than the proposal.
            at = max(int(self._clock()), held.terms.proposed_at)
            return self._add(held, [contracts.sign(self._keys.signing, held.hash, self._own, action, at)])

    def check_decision(self, text: str, action: "pb.ContractAct.Action.ValueType") -> Held:
        """The contract that `decide` would decide on; raises what `decide` would raise."""
        held = self.find(text)
        self._check_decision(held, action)
        if action == contracts.APPROVE:
            self._check(held.terms)  # may read a bank's rows: nobody waits for it
        return held

    def _check_decision(self, held: Held, action: "pb.ContractAct.Action.ValueType") -> None:
        stands = held.state(self._clock())
        if self._own not in held.terms.signers:
            raise Refused(f"{self._own} is not a signer of {held.name}", "NOT_A_PARTY")
        if stands in _OVER:
            raise Refused(f"{self._standing(held)}; propose a new one", "ENDED")
        if action == contracts.APPROVE:
            if held.approved_by(self._own):
                raise Refused(f"this node has approved {held.name} already", "APPROVED")
            self._check_signers(held.terms, self._members.current)  # the network may ask for more by now
        if action == contracts.REVOKE and stands is not State.ACTIVE:
            raise Refused(f"{held.name} is not in force: reject it", "NOT_IN_FORCE")
        if action == contracts.REJECT and stands is State.ACTIVE:
            raise Refused(f"{held.name} is in force: revoke it", "IN_FORCE")

    def _check(self, terms: pb.Contract) -> None:
        if self._own not in terms.parties:
            return  # a regulator keeps no terms
        kind = str(terms.WhichOneof("terms"))
        check = self._checks.get(kind)
        if check is not None:
            check(terms)
        elif kind == JOB:
            raise Refused("this node does not learn: [learn] is not configured", "NO_LEARNING")

    # -- others' acts ----------------------------------------------------------------------------------------

    def told(self, peer: str, signed: pb.SignedContract) -> Held:
        """What a peer knows of a contract, added to what is known here. Raises `Refused`, naming what is wrong."""
        try:
            terms = contracts.parse(signed.contract)
        except PeerError as error:
            raise invalid(str(error)) from error
        key, members = contracts.hash_of(signed.contract), self._members.current
        if terms.network != members.network:
            raise Refused(
                f"the contract is of the network {terms.network}, this one is {members.network}",
                "FOREIGN_NETWORK",
            )
        if len(signed.acts) > len(contracts.ACTIONS) * len(terms.signers):
            raise invalid("more acts than its signers can have said")
        for party, who in ((peer, "the caller"), (self._own, "this node")):
            if party not in terms.signers:
                raise Refused(f"{who} is not a signer of the contract", "NOT_A_PARTY")
        with self._changing:
            held = self._held.get(key)
            if held is None:
                self._check_new(terms, members)
                held = Held(key, signed.contract, terms, (), self._clock())
            known = {(act.party, act.action) for act in held.acts}
            fresh, trouble = [], None
            for said in signed.acts:
                # Made anew: what a signature does not cover goes no further.
                act = pb.ContractAct(
                    party=said.party, action=said.action, at=said.at, signature=said.signature
                )
                if (act.party, act.action) in known:
                    continue
                try:
                    self._check_act(key, terms, act, members)
                    fresh.append(act)
                except Refused as error:
                    if not held.acts:
                        raise
                    trouble = error  # the others' acts are none the worse for it
            if not held.acts and not any(
                act.party == terms.proposer and act.action == contracts.APPROVE for act in fresh
            ):
                raise Refused("the contract is not signed by its proposer", "UNSIGNED")
            after = self._add(held, fresh)
            if trouble is not None:
                raise trouble
            return after

    def _check_new(self, terms: pb.Contract, members: MemberList) -> None:
        now = self._clock()
        self._check_signers(terms, members)
        _check_clock(terms.proposed_at, now, "the contract was proposed")
        if now >= terms.expires_at:
            raise Refused(f"the contract expired {_day(terms.expires_at)}", "EXPIRED")
        if any(each.terms.id == terms.id for each in self._held.values()):
            raise Refused("another contract has this id", "REPLAYED")
        theirs = [each for each in self._held.values() if each.terms.proposer == terms.proposer]
        open_ = sum(each.state(now) is State.PROPOSED for each in theirs)
        if open_ >= limits.OPEN_PROPOSALS:
            raise Refused(f"{open_} proposals of {terms.proposer} are open; decide those first", "TOO_MANY")
        today = [len(each.data) for each in theirs if now - each.heard_at < _DAY]
        if len(today) >= limits.PROPOSALS_A_DAY or sum(today) >= limits.PROPOSED_BYTES_A_DAY:
            raise Refused(f"{terms.proposer} has proposed enough for a day; later", "TOO_MANY")

    @staticmethod
    def _check_signers(terms: pb.Contract, members: MemberList) -> None:
        for signer in terms.signers:
            members.get(signer)
        if list(terms.signers) != _signers(terms, members):
            raise Refused(
                "the contract lacks a signer that this network asks for, or has one too many", "SIGNERS"
            )

    def _check_act(self, key: bytes, terms: pb.Contract, act: pb.ContractAct, members: MemberList) -> None:
        if act.party not in terms.signers:
            raise Refused(f"{act.party[:200]} is not a signer of the contract", "NOT_A_PARTY")
        if act.action == contracts.APPROVE:  # an end counts whatever its author's clock says
            _check_clock(act.at, self._clock(), f"{act.party} acted")
        try:
            contracts.verify(key, terms, act, members.get(act.party).verifier)
        except PeerError as error:
            raise Refused(str(error), "SIGNATURE") from error

    def purge(self) -> int:
        """Forget proposals that ended long ago without this node's approval; how many.

        Told again, such a one is a proposal again: without a new approval here it is never in force.
        """
        with self._changing:
            now = self._clock()
            gone = [
                held.hash
                for held in self._held.values()
                if held.state(now) in _OVER
                and now - held.heard_at > _KEPT
                and not held.approved_by(self._own)
            ]
            if gone:
                with db.writing(self._database) as connection:
                    act = schema.contract_act
                    connection.execute(act.delete().where(act.c.contract.in_(gone)))
                    connection.execute(schema.contract.delete().where(schema.contract.c.hash.in_(gone)))
                self._keep({key: held for key, held in self._held.items() if key not in set(gone)})
            return len(gone)

    # -- storing ---------------------------------------------------------------------------------------------

    def _add(self, held: Held, fresh: Iterable[pb.ContractAct]) -> Held:
        """Contract, acts and the log's events of them, in one transaction."""
        acts = contracts.merge(held.acts, fresh)
        changed = [each for each in acts if each not in held.acts]
        if not changed:
            return held
        before, after = self._held, replace(held, acts=tuple(acts))
        ends = any(act.action != contracts.APPROVE for act in changed)
        if ends:
            self._keep(before | {held.hash: after})  # an end holds before it is durable, never after
        try:
            self._store(held, changed)
        except BaseException:
            self._keep(before)
            raise
        if not ends:
            self._keep(before | {held.hash: after})
        self.version += 1
        return after

    def _store(self, held: Held, changed: Iterable[pb.ContractAct]) -> None:
        with db.writing(self._database) as connection:
            connection.execute(
                insert(schema.contract)
                .values(hash=held.hash, body=held.data, at=held.heard_at)
                .on_conflict_do_nothing()
            )
            for act in changed:
                connection.execute(
                    insert(schema.contract_act)
                    .values(
                        contract=held.hash,
                        party=act.party,
                        action=act.action,
                        at=act.at,
                        signature=act.signature,
                    )
                    .on_conflict_do_nothing()
                )
                event = ledger_pb2.ContractEvent(network=held.terms.network, contract=held.hash, act=act)
                self._log.record_clear(connection, events.contract_leaf(event))


def gone_of(held: Held, members: MemberList) -> list[str]:
    """Who has left the network and ends the whole contract by it.

    Of grants of lists those whom the terms name in `must_stay`: the others' grants go on without the one who left. Of sets
    and jobs every signer.
    """
    needed = held.terms.must_stay if held.terms.WhichOneof("terms") == "lookup" else held.terms.signers
    return [each for each in needed if not members.has(each)]


def _complete(terms: pb.Contract, members: MemberList) -> None:
    """Names as SPIFFE ids, everything that ascends in its order, and the parties that the terms name."""

    def full(name: str) -> str:
        return members.find(name).id

    if terms.WhichOneof("terms") == "lookup":
        for grant in terms.lookup.grants:
            grant.holder, grant.asker = full(grant.holder), full(grant.asker)
            grant.lists[:] = sorted(set(grant.lists))
            grant.purposes[:] = sorted(set(grant.purposes))
            grant.bases[:] = sorted(set(grant.bases))
        grants = sorted(terms.lookup.grants, key=lambda each: (each.holder, each.asker, list(each.lists)))
        del terms.lookup.grants[:]
        terms.lookup.grants.extend(grants)
        named = {name for grant in grants for name in (grant.holder, grant.asker)}
    elif terms.WhichOneof("terms") == "psi":
        for each in terms.psi.inputs:
            each.party = full(each.party)
        inputs = sorted(terms.psi.inputs, key=lambda each: each.party)
        del terms.psi.inputs[:]
        terms.psi.inputs.extend(inputs)
        terms.psi.output_to[:] = sorted({full(each) for each in terms.psi.output_to})
        named = {each.party for each in inputs}
    else:
        named = {full(each) for each in terms.parties}
    terms.parties[:] = sorted(named)
    terms.must_stay[:] = sorted({full(each) for each in terms.must_stay})


def _signers(terms: pb.Contract, members: MemberList) -> list[str]:
    """The parties, and the regulators where the network's member list asks for their signature."""
    regulators = [each.id for each in members if each.name.role is Role.REGULATOR]
    return sorted({*terms.parties, *(regulators if members.regulator_signs else ())})


def _check_clock(at: float, now: float, what: str) -> None:
    ahead = at - now
    if ahead > limits.CLOCK_SKEW.total_seconds():
        raise Refused(f"{what} {ahead:.0f} s in this node's future: the clocks differ", "CLOCK")


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _short(names: Iterable[str]) -> str:
    return ", ".join(each.rpartition("/")[2] for each in names)
