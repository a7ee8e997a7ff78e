"""Lookup: evaluates blinded points. The holder sees 32-byte points that are uniform whatever was asked."""

import asyncio
import collections
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
from lianfang.v1 import common_pb2 as common
from lianfang.v1 import ledger_pb2, lookup_pb2_grpc
from lianfang.v1 import lookup_pb2 as pb

from protocols import group, lookup, padding, voprf
from protocols.encoding import frame
from protocols.errors import PeerError, SignatureError
from protocols.ledger import events
from protocols.ledger.events import Committed
from protocols.statement import LIST_NAME

from .. import gate as gates
from .. import limits
from ..errors import Refused, invalid
from ..gate import Ask, Gate
from ..holder.epochs import Epochs
from ..identity.members import Member
from ..ledger.book import LogBook
from ..policy import BASIS_NAMES, PURPOSE_NAMES
from ..workers import Workers
from . import wire

_CHECKED_AT_ONCE = max(32, group.AT_ONCE)  # points that are checked without leaving the event loop: 0.2 ms


def request_hash(request: pb.EvaluateRequest) -> bytes:
    """What a repeated query id must repeat. Time and table are not part of it: a retry may come later."""
    return hashlib.sha256(
        frame(
            "lianfang/v1/evaluate",
            request.suite,
            request.list,
            request.epoch,
            request.purpose,
            request.basis,
            request.case_commitment,
            request.asker,
            request.blinded,
        )
    ).digest()


def check_shape(request: pb.EvaluateRequest) -> int:
    """Sizes, counts and codes before any work; the number of elements. Raises `Refused`."""
    if request.suite != common.SUITE_RISTRETTO255_SHA512:
        raise invalid(f"suite {request.suite} is not known here")
    if len(request.blinded) % group.POINT:
        raise invalid(f"blinded: {len(request.blinded)} bytes is not a multiple of {group.POINT}")
    count = len(request.blinded) // group.POINT
    if not 1 <= count <= limits.BATCH_ELEMENTS:
        raise invalid(f"a batch has 1 to {limits.BATCH_ELEMENTS} elements, not {count}")
    if padding.bucket(count) != count:
        raise invalid(f"a batch of {count} is not padded; the bucket is {padding.bucket(count)}")
    if not LIST_NAME.fullmatch(request.list):
        raise invalid("not a list name")
    for field, size in (("query_id", 16), ("case_commitment", 32), ("asker", 16)):
        if len(getattr(request, field)) != size:
            raise invalid(f"{field} has {size} bytes, not {len(getattr(request, field))}")
    if request.purpose not in PURPOSE_NAMES:
        raise invalid("a purpose is needed")
    if request.basis not in BASIS_NAMES:
        raise invalid("a legal basis is needed")
    return count


def event_fields(request: pb.EvaluateRequest) -> dict[str, Any]:
    """What both parties record of a request."""
    return {
        "resource": request.list,
        "epoch": request.epoch,
        "suite": request.suite,
        "purpose": request.purpose,
        "basis": request.basis,
        "count": len(request.blinded) // group.POINT,
        "request_hash": request_hash(request),
        "case_commitment": request.case_commitment,
        "asker": request.asker,
    }


def check_event(event: ledger_pb2.Event, expected: dict[str, Any]) -> None:
    """Raise `SignatureError` unless the event says all of this: its type, id, other party, and the `event_fields` of a request."""
    for field, value in expected.items():
        if getattr(event, field) != value:
            raise SignatureError(f"the recorded {field.replace('_', ' ')} is not this request's")


class LookupService(lookup_pb2_grpc.LookupServicer):
    """The smallest requests are answered on the event loop, small ones have a thread of their own; large ones share
    the worker processes in turns."""

    def __init__(
        self,
        authenticator: wire.Authenticator,
        epochs: Epochs,
        gate: Gate,
        workers: Workers,
        capture: wire.Capture,
        log: LogBook,
    ) -> None:
        self._log = log
        self._epochs, self._gate, self._workers, self._capture = epochs, gate, workers, capture
        self._authenticator = authenticator
        self._fast = ThreadPoolExecutor(1, "lookup")
        self._bulk = ThreadPoolExecutor(16, "bulk")
        self._under_way: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        """Let what runs end."""
        self._fast.shutdown()
        self._bulk.shutdown()

    @wire.unary
    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        """See lookup.proto. Charged and recorded before the first multiplication under the key."""
        member = self._authenticator.member(context)
        self._capture.record("in", "Evaluate", member.id, request)
        count = check_shape(request)
        fields = event_fields(request)
        ask = self._ask(request, member, fields)
        contract = self._gate.precheck(ask).contract
        committed = self._asked(request, ask, fields)
        ask = replace(ask, receipt=(request.receipt, committed), recorded_at=committed.event.at / 1000)
        if count <= limits.BATCH_INLINE:
            response = await self._answer(request, ask, contract, self._fast, voprf.inline)
        else:
            if self._under_way[member.id] >= limits.CONCURRENT_BULK:
                raise Refused(
                    f"{limits.CONCURRENT_BULK} large requests of yours are under way; wait for one",
                    "BUSY",
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )
            self._under_way[member.id] += 1
            where = (self._bulk, self._workers.run if count > group.AT_ONCE else voprf.inline)
            work = asyncio.ensure_future(self._answer(request, ask, contract, *where))
            work.add_done_callback(lambda _: self._ended(member.id))
            response = await asyncio.shield(work)  # a caller that goes leaves its work in the count
        self._capture.record("out", "Evaluate", member.id, response)
        return response

    def _ended(self, member_id: str) -> None:
        self._under_way[member_id] -= 1
        if not self._under_way[member_id]:
            del self._under_way[member_id]

    def _ask(self, request: pb.EvaluateRequest, member: Member, fields: dict[str, Any]) -> Ask:
        return Ask(
            member,
            gates.EVALUATE,
            request.list,
            request.epoch,
            fields["count"],
            request.query_id,
            fields["request_hash"],
            request.purpose,
            request.basis,
            request.case_commitment,
            request.asker,
            request.asked_at,
            check=lambda: self._check_current(request),
        )

    async def _answer(
        self,
        request: pb.EvaluateRequest,
        ask: Ask,
        contract: bytes,
        executor: ThreadPoolExecutor,
        run: voprf.Runner,
    ) -> pb.EvaluateResponse:
        loop = asyncio.get_running_loop()
        if ask.count <= _CHECKED_AT_ONCE:
            group.check_points(request.blinded)
        else:
            await loop.run_in_executor(executor, self._check_points, request.blinded, run)
        entry = self._gate.prepare(ask, contract)
        deciding = self._gate.decide(ask, entry)
        receipt = self._log.receipt(entry)  # while the disk is waited for; nothing is sent before
        decision = await deciding
        key = self._epochs.key(request.list, request.epoch)
        if ask.count <= group.AT_ONCE:
            evaluated, proof = lookup.answer(key, request.blinded)
        else:
            evaluated, proof = await loop.run_in_executor(executor, lookup.answer, key, request.blinded, run)
        assert decision.entry is not None  # of an evaluation
        if decision.entry is not entry:
            receipt = self._log.receipt(decision.entry)
        return pb.EvaluateResponse(
            evaluated=evaluated,
            proof=proof,
            budget=decision.budget,
            repeated_answer=decision.repeated,
            receipt=receipt,
        )

    def _asked(self, request: pb.EvaluateRequest, ask: Ask, fields: dict[str, Any]) -> Committed:
        """The querier's own record of this very request; raises `Refused` where it gives no receipt of it."""
        try:
            committed = events.verify_receipt(request.receipt, ask.member.verifier, ask.member.id)
            asked = {"type": ledger_pb2.EVENT_TYPE_QUERY_ASKED, "id": ask.query_id, "peer": self._log.owner}
            check_event(committed.event, asked | fields)
        except PeerError as error:
            raise Refused(
                f"the request carries no valid receipt of the asking member's log: {error}",
                "RECEIPT",
                grpc.StatusCode.FAILED_PRECONDITION,
            ) from error
        at, now = committed.event.at / 1000, time.time()
        if not now - limits.QUESTION_AGE.total_seconds() <= at <= now + limits.CLOCK_SKEW.total_seconds():
            raise invalid("the receipt is of another time")
        if not 0 <= request.receipt.include_by - at <= limits.RECEIPT_SECONDS:
            raise invalid("the receipt promises the log's entry for too late")
        return committed

    @staticmethod
    def _check_points(blinded: bytes, run: voprf.Runner) -> None:
        step = 1024 * group.POINT
        run(group.check_points, [(blinded[i : i + step],) for i in range(0, len(blinded), step)])

    def _check_current(self, request: pb.EvaluateRequest) -> None:
        """Refuse a closed epoch, and a member that has not applied the newest removals."""
        self._epochs.key(request.list, request.epoch)
        head = self._epochs.head(request.list, request.epoch)
        if request.table_batch != head:
            raise Refused(
                f"your copy of {request.list} is at batch {request.table_batch}, the newest is {head}: sync first",
                "BEHIND",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
