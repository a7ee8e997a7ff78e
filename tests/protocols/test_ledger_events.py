"""Commitments hide and bind; receipts bind a member to its word."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from lianfang.v1 import common_pb2, ledger_pb2

from protocols.errors import DecodeError, MisuseError, PeerError, SignatureError
from protocols.ledger import events

KEY = Ed25519PrivateKey.generate()
LOG = "spiffe://net.example/bank/a"


def event(**changes):
    values = {
        "log": LOG,
        "type": ledger_pb2.EVENT_TYPE_QUERY_ASKED,
        "id": bytes(16),
        "peer": "spiffe://net.example/bank/b",
        "resource": "fraud",
        "purpose": common_pb2.PURPOSE_PAYMENT,
        "count": 4,
        "at": 1_700_000_000_000,
    }
    return ledger_pb2.Event(**(values | changes))


def test_equal_events_have_unlike_commitments_of_equal_length():
    first, second = events.commit(event()), events.commit(event())
    assert first.commitment != second.commitment
    sizes = {len(events.commit(event(count=count, resource="x" * count)).leaf) for count in range(60)}
    assert sizes == {len(events.dummy_leaf())}


def test_an_opening_opens_one_event_only():
    made = events.commit(event())
    assert events.open_commitment(made.opening) == made
    for changed in (
        ledger_pb2.Opening(event=made.opening.event, salt=bytes(32)),
        ledger_pb2.Opening(event=events.commit(event(count=5)).opening.event, salt=made.opening.salt),
    ):
        assert events.open_commitment(changed).commitment != made.commitment


def test_the_key_of_an_event_is_what_makes_it_the_same():
    assert events.event_key(event(count=4)) == events.event_key(event(count=5))
    keys = {
        events.event_key(each)
        for each in (
            event(),
            event(id=b"\x01" * 16),
            event(type=ledger_pb2.EVENT_TYPE_QUERY_ANSWERED),
            event(peer="spiffe://net.example/bank/c"),
            event(number=1),
        )
    }
    assert len(keys) == 5


def test_receipts():
    made = events.commit(event())
    given_ = events.receipt(made, 1_700_000_060, KEY)
    assert events.verify_receipt(given_, KEY.public_key(), LOG) == made
    changed = ledger_pb2.Receipt()
    changed.CopyFrom(given_)
    changed.include_by += 1
    with pytest.raises(SignatureError):
        events.verify_receipt(changed, KEY.public_key(), LOG)
    other = events.commit(event(count=5))
    changed.CopyFrom(given_)
    changed.opening.CopyFrom(other.opening)
    with pytest.raises(SignatureError):
        events.verify_receipt(changed, KEY.public_key(), LOG)
    with pytest.raises(SignatureError):
        events.verify_receipt(given_, Ed25519PrivateKey.generate().public_key(), LOG)
    with pytest.raises(SignatureError):
        events.verify_receipt(given_, KEY.public_key(), "spiffe://net.example/bank/b")


def test_every_byte_of_a_receipt_counts():
    data = events.receipt(events.commit(event()), 1_700_000_060, KEY).SerializeToString()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 4
        received = ledger_pb2.Receipt()
        try:
            received.ParseFromString(bytes(changed))
        except Exception:  # not even a message
            continue
        with pytest.raises(PeerError):
            events.verify_receipt(received, KEY.public_key(), LOG)


def test_events_that_nobody_would_accept_are_not_made():
    for bad in (event(id=b"short"), event(type=0), event(log=""), event(reason="x" * 3_000)):
        with pytest.raises(MisuseError):
            events.commit(bad)


@given(st.binary(max_size=120))
def test_rubbish_leaves(data):
    try:
        leaf = events.parse_leaf(data)
    except DecodeError:
        return
    assert leaf.SerializeToString(deterministic=True) == data


@given(st.binary(max_size=120), st.binary(min_size=30, max_size=34))
def test_rubbish_openings(data, salt):
    try:
        opened = events.open_commitment(ledger_pb2.Opening(event=data, salt=salt))
    except DecodeError:
        return
    assert opened.event.SerializeToString(deterministic=True) == data
