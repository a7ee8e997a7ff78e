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


def _blinds(seed: bytes, start: int, stop: int) -> bytes:
    return group.reduce_scalars(_stream(seed, b"blind", start, stop))


def blind_chunk(seed: bytes, start: int, inputs: Sequence[bytes]) -> bytes:
    """Blinded points of the inputs numbered from `start`; 32·n bytes."""
    return voprf.blind(inputs, _blinds(seed, start, start + len(inputs)))


def pad_chunk(seed: bytes, start: int, count: int) -> bytes:
    """Padding: uniform group elements, which is what blinded points are; 32·n bytes."""
    return group.hash_to_points(_stream(seed, b"pad", start, start + count))


def finish_chunk(seed: bytes, start: int, inputs: Sequence[bytes], evaluated: bytes) -> list[bytes]:
    """OPRF outputs, 64 bytes each, of a slice whose proof has been verified."""
    return voprf.finalize(inputs, _blinds(seed, start, start + len(inputs)), evaluated)


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
        self._inverse: bytes | None = None  # of a single element's blind, where it was made with others'

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
        if self.size == 1:
            outputs = [self._finish_one(self._seed, self._request, evaluated, proof)]
        else:
            voprf.verify_proof(self._public, self._request, evaluated, proof, run)
            parts = run(
                finish_chunk,
                [
                    (self._seed, start, part, evaluated[start * 32 : (start + len(part)) * 32])
                    for start, part in self._slices()
                ],
            )
            outputs = [output for part in parts for output in part]
        self._seed = self._inverse = None
        self._inputs = []
        return outputs

    def _finish_one(self, seed: bytes, request: bytes, evaluated: bytes, proof: bytes) -> bytes:
        inverse = self._inverse or group.invert_scalars(_blinds(seed, 0, 1))
        return voprf.verify_and_finalize_one(
            self._public, self._inputs[0], inverse, request, evaluated, proof
        )

    @staticmethod
    def blind_together(questions: "Sequence[Question]") -> None:
        """Make the requests of several questions: those of one element in one call, which a vector of lanes takes at once."""
        single = [each for each in questions if each.size == 1 and each._seed and each._request is None]
        if not single:
            return
        blinds = b"".join(_blinds(each._seed or b"", 0, 1) for each in single)
        requests = group.split(voprf.blind([each._inputs[0] for each in single], blinds))
        inverses = group.split(group.invert_scalars(blinds), group.SCALAR)
        for question, request, inverse in zip(single, requests, inverses, strict=True):
            question._request, question._inverse = request, inverse
