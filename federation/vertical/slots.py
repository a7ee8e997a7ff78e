"""Signed sums side by side in Paillier plaintexts, and the pieces of work on them that a runner spreads over cores.

A row's plaintext is gradient·2^shift + hessian, an integer of either sign modulo n. A sum of rows is kept in a slot of `width`
bits by adding half of the slot's range; what lies above the slots in use is filled with random bits, so that a plaintext that was too
large for its slot brings nothing else back. Pieces of work are functions of bytes, which processes take.
"""

import functools
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from gmpy2 import mpz

from protocols import paillier
from protocols.errors import DecodeError
from protocols.paillier import Halves, PrivateKey, PublicKey, Randomiser

Secret = tuple[int, int]
Bins = npt.NDArray[np.uint8]
# Runs a function over arguments, in order, with some of them at once.
Stream = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]
_Product = tuple[mpz, mpz]  # see `paillier.multiply`
CHUNK = 256  # ciphertexts in one piece of work
WIDTHS = (64, 128)


def inline(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The `Stream` of one process."""
    for each in arguments:
        yield function(*each)


@functools.lru_cache(maxsize=2)
def own_key(secret: Secret, least: int) -> PrivateKey:
    """A process reads a key once."""
    return PrivateKey(*secret, least)


@functools.lru_cache(maxsize=4)
def public_key(modulus: bytes, least: int) -> tuple[PublicKey, Randomiser]:
    """Another's key, with this process's own randomiser."""
    key = PublicKey.decode(modulus, least)
    return key, Randomiser(key)


def slots(bits: int, width: int) -> int:
    """How many a plaintext holds."""
    return (bits - 1) // width


def encrypt_chunk(secret: Secret, least: int, values: Sequence[int]) -> bytes:
    """Ciphertexts of integers of either sign."""
    key = own_key(secret, least)
    n = int(key.public.n)
    return key.public.write(key.encrypt([value % n for value in values]))


def split_chunk(modulus: bytes, least: int, ciphertexts: bytes) -> bytes:
    """Ciphertexts as they are summed, see `PublicKey.split`. Raises `DecodeError` unless that is what they are."""
    return public_key(modulus, least)[0].split(ciphertexts)


def open_chunk(secret: Secret, least: int, width: int, packed: bytes, counts: Sequence[int]) -> list[int]:
    """Signed sums, so many of each ciphertext. Raises `DecodeError`, which says no more than that these are not what was asked for."""
    key = own_key(secret, least)
    try:
        ciphertexts = key.public.read(packed)
    except DecodeError as error:
        raise DecodeError("the sums are not as announced") from error
    found: list[int] = []
    for plaintext, count in zip(key.decrypt(ciphertexts), counts, strict=True):
        found += paillier.unpack(plaintext % (1 << count * width), count, width)
    half = 1 << width - 1
    return [value - half for value in found]


def pack_chunk(modulus: bytes, least: int, width: int, sums: bytes) -> bytes:
    """Ciphertexts of signed sums, packed, with what is above them random, and unlike what they came from."""
    key, randomiser = public_key(modulus, least)
    ciphertexts = key.read(sums)
    each = slots(key.bits, width)
    out = []
    for i in range(0, len(ciphertexts), each):
        part = ciphertexts[i : i + each]
        offset = sum(1 << (width * k + width - 1) for k in range(len(part)))
        used = width * len(part)
        above = secrets.randbelow(int(key.n) >> used) << used
        out.append(key.add([key.pack(part, width), randomiser.encrypt(offset + above)]))
    return key.write(out)


def hide_chunk(modulus: bytes, least: int, width: int, keep: int, sums: bytes) -> bytes:
    """Ciphertexts of the same, of whose plaintexts the lowest `keep` slots come back and the rest is random."""
    key, randomiser = public_key(modulus, least)
    used = width * keep
    out = []
    for each in key.read(sums):
        above = secrets.randbelow(int(key.n) >> used) << used
        offset = sum(1 << (width * k + width - 1) for k in range(keep))
        out.append(key.add([each, randomiser.encrypt(offset + above)]))
    return key.write(out)


def bucket_chunk(
    modulus: bytes,
    least: int,
    ciphertexts: bytes,
    groups: Sequence[int],
    bins: Bins,
    edges: Sequence[int],
    missing: Sequence[bool],
) -> list[tuple[bytes, bytes]]:
    """For each group of rows, sums left of each edge of each column: missing values right, and left where there are any.

    `groups` are numbers of rows, one after the other in `ciphertexts`, which `split_chunk` has made, and in `bins` of shape
    (columns, rows); the last bin, edges + 1 of a column, holds missing values.
    """
    key, _ = public_key(modulus, least)
    square, (lows, highs) = key.square, key.halves(ciphertexts)
    out, start = [], 0
    for count in groups:
        rows = slice(start, start + count)
        start += count
        right: list[mpz] = []
        left: list[mpz] = []
        for columns in _pairs(len(bins), count, [each + 2 for each in edges]):
            found = _buckets(key, (lows[rows], highs[rows]), bins[columns, rows], edges, columns)
            for column, sums in zip(columns, found, strict=True):
                total = mpz(1)
                for bucket in sums[: edges[column]]:
                    total = total * bucket % square
                    right.append(total)
                    if missing[column]:
                        left.append(total * sums[-1] % square)
        out.append((key.write(right), key.write(left)))
    return out


def _pairs(columns: int, rows: int, widths: Sequence[int]) -> Iterator[list[int]]:
    """Two columns at once cost one addition a row instead of two, and two a joint bucket."""
    column = 0
    while column < columns:
        both = column + 1 < columns and rows > 2 * widths[column] * widths[column + 1]
        yield [column, column + 1] if both else [column]
        column += 2 if both else 1


def _buckets(
    key: PublicKey, values: Halves, bins: Bins, edges: Sequence[int], columns: Sequence[int]
) -> list[list[mpz]]:
    widths = [edges[column] + 2 for column in columns]
    if len(columns) == 1:
        return [sum_by(key, values, bins[0], widths[0])]
    joint = bins[0].astype(np.int64) * widths[1] + bins[1]
    cells = _products(key, values, joint, widths[0] * widths[1])
    rows = [cells[i : i + widths[1]] for i in range(0, len(cells), widths[1])]
    return [
        [_joined(key, each) for each in rows],
        [_joined(key, each) for each in zip(*rows, strict=True)],
    ]


def _joined(key: PublicKey, cells: Iterable[_Product]) -> mpz:
    """The sum of sums."""
    lows, highs = zip(*cells, strict=True)
    return paillier.join(*paillier.multiply(lows, highs, key.square), key.n, key.square)


def _products(key: PublicKey, values: Halves, places: npt.NDArray[Any], count: int) -> list[_Product]:
    order = np.argsort(places, kind="stable")
    ends = np.searchsorted(places[order], np.arange(count + 1)).tolist()
    rows, (lows, highs) = order.tolist(), values
    chosen_rows = (rows[start:end] for start, end in pairwise(ends))
    return [
        paillier.multiply(map(lows.__getitem__, chosen), map(highs.__getitem__, chosen), key.square)
        for chosen in chosen_rows
    ]


def sum_by(key: PublicKey, values: Halves, places: npt.NDArray[Any], count: int) -> list[mpz]:
    """Ciphertexts of the sums of each place's rows."""
    return [_joined(key, [each]) for each in _products(key, values, places, count)]
