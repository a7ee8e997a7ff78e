"""A node's own TLS key and certificate as they stand on disk now: `enroll` replaces them under a running node."""

import threading
import time
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec

from ..errors import ConfigError, Refused
from . import certificates
from .keys import check_private
from .names import MemberName

_LOOK_SECONDS = 1.0


class Identity(NamedTuple):
    """PEM of the private key and of the certificate for it."""

    key: bytes
    certificate: bytes


class OwnIdentity:
    """Reads the pair again when either file changes. A pair that does not fit together changes nothing."""

    def __init__(self, keys: Path, certs: Path, name: MemberName, ca: x509.Certificate) -> None:
        """Raise `ConfigError` naming the file that is missing, or does not fit the others."""
        self._key, self._certificate = keys / "tls.key", certs / "node.crt"
        self._name, self._ca = name, ca
        self._guard = threading.Lock()
        self._stamps = self._stamped()
        self._looked = time.monotonic()
        self._identity = self._read()

    def _stamped(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in (self._key, self._certificate))
        except OSError:
            return ()

    def _read(self) -> Identity:
        check_private(self._key)
        try:
            key = ser.load_pem_private_key(self._key.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}; has the CA signed this node?") from error
        except ValueError as error:
            raise ConfigError(f"{self._certificate} and {self._key} are PEM files") from error
        if certificates.member_of(certificate) != self._name:
            raise ConfigError(f"{self._certificate} is for {certificates.member_of(certificate)}")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not certificates.same_key(certificate, key):
            raise ConfigError(f"{self._certificate} is not for the key in {self._key}")
        try:
            certificates.check_issued(certificate, self._ca)
        except Refused as error:
            raise ConfigError(f"{self._certificate}: {error}") from error
        pem = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        return Identity(pem, certificates.pem(certificate))

    @property
    def current(self) -> Identity:
        """The newest pair that fits together; the files are looked at once a second at most. From any thread."""
        with self._guard:
            if time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                stamps = self._stamped()
                if stamps != self._stamps:
                    try:
                        self._identity = self._read()
                        self._stamps = stamps
                    except ConfigError:
                        pass  # between the two files; `doctor` names what stays wrong
            return self._identity
