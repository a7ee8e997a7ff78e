"""Contracts: canonical bytes, signed acts on them, and the state that a set of acts is in.

An act is never taken back, only added to: the state is a function of the set of acts, whatever order they came in, so
two members that hold the same acts see the same state.

                      every signer approved              now ≥ expires_at
    (proposed) ───────────────────────────▶ (active) ────────────────────▶ (expired)
        │  └── now ≥ expires_at ──▶ (expired)  │
        │ any signer rejects                   │ any signer revokes, or rejects
        ▼                                      ▼
    (rejected)                             (revoked)

What has ended stays ended: an approval that arrives later changes nothing.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError as ProtobufError
from lianfang.v1 import common_pb2
from lianfang.v1 import contract_pb2 as pb

from . import signatures
from .encoding import frame
from .errors import DecodeError
from .identifiers import Kind
from .identifiers.kinds import REVIEW_ONLY, WITH_COUNTRY
from .statement import LIST_NAME

MAX_BYTES = 600_000
MAX_DAYS = 1_100  # from proposal to expiry
MAX_RETENTION = 3_660  # days
ID = 16
_DAY = 86_400
_MAX_PARTIES, _MAX_GRANTS, _MAX_LISTS = 100, 400, 100
_MAX_COUNT = 1 << 53
_MAX_SESSIONS = 100
_MOST_DECIMALS = 6
_NAME = 253
_ALONE = set(Kind) - REVIEW_ONLY - WITH_COUNTRY - {Kind.ACCOUNT}  # identifiers without country or institution
_HASH_DOMAIN = "lianfang/v1/contract"
_JOB_DOMAIN = "lianfang/v1/job"
_ACT_DOMAIN = "lianfang/v1/contract-act"

APPROVE = pb.ContractAct.ACTION_APPROVE
REJECT = pb.ContractAct.ACTION_REJECT
REVOKE = pb.ContractAct.ACTION_REVOKE
ACTIONS = (APPROVE, REJECT, REVOKE)


class State(StrEnum):
    """How a contract stands."""

    PROPOSED = "proposed"
    ACTIVE = "active"
    REJECTED = "rejected"
    REVOKED = "revoked"
    EXPIRED = "expired"


def _need(holds: object, message: str) -> None:
    if not holds:
        raise DecodeError(f"contract: {message}")


def _ascending(values: Sequence[object]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))  # type: ignore[operator]


def _text(value: str, size: int) -> bool:
    return 0 < len(value) <= size and value.isprintable() and value == value.strip()


# -- bytes ------------------------------------------------------------------------------------------------------------


def serialise(contract: pb.Contract) -> bytes:
    """The one encoding. Raises `DecodeError` naming the field of a contract that no signer would accept."""
    data = contract.SerializeToString(deterministic=True)
    parse(data)
    return data


def parse(data: bytes) -> pb.Contract:
    """Raise `DecodeError` naming the field, unless `data` is the canonical encoding of a contract in range."""
    _need(len(data) <= MAX_BYTES, f"{len(data):,} bytes, at most {MAX_BYTES:,}")
    contract = pb.Contract()
    try:
        contract.ParseFromString(data)
    except ProtobufError as error:
        raise DecodeError("contract: cannot be parsed") from error
    contract.DiscardUnknownFields()
    _need(contract.SerializeToString(deterministic=True) == data, "not in its one encoding")
    _need(_text(contract.network, 253), "network: a name is needed")
    _need(len(contract.id) == ID, f"id: {ID} bytes are needed")
    _need(_text(contract.title, 100), "title: 1 to 100 printable characters are needed")
    parties, signers = list(contract.parties), list(contract.signers)
    _need(2 <= len(parties) <= _MAX_PARTIES, f"parties: 2 to {_MAX_PARTIES} are needed")
    _need(_ascending(parties) and _ascending(signers), "parties and signers: ascending, each once")
    _need(all(_text(name, _NAME) for name in signers), "signers: not a member's name")
    _need(set(parties) <= set(signers), "signers: every party signs")
    _need(len(signers) <= 2 * _MAX_PARTIES, f"signers: at most {2 * _MAX_PARTIES}")
    _need(contract.proposer in parties, "proposer: a party proposes")
    staying = list(contract.must_stay)
    _need(_ascending(staying) and set(staying) <= set(signers), "must_stay: ascending, of the signers")
    _need(0 < contract.proposed_at < contract.expires_at, "expires_at: it ends before it begins")
    _need(
        contract.expires_at - contract.proposed_at <= MAX_DAYS * _DAY, f"expires_at: within {MAX_DAYS} days"
    )
    _need(0 < contract.retention_days <= MAX_RETENTION, f"retention_days: 1 to {MAX_RETENTION}")
    kind = contract.WhichOneof("terms")
    _need(not staying or kind == "lookup", "must_stay: of sets and jobs every signer has to stay")
    if kind == "lookup":
        named = _check_lookup(contract.lookup)
    elif kind == "psi":
        named = _check_psi(contract.psi)
    elif kind == "job":
        _need(contract.job.descriptor, "job.descriptor: missing")
        _need(len(contract.job.schema_hash) == 32, "job.schema_hash: 32 bytes are needed")
        return contract  # whom the descriptor names is for its reader to compare
    else:
        raise DecodeError("contract: terms: lookup, job or psi is needed")
    _need(named == set(parties), "parties: exactly those whom the terms name")
    return contract


def _check_lookup(terms: pb.LookupTerms) -> set[str]:
    grants = terms.grants
    _need(1 <= len(grants) <= _MAX_GRANTS, f"grants: 1 to {_MAX_GRANTS} are needed")
    _need(_ascending([(each.holder, each.asker, list(each.lists)) for each in grants]), "grants: ascending")
    for number, grant in enumerate(grants, 1):
        where = f"grant {number}"
        _need(grant.holder != grant.asker, f"{where}: a member does not ask itself")
        lists = list(grant.lists)
        _need(1 <= len(lists) <= _MAX_LISTS and _ascending(lists), f"{where}: lists: ascending, each once")
        _need(all(map(LIST_NAME.fullmatch, lists)), f"{where}: lists: not a list name")
        for field, values, known in (
            ("purposes", list(grant.purposes), common_pb2.Purpose.values()),
            ("bases", list(grant.bases), common_pb2.LegalBasis.values()),
        ):
            _need(
                _ascending(values) and set(values) <= set(known) - {0}, f"{where}: {field}: ascending, known"
            )
        _need(grant.purposes, f"{where}: purposes: at least one is needed")
        budget = grant.budget
        counts = (budget.epoch, budget.day, budget.burst)
        _need(
            all(0 < each < _MAX_COUNT for each in counts), f"{where}: budget: epoch, day and burst are needed"
        )
        _need(1 <= budget.burst_seconds <= 3_600, f"{where}: budget: burst_seconds: 1 to 3600")
        _need(budget.reserve <= budget.day, f"{where}: budget: the reserve is a part of the day's")
        bounded = [each.purpose for each in budget.purposes]
        _need(bounded == sorted(set(bounded)), f"{where}: budget: purposes ascend, each once")
        _need(
            set(bounded) <= set(grant.purposes), f"{where}: budget: a bound for a purpose that is not granted"
        )
        _need(
            all(0 < each.day <= budget.day for each in budget.purposes),
            f"{where}: budget: a purpose's bound is a part of the day's",
        )
    places = [(grant.holder, grant.asker, name) for grant in grants for name in grant.lists]
    _need(len(set(places)) == len(places), "grants: one holder's list is granted to one asker once")
    return {name for grant in grants for name in (grant.holder, grant.asker)}


def _check_psi(terms: pb.PsiTerms) -> set[str]:
    parties = [each.party for each in terms.inputs]
    _need(len(parties) == 2 and _ascending(parties), "psi.inputs: two, ascending by party")
    known = "intersection, cardinality, sum or alignment"
    _need(terms.variant in pb.PsiTerms.Variant.values()[1:], f"psi.variant: {known}")
    adds = terms.variant == pb.PsiTerms.VARIANT_SUM
    _need(terms.kind in _ALONE, "psi.kind: a kind of identifier that is one without another column is needed")
    _need(0 < terms.sessions_a_day <= _MAX_SESSIONS, f"psi.sessions_a_day: 1 to {_MAX_SESSIONS}")
    for each in terms.inputs:
        _need(LIST_NAME.fullmatch(each.dataset), "psi.inputs: dataset: not a name")
        _need(_text(each.column, 100), "psi.inputs: column: a name is needed")
        _need(not each.values or _text(each.values, 100), "psi.inputs: values: not a column's name")
        _need(0 < each.max_elements < _MAX_COUNT, "psi.inputs: max_elements is needed")
    _need(
        sum(bool(each.values) for each in terms.inputs) == adds,
        "psi.inputs: values: one party's, with sum only",
    )
    output = list(terms.output_to)
    _need(output and _ascending(output) and set(output) <= set(parties), "psi.output_to: one party or both")
    _need(1 <= terms.sum_bits <= 62 if adds else terms.sum_bits == 0, "psi.sum_bits: 1 to 62, with sum only")
    _need(not adds or terms.minimum_cardinality >= 2, "psi.minimum_cardinality: with sum, 2 or more")
    _need(
        terms.decimals <= (_MOST_DECIMALS if adds else 0), f"psi.decimals: to {_MOST_DECIMALS}, with sum only"
    )
    both = terms.variant != pb.PsiTerms.VARIANT_ALIGNMENT or len(output) == 2
    _need(both, "psi.output_to: an alignment is for both")
    return set(parties)


def hash_of(data: bytes) -> bytes:
    """32 bytes that name a contract."""
    return hashlib.sha256(frame(_HASH_DOMAIN, data)).digest()


def job_hash(descriptor: bytes) -> bytes:
    """32 bytes that name a job of learning, part of every signature and key of its sums."""
    return hashlib.sha256(frame(_JOB_DOMAIN, descriptor)).digest()


# -- acts -------------------------------------------------------------------------------------------------------------


def _message(contract: bytes, act: pb.ContractAct) -> bytes:
    return frame(_ACT_DOMAIN, contract, act.party, act.action, act.at)


def sign(
    key: Ed25519PrivateKey, contract: bytes, party: str, action: "pb.ContractAct.Action.ValueType", at: int
) -> pb.ContractAct:
    """`contract` is the hash, `at` in seconds since 1970."""
    act = pb.ContractAct(party=party, action=action, at=at)
    act.signature = key.sign(_message(contract, act))
    return act


def verify(contract: bytes, terms: pb.Contract, act: pb.ContractAct, signer: Ed25519PublicKey) -> None:
    """Raise `DecodeError` or `SignatureError` unless `act` is a signer's word on this contract, in its time."""
    _need(act.action in ACTIONS, f"an act of {act.party or 'nobody'} is of no known kind")
    _need(act.party in terms.signers, f"{act.party} is not one of its signers")
    _need(terms.proposed_at <= act.at < _MAX_COUNT, f"an act of {act.party} is older than the proposal")
    if act.action == APPROVE:
        _need(act.at < terms.expires_at, f"the approval of {act.party} is of a time after its expiry")
    complaint = f"contract: the act is not signed by {act.party}"
    signatures.verify(signer, _message(contract, act), act.signature, complaint)


def merge(*sets: Iterable[pb.ContractAct]) -> list[pb.ContractAct]:
    """All acts, ascending by party and action. Of one party's equal acts the first stays: the state is the same."""
    found: dict[tuple[str, int], pb.ContractAct] = {}
    for act in itertools.chain(*sets):
        found.setdefault((act.party, act.action), act)
    return [found[each] for each in sorted(found)]


def waiting_for(terms: pb.Contract, acts: Iterable[pb.ContractAct]) -> list[str]:
    """Signers that have not approved."""
    done = {act.party for act in acts if act.action == APPROVE}
    return [each for each in terms.signers if each not in done]


def state(terms: pb.Contract, acts: Sequence[pb.ContractAct], now: float) -> State:
    """How a contract stands; `now` in seconds since 1970. The acts are verified ones."""
    approved = not waiting_for(terms, acts)
    actions = {act.action for act in acts}
    if REVOKE in actions or (REJECT in actions and approved):
        return State.REVOKED
    if REJECT in actions:
        return State.REJECTED
    if now >= terms.expires_at:
        return State.EXPIRED
    return State.ACTIVE if approved else State.PROPOSED
