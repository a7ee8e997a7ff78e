"""The evidence of one case in one file: events with their openings, where each stands in which log, the cosigned heads,
and the member list that binds the keys. Made by a node; verified by anybody, with no network and no database.

The file is JSON in one encoding, signed as a whole by its maker, so that every changed byte is noticed.
"""

import base64
import binascii
import datetime as dt
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from lianfang.v1 import ledger_pb2

from protocols import merkle, signatures
from protocols.encoding import frame
from protocols.errors import ProtocolError, SignatureError
from protocols.ledger import checkpoints, events
from protocols.ledger.checkpoints import Head
from protocols.ledger.events import Committed
from protocols.ledger.proofs import LogProof

from .. import limits
from ..errors import NodeError, Refused
from ..identity import certificates
from ..identity.keys import NodeKeys
from ..identity.members import Member, MemberList
from ..policy import BASIS_NAMES, PURPOSE_NAMES

VERSION = 1
MAX_BUNDLE = 64 * 1024 * 1024
_DOMAIN = "lianfang/v1/bundle"
_CASE_DOMAIN = "lianfang/v1/case"


class BundleError(NodeError):
    """The file proves nothing: says what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "BUNDLE")


def case_commitment(salt: bytes, case: str) -> bytes:
    """32 bytes: what stands for a case number outside its node."""
    return hashlib.sha256(frame(_CASE_DOMAIN, salt, case)).digest()


@dataclass(frozen=True)
class Case:
    """A case number and the salts of its commitments, one for each purpose and legal basis."""

    number: str
    salts: tuple[bytes, ...]


@dataclass(frozen=True)
class Evidence:
    """One event, opened, and its proof."""

    opening: ledger_pb2.Opening
    proof: LogProof


@dataclass(frozen=True)
class Evidences:
    """What can be proven of a case, and others' receipts for what their logs do not show."""

    found: tuple[Evidence, ...]
    promises: tuple[ledger_pb2.Receipt, ...] = ()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _serialise(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _signed_part(document: dict[str, Any]) -> bytes:
    return frame(_DOMAIN, _serialise({key: value for key, value in document.items() if key != "signature"}))


def make(
    maker: str,
    keys: NodeKeys,
    members: MemberList,
    ca: x509.Certificate,
    case: Case | None,
    evidence: Evidences,
) -> bytes:
    """The file's bytes."""
    document: dict[str, Any] = {
        "lianfang_bundle": VERSION,
        "network": members.network,
        "maker": maker,
        "made_at": int(time.time()),
        "case": {"number": case.number, "salts": [_b64(salt) for salt in case.salts]} if case else None,
        "ca": certificates.pem(ca).decode(),
        "members": _b64(members.signed),
        "entries": [
            {
                "event": _b64(each.opening.event),
                "salt": _b64(each.opening.salt),
                "proof": str(each.proof).splitlines(),
            }
            for each in evidence.found
        ],
        "promises": [
            {
                "event": _b64(each.opening.event),
                "salt": _b64(each.opening.salt),
                "include_by": each.include_by,
                "signature": _b64(each.signature),
            }
            for each in evidence.promises
        ],
    }
    document["signature"] = _b64(keys.signing.sign(_signed_part(document)))
    return _serialise(document)


# -- verifying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proven:
    """One event that the file proves to stand in a log."""

    committed: Committed
    index: int
    head: Head
    quorum: int
    in_case: bool


@dataclass(frozen=True)
class Verified:
    """What a file proves."""

    maker: str
    made_at: int
    ca_fingerprint: str
    ca_trusted: bool
    case: str
    member_list_version: int
    entries: tuple[Proven, ...]
    promises: tuple[Committed, ...]  # signed by their makers, not shown by their logs


def _field(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if type(value) is not kind:
        raise BundleError(f"field {name} is missing or of another kind")
    return value


def _bytes(text: Any, name: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BundleError(f"field {name} is not base64") from error
    if _b64(data) != text:
        raise BundleError(f"field {name} is not canonical base64")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """The document; raises `BundleError` unless the file is in its one encoding."""
    if len(data) > MAX_BUNDLE:
        raise BundleError("the file is too long")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError("the file is not JSON") from error
    if not isinstance(document, dict) or document.get("lianfang_bundle") != VERSION:
        raise BundleError("the file is not a bundle of this version")
    try:
        same = _serialise(document) == data
    except (ValueError, RecursionError) as error:
        raise BundleError("the file is not in its one encoding") from error
    if not same:
        raise BundleError("the file is not in its one encoding: it was changed")
    return document


def verify(data: bytes, trusted: x509.Certificate | None = None) -> Verified:
    """Check everything in the file against the CA `trusted`, or against the one in the file, which the caller compares.

    Raises `BundleError` that says what does not hold.
    """
    document = parse(data)
    try:
        ca = x509.load_pem_x509_certificate(_field(document, "ca", str).encode())
        if certificates.pem(ca).decode() != document["ca"]:
            raise BundleError("field ca is not in its one encoding")
        if trusted is not None and certificates.der(trusted) != certificates.der(ca):
            raise BundleError("the file is of another network's CA")
        members = MemberList(_bytes(document.get("members"), "members"), ca)
        if members.network != _field(document, "network", str):
            raise BundleError("the member list is of another network")
        maker = members.get(_field(document, "maker", str))
        signatures.verify(
            maker.verifier,
            _signed_part(document),
            _bytes(document.get("signature"), "signature"),
            "the file is not signed by its maker: it was changed",
        )
    except BundleError:
        raise
    except (NodeError, SignatureError, ValueError) as error:
        raise BundleError(str(error)) from error
    case, commitments = _case(document)
    entries, promises = [], []
    for number, entry in enumerate(_field(document, "entries", list), 1):
        try:
            entries.append(_entry(entry, members, commitments))
        except (ProtocolError, NodeError) as error:
            raise BundleError(f"entry {number}: {error}") from error
    for number, promise in enumerate(_field(document, "promises", list), 1):
        try:
            promises.append(_promise(promise, members))
        except (ProtocolError, NodeError, ValueError) as error:
            raise BundleError(f"promise {number}: {error}") from error
    return Verified(
        maker.id,
        _field(document, "made_at", int),
        certificates.fingerprint(ca),
        trusted is not None,
        case,
        members.version,
        tuple(entries),
        tuple(promises),
    )


def _case(document: dict[str, Any]) -> tuple[str, set[bytes]]:
    if document.get("case") is None:
        return "", set()
    case = _field(document, "case", dict)
    number = _field(case, "number", str)
    return number, {
        case_commitment(_bytes(salt, "case.salts"), number) for salt in _field(case, "salts", list)
    }


def _entry(entry: Any, members: MemberList, commitments: set[bytes]) -> Proven:
    if not isinstance(entry, dict):
        raise BundleError("not an entry")
    opening = ledger_pb2.Opening(
        event=_bytes(entry.get("event"), "event"), salt=_bytes(entry.get("salt"), "salt")
    )
    committed = events.open_commitment(opening)
    lines = _field(entry, "proof", list)
    if not all(isinstance(line, str) for line in lines):
        raise BundleError("field proof holds more than text")
    proof = LogProof.parse("".join(f"{line}\n" for line in lines))
    log = members.get(committed.event.log)
    head = verify_proof(proof, committed.leaf, log, members)
    needed = members.quorum(log.id)
    in_case = committed.event.case_commitment in commitments
    return Proven(committed, proof.index, head, needed, in_case)


def _promise(promise: Any, members: MemberList) -> Committed:
    if not isinstance(promise, dict):
        raise BundleError("not a receipt")
    opening = ledger_pb2.Opening(
        event=_bytes(promise.get("event"), "event"), salt=_bytes(promise.get("salt"), "salt")
    )
    receipt = ledger_pb2.Receipt(
        opening=opening,
        include_by=_field(promise, "include_by", int),
        signature=_bytes(promise.get("signature"), "signature"),
    )
    member = members.get(events.open_commitment(opening).event.log)
    return events.verify_receipt(receipt, member.verifier, member.id)


def verify_proof(proof: LogProof, leaf: bytes, log: Member, members: MemberList) -> Head:
    """The head in which a leaf stands, signed by its log and cosigned by a quorum. Raises a `PeerError` or `Refused`."""
    others = members.witnesses(log.id)
    head = checkpoints.open_head(proof.head, log.log, [member.witness for member in others])
    if not members.quorum(log.id):
        raise Refused("the member list names no witness of this log", "UNPUBLISHED")
    skew = limits.CLOCK_SKEW.total_seconds()
    for name, at in head.cosigned.items():
        if not members.issued_at - skew <= at <= members.valid_until + skew:
            raise Refused(f"{name} cosigned when this member list was not in force", "UNPUBLISHED")
    if len(head.cosigned) < members.quorum(log.id):
        raise Refused(
            f"{len(head.cosigned)} witnesses cosigned the head of {log.name.name}'s log, "
            f"{members.quorum(log.id)} of {len(others)} are needed",
            "UNPUBLISHED",
        )
    merkle.verify_inclusion(
        proof.index, head.checkpoint.size, merkle.leaf_hash(leaf), proof.path, head.checkpoint.root
    )
    return head


# -- in words ---------------------------------------------------------------------------------------------------------

_LAST_MOMENT = 253_402_300_799  # seconds: the year 9999
_KINDS = {
    ledger_pb2.EVENT_TYPE_QUERY_ASKED: ("asked {peer}", "向 {peer} 提问"),
    ledger_pb2.EVENT_TYPE_QUERY_ANSWERED: ("answered {peer}", "答复了 {peer}"),
    ledger_pb2.EVENT_TYPE_REFUSED: ("refused {peer} ({reason})", "拒绝了 {peer}（{reason}）"),
}


def _iso(seconds: float) -> str:
    seconds = min(max(seconds, 0), _LAST_MOMENT)
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def type_name(kind: "ledger_pb2.EventType.ValueType") -> str:
    """A type of event as a word."""
    return ledger_pb2.EventType.Name(kind).removeprefix("EVENT_TYPE_").lower().replace("_", "-")


def describe(entry: Proven) -> tuple[str, str]:
    """One event in English and Chinese."""
    event = entry.committed.event
    own, peer = (name.rpartition("/")[2] for name in (event.log, event.peer))
    kinds = _KINDS.get(event.type, (type_name(event.type), type_name(event.type)))
    what = [text.format(peer=peer, reason=event.reason) for text in kinds]
    purpose, basis = PURPOSE_NAMES.get(event.purpose, "?"), BASIS_NAMES.get(event.basis, "?")
    detail = f"{event.resource}/{event.epoch}, {event.count}, {purpose}, {basis}"
    size, count, head_time = entry.head.checkpoint.size, len(entry.head.cosigned), _iso(entry.head.time)
    return (
        f"by {head_time} {count} witnesses had cosigned a head of {size} entries of {own}'s log whose entry {entry.index} says that "
        f"it {what[0]} [{detail}]; the time that {own} itself gives is {_iso(event.at / 1000)}",
        f"截至 {head_time}，{count} 位见证方已联署 {own} 账本含 {size} 条的账本头，其第 {entry.index} 条记载：{what[1]}〔{detail}〕；"
        f"{own} 自称时间为 {_iso(event.at / 1000)}",
    )


NOT_PROVEN = (
    (
        "which identifiers were asked about, and whether they hit: the logs hold hashes of blinded points only",
        "查询了哪些标识、是否命中：账本只有盲化后数据的哈希",
    ),
    (
        "that what a member recorded about itself is true, and that it recorded everything it did",
        "成员对自身的记录是否属实，以及是否记录了全部行为",
    ),
    (
        "times other than the witnesses': an entry existed at the latest when its head was cosigned; what a member says of its own time "
        "was checked by its counterpart when it answered, within five minutes, and by nobody else",
        "见证方以外的时间：只能证明条目最晚在账本头被联署时已存在；成员自称的时间仅由对方在答复时按五分钟误差核对",
    ),
    (
        "anything against a quorum of witnesses that colludes with a log",
        "若达到法定数量的见证方与账本方串通，则证明不成立",
    ),
)
