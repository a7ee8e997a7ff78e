"""Arithmetic modulo the plaintext modulus of BFV, on whole vectors.

Vectors are one-dimensional NumPy arrays of int64: residues in [0, MODULUS), or centred in (-MODULUS/2, MODULUS/2).
"""

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ..errors import MisuseError

Vector = npt.NDArray[np.int64]

MODULUS = 576460752303210497  # 59-bit prime, 1 modulo 16384, so that BFV packs 8,192 values a ciphertext
HALF = MODULUS // 2
_BITS = 59
_LIMB = 20  # bits; three limbs hold a residue
_RUN = 1 << 22  # products of two limbs that a 63-bit sum holds


def check_range(values: Vector, parties: int) -> None:
    """Raise `MisuseError` where the sum of `parties` such vectors could leave the range of a residue."""
    if values.ndim != 1 or values.dtype != np.int64:
        raise MisuseError(f"a vector of int64 is needed, not {values.dtype} of shape {values.shape}")
    if not values.size:
        raise MisuseError("an empty vector has no sum")
    largest = max(int(values.max()), -int(values.min()))
    if parties * largest >= HALF:
        raise MisuseError(
            f"values of up to {largest} from {parties} parties could exceed half the modulus, {HALF}"
        )


def residues(values: Vector) -> Vector:
    """Centred or raw values as residues."""
    return np.asarray(values % MODULUS, dtype=np.int64)


def from_centred(values: Vector) -> Vector:
    """Values in (-MODULUS, MODULUS) as residues."""
    return np.where(values < 0, values + MODULUS, values)


def centred(values: Vector) -> Vector:
    """Residues as values in (-MODULUS/2, MODULUS/2)."""
    return np.where(values > HALF, values - MODULUS, values)


def add(left: Vector, right: Vector) -> Vector:
    """Residues in, residues out."""
    total = left + right  # below 2^60
    return np.where(total >= MODULUS, total - MODULUS, total)


def subtract(left: Vector, right: Vector) -> Vector:
    """Residues in, residues out."""
    total = left - right
    return np.where(total < 0, total + MODULUS, total)


def expand(key: bytes, length: int) -> Vector:
    """`length` residues, uniform, from a 32-byte key that serves for this once: AES-256-CTR, rejection-sampled."""
    if len(key) != 32:
        raise MisuseError("a mask key has 32 bytes")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    out = _draw(stream, length)
    while out.max(initial=0) >= MODULUS:  # once in 10^12 draws
        kept = out[out < MODULUS]
        out = np.concatenate([kept, _draw(stream, length - kept.size)])
    return out


def _draw(stream: CipherContext, count: int) -> Vector:
    words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
    return (words & np.uint64((1 << _BITS) - 1)).astype(np.int64)


def inner(left: Vector, right: Vector) -> int:
    """⟨left, right⟩ modulo MODULUS, of residues. Exact: limbs of 20 bits, sums of at most 2^22 products."""
    total = 0
    for start in range(0, left.size, _RUN):
        lows = [(left[start : start + _RUN] >> (_LIMB * k)) & ((1 << _LIMB) - 1) for k in range(3)]
        highs = [(right[start : start + _RUN] >> (_LIMB * k)) & ((1 << _LIMB) - 1) for k in range(3)]
        for i, low in enumerate(lows):
            for j, high in enumerate(highs):
                total += int(np.dot(low, high)) << (_LIMB * (i + j))
    return total % MODULUS
