"""Sealed records and batches: open with the right output, and with nothing else."""

import datetime as dt
import os

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import padding, sealed, voprf
from protocols.encoding import expand, frame
from protocols.errors import DecodeError, MisuseError, TableError
from protocols.label import LENGTH, VERSION, Basis, Category, Label, Reason, Status
from protocols.sealed import BatchHash, ListEpoch

KEY = voprf.generate_key_pair()
WHERE = ListEpoch("n.example", "spiffe://n.example/bank/a", "fraud", 1)
dates = st.none() | st.dates(dt.date(1970, 1, 2), dt.date(2100, 1, 1))
label_strategy = st.builds(
    Label,
    st.sampled_from(Category),
    st.integers(1, 5),
    st.integers(0, 100),
    st.sampled_from(Basis),
    st.sampled_from([Status.ACTIVE, Status.CONTESTED]),
    st.sampled_from(Reason),
    dates,
    dates,
    st.binary(min_size=16, max_size=16),
)
LABEL = Label(
    Category.MULE_ACCOUNT,
    4,
    90,
    Basis.COURT,
    Status.ACTIVE,
    Reason.NONE,
    dt.date(2026, 1, 1),
    None,
    bytes(16),
)


def seal(*identifiers: bytes, batch: int = 1, where: ListEpoch = WHERE, label: Label = LABEL) -> list[bytes]:
    entries = [(each, label.encode()) for each in identifiers]
    content = sealed.seal_chunk(KEY.secret, where.context, batch, entries, os.urandom(16 * len(entries)))
    return list(sealed.ascending(content, sealed.RECORD))


def test_what_one_record_deserves_it_gets_alone():
    """A holder that seals rubbish under a good key spoils that record and no other."""
    good, bad = LABEL.encode(), bytearray(LABEL.encode())
    bad[0] ^= 0xFF  # of another version
    entries = [(b"a", good), (b"b", bytes(bad)), (b"c", good)]
    content = sealed.seal_chunk(KEY.secret, WHERE.context, 1, entries, bytes(range(48)))
    by_tag = {record[:16]: record[16:] for record in sealed.ascending(content, sealed.RECORD)}
    outputs = voprf.evaluate_inputs(KEY.secret, [b"a", b"b", b"c"])
    values = [by_tag[tag] for tag in sealed.tags_of(outputs)]
    values[2] = values[2][:-1] + bytes([values[2][-1] ^ 1])
    found = sealed.open_each(WHERE.context, [(o, 1, value) for o, value in zip(outputs, values, strict=True)])
    assert found[0] == LABEL
    assert isinstance(found[1], DecodeError)
    assert isinstance(found[2], TableError)
    with pytest.raises(DecodeError):
        sealed.open_record(outputs[1], WHERE.context, 1, values[1])


def test_outputs_of_another_length_are_refused():
    with pytest.raises(MisuseError):
        sealed.tags_of([bytes(32), bytes(32)])


@given(label_strategy)
def test_labels_come_back(label):
    data = label.encode()
    assert len(data) == LENGTH
    assert Label.decode(data) == label


@given(label_strategy, st.integers(0, LENGTH - 1), st.integers(1, 255))
def test_a_flipped_label_is_refused_or_decodes_to_what_its_bytes_say(label, position, flip):
    data = bytearray(label.encode())
    data[position] ^= flip
    try:
        decoded = Label.decode(bytes(data))
    except DecodeError:
        return
    known = (
        data[0] == VERSION
        and data[1] <= max(Category)
        and data[4] <= max(Basis)
        and data[5] <= max(Status)
        and int.from_bytes(data[6:8], "big") <= max(Reason)
    )
    assert (decoded.encode() == data) == known


def test_a_label_of_a_later_version_is_read_without_what_is_new():
    data = bytearray(LABEL.encode())
    data[0], data[1], data[4], data[5], data[6:8] = 3, 200, 77, 9, b"\x12\x34"
    data[-1] = 1
    assert Label.decode(bytes(data)) == Label(
        **{
            **LABEL._asdict(),
            "category": Category.OTHER,
            "basis": Basis.REPORT,
            "status": Status.CONTESTED,
            "reason": Reason.OTHER,
        }
    )
    for version in (0, 1, 16, 255):
        data[0] = version
        with pytest.raises(DecodeError):
            Label.decode(bytes(data))


def test_labels_refuse_what_must_not_be_sealed():
    for change in (
        {"severity": 0},
        {"severity": 6},
        {"confidence": 101},
        {"status": Status.WITHDRAWN},
        {"reference": b""},
    ):
        with pytest.raises(MisuseError):
            Label(**{**LABEL._asdict(), **change})
    for bad in (b"", bytes(LENGTH), LABEL.encode() + b"\x00", LABEL.encode()[:-1] + b"\x01"):
        with pytest.raises(DecodeError):
            Label.decode(bad)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=8, unique=True))
def test_a_record_opens_with_its_own_output_only(identifiers):
    records = {record[:16]: record[16:] for record in seal(*identifiers)}
    outputs = voprf.evaluate_inputs(KEY.secret, identifiers)
    other = voprf.evaluate_inputs(voprf.generate_key_pair().secret, identifiers)
    for right, wrong in zip(outputs, other, strict=True):
        value = records[sealed.tag_of(right)]
        assert sealed.open_record(right, WHERE.context, 1, value) == LABEL
        with pytest.raises(TableError):
            sealed.open_record(wrong, WHERE.context, 1, value)


def test_a_record_with_each_byte_flipped():
    record = seal(b"x")[0]
    output = voprf.evaluate_inputs(KEY.secret, [b"x"])[0]
    for position in range(16, len(record)):
        forged = bytearray(record)
        forged[position] ^= 0x40
        with pytest.raises(TableError):
            sealed.open_record(output, WHERE.context, 1, bytes(forged[16:]))
    for size in (0, 15, 79, 81):
        with pytest.raises(TableError):
            sealed.open_record(output, WHERE.context, 1, bytes(size))


def test_a_record_belongs_to_its_batch_list_epoch_holder_and_network():
    record = seal(b"x")[0]
    output = voprf.evaluate_inputs(KEY.secret, [b"x"])[0]
    with pytest.raises(TableError):
        sealed.open_record(output, WHERE.context, 2, record[16:])
    for other in (
        ListEpoch("m.example", WHERE.holder, "fraud", 1),
        ListEpoch("n.example", "spiffe://n.example/bank/b", "fraud", 1),
        ListEpoch("n.example", WHERE.holder, "fraud2", 1),
        ListEpoch("n.example", WHERE.holder, "fraud", 2),
    ):
        with pytest.raises(TableError):
            sealed.open_record(output, other.context, 1, record[16:])


def test_a_label_sealed_twice_shares_nothing_but_its_tag():
    first, second = seal(b"x")[0], seal(b"x")[0]
    assert first[:16] == second[:16]
    assert first[16:32] != second[16:32]
    assert first[32:] != second[32:]


def test_records_are_sorted_and_of_one_length():
    records = seal(*(b"%d" % i for i in range(50)))
    assert records == sorted(records)
    assert {len(record) for record in records} == {96}
    swapped = b"".join([records[1], records[0], *records[2:]])
    for bad in (swapped, records[0] * 2, b"".join(records)[:-1]):
        with pytest.raises(TableError):
            list(sealed.ascending(bad, sealed.RECORD))


def test_tombstones_are_the_tags():
    assert sealed.tags_chunk(KEY.secret, [b"b", b"a"]) == b"".join(record[:16] for record in seal(b"a", b"b"))


def test_the_table_hash_binds_everything():
    base = (WHERE, 1, bytes(32), 1, 0)
    reference = BatchHash(*base)
    reference.update(b"x" * 96)
    changed = [
        (ListEpoch("n.example", WHERE.holder, "fraud", 2), 1, bytes(32), 1, 0),
        (WHERE, 2, bytes(32), 1, 0),
        (WHERE, 1, bytes(31) + b"\x01", 1, 0),
        (WHERE, 1, bytes(32), 0, 6),
    ]
    for arguments in changed:
        other = BatchHash(*arguments)
        other.update(b"x" * 96)
        assert other.digest() != reference.digest()
    pieces = BatchHash(*base)
    for _ in range(96):
        pieces.update(b"x")
    assert pieces.digest() == reference.digest()


@given(st.binary(min_size=64, max_size=64), st.binary(max_size=40), st.integers(1, 64))
def test_expand_is_hkdf_expand(key, info, length):
    assert expand(key, info, length) == HKDFExpand(SHA512(), length, info).derive(key)


@given(st.lists(st.binary(max_size=8) | st.text(max_size=8) | st.integers(-5, 2**40), max_size=4))
def test_framing_is_unambiguous_where_it_matters(parts):
    assert frame(*parts, b"x") != frame(*parts, b"", b"x")
    assert frame(*parts) != frame(*parts, b"")


# -- padding ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**7))
def test_buckets_hold_the_count_and_waste_little(count):
    size = padding.bucket(count)
    assert count <= size
    assert padding.bucket(size) == size
    assert size <= 2 * count if count <= 16 else size <= count * 1.13


def test_few_different_sizes_are_ever_seen():
    assert len({padding.bucket(count) for count in range(1, 65_536)}) < 200


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)), min_size=1, max_size=12))
def test_dummies_never_run_out_and_every_batch_is_a_bucket(changes):
    live = reserve = 0
    for number, (added, removed) in enumerate(changes):
        removed = 0 if number == 0 else min(removed, live)
        live += added - removed
        pad = sealed.pad_batch(added, removed, live, reserve, first=number == 0)
        assert padding.bucket(added + pad.added) == added + pad.added >= 16
        if number:
            assert padding.bucket(removed + pad.removed) == removed + pad.removed >= 16
        reserve += pad.added - pad.removed
        assert reserve >= 16


def test_dummy_tags_repeat_for_who_has_the_key_only():
    key = sealed.dummy_key(KEY.secret)
    assert sealed.dummy_tags(key, 3, 6) == sealed.dummy_tags(key, 0, 10)[3:6]
    assert not set(sealed.dummy_tags(key, 0, 5)) & set(sealed.dummy_tags(bytes(32), 0, 5))
