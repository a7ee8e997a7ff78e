"""Which code multiplies points and hashes batches: the extension's vector kernels where the processor runs one, libsodium and hashlib elsewhere.

The extension (`_kernel`, docs/protocols/kernel.md) is optional: without a compiler at installation it is not there. `choose` says
which backend serves and why. A kernel serves only after it has agreed with libsodium on a few points in this very process.
"""

import enum
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from . import sodium
from .sodium import POINT, SCALAR, UNIFORM, Part, Sodium

try:
    from . import _ristretto
except ImportError:
    _KERNELS: list[str] = []
    # A file that is there and does not load is another fault than none.
    _BROKEN = importlib.util.find_spec("protocols._ristretto") is not None
else:
    _BROKEN = False
    _KERNELS = _ristretto.kernels()

T = TypeVar("T")
VARIABLE = "LIANFANG_GROUP"  # names a backend: what to use instead of the fastest
_PIECE = 1_024  # elements a thread takes at once; the kernel's own blocks are 256
_AT_ONCE = {"avx512ifma": 128, "avx512": 32}  # see `Backend.at_once`; of others what libsodium does


class Backend(Protocol):
    """Points in batches. Scalars are one for each point, or one for all; counts say how many elements were good.

    Less than all names the first that is no canonical encoding, not in the group or the identity; there is no outcome then.
    `first_identity` is the position of the first identity among own outcomes, or -1.
    """

    name: str
    chunk: int  # elements in a piece of work of about 5 ms
    at_once: int  # elements that are answered, proof included, within about a millisecond
    threads: int  # of a large call; 1 in a process that is one of as many as there are cores

    def valid_points(self, points: bytes) -> int: ...
    def hash_to_points(self, uniform: bytes) -> bytes: ...
    def multiply(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]: ...
    def hash_and_multiply(self, scalars: bytes, uniform: bytes) -> bytes: ...
    def weighted_sum(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]: ...
    def first_identity(self, points: bytes) -> int: ...
    def sha512(self, count: int, parts: tuple[Part, ...]) -> bytes: ...


class Reason(enum.StrEnum):
    """Why this backend serves."""

    FASTEST = "fastest"
    ASKED_FOR = "asked-for"
    NOT_BUILT = "not-built"
    NOT_LOADED = "not-loaded"
    NO_VECTORS = "no-vectors"
    DISAGREES = "disagrees"


class Kernel:
    """One of the extension's kernels, over all cores for large batches."""

    chunk = 256

    def __init__(self, name: str) -> None:
        if name not in _KERNELS:
            raise ValueError(f"this machine has no kernel {name}")
        self.name, self.threads = name, len(os.sched_getaffinity(0))
        self.at_once = _AT_ONCE.get(name, Sodium.at_once)
        # A vector costs the same however few of its lanes are wanted; this one costs two of libsodium's multiplications.
        self._alone: Backend | None = Sodium() if name == "avx512" else None

    def valid_points(self, points: bytes) -> int:
        return _ristretto.valid_points(self.name, points)

    def hash_to_points(self, uniform: bytes) -> bytes:
        return b"".join(
            _in_threads(
                self.threads,
                lambda a, b: _ristretto.hash_to_points(self.name, uniform[a * UNIFORM : b * UNIFORM]),
                len(uniform) // UNIFORM,
            )
        )

    def multiply(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]:
        if self._alone and len(points) == POINT:
            return self._alone.multiply(scalars, points)

        def part(a: int, b: int) -> tuple[bytes | None, int]:
            return _ristretto.multiply(self.name, _slice(scalars, a, b), points[a * POINT : b * POINT])

        return _joined(_in_threads(self.threads, part, len(points) // POINT), b"".join)

    def hash_and_multiply(self, scalars: bytes, uniform: bytes) -> bytes:
        if self._alone and len(uniform) == UNIFORM:
            return self._alone.hash_and_multiply(scalars, uniform)

        def part(a: int, b: int) -> bytes:
            own = uniform[a * UNIFORM : b * UNIFORM]
            return _ristretto.hash_and_multiply(self.name, _slice(scalars, a, b), own)

        return b"".join(_in_threads(self.threads, part, len(uniform) // UNIFORM))

    def weighted_sum(self, scalars: bytes, points: bytes) -> tuple[bytes | None, int]:
        if self._alone and len(points) == POINT:
            return self._alone.weighted_sum(scalars, points)

        def part(a: int, b: int) -> tuple[bytes | None, int]:
            own = scalars[a * SCALAR : b * SCALAR], points[a * POINT : b * POINT]
            return _ristretto.weighted_sum(self.name, *own)

        return _joined(
            _in_threads(self.threads, part, len(points) // POINT),
            lambda parts: sodium.add_all(b"".join(parts)),
        )

    def first_identity(self, points: bytes) -> int:
        return _ristretto.first_identity(points)

    def sha512(self, count: int, parts: tuple[Part, ...]) -> bytes:
        return _ristretto.sha512(self.name, count, parts)


def _slice(scalars: bytes, start: int, stop: int) -> bytes:
    return scalars if len(scalars) == SCALAR else scalars[start * SCALAR : stop * SCALAR]


def _in_threads(threads: int, part: Callable[[int, int], T], count: int) -> list[T]:
    """`part(start, stop)` over 0 … count, in order; threads, since the extension gives the interpreter's lock away."""
    if count < 2 * _PIECE or threads == 1:
        return [part(0, count)]
    bounds = [(start, min(start + _PIECE, count)) for start in range(0, count, _PIECE)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: part(*each), bounds))


def _joined(
    parts: list[tuple[bytes | None, int]], join: Callable[[list[bytes]], bytes | None]
) -> tuple[bytes | None, int]:
    good, outcomes = 0, []
    for outcome, count in parts:
        good += count
        if outcome is None:
            return None, good
        outcomes.append(outcome)
    return join(outcomes), good


def available() -> list[Backend]:
    """Every backend that this machine can run, those of its own choice first."""
    kernels = [Kernel(name) for name in _KERNELS]
    slower = [kernel for kernel in kernels if kernel.name == "scalar"]
    return [*(kernel for kernel in kernels if kernel not in slower), Sodium(), *slower]


def agrees(backend: Backend) -> bool:
    """Whether it computes what libsodium does, on points of two vectors that go together and of one that begins."""
    other, count = Sodium(), 19
    uniform = bytes((7 * i * i + 31 * i) % 251 for i in range(UNIFORM * count))
    scalars = sodium.reduce_scalars(uniform[::-1])
    points = other.hash_to_points(uniform)
    return (
        backend.hash_to_points(uniform) == points
        and backend.multiply(scalars, points) == other.multiply(scalars, points)
        and backend.hash_and_multiply(scalars[:SCALAR], uniform)
        == other.multiply(scalars[:SCALAR], points)[0]
        and backend.weighted_sum(scalars, points) == other.weighted_sum(scalars, points)
        and backend.valid_points(points + bytes(POINT)) == count
        and backend.sha512(count, (b"lianfang", (uniform, UNIFORM), (points, POINT)))
        == other.sha512(count, (b"lianfang", (uniform, UNIFORM), (points, POINT)))
    )


def choose(wanted: str | None = None) -> tuple[Backend, Reason]:
    """The backend that serves, and why. `wanted` names one; raises `ValueError` where this machine lacks it."""
    found = available()
    if wanted:
        for backend in found:
            if backend.name == wanted and agrees(backend):
                return backend, Reason.ASKED_FOR
        raise ValueError(f"{VARIABLE}={wanted}: this machine has {', '.join(each.name for each in found)}")
    if len(found) == 1:
        return found[0], Reason.NOT_LOADED if _BROKEN else Reason.NOT_BUILT
    if isinstance(found[0], Sodium):
        return found[0], Reason.NO_VECTORS
    if not agrees(found[0]):
        return Sodium(), Reason.DISAGREES
    return found[0], Reason.FASTEST
