"""Kinds of identifiers and how each is brought to its one canonical value."""

import datetime as dt
import functools
import ipaddress
import re
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

import idna
import phonenumbers
from phonenumbers import PhoneNumberType

from ..errors import IdentifierError
from . import checksums, shared

VERSION = 1  # both sides of a lookup must agree; a change here is a new suite of vectors
MAX_LENGTH = 200  # characters of a raw value


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


_MASK = re.compile(r"[*•●×✱■]|(?<![0-9A-Za-z])[xX]{3,}|[0-9][xX]{3,}|\?{3,}")
_SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d+)?[eE][+-]?\d+")
_FLOAT = re.compile(r"\d{6,}\.0+")
_SEPARATORS = str.maketrans("", "", " -\u00a0\u2010\u2011\u2012\u2013\u2014")
_BIC = re.compile(r"[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?")
_ID_CHARACTERS = re.compile(r"[0-9A-Z]{3,40}")
_HEX_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}")
_CRYPTO = re.compile(r"[A-Za-z0-9:_-]{20,128}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_MAC = re.compile(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}")
_LOCAL = re.compile(r"[^\s@\x00-\x1f\"(),:;<>\[\]\\]{1,64}")
_SHARED_NUMBERS = frozenset(
    {
        PhoneNumberType.TOLL_FREE,
        PhoneNumberType.SHARED_COST,
        PhoneNumberType.PREMIUM_RATE,
        PhoneNumberType.UAN,
        PhoneNumberType.VOICEMAIL,
    }
)


def _refuse(code: str, message: str) -> IdentifierError:
    return IdentifierError(code, message)


def clean(value: str) -> str:
    """NFKC without surrounding space. Raises for what no kind can take."""
    text = value if value.isascii() else unicodedata.normalize("NFKC", value).strip("\u200b\ufeff")
    text = text.strip()
    if not text:
        raise _refuse("empty", "no value")
    if len(text) > MAX_LENGTH:
        raise _refuse("too-long", f"longer than {MAX_LENGTH} characters")
    if not text.isprintable():
        raise _refuse("control", "contains control characters")
    return text


def _check_whole(kind: Kind, text: str) -> None:
    """Raise for a value that a program has shortened or masked."""
    if kind is not Kind.NAME_BIRTH and _MASK.search(text):
        raise _refuse("masked", "the value is masked")
    if _SCIENTIFIC.fullmatch(text):
        raise _refuse("scientific", "a number in scientific notation: re-export the column as text")
    if _FLOAT.fullmatch(text):
        raise _refuse("float", "a number with decimals: re-export the column as text")


def normalise(
    kind: Kind | str,
    value: str,
    country: str = "",
    institution: str = "",
    default_region: str = "CN",
) -> Identifier:
    """Bring a raw value to its canonical form.

    `country` is an ISO 3166 alpha-2 code (passports, foreign and tax IDs need it), `institution` a bank's code
    (accounts need it), `default_region` the region of phone numbers without a country code ("" for none).
    Raises `IdentifierError`; its message never repeats the value.
    """
    if not isinstance(kind, Kind):
        try:
            kind = Kind(kind)
        except ValueError:
            raise _refuse("unknown-kind", f"kind is one of {', '.join(KINDS)}") from None
    text = clean(value)
    if not text.isdecimal():  # which most values are, and then they are none of these
        _check_whole(kind, text)
    if kind is Kind.PHONE:
        return Identifier(kind, _phone(text, default_region))
    if kind is Kind.ACCOUNT:
        return Identifier(kind, _account(text, institution))
    if kind in WITH_COUNTRY:
        return Identifier(kind, _document(text, country))
    if kind is Kind.CARD:
        return _card(text)
    return Identifier(kind, _SIMPLE[kind](text))


def canonical_each(kind: Kind, values: Sequence[str], default_region: str = "CN") -> list[bytes | None]:
    """`normalise(…).canonical` of values of one kind that needs neither country nor institution; None for one that is refused."""
    if kind is Kind.PHONE and default_region == "CN":
        # What `_phone` finds first: digits alone, which nothing else has a say in.
        mobile, before = _MOBILE_CN.fullmatch, Identifier(kind, "+86").canonical
        lines = "\n".join(values)
        if _MOBILES_CN.fullmatch(lines) and lines.count("\n") == len(values) - 1:  # as nearly always
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


def _digits(text: str) -> str:
    return text.translate(_SEPARATORS)


def _card(text: str) -> Identifier:
    digits = _digits(text)
    if not (digits.isascii() and digits.isdigit() and 12 <= len(digits) <= 19):
        raise _refuse("card", "a card number has 12 to 19 digits")
    if len(set(digits)) == 1:
        raise _refuse("placeholder", "a placeholder, not a card number")
    return Identifier(Kind.CARD, digits, "" if checksums.luhn(digits) else "no Luhn check digit")


def _account(text: str, institution: str) -> str:
    number = _digits(text).upper()
    if checksums.iban(number):
        return f"IBAN/{number}"
    code = _digits(unicodedata.normalize("NFKC", institution)).upper()
    if not code:
        raise _refuse("institution", "a bank account needs the institution's code")
    if not (code.isascii() and code.isalnum() and 2 <= len(code) <= 14):
        raise _refuse("institution", "not an institution code")
    if not (number.isascii() and number.isalnum() and 5 <= len(number) <= 34):
        raise _refuse("account", "an account number has 5 to 34 letters and digits")
    if len(set(number)) == 1:
        raise _refuse("placeholder", "a placeholder, not an account number")
    if _BIC.fullmatch(code):
        code = code[:8]  # the branch is not part of who keeps the account
    return f"{code}/{number}"


def _mainland_mobile() -> str:
    """By the library's own patterns: a mainland mobile number alone in its line, and none of the shared kinds."""
    metadata = phonenumbers.PhoneMetadata.metadata_for_region("CN")
    assert metadata is not None
    assert metadata.mobile is not None
    kinds = (metadata.premium_rate, metadata.toll_free, metadata.shared_cost, metadata.uan)
    shared_kinds = "|".join(
        kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern
    )
    mobile = metadata.mobile.national_number_pattern
    assert shared_kinds
    assert mobile
    end = r"(?=\n|\Z)"
    return rf"(?=1[0-9]{{10}}{end})(?!(?:{shared_kinds}){end})(?:{mobile})"


_MOBILE_CN = re.compile(_mainland_mobile())
_MOBILES_CN = re.compile(rf"{_MOBILE_CN.pattern}(?:\n{_MOBILE_CN.pattern})*+")


def _phone(text: str, region: str) -> str:
    # Most rows are mainland mobiles; asking the library's patterns directly is ten times faster.
    national = text[3:] if text.startswith("+86") else text if region == "CN" else ""
    if _MOBILE_CN.fullmatch(national):
        return f"+86{national}"
    return _phone_by_library(text, region)


def _phone_by_library(text: str, region: str) -> str:
    try:
        number = phonenumbers.parse(text, region or None)
    except phonenumbers.NumberParseException:
        raise _refuse("phone", "not a phone number, or its country is missing") from None
    if number.extension:
        raise _refuse("phone", "a number with an extension is a switchboard")
    number_type = phonenumbers.number_type(number)
    if number_type in _SHARED_NUMBERS or (
        number.country_code == 86 and str(number.national_number)[:3] in {"400", "800", "955"}
    ):
        raise _refuse("shared", "a service number that many people share")
    if number_type == PhoneNumberType.UNKNOWN:
        raise _refuse("phone", "not an assigned phone number format")
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def _resident_id(text: str) -> str:
    value = _digits(text).upper()
    if len(value) == 15 and value.isdigit():
        raise _refuse("resident-id", "a 15-digit resident ID: give the 18-character one")
    if not checksums.resident_id(value):
        raise _refuse("resident-id", "not an 18-character resident ID with a valid date and check digit")
    return value


def _uscc(text: str) -> str:
    value = _digits(text).upper()
    if not checksums.uscc(value):
        raise _refuse("uscc", "not a unified social credit code with a valid check character")
    return value


def _document(text: str, country: str) -> str:
    code = country.strip().upper()
    if not code:
        raise _refuse("country", "the issuing country is missing")
    if code not in phonenumbers.SUPPORTED_REGIONS and code not in {"AQ", "KP"}:
        raise _refuse("country", "the country is not an ISO 3166 two-letter code")
    value = re.sub(r"[\s./\\_–—-]", "", text).upper()
    if not _ID_CHARACTERS.fullmatch(value):
        raise _refuse("document", "a document number has 3 to 40 letters and digits")
    if len(set(value)) == 1:
        raise _refuse("placeholder", "a placeholder, not a document number")
    return f"{code}/{value}"


@functools.lru_cache(maxsize=4096)
def _host(text: str) -> str:
    host = text.lower().rstrip(".")
    try:
        encoded = idna.encode(host, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise _refuse("domain", "not a domain name") from None
    labels = encoded.split(".")
    if len(labels) < 2 or labels[-1].isdigit() or len(encoded) > 253:
        raise _refuse("domain", "not a domain name")
    return encoded


def _domain(text: str) -> str:
    host = _host(text)
    if host.startswith("www.") and host.count(".") > 1:
        host = host[4:]
    if host in shared.SHARED_DOMAINS:
        raise _refuse("shared", "a domain that many people share")
    return host


def _email(text: str) -> str:
    local, separator, domain = text.rpartition("@")
    if not separator or not _LOCAL.fullmatch(local) or local[0] == "." or local[-1] == "." or ".." in local:
        raise _refuse("email", "not an e-mail address")
    return f"{unicodedata.normalize('NFKC', local.casefold())}@{_host(domain)}"


def _ip(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        raise _refuse("ip", "not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise _refuse("ip", "an address with a zone is local")
        address = address.ipv4_mapped or address
    if not address.is_global or address.is_multicast:
        raise _refuse("shared", "a private or reserved address, used by many")
    return str(address)


def _device(text: str) -> str:
    digits = _digits(text)
    if len(digits) == 15 and digits.isascii() and digits.isdigit():
        if not checksums.luhn(digits):
            raise _refuse("device", "an IMEI with a wrong check digit")
        value = f"imei:{digits}"
    elif _MAC.fullmatch(text):
        value = "mac:" + text.lower().replace("-", ":")
    elif re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        value = str(uuid.UUID(text))
    elif _DEVICE.fullmatch(text):
        value = text.lower() if re.fullmatch(r"[0-9a-fA-F]+", text) else text
    else:
        raise _refuse("device", "a device ID has 8 to 64 letters, digits and . _ : -")
    serial = value.removeprefix("imei:").removeprefix("mac:")
    if value in shared.PLACEHOLDER_DEVICES or len(set(serial) - set("-:._")) <= 1:
        raise _refuse("placeholder", "a placeholder that many devices share")
    return value


def _crypto(text: str) -> str:
    if _HEX_ADDRESS.fullmatch(text):
        if int(text, 16) == 0:
            raise _refuse("shared", "the zero address")
        return text.lower()
    if not _CRYPTO.fullmatch(text):
        raise _refuse("crypto", "not an address of a crypto currency")
    return text


def _name_birth(text: str) -> str:
    name, _, birth = text.rpartition(" ")
    try:
        date = dt.date.fromisoformat(birth.strip("() "))
    except ValueError:
        raise _refuse("name-birth", "give the name, a space and the birth date as YYYY-MM-DD") from None
    name = unicodedata.normalize("NFKC", re.sub(r"[\s,;|]+", " ", name).strip().casefold())
    if len(name) < 2:
        raise _refuse("name-birth", "the name is missing")
    return f"{name}/{date.isoformat()}"


_SIMPLE: dict[Kind, Callable[[str], str]] = {
    Kind.RESIDENT_ID: _resident_id,
    Kind.USCC: _uscc,
    Kind.EMAIL: _email,
    Kind.DOMAIN: _domain,
    Kind.IP: _ip,
    Kind.DEVICE: _device,
    Kind.CRYPTO: _crypto,
    Kind.NAME_BIRTH: _name_birth,
}
