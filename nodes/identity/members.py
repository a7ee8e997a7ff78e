"""The CA-signed member list: it binds each member's name to its certificates, signing and sealing keys."""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from lianfang.v1 import members_pb2 as pb

from protocols.encoding import frame
from protocols.identifiers import institutions
from protocols.ledger import checkpoints, notes
from protocols.ledger.notes import VerifierKey

from ..errors import ConfigError, NotFound, Refused
from ..files import write_atomic
from . import certificates
from .names import MemberName, Role

_DOMAIN = "lianfang/v1/member-list"
VALID_DAYS = 90  # a list that somebody withholds serves no longer


@dataclass(frozen=True)
class Member:
    """One member as the list binds it."""

    name: MemberName
    endpoint: str
    signing_key: bytes
    sealing_key: bytes
    certificates: tuple[bytes, ...]
    ledger_endpoint: str
    log_key: bytes
    witness_key: bytes

    @functools.cached_property
    def id(self) -> str:
        """The SPIFFE id."""
        return str(self.name)

    @functools.cached_property
    def verifier(self) -> Ed25519PublicKey:
        """The key that signs this member's statements."""
        return Ed25519PublicKey.from_public_bytes(self.signing_key)

    @functools.cached_property
    def log(self) -> VerifierKey:
        """The key of this member's log; its name is the log's origin."""
        return VerifierKey(origin(self.name), notes.ED25519, self.log_key)

    @functools.cached_property
    def witness(self) -> VerifierKey:
        """The key that cosigns others' heads."""
        return VerifierKey(f"{origin(self.name)}/witness", notes.COSIGNATURE, self.witness_key)

    @functools.cached_property
    def _pems(self) -> list[tuple[float, bytes]]:
        loaded = [x509.load_der_x509_certificate(data) for data in self.certificates]
        return [(each.not_valid_after_utc.timestamp(), certificates.pem(each)) for each in loaded]

    def trusted_pem(self) -> bytes:
        """This member's valid certificates: what a TLS client of it trusts, and nothing else."""
        now = time.time()
        valid = b"".join(pem for until, pem in self._pems if until > now)
        if not valid:
            raise Refused(f"{self.name.name}: its certificate has expired", "EXPIRED_CERTIFICATE")
        return valid


def origin(name: MemberName) -> str:
    """A member's log: its name without a scheme."""
    return str(name).removeprefix("spiffe://")


def sign(key: ec.EllipticCurvePrivateKey, members: pb.MemberList) -> bytes:
    """Serialise and sign; the bytes of a `SignedMemberList`."""
    data = members.SerializeToString(deterministic=True)
    signature = key.sign(frame(_DOMAIN, data), ec.ECDSA(hashes.SHA256()))
    return pb.SignedMemberList(list=data, signature=signature).SerializeToString(deterministic=True)


class MemberList:
    """A verified list. `signed` are the bytes to pass on."""

    def __init__(self, signed: bytes, ca: x509.Certificate) -> None:
        """Raise `ConfigError` unless the CA signed it and every entry is well formed."""
        self.signed = signed
        envelope, self._pb = pb.SignedMemberList(), pb.MemberList()
        public = ca.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ConfigError("the CA's key is not an elliptic-curve key")
        try:
            envelope.ParseFromString(signed)
            public.verify(envelope.signature, frame(_DOMAIN, envelope.list), ec.ECDSA(hashes.SHA256()))
            self._pb.ParseFromString(envelope.list)
        except InvalidSignature as error:
            raise ConfigError("the member list is not signed by the network's CA") from error
        except Exception as error:
            raise ConfigError("the member list cannot be parsed") from error
        self.network = self._pb.network
        self.version = self._pb.version
        self.issued_at = self._pb.issued_at
        self.valid_until = self._pb.valid_until
        self._members: dict[str, Member] = {}
        taken: set[bytes] = set()
        for entry in self._pb.members:
            name = MemberName.parse(entry.id)
            if name.network != self.network or entry.dns != name.dns:
                raise ConfigError(f"the member list names {entry.id}, which is not of {self.network}")
            keys = (entry.signing_key, entry.sealing_key, entry.log_key, entry.witness_key)
            if any(len(key) != 32 for key in keys) or len(set(keys)) != len(keys):
                raise ConfigError(f"the member list has a malformed key for {entry.id}")
            if not taken.isdisjoint(keys):  # one key would count as two witnesses
                raise ConfigError(f"the member list gives {entry.id} a key of another member")
            taken.update(keys)
            self._members[entry.id] = Member(
                name,
                entry.endpoint,
                entry.signing_key,
                entry.sealing_key,
                tuple(entry.certificates),
                entry.ledger_endpoint,
                entry.log_key,
                entry.witness_key,
            )
        self.regulator_signs = self._pb.regulator_signs
        self.institutions = self._pb.institutions  # hash of the directory of institutions, or empty
        if len(self.institutions) not in (0, institutions.HASH_BYTES):
            raise ConfigError("the member list has a malformed hash of the directory of institutions")
        self._revoked = {bytes(entry.serial): entry.id for entry in self._pb.revoked}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def has(self, member_id: str) -> bool:
        """Whether a SPIFFE id is a member's."""
        return member_id in self._members

    def witnesses(self, owner: str) -> list[Member]:
        """Who witnesses a member's log: every other member but coordinators, which keep nothing."""
        return [each for each in self if each.id != owner and each.name.role is not Role.COORDINATOR]

    def quorum(self, owner: str, configured: int = 0) -> int:
        """How many of them make a head published: what their number needs, or more where configured."""
        return max(configured, checkpoints.quorum(len(self.witnesses(owner))))

    def message(self) -> pb.MemberList:
        """A copy to change and sign anew."""
        copy = pb.MemberList()
        copy.CopyFrom(self._pb)
        return copy

    def get(self, member_id: str) -> Member:
        """By SPIFFE id; raises `Refused` for who is not a member."""
        member = self._members.get(member_id)
        if member is None:
            raise Refused(f"{member_id} is not a member of {self.network}", "NOT_A_MEMBER")
        return member

    def find(self, text: str) -> Member:
        """By SPIFFE id, `role/name` or bare name; raises `NotFound`."""
        matches = [
            member
            for member in self
            if text in (member.id, member.name.name, f"{member.name.role.value}/{member.name.name}")
        ]
        if len(matches) != 1:
            known = ", ".join(member.name.name for member in self)
            raise NotFound(f"{text!r} names {len(matches)} members; known: {known}")
        return matches[0]

    def check_current(self) -> None:
        """Raise `Refused` once the list itself has expired."""
        if time.time() > self.valid_until:
            raise Refused("the member list has expired: ask the CA for a new one", "EXPIRED_MEMBER_LIST")

    def authenticate(self, certificate: x509.Certificate) -> Member:
        """The member that presents this certificate.

        Raises `Refused`: revoked, unknown, expired, of another network, or not the one the list binds.
        """
        serial = certificate.serial_number.to_bytes(20, "big")
        if serial in self._revoked:
            raise Refused(f"the certificate of {self._revoked[serial]} is revoked", "REVOKED_CERTIFICATE")
        try:
            name = certificates.member_of(certificate)
        except ConfigError as error:
            raise Refused(str(error), "FOREIGN_CERTIFICATE") from error
        if name.network != self.network:
            raise Refused(f"{name} is of another network than {self.network}", "FOREIGN_NETWORK")
        member = self.get(str(name))
        if certificates.der(certificate) not in member.certificates:
            raise Refused(f"the member list binds another certificate to {name}", "UNBOUND_CERTIFICATE")
        certificates.check_dates(certificate)
        self.check_current()
        return member


class MemberBook:
    """The newest member list a node has, on disk and in memory. Never goes back to an older version."""

    def __init__(self, path: Path, ca: x509.Certificate) -> None:
        self._path, self._ca = path, ca
        self._stamp = 0.0
        self._checked = 0.0
        self._current = self._read()

    def _read(self) -> MemberList:
        try:
            self._stamp = self._path.stat().st_mtime
            return MemberList(self._path.read_bytes(), self._ca)
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}; has the CA signed this node?") from error
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error}") from error

    @property
    def current(self) -> MemberList:
        """Looks at the file at most once a second, so that a new list works without a restart."""
        if time.monotonic() - self._checked > 1.0:
            self._checked = time.monotonic()
            try:
                if self._path.stat().st_mtime != self._stamp:
                    candidate = self._read()
                    if candidate.version >= self._current.version:
                        self._current = candidate
            except (OSError, ConfigError):
                pass  # a list that does not verify changes nothing; `doctor` names it
        return self._current

    def offer(self, signed: bytes) -> bool:
        """Take a list that a peer sent, if the CA signed it, it is of this network and newer."""
        candidate = MemberList(signed, self._ca)
        if candidate.network != self._current.network or candidate.version <= self._current.version:
            return False
        write_atomic(self._path, signed)
        self._stamp = self._path.stat().st_mtime
        self._current = candidate
        return True
