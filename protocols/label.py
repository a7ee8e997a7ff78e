"""What a hit tells: a fixed 48-byte label with no name, case number or identifier in it.

    offset  size  field
    0       1     version, 2
    1       1     category
    2       1     severity, 1 to 5
    3       1     confidence, 0 to 100
    4       1     basis
    5       1     status
    6       2     reason code
    8       4     observed on, days since 1970-01-01, 0 for unknown
    12      4     valid until (inclusive), days since 1970-01-01, 0 for "until removed"
    16      16    opaque reference, random
    32      16    for later versions, zero

Big-endian. Decoding a label of this version refuses anything that would not encode to the same bytes, save codes that it does not know. A
later version adds fields in the last 16 bytes and codes to the enumerations, and changes nothing else: it is read without what is new. An
unknown category or reason is "other", an unknown basis a report, an unknown status contested.
"""

import datetime as dt
import functools
import struct
from enum import IntEnum
from typing import NamedTuple, TypeVar

from .errors import DecodeError, MisuseError

VERSION = 2
_LATEST = 15  # labels up to this version keep the fields of version 2
LENGTH = 48
REFERENCE = 16
_FORMAT = struct.Struct(">BBBBBBHII16s16x")
_HEAD = struct.Struct(">BBBBBBHII")  # what precedes the reference
_BEFORE, _AFTER = _HEAD.size, _HEAD.size + REFERENCE
_ZERO = bytes(LENGTH - _AFTER)
_EPOCH = dt.date(1970, 1, 1).toordinal()


class Category(IntEnum):
    """What kind of risk the entry stands for."""

    TELECOM_FRAUD = 1
    MULE_ACCOUNT = 2
    GAMBLING = 3
    MONEY_LAUNDERING = 4
    IDENTITY_THEFT = 5
    PHISHING = 6
    SANCTIONS = 7
    SUSPICIOUS_DEVICE = 8
    OTHER = 9


class Basis(IntEnum):
    """On what the listing rests."""

    POLICE_CERTIFIED = 1
    COURT = 2
    OWN_INVESTIGATION = 3
    REPORT = 4
    OFFICIAL_LIST = 5


class Status(IntEnum):
    """Entries that are sealed are active or contested; the others leave the sealed list."""

    ACTIVE = 1
    CONTESTED = 2
    SUSPENDED = 3
    WITHDRAWN = 4
    EXPIRED = 5


LIVE = frozenset({Status.ACTIVE, Status.CONTESTED})


class Reason(IntEnum):
    """Why the entry stands, or left."""

    NONE = 0
    FIRST_LEVEL_RECIPIENT = 1
    SECOND_LEVEL_RECIPIENT = 2
    SHARED_PHONE = 3
    SHARED_DEVICE = 4
    NIGHT_BURST = 5
    SANCTIONS_PROGRAMME = 6
    VICTIM_REPORT = 7
    REMOVED_BY_SOURCE = 8
    APPEAL_UPHELD = 9
    OPERATOR_DECISION = 10
    OTHER = 11


def slug(value: IntEnum) -> str:
    """The name as files and people write it: `mule-account`."""
    return value.name.lower().replace("_", "-")


def days(date: dt.date | None) -> int:
    """Days since 1970-01-01, 0 for None."""
    return 0 if date is None else date.toordinal() - _EPOCH


def date_of(day_number: int) -> dt.date | None:
    """The inverse of `days`."""
    return dt.date.fromordinal(day_number + _EPOCH) if day_number else None


def pack(
    category: int,
    severity: int,
    confidence: int,
    basis: int,
    status: int,
    reason: int,
    seen: int,
    until: int,
    reference: bytes,
) -> bytes:
    """48 bytes from checked numbers; `seen` and `until` are days since 1970-01-01."""
    return _FORMAT.pack(
        VERSION, category, severity, confidence, basis, status, reason, seen, until, reference
    )


class _Fields(NamedTuple):
    category: Category
    severity: int
    confidence: int
    basis: Basis
    status: Status
    reason: Reason
    observed_on: dt.date | None
    valid_until: dt.date | None
    reference: bytes


class Label(_Fields):
    """The label of one entry. Raises `MisuseError` where a field is out of range (`_replace` does not check)."""

    __slots__ = ()

    def __new__(
        cls,
        category: Category,
        severity: int,
        confidence: int,
        basis: Basis,
        status: Status,
        reason: Reason,
        observed_on: dt.date | None,
        valid_until: dt.date | None,
        reference: bytes,
    ) -> "Label":
        if not 1 <= severity <= 5:
            raise MisuseError("severity is 1 to 5")
        if not 0 <= confidence <= 100:
            raise MisuseError("confidence is 0 to 100")
        if status not in LIVE:
            raise MisuseError("only active and contested entries carry a label")
        if len(reference) != REFERENCE:
            raise MisuseError(f"the reference has {REFERENCE} bytes")
        for date in (observed_on, valid_until):
            if date is not None and days(date) <= 0:
                raise MisuseError("dates lie after 1970-01-01")
        return super().__new__(
            cls,
            category,
            severity,
            confidence,
            basis,
            status,
            reason,
            observed_on,
            valid_until,
            reference,
        )

    def encode(self) -> bytes:
        """48 bytes."""
        return pack(
            self.category,
            self.severity,
            self.confidence,
            self.basis,
            self.status,
            self.reason,
            days(self.observed_on),
            days(self.valid_until),
            self.reference,
        )

    @classmethod
    def decode(cls, data: bytes) -> "Label":
        """Raise `DecodeError` unless `data` is exactly what `encode` would give."""
        if len(data) != LENGTH:
            raise DecodeError(f"label: {len(data)} bytes instead of {LENGTH}")
        if data[0] == VERSION and data[_AFTER:] != _ZERO:
            raise DecodeError("label: reserved bytes are not zero")
        # A list's labels differ in little but their references.
        return cls._make((*_decoded(data[:_BEFORE]), data[_BEFORE:_AFTER]))


_E = TypeVar("_E", bound=IntEnum)


def _known(codes: type[_E], value: int, otherwise: _E) -> _E:
    """A code, or what stands for one of a later version. Raises `ValueError` for 0, which is none unless the enumeration has it."""
    return codes(value) if value <= max(codes) else otherwise


@functools.lru_cache(maxsize=4_096)
def _decoded(head: bytes) -> tuple[object, ...]:
    """The checked fields of a label before its reference."""
    version, category, severity, confidence, basis, status, reason, seen, until = _HEAD.unpack(head)
    if not VERSION <= version <= _LATEST:
        raise DecodeError(f"label: version {version} is not known")
    try:
        return Label(
            _known(Category, category, Category.OTHER),
            severity,
            confidence,
            _known(Basis, basis, Basis.REPORT),
            _known(Status, status, Status.CONTESTED),
            _known(Reason, reason, Reason.OTHER),
            date_of(seen),
            date_of(until),
            bytes(REFERENCE),
        )[:-1]
    except (ValueError, OverflowError, MisuseError) as error:
        raise DecodeError("label: a field is out of range") from error
