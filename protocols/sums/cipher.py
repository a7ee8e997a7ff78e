"""BFV under the job key, by TenSEAL: the outer lock, which keeps the coordinator from reading even masked values.

Parameters: ring degree 8192, plaintext modulus `modular.MODULUS`, coefficient primes of 50+50+50 bits: 150 of the at
most 218 bits that leave 128-bit security at this degree (homomorphicencryption.org standard, table 1). Members share
the secret key, so they encrypt with it: the ciphertext is that of symmetric BFV and only additions follow.
"""

import functools
from collections.abc import Iterator

import numpy as np
import tenseal as ts

from ..errors import DecodeError
from .modular import MODULUS, Vector, centred, from_centred, residues

SLOTS = 8192
_PRIMES = [50, 50, 50]
CIPHERTEXT_BYTES = 300_000  # a serialised ciphertext has about 236 kB
KEY_BYTES = 1_000_000
# TenSEAL's message: sizes = [8192], then one ciphertext; SEAL 4's header with Zstandard.
_FRAME = bytes.fromhex("0a02804012")
_SEAL = bytes.fromhex("5ea110040302")
_PARTS = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}


def _new() -> ts.Context:
    return ts.context(
        ts.SCHEME_TYPE.BFV,
        poly_modulus_degree=SLOTS,
        plain_modulus=MODULUS,
        coeff_mod_bit_sizes=_PRIMES,
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )


@functools.cache
def _parameter_bytes() -> bytes:
    return bytes(_new().serialize(save_secret_key=False, **_PARTS))


@functools.cache
def _parameters() -> ts.Context:
    """The parameters without any key."""
    return ts.context_from(_parameter_bytes())


def chunks_of(length: int) -> int:
    """Ciphertexts for so many values."""
    return -(-length // SLOTS)


class BfvKey:
    """The job's BFV key."""

    def __init__(self, context: ts.Context) -> None:
        self._context = context

    def __repr__(self) -> str:
        return "BfvKey()"

    @classmethod
    def generate(cls) -> "BfvKey":
        """Randomness is SEAL's, from the operating system."""
        return cls(_new())

    def to_bytes(self) -> bytes:
        """The secret key with its parameters: only ever sealed to a member."""
        return bytes(self._context.serialize(save_secret_key=True, **_PARTS))

    @classmethod
    def from_bytes(cls, data: bytes) -> "BfvKey":
        """Raise `DecodeError` unless it is a key of exactly our parameters."""
        if len(data) > KEY_BYTES:
            raise DecodeError(f"BFV key: {len(data)} bytes, at most {KEY_BYTES}")
        try:
            context = ts.context_from(data)
            same = context.serialize(save_secret_key=False, **_PARTS) == _parameter_bytes()
        except (ValueError, RuntimeError) as error:
            raise DecodeError("BFV key: cannot be read") from error
        if not same or not context.has_secret_key():
            raise DecodeError("BFV key: other parameters, or no secret key")
        return cls(context)

    def encrypt(self, values: Vector) -> Iterator[bytes]:
        """One ciphertext for each 8,192 residues; the last is padded with zeros."""
        for start in range(0, values.size, SLOTS):
            part = centred(values[start : start + SLOTS])
            if part.size < SLOTS:
                part = np.concatenate([part, np.zeros(SLOTS - part.size, dtype=np.int64)])
            yield bytes(ts.bfv_vector(self._context, part.tolist()).serialize())

    def decrypt(self, content: bytes) -> Vector:
        """8,192 residues; raises `DecodeError`."""
        vector = _load(self._context, content)
        try:
            return from_centred(np.array(vector.decrypt(), dtype=np.int64))
        except (ValueError, RuntimeError) as error:
            raise DecodeError("ciphertext: cannot be opened") from error


def _check_frame(content: bytes) -> None:
    """Exactly one ciphertext of 8,192 values in SEAL's own compression, before anything is inflated.

    TenSEAL's message may hold any number of ciphertexts, which compress to nearly nothing: a small message would take
    gigabytes. One inflates to at most 4 MB.
    """
    length, shift, at = 0, 0, len(_FRAME)
    for byte in content[at : at + 4]:
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if not content.startswith(_FRAME) or length != len(content) - at or content[at : at + 6] != _SEAL:
        raise DecodeError("ciphertext: truncated, or not one ciphertext of 8,192 values")


def _load(context: ts.Context, content: bytes) -> ts.BFVVector:
    if len(content) > CIPHERTEXT_BYTES:
        raise DecodeError(f"ciphertext: {len(content)} bytes, at most {CIPHERTEXT_BYTES}")
    _check_frame(content)
    try:
        vector = ts.bfv_vector_from(context, content)
        parts = vector.ciphertext()
    except (ValueError, RuntimeError) as error:
        raise DecodeError("ciphertext: truncated, or of other parameters") from error
    if vector.size() != SLOTS or len(parts) != 1 or parts[0].size() != 2:
        raise DecodeError("ciphertext: not one ciphertext of 8,192 values")
    if parts[0].is_ntt_form() or parts[0].is_transparent():
        raise DecodeError("ciphertext: not in the form of a fresh encryption")
    return vector


class CiphertextAdder:
    """What the coordinator can do: add, knowing the parameters and no key."""

    def __init__(self) -> None:
        self._context = _parameters()
        self._sums: dict[int, ts.BFVVector] = {}

    def add(self, index: int, content: bytes) -> None:
        """Add a ciphertext to the sum at `index`; raises `DecodeError`."""
        vector = _load(self._context, content)
        known = self._sums.get(index)
        if known is None:
            self._sums[index] = vector
        else:
            try:
                known.add_(vector)
            except (ValueError, RuntimeError) as error:
                raise DecodeError("ciphertext: cannot be added") from error

    def total(self, index: int) -> bytes:
        """The sum at `index`."""
        return bytes(self._sums[index].serialize())


class PlainAdder:
    """The same for jobs without BFV: little-endian residues."""

    def __init__(self) -> None:
        self._sums: dict[int, Vector] = {}

    def add(self, index: int, content: bytes) -> None:
        """Add residues; raises `DecodeError`."""
        values = unpack(content)
        known = self._sums.get(index)
        if known is not None and known.size != values.size:
            raise DecodeError(f"chunk {index}: {values.size} values, not {known.size}")
        self._sums[index] = values if known is None else residues(known + values)

    def total(self, index: int) -> bytes:
        """The sum at `index`."""
        return pack(self._sums[index])


def pack(values: Vector) -> bytes:
    """Residues as 8 little-endian bytes each."""
    return values.astype("<i8").tobytes()


def unpack(content: bytes) -> Vector:
    """Raise `DecodeError` unless it is 1 to 8,192 residues."""
    if len(content) % 8 or not 0 < len(content) <= 8 * SLOTS:
        raise DecodeError(f"chunk: {len(content)} bytes are not 1 to {SLOTS} values")
    values = np.frombuffer(content, dtype="<i8").astype(np.int64)
    if values.min() < 0 or values.max() >= MODULUS:
        raise DecodeError("chunk: a value is not a residue")
    return values
