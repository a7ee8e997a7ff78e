"""Unambiguous byte strings for hashing, and key derivation."""

import hashlib
import hmac

_BLOCK = 128  # bytes of SHA-512
_sha512 = hashlib.sha512


def frame(*parts: bytes | str | int) -> bytes:
    """Concatenate parts so that no two different tuples give the same bytes.

    Bytes and text (UTF-8) carry a 4-byte length, integers are 8 bytes big-endian.
    """
    out = bytearray()
    for part in parts:
        if isinstance(part, int):
            out += b"\x00" + part.to_bytes(8, "big", signed=True)
        else:
            data = part.encode() if isinstance(part, str) else part
            out += b"\x01" + len(data).to_bytes(4, "big") + data
    return bytes(out)


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-512 (RFC 5869 §2.3) for up to 64 bytes.

    `key` is already uniform (an OPRF output or a random key), so Extract is skipped as §3.3 allows.
    """
    if not 0 < length <= 64 or len(key) > _BLOCK:
        raise ValueError("one block gives 1 to 64 bytes, from a key of at most 128")
    # HMAC (RFC 2104) spelt out: half the time of `hmac.digest`, which looks the hash up at each call.
    padded = key.ljust(_BLOCK, b"\x00")
    inner = _sha512(padded.translate(hmac.trans_36) + info + b"\x01").digest()
    return _sha512(padded.translate(hmac.trans_5C) + inner).digest()[:length]
