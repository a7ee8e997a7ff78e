"""A node's own keys. They are born on the node, stay in its `keys` folder (0700, files 0600) and are never sent.

tls.key       ECDSA P-256, mutual TLS
signing.key   Ed25519, statements about lists
sealing.key   X25519, messages sealed to this member
storage.key   32 random bytes: what the node keeps on disk
log.key       Ed25519, heads of this node's log
witness.key   Ed25519, cosignatures on heads of others' logs
"""

import functools
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols import aead, group
from protocols.encoding import expand
from protocols.hashing import DIGEST, hmac_each

from ..errors import ConfigError, StorageError
from ..files import write_secret

_NONCE = aead.NONCE
_CHANGED = "stored data does not open under this node's storage key"
FILES = ("tls.key", "signing.key", "sealing.key", "storage.key", "log.key", "witness.key")
_Private = ec.EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey


def _pem(key: _Private) -> bytes:
    return key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())


def create(folder: Path) -> None:
    """Make all keys. Raises `ConfigError` where any exists: a key is never replaced by accident."""
    existing = [name for name in FILES if (folder / name).exists()]
    if existing:
        raise ConfigError(f"{folder / existing[0]} exists; keys are never overwritten")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_secret(folder / "tls.key", _pem(ec.generate_private_key(ec.SECP256R1())))
    write_secret(folder / "signing.key", _pem(Ed25519PrivateKey.generate()))
    write_secret(folder / "sealing.key", _pem(X25519PrivateKey.generate()))
    write_secret(folder / "storage.key", secrets.token_bytes(32))
    for name in ("log.key", "witness.key"):
        write_secret(folder / name, _pem(Ed25519PrivateKey.generate()))


def renew_tls(folder: Path) -> Path:
    """A new TLS key beside the one in use, which `enroll` puts in its place; its path. Raises `ConfigError`."""
    path = folder / "tls.key.new"
    path.unlink(missing_ok=True)  # of a renewal that came to nothing: no certificate was ever asked for twice
    write_secret(path, _pem(ec.generate_private_key(ec.SECP256R1())))
    return path


def load_tls(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raise `ConfigError` naming the file."""
    return cast(ec.EllipticCurvePrivateKey, _load(path, ec.EllipticCurvePrivateKey))


def check_private(path: Path) -> None:
    """Raise `ConfigError` where a key file is missing, not ours or open to others."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if status.st_mode & 0o077:
        raise ConfigError(f"{path} is readable by others; run: chmod 600 {path}")
    if status.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"{path} belongs to another user")


def _load(path: Path, kind: type) -> _Private:
    check_private(path)
    try:
        key = ser.load_pem_private_key(path.read_bytes(), None)
    except ValueError as error:
        raise ConfigError(f"{path} is not a private key") from error
    if not isinstance(key, kind):
        raise ConfigError(f"{path} is a key of another kind")
    return cast(_Private, key)


class Vault:
    """What a node writes to its disk about people: encrypted and indexed under its storage key."""

    def __init__(self, storage_key: bytes) -> None:
        self._root = storage_key
        self._key = expand(storage_key, b"lianfang/v1/store/encrypt", 32)
        self.index_key = expand(storage_key, b"lianfang/v1/store/index", 32)

    def __repr__(self) -> str:
        return "Vault()"

    @property
    def root(self) -> bytes:
        """The key itself, for handing to this node's own worker processes."""
        return self._root

    def encrypt(self, plain: bytes, purpose: bytes) -> bytes:
        """12-byte nonce ‖ ciphertext; `purpose` must be the same to decrypt."""
        return self.encrypt_each([plain], purpose)[0]

    def decrypt(self, data: bytes, purpose: bytes) -> bytes:
        """Raise `StorageError` where the data was changed or is under another key."""
        return self.decrypt_each([data], purpose)[0]

    def encrypt_each(self, plains: list[bytes], purpose: bytes) -> list[bytes]:
        """`encrypt` of each, all in one call."""
        nonces = os.urandom(_NONCE * len(plains))
        sealed = aead.seal_each(len(plains), self._key, (nonces, _NONCE), plains, purpose)
        return [nonce + each for nonce, each in zip(group.split(nonces, _NONCE), sealed, strict=True)]

    def decrypt_each(self, stored: Sequence[bytes], purpose: bytes) -> list[bytes]:
        """`decrypt` of each, all in one call. Raises `StorageError` where one was changed or is under another key."""
        try:
            nonces, texts = [each[:_NONCE] for each in stored], [each[_NONCE:] for each in stored]
            found = aead.open_each(len(stored), self._key, nonces, texts, purpose)
        except (ValueError, TypeError) as error:  # too short for a nonce, or no bytes at all
            raise StorageError(_CHANGED) from error
        plains = [each for each in found if each is not None]
        if len(plains) < len(found):
            raise StorageError(_CHANGED)
        return plains

    def index_each(self, canonicals: Sequence[bytes]) -> list[bytes]:
        """`index` of each, hashed together."""
        hashed = hmac_each(self.index_key, len(canonicals), list(canonicals), b"\x01")  # HKDF-Expand
        return group.split(hashed, DIGEST, 16)

    def index(self, canonical: bytes) -> bytes:
        """16 bytes by which equal identifiers are found (HMAC-SHA-512, truncated)."""
        return expand(self.index_key, canonical, 16)

    def pseudonym(self, person: str) -> bytes:
        """16 bytes that stand for a person of this institution, given by an id."""
        return expand(self.index_key, b"person\x1f" + person.encode(), 16)


@dataclass(frozen=True)
class NodeKeys:
    """All keys of a node, loaded from its folder."""

    folder: Path
    tls: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey
    storage: bytes
    log: Ed25519PrivateKey
    witness: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"NodeKeys({self.folder})"

    @classmethod
    def load(cls, folder: Path) -> "NodeKeys":
        """Raise `ConfigError` naming the file that is missing, open to others or not a key."""
        storage = folder / "storage.key"
        check_private(storage)
        secret = storage.read_bytes()
        if len(secret) != 32:
            raise ConfigError(f"{storage} does not hold 32 bytes")
        return cls(
            folder,
            cast(ec.EllipticCurvePrivateKey, _load(folder / "tls.key", ec.EllipticCurvePrivateKey)),
            cast(Ed25519PrivateKey, _load(folder / "signing.key", Ed25519PrivateKey)),
            cast(X25519PrivateKey, _load(folder / "sealing.key", X25519PrivateKey)),
            secret,
            cast(Ed25519PrivateKey, _load(folder / "log.key", Ed25519PrivateKey)),
            cast(Ed25519PrivateKey, _load(folder / "witness.key", Ed25519PrivateKey)),
        )

    @functools.cached_property
    def vault(self) -> Vault:
        """Encryption at rest under the storage key."""
        return Vault(self.storage)

    @functools.cached_property
    def list_vault(self) -> Vault:
        """Of the own lists' entries alone, under a key derived from the storage key: it goes to whoever reads or seals them."""
        return Vault(expand(self.storage, b"lianfang/v1/store/lists", 32))

    def tls_pem(self) -> bytes:
        """For handing to the TLS library only."""
        return _pem(self.tls)

    def signing_public(self) -> bytes:
        """32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    def sealing_public(self) -> bytes:
        """32 bytes."""
        return self.sealing.public_key().public_bytes_raw()

    def log_public(self) -> bytes:
        """32 bytes."""
        return self.log.public_key().public_bytes_raw()

    def witness_public(self) -> bytes:
        """32 bytes."""
        return self.witness.public_key().public_bytes_raw()
