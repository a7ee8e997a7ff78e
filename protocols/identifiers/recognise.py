"""Which kinds a bare value may be. More than one answer means: ask, do not guess."""

import re

from ..errors import IdentifierError
from . import checksums
from .kinds import Kind, clean, normalise

_MOBILE = re.compile(r"1[3-9]\d{9}")
_BASE58 = re.compile(r"[13][1-9A-HJ-NP-Za-km-z]{25,34}")
_BECH32 = re.compile(r"(bc1|ltc1)[02-9ac-hj-np-z]{25,87}", re.IGNORECASE)
_TRON = re.compile(r"T[1-9A-HJ-NP-Za-km-z]{33}")


def recognise(value: str) -> list[Kind]:
    """All kinds that `value` certainly has the form of; empty where none. Never a bare account or passport."""
    try:
        text = clean(value)
    except IdentifierError:
        return []
    return [kind for kind in _candidates(text) if _accepts(kind, text)]


def _accepts(kind: Kind, text: str) -> bool:
    try:
        normalise(kind, text)
    except IdentifierError:
        return False
    return True


def _candidates(text: str) -> list[Kind]:
    found: list[Kind] = []
    compact = re.sub(r"[\s-]", "", text)
    if "@" in text:
        return [Kind.EMAIL]
    if re.fullmatch(r"0[xX][0-9a-fA-F]{40}", text) or any(
        pattern.fullmatch(text) for pattern in (_BASE58, _BECH32, _TRON)
    ):
        found.append(Kind.CRYPTO)
    if compact.isascii() and compact.isdigit():
        if _MOBILE.fullmatch(compact):
            found.append(Kind.PHONE)
        if 13 <= len(compact) <= 19 and checksums.luhn(compact):
            found.append(Kind.CARD)
        if len(compact) == 15 and checksums.luhn(compact):
            found.append(Kind.DEVICE)
    elif text.startswith("+"):
        found.append(Kind.PHONE)
    if len(compact) == 18:
        found += [Kind.RESIDENT_ID, Kind.USCC]
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text) or re.fullmatch(
        r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text
    ):
        found.append(Kind.DEVICE)
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", text) or (":" in text and Kind.DEVICE not in found):
        found.append(Kind.IP)
    elif "." in text and " " not in text:
        found.append(Kind.DOMAIN)
    return found
