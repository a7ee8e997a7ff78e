"""From a row of a file to what is stored: checked, normalised, encrypted. Runs in worker processes."""

import datetime as dt
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lianfang.v1 import admin_pb2 as pb

from protocols import label as labels
from protocols import sealed
from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise, recognise
from protocols.identifiers.text import check_whole, clean
from protocols.label import Basis, Category, Reason, Status

from .. import words
from ..identity.institutions import NONE, DirectoryFile
from ..identity.keys import Vault


class RawRow(NamedTuple):
    """A row as text; empty where the file has no such column."""

    number: int
    kind: str
    value: str
    country: str
    category: str
    severity: str
    confidence: str
    basis: str
    observed_on: str
    valid_until: str
    status: str
    reason: str
    reference: str
    institution: str


class StoredRow(NamedTuple):
    """A row as it goes into `lists.db`."""

    number: int
    identifier: bytes
    secret: bytes
    kind: str
    own_reference: bytes | None
    own_mark: bytes | None
    ref: bytes
    category: int
    severity: int
    confidence: int
    basis: int
    status: int
    reason: int
    observed_on: int
    valid_until: int
    dated: int  # 0 where the dates are defaults


class Bad(NamedTuple):
    """Why a row cannot be taken; never repeats its values."""

    number: int
    column: str
    reason: str
    identifier: bytes = b""  # keyed index, where that much could be read


@dataclass(frozen=True)
class RowOptions:
    """How a file's gaps are filled."""

    default_region: str
    phone_valid_days: int
    official: bool
    today: int  # days since 1970
    directory: DirectoryFile = NONE  # of institutions


class _BadField(Exception):
    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.identifier = b""


_SEVERAL = re.compile(r"[;；\r\n]")
_DATE = re.compile(r"(\d{4})[-/.年]?(\d{1,2})[-/.月]?(\d{1,2})日?(?:[ T]00:00:00)?")


@functools.lru_cache(maxsize=16_384)
def _date(column: str, text: str) -> int:
    text = text.strip()
    if not text:
        return 0
    match = _DATE.fullmatch(text)
    try:
        if match is None or (text.isdigit() and len(text) != 8):
            raise ValueError
        day = labels.days(dt.date(*(int(part) for part in match.groups())))
    except ValueError:
        raise _BadField(column, "not a date like 2026-01-31") from None
    if not 0 < day < 60_000:
        raise _BadField(column, "a date out of range")
    return day


def _number(column: str, text: str, low: int, high: int, default: int) -> int:
    text = text.strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise _BadField(column, f"not a whole number from {low} to {high}")
    return int(text)


_TABLES: dict[str, Mapping[str, int]] = {
    "category": words.CATEGORIES,
    "basis": words.BASES,
    "status": words.STATUSES,
    "reason": words.REASONS,
}


@functools.lru_cache(maxsize=4_096)
def _word(column: str, text: str, default: int) -> int:
    """A plain number: members of an enumeration cost the store and the way between processes ten times as much."""
    if not text.strip():
        return int(default)
    table = _TABLES[column]
    found = table.get(words.key(text))
    if found is None:
        raise _BadField(column, words.one_of(column))
    return int(found)


class _Read(NamedTuple):
    """A row that can be taken, before anything of it is encrypted."""

    canonical: bytes
    reference: bytes
    kind: str
    details: tuple[int, ...]  # as in `StoredRow`, from category on


def _read(row: RawRow, vault: Vault, options: RowOptions) -> _Read | Bad:
    """One row; `Bad` names the first column that is wrong."""
    try:
        return _parse(row, vault, options)
    except _BadField as error:
        return Bad(row.number, error.column, str(error), error.identifier)
    except IdentifierError as error:
        column = {"country": "country", "institution": "institution"}.get(error.code, "value")
        return Bad(row.number, column, str(error))


def _kind(row: RawRow, options: RowOptions) -> Kind:
    """The kind that the row names, or the only one that its value can be."""
    if row.kind.strip():
        kind = words.kind_of(row.kind)
        if kind is None:
            raise _BadField("kind", words.one_of("kind"))
        return kind
    kinds = recognise(
        row.value, row.country, row.institution, options.default_region, options.directory.load()
    )
    if len(kinds) > 1:
        raise _BadField("kind", f"it may be {' or '.join(kinds)}: give the kind")
    if not kinds:
        check_whole(clean(row.value), x_may_stand=True)  # masked or shortened: that is the reason
        raise _BadField("kind", "not recognised: give the kind")
    return kinds[0]


def _parse(row: RawRow, vault: Vault, options: RowOptions) -> _Read:
    kind = _kind(row, options)
    directory = options.directory.load() if kind is Kind.ACCOUNT else None
    identifier = normalise(kind, row.value, row.country, row.institution, options.default_region, directory)
    try:
        details = _details(row, options, identifier.kind)
    except _BadField as error:
        error.identifier = vault.index(identifier.canonical)
        raise
    return _Read(identifier.canonical, references(row.reference), identifier.kind.value, details)


def _details(row: RawRow, options: RowOptions, kind: Kind) -> tuple[int, ...]:
    category = _word("category", row.category, Category.OTHER)
    severity = words.SEVERITIES.get(words.key(row.severity)) or _number("severity", row.severity, 1, 5, 3)
    confidence = _number("confidence", row.confidence.strip().removesuffix("%"), 0, 100, 50)
    basis = _word("basis", row.basis, Basis.OFFICIAL_LIST if options.official else Basis.REPORT)
    status = _word("status", row.status, Status.ACTIVE)
    reason = _word("reason", row.reason, Reason.NONE)
    seen = _date("observed_on", row.observed_on)
    until = _date("valid_until", row.valid_until)
    if seen > options.today + 1:
        raise _BadField("observed_on", "a date in the future")
    if until and seen and until < seen:
        raise _BadField("valid_until", "before the observation")
    dated = int(bool(seen or until))
    if kind is Kind.PHONE and not options.official:
        seen = seen or options.today
        until = until or seen + options.phone_valid_days
    if until and until < options.today and status in labels.LIVE:
        status = Status.EXPIRED
    return category, severity, confidence, basis, int(status), reason, seen, until, dated


def references(*texts: str) -> bytes:
    """Case numbers of one entry as they are stored: each once, in order, a line each; semicolons part them in files."""
    parts = (part.strip() for text in texts for part in _SEVERAL.split(text))
    return "\n".join(sorted({part for part in parts if part})).encode()


MARK = b"reference\x1f"  # before a reference whose keyed index is kept, to see a change


@functools.lru_cache(maxsize=2)
def _vault(root: bytes) -> Vault:
    return Vault(root)


Prepared = tuple[list[tuple[Any, ...]], list[Bad]]  # (fields of `StoredRow`, bad rows)


def prepare_chunk(root: bytes, rows: Sequence[tuple[Any, ...]], options: RowOptions) -> Prepared:
    """Rows in order; `root` is the key of the lists' vault, handed to the node's own worker."""
    vault = _vault(root)
    good: list[tuple[int, _Read]] = []
    bad: list[Bad] = []
    for row in rows:
        raw = RawRow(*row)
        read = _read(raw, vault, options)
        if isinstance(read, Bad):
            bad.append(read)
        else:
            good.append((raw.number, read))
    canonicals = [read.canonical for _, read in good]
    indices, secrets = vault.index_each(canonicals), vault.encrypt_each(canonicals, b"entry")
    named = [read.reference for _, read in good if read.reference]
    references = iter(vault.encrypt_each(named, b"reference"))
    marks = iter(vault.index_each([MARK + each for each in named]))
    refs = os.urandom(16 * len(good))
    # Plain tuples, in the order of `StoredRow`: they travel between processes at half the cost.
    stored = [
        (
            number,
            index,
            secret,
            read.kind,
            next(references),
            next(marks),
            refs[16 * i : 16 * i + 16],
            *read.details,
        )
        if read.reference
        else (number, index, secret, read.kind, None, None, refs[16 * i : 16 * i + 16], *read.details)
        for i, ((number, read), index, secret) in enumerate(zip(good, indices, secrets, strict=True))
    ]
    return stored, bad


def prepare_message(root: bytes, rows: bytes, options: RowOptions) -> Prepared:
    """The same from a serialised `Rows` message: the worker parses what the node only passes on."""
    parsed = [tuple(getattr(row, name) for name in RawRow._fields) for row in pb.Rows.FromString(rows).rows]
    return prepare_chunk(root, parsed, options)


# secret, category, severity, confidence, basis, status, reason, observed_on, valid_until, ref
SealRow = tuple[bytes, int, int, int, int, int, int, int, int, bytes]


def seal_rows(
    root: bytes, secret: bytes, context: bytes, number: int, live: Sequence[SealRow], gone: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Seal live entries and make tombstones of the others: (records, tags), each sorted."""
    vault = _vault(root)
    canonicals = vault.decrypt_each([row[0] for row in live], b"entry")
    entries = [(canonical, labels.pack(*row[1:])) for canonical, row in zip(canonicals, live, strict=True)]
    records = sealed.seal_chunk(secret, context, number, entries, os.urandom(sealed.SALT * len(entries)))
    tags = sealed.tags_chunk(secret, vault.decrypt_each(gone, b"entry"))
    return records, tags
