"""ristretto255 in batches: the one interface that a faster kernel will also offer.

Points are canonical 32-byte encodings (RFC 9496), scalars 32 bytes little-endian below the group
order. A batch of n points is one `bytes` of 32·n; every function takes and returns such batches.
libsodium does the arithmetic in constant time; calls release the interpreter lock.

Every function that reads points from outside refuses what is not canonical, not in the group or the
identity, with `DecodeError` naming the position.
"""

import contextlib
import ctypes
import os
import secrets
from collections.abc import Sequence

import rbcl  # noqa: F401  (its import loads and initialises the bundled libsodium)
from rbcl._sodium import _sodium as _lib

from .errors import DecodeError, MisuseError

POINT = 32
SCALAR = 32
UNIFORM = 64
ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = bytes(POINT)
BACKEND = "libsodium"

# rbcl unpacks libsodium into a temporary file and leaves it behind; once mapped, it is not needed.
with contextlib.suppress(OSError):
    os.unlink(_lib._name)


def _function(name: str, arguments: int, *, whole: bool = False) -> "ctypes._NamedFuncPointer":
    """`whole`: inputs are bytes objects as they are; otherwise addresses, for use inside batches."""
    function = getattr(_lib, name)
    inputs = ctypes.c_char_p if whole else ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p if not whole else ctypes.c_char_p, *[inputs] * (arguments - 1)]
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_multiply = _function("crypto_scalarmult_ristretto255", 3)
_multiply_base = _function("crypto_scalarmult_ristretto255_base", 2)
_from_hash = _function("crypto_core_ristretto255_from_hash", 2)
_is_valid = _function("crypto_core_ristretto255_is_valid_point", 1)
_add = _function("crypto_core_ristretto255_add", 3)
_scalar_reduce = _function("crypto_core_ristretto255_scalar_reduce", 2)
_scalar_multiply = _function("crypto_core_ristretto255_scalar_mul", 3, whole=True)
_scalar_add = _function("crypto_core_ristretto255_scalar_add", 3, whole=True)
_scalar_subtract = _function("crypto_core_ristretto255_scalar_sub", 3, whole=True)
_scalar_invert = _function("crypto_core_ristretto255_scalar_invert", 2)


def _address(data: bytes) -> int:
    # The caller keeps `data` alive for as long as the address is used.
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _buffer(size: int) -> tuple["ctypes.Array[ctypes.c_char]", int]:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return buffer, ctypes.addressof(buffer)


def _count(data: bytes, unit: int, what: str) -> int:
    if len(data) % unit:
        raise DecodeError(f"{what}: {len(data)} bytes is not a multiple of {unit}")
    return len(data) // unit


def split(batch: bytes, unit: int = POINT) -> list[bytes]:
    """The batch's elements, each `unit` bytes."""
    _count(batch, unit, "batch")
    return [batch[i : i + unit] for i in range(0, len(batch), unit)]


def _reject(points: bytes, offset: int, what: str) -> DecodeError:
    element = points[offset : offset + POINT]
    where = f"{what} {offset // POINT}"
    if element == IDENTITY:
        return DecodeError(f"{where}: the identity")
    if not _is_valid(_address(element)):
        return DecodeError(f"{where}: not a canonical ristretto255 encoding")
    return DecodeError(f"{where}: multiplies to the identity")


def check_points(points: bytes, what: str = "element") -> None:
    """Raise `DecodeError` unless every element is canonical, in the group and not the identity."""
    _count(points, POINT, what)
    base = _address(points)
    for offset in range(0, len(points), POINT):
        if not _is_valid(base + offset) or points[offset : offset + POINT] == IDENTITY:
            raise _reject(points, offset, what)


def check_scalar(scalar: bytes, what: str = "scalar", allow_zero: bool = False) -> None:
    """Raise `DecodeError` unless `scalar` is 32 bytes, reduced and (by default) not zero."""
    if len(scalar) != SCALAR:
        raise DecodeError(f"{what}: {len(scalar)} bytes instead of {SCALAR}")
    value = int.from_bytes(scalar, "little")
    if value >= ORDER:
        raise DecodeError(f"{what}: not below the group order")
    if value == 0 and not allow_zero:
        raise DecodeError(f"{what}: zero")


def hash_to_points(uniform: bytes) -> bytes:
    """Map each 64 uniform bytes to a point (RFC 9496 §4.3.4): 64·n bytes in, 32·n out."""
    count = _count(uniform, UNIFORM, "uniform bytes")
    source = _address(uniform)
    out, target = _buffer(POINT * count)
    for i in range(count):
        _from_hash(target + POINT * i, source + UNIFORM * i)
    return out.raw[: POINT * count]


def multiply_each(scalars: bytes, points: bytes, what: str = "element") -> bytes:
    """Element i is scalars[i]·points[i]; constant time in the scalars."""
    count = _count(points, POINT, what)
    if len(scalars) != SCALAR * count:
        raise MisuseError("as many scalars as points are needed")
    left, right = _address(scalars), _address(points)
    out, target = _buffer(POINT * count)
    for offset in range(0, POINT * count, POINT):
        if _multiply(target + offset, left + offset, right + offset):
            raise _reject(points, offset, what)
    return out.raw[: POINT * count]


def multiply_all(scalar: bytes, points: bytes, what: str = "element") -> bytes:
    """Element i is scalar·points[i]; constant time in the scalar."""
    count = _count(points, POINT, what)
    left, right = _address(scalar), _address(points)
    out, target = _buffer(POINT * count)
    for offset in range(0, POINT * count, POINT):
        if _multiply(target + offset, left, right + offset):
            raise _reject(points, offset, what)
    return out.raw[: POINT * count]


def multiply_base(scalar: bytes) -> bytes:
    """scalar·G; 32 bytes."""
    out, target = _buffer(POINT)
    if _multiply_base(target, _address(scalar)):
        raise MisuseError("the scalar is zero")
    return out.raw[:POINT]


def weighted_sum(scalars: bytes, points: bytes, what: str = "element") -> bytes:
    """Σ scalars[i]·points[i]; 32 bytes. The scalars are public: a kernel may use variable time."""
    return add_all(multiply_each(scalars, points, what))


def add_all(points: bytes) -> bytes:
    """Sum of all elements; 32 bytes, the identity for an empty batch."""
    count = _count(points, POINT, "element")
    out, target = _buffer(POINT)
    source = _address(points)
    if count:
        out.raw = points[:POINT]
    for i in range(1, count):
        if _add(target, target, source + POINT * i):
            raise DecodeError(f"element {i}: not a canonical ristretto255 encoding")
    return out.raw[:POINT]


def random_scalar() -> bytes:
    """A uniform scalar, never zero, from the operating system's randomness."""
    while True:
        scalar = reduce_scalars(secrets.token_bytes(UNIFORM))
        if scalar != bytes(SCALAR):
            return scalar


def reduce_scalars(uniform: bytes) -> bytes:
    """Each 64 bytes little-endian modulo the group order: 64·n bytes in, 32·n out."""
    count = _count(uniform, UNIFORM, "uniform bytes")
    out, target = _buffer(SCALAR * count)
    source = _address(uniform)
    for i in range(count):
        _scalar_reduce(target + SCALAR * i, source + UNIFORM * i)
    return out.raw[: SCALAR * count]


def scalar_multiply(left: bytes, right: bytes) -> bytes:
    """left·right modulo the order, constant time."""
    out = ctypes.create_string_buffer(SCALAR)
    _scalar_multiply(out, left, right)
    return out.raw


def scalar_add(left: bytes, right: bytes) -> bytes:
    """left + right modulo the order, constant time."""
    out = ctypes.create_string_buffer(SCALAR)
    _scalar_add(out, left, right)
    return out.raw


def scalar_subtract(left: bytes, right: bytes) -> bytes:
    """left − right modulo the order, constant time."""
    out = ctypes.create_string_buffer(SCALAR)
    _scalar_subtract(out, left, right)
    return out.raw


def invert_scalars(scalars: bytes) -> bytes:
    """Inverse of each scalar by Montgomery's trick: one inversion and 3·(n−1) multiplications."""
    items: Sequence[bytes] = split(scalars, SCALAR)
    if not items:
        return b""
    for i, item in enumerate(items):
        check_scalar(item, f"scalar {i}")
    running = [items[0]]
    for item in items[1:]:
        running.append(scalar_multiply(running[-1], item))
    out, target = _buffer(SCALAR)
    if _scalar_invert(target, _address(running[-1])):
        raise MisuseError("a scalar is zero")
    inverse = out.raw[:SCALAR]
    result = [b""] * len(items)
    for i in range(len(items) - 1, 0, -1):
        result[i] = scalar_multiply(inverse, running[i - 1])
        inverse = scalar_multiply(inverse, items[i])
    result[0] = inverse
    return b"".join(result)
