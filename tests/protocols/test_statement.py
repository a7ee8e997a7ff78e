"""Signed statements: one encoding, one signer, one list."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from lianfang.v1 import common_pb2 as pb

from protocols import statement, voprf
from protocols.errors import DecodeError, PeerError, SignatureError
from protocols.sealed import ListEpoch

SIGNER = Ed25519PrivateKey.generate()
PUBLIC = voprf.generate_key_pair().public
WHERE = ListEpoch("n.example", "spiffe://n.example/bank/a", "fraud", 3)
OPENED = statement.epoch_opened(WHERE, 1_000, PUBLIC, 2_000, bytes(18))
BATCH = statement.batch(WHERE, 1_000, 2, b"\x01" * 32, b"\x02" * 32, (32, 16))


@pytest.mark.parametrize(
    ("said", "kind", "slot"),
    [
        (OPENED, "epoch_opened", "epoch-opened"),
        (BATCH, "batch", "batch-2"),
        (statement.epoch_closed(WHERE, 1_000, PUBLIC, 4), "epoch_closed", "epoch-closed"),
    ],
)
def test_statements_come_back(said, kind, slot):
    signed = statement.sign(SIGNER, said)
    assert statement.verify(SIGNER.public_key(), signed, WHERE, kind) == said
    assert statement.slot(said) == slot


def test_another_signer_list_or_kind_is_refused():
    signed = statement.sign(SIGNER, OPENED)
    with pytest.raises(SignatureError):
        statement.verify(Ed25519PrivateKey.generate().public_key(), signed, WHERE, "epoch_opened")
    with pytest.raises(DecodeError, match="another list"):
        other = ListEpoch("n.example", WHERE.holder, "fraud", 4)
        statement.verify(SIGNER.public_key(), signed, other, "epoch_opened")
    with pytest.raises(DecodeError, match="kind"):
        statement.verify(SIGNER.public_key(), signed, WHERE, "batch")


def test_each_byte_flipped():
    signed = statement.sign(SIGNER, BATCH)
    for field in ("statement", "signature"):
        for position in range(len(getattr(signed, field))):
            forged = pb.SignedStatement()
            forged.CopyFrom(signed)
            data = bytearray(getattr(forged, field))
            data[position] ^= 1
            setattr(forged, field, bytes(data))
            with pytest.raises(PeerError):
                statement.verify(SIGNER.public_key(), forged, WHERE, "batch")


def test_a_signature_of_another_purpose_is_none():
    data = statement.serialise(OPENED)
    with pytest.raises(SignatureError):
        statement.verify(
            SIGNER.public_key(),
            pb.SignedStatement(statement=data, signature=SIGNER.sign(data)),
            WHERE,
            "epoch_opened",
        )


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.integers(0, 60).map(lambda n: statement.serialise(OPENED)[:n]))
def test_what_parses_serialises_to_the_same_bytes(data):
    try:
        assert statement.serialise(statement.parse(data)) == data
    except DecodeError:
        pass


def test_two_encodings_of_one_statement_are_not_both_taken():
    data = statement.serialise(OPENED)
    unknown = data + b"\xa2\x06\x01x"  # field 100, unknown
    doubled = data + data
    padded = data + b"\x20\x03"  # epoch once more
    for other in (unknown, doubled, padded, data + b"\x00"):
        with pytest.raises(DecodeError):
            statement.parse(other)


@pytest.mark.parametrize(
    "change",
    [
        {"list": "Fraud"},
        {"list": "../x"},
        {"epoch": 0},
        {"suite": 0},
        {"made_at": 0},
        {"holder": "spiffe://m.example/bank/a"},
        {"network": ""},
    ],
)
def test_fields_out_of_range(change):
    said = pb.Statement()
    said.CopyFrom(OPENED)
    for field, value in change.items():
        setattr(said, field, value)
    with pytest.raises(DecodeError):
        statement.parse(statement.serialise(said))


def test_batches_start_at_one_and_chain():
    for number, previous in ((0, bytes(32)), (1, b"\x01" * 32), (2, bytes(32)), (2, b"short")):
        with pytest.raises(DecodeError):
            statement.sign(SIGNER, statement.batch(WHERE, 1, number, previous, b"\x02" * 32, (1, 0)))
    with pytest.raises(DecodeError):
        statement.sign(SIGNER, statement.epoch_opened(WHERE, 1_000, bytes(32), 2_000, bytes(18)))
    with pytest.raises(DecodeError):
        statement.sign(SIGNER, statement.epoch_opened(WHERE, 1_000, PUBLIC, 1_000, bytes(18)))
    with pytest.raises(DecodeError, match="normal form"):
        statement.sign(SIGNER, statement.epoch_opened(WHERE, 1_000, PUBLIC, 2_000, b""))
