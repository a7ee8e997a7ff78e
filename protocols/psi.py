"""Set intersection of two parties by Diffie–Hellman over ristretto255, without I/O.

    A, exponent a                                              B, exponent b
    mask: a·H(x), ascending, padded            →               Arrivals: canonical, ascending, as many as announced
                                               ←               mask: b·H(y), ascending, padded
                                               ←               double: b·a·H(x), where A is to learn the outcome
    double: a·b·H(y)                           →               where B is

Who has both doubled sequences compares them. For an intersection the doubled points come in the order of the masked
ones, so that their owner finds its elements; for a cardinality they come ascending, so that nobody does.

Meadows (S&P 1986); Huberman, Franklin, Hogg (EC 1999); shuffled for cardinality as in De Cristofaro, Gasti, Tsudik (CANS
2012). H is hash_to_ristretto255 (RFC 9380 appendix B) with contract and session in its domain, exponents are fresh in each session. Ascending
order is a function of the set of points, which is sent in any case: it says as little as a random permutation, and a
point that is repeated shows at once. Functions named `…_chunk` do a slice, for a caller that spreads it over cores.
"""

import hashlib
import secrets
from collections.abc import Sequence
from itertools import pairwise

from . import group, padding
from .encoding import frame
from .errors import DecodeError, MisuseError
from .hashing import expand_message_each

SESSION = 16
# Elements: some 12 ms of work with IFMA, 40 by libsodium; the way to a worker and back takes 0.2.
CHUNK = 16 * group.CHUNK
ID = 16  # bytes of an aligned row's id
_DOMAIN = "lianfang/v1/psi"
_ALIGN_DOMAIN = "lianfang/v1/align"


class Exponent:
    """One party's secret of one session. Never shown; `forget` it with the session."""

    def __init__(self) -> None:
        self._scalar: bytes | None = group.random_scalar()

    def __repr__(self) -> str:
        return "Exponent()"

    @property
    def scalar(self) -> bytes:
        """32 bytes, for this node's own workers."""
        if self._scalar is None:
            raise MisuseError("the session is over")
        return self._scalar

    def forget(self) -> None:
        """The session is over."""
        self._scalar = None


def domain(contract: bytes, session: bytes) -> bytes:
    """What H is separated by: contract's hash (32 bytes) and session (16 bytes that both have agreed on)."""
    if len(contract) != 32 or len(session) != SESSION:
        raise MisuseError(f"a contract's hash has 32 bytes and a session {SESSION}")
    return frame(_DOMAIN, contract, session)


def mask_chunk(where: bytes, scalar: bytes, elements: Sequence[bytes]) -> bytes:
    """scalar·H(element), in order; 32·n bytes. `where` is a `domain`."""
    uniform = expand_message_each(where, len(elements), list(elements))
    return group.hash_and_multiply_all(scalar, uniform)


def dummies(count: int) -> bytes:
    """Uniform points, which is what masked ones are; 32·n bytes. They meet nothing."""
    return group.hash_to_points(secrets.token_bytes(group.UNIFORM * count))


def double_chunk(scalar: bytes, points: bytes) -> bytes:
    """scalar·point, in order; 32·n bytes. Raises `DecodeError` for what is no point, or the identity."""
    return group.multiply_all(scalar, points)


def random_id(where: bytes, doubled: bytes) -> bytes:
    """16 bytes by which both know an element in common, and nobody else; `doubled` is its doubled point."""
    return hashlib.sha256(frame(_ALIGN_DOMAIN, where, doubled)).digest()[:ID]


def ids_digest(party: str, ids: bytes) -> bytes:
    """32 bytes by which `party` says that it has these ids; another's word repeated is not its own."""
    return hashlib.sha256(frame(_ALIGN_DOMAIN, party, ids)).digest()


def size(count: int) -> int:
    """Public bucket of a set."""
    return padding.bucket(count, minimum=2)


class Arrivals:
    """The other party's points as they come in: so many, and each greater than the one before."""

    def __init__(self, announced: int, most: int, ascending: bool = True) -> None:
        if announced != size(announced) or announced > size(most):
            raise DecodeError(f"{announced} elements are announced: no bucket of at most {most}")
        self.announced, self._ascending = announced, ascending
        self.count = 0
        self._last = b""

    def take(self, points: bytes) -> bytes:
        """Raise `DecodeError` for what does not go on as announced; that they are points, doubling finds out."""
        if not points or len(points) % group.POINT:
            raise DecodeError(f"{len(points)} bytes are no whole points")
        split = group.split(points)
        if self._ascending:
            for before, after in pairwise([self._last, *split] if self._last else split):
                if before >= after:
                    raise DecodeError(
                        f"element {self.count + 1} or one soon after it is repeated or out of order"
                    )
        self.count += len(split)
        if self.count > self.announced:
            raise DecodeError(f"more than the {self.announced} elements that were announced")
        self._last = split[-1]
        return points

    def end(self) -> None:
        """Raise `DecodeError` where some are missing."""
        if self.count != self.announced:
            raise DecodeError(f"{self.count} of {self.announced} announced elements have come")
