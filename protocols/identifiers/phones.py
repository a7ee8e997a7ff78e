"""Telephone numbers: E.164 by `phonenumbers`, and the mainland's machine numbers, which it does not know.

Source of the ranges: MIIT, 电信网编号计划 (2017年版), 工信部信管〔2017〕68号: 14(5–9) are mobile networks, 11 digits;
14(0–4) and 1064 are machine-to-machine numbers, 13 digits.
"""

import re

import phonenumbers
from phonenumbers import PhoneNumberType

from .text import refuse

_CHARACTERS = re.compile(r"\+?[0-9 ().\-/\u2010-\u2014]+")
_MACHINES_CN = re.compile(r"14[5-9]\d{8}|14[0-4]\d{10}|1064\d{9}")
_SHARED_NUMBERS = frozenset(
    {
        PhoneNumberType.TOLL_FREE,
        PhoneNumberType.SHARED_COST,
        PhoneNumberType.PREMIUM_RATE,
        PhoneNumberType.UAN,
        PhoneNumberType.VOICEMAIL,
    }
)


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
    return rf"(?=1[0-9]{{10}}{end})(?!(?:{shared_kinds}){end})(?:{mobile}|14[5-9]\d{{8}})"


MOBILE_CN = re.compile(_mainland_mobile())
MOBILES_CN = re.compile(rf"{MOBILE_CN.pattern}(?:\n{MOBILE_CN.pattern})*+")


def phone(text: str, region: str) -> str:
    """E.164 of a number as written in `region` ("" for none). Raises `IdentifierError`."""
    # Most rows are mainland mobiles; asking the library's patterns directly is ten times faster.
    national = text[3:] if text.startswith("+86") else text if region == "CN" else ""
    if MOBILE_CN.fullmatch(national):
        return f"+86{national}"
    return by_library(text, region)


def by_library(text: str, region: str) -> str:
    """The same, without the short way for mainland mobiles."""
    if not _CHARACTERS.fullmatch(text):  # the library turns letters into digits or drops them
        raise refuse("phone", "a phone number has digits and + ( ) - . / only; extensions are switchboards")
    try:
        number = phonenumbers.parse(text, region or None)
    except phonenumbers.NumberParseException:
        raise refuse("phone", "not a phone number, or its country is missing") from None
    national = str(number.national_number)
    number_type = phonenumbers.number_type(number)
    if number_type in _SHARED_NUMBERS or (
        number.country_code == 86 and national[:3] in {"400", "800", "955"}
    ):
        raise refuse("shared", "a service number that many people share")
    machine = number.country_code == 86 and _MACHINES_CN.fullmatch(national)
    if number_type == PhoneNumberType.UNKNOWN and not machine:
        raise refuse("phone", "not an assigned phone number format")
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
