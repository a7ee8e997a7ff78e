"""Addresses of crypto currencies: the known forms, each with its check sum, and one spelling for each account.

What has none of these forms is refused: an address that nobody can check is as likely a slip.
"""

import base64
import binascii
import re
from collections.abc import Callable

from base58_bech32 import base58, bech32, cashaddr, ss58
from Crypto.Hash import keccak

from .text import refuse

_SCHEME = re.compile(
    r"(?:bitcoin|ethereum|litecoin|dogecoin|dash|zcash|tron|ripple|xrpl|monero|solana|stellar|web\+stellar)"
    r":(?://)?(?:pay-)?([^?]+)(?:\?.*)?",
    re.IGNORECASE,
)
_CASH_PREFIXES = ("bitcoincash", "ecash", "simpleledger", "bchtest")
_EVM = re.compile(r"(?:0[xX])?([0-9a-fA-F]{40})(?:@[0-9]+)?")  # EIP-681 may name a chain
_TRON_HEX = re.compile(r"(?:0[xX])?(41[0-9a-fA-F]{40})")
_LONG_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]{64})")  # Sui, Aptos, Starknet
_TON = re.compile(r"[A-Za-z0-9+/_-]{48}")
_TON_RAW = re.compile(r"(-1|0):([0-9a-fA-F]{64})")
_STELLAR = re.compile(r"G[A-Z2-7]{55}", re.IGNORECASE)
_CHECKED_LENGTHS = (21, 22, 23)  # bytes before the check sum: one to three of version, then a 20-byte hash
_SEGWIT = frozenset({"bc", "tb", "ltc", "tltc"})
_MONERO_BLOCK = {2: 1, 3: 2, 5: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8}  # characters to bytes
_MONERO_LENGTHS = (69, 77)  # bytes of a standard and of an integrated address
_BECH32_CHARACTERS = 1_023  # Cardano's and Zcash's unified addresses are longer than BIP 173's 90


def crypto(text: str) -> str:
    """The one spelling of an address. Raises `IdentifierError` where no known form or check sum fits."""
    if not text.isascii():
        raise refuse("crypto", "not an address of a crypto currency")
    scheme = _SCHEME.fullmatch(text)
    address = scheme[1] if scheme else text
    for form in _FORMS:
        found = form(address)
        if found:
            return found
    raise refuse("crypto", "no known form of an address, or its check sum is wrong")


def _keccak(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def _hexadecimal(text: str) -> str | None:
    match = _EVM.fullmatch(text)
    if match is None:
        long = _LONG_HEX.fullmatch(text)
        if long is not None and int(long[1], 16) == 0:
            raise refuse("shared", "the zero address")
        return f"0x{long[1].lower()}" if long else None
    digits = match[1]
    if int(digits, 16) == 0:
        raise refuse("shared", "the zero address")
    lower = digits.lower()
    if digits not in (lower, digits.upper()) and digits != _eip55(lower):
        raise refuse("crypto", "the address's capital letters are its check sum (EIP-55), and it is wrong")
    return f"0x{lower}"


def _eip55(lower: str) -> str:
    """The capital letters of a lower-case address without `0x`."""
    digest = _keccak(lower.encode()).hex()
    return "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(lower, digest, strict=False))


def _tron_hex(text: str) -> str | None:
    match = _TRON_HEX.fullmatch(text)
    return base58.b58encode_check(bytes.fromhex(match[1])).decode() if match else None


def _base58_checked(text: str) -> str | None:
    for alphabet in (base58.BITCOIN_ALPHABET, base58.RIPPLE_ALPHABET):
        if alphabet is base58.RIPPLE_ALPHABET and not text.startswith("r"):
            continue
        try:
            payload = base58.b58decode_check(text, alphabet=alphabet)
        except ValueError:
            continue
        if len(payload) in _CHECKED_LENGTHS:
            return text
    return None


def _bech32(text: str) -> str | None:
    try:
        prefix, data, constant = bech32.bech32_decode(text, limit=_BECH32_CHARACTERS)
    except ValueError:
        return None
    return text.lower() if prefix not in _SEGWIT or _is_segwit(text, data, constant) else None


def _is_segwit(text: str, data: list[int], constant: int) -> bool:
    """BIP 173 and BIP 350: the witness version decides the constant and the program's length."""
    if len(text) > 90 or not data or data[0] > 16:
        return False
    try:
        program = bech32.convertbits(data[1:], 5, 8, pad=False)
    except ValueError:
        return False
    if data[0] == 0:
        return constant == bech32.BECH32_1_CONST and len(program) in (20, 32)
    return constant == bech32.BECH32_M_CONST and 2 <= len(program) <= 40


def _bitcoin_cash(text: str) -> str | None:
    named = text.partition(":")[0].lower() if ":" in text else None
    for prefix in _CASH_PREFIXES:
        if named not in (None, prefix):
            continue
        try:
            cashaddr.cashaddr_decode(text, prefix=prefix)
        except ValueError:
            continue
        return f"{prefix}:{text.rpartition(':')[2].lower()}"
    return None


def _ton(text: str) -> str | None:
    """TEP-2: bounceable, not bounceable and raw are spellings of one account; raw stands."""
    raw = _TON_RAW.fullmatch(text)
    if raw:
        return f"{raw[1]}:{raw[2].lower()}"
    if not _TON.fullmatch(text):
        return None
    data = base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_"))
    if data[0] & 0x7F not in (0x11, 0x51) or binascii.crc_hqx(data, 0) != 0:
        return None
    return f"{int.from_bytes(data[1:2], 'big', signed=True)}:{data[2:34].hex()}"


def _stellar(text: str) -> str | None:
    """SEP-23 account IDs: base32 with a CRC-16."""
    if not _STELLAR.fullmatch(text):
        return None
    data = base64.b32decode(text.upper())
    return text.upper() if binascii.crc_hqx(data[:-2], 0) == int.from_bytes(data[-2:], "little") else None


def _monero(text: str) -> str | None:
    """CryptoNote's base58 in blocks of 11 characters; the last four bytes are Keccak's."""
    if len(text) not in (95, 106):
        return None
    data = b""
    for start in range(0, len(text), 11):
        block = text[start : start + 11]
        size = _MONERO_BLOCK[len(block)]
        try:
            number = int.from_bytes(base58.b58decode(block), "big")
            data += number.to_bytes(size, "big")
        except (ValueError, OverflowError):
            return None
    whole = len(data) in _MONERO_LENGTHS and _keccak(data[:-4])[:4] == data[-4:]
    return text if whole else None


def _substrate(text: str) -> str | None:
    try:
        ss58.ss58_decode(text)
    except ValueError:
        return None
    return text


def _solana(text: str) -> str | None:
    """32 bytes in base58, which carry no check sum."""
    try:
        data = base58.b58decode(text, max_length=44)
    except ValueError:
        return None
    if len(data) != 32:
        return None
    if not any(data):
        raise refuse("shared", "the zero address")
    return text


_FORMS: tuple[Callable[[str], str | None], ...] = (
    _hexadecimal,
    _tron_hex,
    _base58_checked,
    _bech32,
    _bitcoin_cash,
    _ton,
    _stellar,
    _monero,
    _substrate,
    _solana,
)
