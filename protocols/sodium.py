"""libsodium by way of rbcl, called over addresses inside whole batches: scalars for everybody, points where no kernel serves.

Nothing here checks its callers: lengths, and what an outcome means, are `group`'s.
"""

import contextlib
import ctypes
import hashlib
import hmac
import itertools
import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

try:  # the extension's loops, where it was built
    from . import _ristretto as _loops
except ImportError:
    _loops = None  # type: ignore[assignment]

POINT = 32
SCALAR = 32
UNIFORM = 64
IDENTITY = bytes(POINT)

# Of a batch of messages: the same bytes for all; a column (bytes, width), or (bytes, width, a byte to combine each of its bytes with by
# exclusive or); or a list of bytes.
Part = bytes | tuple[bytes, int] | tuple[bytes, int, int] | list[bytes]

_MFD_EXEC = 0x0010  # Linux 6.3 on: the file may be mapped executable


def _memory_file() -> int:
    """A file that has no name and lies in memory alone; raises `OSError`."""
    try:
        return os.memfd_create("libsodium", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # an older kernel, to which the flag is unknown
        return os.memfd_create("libsodium", os.MFD_CLOEXEC)


@contextlib.contextmanager
def _unpacked_in_memory() -> Iterator[None]:
    """Give rbcl a file in memory for the library that it carries.

    It would write it to the temporary folder, where a hardened machine runs no code, and leave it there.
    """
    descriptor = _memory_file()
    name, instead = "NamedTemporaryFile", SimpleNamespace(name=f"/proc/self/fd/{descriptor}")
    original = getattr(tempfile, name)
    setattr(tempfile, name, lambda *_args, **_options: instead)
    try:
        yield
    finally:
        setattr(tempfile, name, original)
        os.close(descriptor)  # what is mapped stays


def _load() -> ctypes.CDLL:
    """The libsodium that rbcl carries, loaded and initialised."""
    with _unpacked_in_memory() if hasattr(os, "memfd_create") else contextlib.nullcontext():
        import rbcl  # noqa: F401  # initialises it
        from rbcl._sodium import _sodium
    return _sodium


_lib = _load()

# The same library, called without giving the interpreter's lock away: what takes a few microseconds would wait longer to have it again.
_at_once = ctypes.PyDLL(_lib._name, handle=_lib._handle)


def _function(
    name: str, arguments: int, *, library: ctypes.CDLL = _at_once, whole: bool = False
) -> "ctypes._NamedFuncPointer":
    """`whole`: inputs are bytes objects as they are; otherwise addresses, for use inside batches."""
    function = getattr(library, name)
    inputs = ctypes.c_char_p if whole else ctypes.c_void_p
    function.argtypes = [inputs] * arguments
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_multiply = _function("crypto_scalarmult_ristretto255", 3, library=_lib)
_multiply_base = _function("crypto_scalarmult_ristretto255_base", 2, library=_lib)
_from_hash = _function("crypto_core_ristretto255_from_hash", 2, library=_lib)
_is_valid = _function("crypto_core_ristretto255_is_valid_point", 1)
_add = _function("crypto_core_ristretto255_add", 3)
_scalar_reduce = _function("crypto_core_ristretto255_scalar_reduce", 2)
_scalar_multiply = _function("crypto_core_ristretto255_scalar_mul", 3, whole=True)
_scalar_add = _function("crypto_core_ristretto255_scalar_add", 3, whole=True)
_scalar_subtract = _function("crypto_core_ristretto255_scalar_sub", 3, whole=True)
_scalar_invert = _function("crypto_core_ristretto255_scalar_invert", 2)
_verify = _at_once.crypto_sign_verify_detached
_verify.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p]
_verify.restype = ctypes.c_int


def _address(data: bytes) -> int:
    # The caller keeps `data` alive for as long as the address is used.
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _buffer(size: int) -> tuple["ctypes.Array[ctypes.c_char]", int]:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return buffer, ctypes.addressof(buffer)


class Sodium:
    """Points by libsodium, hashes by hashlib: the backend that every machine has. See `backends.Backend`."""

    name = "libsodium"
    chunk = 32
    at_once = 4
    threads = 1

    def valid_points(self, points: bytes) -> int:
        base = _address(points)
        for offset in range(0, len(points), POINT):
            if not _is_valid(base + offset) or points[offset : offset + POINT] == IDENTITY:
                return offset // POINT
        return len(points) // POINT

    def hash_to_points(self, uniform: bytes) -> bytes:
        count = len(uniform) // UNIFORM
        source = _address(uniform)
        out, target = _buffer(POINT * count)
        for i in range(count):
            _from_hash(target + POINT * i, source + UNIFORM * i)
        return out.raw[: POINT * count]

    def multiply(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]:
        products, identities = self._products(scalars, points)
        for i in identities:  # a bad point, or the identity as outcome; libsodium does not say which
            element = points[POINT * i : POINT * i + POINT]
            if element == IDENTITY or not is_valid_point(element):
                return None, i
        return products, len(points) // POINT

    def hash_and_multiply(self, scalars: bytes, uniform: bytes) -> bytes:
        return self._products(scalars, self.hash_to_points(uniform))[0]

    def _products(self, scalars: bytes, points: bytes) -> tuple[bytes, list[int]]:
        """The products, and where libsodium gave none: zeros, which is the identity, stand there."""
        count = len(points) // POINT
        stride = 0 if len(scalars) == SCALAR else SCALAR
        left, right = _address(scalars), _address(points)
        out, target = _buffer(POINT * count)
        without = []
        for i in range(count):
            if _multiply(target + POINT * i, left + stride * i, right + POINT * i):
                ctypes.memset(target + POINT * i, 0, POINT)
                without.append(i)
        return out.raw[: POINT * count], without

    def weighted_sum(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]:
        # Each for itself: one scalar for one point is no batch that a single scalar serves.
        parts = []
        for i in range(0, len(points), POINT):
            part, good = self.multiply(scalars[i : i + SCALAR], points[i : i + POINT])
            if part is None:
                return None, i // POINT + good
            parts.append(part)
        return add_all(b"".join(parts)), len(parts)

    def first_identity(self, points: bytes) -> int:
        if _loops is not None:
            return _loops.first_identity(points)
        starts = range(0, len(points), POINT)
        return next((i // POINT for i in starts if hmac.compare_digest(points[i : i + POINT], IDENTITY)), -1)

    def sha512(self, count: int, parts: tuple[Part, ...]) -> bytes:
        columns = [pieces(part, count) for part in parts]
        whole = map(b"".join, zip(*columns, strict=True)) if columns else [b""] * count
        return b"".join(hashlib.sha512(each).digest() for each in whole)


def pieces(part: Part, count: int) -> list[bytes]:
    """What a part gives each of `count` messages. Raises `ValueError` for another number."""
    found = [part] * count if isinstance(part, bytes) else part
    if isinstance(found, tuple):
        data, width, *pad = found
        fits = len(data) == width * count
        data = exclusive_or(data, pad[0]) if pad else data
        found = [data[i : i + width] for i in range(0, len(data), width)] if fits else []
    if len(found) != count:
        raise ValueError("a column has another length than there are messages")
    return found


def exclusive_or(data: bytes, pad: int) -> bytes:
    """Each byte combined with `pad`: as whole numbers, for `bytes.translate` would read a table at the data's bytes."""
    size = len(data)
    return (int.from_bytes(data, "little") ^ int.from_bytes(bytes([pad]) * size, "little")).to_bytes(
        size, "little"
    )


def is_valid_point(point: bytes) -> bool:
    """Whether these 32 bytes are canonical and in the group; the identity is."""
    return bool(_is_valid(_address(point)))


def multiply_base(scalar: bytes) -> bytes | None:
    """scalar·G; None for the identity."""
    out, target = _buffer(POINT)
    return None if _multiply_base(target, _address(scalar)) else out.raw[:POINT]


def add_all(points: bytes) -> bytes | None:
    """Sum of all elements, the identity for an empty batch; None where one is no point."""
    out, target = _buffer(POINT)
    source = _address(points)
    if points:
        out.raw = points[:POINT]
    for offset in range(POINT, len(points), POINT):
        if _add(target, target, source + offset):
            return None
    return out.raw[:POINT]


def _entry(name: str) -> int:
    return ctypes.cast(getattr(_lib, name), ctypes.c_void_p).value or 0


_REDUCE, _MULTIPLY = (_entry(f"crypto_core_ristretto255_scalar_{name}") for name in ("reduce", "mul"))
_SEAL, _OPEN = (_entry(f"crypto_aead_aes256gcm_{name}crypt") for name in ("en", "de"))


def reduce_scalars(uniform: bytes) -> bytes:
    """Each 64 bytes little-endian modulo the group order."""
    if _loops is not None:
        return _loops.each(_REDUCE, UNIFORM, uniform)
    count = len(uniform) // UNIFORM
    out, target = _buffer(SCALAR * count)
    source = _address(uniform)
    for i in range(count):
        _scalar_reduce(target + SCALAR * i, source + UNIFORM * i)
    return out.raw[: SCALAR * count]


def multiply_scalars(left: bytes, right: bytes) -> bytes:
    """left[i]·right[i] modulo the order for each, constant time."""
    if _loops is not None:
        return _loops.each(_MULTIPLY, SCALAR, left, right)
    starts = range(0, len(left), SCALAR)
    return b"".join(scalar_multiply(left[i : i + SCALAR], right[i : i + SCALAR]) for i in starts)


def running_products(scalars: bytes) -> bytes:
    """The product of the first i + 1 scalars for each i, constant time."""
    if _loops is not None:
        return _loops.running(_MULTIPLY, SCALAR, scalars)
    items = [scalars[i : i + SCALAR] for i in range(0, len(scalars), SCALAR)]
    return b"".join(itertools.accumulate(items, scalar_multiply))


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


def scalar_invert(scalar: bytes) -> bytes | None:
    """1/scalar modulo the order, constant time; None for zero."""
    out, target = _buffer(SCALAR)
    return None if _scalar_invert(target, _address(scalar)) else out.raw[:SCALAR]


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is an Ed25519 signature under the key; see `signatures`."""
    if len(public) != 32 or len(signature) != 64:
        return False
    return bool(_verify(signature, message, len(message), public) == 0)


def has_aes() -> bool:
    """Whether AES-256-GCM serves in batches: the processor has instructions for it, and the extension is there to call it."""
    return _loops is not None and bool(_lib.crypto_aead_aes256gcm_is_available())


def seal_texts(count: int, keys: Part, nonces: Part, texts: Part, data: Part) -> list[bytes]:
    """See `aead.seal_each`; only where `has_aes`."""
    return _loops.seal(_SEAL, count, keys, nonces, texts, data)


def open_texts(count: int, keys: Part, nonces: Part, texts: Part, data: Part) -> list[bytes | None]:
    """See `aead.open_each`; only where `has_aes`."""
    return _loops.open(_OPEN, count, keys, nonces, texts, data)
