"""Which kinds a bare value may be. More than one answer means: ask, do not guess."""

import re

from ..errors import IdentifierError
from . import checksums, hosts
from .institutions import Directory
from .kinds import WITH_COUNTRY, Kind, normalise
from .text import STOPS, clean, compact

# Issuer ranges with their lengths (ISO/IEC 7812-1): a Luhn number outside them is as likely an account.
_ISSUED = re.compile(
    r"(?:62|81)\d{14,17}|9558\d{15}|4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0|6|8|9)\d{12,17}|35\d{14,17}|6(?:0|4|5)\d{14,17}"
)
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}|(?:[0-9a-fA-F]{4}[.:-]){2}[0-9a-fA-F]{4}")
_UUID = re.compile(r"(?:urn:uuid:)?\{?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}?", re.IGNORECASE)
_BARE_HEX = re.compile(r"[0-9a-fA-F]{12}|[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{42}|[0-9a-fA-F]{64}")
_IP4 = re.compile(r"\d{1,3}([.。]\d{1,3}){3}")


def recognise(
    value: str,
    country: str = "",
    institution: str = "",
    default_region: str = "CN",
    directory: Directory | None = None,
) -> list[Kind]:
    """All kinds that `value` has the form of; empty where none.

    An account is one only where its institution is given or digits pass for a card by chance alone, a document only
    where its country is given.
    """
    try:
        text = clean(value)
    except IdentifierError:
        return []
    context = (country, institution, default_region, directory)
    found = [kind for kind in _candidates(text, default_region) if _accepts(kind, text, *context)]
    digits = compact(text)
    is_number = digits.isascii() and digits.isdigit()
    by_chance = Kind.CARD in found and not _ISSUED.fullmatch(digits)
    # An IBAN needs no institution.
    if by_chance or ((institution.strip() or not is_number) and _accepts(Kind.ACCOUNT, text, *context)):
        found.append(Kind.ACCOUNT)
    if country.strip() and "." not in text and "@" not in text:
        found += [kind for kind in WITH_COUNTRY if _accepts(kind, text, *context)]
    return sorted(set(found), key=list(Kind).index)


def _accepts(
    kind: Kind, text: str, country: str, institution: str, region: str, directory: Directory | None
) -> bool:
    try:
        normalise(kind, text, country, institution, region, directory)
    except IdentifierError:
        return False
    return True


def _candidates(text: str, region: str) -> list[Kind]:
    digits = compact(text)
    if "@" in text:
        return [Kind.EMAIL]
    found: list[Kind] = []
    if digits.isascii() and digits.isdigit():
        if len(digits) >= 7:
            found.append(Kind.PHONE)
        if 13 <= len(digits) <= 19 and checksums.luhn(digits):
            found.append(Kind.CARD)
        if len(digits) == 15 and checksums.luhn(digits):
            found.append(Kind.DEVICE)
    elif re.fullmatch(r"[+(0-9][0-9 ()./\-]+", text) and not _IP4.fullmatch(text):
        found.append(Kind.PHONE)
    if len(digits) == 18:
        found += [Kind.RESIDENT_ID, Kind.USCC]
    is_device = (
        _MAC.fullmatch(text) or _UUID.fullmatch(text) or (_BARE_HEX.fullmatch(text) and not text.isdigit())
    )
    if is_device:
        found.append(Kind.DEVICE)
    if len(text) >= 26 or _BARE_HEX.fullmatch(text):
        found.append(Kind.CRYPTO)
    if _IP4.fullmatch(text) or (":" in text and not is_device):
        found.append(Kind.IP)
    elif "." in text.translate(STOPS) and " " not in text and hosts.has_known_suffix(text):
        found.append(Kind.DOMAIN)
    return found
