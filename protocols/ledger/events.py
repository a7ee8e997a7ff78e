"""Leaves, salted commitments and receipts. What parses serialises to the same bytes."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from lianfang.v1 import common_pb2, ledger_pb2

from .. import signatures
from ..encoding import frame
from ..errors import DecodeError, MisuseError, SignatureError

SALT = 32
COMMITMENT = 32
ID = 16
MAX_EVENT = 2_048  # bytes
MAX_LEAF = 4_096  # bytes: no kind of leaf needs more
_COMMITMENT_DOMAIN = "lianfang/v1/event"
_RECEIPT_DOMAIN = "lianfang/v1/receipt"
_KEY_DOMAIN = "lianfang/v1/event-key"
_M = TypeVar("_M", bound=Message)


def _parse(kind: type[_M], data: bytes, what: str) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except ProtobufError as error:
        raise DecodeError(f"{what} cannot be parsed") from error
    if message.SerializeToString(deterministic=True) != data:
        raise DecodeError(f"{what} is not in its one encoding")
    return message


# -- leaves -----------------------------------------------------------------------------------------------------------


def _leaf(leaf: ledger_pb2.Leaf) -> bytes:
    return leaf.SerializeToString(deterministic=True)


def statement_leaf(signed: common_pb2.SignedStatement) -> bytes:
    """A key epoch or a batch descriptor, in clear."""
    return _leaf(ledger_pb2.Leaf(statement=signed.SerializeToString(deterministic=True)))


def member_leaf(event: ledger_pb2.MemberEvent) -> bytes:
    """A change of the member list, in clear."""
    return _leaf(ledger_pb2.Leaf(member=event))


def contract_leaf(event: ledger_pb2.ContractEvent) -> bytes:
    """An approval or its end, in clear."""
    return _leaf(ledger_pb2.Leaf(contract=event))


def commitment_leaf(commitment: bytes) -> bytes:
    """A commitment of 32 bytes."""
    return _leaf(ledger_pb2.Leaf(commitment=commitment))


def dummy_leaf() -> bytes:
    """Fills a tick: a commitment to nothing, which nobody can tell from one to something."""
    return commitment_leaf(secrets.token_bytes(COMMITMENT))


def padding_leaf() -> bytes:
    """Fills the fixed room in which leaves in clear are appended; everybody sees that it is padding."""
    return _leaf(ledger_pb2.Leaf(padding=secrets.token_bytes(COMMITMENT)))


def in_clear(data: bytes) -> bool:
    """Whether a leaf is in clear, or padding of such: it is no part of what a tick appends."""
    try:
        return parse_leaf(data).WhichOneof("body") != "commitment"
    except DecodeError:
        return False


def parse_leaf(data: bytes) -> ledger_pb2.Leaf:
    """Raise `DecodeError` for what no member of this network writes."""
    if len(data) > MAX_LEAF:
        raise DecodeError(f"a leaf has at most {MAX_LEAF} bytes")
    leaf = _parse(ledger_pb2.Leaf, data, "a leaf")
    kind = leaf.WhichOneof("body")
    if kind is None:
        raise DecodeError("a leaf is empty")
    if kind == "commitment" and len(leaf.commitment) != COMMITMENT:
        raise DecodeError(f"a commitment has {COMMITMENT} bytes")
    if kind == "padding" and len(leaf.padding) != COMMITMENT:
        raise DecodeError(f"padding has {COMMITMENT} bytes")
    if kind == "statement":
        _parse(common_pb2.SignedStatement, leaf.statement, "a signed statement")
    return leaf


# -- commitments ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Committed:
    """An event with its salt: the opening of `commitment`."""

    event: ledger_pb2.Event
    opening: ledger_pb2.Opening
    commitment: bytes

    @property
    def leaf(self) -> bytes:
        """The leaf's data."""
        return commitment_leaf(self.commitment)


def event_key(event: ledger_pb2.Event) -> bytes:
    """16 bytes that name an event within its log: recording it twice changes nothing."""
    text = frame(_KEY_DOMAIN, event.type, event.peer, event.id, event.number)
    return hashlib.sha256(text).digest()[:16]


def commit(event: ledger_pb2.Event) -> Committed:
    """Commit to an event with a fresh salt. Raises `MisuseError` for one that no reader would accept."""
    data = event.SerializeToString(deterministic=True)
    if len(data) > MAX_EVENT or len(event.id) != ID or not event.type or not event.log:
        raise MisuseError("an event has a type, a log, an id of 16 bytes, and a limited size")
    opening = ledger_pb2.Opening(event=data, salt=secrets.token_bytes(SALT))
    return Committed(event, opening, _commitment(opening))


def _commitment(opening: ledger_pb2.Opening) -> bytes:
    return hashlib.sha256(frame(_COMMITMENT_DOMAIN, opening.salt, opening.event)).digest()


def open_commitment(opening: ledger_pb2.Opening) -> Committed:
    """The event and the commitment that an opening opens; raises `DecodeError`."""
    if len(opening.salt) != SALT or len(opening.event) > MAX_EVENT:
        raise DecodeError(f"a salt has {SALT} bytes and an event at most {MAX_EVENT}")
    event = _parse(ledger_pb2.Event, opening.event, "an event")
    if len(event.id) != ID or not event.type or not event.log:
        raise DecodeError("an event has a type, a log and an id of 16 bytes")
    return Committed(event, opening, _commitment(opening))


# -- receipts ---------------------------------------------------------------------------------------------------------


def receipt(committed: Committed, include_by: int, key: Ed25519PrivateKey) -> ledger_pb2.Receipt:
    """The log's owner gives its word. `include_by` in seconds since 1970."""
    message = frame(_RECEIPT_DOMAIN, committed.event.log, committed.commitment, include_by)
    return ledger_pb2.Receipt(opening=committed.opening, include_by=include_by, signature=key.sign(message))


def verify_receipt(received: ledger_pb2.Receipt, signer: Ed25519PublicKey, log: str) -> Committed:
    """What `log` has recorded; raises `DecodeError` or `SignatureError`."""
    committed = open_commitment(received.opening)
    if committed.event.log != log:
        raise SignatureError(f"the receipt is of another log than {log}")
    if not 0 < received.include_by < 1 << 62:
        raise DecodeError("the receipt names no time by which the log holds it")
    message = frame(_RECEIPT_DOMAIN, log, committed.commitment, received.include_by)
    signatures.verify(signer, message, received.signature, f"the receipt is not signed by {log}")
    return committed
