"""What a witness signs and what it refuses (C2SP tlog-witness v1.0.0, add-checkpoint)."""

from dataclasses import dataclass

from .. import merkle
from ..errors import DecodeError, PeerError, ProofError, SignatureError
from . import checkpoints, notes
from .checkpoints import Checkpoint, Head
from .notes import VerifierKey

MAX_BODY = notes.MAX_NOTE
SIZE_TYPE = "text/x.tlog.size"


class Refusal(PeerError):
    """The witness does not cosign: an HTTP status, and for 409 the size that it knows."""

    def __init__(self, status: int, message: str, size: int | None = None) -> None:
        super().__init__(message)
        self.status, self.size = status, size


@dataclass(frozen=True)
class Seen:
    """What a witness keeps of a log: the head that it cosigned last."""

    size: int
    root: bytes


NOTHING = Seen(0, merkle.EMPTY)


@dataclass(frozen=True)
class AddCheckpoint:
    """A request: the size that the log believes the witness to have, the way from there, and the new head."""

    old: int
    proof: tuple[bytes, ...]
    head: bytes  # a signed note

    def __bytes__(self) -> bytes:
        lines = [f"old {self.old}", *map(notes.encode_base64, self.proof), ""]
        return "".join(f"{line}\n" for line in lines).encode() + self.head

    @classmethod
    def parse(cls, body: bytes) -> "AddCheckpoint":
        """Raise `DecodeError`; what parses serialises to the same bytes."""
        if len(body) > MAX_BODY:
            raise DecodeError("the request is too long")
        before, blank, head = body.partition(b"\n\n")
        try:
            first, *lines = before.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise DecodeError("the request is not text") from error
        if not blank or not first.startswith("old "):
            raise DecodeError("the request does not begin with an old size")
        if len(lines) > merkle.MAX_PROOF:
            raise DecodeError(f"a consistency proof has at most {merkle.MAX_PROOF} hashes")
        old = notes.decode_decimal(first.removeprefix("old "), "the old size")
        proof = tuple(notes.decode_base64(line, "a line of the proof") for line in lines)
        if any(len(each) != merkle.HASH for each in proof):
            raise DecodeError("a line of the proof is not a hash")
        return cls(old, proof, head)

    def origin(self) -> str:
        """The log that the head names, unverified."""
        return Checkpoint.parse(notes.Note.parse(self.head).text).origin


def consider(request: AddCheckpoint, log: VerifierKey | None, seen: Seen) -> Head:
    """The verified new head, to be recorded before it is cosigned; raises `Refusal`.

    `log` is the trusted key of the request's origin, `None` where there is none.
    """
    if log is None:
        raise Refusal(404, "no such log is known here")
    try:
        head = checkpoints.open_head(request.head, log, ())
    except SignatureError as error:
        raise Refusal(403, str(error)) from error
    except DecodeError as error:
        raise Refusal(400, str(error)) from error
    new = head.checkpoint
    if request.old > new.size:
        raise Refusal(400, f"the old size {request.old} is larger than the new {new.size}")
    if request.old != seen.size:
        raise Refusal(409, f"the last head cosigned here has size {seen.size}", seen.size)
    if new.size == seen.size and new.root != seen.root:
        raise Refusal(409, f"another root was cosigned here for size {seen.size}", seen.size)
    try:
        merkle.verify_consistency(seen.size, new.size, request.proof, seen.root, new.root)
    except (ProofError, DecodeError) as error:
        raise Refusal(422, str(error)) from error
    return head
