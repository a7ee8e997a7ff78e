"""Ed25519 (RFC 8032): every signature of this network is verified here. They are made with `cryptography`'s keys.

Verified by libsodium, which takes half of OpenSSL's time and is stricter: it refuses keys and nonces of small order, and keys that are
not canonical. Under a key of small order one signature holds for every message, so who owned it could deny all that it ever signed.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from . import sodium
from .errors import SignatureError


def verify(key: Ed25519PublicKey | bytes, message: bytes, signature: bytes, complaint: str) -> None:
    """Raise `SignatureError` with the complaint unless `key` (32 bytes, or the object) signed the message."""
    public = key if isinstance(key, bytes) else key.public_bytes_raw()
    if not sodium.is_signed(public, message, signature):
        raise SignatureError(complaint)
