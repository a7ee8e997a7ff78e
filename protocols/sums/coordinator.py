"""The coordinator's side of a job of secure sums: relays, adds, and sees neither values nor sums.

Drive it with `enter`, `receive`, `lost` and, when a time is up, `give_up`; each returns the messages to send, in
order, as (party, message). It keeps what a member that comes back after a broken stream has missed.
"""

import hashlib
from collections.abc import Iterable

from lianfang.v1 import sums_pb2 as pb

from ..encoding import frame
from ..errors import DecodeError
from . import cipher, cohorts
from .cipher import CiphertextAdder, PlainAdder
from .errors import SumAborted
from .job import MAX_ATTEMPTS, MAX_GENERATIONS, MAX_LENGTH, Job

Sending = list[tuple[str, pb.SumToMember]]
_SHARE_BYTES = 64
_LABEL = 200
_CHUNKS = cipher.chunks_of(MAX_LENGTH + 1)


class _Sum:
    """What came in for the sum under way."""

    def __init__(self, number: int, attempt: int, bfv: bool) -> None:
        self.number, self.attempt = number, attempt
        self.adder: CiphertextAdder | PlainAdder = CiphertextAdder() if bfv else PlainAdder()
        self.hashers: dict[str, tuple[int, hashlib._Hash]] = {}
        self.uploads: dict[str, pb.SumUpload] = {}
        self.commits: dict[str, pb.SumCommit] = {}
        self.openings: dict[str, pb.SumOpening] = {}
        self.closed = False  # openings were sent


class Coordinator:
    """One job. After `SumAborted` it is at its end; `farewell` says so to the members."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._present: set[str] = set()
        self._generation = 0
        self._hellos: dict[str, pb.SumHello] = {}
        self._members: list[str] = []  # of this generation
        self._cohort: list[str] = []  # once it is put together
        self._keys: dict[str, pb.SumJobKey] = {}
        self._sum: _Sum | None = None
        self._last: _Sum | None = None  # the one before, for who missed its end
        self._bound = False  # uploads of some sum were shown
        self._left: set[str] = set()
        self.ended = ""

    # -- what a driver asks ----------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """entry, hello, job key, upload, commit, opening or between sums."""
        if not self._members:
            return "entry"
        if not self._cohort:
            return "hello"
        if len(self._keys) < len(self._cohort) - 1:
            return "job key"
        current = self._sum
        if current is None or current.closed:
            return "between sums"
        if len(current.uploads) < len(self._cohort):
            return "upload"
        return "commit" if len(current.commits) < len(self._cohort) else "opening"

    @property
    def members(self) -> list[str]:
        """Who takes part, ascending; empty before the beginning."""
        return self._members

    @property
    def finished(self) -> bool:
        """Whether every member has all it wanted."""
        return bool(self._members) and self._left >= set(self._members)

    @property
    def sums(self) -> int:
        """Sums that are through."""
        return 0 if self._sum is None else self._sum.number - (not self._sum.closed)

    def waiting_for(self) -> list[str]:
        """Whose message is missing; everybody who could contribute between sums."""
        phase, current = self.phase, self._sum
        if phase == "entry":
            return sorted(party.id for party in self._job.parties if party.id not in self._present)
        if phase == "hello":
            return [each for each in self._members if each not in self._hellos]
        if phase == "job key":
            return [self._maker()]
        assert current is not None or phase == "between sums"
        done: set[str] = set()
        if current is not None and phase == "upload":
            done = set(current.uploads)
        elif current is not None and phase != "between sums":
            done = set(current.commits if phase == "commit" else current.openings)
        return [each for each in self._cohort if each not in done and each not in self._left]

    def _maker(self) -> str:
        return min(self._job.contributors(self._cohort))

    def _abort(self, party: str, reason: str) -> SumAborted:
        error = SumAborted(self.phase, party, reason)
        self.ended = str(error)
        return error

    def farewell(self, error: SumAborted) -> Sending:
        """The end, for everybody who is there."""
        abort = pb.SumAbort(phase=error.phase, party=error.party, reason=error.reason)
        return self._to_all(self._present, pb.SumToMember(abort=abort))

    @staticmethod
    def _to_all(parties: Iterable[str], *messages: pb.SumToMember) -> Sending:
        return [(party, message) for party in sorted(parties) for message in messages]

    # -- coming and going ------------------------------------------------------------------------------------

    def enter(self, party: str, opened: int = 0) -> Sending:
        """A member is there, for the first time or again; `opened` is how many sums it has."""
        if self.ended:
            raise SumAborted(self.phase, "", self.ended)
        self._job.party(party, "entry")
        if self._members and party not in self._members:  # the others go on
            reason = "came after the cohort was put together"
            return [(party, pb.SumToMember(abort=pb.SumAbort(phase=self.phase, party=party, reason=reason)))]
        self._present.add(party)
        if not self._members:
            everybody = {each.id for each in self._job.parties}
            return self.begin() if self._present == everybody else []
        return self._catch_up(party, opened)

    def begin(self) -> Sending:
        """Start, or start anew, with those who are there. Raises `SumAborted` where they are too few."""
        contributors = self._job.contributors(self._present)
        try:
            cohorts.check_minimum(len(contributors), self._job.minimum)
        except SumAborted as error:
            missing = ", ".join(self.waiting_for()) or "nobody is missing"
            raise self._abort("", f"{error.reason}; missing: {missing}") from error
        self._generation += 1
        if self._generation > MAX_GENERATIONS:
            raise self._abort("", f"{MAX_GENERATIONS} beginnings broke off")
        self._members, self._cohort = sorted(self._present), []
        self._hellos, self._keys, self._sum, self._last = {}, {}, None, None
        return self._to_all(self._members, pb.SumToMember(begin=pb.SumBegin(generation=self._generation)))

    def lost(self, party: str) -> None:
        """A member's stream broke: it may come back until the driver gives up."""
        self._present.discard(party)

    def give_up(self) -> Sending:
        """Time is up: go on without who is missing where the rules allow it, else raise `SumAborted`."""
        missing = [each for each in self.waiting_for() if each not in self._present] or self.waiting_for()
        phase = self.phase
        if phase == "opening" and self._sum is not None:
            if len(self._sum.openings) >= len(self._cohort) - 1:
                return self._close(self._sum)
        elif phase == "entry" or not self._bound:
            self._present -= set(missing)
            return self.begin()
        raise self._abort(", ".join(missing), "did not answer in time; what was finished stays")

    def _catch_up(self, party: str, opened: int) -> Sending:
        """What a member that comes back has missed."""
        current, phase = self._sum, self.phase
        if phase in ("hello", "job key"):
            return self.begin()
        if current is None or (current.closed and opened == current.number):
            # Parts of its next contribution may be lost before any other came: all contribute as attempt 2.
            self._last = current
            self._sum = _Sum(1 if current is None else current.number + 1, 1, self._job.bfv)
            return self._retry(self._sum)
        messages: Sending = []
        if opened == current.number - 2 and self._last is not None:
            messages = self._to_all([party], *self._totals(self._last), self._openings(self._last))
            opened += 1
        if opened == current.number:
            return messages
        if opened != current.number - 1:
            raise self._abort(party, f"it has opened {opened} sums, the others {self.sums}")
        if phase == "upload":
            # Parts of its upload may be lost: all contribute again, unless it is whole.
            return messages if party in current.uploads else [*messages, *self._retry(current)]
        if phase == "commit":
            return [*messages, (party, self._uploads(current))]
        end = [self._openings(current)] if current.closed else []
        return [*messages, *self._to_all([party], *self._totals(current), *end)]

    def _retry(self, current: _Sum) -> Sending:
        if current.attempt >= MAX_ATTEMPTS:
            raise self._abort("", f"{MAX_ATTEMPTS} attempts at one sum broke off")
        self._sum = _Sum(current.number, current.attempt + 1, self._job.bfv)
        retry = pb.SumRetry(number=self._sum.number, attempt=self._sum.attempt)
        return self._to_all(self._present & set(self._members), pb.SumToMember(retry=retry))

    # -- messages --------------------------------------------------------------------------------------------

    def receive(self, party: str, message: pb.SumFromMember) -> Sending:
        """Answer a message of an authenticated member. Raises `SumAborted` naming who is at fault."""
        if self.ended:
            raise SumAborted(self.phase, "", self.ended)
        step = message.WhichOneof("step")
        if step == "leave":
            if self.sums:  # before that nobody can have what it wanted
                self._left.add(party)
            return []
        if step == "abort":
            abort = message.abort
            reason = f"{abort.reason} (said by {party})"
            self.ended = reason
            raise SumAborted(abort.phase or self.phase, abort.party or party, reason)
        if party not in self._members:  # it was left behind when the others began anew
            self._job.party(party, self.phase)
            reason = "the job goes on without it" if self._members else "the job has not begun"
            return [(party, pb.SumToMember(abort=pb.SumAbort(phase=self.phase, party=party, reason=reason)))]
        try:
            if step == "hello":
                return self._on_hello(party, message.hello)
            if step == "key":
                return self._on_key(party, message.key)
            if step == "chunk":
                return self._on_chunk(party, message.chunk)
            if step == "upload":
                return self._on_upload(party, message.upload)
            if step == "commit":
                return self._on_commit(party, message.commit)
            if step == "opening":
                return self._on_opening(party, message.opening)
        except DecodeError as error:
            raise self._abort(party, str(error)) from error
        raise self._abort(party, "sent an empty message")

    def _on_hello(self, party: str, hello: pb.SumHello) -> Sending:
        if hello.generation < self._generation:
            return []  # it crossed a new beginning
        if self.phase != "hello" or hello.generation != self._generation or hello.party != party:
            raise self._abort(party, "said hello out of order")
        self._job.verify(party, self.phase, hello.signature, self._job.hello_bytes(hello))
        if len(hello.ephemeral) != 32 or len(hello.signature) != 64:
            raise self._abort(party, "its hello has the wrong size")
        self._hellos[party] = hello
        if len(self._hellos) < len(self._members):
            return []
        self._cohort = list(self._members)
        cohort = pb.SumCohort(members=[self._hellos[each] for each in self._cohort])
        return self._to_all(self._cohort, pb.SumToMember(cohort=cohort))

    def _on_key(self, party: str, key: pb.SumJobKey) -> Sending:
        if (
            self.phase != "job key"
            or party != self._maker()
            or key.party not in self._cohort
            or key.party in (party, *self._keys)
        ):
            raise self._abort(party, "sent a job key out of order")
        self._keys[key.party] = key
        return [(key.party, pb.SumToMember(key=key))]

    def _open_sum(self, party: str, part: pb.SumChunk | pb.SumUpload) -> _Sum | None:
        """The sum a part belongs to; None for a part of a generation or attempt that was given up."""
        number, attempt = part.number, part.attempt
        if part.generation < self._generation:
            return None
        if part.generation > self._generation or not self._cohort:
            raise self._abort(party, "contributes before the cohort is known")
        current = self._sum
        if current is None or (current.closed and number == current.number + 1):
            self._last = current
            current = self._sum = _Sum(1 if current is None else number, 1, self._job.bfv)
        if (number, attempt) < (current.number, current.attempt):
            return None
        if (number, attempt) != (current.number, current.attempt):
            if attempt == 1 < current.attempt and number == current.number:
                return None
            raise self._abort(party, f"contributes to sum {number}, attempt {attempt}, out of order")
        if party in current.uploads:
            raise self._abort(party, "contributes twice to one sum")
        return current

    def _on_chunk(self, party: str, chunk: pb.SumChunk) -> Sending:
        current = self._open_sum(party, chunk)
        if current is None:
            return []
        count, hasher = current.hashers.get(party, (0, hashlib.sha256()))
        if chunk.index != count or count >= _CHUNKS:
            raise self._abort(party, f"sent part {chunk.index} of its upload, not {count}")
        hasher.update(frame(chunk.content))
        current.adder.add(chunk.index, chunk.content)
        current.hashers[party] = (count + 1, hasher)
        return []

    def _on_upload(self, party: str, upload: pb.SumUpload) -> Sending:
        current = self._open_sum(party, upload)
        if current is None:
            if upload.attempt == 1 and self._sum is not None and upload.number == self._sum.number:
                # Its first contribution crossed a retry: ask for the attempt that stands.
                retry = pb.SumRetry(number=self._sum.number, attempt=self._sum.attempt)
                return [(party, pb.SumToMember(retry=retry))] if self._sum.attempt > 1 else []
            return []
        count, hasher = current.hashers.get(party, (0, hashlib.sha256()))
        if upload.party != party or len(upload.label) > _LABEL:
            raise self._abort(party, "its upload names another party, or its label is too long")
        if count != upload.chunks or hasher.digest() != upload.content_hash or not count:
            raise self._abort(party, "its upload is not what it signed")
        if count != cipher.chunks_of(upload.length + 1):
            raise self._abort(party, f"{upload.length} values and {count} parts do not fit together")
        if [share.party for share in upload.shares] != [each for each in self._cohort if each != party]:
            raise self._abort(party, "its shares are not for the cohort")
        if any(len(share.sealed) > _SHARE_BYTES for share in upload.shares):
            raise self._abort(party, "a share is too large")
        if (
            any(len(each) != 32 for each in (upload.previous, upload.seed_hash))
            or len(upload.signature) != 64
        ):
            raise self._abort(party, "a hash or the signature of its upload has the wrong size")
        for other in current.uploads.values():
            if (other.length, other.label) != (upload.length, upload.label):
                raise self._abort(
                    party,
                    f"it sums {upload.length} values of {upload.label!r}, "
                    f"{other.party} {other.length} of {other.label!r}",
                )
        cohort = self._job.cohort_hash(self._hellos[each] for each in self._cohort)
        self._job.verify(party, self.phase, upload.signature, self._job.upload_bytes(cohort, upload))
        current.uploads[party] = upload
        if len(current.uploads) < len(self._cohort):
            return []
        self._bound = True
        return self._to_all(self._present & set(self._cohort), self._uploads(current))

    def _uploads(self, current: _Sum) -> pb.SumToMember:
        uploads = [current.uploads[each] for each in self._cohort]
        return pb.SumToMember(uploads=pb.SumUploads(uploads=uploads))

    def _late(self, message: pb.SumCommit | pb.SumOpening) -> bool:
        """Whether a message belongs to a sum that is through, or to an attempt that was given up."""
        current = self._sum
        return current is not None and (message.number, message.attempt) < (current.number, current.attempt)

    def _on_commit(self, party: str, commit: pb.SumCommit) -> Sending:
        current = self._sum
        if self._late(commit):
            return []
        if current is None or len(current.uploads) < len(self._cohort) or commit.party != party:
            raise self._abort(party, "committed out of order")
        if party in current.commits:
            return []
        if (commit.number, commit.attempt) != (current.number, current.attempt):
            raise self._abort(party, "committed to another sum")
        if len(commit.agreed) != 32 or len(commit.signature) != 64:
            raise self._abort(party, "its commitment has the wrong size")
        current.commits[party] = commit
        if len(current.commits) < len(self._cohort):
            return []
        return self._to_all(self._present & set(self._cohort), *self._totals(current))

    def _totals(self, current: _Sum) -> list[pb.SumToMember]:
        chunks = current.uploads[self._cohort[0]].chunks
        commits = pb.SumCommits(commits=[current.commits[each] for each in self._cohort], chunks=chunks)
        where = {"number": current.number, "attempt": current.attempt}
        parts = (pb.SumChunk(index=i, content=current.adder.total(i), **where) for i in range(chunks))
        return [pb.SumToMember(commits=commits), *(pb.SumToMember(chunk=part) for part in parts)]

    def _on_opening(self, party: str, opening: pb.SumOpening) -> Sending:
        current = self._sum
        if self._late(opening):
            return []
        if current is None or len(current.commits) < len(self._cohort) or opening.party != party:
            raise self._abort(party, "opened out of order")
        if (opening.number, opening.attempt) != (current.number, current.attempt):
            raise self._abort(party, "opened another sum")
        if len(opening.sealed) > _SHARE_BYTES * len(self._cohort):
            raise self._abort(party, "its opening is too large")
        current.openings[party] = opening
        if len(current.openings) < len(self._cohort) or current.closed:
            return []
        return self._close(current)

    def _close(self, current: _Sum) -> Sending:
        current.closed = True
        return self._to_all(self._present & set(self._cohort), self._openings(current))

    def _openings(self, current: _Sum) -> pb.SumToMember:
        openings = [current.openings[each] for each in self._cohort if each in current.openings]
        return pb.SumToMember(openings=pb.SumOpenings(openings=openings))
