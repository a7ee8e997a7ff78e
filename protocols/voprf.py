"""RFC 9497 with ristretto255-SHA512, modes OPRF (0) and VOPRF (1), in batches.

Inputs are lists of `bytes`; points and scalars travel as concatenated 32-byte encodings (see `group`).
Functions named `…_chunk` do a slice of a batch, so that a caller may spread it over cores; the whole-batch
functions are built from them and give the same bytes as the RFC.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import group
from .errors import DecodeError, MisuseError, ProofError
from .hashing import expand_message_each, lengths, numbers, sha512_each

MODE_OPRF = 0
MODE_VOPRF = 1
OUTPUT = 64
PROOF = 64
MAX_BATCH = 65_535
MAX_INPUT = 65_535
CHUNK = group.CHUNK

_POINT_LENGTH = b"\x00\x20"
_REFUTED = "the proof does not hold for the announced key"

# Applies a picklable function to argument tuples, in order; lets a caller use processes.
Runner = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


def inline(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The runner that does the work at once, in this thread."""
    return [function(*each) for each in arguments]


def context_string(mode: int) -> bytes:
    """RFC 9497 §3.1, CreateContextString."""
    return b"OPRFV1-" + bytes([mode]) + b"-ristretto255-SHA512"


_TO_GROUP = [b"HashToGroup-" + context_string(mode) for mode in (0, 1)]
_TO_SCALAR = b"HashToScalar-" + context_string(MODE_VOPRF)
_DERIVE = [b"DeriveKeyPair" + context_string(mode) for mode in (0, 1)]


@dataclass(frozen=True)
class KeyPair:
    """An OPRF key: `secret` (scalar) and `public` (point), 32 bytes each."""

    secret: bytes
    public: bytes

    def __repr__(self) -> str:  # a key never reaches a log by accident
        return f"KeyPair(public={self.public.hex()})"


def generate_key_pair() -> KeyPair:
    """A fresh key (RFC 9497 §3.2, GenerateKeyPair)."""
    secret = group.random_scalar()
    return KeyPair(secret, group.multiply_base(secret))


def derive_key_pair(seed: bytes, info: bytes, mode: int = MODE_VOPRF) -> KeyPair:
    """DeriveKeyPair (RFC 9497 §3.2.1) from a 32-byte seed."""
    if len(seed) != 32:
        raise MisuseError("the seed has 32 bytes")
    message = seed + len(info).to_bytes(2, "big") + info
    for counter in range(256):
        secret = group.reduce_scalars(expand_message_each(_DERIVE[mode], 1, message + bytes([counter])))
        if secret != bytes(32):
            return KeyPair(secret, group.multiply_base(secret))
    raise MisuseError("no key can be derived from this seed")


@functools.lru_cache(maxsize=256)
def check_public_key(public: bytes) -> None:
    """Raise `DecodeError` unless `public` is one valid point and not the identity."""
    if len(public) != group.POINT:
        raise DecodeError(f"public key: {len(public)} bytes instead of {group.POINT}")
    group.check_points(public, "public key")


def _uniform(inputs: Sequence[bytes], mode: int) -> bytes:
    if any(len(each) > MAX_INPUT for each in inputs):
        raise MisuseError(f"an input has more than {MAX_INPUT} bytes")
    return expand_message_each(_TO_GROUP[mode], len(inputs), list(inputs))


def hash_to_group(inputs: Sequence[bytes], mode: int = MODE_VOPRF) -> bytes:
    """Map inputs to points; 32·n bytes. Raises `MisuseError` for an input over 65,535 bytes."""
    return group.hash_to_points(_uniform(inputs, mode))


def blind(inputs: Sequence[bytes], blinds: bytes, mode: int = MODE_VOPRF) -> bytes:
    """Blind (RFC 9497 §3.3.1): blinds[i]·H(inputs[i])."""
    return group.hash_and_multiply_each(blinds, _uniform(inputs, mode))


def _check_batch(*batches: bytes) -> int:
    sizes = {len(batch) for batch in batches}
    if len(sizes) != 1:
        raise DecodeError("the batches differ in length")
    size = sizes.pop()
    if size % group.POINT:
        raise DecodeError(f"batch: {size} bytes is not a multiple of {group.POINT}")
    count = size // group.POINT
    if not 1 <= count <= MAX_BATCH:
        raise DecodeError(f"a batch has 1 to {MAX_BATCH} elements, not {count}")
    return count


def evaluate(secret: bytes, blinded: bytes) -> bytes:
    """BlindEvaluate without proof: secret·blinded[i]. Raises `DecodeError` for an element that is not valid."""
    _check_batch(blinded)
    return group.multiply_all(secret, blinded)


def finalize(
    inputs: Sequence[bytes], blinds: bytes, evaluated: bytes, inverses: bytes | None = None
) -> list[bytes]:
    """Finalize (RFC 9497 §3.3.1): unblind and hash; one 64-byte output an input."""
    inverses = group.invert_scalars(blinds) if inverses is None else inverses
    unblinded = group.multiply_each(inverses, evaluated)
    return finalize_unblinded(inputs, unblinded)


def finalize_unblinded(inputs: Sequence[bytes], unblinded: bytes) -> list[bytes]:
    """Outputs from points that carry no blind: also what a holder computes for its own entries."""
    parts = (lengths(inputs), list(inputs), _POINT_LENGTH, (unblinded, group.POINT), b"Finalize")
    return group.split(sha512_each(len(inputs), *parts), OUTPUT)


def evaluate_inputs(secret: bytes, inputs: Sequence[bytes], mode: int = MODE_VOPRF) -> list[bytes]:
    """Evaluate (RFC 9497 §3.3.1, the server's own): F_k of each input, 64 bytes."""
    return finalize_unblinded(inputs, group.hash_and_multiply_all(secret, _uniform(inputs, mode)))


# -- proof -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def composite_seed(public: bytes) -> bytes:
    """First step of ComputeComposites (RFC 9497 §2.2.1): the seed depends on the key alone."""
    dst = b"Seed-" + context_string(MODE_VOPRF)
    message = len(public).to_bytes(2, "big") + public + len(dst).to_bytes(2, "big") + dst
    return hashlib.sha512(message).digest()


def composite_weights(seed: bytes, start: int, blinded: bytes, evaluated: bytes) -> bytes:
    """The scalars d_i of ComputeComposites for elements `start`…; 32·n bytes."""
    count = len(blinded) // group.POINT
    uniform = expand_message_each(
        _TO_SCALAR,
        count,
        len(seed).to_bytes(2, "big") + seed,
        numbers(start, start + count, 2),
        _POINT_LENGTH,
        (blinded, group.POINT),
        _POINT_LENGTH,
        (evaluated, group.POINT),
        b"Composite",
    )
    return group.reduce_scalars(uniform)


def evaluate_chunk(secret: bytes, seed: bytes, start: int, blinded: bytes) -> tuple[bytes, bytes]:
    """Evaluate a slice and sum its weighted points: (evaluated, part of the composite M)."""
    evaluated = group.multiply_all(secret, blinded)
    weights = composite_weights(seed, start, blinded, evaluated)
    return evaluated, group.weighted_sum(weights, blinded)


def composite_chunk(seed: bytes, start: int, blinded: bytes, evaluated: bytes) -> tuple[bytes, bytes]:
    """A slice's parts of the composites M and Z, from public values."""
    weights = composite_weights(seed, start, blinded, evaluated)
    return (
        group.weighted_sum(weights, blinded, "blinded element"),
        group.weighted_sum(weights, evaluated, "evaluated element"),
    )


def _challenge(public: bytes, *points: bytes) -> bytes:
    transcript = b"".join(len(p).to_bytes(2, "big") + p for p in (public, *points)) + b"Challenge"
    return group.reduce_scalars(expand_message_each(_TO_SCALAR, 1, transcript))


def _prove(key: KeyPair, m: bytes, random: bytes | None = None) -> bytes:
    """GenerateProof (RFC 9497 §2.2.1) once M is known; Z = k·M."""
    r = random if random is not None else group.random_scalar()
    z, t3 = group.split(group.multiply_each(key.secret + r, m + m))
    return _response(key, r, m, z, group.multiply_base(r), t3)


def _response(key: KeyPair, r: bytes, m: bytes, z: bytes, t2: bytes, t3: bytes) -> bytes:
    c = _challenge(key.public, m, z, t2, t3)
    return c + group.scalar_subtract(r, group.scalar_multiply(c, key.secret))


def _evaluate_one(key: KeyPair, blinded: bytes, random: bytes | None) -> tuple[bytes, bytes]:
    """`evaluate_with_proof` of one element: with d its weight, M = d·B, Z = kd·B and t3 = rd·B in one call."""
    evaluated = group.multiply_all(key.secret, blinded)
    d = composite_weights(composite_seed(key.public), 0, blinded, evaluated)
    r = random if random is not None else group.random_scalar()
    scalars = d + group.scalar_multiply(key.secret, d) + group.scalar_multiply(r, d)
    m, z, t3 = group.split(group.multiply_each(scalars, blinded * 3))
    return evaluated, _response(key, r, m, z, group.multiply_base(r), t3)


def evaluate_with_proof(
    key: KeyPair, blinded: bytes, run: Runner = inline, random: bytes | None = None
) -> tuple[bytes, bytes]:
    """BlindEvaluate in mode VOPRF (RFC 9497 §3.3.2): (evaluated, 64-byte proof).

    `random` is the proof's nonce and is given only by tests. Raises `DecodeError` for a batch or an
    element that is not acceptable, before any of the result is known.
    """
    if _check_batch(blinded) == 1:
        return _evaluate_one(key, blinded, random)
    seed = composite_seed(key.public)
    step = CHUNK * group.POINT
    parts = run(
        evaluate_chunk,
        [
            (key.secret, seed, offset // group.POINT, blinded[offset : offset + step])
            for offset in range(0, len(blinded), step)
        ],
    )
    evaluated = b"".join(part[0] for part in parts)
    return evaluated, _prove(key, group.add_all(b"".join(part[1] for part in parts)), random)


def verify_proof(public: bytes, blinded: bytes, evaluated: bytes, proof: bytes, run: Runner = inline) -> None:
    """VerifyProof (RFC 9497 §2.2.2). Raises `DecodeError` or `ProofError`; returns nothing."""
    c, s = _opened(public, blinded, evaluated, proof)
    if len(blinded) == group.POINT:
        _verify_one(public, blinded, evaluated, c, s)
        return
    seed = composite_seed(public)
    step = CHUNK * group.POINT
    parts = run(
        composite_chunk,
        [
            (seed, offset // group.POINT, blinded[offset : offset + step], evaluated[offset : offset + step])
            for offset in range(0, len(blinded), step)
        ],
    )
    m = group.add_all(b"".join(part[0] for part in parts))
    z = group.add_all(b"".join(part[1] for part in parts))
    try:
        c_public, s_m, c_z = group.split(group.multiply_each(c + s + c, public + m + z))
        t2 = group.add_all(group.multiply_base(s) + c_public)
        t3 = group.add_all(s_m + c_z)
    except DecodeError as error:  # a composite is the identity: no honest batch gets there
        raise ProofError(_REFUTED) from error
    _check_challenge(public, m, z, t2, t3, c)


def verify_and_finalize_one(
    public: bytes, input_: bytes, inverse: bytes, blinded: bytes, evaluated: bytes, proof: bytes
) -> bytes:
    """Finalize of mode VOPRF (RFC 9497 §3.3.2) for a batch of one; 64 bytes. `inverse` is the blind's.

    All multiplications in one call, which a vector of lanes takes at once. Raises as `verify_proof` does.
    """
    c, s = _opened(public, blinded, evaluated, proof)
    if len(blinded) != group.POINT:
        raise MisuseError("this is for a batch of one element")
    (output,) = finalize_unblinded([input_], _verify_one(public, blinded, evaluated, c, s, inverse))
    return output


def _opened(public: bytes, blinded: bytes, evaluated: bytes, proof: bytes) -> tuple[bytes, bytes]:
    """The proof's challenge and response; raises for what has not the form of a batch and its proof."""
    check_public_key(public)
    _check_batch(blinded, evaluated)
    if len(proof) != PROOF:
        raise DecodeError(f"proof: {len(proof)} bytes instead of {PROOF}")
    c, s = proof[:32], proof[32:]
    group.check_scalar(c, "proof challenge", allow_zero=True)
    group.check_scalar(s, "proof response", allow_zero=True)
    if bytes(32) in (c, s):  # an honest proof has neither, but for odds of 2^-252
        raise ProofError("the proof is degenerate")
    return c, s


def _verify_one(
    public: bytes, blinded: bytes, evaluated: bytes, c: bytes, s: bytes, inverse: bytes = b""
) -> bytes:
    """With d the weight of the one element: M = d·B, Z = d·E, t2 = s·G + c·K, t3 = sd·B + cd·E.

    Returns `inverse`·E where an inverse is given.
    """
    d = composite_weights(composite_seed(public), 0, blinded, evaluated)
    scalars = d + d + s + c + group.scalar_multiply(s, d) + group.scalar_multiply(c, d) + inverse
    points = blinded + evaluated + group.BASE + public + blinded + evaluated
    try:
        products = group.multiply_each(scalars, points + (evaluated if inverse else b""))
    except DecodeError as error:
        group.check_points(blinded, "blinded element")
        group.check_points(evaluated, "evaluated element")
        raise ProofError(_REFUTED) from error
    m, z, s_base, c_public, sd_blinded, cd_evaluated, *unblinded = group.split(products)
    _check_challenge(
        public, m, z, group.add_all(s_base + c_public), group.add_all(sd_blinded + cd_evaluated), c
    )
    return b"".join(unblinded)


def _check_challenge(public: bytes, m: bytes, z: bytes, t2: bytes, t3: bytes, c: bytes) -> None:
    if _challenge(public, m, z, t2, t3) != c:
        raise ProofError(_REFUTED)
