"""Signed notes (C2SP signed-note v1.0.0) with Ed25519. What parses serialises to the same bytes."""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .. import signatures
from ..errors import DecodeError, MisuseError, SignatureError

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE = 64 * 1024  # bytes
MAX_SIGNATURES = 128
_DASH = "— "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


def decode_base64(text: str, what: str) -> bytes:
    """Standard base64 in its one encoding; raises `DecodeError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise DecodeError(f"{what} is not canonical base64")
    return data


def encode_base64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode()


def decode_decimal(text: str, what: str) -> int:
    """ASCII decimal below 2^63 without leading zeroes; raises `DecodeError`."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) or int(text) >= 1 << 63:
        raise DecodeError(f"{what} is not a number below 2^63 in decimal")
    return int(text)


def check_name(name: str) -> None:
    """Raise `DecodeError` unless `name` may be a key's name."""
    if not name or "+" in name or any(each.isspace() or each < " " for each in name):
        raise DecodeError("a key's name is empty, or holds a space or a plus")


@dataclass(frozen=True)
class VerifierKey:
    """An Ed25519 public key by name and type of signature."""

    name: str
    kind: int
    public: bytes  # 32 bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.public) != 32:
            raise DecodeError("an Ed25519 key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """4 bytes."""
        text = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(text).digest()[:4]

    def __str__(self) -> str:
        """The vkey."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(bytes([self.kind]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Raise `DecodeError` unless `text` is a vkey of a known type."""
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise DecodeError("a verifier key has three parts")
        data = decode_base64(parts[2], "the verifier key")
        if len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
            raise DecodeError("the verifier key is of another type")
        key = cls(parts[0], data[0], data[1:])
        if key.key_id.hex() != parts[1]:
            raise DecodeError("the verifier key has another key id")
        return key

    def check(self, message: bytes, signature: bytes) -> None:
        """Raise `SignatureError` unless this key signed `message`."""
        signatures.verify(self.public, message, signature, f"a signature of {self.name} does not verify")


@dataclass(frozen=True)
class Signature:
    """One signature line."""

    name: str
    key_id: bytes
    data: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {encode_base64(self.key_id + self.data)}\n"

    @classmethod
    def parse(cls, line: str) -> "Signature":
        """`line` without its newline."""
        if not line.startswith(_DASH):
            raise DecodeError("a signature line begins with a dash")
        name, space, text = line.removeprefix(_DASH).partition(" ")
        check_name(name)
        data = decode_base64(text, "a signature")
        if not space or len(data) <= 4:
            raise DecodeError("a signature is too short")
        return cls(name, data[:4], data[4:])

    def by(self, key: VerifierKey) -> bool:
        """Whether it claims to be of this key."""
        return self.name == key.name and self.key_id == key.key_id


@dataclass(frozen=True)
class Note:
    """A text and its signatures; nothing is verified yet."""

    text: str  # with its last newline
    signatures: tuple[Signature, ...]

    def __bytes__(self) -> bytes:
        return f"{self.text}\n{''.join(map(str, self.signatures))}".encode()

    @classmethod
    def parse(cls, data: bytes) -> "Note":
        """Raise `DecodeError` for anything that is not a signed note."""
        if len(data) > MAX_NOTE:
            raise DecodeError("the note is too long")
        try:
            whole = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError("the note is not UTF-8") from error
        if _CONTROL.search(whole):
            raise DecodeError("the note holds a control character")
        place = whole.rfind("\n\n")
        if place < 0 or not whole.endswith("\n"):
            raise DecodeError("the note has no signatures")
        text, lines = whole[: place + 1], whole[place + 2 :].split("\n")[:-1]
        if not 1 <= len(lines) <= MAX_SIGNATURES:
            raise DecodeError(f"a note has 1 to {MAX_SIGNATURES} signatures")
        return cls(text, tuple(Signature.parse(line) for line in lines))

    def with_signatures(self, signatures: Iterable[Signature]) -> "Note":
        """The same text with more signatures."""
        return Note(self.text, (*self.signatures, *signatures))


def sign(text: str, name: str, key: Ed25519PrivateKey) -> Note:
    """A note with one Ed25519 signature."""
    if not text.endswith("\n") or _CONTROL.search(text):
        raise MisuseError("a note's text ends in a newline and has no control characters")
    public = VerifierKey(name, ED25519, key.public_key().public_bytes_raw())
    return Note(text, (Signature(name, public.key_id, key.sign(text.encode())),))


def verify(note: Note, key: VerifierKey) -> None:
    """Raise `SignatureError` unless the note is signed by `key`, and by each line that claims to be."""
    mine = [each for each in note.signatures if each.by(key)]
    if not mine:
        raise SignatureError(f"the note is not signed by {key.name}")
    for each in mine:
        key.check(note.text.encode(), each.data)
