"""Contracts on the wire: for the other signers, and for this node's own people."""

import asyncio
import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from lianfang.v1 import contract_pb2 as pb
from lianfang.v1 import contract_pb2_grpc

from protocols import contract as contracts
from protocols.encoding import frame

from ..errors import invalid
from ..people.actions import Action, Actions
from ..policy import BASIS_NAMES, PURPOSE_NAMES
from ..report import iso
from ..services import wire
from .book import ContractBook, Held

ACTION_NAMES = {contracts.APPROVE: "approved", contracts.REJECT: "rejected", contracts.REVOKE: "revoked"}


class ContractService(contract_pb2_grpc.ContractsServicer):
    """On the peer port."""

    def __init__(self, authenticator: wire.Authenticator, book: ContractBook) -> None:
        self._authenticator, self._book = authenticator, book

    @wire.unary
    async def Tell(self, request: pb.SignedContract, context: Any) -> pb.SignedContract:
        """See contract.proto. The caller gets nothing of a contract that it does not sign."""
        member = self._authenticator.member(context)
        held = await asyncio.to_thread(self._book.told, member.id, request)
        return held.signed()


class ContractAdminService(contract_pb2_grpc.ContractAdminServicer):
    """On the node's socket."""

    def __init__(self, book: ContractBook, actions: Actions) -> None:
        self._book, self._actions = book, actions

    @wire.unary
    async def Propose(self, request: pb.Contract, context: Any) -> pb.ContractReply:
        """Complete, sign, store; the courier sends it. Takes two people."""

        def work() -> Held:
            terms = self._book.complete(request)
            # A draft says for how long it is to be in force: that, and not the second, is approved.
            minutes = round((terms.expires_at - terms.proposed_at) / 60)
            lasting = pb.Contract()
            lasting.CopyFrom(request)
            lasting.expires_at = 0
            data = frame(lasting.SerializeToString(deterministic=True), minutes)
            content = {
                "terms": _terms(terms),
                "parties": [_short(each) for each in terms.parties],
                "days": round(minutes / 1_440, 2),
                "retention_days": terms.retention_days,
            }
            action = Action("ContractAdmin/Propose", data, f"propose {request.title!r}", content)
            with self._actions.doing(action, second=True):
                return self._book.propose(request)

        return self._reply(await asyncio.to_thread(work))

    @wire.unary
    async def Decide(self, request: pb.ContractDecision, context: Any) -> pb.ContractReply:
        """Approve, which takes two people, reject or revoke."""
        if request.action not in ACTION_NAMES:
            raise invalid("approve, reject or revoke")

        def work() -> Held:
            held = self._book.check_decision(request.contract, request.action)
            whole = pb.ContractDecision(contract=held.hash.hex(), action=request.action)
            said = ACTION_NAMES[request.action].removesuffix("d")
            action = Action(
                "ContractAdmin/Decide",
                whole.SerializeToString(deterministic=True),
                f"{said} the contract {held.name}",
                describe(self._book, held) | {"terms": _terms(held.terms)},
            )
            with self._actions.doing(action, second=request.action == contracts.APPROVE):
                return self._book.decide(whole.contract, request.action)

        return self._reply(await asyncio.to_thread(work))

    @wire.unary
    async def List(self, request: pb.ListContractsRequest, context: Any) -> pb.ContractReply:
        """All contracts, or one with its terms."""
        if request.contract:
            return self._reply(self._book.find(request.contract))
        rows = [describe(self._book, held) for held in self._book.all()]
        return pb.ContractReply(document=wire.struct({"contracts": rows}))

    def _reply(self, held: Held) -> pb.ContractReply:
        document = describe(self._book, held) | {"terms": _terms(held.terms)}
        return pb.ContractReply(document=wire.struct(document))


def describe(book: ContractBook, held: Held) -> dict[str, Any]:
    """For people: who, how it stands, until when, and whose leaving has ended it."""
    terms, now = held.terms, book.now()
    return {
        "contract": held.hash.hex(),
        "title": terms.title,
        "kind": str(terms.WhichOneof("terms")),
        "state": str(held.state(now)),
        "proposer": _short(terms.proposer),
        "parties": [_short(each) for each in terms.parties],
        "signers": [_short(each) for each in terms.signers],
        "gone": [_short(each) for each in book.gone(held)],
        "must_stay": [_short(each) for each in terms.must_stay],
        "waiting_for": [_short(each) for each in contracts.waiting_for(terms, held.acts)],
        "proposed_at": iso(terms.proposed_at),
        "expires_at": iso(terms.expires_at),
        "retention_days": terms.retention_days,
        "acts": [
            {"party": _short(act.party), "action": ACTION_NAMES[act.action], "at": iso(act.at)}
            for act in held.acts
        ],
    }


def _terms(terms: pb.Contract) -> dict[str, Any]:
    if terms.WhichOneof("terms") == "lookup":
        return {
            "grants": [
                {
                    "holder": _short(grant.holder),
                    "asker": _short(grant.asker),
                    "lists": list(grant.lists),
                    "purposes": [PURPOSE_NAMES[each] for each in grant.purposes],
                    "bases": [BASIS_NAMES[each] for each in grant.bases],
                    "budget": {
                        "epoch": grant.budget.epoch,
                        "day": grant.budget.day,
                        "burst": grant.budget.burst,
                        "burst_seconds": grant.budget.burst_seconds,
                        "reserve": grant.budget.reserve,
                        "purposes": {PURPOSE_NAMES[each.purpose]: each.day for each in grant.budget.purposes},
                    },
                }
                for grant in terms.lookup.grants
            ]
        }
    if terms.WhichOneof("terms") == "psi":
        return dict(MessageToDict(terms.psi, preserving_proto_field_name=True))
    return {
        "job": contracts.job_hash(terms.job.descriptor).hex(),
        "schema": terms.job.schema_hash.hex(),
        "descriptor": terms.job.descriptor.decode(errors="replace"),
        **_exposed(terms),
    }


def _exposed(terms: pb.Contract) -> dict[str, str]:
    """In words, what the parties of a job accept who let its rows be in several sums."""
    try:
        job = json.loads(terms.job.descriptor)
        if job["exposure"] != "accepted":
            return {}
        exposed = [_short(each) for each in job["parties"] if each not in job["observers"]]
        coordinator = _short(job["coordinator"])
    except (ValueError, KeyError, TypeError):
        return {}  # no job: it is refused before anybody is asked
    return {
        "exposure": f"ACCEPTED: the rows of any of {', '.join(exposed)} could be exposed to the others and {coordinator}, who compare "
        "this job's sums with those of other runs over rows that overlap: with other members, or another version of the rows"
    }


def _short(name: str) -> str:
    return name.rpartition("/")[2]
