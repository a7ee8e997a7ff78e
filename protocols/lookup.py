"""The two roles of a private lookup, without I/O.

    querier                                   holder
    Question(key, inputs)
      .request()          32 bytes each  →
                                              answer(key pair, request)
                          ←  32 bytes each, one proof
      .finish(evaluated, proof)
      → OPRF outputs, one per input

A `Question` serves once. Its blinds follow from a random 32-byte seed, so that a question interrupted by
a crash can be sent again with the same bytes (and is then charged once); whoever keeps the seed keeps it
secret and erases it with the answer. Each holder is asked with a seed of its own: two holders that compare
their requests see unrelated points.
"""

import secrets
from collections.abc import Sequence

from . import group, padding, voprf
from .errors import MisuseError, StateUsedError
from .hashing import hmac_each, numbers
from .voprf import KeyPair, Runner, inline

SEED = 32


def _stream(seed: bytes, what: bytes, start: int, stop: int) -> bytes:
    return hmac_each(seed, stop - start, what, numbers(start, stop, 4))


def blind_chunk(seed: bytes, start: int, inputs: Sequence[bytes]) -> bytes:
    """Blinded points of the inputs numbered from `start`; 32·n bytes."""
    blinds = group.reduce_scalars(_stream(seed, b"blind", start, start + len(inputs)))
    return voprf.blind(inputs, blinds)


def pad_chunk(seed: bytes, start: int, count: int) -> bytes:
    """Padding: uniform group elements, which is what blinded points are; 32·n bytes."""
    return group.hash_to_points(_stream(seed, b"pad", start, start + count))


def finish_chunk(seed: bytes, start: int, inputs: Sequence[bytes], evaluated: bytes) -> list[bytes]:
    """OPRF outputs, 64 bytes each, of a slice whose proof has been verified."""
    blinds = group.reduce_scalars(_stream(seed, b"blind", start, start + len(inputs)))
    return voprf.finalize(inputs, blinds, evaluated)


def answer(key: KeyPair, request: bytes, run: Runner = inline) -> tuple[bytes, bytes]:
    """The holder's whole part: (evaluated, proof). Raises `DecodeError` for a bad request."""
    return voprf.evaluate_with_proof(key, request, run)


class Question:
    """One batch of a querier, for one holder's list and epoch. Legal order: request, finish; finish once."""

    def __init__(self, public_key: bytes, inputs: Sequence[bytes], seed: bytes | None = None) -> None:
        if not inputs:
            raise MisuseError("a question needs at least one identifier")
        self.size = padding.bucket(len(inputs))
        if self.size > voprf.MAX_BATCH:
            raise MisuseError(f"a batch has at most {voprf.MAX_BATCH} elements after padding")
        voprf.check_public_key(public_key)
        self._public = public_key
        self._inputs = list(inputs)
        self._seed: bytes | None = secrets.token_bytes(SEED) if seed is None else seed
        if len(self._seed or b"") != SEED:
            raise MisuseError(f"the seed has {SEED} bytes")
        self._request: bytes | None = None

    def _slices(self) -> list[tuple[int, list[bytes]]]:
        step = voprf.CHUNK
        return [(i, self._inputs[i : i + step]) for i in range(0, len(self._inputs), step)]

    def request(self, run: Runner = inline) -> bytes:
        """Blinded points padded to the public bucket; 32·size bytes, the same at each call."""
        if self._seed is None:
            raise StateUsedError("the question is finished")
        if self._request is None:
            parts = run(blind_chunk, [(self._seed, start, part) for start, part in self._slices()])
            step, count = voprf.CHUNK, len(self._inputs)
            fill = [(self._seed, i, min(step, self.size - i)) for i in range(count, self.size, step)]
            self._request = b"".join(parts + run(pad_chunk, fill))
        return self._request

    def finish(self, evaluated: bytes, proof: bytes, run: Runner = inline) -> list[bytes]:
        """Verify, unblind and hash: one 64-byte output an input.

        Raises `DecodeError` or `ProofError` for an answer that does not hold, and then the question may be
        finished with another answer; raises `StateUsedError` once it has succeeded.
        """
        if self._seed is None:
            raise StateUsedError("the question is finished")
        if self._request is None:
            raise MisuseError("the request comes first")
        voprf.verify_proof(self._public, self._request, evaluated, proof, run)
        parts = run(
            finish_chunk,
            [
                (self._seed, start, part, evaluated[start * 32 : (start + len(part)) * 32])
                for start, part in self._slices()
            ],
        )
        self._seed = None
        self._inputs = []
        return [output for part in parts for output in part]
