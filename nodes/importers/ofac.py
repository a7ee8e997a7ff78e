"""OFAC's SDN list in its own CSV format: no header, `-0-` for empty, identifiers in the remarks column.

Source: "SDN.CSV" and "dat_spec.txt" of the US Treasury. Taken are passports, national and tax IDs with their
countries, telephone numbers, e-mail addresses, websites and crypto addresses; not fax numbers, company registers,
vessels and aircraft. A remark names its country in brackets; where it names none, the row is reported, not guessed.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from protocols.identifiers import Kind, checksums

from .table import BadCell, FileError, Parsed, ReadRow

_COLUMNS = 12
_PASSPORT = r"(?:[A-Z][A-Za-z]+ )?Passport(?: Booklet)?:?"
_NATIONAL = (
    r"National ID No\.|Cedula No\.|Cedula de Ciudadania(?: No\.)?|Cedula de Residencia|C\.U\.R\.P\.|D\.N\.I\.|"
    r"National Foreign ID Number|Personal ID Card|Citizen's Card Number|Identification Number(?! IMO)|"
    r"Numero de Identidad|C\.U\.I\.|Tazkira National ID Card|C\.U\.I\.P\.|LE Number"
)
_TAX = (
    r"Tax ID No\.|R\.F\.C\.|RFC|NIT #|RUC #|RIF #|V\.A\.T\. Number|C\.U\.I\.T\.|C\.I\.F\.|RTN|"
    r"Numero Unico de Identificacao Tributaria \(NUIT\)"
)
_USCC = r"Unified Social Credit Code \(USCC\)|United Social Credit Code Certificate \(USCCC\)"
# Names of documents that say their country themselves.
_OWN_COUNTRY = {
    "Turkish Identification Number": ("TR", Kind.FOREIGN_ID),
    "Kenyan ID No.": ("KE", Kind.FOREIGN_ID),
    "Bosnian Personal ID No.": ("BA", Kind.FOREIGN_ID),
    "SSN": ("US", Kind.FOREIGN_ID),
    "US FEIN": ("US", Kind.TAX_ID),
    "Italian Fiscal Code": ("IT", Kind.TAX_ID),
}
_DOCUMENTS = [
    (re.compile(rf"(?:{pattern}) (?P<rest>.+)"), kind)
    for pattern, kind in (
        (_PASSPORT, Kind.PASSPORT),
        (_NATIONAL, Kind.FOREIGN_ID),
        (_TAX, Kind.TAX_ID),
        (_USCC, Kind.USCC),
    )
]
_REST = re.compile(
    r"(?P<number>[^()]+?)(?: \((?P<country>[^()]*)\))?(?: (?:issued|expires|Valid) .*| \([^()]*\).*)?"
)
_PHONE = re.compile(r"(?:Telephone(?: No\.)?|Phone Number|Phone No\.|PHONE):? (?P<value>.+)")
_EMAIL = re.compile(r"(?:Email Address|Email|EMAIL):? (?P<value>\S+)")
_WEBSITE = re.compile(r"Website:? +(?P<value>\S+)")
_CRYPTO = re.compile(r"Digital Currency Address - [A-Z0-9]+ (?P<value>\S+)")

_ALIASES = {
    "Burma": "MM",
    "Korea, North": "KP",
    "Korea, South": "KR",
    "Congo, Democratic Republic of the": "CD",
    "Congo, Republic of the": "CG",
    "Palestinian": "PS",
    "North Macedonia, The Republic of": "MK",
    "Gambia, The": "GM",
    "Bahamas, The": "BS",
    "Hong Kong": "HK",
    "Macau": "MO",
    "Cote d Ivoire": "CI",
    "Cote d'Ivoire": "CI",
    "Czech Republic": "CZ",
    "Bosnia and Herzegovina": "BA",
    "Saint Kitts and Nevis": "KN",
    "Antigua and Barbuda": "AG",
    "Trinidad and Tobago": "TT",
    "Saint Vincent and the Grenadines": "VC",
    "Sao Tome and Principe": "ST",
    "Swaziland": "SZ",
    "Cape Verde": "CV",
    "Cabo Verde": "CV",
    "Syria": "SY",
    "Turkey": "TR",
    "Virgin Islands, British": "VG",
    "Kosovo": "XK",
}


def _countries() -> dict[str, str]:
    """English country names to ISO codes, from the phone library's data."""
    from phonenumbers.geodata.locale import LOCALE_DATA

    names = {}
    for code, by_language in LOCALE_DATA.items():
        name = by_language.get("en", "*aa")
        names[by_language.get(name[1:], "") if name.startswith("*") else name] = code
    return names | _ALIASES


class Found(NamedTuple):
    """An identifier in a remark; `country` empty where the remark names none."""

    kind: str
    value: str
    country: str = ""


def parse_remark(remark: str, countries: dict[str, str]) -> Found | None:
    """The identifier in one part of a remarks column, or None."""
    text = re.sub(r"^[Aa]lt\. ", "", remark.strip())
    for name, (code, kind) in _OWN_COUNTRY.items():
        if text.startswith(name + " "):
            rest = _REST.fullmatch(text[len(name) + 1 :])
            return Found(kind, rest["number"] if rest else text[len(name) + 1 :], code)
    for pattern, kind in _DOCUMENTS:
        match = pattern.fullmatch(text)
        if match is not None:
            return _document(kind, match["rest"], countries)
    for pattern, kind in ((_EMAIL, Kind.EMAIL), (_WEBSITE, Kind.DOMAIN), (_CRYPTO, Kind.CRYPTO)):
        match = pattern.match(text)
        if match is not None:
            return _contact(kind, match["value"].rstrip(".,;"))
    match = _PHONE.fullmatch(text)
    if match is not None:
        # The list gives numbers with their country code, often without a plus.
        digits = re.sub(r"[^\d+/]", "", match["value"])
        digits = re.sub(r"^\+?00", "+", digits)
        return Found(Kind.PHONE, digits if digits.startswith("+") else f"+{digits}")
    return None


def _document(kind: Kind, rest: str, countries: dict[str, str]) -> Found:
    match = _REST.fullmatch(rest)
    if match is None:
        return Found(kind, rest)
    number = match["number"].strip().lstrip("# ").split(",")[0]
    country = (match["country"] or "").strip()
    code = countries.get(country, "")
    if kind is Kind.FOREIGN_ID and code == "CN" and checksums.resident_id(number.upper()):
        return Found(Kind.RESIDENT_ID, number)
    return Found(kind, number, code)


def _contact(kind: Kind, value: str) -> Found:
    if kind is Kind.DOMAIN:
        value = re.sub(r"^[a-z]+://", "", value, flags=re.IGNORECASE)
        value = re.split(r"[/?#:]", value, maxsplit=1)[0]
    return Found(kind, value)


def rows(path: Path) -> Iterator[Parsed]:
    """Every identifier of the file as a row of its own, numbered by the file's record."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, str(error.strerror)) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # older versions are published so
    countries = _countries()
    records = csv.reader(io.StringIO(text.rstrip("\x1a\r\n"), newline=""))
    count = 0
    for number, cells in enumerate(records, 1):
        if len(cells) != _COLUMNS or not cells[0].strip().isdigit():
            if number == 1:
                raise FileError(path, "not OFAC's SDN.CSV: 12 columns without a header, a number first")
            count += 1
            yield BadCell(count, "", f"{len(cells)} cells, SDN.CSV has {_COLUMNS}", f"record {number}")
            continue
        for part in re.split(r";\s*", cells[11].strip().removesuffix(".")):
            found = parse_remark(part, countries)
            if found is None:
                continue
            count += 1
            yield ReadRow(
                count,
                {
                    "kind": str(found.kind),
                    "value": found.value,
                    "country": found.country,
                    "category": "sanctions",
                    "severity": "5",
                    "confidence": "100",
                    "basis": "official-list",
                    "reason": "sanctions-programme",
                    "reference": f"OFAC {cells[0].strip()}",
                },
                f"record {number}",
            )
    if not count:
        raise FileError(path, "no identifier in it")
