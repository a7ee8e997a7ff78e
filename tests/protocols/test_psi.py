"""Two parties' sets: what each learns, against plain sets; what a peer may send, and what is refused."""

import hashlib
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import group, psi
from protocols.errors import DecodeError, MisuseError

CONTRACT, SESSION = bytes(range(32)), bytes(16)
elements = st.sets(st.binary(min_size=1, max_size=12), min_size=1, max_size=24)


def masked(items, exponent, session=SESSION):
    """(points ascending with dummies, the element of each or None)."""
    where = psi.domain(CONTRACT, session)
    own = group.split(psi.mask_chunk(where, exponent.scalar, list(items)))
    fill = psi.size(len(own)) - len(own)
    pairs = [*zip(own, items, strict=True), *((point, None) for point in group.split(psi.dummies(fill)))]
    pairs.sort(key=lambda pair: pair[0])
    return b"".join(point for point, _ in pairs), [item for _, item in pairs]


def arrive(points, most=64, ascending=True):
    count = len(points) // 32
    arrivals = psi.Arrivals(count, most, ascending)
    for i in range(0, len(points), 96):
        arrivals.take(points[i : i + 96])
    arrivals.end()
    return points


def meet(x, y):
    """Both sides' doubled points, in the order of the masked ones, and A's elements in that order."""
    a, b = psi.Exponent(), psi.Exponent()
    mine, order = masked(x, a)
    theirs, _ = masked(y, b)
    return psi.double_chunk(b.scalar, arrive(mine)), psi.double_chunk(a.scalar, arrive(theirs)), order


@settings(max_examples=40, deadline=None)
@given(x=elements, y=elements)
def test_the_intersection_is_that_of_the_plain_sets(x, y):
    mine, theirs, order = meet(x, y)
    met = set(group.split(theirs))
    found = {item for item, point in zip(order, group.split(mine), strict=True) if point in met}
    assert found == x & y


@pytest.mark.parametrize(("x", "y", "common"), [(6, 60, 2), (60, 6, 2), (6, 60, 0), (1, 40, 1)])
def test_sides_of_different_sizes_and_with_nothing_in_common(x, y, common):
    first, second = (
        {b"%d" % i for i in numbers} for numbers in (range(x), range(x - common, x - common + y))
    )
    mine, theirs, order = meet(first, second)
    met = set(group.split(theirs))
    found = {item for item, point in zip(order, group.split(mine), strict=True) if point in met}
    assert found == first & second
    assert len(found) == common


@settings(max_examples=20, deadline=None)
@given(x=elements, y=elements)
def test_ascending_the_doubled_points_say_how_many_and_no_more(x, y):
    mine, theirs, _ = meet(x, y)
    shuffled = b"".join(sorted(group.split(mine)))
    arrive(shuffled)
    assert len(set(group.split(shuffled)) & set(group.split(theirs))) == len(x & y)


def expand_message_xmd(message, dst, length):
    """RFC 9380 §5.3.1, step by step, with SHA-512."""
    ell = -(-length // 64)
    dst_prime = dst + len(dst).to_bytes(1, "big")
    z_pad, l_i_b_str = bytes(128), length.to_bytes(2, "big")
    b_0 = hashlib.sha512(z_pad + message + l_i_b_str + b"\x00" + dst_prime).digest()
    b = [hashlib.sha512(b_0 + b"\x01" + dst_prime).digest()]
    for i in range(2, ell + 1):
        mixed = bytes(x ^ y for x, y in zip(b_0, b[-1], strict=True))
        b.append(hashlib.sha512(mixed + i.to_bytes(1, "big") + dst_prime).digest())
    return b"".join(b)[:length]


def test_hashing_is_hash_to_ristretto255_of_rfc_9380():
    """The step-by-step expander against the RFC's vector (appendix K.3), then ours against it."""
    vector = "6b9a7312411d92f921c6f68ca0b6380730a1a4d982c507211a90964c394179ba"
    assert expand_message_xmd(b"", b"QUUX-V01-CS02-with-expander-SHA512-256", 32).hex() == vector
    where = psi.domain(CONTRACT, SESSION)
    one = (1).to_bytes(32, "little")
    for item in (b"", b"phone\x1f+8613900000000", bytes(200)):
        point = group.hash_to_points(expand_message_xmd(item, where, 64))
        assert psi.mask_chunk(where, one, [item]) == point


def test_sessions_contracts_and_exponents_have_nothing_in_common():
    """The same set twice: no point of one session stands in the other, not even under the same exponent."""
    items, exponent = [b"a", b"b", b"c", b"d"], psi.Exponent()
    seen = set()
    for where in (
        psi.domain(CONTRACT, SESSION),
        psi.domain(CONTRACT, b"\x01" * 16),
        psi.domain(bytes(32), SESSION),
    ):
        seen |= set(group.split(psi.mask_chunk(where, exponent.scalar, items)))
    seen |= set(group.split(psi.mask_chunk(psi.domain(CONTRACT, SESSION), psi.Exponent().scalar, items)))
    assert len(seen) == 16


def test_sizes_are_public_buckets():
    assert [psi.size(count) for count in (1, 2, 3, 9, 16, 17, 1_000, 1_000_000)] == [
        2,
        2,
        4,
        16,
        16,
        18,
        1_024,
        1_015_808,
    ]
    assert len(set(group.split(psi.dummies(50)))) == 50


@pytest.mark.parametrize("announced", [0, 1, 3, 17, 100, 1 << 40])
def test_what_is_announced_is_a_bucket_within_the_contract(announced):
    with pytest.raises(DecodeError):
        psi.Arrivals(announced, 64)


def points(count):
    return sorted(group.split(psi.dummies(count)))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: [p[0], p[0], *p[2:]],  # repeated
        lambda p: [p[1], p[0], *p[2:]],  # out of order
        lambda p: p[:-1],  # one too few
        lambda p: [*p, b"\xff" * 32],  # one too many
    ],
)
def test_streams_that_are_not_as_announced_are_refused(change):
    arrivals = psi.Arrivals(8, 8)
    with pytest.raises(DecodeError):
        for point in change(points(8)):
            arrivals.take(point)
        arrivals.end()


@pytest.mark.parametrize("data", [b"", b"x", bytes(33)])
def test_what_is_no_whole_points_is_refused(data):
    with pytest.raises(DecodeError):
        psi.Arrivals(8, 8).take(data)


@pytest.mark.parametrize(
    "bad",
    [
        bytes(32),  # the identity
        b"\xff" * 32,  # not canonical
        (group.ORDER - 1).to_bytes(32, "little"),  # not in the group
        (2**255 - 18).to_bytes(32, "little"),  # p + 1: not reduced
    ],
)
def test_what_is_no_point_is_never_doubled(bad):
    with pytest.raises(DecodeError):
        psi.double_chunk(psi.Exponent().scalar, points(1)[0] + bad)


def test_points_sent_back_meet_nothing():
    """A peer that echoes our own masked points as its set."""
    a, b = psi.Exponent(), psi.Exponent()
    mine, _ = masked({b"a", b"b", b"c"}, a)
    ours = psi.double_chunk(b.scalar, mine)
    theirs = psi.double_chunk(a.scalar, mine)
    assert not set(group.split(ours)) & set(group.split(theirs))


def test_an_exponent_is_over_with_its_session_and_never_shown():
    exponent = psi.Exponent()
    scalar = exponent.scalar
    assert scalar.hex() not in repr(exponent)
    exponent.forget()
    with pytest.raises(MisuseError):
        _ = exponent.scalar


@pytest.mark.parametrize(("contract", "session"), [(b"", SESSION), (CONTRACT, b""), (CONTRACT, bytes(17))])
def test_a_domain_names_a_contract_and_a_session(contract, session):
    with pytest.raises(MisuseError):
        psi.domain(contract, session)


def test_masked_points_do_not_repeat_across_runs():
    where = psi.domain(CONTRACT, secrets.token_bytes(16))
    assert psi.mask_chunk(where, psi.Exponent().scalar, [b"a"]) != psi.mask_chunk(
        where, psi.Exponent().scalar, [b"a"]
    )
