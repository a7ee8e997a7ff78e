"""Shamir's secret sharing in the scalar field of ristretto255, with libsodium's constant-time arithmetic.

A secret is a scalar of 32 bytes. Shares are numbered from 0; number i is the polynomial at i + 1. A. Shamir, "How to
share a secret", CACM 22 (1979).
"""

import functools
from collections.abc import Mapping, Sequence

from .. import group
from ..errors import MisuseError


def split(secret: bytes, needed: int, count: int) -> list[bytes]:
    """`count` shares of 32 bytes, of which any `needed` restore the secret and fewer say nothing about it."""
    if not 1 <= needed <= count:
        raise MisuseError(f"{needed} of {count} shares cannot be needed")
    group.check_scalar(secret, "secret", allow_zero=True)
    coefficients = [secret, *(group.random_scalar() for _ in range(needed - 1))]
    shares = []
    for number in range(1, count + 1):
        point = number.to_bytes(group.SCALAR, "little")
        value = coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            value = group.scalar_add(group.scalar_multiply(value, point), coefficient)
        shares.append(value)
    return shares


@functools.lru_cache(maxsize=256)
def _weights(numbers: Sequence[int]) -> list[bytes]:
    """Lagrange coefficients at 0 for shares of these numbers. Public, so Python's integers will do."""
    points = [number + 1 for number in numbers]
    weights = []
    for i, point in enumerate(points):
        above, below = 1, 1
        for j, other in enumerate(points):
            if i != j:
                above = above * other % group.ORDER
                below = below * (other - point) % group.ORDER
        weights.append((above * pow(below, -1, group.ORDER) % group.ORDER).to_bytes(group.SCALAR, "little"))
    return weights


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret from exactly as many shares, by number, as are needed.

    Raises `DecodeError` for a share that is not a canonical scalar. Wrong or too few shares give a wrong secret.
    """
    numbers = tuple(sorted(shares))
    total = bytes(group.SCALAR)
    for number, weight in zip(numbers, _weights(numbers), strict=True):
        group.check_scalar(shares[number], f"share {number}", allow_zero=True)
        total = group.scalar_add(total, group.scalar_multiply(weight, shares[number]))
    return total
