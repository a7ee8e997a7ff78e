"""The network's CA: signs requests and the member list, revokes, and never makes a node's key.

A request and a bundle are JSON files that people can read and mail; neither holds a secret.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from lianfang.v1 import members_pb2 as pb

from protocols import signatures
from protocols.encoding import frame
from protocols.errors import SignatureError
from protocols.identifiers import Directory

from ..errors import ConfigError
from ..files import write_atomic, write_secret
from . import certificates, members
from .keys import NodeKeys, check_private, load_tls
from .names import MemberName

_DOMAIN = "lianfang/v1/enrolment"
_DAY = 86_400


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_ENDPOINT = re.compile(r"([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", re.ASCII)
_KEYS = ("signing_key", "sealing_key", "log_key", "witness_key")


def _proof(csr_pem: str, endpoints: tuple[str, str], keys: dict[str, bytes]) -> bytes:
    return frame(_DOMAIN, csr_pem, *endpoints, *(keys[field] for field in _KEYS))


def check_endpoint(what: str, value: str) -> None:
    """Raise `ConfigError` unless others can be told to connect to `value`: host:port, with a port from 1 to 65535."""
    if "://" in value:
        raise ConfigError(
            f"{what}: {value!r}: host:port without a scheme is needed, such as bank.example:7443"
        )
    if not _ENDPOINT.fullmatch(value):
        raise ConfigError(
            f"{what}: {value!r} is not host:port, such as bank.example:7443 or [2001:db8::1]:7443"
        )
    if value.rpartition(":")[0] in ("0.0.0.0", "[::]"):  # noqa: S104  # refused
        raise ConfigError(
            f"{what}: {value!r}: to listen on all addresses is no address that others can reach"
        )
    if not 0 < int(value.rpartition(":")[2]) < 65_536:
        raise ConfigError(f"{what}: {value!r}: a port is from 1 to 65535")


def fingerprint(text: str) -> str:
    """Of a request, to be compared by telephone: SHA-256 in groups of four."""
    digest = hashlib.sha256(b"lianfang/v1/request\x1f" + text.strip().encode()).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 40, 4))


def make_request(
    keys: NodeKeys,
    name: MemberName,
    endpoint: str,
    ledger_endpoint: str,
    tls: ec.EllipticCurvePrivateKey | None = None,
) -> str:
    """What a node hands to the CA: its names and public keys, each proven. `tls` is a new TLS key, for a renewal.

    Raises `ConfigError` for an address that the CA would refuse.
    """
    check_endpoint("advertise", endpoint)
    check_endpoint("ledger-advertise", ledger_endpoint)
    csr = certificates.make_request(tls or keys.tls, name).public_bytes(Encoding.PEM).decode()
    public = {
        "signing_key": keys.signing_public(),
        "sealing_key": keys.sealing_public(),
        "log_key": keys.log_public(),
        "witness_key": keys.witness_public(),
    }
    document = {
        "lianfang": "enrolment request",
        "member": str(name),
        "endpoint": endpoint,
        "ledger_endpoint": ledger_endpoint,
        "certificate_request": csr,
        **{field: _b64(key) for field, key in public.items()},
        "proof": _b64(keys.signing.sign(_proof(csr, (endpoint, ledger_endpoint), public))),
    }
    return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True)
class Request:
    """A verified enrolment request."""

    name: MemberName
    endpoint: str
    ledger_endpoint: str
    public: ec.EllipticCurvePublicKey
    keys: dict[str, bytes]  # by the member list's field

    @property
    def signing_key(self) -> bytes:
        """32 bytes."""
        return self.keys["signing_key"]


def _document(text: str, kind: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        if document["lianfang"] != kind:
            raise KeyError(kind)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is not a Lianfang {kind}") from error
    return dict(document)


def _field(document: dict[str, Any], field: str, where: str) -> bytes:
    try:
        return base64.b64decode(document[field], validate=True)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: field {field} is missing or not base64") from error


def read_request(text: str, where: str = "request") -> Request:
    """Raise `ConfigError` unless names agree and every key proves itself."""
    document = _document(text, "enrolment request", where)
    keys = {field: _field(document, field, where) for field in _KEYS}
    for field, data in keys.items():
        if len(data) != 32:
            raise ConfigError(f"{where}: field {field} does not hold 32 bytes")
    endpoint, ledger_endpoint = str(document.get("endpoint", "")), str(document.get("ledger_endpoint", ""))
    csr_pem = str(document.get("certificate_request", ""))
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
    except ValueError as error:
        raise ConfigError(f"{where}: field certificate_request is not a PEM request") from error
    public = csr.public_key()
    if not csr.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{where}: the certificate request is not signed by its own P-256 key")
    name = certificates.member_of(csr)
    if str(name) != document.get("member"):
        raise ConfigError(f"{where}: field member and the certificate request name different members")
    for field, value in (("endpoint", endpoint), ("ledger_endpoint", ledger_endpoint)):
        check_endpoint(f"{where}: field {field}", value)
    proven = _proof(csr_pem, (endpoint, ledger_endpoint), keys)
    complaint = f"{where}: the signing key does not prove itself"
    try:
        signatures.verify(keys["signing_key"], proven, _field(document, "proof", where), complaint)
    except SignatureError as error:
        raise ConfigError(str(error)) from error
    if len(set(keys.values())) != len(keys):
        raise ConfigError(f"{where}: two keys are one and the same")
    return Request(name, endpoint, ledger_endpoint, public, keys)


@dataclass(frozen=True)
class Bundle:
    """What the CA gives back: the node's certificate, the CA's, and the member list."""

    certificate: x509.Certificate
    ca: x509.Certificate
    members: bytes

    def to_json(self) -> str:
        """A file that holds no secret."""
        return (
            json.dumps(
                {
                    "lianfang": "enrolment bundle",
                    "member": str(certificates.member_of(self.certificate)),
                    "certificate": certificates.pem(self.certificate).decode(),
                    "ca": certificates.pem(self.ca).decode(),
                    "members": _b64(self.members),
                },
                indent=2,
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str, where: str = "bundle") -> "Bundle":
        """Raise `ConfigError` unless the parts fit together."""
        document = _document(text, "enrolment bundle", where)
        try:
            ca = x509.load_pem_x509_certificate(str(document.get("ca", "")).encode())
            own = x509.load_pem_x509_certificate(str(document.get("certificate", "")).encode())
        except ValueError as error:
            raise ConfigError(f"{where}: fields ca and certificate are not PEM certificates") from error
        certificates.check_issued(own, ca)
        signed = _field(document, "members", where)
        members.MemberList(signed, ca)
        return cls(own, ca, signed)


class Authority:
    """A CA folder: `ca.key` (0600), `ca.crt`, `members.bin`."""

    def __init__(self, folder: Path, passphrase: Callable[[], str] | None = None) -> None:
        """Open an existing CA; raises `ConfigError`. `passphrase` is asked where the key is under one."""
        self.folder = folder
        path = folder / "ca.key"
        check_private(path)
        data = path.read_bytes()
        secret = None
        if b"ENCRYPTED" in data:
            if passphrase is None:
                raise ConfigError(f"{path} is under a passphrase")
            secret = passphrase().encode()
        try:
            key = ser.load_pem_private_key(data, secret)
        except ValueError as error:
            raise ConfigError(f"{path}: the passphrase is wrong, or this is no private key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{path} is not a P-256 key")
        self._key = key
        self.certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        self.members = members.MemberList((folder / "members.bin").read_bytes(), self.certificate)

    @classmethod
    def create(cls, folder: Path, network: str, passphrase: str = "") -> "Authority":
        """A new CA for a network, its key under a passphrase; raises `ConfigError` where there is one already."""
        if (folder / "ca.key").exists():
            raise ConfigError(f"{folder} holds a CA already")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificates.make_authority(key, network)
        write_atomic(folder / "ca.crt", certificates.pem(certificate))
        write_atomic(folder / "members.bin", members.sign(key, cls._stamp(pb.MemberList(network=network))))
        how = ser.BestAvailableEncryption(passphrase.encode()) if passphrase else ser.NoEncryption()
        text = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, how)
        write_secret(folder / "ca.key", text)
        return cls(folder, lambda: passphrase)

    @staticmethod
    def _stamp(message: pb.MemberList) -> pb.MemberList:
        message.version += 1
        message.issued_at = int(time.time())
        message.valid_until = message.issued_at + members.VALID_DAYS * _DAY
        entries = sorted(message.members, key=lambda entry: entry.id)
        del message.members[:]
        message.members.extend(entries)
        return message

    def _publish(self, message: pb.MemberList) -> None:
        signed = members.sign(self._key, self._stamp(message))
        self.members = members.MemberList(signed, self.certificate)
        write_atomic(self.folder / "members.bin", signed)

    def sign(
        self, request: Request, days: int = certificates.NODE_DAYS, keep_old_key: bool = False
    ) -> Bundle:
        """Issue a certificate and enter the member, or renew it with the same keys or a new TLS key.

        `keep_old_key`: in a planned renewal the certificate for the former TLS key serves until the node has enrolled; else it is
        revoked at once, since that key may be in other hands.
        Raises `ConfigError` for another network, or for another signing key under a known name (revoke first).
        """
        if request.name.network != self.members.network:
            raise ConfigError(f"{request.name} is not of the network {self.members.network}")
        message = self.members.message()
        known = [entry for entry in message.members if entry.id == str(request.name)]
        taken = [e.id for e in message.members if e.id.endswith(f"/{request.name.name}") and e not in known]
        if taken:
            raise ConfigError(f"the name {request.name.name} is taken by {taken[0]}")
        for field in ("signing_key", "log_key", "witness_key") if known else ():
            if getattr(known[0], field) != request.keys[field]:
                what = field.replace("_", " ")
                raise ConfigError(f"{request.name} is a member with another {what}; revoke it first")
        others = {getattr(entry, field) for entry in message.members if entry not in known for field in _KEYS}
        if not others.isdisjoint(request.keys.values()):
            raise ConfigError(f"{request.name} brings a key of another member")
        if not known and any(entry.id == str(request.name) for entry in message.revoked):
            raise ConfigError(
                f"{request.name} was revoked; its log and its witnesses' memory of it stay under that name: choose another"
            )
        certificate = certificates.issue(self._key, self.certificate, request.public, request.name, days)
        entry = known[0] if known else message.members.add()
        entry.id, entry.dns, entry.endpoint = str(request.name), request.name.dns, request.endpoint
        entry.ledger_endpoint = request.ledger_endpoint
        for field, key in request.keys.items():
            setattr(entry, field, key)
        kept = []
        for data in entry.certificates:
            old = x509.load_der_x509_certificate(data)
            if keep_old_key or old.public_key() == request.public:
                kept.append(data)
            else:  # a new key: the old one may be in other hands
                message.revoked.add(
                    serial=old.serial_number.to_bytes(20, "big"), id=entry.id, at=int(time.time())
                )
        del entry.certificates[:]
        entry.certificates.extend([*kept[-1:], certificates.der(certificate)])  # the one before still serves
        self._publish(message)
        return Bundle(certificate, self.certificate, self.members.signed)

    def set_institutions(self, directory: Directory | None) -> int:
        """Put a directory of institutions, or none, in force for the network; returns the member list's version."""
        message = self.members.message()
        message.institutions = directory.hash if directory is not None else b""
        if directory is not None:
            write_atomic(self.folder / "institutions.tsv", directory.encode())
        self._publish(message)
        return self.members.version

    def reissue(self, regulator_signs: bool | None = None) -> int:
        """Sign the member list anew before it expires; returns its version.

        `regulator_signs`: from now on contracts need the regulators' signatures too, or no longer.
        """
        message = self.members.message()
        if regulator_signs is not None:
            message.regulator_signs = regulator_signs
        self._publish(message)
        return self.members.version

    def revoke(self, name: str) -> list[str]:
        """Strike a member off and revoke its certificates; returns their serials."""
        member = self.members.find(name)
        message = self.members.message()
        serials = []
        for data in member.certificates:
            serial = x509.load_der_x509_certificate(data).serial_number
            serials.append(f"{serial:x}")
            message.revoked.add(serial=serial.to_bytes(20, "big"), id=member.id, at=int(time.time()))
        entries = [entry for entry in message.members if entry.id != member.id]
        del message.members[:]
        message.members.extend(entries)
        self._publish(message)
        return serials


def install(bundle: Bundle, keys: NodeKeys, name: MemberName, folder: Path) -> None:
    """Put a bundle in the node's `certs` folder. Raises `ConfigError` where it is not this node's."""
    if certificates.member_of(bundle.certificate) != name:
        raise ConfigError(f"the bundle is for {certificates.member_of(bundle.certificate)}, not {name}")
    renewed = keys.folder / "tls.key.new"
    is_renewal = renewed.exists() and certificates.same_key(bundle.certificate, load_tls(renewed))
    if not is_renewal and not certificates.same_key(bundle.certificate, keys.tls):
        raise ConfigError("the bundle's certificate is not for this node's key")
    folder.mkdir(parents=True, exist_ok=True)
    ca_path = folder / "ca.crt"
    if ca_path.exists() and ca_path.read_bytes() != certificates.pem(bundle.ca):
        raise ConfigError(f"{ca_path} is another CA; remove it by hand if the network really has a new one")
    listed = members.MemberList(bundle.members, bundle.ca)
    path = folder / "members.bin"
    if path.exists() and members.MemberList(path.read_bytes(), bundle.ca).version > listed.version:
        raise ConfigError("the bundle's member list is older than the one this node has")
    member = listed.get(str(name))
    for what, bound, own in (
        ("signing", member.signing_key, keys.signing_public()),
        ("log", member.log_key, keys.log_public()),
        ("witness", member.witness_key, keys.witness_public()),
    ):
        if bound != own:
            raise ConfigError(f"the member list binds another {what} key to this node")
    write_atomic(ca_path, certificates.pem(bundle.ca))
    write_atomic(folder / "node.crt", certificates.pem(bundle.certificate))
    if is_renewal:  # a running node takes up the pair once both are there
        renewed.replace(keys.folder / "tls.key")
    write_atomic(path, bundle.members)
