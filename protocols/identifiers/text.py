"""What all kinds share: cleaning a raw value, and telling masked or mangled ones."""

import re
import unicodedata

from ..errors import IdentifierError

MAX_LENGTH = 200  # characters of a raw value
STOPS = str.maketrans(
    "。", "."
)  # an ideographic full stop where a Latin dot is meant (U+FF61 becomes U+3002 by NFKC)
_MARKED = frozenset("='`")
_MARKS = r"[*•●×✱■]|\?{3,}"
_MASK = re.compile(_MARKS)
_MASK_WITH_X = re.compile(rf"{_MARKS}|(?<![0-9A-Za-z])[xX]{{3,}}|[0-9][xX]{{3,}}")
# A spreadsheet writes a decimal point or a signed exponent; hexadecimal IDs such as 0012e345 have neither.
_SCIENTIFIC = re.compile(r"[+-]?(\d+\.\d+[eE][+-]?\d+|\d+[eE][+-]\d+)")
_FLOAT = re.compile(r"\d{6,}\.0+")
_SEPARATORS = str.maketrans("", "", " -\u00a0\u2010\u2011\u2012\u2013\u2014")


def refuse(code: str, message: str) -> IdentifierError:
    """The error to raise; `message` never repeats the value."""
    return IdentifierError(code, message)


def clean(value: str) -> str:
    """NFKC without surrounding space. Raises `IdentifierError` for what no kind can take."""
    text = value if value.isascii() else unicodedata.normalize("NFKC", value).strip("\u200b\ufeff")
    text = text.strip()
    if text[:1] in _MARKED:
        text = _unmarked(text)
    if not text:
        raise refuse("empty", "no value")
    if len(text) > MAX_LENGTH:
        raise refuse("too-long", f"longer than {MAX_LENGTH} characters")
    if not text.isprintable():
        raise refuse("control", "contains control characters")
    return text


def _unmarked(text: str) -> str:
    """What stands behind the marks by which programs make a spreadsheet keep digits as text: `="0123"`, '0123, `0123."""
    if text[:2] == '="' and text[-1] == '"' and len(text) > 2:
        return text[2:-1].replace('""', '"').strip()
    return text[1:] if text[0] in "'`" and text[1:].isdigit() else text


def check_whole(text: str, x_may_stand: bool) -> None:
    """Raise `IdentifierError` for a value that a program has shortened or masked.

    `x_may_stand`: the letter x is an ordinary character of the kind (host names, addresses), not a mask.
    """
    if (_MASK if x_may_stand else _MASK_WITH_X).search(text):
        raise refuse("masked", "the value is masked")
    if _SCIENTIFIC.fullmatch(text):
        raise refuse("scientific", "a number in scientific notation: re-export the column as text")
    if _FLOAT.fullmatch(text):
        raise refuse("float", "a number with decimals: re-export the column as text")


def compact(text: str) -> str:
    """Without the spaces and hyphens that people put between groups of digits."""
    return text.translate(_SEPARATORS)
