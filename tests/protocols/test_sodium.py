"""What libsodium verifies beside what OpenSSL does: never more."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import group, sodium

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
# RFC 8032 §7.1, test 3.
RFC_PUBLIC = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
RFC_MESSAGE = "af82"
RFC_SIGNATURE = (
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


def openssl(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def test_the_vector_of_the_rfc():
    vector = [bytes.fromhex(each) for each in (RFC_PUBLIC, RFC_MESSAGE, RFC_SIGNATURE)]
    assert sodium.is_signed(*vector)
    assert not sodium.is_signed(vector[0], b"", vector[2])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 63), st.integers(0, 7))
def test_both_agree_on_signatures_and_on_changed_ones(message, byte, bit):
    signature = KEY.sign(message)
    assert sodium.is_signed(PUBLIC, message, signature)
    assert openssl(PUBLIC, message, signature)
    changed = bytearray(signature)
    changed[byte] ^= 1 << bit
    assert not sodium.is_signed(PUBLIC, message, bytes(changed))
    assert not openssl(PUBLIC, message, bytes(changed))
    assert not sodium.is_signed(PUBLIC, message + b"x", signature)


def test_a_response_above_the_group_order_is_refused():
    signature = KEY.sign(b"m")
    above = (int.from_bytes(signature[32:], "little") + group.ORDER).to_bytes(32, "little")
    assert not sodium.is_signed(PUBLIC, b"m", signature[:32] + above)


def test_a_key_of_small_order_signs_nothing():
    """Under the identity as key one signature holds for every message, where that is not refused."""
    identity = (1).to_bytes(32, "little")
    signature = identity + bytes(32)
    assert openssl(identity, b"any", signature)
    assert not sodium.is_signed(identity, b"any", signature)


def test_wrong_sizes():
    for public, signature in ((b"", b""), (PUBLIC, b"x" * 63), (PUBLIC[:31], bytes(64))):
        assert not sodium.is_signed(public, b"m", signature)
