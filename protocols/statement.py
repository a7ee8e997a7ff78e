"""Signed statements of a holder about its own list: key epochs and batch descriptors.

The signature is Ed25519 over a domain-separated frame of the statement's exact bytes. Parsing is strict:
what parses serialises to the same bytes, so a statement has one encoding and may serve as a ledger leaf.
"""

import re
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from lianfang.v1 import common_pb2 as pb

from . import signatures, voprf
from .encoding import frame
from .errors import DecodeError
from .sealed import ListEpoch

_DOMAIN = "lianfang/v1/statement"
MAX_STATEMENT = 1_024
FORM = 18  # bytes that name a normal form
LIST_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def serialise(statement: pb.Statement) -> bytes:
    """The one encoding of a statement."""
    return statement.SerializeToString(deterministic=True)


def sign(key: Ed25519PrivateKey, statement: pb.Statement) -> pb.SignedStatement:
    """Sign a statement with the holder's signing key."""
    data = serialise(statement)
    parse(data)
    return pb.SignedStatement(statement=data, signature=key.sign(frame(_DOMAIN, data)))


def _new(where: ListEpoch, made_at: int, **body: Any) -> pb.Statement:
    return pb.Statement(
        network=where.network,
        holder=where.holder,
        list=where.list,
        epoch=where.epoch,
        suite=pb.SUITE_RISTRETTO255_SHA512,
        made_at=made_at,
        **body,
    )


def epoch_opened(
    where: ListEpoch, made_at: int, public_key: bytes, closes_at: int, form: bytes
) -> pb.Statement:
    """`closes_at` in seconds since 1970; `form` names the normal form of the epoch's entries (`identifiers.form`)."""
    opened = pb.EpochOpened(public_key=public_key, closes_at=closes_at, form=form)
    return _new(where, made_at, epoch_opened=opened)


def epoch_closed(where: ListEpoch, made_at: int, public_key: bytes, batches: int) -> pb.Statement:
    """The key with this public half has been destroyed."""
    return _new(where, made_at, epoch_closed=pb.EpochClosed(public_key=public_key, batches=batches))


def batch(
    where: ListEpoch, made_at: int, number: int, previous: bytes, table_hash: bytes, counts: tuple[int, int]
) -> pb.Statement:
    """`counts` is (additions, removals), padded."""
    return _new(
        where,
        made_at,
        batch=pb.BatchDescriptor(
            number=number,
            previous=previous,
            table_hash=table_hash,
            additions=counts[0],
            removals=counts[1],
        ),
    )


def parse(data: bytes) -> pb.Statement:
    """Raise `DecodeError` unless `data` is the canonical encoding of a statement in range."""
    if len(data) > MAX_STATEMENT:
        raise DecodeError(f"statement: {len(data)} bytes, at most {MAX_STATEMENT}")
    statement = pb.Statement()
    try:
        statement.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no stable import path in its stubs
        raise DecodeError("statement: not a protobuf message") from error
    statement.DiscardUnknownFields()
    if serialise(statement) != data:
        raise DecodeError("statement: not in its canonical encoding")
    _check(statement)
    return statement


def _check(statement: pb.Statement) -> None:
    if statement.suite != pb.SUITE_RISTRETTO255_SHA512:
        raise DecodeError(f"statement: suite {statement.suite} is not known")
    if not LIST_NAME.fullmatch(statement.list):
        raise DecodeError("statement: not a list name")
    if not statement.network or not statement.holder.startswith(f"spiffe://{statement.network}/"):
        raise DecodeError("statement: the holder is not of its network")
    if statement.epoch < 1 or statement.made_at < 1:
        raise DecodeError("statement: epoch and time start at 1")
    kind = statement.WhichOneof("body")
    if kind == "epoch_opened":
        voprf.check_public_key(statement.epoch_opened.public_key)
        if statement.epoch_opened.closes_at <= statement.made_at:
            raise DecodeError("statement: the epoch closes before it opens")
        if len(statement.epoch_opened.form) != FORM:
            raise DecodeError(f"statement: an epoch names its normal form in {FORM} bytes")
    elif kind == "epoch_closed":
        voprf.check_public_key(statement.epoch_closed.public_key)
    elif kind == "batch":
        body = statement.batch
        if body.number < 1 or len(body.previous) != 32 or len(body.table_hash) != 32:
            raise DecodeError("statement: a batch starts at 1 and carries two 32-byte hashes")
        if (body.number == 1) != (body.previous == bytes(32)):
            raise DecodeError("statement: only the first batch follows nothing")
    else:
        raise DecodeError("statement: says nothing")


def verify(key: Ed25519PublicKey, signed: pb.SignedStatement, where: ListEpoch, kind: str) -> pb.Statement:
    """The statement, if it is canonical, about `where`, of this kind and signed by `key`.

    Raises `DecodeError` or `SignatureError`.
    """
    message = frame(_DOMAIN, signed.statement)
    signatures.verify(key, message, signed.signature, "statement: the signature is not the holder's")
    statement = parse(signed.statement)
    said = ListEpoch(statement.network, statement.holder, statement.list, statement.epoch)
    if said != where:
        raise DecodeError("statement: about another list, epoch, holder or network")
    if statement.WhichOneof("body") != kind:
        raise DecodeError(f"statement: not a statement of kind {kind}")
    return statement


def slot(statement: pb.Statement) -> str:
    """What the statement settles once and for all: two different ones for a slot prove misbehaviour."""
    kind = statement.WhichOneof("body")
    return f"batch-{statement.batch.number}" if kind == "batch" else str(kind).replace("_", "-")
