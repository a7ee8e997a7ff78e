"""X.509 as the network uses it: one URI name (who), one DNS name (where), P-256, the CA's signature."""

import datetime as dt

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigError, Refused
from .names import MemberName

NODE_DAYS = 397
CA_DAYS = 3650
SKEW = dt.timedelta(minutes=5)


def now() -> dt.datetime:
    """The time, with its zone."""
    return dt.datetime.now(dt.UTC)


def _subject(common_name: str) -> x509.Name:
    # X.520 allows 64 characters; what counts is in the SAN.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _names(member: MemberName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.DNSName(member.dns), x509.UniformResourceIdentifier(str(member))]
    )


def pem(certificate: x509.Certificate) -> bytes:
    """PEM text."""
    return certificate.public_bytes(Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """DER bytes, as the member list binds them."""
    return certificate.public_bytes(Encoding.DER)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 in groups, for people to compare over the telephone."""
    text = certificate.fingerprint(hashes.SHA256()).hex()
    return ":".join(text[i : i + 4] for i in range(0, 32, 4))


def make_request(key: ec.EllipticCurvePrivateKey, member: MemberName) -> x509.CertificateSigningRequest:
    """A PKCS #10 request that names the member."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(member.dns))
        .add_extension(_names(member), critical=False)
        .sign(key, hashes.SHA256())
    )


def member_of(thing: x509.Certificate | x509.CertificateSigningRequest) -> MemberName:
    """The one member a certificate or request names. Raises `ConfigError` for none, several or others."""
    try:
        names = thing.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise ConfigError("the certificate has no subject alternative name") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ConfigError(f"the certificate names {len(uris)} URIs instead of one")
    member = MemberName.parse(uris[0])
    if names.get_values_for_type(x509.DNSName) != [member.dns] or len(names) != 2:
        raise ConfigError(f"the certificate of {member} must carry the DNS name {member.dns} and no other")
    return member


def make_authority(key: ec.EllipticCurvePrivateKey, network: str) -> x509.Certificate:
    """A self-signed root that may sign nodes and nothing deeper."""
    name, at = _subject(f"{network} network CA"), now()
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - SKEW)
        .not_valid_after(at + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def issue(
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    public: ec.EllipticCurvePublicKey,
    member: MemberName,
    days: int = NODE_DAYS,
) -> x509.Certificate:
    """A node's certificate. It starts 5 minutes ago, so that a clock a little behind accepts it."""
    at = now()
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(member.dns))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - SKEW)
        .not_valid_after(min(at + dt.timedelta(days=days), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(_names(member), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def check_issued(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Raise `Refused` unless `ca` signed the certificate and it is valid now."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Refused("the certificate is not of this network's CA", "FOREIGN_CERTIFICATE") from error
    check_dates(certificate)


def check_dates(certificate: x509.Certificate) -> None:
    """Raise `Refused` where the certificate is not valid now, with 5 minutes' grace for clocks."""
    at = now()
    if at > certificate.not_valid_after_utc + SKEW:
        raise Refused(
            f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}", "EXPIRED_CERTIFICATE"
        )
    if at < certificate.not_valid_before_utc - SKEW:
        raise Refused("the certificate is not valid yet: compare the clocks", "EARLY_CERTIFICATE")


def same_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether the certificate is for this key."""

    def spki(public: object) -> bytes:
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]

    return spki(certificate.public_key()) == spki(key.public_key())
