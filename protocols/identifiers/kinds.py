"""Kinds of identifiers, and normalising a raw value of one."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from ..errors import IdentifierError
from . import accounts, crypto, devices, documents, hosts, phones
from .institutions import Directory
from .text import check_whole, clean, refuse


class Kind(StrEnum):
    """The kinds of identifiers, by the name that is part of the canonical bytes."""

    CARD = "card"
    ACCOUNT = "account"
    PHONE = "phone"
    RESIDENT_ID = "resident-id"
    USCC = "uscc"
    PASSPORT = "passport"
    FOREIGN_ID = "foreign-id"
    TAX_ID = "tax-id"
    EMAIL = "email"
    DOMAIN = "domain"
    IP = "ip"
    DEVICE = "device"
    CRYPTO = "crypto"
    NAME_BIRTH = "name-birth"


KINDS = tuple(Kind)
WITH_COUNTRY = frozenset({Kind.PASSPORT, Kind.FOREIGN_ID, Kind.TAX_ID})
REVIEW_ONLY = frozenset({Kind.NAME_BIRTH})  # a hit is never more than "review"
_X_MAY_STAND = frozenset({Kind.EMAIL, Kind.DOMAIN, Kind.CRYPTO})


class Identifier(NamedTuple):
    """A normalised identifier. `note` tells a person something that is no reason to refuse."""

    kind: Kind
    value: str
    note: str = ""

    @property
    def canonical(self) -> bytes:
        """`kind ‖ 0x1f ‖ value`, UTF-8."""
        return (self.kind + "\x1f" + self.value).encode()

    @classmethod
    def from_canonical(cls, data: bytes) -> "Identifier":
        """The inverse of `canonical`; raises `IdentifierError`."""
        kind, separator, value = data.decode().partition("\x1f")
        if not separator or not value:
            raise IdentifierError("malformed", "not a canonical identifier")
        return cls(Kind(kind), value)


def normalise(
    kind: Kind | str,
    value: str,
    country: str = "",
    institution: str = "",
    default_region: str = "CN",
    directory: Directory | None = None,
) -> Identifier:
    """Bring a raw value to its canonical form.

    `country` is a country's name or ISO 3166 code (passports, foreign and tax IDs need it), `institution` a bank's
    code (accounts need it), `default_region` the region of phone numbers without a country code ("" for none),
    `directory` the network's directory of institutions.
    Raises `IdentifierError`; its message never repeats the value.
    """
    if not isinstance(kind, Kind):
        try:
            kind = Kind(kind)
        except ValueError:
            raise refuse("unknown-kind", f"kind is one of {', '.join(KINDS)}") from None
    text = clean(value)
    if not text.isdecimal() and kind is not Kind.NAME_BIRTH:  # most values are digits, and then not mangled
        check_whole(text, kind in _X_MAY_STAND)
    if kind is Kind.PHONE:
        return Identifier(kind, phones.phone(text, default_region))
    if kind is Kind.ACCOUNT:
        return Identifier(kind, *accounts.account(text, institution, directory))
    if kind in WITH_COUNTRY:
        return Identifier(kind, documents.document(text, country))
    if kind is Kind.CARD:
        return Identifier(kind, *accounts.card(text))
    return Identifier(kind, _SIMPLE[kind](text))


def canonical_each(kind: Kind, values: Sequence[str], default_region: str = "CN") -> list[bytes | None]:
    """`normalise(…).canonical` of values of one kind that needs neither country nor institution; None for one that is refused."""
    if kind is Kind.PHONE and default_region == "CN":
        # What `phones.phone` finds first: digits alone, which nothing else has a say in.
        mobile, before = phones.MOBILE_CN.fullmatch, Identifier(kind, "+86").canonical
        lines = "\n".join(values)
        if phones.MOBILES_CN.fullmatch(lines) and lines.count("\n") == len(values) - 1:  # as nearly always
            return list((before + lines.encode().replace(b"\n", b"\n" + before)).split(b"\n"))
        return [
            before + value.encode() if mobile(value) else _canonical(kind, value, default_region)
            for value in values
        ]
    return [_canonical(kind, value, default_region) for value in values]


def _canonical(kind: Kind, value: str, default_region: str) -> bytes | None:
    try:
        return normalise(kind, value, "", "", default_region).canonical
    except IdentifierError:
        return None


_SIMPLE: dict[Kind, Callable[[str], str]] = {
    Kind.RESIDENT_ID: documents.resident_id,
    Kind.USCC: documents.uscc,
    Kind.EMAIL: hosts.email,
    Kind.DOMAIN: hosts.domain,
    Kind.IP: hosts.ip,
    Kind.DEVICE: devices.device,
    Kind.CRYPTO: crypto.crypto,
    Kind.NAME_BIRTH: documents.name_birth,
}
