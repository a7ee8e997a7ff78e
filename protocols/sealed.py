"""Sealed lists: records that are noise without an evaluation of the holder's OPRF.

For an identifier x with N = F_k(x) (64 bytes, `voprf`):

    tag        = HKDF-Expand(N, "tag", 16)
    label key  = HKDF-Expand(N, "label" ‖ context ‖ salt, 32), salt fresh for each sealing
    record     = tag (16) ‖ salt (16) ‖ AES-256-GCM(label key, nonce 0, label, AD = context ‖ tag ‖ batch) (64)

The nonce may be constant because a key seals once: its salt is fresh. A batch is its additions (96-byte
records) followed by its removals (16-byte tags), each strictly ascending by tag, so that the order of
import shows nothing. The table hash chains each batch to the one before.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import aead, group, padding, voprf
from . import label as labels
from .encoding import expand, frame
from .errors import MisuseError, PeerError, TableError
from .hashing import DIGEST, hkdf_each, hmac_each, numbers
from .label import Label

TAG = 16
SALT = 16
RECORD = TAG + SALT + labels.LENGTH + aead.TAG
MINIMUM_BUCKET = 16  # additions and removals of a later batch are padded to at least this many
_TAG_INFO = b"lianfang/v1/tag"
_LABEL_INFO = b"lianfang/v1/label"
_NONCE = bytes(aead.NONCE)
_AT_ONCE = 1_024  # records opened without a pause


@dataclass(frozen=True)
class ListEpoch:
    """Which list and epoch a record belongs to; part of every key and of the associated data."""

    network: str
    holder: str
    list: str
    epoch: int

    @property
    def context(self) -> bytes:
        """32 bytes that stand for all four, without ambiguity."""
        named = frame("lianfang/v1/sealed", self.network, self.holder, self.list, self.epoch)
        return hashlib.sha256(named).digest()


def tag_of(output: bytes) -> bytes:
    """The 16-byte tag of an OPRF output."""
    return tags_of([output])[0]


def tags_of(outputs: Sequence[bytes]) -> list[bytes]:
    """The 16-byte tag of each OPRF output."""
    expanded = hkdf_each(_column(outputs), _TAG_INFO)
    return group.split(expanded, DIGEST, TAG)


def _column(outputs: Sequence[bytes]) -> bytes:
    if any(len(output) != voprf.OUTPUT for output in outputs):
        raise MisuseError(f"an OPRF output has {voprf.OUTPUT} bytes")
    return b"".join(outputs)


def _label_keys(outputs: Sequence[bytes], context: bytes, salts: bytes) -> list[bytes]:
    expanded = hkdf_each(_column(outputs), _LABEL_INFO + context, (salts, SALT))
    return group.split(expanded, DIGEST, aead.KEY)


def seal_chunk(
    secret: bytes, context: bytes, batch: int, entries: Sequence[tuple[bytes, bytes]], salts: bytes
) -> bytes:
    """Seal (canonical identifier, 48-byte label) pairs; records sorted by tag.

    `salts` is 16·n fresh random bytes.
    """
    number = batch.to_bytes(4, "big")
    outputs = voprf.evaluate_inputs(secret, [each[0] for each in entries])
    keys, tags = _label_keys(outputs, context, salts), tags_of(outputs)
    data = [context + tag + number for tag in tags]
    values = aead.seal_each(len(entries), keys, _NONCE, [each[1] for each in entries], data)
    parts = zip(tags, group.split(salts, SALT), values, strict=True)
    return b"".join(sorted(map(b"".join, parts)))


def tags_chunk(secret: bytes, identifiers: Sequence[bytes]) -> bytes:
    """Tombstones of identifiers that leave, sorted; 16 bytes each."""
    return b"".join(sorted(tags_of(voprf.evaluate_inputs(secret, identifiers))))


def open_record(output: bytes, context: bytes, batch: int, value: bytes) -> Label:
    """Open a record's value (salt ‖ ciphertext) with the OPRF output of its identifier.

    Raises `TableError` where it does not open (sealed wrongly, or a byte was changed), `DecodeError` for what is no label.
    """
    (label,) = open_each(context, [(output, batch, value)])
    if isinstance(label, PeerError):
        raise label
    return label


def open_each(context: bytes, records: Sequence[tuple[bytes, int, bytes]]) -> list[Label | PeerError]:
    """`open_record` of each (output, batch, value): the label, or the error that this record alone deserves."""
    if len(records) > _AT_ONCE:  # others take their turn between
        parts = [records[i : i + _AT_ONCE] for i in range(0, len(records), _AT_ONCE)]
        return [label for part in parts for label in open_each(context, part)]
    outputs = [output for output, _, _ in records]
    salts = b"".join(value[:SALT].ljust(SALT, b"\x00") for _, _, value in records)
    keys, tags = _label_keys(outputs, context, salts), tags_of(outputs)
    data = [
        context + tag + batch.to_bytes(4, "big") for tag, (_, batch, _) in zip(tags, records, strict=True)
    ]
    plains = aead.open_each(len(records), keys, _NONCE, [value[SALT:] for _, _, value in records], data)
    return [_read(plain, value) for plain, (_, _, value) in zip(plains, records, strict=True)]


def _read(plain: bytes | None, value: bytes) -> Label | PeerError:
    if len(value) != RECORD - TAG:
        return TableError(f"sealed record: {len(value)} bytes instead of {RECORD - TAG}")
    if plain is None:
        return TableError("a sealed record does not open under its own tag")
    try:
        return Label.decode(plain)
    except PeerError as error:
        return error


# -- dummies -------------------------------------------------------------------------------------------


def dummy_key(secret: bytes) -> bytes:
    """Key from which the epoch's dummy tags follow; gone with the epoch's secret."""
    return expand(secret, b"lianfang/v1/dummy", 32)


def dummy_tags(key: bytes, start: int, stop: int) -> list[bytes]:
    """Tags of dummies number start…stop−1: a removal of one looks like any other."""
    expanded = hmac_each(key, stop - start, b"tag", numbers(start, stop, 8), b"\x01")  # HKDF-Expand
    return group.split(expanded, DIGEST, TAG)


@dataclass(frozen=True)
class Padding:
    """How many dummies a batch adds and removes."""

    added: int
    removed: int


def pad_batch(additions: int, removals: int, live: int, reserve: int, first: bool) -> Padding:
    """Dummies for a batch of so many real changes.

    `live` counts real entries after the batch, `reserve` the dummies in the table before it. Both counts
    are brought to a public bucket. Afterwards the table holds enough dummies to pad the removals of any
    later batch, so the padding never has to say "there were none left".
    """
    if first:
        removed = 0
    else:
        removed = padding.bucket(removals, MINIMUM_BUCKET) - removals
        if removed > reserve:
            raise TableError("too few dummies in the table to pad its removals")
    wanted = max(MINIMUM_BUCKET, padding.granule(live)) + MINIMUM_BUCKET
    refill = max(0, wanted - (reserve - removed))
    target = padding.bucket(additions + refill, MINIMUM_BUCKET)
    return Padding(target - additions, removed)


# -- batches -------------------------------------------------------------------------------------------


class BatchHash:
    """The table hash of one batch, fed in any pieces."""

    def __init__(self, where: ListEpoch, number: int, previous: bytes, additions: int, removals: int) -> None:
        self._hash = hashlib.sha256(
            frame("lianfang/v1/table", where.context, number, previous, additions, removals)
        )

    def update(self, content: bytes) -> None:
        """The next bytes of the batch."""
        self._hash.update(content)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._hash.digest()


def content_length(additions: int, removals: int) -> int:
    """Bytes of a batch."""
    return additions * RECORD + removals * TAG


def ascending(content: bytes, unit: int, after: bytes = b"") -> Iterator[bytes]:
    """Yield the elements of `content`, each `unit` bytes.

    Raises `TableError` unless tags ascend strictly, starting above `after`.
    """
    if len(content) % unit:
        raise TableError(f"batch content: {len(content)} bytes is not a multiple of {unit}")
    last = after
    for offset in range(0, len(content), unit):
        element = content[offset : offset + unit]
        if element[:TAG] <= last:
            raise TableError("batch content: tags do not ascend")
        last = element[:TAG]
        yield element
