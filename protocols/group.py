"""ristretto255 in batches: one interface, whichever backend computes (`backends`).

Points are canonical 32-byte encodings (RFC 9496), scalars 32 bytes little-endian below the group
order. A batch of n points is one `bytes` of 32·n; every function takes and returns such batches.
Constant time in scalars and in what is hashed; large calls release the interpreter lock.

Every function that reads points from outside refuses what is not canonical, not in the group or the
identity, with `DecodeError` naming the position.
"""

import functools
import os
import secrets
import struct

from . import backends, sodium
from .errors import DecodeError, MisuseError
from .sodium import IDENTITY, POINT, SCALAR, UNIFORM, scalar_add, scalar_multiply, scalar_subtract

__all__ = [
    "BASE",
    "IDENTITY",
    "ORDER",
    "POINT",
    "SCALAR",
    "UNIFORM",
    "scalar_add",
    "scalar_multiply",
    "scalar_subtract",
]

ORDER = 2**252 + 27742317777372353535851937790883648493

backend, REASON = backends.choose(os.environ.get(backends.VARIABLE))
BACKEND = backend.name
CHUNK = backend.chunk  # elements in a piece of work of about 5 ms
AT_ONCE = backend.at_once  # elements that are answered within about a millisecond
BASE = sodium.multiply_base((1).to_bytes(SCALAR, "little")) or IDENTITY  # the generator


def _count(data: bytes, unit: int, what: str) -> int:
    if len(data) % unit:
        raise DecodeError(f"{what}: {len(data)} bytes is not a multiple of {unit}")
    return len(data) // unit


def split(batch: bytes, unit: int = POINT, width: int | None = None) -> list[bytes]:
    """The batch's elements, each `unit` bytes; of each only the first `width`, if that is given."""
    _count(batch, unit, "batch")
    return [element for (element,) in _elements(unit, unit if width is None else width).iter_unpack(batch)]


@functools.cache
def _elements(unit: int, width: int) -> struct.Struct:
    return struct.Struct(f"{width}s{unit - width}x")


def _reject(points: bytes, index: int, what: str) -> DecodeError:
    if points[index * POINT : index * POINT + POINT] == IDENTITY:
        return DecodeError(f"{what} {index}: the identity")
    return DecodeError(f"{what} {index}: not a canonical ristretto255 encoding")


def check_points(points: bytes, what: str = "element") -> None:
    """Raise `DecodeError` unless every element is canonical, in the group and not the identity."""
    count = _count(points, POINT, what)
    good = backend.valid_points(points)
    if good < count:
        raise _reject(points, good, what)


def check_scalar(scalar: bytes, what: str = "scalar", allow_zero: bool = False) -> None:
    """Raise `DecodeError` unless `scalar` is 32 bytes, reduced and (by default) not zero."""
    if len(scalar) != SCALAR:
        raise DecodeError(f"{what}: {len(scalar)} bytes instead of {SCALAR}")
    value = int.from_bytes(scalar, "little")
    if value >= ORDER:
        raise DecodeError(f"{what}: not below the group order")
    if value == 0 and not allow_zero:
        raise DecodeError(f"{what}: zero")


def _no_identity(points: bytes, what: str) -> bytes:
    at = backend.first_identity(points)
    if at >= 0:
        raise DecodeError(f"{what} {at}: multiplies to the identity")
    return points


def _check_scalars(scalars: bytes, count: int) -> None:
    if len(scalars) != SCALAR * count:
        raise MisuseError("as many scalars as points are needed")


def hash_to_points(uniform: bytes) -> bytes:
    """Map each 64 uniform bytes to a point (RFC 9496 §4.3.4): 64·n bytes in, 32·n out."""
    _count(uniform, UNIFORM, "uniform bytes")
    return backend.hash_to_points(uniform)


def _multiply(scalars: bytes, points: bytes, what: str) -> bytes:
    outcome, good = backend.multiply(scalars, points)
    if outcome is None:
        raise _reject(points, good, what)
    return _no_identity(outcome, what)


def multiply_each(scalars: bytes, points: bytes, what: str = "element") -> bytes:
    """Element i is scalars[i]·points[i]; constant time in the scalars."""
    _check_scalars(scalars, _count(points, POINT, what))
    return _multiply(scalars, points, what)


def multiply_all(scalar: bytes, points: bytes, what: str = "element") -> bytes:
    """Element i is scalar·points[i]; constant time in the scalar."""
    _count(points, POINT, what)
    _check_scalars(scalar, 1)
    return _multiply(scalar, points, what)


def hash_and_multiply_each(scalars: bytes, uniform: bytes) -> bytes:
    """Element i is scalars[i]·(the point of uniform[i]), without encoding that point."""
    _check_scalars(scalars, _count(uniform, UNIFORM, "uniform bytes"))
    return _no_identity(backend.hash_and_multiply(scalars, uniform), "element")


def hash_and_multiply_all(scalar: bytes, uniform: bytes) -> bytes:
    """Element i is scalar·(the point of uniform[i]), without encoding that point."""
    _count(uniform, UNIFORM, "uniform bytes")
    _check_scalars(scalar, 1)
    return _no_identity(backend.hash_and_multiply(scalar, uniform), "element")


def multiply_base(scalar: bytes) -> bytes:
    """scalar·G; 32 bytes."""
    point = sodium.multiply_base(scalar)
    if point is None:
        raise MisuseError("the scalar is zero")
    return point


def weighted_sum(scalars: bytes, points: bytes, what: str = "element") -> bytes:
    """Σ scalars[i]·points[i]; 32 bytes, the identity for an empty batch. The scalars are public: a backend may use variable time."""
    _check_scalars(scalars, _count(points, POINT, what))
    outcome, good = backend.weighted_sum(scalars, points)
    if outcome is None:
        raise _reject(points, good, what)
    return outcome


def add_all(points: bytes) -> bytes:
    """Sum of all elements; 32 bytes, the identity for an empty batch."""
    _count(points, POINT, "element")
    outcome = sodium.add_all(points)
    if outcome is None:
        bad = next(i for i, point in enumerate(split(points)) if not sodium.is_valid_point(point))
        raise DecodeError(f"element {bad}: not a canonical ristretto255 encoding")
    return outcome


def random_scalar() -> bytes:
    """A uniform scalar, never zero, from the operating system's randomness."""
    while True:
        scalar = reduce_scalars(secrets.token_bytes(UNIFORM))
        if scalar != bytes(SCALAR):
            return scalar


def reduce_scalars(uniform: bytes) -> bytes:
    """Each 64 bytes little-endian modulo the group order: 64·n bytes in, 32·n out."""
    _count(uniform, UNIFORM, "uniform bytes")
    return sodium.reduce_scalars(uniform)


def invert_scalars(scalars: bytes) -> bytes:
    """Inverse of each scalar by Montgomery's trick: one inversion and 4·n multiplications.

    Raises `DecodeError` for one that is zero or not below the order.
    """
    count = _count(scalars, SCALAR, "scalars")
    if not count:
        return b""
    products = sodium.running_products(scalars)
    inverse = sodium.scalar_invert(products[-SCALAR:])
    one = (1).to_bytes(SCALAR, "little")
    if inverse is None or sodium.multiply_scalars(scalars, one * count) != scalars:
        for i, item in enumerate(split(scalars, SCALAR)):
            check_scalar(item, f"scalar {i}")
        raise MisuseError("a scalar is zero")
    # 1 / (the product of the first i + 1 scalars) for each i, last one first
    suffixes = sodium.running_products(inverse + b"".join(split(scalars[SCALAR:], SCALAR)[::-1]))
    inverses = b"".join(split(suffixes, SCALAR)[::-1])
    return inverses[:SCALAR] + sodium.multiply_scalars(inverses[SCALAR:], products[:-SCALAR])
