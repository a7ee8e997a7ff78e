"""What members and coordinator of a job agree on before the first message, and how they sign."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from lianfang.v1 import sums_pb2 as pb

from .. import signatures
from ..encoding import frame
from ..errors import MisuseError, SignatureError
from .cohorts import MINIMUM
from .errors import SumAborted

_DOMAIN = "lianfang/v1/sum"
MAX_ATTEMPTS = 8  # of one sum
MAX_GENERATIONS = 64  # beginnings of one job
MAX_PARTIES = 80  # all uploads' headers fit one message
MAX_LENGTH = 1 << 23  # values of one sum


@dataclass(frozen=True)
class Party:
    """A member of the network, as the member list binds it: 32-byte Ed25519 and X25519 keys."""

    id: str
    signing_key: bytes
    sealing_key: bytes


@dataclass(frozen=True)
class Job:
    """`hash` is SHA-256 over the job descriptor, which all have approved; it is part of every signature and key.

    Observers add zeros and learn the sum; they count for no minimum. Without `bfv` the inner lock, the masks,
    stands alone: for measurements and simulations.
    """

    hash: bytes
    parties: tuple[Party, ...]
    observers: frozenset[str] = frozenset()
    minimum: int = MINIMUM
    bfv: bool = True
    _by_id: dict[str, Party] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.hash) != 32:
            raise MisuseError("a job's hash has 32 bytes")
        by_id = {party.id: party for party in self.parties}
        if len(by_id) != len(self.parties) or not self.observers <= by_id.keys():
            raise MisuseError("a job names each party once, and observers are parties")
        if len(by_id) > MAX_PARTIES:
            raise MisuseError(f"a job has at most {MAX_PARTIES} parties")
        object.__setattr__(self, "_by_id", by_id)

    def party(self, party_id: str, phase: str) -> Party:
        """Raise `SumAborted` for who is not of the job."""
        party = self._by_id.get(party_id)
        if party is None:
            raise SumAborted(phase, party_id, "is not a party of this job")
        return party

    def contributors(self, members: Iterable[str]) -> frozenset[str]:
        """Those who count."""
        return frozenset(members) - self.observers

    # -- what is signed --------------------------------------------------------------------------------------

    def verify(self, party_id: str, phase: str, signature: bytes, data: bytes) -> None:
        """Raise `SumAborted` naming the party whose signature does not hold."""
        try:
            signatures.verify(
                self.party(party_id, phase).signing_key, data, signature, "its signature does not hold"
            )
        except SignatureError as error:
            raise SumAborted(phase, party_id, str(error)) from error

    def hello_bytes(self, hello: pb.SumHello) -> bytes:
        """What a member signs when it says hello."""
        return frame(_DOMAIN + "/hello", self.hash, hello.generation, hello.party, hello.ephemeral)

    def cohort_hash(self, hellos: Iterable[pb.SumHello]) -> bytes:
        """32 bytes over everybody's hello."""
        parts = [part for hello in hellos for part in (self.hello_bytes(hello), hello.signature)]
        return hashlib.sha256(frame(_DOMAIN + "/cohort", self.hash, *parts)).digest()

    def key_bytes(self, cohort: bytes, key: pb.SumJobKey) -> bytes:
        """What the maker of the job key signs for each member."""
        return frame(_DOMAIN + "/key", self.hash, cohort, key.party, hashlib.sha256(key.sealed).digest())

    def upload_bytes(self, cohort: bytes, upload: pb.SumUpload) -> bytes:
        """What a member signs with its contribution: everything but the signature."""
        shares = [part for share in upload.shares for part in (share.party, share.sealed)]
        return frame(
            _DOMAIN + "/upload",
            *(self.hash, cohort, upload.generation, upload.party, upload.number, upload.attempt),
            *(upload.label, upload.length),
            *(upload.chunks, upload.content_hash, upload.previous, upload.seed_hash, *shares),
        )

    def agreed(self, cohort: bytes, signed: Iterable[bytes], uploads: Iterable[pb.SumUpload]) -> bytes:
        """32 bytes over all uploads of a sum, given also as what each member signed."""
        parts = [part for data, up in zip(signed, uploads, strict=True) for part in (data, up.signature)]
        return hashlib.sha256(frame(_DOMAIN + "/agreed", self.hash, cohort, *parts)).digest()

    def commit_bytes(self, cohort: bytes, commit: pb.SumCommit) -> bytes:
        """What a member signs once per sum."""
        return frame(
            _DOMAIN + "/commit",
            *(self.hash, cohort, commit.party, commit.number, commit.attempt, commit.agreed),
        )
