"""A member's name: `spiffe://<network>/<role>/<name>`."""

import re
from dataclasses import dataclass
from enum import StrEnum

from ..errors import ConfigError


class Role(StrEnum):
    """What an institution is in the network."""

    BANK = "bank"
    PAYMENT = "payment"
    TELECOM = "telecom"
    CENTRE = "centre"
    REGULATOR = "regulator"
    COORDINATOR = "coordinator"


_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_NETWORK = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, order=True)
class MemberName:
    """Network, role and name; raises `ConfigError` for parts that are not DNS labels."""

    network: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.name):
            raise ConfigError(f"name {self.name!r}: use lower-case letters, digits and hyphens, at most 40")
        if not _NETWORK.fullmatch(self.network) or ".." in self.network:
            raise ConfigError(f"network {self.network!r}: use a lower-case DNS name")

    def __str__(self) -> str:
        return f"spiffe://{self.network}/{self.role.value}/{self.name}"

    @property
    def dns(self) -> str:
        """The DNS name in the certificate: relays route by it, TLS clients check it."""
        return f"{self.name}.{self.role.value}.{self.network}"

    @classmethod
    def parse(cls, uri: str) -> "MemberName":
        """Raise `ConfigError` unless `uri` is exactly what `str` would give."""
        parts = uri.removeprefix("spiffe://").split("/")
        if not uri.startswith("spiffe://") or len(parts) != 3:
            raise ConfigError(f"{uri!r} is not spiffe://<network>/<role>/<name>")
        try:
            role = Role(parts[1])
        except ValueError:
            raise ConfigError(f"{uri!r}: role is one of {', '.join(Role)}") from None
        return cls(parts[0], role, parts[2])
