"""Payment cards and bank accounts."""

import re

from stdnum import iban
from stdnum.exceptions import InvalidComponent, ValidationError

from . import checksums
from .institutions import Directory, code_of
from .text import compact, refuse

_LIKE_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}")


def card(text: str) -> tuple[str, str]:
    """(number, note); a number without a Luhn check digit is taken, and noted. Raises `IdentifierError`."""
    digits = compact(text)
    if not (digits.isascii() and digits.isdigit() and 12 <= len(digits) <= 19):
        raise refuse("card", "a card number has 12 to 19 digits")
    if len(set(digits)) == 1:
        raise refuse("placeholder", "a placeholder, not a card number")
    return digits, "" if checksums.luhn(digits) else "no Luhn check digit"


def is_iban(number: str) -> bool:
    """Whether a number in capital letters is an IBAN. Raises `IdentifierError` for one that is nearly so.

    ISO 13616: the country's length and structure from the registry, check digits from 02 to 98.
    """
    if not _LIKE_IBAN.fullmatch(number):
        return False
    try:
        iban.validate(number, check_country=False)
    except InvalidComponent:
        return False  # the country has no IBAN
    except ValidationError:
        if not iban._ibandb.info(number)[0][1]:
            return False
        raise refuse(
            "account", "it begins as an IBAN, but length, structure or check digits are wrong"
        ) from None
    if not 2 <= int(number[2:4]) <= 98:
        raise refuse("account", "the check digits of an IBAN are from 02 to 98")
    return True


def account(text: str, institution: str, directory: Directory | None = None) -> tuple[str, str]:
    """(`IBAN/…`, or the institution's code, a slash and the number; note). Raises `IdentifierError`.

    The code is the directory's; where the network has none it is taken as given, and noted.
    """
    number = compact(text).upper()
    if is_iban(number):
        return f"IBAN/{number}", ""
    code = code_of(institution)
    if not code:
        raise refuse("institution", "a bank account needs the institution's code")
    if directory is not None:
        code, note = directory.resolve(code), ""
    else:
        note = "the network has no directory of institutions: under another code of its bank it is another account"
        if not (code.isascii() and code.isalnum() and 2 <= len(code) <= 14):
            raise refuse("institution", "not an institution code")
    if not (number.isascii() and number.isalnum() and 5 <= len(number) <= 34):
        raise refuse("account", "an account number has 5 to 34 letters and digits")
    if len(set(number)) == 1:
        raise refuse("placeholder", "a placeholder, not an account number")
    return f"{code}/{number}", note
