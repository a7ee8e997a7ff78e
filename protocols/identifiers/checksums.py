"""Check digits, each a few lines of its standard."""

import datetime as dt

_USCC_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    values = [ord(c) - 48 for c in reversed(digits)]
    return (sum(values[::2]) + sum(_DOUBLED[v] for v in values[1::2])) % 10 == 0


def luhn_digit(digits: str) -> str:
    """The check digit to append to `digits`."""
    return next(d for d in "0123456789" if luhn(digits + d))


def resident_digit(first17: str) -> str:
    """GB 11643-1999 check character (ISO 7064 MOD 11-2)."""
    total = sum(w * (ord(c) - 48) for w, c in zip(_RESIDENT_WEIGHTS, first17, strict=True))
    return "10X98765432"[total % 11]


def resident_id(value: str) -> bool:
    """18 characters, a real birth date and the right check character."""
    if len(value) != 18 or not value.isascii() or not value[:17].isdigit():
        return False
    try:
        dt.date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    return resident_digit(value[:17]) == value[17]


def uscc(value: str) -> bool:
    """GB 32100-2015 unified social credit code: 18 characters, weights 3^i mod 31."""
    if len(value) != 18 or any(c not in _USCC_ALPHABET for c in value):
        return False
    total = sum(_USCC_ALPHABET.index(c) * pow(3, i, 31) for i, c in enumerate(value[:17]))
    return _USCC_ALPHABET[(31 - total % 31) % 31] == value[17]


def iban(value: str) -> bool:
    """ISO 13616 modulo 97."""
    if not (15 <= len(value) <= 34 and value.isascii() and value.isalnum()):
        return False
    if not (value[:2].isalpha() and value[2:4].isdigit()):
        return False
    return int("".join(str(int(c, 36)) for c in value[4:] + value[:4])) % 97 == 1
