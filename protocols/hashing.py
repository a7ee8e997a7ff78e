"""SHA-512, HMAC and HKDF over whole batches, by the backend that serves (`group`): the suite's hash, eight messages at a time.

A batch of messages is given by its parts, which stand one after the other in each message. A part is the same bytes for all, a
column `(bytes, width)` with `width` bytes for each message (a third number: the byte that each of them is combined with by exclusive or),
or a list with bytes of any length for each. Outcomes are columns of 64.
"""

import struct
from collections.abc import Sequence

from .errors import MisuseError
from .group import backend
from .sodium import Part, exclusive_or

DIGEST = 64
_BLOCK = 128
_ZERO_BLOCK = bytes(_BLOCK)


def sha512_each(count: int, *parts: Part) -> bytes:
    """The hash of each message; 64·count bytes. Raises `ValueError` for a part that has not `count` pieces."""
    return backend.sha512(count, parts)


def hmac_each(key: bytes, count: int, *parts: Part) -> bytes:
    """HMAC-SHA-512 (RFC 2104) of each message under one key of at most 128 bytes; 64·count bytes."""
    if len(key) > _BLOCK:
        raise MisuseError(f"a key has at most {_BLOCK} bytes")
    padded = key.ljust(_BLOCK, b"\x00")
    inner = backend.sha512(count, (exclusive_or(padded, 0x36), *parts))
    return backend.sha512(count, (exclusive_or(padded, 0x5C), (inner, DIGEST)))


def hkdf_each(keys: bytes, *info: Part) -> bytes:
    """HKDF-Expand with SHA-512 (RFC 5869 §2.3), one block of 64 bytes under each 64-byte key; `info` as parts. See `encoding.expand`."""
    count, rest = divmod(len(keys), DIGEST)
    if rest:
        raise ValueError(f"{len(keys)} bytes are no column of 64-byte keys")
    inner = backend.sha512(count, ((keys, DIGEST, 0x36), b"\x36" * 64, *info, b"\x01"))
    return backend.sha512(count, ((keys, DIGEST, 0x5C), b"\x5c" * 64, (inner, DIGEST)))


def expand_message_each(dst: bytes, count: int, *parts: Part) -> bytes:
    """expand_message_xmd with SHA-512 to 64 bytes (RFC 9380 §5.3.1) of each message: two hashes, one block out; 64·count bytes."""
    suffix = dst + bytes([len(dst)])
    first = backend.sha512(count, (_ZERO_BLOCK, *parts, (64).to_bytes(2, "big") + b"\x00" + suffix))
    return backend.sha512(count, ((first, DIGEST), b"\x01" + suffix))


def lengths(items: Sequence[bytes]) -> tuple[bytes, int]:
    """The column of their lengths, two bytes big-endian each. Raises `MisuseError` for one over 65,535 bytes."""
    if any(len(item) > 65_535 for item in items):
        raise MisuseError("an input has more than 65535 bytes")
    return struct.pack(f">{len(items)}H", *map(len, items)), 2


def numbers(start: int, stop: int, width: int) -> tuple[bytes, int]:
    """The column of start … stop − 1, `width` bytes big-endian each: 2, 4 or 8."""
    code = {2: "H", 4: "I", 8: "Q"}[width]
    return struct.pack(f">{stop - start}{code}", *range(start, stop)), width
