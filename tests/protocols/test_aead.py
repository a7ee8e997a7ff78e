"""AES-256-GCM in batches: libsodium and OpenSSL, each alone and side by side."""

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import aead, sodium

# The GCM specification (McGrew, Viega), appendix B, test cases 14 and 16: key, nonce, text, data, sealed text.
VECTORS = [
    ("00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    (
        "feffe9928665731c6d6a8f9467308308" * 2,
        "cafebabefacedbaddecaf888",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]


@pytest.fixture(params=["libsodium", "openssl"])
def library(request, monkeypatch):
    if request.param == "libsodium" and not sodium.has_aes():
        pytest.skip("the extension was not built, or the processor has no AES")
    monkeypatch.setattr(aead, "_BY_LIBSODIUM", request.param == "libsodium")


@pytest.mark.usefixtures("library")
class TestEach:
    def test_published_vectors(self):
        for vector in VECTORS:
            key, nonce, text, data, sealed = map(bytes.fromhex, vector)
            assert aead.seal_each(1, key, nonce, [text], data) == [sealed]
            assert aead.open_each(1, key, nonce, [sealed], data) == [text]

    def test_a_changed_byte_anywhere_spoils_this_text_alone(self):
        parts = [secrets.token_bytes(32), secrets.token_bytes(12), secrets.token_bytes(40), b"data"]
        (good,) = aead.seal_each(1, *parts)
        given = [parts[0], parts[1], good, parts[3]]
        for which in range(4):
            for at in range(len(given[which])):
                changed = bytearray(given[which])
                changed[at] ^= 1 << secrets.randbelow(8)
                columns = [[each] * 3 for each in given]
                columns[which][1] = bytes(changed)
                assert aead.open_each(3, *columns) == [parts[2], None, parts[2]]

    def test_what_is_too_short_or_longer_does_not_open(self):
        key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        (good,) = aead.seal_each(1, key, nonce, [b""], b"")
        assert len(good) == aead.TAG
        texts = [good[:size] for size in range(17)] + [good + b"\x00"]
        assert aead.open_each(18, key, nonce, texts, b"") == [None] * 16 + [b"", None]

    def test_wrong_lengths_are_refused(self):
        key, nonce = bytes(32), bytes(12)
        for function in (aead.seal_each, aead.open_each):
            assert function(0, [], [], [], []) == []
            for bad in (
                (key[:31], nonce),
                (key + b"x", nonce),
                (key, nonce[:11]),
                (key, b""),
                ([key, b""], nonce),
            ):
                with pytest.raises(ValueError, match="a key has 32 bytes, a nonce 12"):
                    function(2, *bad, [bytes(16)] * 2, b"")
            with pytest.raises(ValueError, match="another length"):
                function(2, key, nonce, [bytes(16)], b"")

    def test_a_column_combined_with_a_byte_is_refused(self):
        for function in (aead.seal_each, aead.open_each):
            with pytest.raises(ValueError, match="combined"):
                function(1, (bytes(32), 32, 0x36), bytes(12), [bytes(16)], b"")

    def test_only_bytes_are_taken(self):
        for function in (aead.seal_each, aead.open_each):
            with pytest.raises(TypeError):
                function(1, bytes(32), bytes(12), ["text"], b"")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=80)), max_size=20), st.booleans())
def test_both_libraries_give_the_same(rows, shared_key):
    if not sodium.has_aes():
        pytest.skip("the extension was not built, or the processor has no AES")
    count = len(rows)
    keys = secrets.token_bytes(32) if shared_key else [secrets.token_bytes(32) for _ in rows]
    parts = (
        keys,
        (secrets.token_bytes(12 * count), 12),
        [text for text, _ in rows],
        [data for _, data in rows],
    )
    with pytest.MonkeyPatch.context() as patch:
        sealed, opened = [], []
        for by_libsodium in (True, False):
            patch.setattr(aead, "_BY_LIBSODIUM", by_libsodium)
            sealed.append(aead.seal_each(count, *parts))
        for by_libsodium in (True, False):
            patch.setattr(aead, "_BY_LIBSODIUM", by_libsodium)
            opened.append(aead.open_each(count, *parts[:2], sealed[0], parts[3]))
    assert sealed[0] == sealed[1]
    assert opened[0] == opened[1] == parts[2]
