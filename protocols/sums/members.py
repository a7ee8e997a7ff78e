"""One member's side of a job of secure sums.

The legal order: `receive` a begin, a cohort and (but for the first of the cohort) the job key; then, for each sum,
`contribute` once, `receive` until `result` gives the sum. A retry or a new beginning may come until the member has
committed; after that it answers for one upload only. Keys and masks live in memory only, so that nothing is
left to be used twice after a crash: a member that restarts has left the job.
"""

import enum
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from lianfang.v1 import sums_pb2 as pb

from .. import group
from ..encoding import expand, frame
from ..errors import DecodeError, MisuseError
from . import cipher, cohorts, modular, shares
from .cipher import BfvKey
from .errors import SumAborted
from .job import MAX_ATTEMPTS, MAX_LENGTH, Job
from .modular import Vector

_DOMAIN = "lianfang/v1/sum"
_SEED = 32
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_ROOT = 32

Outgoing = Iterator[pb.SumFromMember]


class Phase(enum.Enum):
    """Where a member stands; the names appear in errors."""

    NEW = "entry"
    HELLO = "hello"
    KEY = "job key"
    READY = "between sums"
    UPLOADED = "upload"
    COMMITTED = "commit"
    OPENING = "opening"
    ENDED = "end"


def _seal(key: bytes, info: bytes, plain: bytes) -> bytes:
    # The key serves once: it is derived from a fresh secret and a unique info.
    return AESGCM(expand(key, info, 32)).encrypt(bytes(12), plain, info)


def _open(key: bytes, info: bytes, sealed: bytes) -> bytes:
    return AESGCM(expand(key, info, 32)).decrypt(bytes(12), sealed, info)


class _Round:
    """What a member holds for the sum under way."""

    def __init__(self, number: int, values: Vector, label: str) -> None:
        self.number, self.values, self.label = number, values, label
        self.attempt = 0
        self.seed = b""
        self.upload = pb.SumUpload()
        self.uploads: dict[str, pb.SumUpload] = {}
        self.commit: pb.SumCommit | None = None
        self.shares: dict[str, bytes] = {}  # what others' seeds gave us, by dealer
        self.expected = 0
        self.total: list[bytes] = []


class Member:
    """One party of a job. Every method may raise `SumAborted`, after which the member is at its end."""

    def __init__(
        self,
        job: Job,
        own_id: str,
        signing: Ed25519PrivateKey,
        sealing: X25519PrivateKey,
        *,
        earlier: Iterable[frozenset[str]] = (),
        record: Callable[[frozenset[str]], None] = lambda _cohort: None,
    ) -> None:
        """`earlier` are the cohorts of former sums over the same rows; `record` makes this one durable or raises."""
        job.party(own_id, "entry")
        self._job, self._id, self._signing, self._sealing = job, own_id, signing, sealing
        self._earlier, self._record = [*earlier], record
        self._phase = Phase.NEW
        self._generation = 0
        self._ephemeral: X25519PrivateKey | None = None
        self._cohort: list[str] = []
        self._cohort_hash = b""
        self._pairs: dict[str, bytes] = {}
        self._root = b""
        self._bfv: BfvKey | None = None
        self._number = 0
        self._next_attempt = 1
        self._previous = b""
        self._round: _Round | None = None
        self._bound = False  # whether this member has ever committed
        self._result: Vector | None = None

    # -- what the driver asks --------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where this member stands."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether `contribute` may be called."""
        return self._phase is Phase.READY and self._result is None

    @property
    def opened(self) -> int:
        """How many sums this member has opened."""
        return self._number - (self._round is not None)

    @property
    def cohort(self) -> tuple[str, ...]:
        """Who takes part, ascending."""
        return tuple(self._cohort)

    def result(self) -> Vector | None:
        """The sum, once: int64, centred; None while it is not there."""
        found, self._result = self._result, None
        return found

    def end(self) -> None:
        """Forget every key; nothing can be done after it."""
        self._phase = Phase.ENDED
        self._pairs, self._root, self._bfv, self._ephemeral, self._round = {}, b"", None, None, None

    def _abort(self, party: str, reason: str) -> SumAborted:
        return SumAborted(self._phase.value, party, reason)

    # -- contributing ----------------------------------------------------------------------------------------

    def contribute(self, values: Vector, label: str) -> Outgoing:
        """Upload one vector of int64 of shape (length,). All members must give the same length and label.

        Raises `MisuseError` for values whose sum could leave the range, or out of order.
        """
        if not self.ready:
            raise MisuseError(f"a contribution does not belong here ({self._phase.value})")
        if values.size > MAX_LENGTH or not label or len(label) > 200:
            raise MisuseError(f"a sum has at most {MAX_LENGTH} values and a label of 1 to 200 characters")
        modular.check_range(values, len(self._job.parties))  # a new beginning may bring more of them
        if self._id in self._job.observers and values.any():
            raise MisuseError("an observer adds zeros")
        self._number += 1
        self._round = _Round(self._number, modular.residues(values), label)
        self._phase = Phase.UPLOADED
        attempt, self._next_attempt = self._next_attempt, 1
        return self._upload(attempt)

    def _upload(self, attempt: int) -> Outgoing:
        current = self._current()
        current.attempt, current.seed, current.uploads = attempt, group.random_scalar(), {}
        masked = self._masked(current)
        if self._bfv is not None:
            contents = self._bfv.encrypt(masked)
        else:
            steps = range(0, masked.size, cipher.SLOTS)
            contents = (cipher.pack(masked[start : start + cipher.SLOTS]) for start in steps)
        hasher, count = hashlib.sha256(), 0
        for content in contents:
            hasher.update(frame(content))
            chunk = pb.SumChunk(
                generation=self._generation,
                number=current.number,
                attempt=attempt,
                index=count,
                content=content,
            )
            yield pb.SumFromMember(chunk=chunk)
            count += 1
        others = [party for party in self._cohort if party != self._id]
        dealt = shares.split(current.seed, len(self._cohort) - 1, len(self._cohort))
        share_of = dict(zip(self._cohort, dealt, strict=True))
        current.shares = {self._id: share_of[self._id]}
        upload = pb.SumUpload(
            generation=self._generation,
            party=self._id,
            number=current.number,
            attempt=attempt,
            label=current.label,
            length=current.values.size,
            chunks=count,
            content_hash=hasher.digest(),
            previous=self._previous,
            seed_hash=self._seed_hash(self._id, current),
            shares=[
                pb.SumShare(
                    party=to, sealed=_seal(self._pairs[to], self._share_info(self._id, to), share_of[to])
                )
                for to in others
            ],
        )
        upload.signature = self._signing.sign(self._job.upload_bytes(self._cohort_hash, upload))
        current.upload = upload
        yield pb.SumFromMember(upload=upload)

    def _seed_hash(self, party: str, current: _Round, seed: bytes = b"") -> bytes:
        where = (self._job.hash, self._cohort_hash, party, current.number, current.attempt)
        return hashlib.sha256(frame(_DOMAIN + "/seed", *where, seed or current.seed)).digest()

    def _info(self, what: str, *parts: str) -> bytes:
        current = self._current()
        where = (self._job.hash, self._cohort_hash, self._generation, current.number, current.attempt)
        return frame(f"{_DOMAIN}/{what}", *where, *parts)

    def _share_info(self, dealer: str, holder: str) -> bytes:
        return self._info("share", dealer, holder)

    def _masked(self, current: _Round) -> Vector:
        """Values, check value in a slot of its own, self-mask and pairwise masks."""
        size = current.values.size + 1
        weights, offset = self._check_key(current)
        check = (modular.inner(weights, current.values) + offset) % modular.MODULUS
        vector = np.append(current.values, check)
        vector = modular.add(vector, modular.expand(self._self_key(current.seed), size))
        for other, pair in self._pairs.items():
            mask = modular.expand(expand(pair, self._info("mask"), 32), size)
            # The same mask on both sides: one adds what the other takes off.
            vector = modular.add(vector, mask) if self._id < other else modular.subtract(vector, mask)
        return vector

    def _self_key(self, seed: bytes) -> bytes:
        return expand(seed, self._info("self"), 32)

    def _check_key(self, current: _Round) -> tuple[Vector, int]:
        drawn = modular.expand(expand(self._root, self._info("check"), 32), current.values.size + 1)
        return drawn[:-1], int(drawn[-1])

    # -- receiving -------------------------------------------------------------------------------------------

    def receive(self, message: pb.SumToMember) -> Outgoing:
        """Answer a message. The iterator must be drained before the next one is given."""
        try:
            yield from self._answer(message)
        except SumAborted:
            self.end()
            raise
        except DecodeError as error:
            aborted = self._abort("", str(error))
            self.end()
            raise aborted from error
        except Exception:
            self.end()
            raise

    def _answer(self, message: pb.SumToMember) -> Outgoing:
        step = message.WhichOneof("step")
        if self._phase is Phase.ENDED:
            raise self._abort("", "the job has ended")
        if step == "abort":
            abort = message.abort
            raise SumAborted(abort.phase or self._phase.value, abort.party, abort.reason or "no reason given")
        if step == "begin":
            yield self._begin(message.begin)
        elif step == "cohort":
            yield from self._on_cohort(message.cohort)
        elif step == "key":
            self._on_key(message.key)
            yield from self._resume()
        elif step == "retry":
            yield from self._on_retry(message.retry)
        elif step == "uploads":
            yield self._on_uploads(message.uploads)
        elif step == "commits":
            self._on_commits(message.commits)
        elif step == "chunk":
            yield from self._on_chunk(message.chunk)
        elif step == "openings":
            self._on_openings(message.openings)
        else:
            raise self._abort("", "the coordinator sent an empty message")

    def _current(self) -> _Round:
        if self._round is None:
            raise self._abort("", "the coordinator speaks of a sum that is not under way")
        return self._round

    def _begin(self, begin: pb.SumBegin) -> pb.SumFromMember:
        if self._bound:
            raise self._abort("", "the coordinator begins anew after a commitment")
        if begin.generation <= self._generation:
            raise self._abort("", "the coordinator repeats a beginning")
        self._generation = begin.generation
        self._ephemeral = X25519PrivateKey.generate()
        self._pairs, self._root, self._bfv, self._previous = {}, b"", None, b""
        self._next_attempt = 1
        hello = pb.SumHello(
            generation=begin.generation,
            party=self._id,
            ephemeral=self._ephemeral.public_key().public_bytes_raw(),
        )
        hello.signature = self._signing.sign(self._job.hello_bytes(hello))
        self._phase = Phase.HELLO
        return pb.SumFromMember(hello=hello)

    def _on_cohort(self, cohort: pb.SumCohort) -> Outgoing:
        if self._phase is not Phase.HELLO or self._ephemeral is None:
            raise self._abort("", "the coordinator sent a cohort out of order")
        names = [hello.party for hello in cohort.members]
        if names != sorted(set(names)) or self._id not in names:
            raise self._abort("", "the cohort repeats a party, is not ascending or leaves this member out")
        contributors = self._job.contributors(names)
        cohorts.check_minimum(len(contributors), self._job.minimum)
        cohorts.check_history(contributors, self._earlier)
        seen = set()
        for hello in cohort.members:
            if hello.generation != self._generation or hello.ephemeral in seen:
                raise self._abort(hello.party, "its hello is of another generation or repeats a key")
            self._job.verify(hello.party, self._phase.value, hello.signature, self._job.hello_bytes(hello))
            seen.add(hello.ephemeral)
        own = self._ephemeral.public_key().public_bytes_raw()
        if next(hello.ephemeral for hello in cohort.members if hello.party == self._id) != own:
            raise self._abort("", "the cohort holds another key of this member")
        self._cohort, self._cohort_hash = names, self._job.cohort_hash(cohort.members)
        for hello in cohort.members:
            if hello.party == self._id:
                continue
            try:
                secret = self._ephemeral.exchange(X25519PublicKey.from_public_bytes(hello.ephemeral))
            except ValueError as error:
                raise self._abort(hello.party, "its key is not a usable X25519 key") from error
            ends = sorted((self._id, hello.party))
            info = frame(_DOMAIN + "/pair", self._job.hash, *ends)
            self._pairs[hello.party] = HKDF(hashes.SHA512(), 64, self._cohort_hash, info).derive(secret)
        self._ephemeral = None  # the pairs' keys are what is left of it
        self._phase = Phase.KEY
        if self._id == self._maker():
            self._use_key(os.urandom(_ROOT), BfvKey.generate() if self._job.bfv else None)
            bfv = self._bfv.to_bytes() if self._bfv is not None else b""
            for party in names:
                if party != self._id:
                    yield pb.SumFromMember(key=self._sealed_key(party, self._root + bfv))
            yield from self._resume()

    def _maker(self) -> str:
        """The first contributor of the cohort makes the job key."""
        return min(self._job.contributors(self._cohort))

    def _key_info(self, party: str) -> bytes:
        return frame(_DOMAIN + "/seal-key", self._job.hash, self._cohort_hash, self._maker(), party)

    def _sealed_key(self, party: str, secret: bytes) -> pb.SumJobKey:
        public = X25519PublicKey.from_public_bytes(self._job.party(party, "job key").sealing_key)
        key = pb.SumJobKey(party=party, sealed=_HPKE.encrypt(secret, public, self._key_info(party)))
        key.signature = self._signing.sign(self._job.key_bytes(self._cohort_hash, key))
        return key

    def _use_key(self, root: bytes, bfv: BfvKey | None) -> None:
        self._root, self._bfv = root, bfv
        self._previous = expand(root, frame(_DOMAIN + "/start", self._job.hash, self._cohort_hash), 32)
        self._phase = Phase.READY

    def _resume(self) -> Outgoing:
        """What was contributed before a new beginning is contributed again, under the new keys."""
        if self._round is not None:
            self._phase = Phase.UPLOADED
            yield from self._upload(1)

    def _on_key(self, key: pb.SumJobKey) -> None:
        if self._phase is not Phase.KEY or key.party != self._id:
            raise self._abort("", "the coordinator sent a job key out of order")
        maker = self._maker()
        self._job.verify(maker, self._phase.value, key.signature, self._job.key_bytes(self._cohort_hash, key))
        try:
            secret = _HPKE.decrypt(key.sealed, self._sealing, self._key_info(self._id))
        except Exception as error:  # the library names no narrower class for both tag and encoding
            raise self._abort(maker, "its job key does not open with this member's sealing key") from error
        if len(secret) < _ROOT or (len(secret) > _ROOT) is not self._job.bfv:
            raise self._abort(maker, "its job key has the wrong size")
        try:
            bfv = BfvKey.from_bytes(secret[_ROOT:]) if self._job.bfv else None
        except DecodeError as error:
            raise self._abort(maker, str(error)) from error
        self._use_key(secret[:_ROOT], bfv)

    def _on_retry(self, retry: pb.SumRetry) -> Outgoing:
        if self._phase is Phase.READY and retry.number == self._number + 1:
            self._next_attempt = min(retry.attempt, MAX_ATTEMPTS)  # it has not contributed yet
            return
        current = self._current()
        if self._phase is not Phase.UPLOADED or retry.number != current.number:
            raise self._abort("", "the coordinator asks for another upload after a commitment")
        if retry.attempt == current.attempt:
            return  # its answer to the first such request crossed the second
        if not current.attempt < retry.attempt <= MAX_ATTEMPTS:
            raise self._abort("", f"the coordinator asks for attempt {retry.attempt} after {current.attempt}")
        yield from self._upload(retry.attempt)

    def _on_uploads(self, message: pb.SumUploads) -> pb.SumFromMember:
        current = self._current()
        if self._phase not in (Phase.UPLOADED, Phase.COMMITTED, Phase.OPENING):
            raise self._abort("", "the coordinator sent uploads out of order")
        names = [upload.party for upload in message.uploads]
        if names != self._cohort:
            raise self._abort("", "the uploads are not those of the cohort")
        if any(upload.length > MAX_LENGTH for upload in message.uploads):
            raise self._abort("", "an upload is longer than a sum may be")
        signed = [self._job.upload_bytes(self._cohort_hash, upload) for upload in message.uploads]
        agreed = self._job.agreed(self._cohort_hash, signed, message.uploads)
        if current.commit is not None:
            if current.commit.agreed != agreed:
                raise self._abort("", "the coordinator shows two sets of uploads for one sum")
            return pb.SumFromMember(commit=current.commit)
        for upload, data in zip(message.uploads, signed, strict=True):
            self._check_upload(current, upload, data)
        if not self._bound:
            self._record(self._job.contributors(self._cohort))
            self._bound = True
        current.uploads = {upload.party: upload for upload in message.uploads}
        commit = pb.SumCommit(party=self._id, number=current.number, attempt=current.attempt, agreed=agreed)
        commit.signature = self._signing.sign(self._job.commit_bytes(self._cohort_hash, commit))
        current.commit = commit
        self._phase = Phase.COMMITTED
        return pb.SumFromMember(commit=commit)

    def _check_upload(self, current: _Round, upload: pb.SumUpload, signed: bytes) -> None:
        self._job.verify(upload.party, self._phase.value, upload.signature, signed)
        ours = current.upload
        if upload.party == self._id:
            if signed != self._job.upload_bytes(self._cohort_hash, ours):
                raise self._abort("", "the coordinator shows another upload of this member")
            return
        if (upload.number, upload.attempt) != (ours.number, ours.attempt):
            raise self._abort(upload.party, "its upload is for another sum or attempt")
        if (upload.label, upload.length, upload.chunks) != (ours.label, ours.length, ours.chunks):
            raise self._abort(
                upload.party,
                f"it sums {upload.length} values of {upload.label!r}, this member {ours.length} of {ours.label!r}",
            )
        if upload.previous != ours.previous:
            raise self._abort(upload.party, "it was shown another sum before this one")
        if [share.party for share in upload.shares] != [
            each for each in self._cohort if each != upload.party
        ]:
            raise self._abort(upload.party, "its shares are not for the cohort")
        sealed = next(share.sealed for share in upload.shares if share.party == self._id)
        try:
            info = self._share_info(upload.party, self._id)
            share = _open(self._pairs[upload.party], info, sealed)
        except InvalidTag as error:
            raise self._abort(upload.party, "its share for this member does not open") from error
        if len(share) != _SEED:
            raise self._abort(upload.party, "its share for this member has the wrong size")
        current.shares[upload.party] = share

    def _on_commits(self, message: pb.SumCommits) -> None:
        current = self._current()
        if self._phase not in (Phase.COMMITTED, Phase.OPENING) or current.commit is None:
            raise self._abort("", "the coordinator sent commitments out of order")
        if [commit.party for commit in message.commits] != self._cohort:
            raise self._abort("", "the commitments are not those of the cohort")
        for commit in message.commits:
            if commit.party == self._id and commit != current.commit:
                raise self._abort("", "the coordinator shows another commitment of this member")
            if (commit.number, commit.attempt) != (current.number, current.attempt):
                raise self._abort(commit.party, "its commitment is for another sum")
            if commit.agreed != current.commit.agreed:
                raise self._abort(commit.party, "it has committed to another cohort")
            signed = self._job.commit_bytes(self._cohort_hash, commit)
            self._job.verify(commit.party, self._phase.value, commit.signature, signed)
        if message.chunks != current.upload.chunks:
            raise self._abort("", f"the total has {message.chunks} parts, not {current.upload.chunks}")
        current.expected, current.total = message.chunks, []
        self._phase = Phase.OPENING

    def _on_chunk(self, chunk: pb.SumChunk) -> Outgoing:
        current = self._current()
        if self._phase is not Phase.OPENING or len(current.total) >= current.expected:
            raise self._abort("", "the coordinator sent a part of the total out of order")
        if (chunk.number, chunk.attempt, chunk.index) != (
            current.number,
            current.attempt,
            len(current.total),
        ):
            raise self._abort("", "a part of the total is for another sum, or out of order")
        if len(chunk.content) > cipher.CIPHERTEXT_BYTES:
            raise self._abort("", "a part of the total is too large")
        current.total.append(chunk.content)
        if len(current.total) == current.expected:
            yield pb.SumFromMember(opening=self._opening(current))

    def _opening(self, current: _Round) -> pb.SumOpening:
        plain = b"".join(current.shares[party] for party in self._cohort)
        sealed = _seal(self._root, self._info("opening", self._id), plain)
        return pb.SumOpening(party=self._id, number=current.number, attempt=current.attempt, sealed=sealed)

    def _on_openings(self, message: pb.SumOpenings) -> None:
        current = self._current()
        if self._phase is not Phase.OPENING or len(current.total) != current.expected:
            raise self._abort("", "the coordinator sent openings out of order")
        position = {party: index for index, party in enumerate(self._cohort)}
        held: dict[str, dict[int, bytes]] = {party: {} for party in self._cohort}
        for opening in message.openings:
            if opening.party not in position:
                raise self._abort(opening.party, "is not of the cohort")
            try:
                plain = _open(self._root, self._info("opening", opening.party), opening.sealed)
            except InvalidTag as error:
                raise self._abort(opening.party, "its opening does not open") from error
            if len(plain) != _SEED * len(self._cohort):
                raise self._abort(opening.party, "its opening has the wrong size")
            for index, dealer in enumerate(self._cohort):
                held[dealer][position[opening.party]] = plain[_SEED * index : _SEED * (index + 1)]
        for dealer in self._cohort:
            held[dealer][position[self._id]] = current.shares[dealer]
        self._finish(current, held)

    def _finish(self, current: _Round, held: dict[str, dict[int, bytes]]) -> None:
        needed = len(self._cohort) - 1
        size = current.values.size + 1
        total = self._decrypted(current)[:size]
        if total.size != size:
            raise self._abort("", "the total is shorter than the sum")
        for dealer in self._cohort:
            if dealer == self._id:
                seed = current.seed
            else:
                few = dict(sorted(held[dealer].items())[:needed])
                if len(few) < needed:
                    raise self._abort("", f"{len(few)} of the {needed} openings that are needed arrived")
                seed = shares.join(few)
                if self._seed_hash(dealer, current, seed) != current.uploads[dealer].seed_hash:
                    raise self._abort(
                        dealer, "its shares, or what another member opened of them, do not give its seed"
                    )
            total = modular.subtract(total, modular.expand(self._self_key(seed), size))
        weights, offset = self._check_key(current)
        expected = (modular.inner(weights, total[:-1]) + len(self._cohort) * offset) % modular.MODULUS
        if expected != int(total[-1]):
            raise self._abort("", "the check value fails: the total is not the sum of the contributions")
        opened = frame(_DOMAIN + "/opened", current.number, current.attempt, cipher.pack(total[:-1]))
        digest = hashlib.sha512(opened).digest()
        self._previous = expand(self._root, frame(_DOMAIN + "/previous", digest), 32)
        self._result = modular.centred(total[:-1])
        self._round = None
        self._phase = Phase.READY

    def _decrypted(self, current: _Round) -> Vector:
        if self._bfv is None:
            parts = [cipher.unpack(content) for content in current.total]
        else:
            parts = [self._bfv.decrypt(content) for content in current.total]
        return np.concatenate(parts)
