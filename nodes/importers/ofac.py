"""OFAC's SDN list in its own CSV format: no header, `-0-` for empty, identifiers in the remarks column.

Source: "SDN.CSV" and "dat_spec.txt" of the US Treasury. Taken are passports, national and tax IDs with their
countries, telephone numbers, e-mail addresses, websites and crypto addresses; not fax numbers, company registers,
vessels and aircraft. A remark names its country in brackets; where it names none, the row is reported, not guessed.

The column holds at most 1,000 characters. The Treasury puts what is longer into SDN_COMMENTS.CSV (record number, rest);
without that file the last part of a full column is reported, since half a value may be somebody else's.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from protocols.identifiers import Kind, checksums
from protocols.identifiers.countries import country_code

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
    "Hong Kong ID": ("HK", Kind.FOREIGN_ID),
    "Macau ID": ("MO", Kind.FOREIGN_ID),
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
    r"(?P<number>[^()]+?(?:\([0-9A-Z]\))?)(?P<brackets>(?: ?\([^()]*\))*)(?: (?:issued|expires|Valid) .*)?"
)
_PHONE = re.compile(r"(?:Telephone(?: No\.)?|Phone Number|Phone No\.|PHONE):? (?P<value>.+)")
_EMAIL = re.compile(r"(?:Email Address|Email|EMAIL):? (?P<value>.+)")
_WEBSITE = re.compile(r"Website:? +(?P<value>.+)")
_CRYPTO = re.compile(r"Digital Currency Address - [A-Z0-9]+ (?P<value>.+)")
_BETWEEN = re.compile(r"\s*(?:,|\band\b|\bor\b|\s/\s)\s*|\s+")  # several values in one part
_REMARK_CHARACTERS = 1_000


class Found(NamedTuple):
    """An identifier in a remark; `country` empty where the remark names none."""

    kind: str
    value: str
    country: str = ""


def parse_remark(remark: str) -> list[Found]:
    """The identifiers in one part of a remarks column; mostly one, or none."""
    text = re.sub(r"^[Aa]lt\. ", "", remark.strip())
    for name, (code, kind) in _OWN_COUNTRY.items():
        if text.startswith(name + " "):
            rest = _REST.fullmatch(text[len(name) + 1 :])
            return [Found(kind, rest["number"] if rest else text[len(name) + 1 :], code)]
    for pattern, kind in _DOCUMENTS:
        match = pattern.fullmatch(text)
        if match is not None:
            return [_document(kind, match["rest"])]
    for pattern, kind in ((_EMAIL, Kind.EMAIL), (_WEBSITE, Kind.DOMAIN), (_CRYPTO, Kind.CRYPTO)):
        match = pattern.match(text)
        if match is not None:
            return _contacts(kind, match["value"])
    match = _PHONE.fullmatch(text)
    if match is not None:
        return [_phone(each) for each in re.split(r"\s/\s|,\s", match["value"])]
    return []


def _phone(text: str) -> Found:
    """The list gives numbers with their country code, often without a plus."""
    digits = re.sub(r"[^\d+/]", "", text)
    digits = re.sub(r"^\+?00", "+", digits)
    return Found(Kind.PHONE, digits if digits.startswith("+") else f"+{digits}")


def _document(kind: Kind, rest: str) -> Found:
    match = _REST.fullmatch(rest)
    if match is None:
        return Found(kind, rest)
    number = match["number"].strip().lstrip("# ").split(",")[0]
    named = [country_code(each) for each in re.findall(r"\(([^()]*)\)", match["brackets"])]
    code = next((each for each in named if each), "")
    if kind is Kind.FOREIGN_ID and code == "CN" and checksums.resident_id(number.upper()):
        return Found(Kind.RESIDENT_ID, number)
    return Found(kind, number, code)


def _contacts(kind: Kind, text: str) -> list[Found]:
    found = []
    for word in _BETWEEN.split(re.sub(r"\s\([^()]*\)", "", text)):
        value = word.rstrip(".,;")
        if kind is Kind.DOMAIN:
            value = re.sub(r"^[a-z]+://", "", value, flags=re.IGNORECASE)
            value = re.split(r"[/?#:]", value, maxsplit=1)[0]
        if value:
            found.append(Found(kind, value))
    return found


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, str(error.strerror)) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # older versions are published so
    return text.rstrip("\x1a\r\n")


def _overflow(path: Path) -> dict[str, str]:
    """What SDN_COMMENTS.CSV adds to each record's remarks."""
    more: dict[str, str] = {}
    for number, cells in enumerate(csv.reader(io.StringIO(_text_of(path), newline="")), 1):
        if len(cells) != 2 or not cells[0].strip().isdigit():
            raise FileError(
                path,
                f"line {number}: not OFAC's SDN_COMMENTS.CSV: a record's number and the rest of its remarks",
            )
        more[cells[0].strip()] = more.get(cells[0].strip(), "") + cells[1]
    return more


def _parts(remarks: str, rest: str) -> tuple[list[str], bool]:
    """(parts that are whole, whether something may be cut off)."""
    parts = re.split(r";\s*", (remarks + rest).strip().removesuffix("."))
    is_full = len(remarks) >= _REMARK_CHARACTERS and not rest
    return parts[:-1] if is_full else parts, is_full


def rows(path: Path, overflow: Path | None = None) -> Iterator[Parsed]:
    """Every identifier of the file as a row of its own, numbered in the file's order.

    `overflow` is the Treasury's SDN_COMMENTS.CSV. Raises `FileError`.
    """
    more = _overflow(overflow) if overflow else {}
    records = csv.reader(io.StringIO(_text_of(path), newline=""))
    count = 0
    for number, cells in enumerate(records, 1):
        place = f"record {number}"
        if len(cells) != _COLUMNS or not cells[0].strip().isdigit():
            if number == 1:
                raise FileError(path, "not OFAC's SDN.CSV: 12 columns without a header, a number first")
            count += 1
            yield BadCell(count, "", f"{len(cells)} cells, SDN.CSV has {_COLUMNS}", place)
            continue
        parts, is_cut = _parts(cells[11], more.get(cells[0].strip(), ""))
        for found in (each for part in parts for each in parse_remark(part)):
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
                place,
            )
        if is_cut:
            count += 1
            yield BadCell(
                count,
                "remarks",
                "the column is full (1,000 characters), so its last part may be cut and is not read: "
                "give the Treasury's SDN_COMMENTS.CSV with --overflow",
                place,
            )
    if not count:
        raise FileError(path, "no identifier in it")
