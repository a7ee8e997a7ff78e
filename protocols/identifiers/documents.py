"""Documents of persons and companies, and name with birth date."""

import datetime as dt
import re
import unicodedata

from . import checksums
from .countries import country_code
from .text import compact, refuse

_ID_CHARACTERS = re.compile(r"[0-9A-Z]{3,40}")
_BETWEEN = re.compile(r"[\s./\\_\u2010-\u2014-]")
_PRINTED_CHECK = re.compile(r"\(([0-9A-Za-z])\)$")  # Hong Kong and Macau print the check digit in brackets
_DROPPED = re.compile("['\u2018\u2019\u02bc\u02b9\u0060\u00b4\u2032\u00b7\u2022\u30fb\u2027\u2219\u22c5]")
_SPACES = re.compile(r"[\s,;|.\u2010-\u2014-]+")


def resident_id(text: str) -> str:
    """GB 11643: 18 characters with a valid date and check character. Raises `IdentifierError`."""
    value = compact(text).upper()
    if len(value) == 15 and value.isdigit():
        raise refuse("resident-id", "a 15-digit resident ID: give the 18-character one")
    if not checksums.resident_id(value):
        raise refuse("resident-id", "not an 18-character resident ID with a valid date and check digit")
    return value


def uscc(text: str) -> str:
    """GB 32100: a unified social credit code. Raises `IdentifierError`."""
    value = compact(text).upper()
    if not checksums.uscc(value):
        raise refuse("uscc", "not a unified social credit code with a valid check character")
    return value


def document(text: str, country: str) -> str:
    """Passports, foreign and tax IDs: country code, slash, letters and digits. Raises `IdentifierError`."""
    if not country.strip():
        raise refuse("country", "the issuing country is missing")
    code = country_code(country)
    if code is None:
        raise refuse("country", "not a country: its name in English or Chinese, or its ISO 3166 code")
    value = _PRINTED_CHECK.sub(r"\1", _BETWEEN.sub("", text)).upper()
    if not _ID_CHARACTERS.fullmatch(value):
        raise refuse("document", "a document number has 3 to 40 letters and digits")
    if len(set(value)) == 1:
        raise refuse("placeholder", "a placeholder, not a document number")
    return f"{code}/{value}"


def name_birth(text: str) -> str:
    """Case-folded name without apostrophes and dots, slash, ISO birth date. Raises `IdentifierError`."""
    name, _, birth = text.rpartition(" ")
    try:
        date = dt.date.fromisoformat(birth.strip("() "))
    except ValueError:
        raise refuse("name-birth", "give the name, a space and the birth date as YYYY-MM-DD") from None
    plain = _SPACES.sub(" ", _DROPPED.sub("", name)).strip()
    plain = unicodedata.normalize("NFKC", plain.casefold())
    if len(plain) < 2:
        raise refuse("name-birth", "the name is missing")
    return f"{plain}/{date.isoformat()}"
