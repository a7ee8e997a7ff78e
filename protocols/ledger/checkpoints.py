"""A log's heads: C2SP tlog-checkpoint v1.0.0, cosignatures of tlog-cosignature v1.0.1 (Ed25519), quorum.

No extension lines: none is written, and a head that has one is refused.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .. import merkle
from ..errors import DecodeError, SignatureError
from . import notes
from .notes import COSIGNATURE, Note, Signature, VerifierKey


@dataclass(frozen=True)
class Checkpoint:
    """One head of one log."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{notes.encode_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Raise `DecodeError` unless `text` is the three lines of a checkpoint."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise DecodeError("a checkpoint has three lines and no extension")
        notes.check_name(lines[0])
        size = notes.decode_decimal(lines[1], "the tree's size")
        root = notes.decode_base64(lines[2], "the root")
        if size > merkle.MAX_SIZE or len(root) != merkle.HASH:
            raise DecodeError("the size or the root of a checkpoint is out of range")
        if size == 0 and root != merkle.EMPTY:
            raise DecodeError("an empty tree has another root")
        return cls(lines[0], size, root)


def origin_hash(origin: str) -> str:
    """How tlog-witness names a log in a path: SHA-256 of its origin in lower-case hexadecimal."""
    return hashlib.sha256(origin.encode()).hexdigest()


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Note:
    """The log signs its head under its origin's name."""
    return notes.sign(str(checkpoint), checkpoint.origin, key)


def _message(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def cosign(text: str, name: str, key: Ed25519PrivateKey, time: int) -> Signature:
    """A witness's line for a checkpoint's text; `time` in seconds since 1970."""
    public = VerifierKey(name, COSIGNATURE, key.public_key().public_bytes_raw())
    return Signature(name, public.key_id, time.to_bytes(8, "big") + key.sign(_message(text, time)))


def cosigned_at(note: Note, signature: Signature, witness: VerifierKey) -> int:
    """When `witness` cosigned; raises `SignatureError` where the line does not verify."""
    if len(signature.data) != 72:
        raise SignatureError(f"a cosignature of {witness.name} has another length")
    time = int.from_bytes(signature.data[:8], "big")
    if not 0 < time < 1 << 63:
        raise SignatureError(f"a cosignature of {witness.name} has no time")
    witness.check(_message(note.text, time), signature.data[8:])
    return time


def quorum(witnesses: int) -> int:
    """How many of `witnesses` must have cosigned a published head.

    More than (n + f) / 2 with f = ⌊(n − 1) / 3⌋ liars, so that two quorums share an honest witness; from four
    witnesses on n − f of them are enough, so that no single one can stop the network.
    """
    liars = max(0, (witnesses - 1) // 3)
    return (witnesses + liars) // 2 + 1 if witnesses else 0


@dataclass(frozen=True)
class Head:
    """A verified head: the log signed it, and these witnesses cosigned it."""

    checkpoint: Checkpoint
    note: Note
    cosigned: dict[str, int]  # witness's name → seconds since 1970

    @property
    def time(self) -> int:
        """The upper median of the cosignatures' times: as good as the witnesses' clocks; 0 without any."""
        times = sorted(self.cosigned.values())
        return times[len(times) // 2] if times else 0


def open_head(data: bytes, log: VerifierKey, witnesses: Iterable[VerifierKey]) -> Head:
    """Verify a head. Lines of unknown keys are ignored and dropped; one of a known key that fails is refused.

    Raises `DecodeError` or `SignatureError`. How many witnesses are enough is for the caller to say.
    """
    note = Note.parse(data)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != log.name:
        raise SignatureError(f"the head is of {checkpoint.origin}, not of {log.name}")
    notes.verify(note, log)
    kept = [next(each for each in note.signatures if each.by(log))]
    times: dict[str, int] = {}
    for witness in witnesses:
        for each in note.signatures:
            if each.by(witness):
                time = cosigned_at(note, each, witness)
                if witness.name not in times:
                    kept.append(each)
                times[witness.name] = max(time, times.get(witness.name, 0))
    return Head(checkpoint, Note(note.text, tuple(kept)), times)
