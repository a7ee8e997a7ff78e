"""AES-256-GCM over whole batches: by libsodium, one call for all, where it and the extension serve; by OpenSSL elsewhere.

Keys (32 bytes), nonces (12), texts and associated data are parts, as in `hashing`. A sealed text is its ciphertext and a tag of
16 bytes (RFC 5116 §5.1). Texts are short: whoever has many gives them in pieces, for the interpreter's lock stays where it is.
"""

from collections.abc import Callable
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import sodium
from .sodium import Part, pieces

KEY = 32
NONCE = 12
TAG = 16

_T = TypeVar("_T")
_BY_LIBSODIUM = sodium.has_aes()


def seal_each(count: int, keys: Part, nonces: Part, texts: Part, data: Part) -> list[bytes]:
    """Each text sealed. That no key meets a nonce twice is the caller's to see to. Raises `ValueError` for wrong lengths."""
    if _BY_LIBSODIUM:
        return sodium.seal_texts(count, keys, nonces, texts, data)
    return _each(lambda key, *rest: AESGCM(key).encrypt(*rest), count, keys, nonces, texts, data)


def open_each(count: int, keys: Part, nonces: Part, texts: Part, data: Part) -> list[bytes | None]:
    """Each text opened; None for what was not sealed like this under its key, nonce and data. Raises `ValueError` for wrong lengths."""
    if _BY_LIBSODIUM:
        return sodium.open_texts(count, keys, nonces, texts, data)
    return _each(_opened, count, keys, nonces, texts, data)


def _opened(key: bytes, nonce: bytes, text: bytes, data: bytes) -> bytes | None:
    try:
        return AESGCM(key).decrypt(nonce, text, data)
    except InvalidTag:
        return None


def _each(function: Callable[[bytes, bytes, bytes, bytes], _T], count: int, *parts: Part) -> list[_T]:
    if any(isinstance(part, tuple) and any(part[2:]) for part in parts):
        raise ValueError("nothing is combined with a byte here")
    rows = list(zip(*(pieces(part, count) for part in parts), strict=True))
    if any(len(key) != KEY or len(nonce) != NONCE for key, nonce, _, _ in rows):
        raise ValueError("a key has 32 bytes, a nonce 12")
    return [function(*row) for row in rows]
