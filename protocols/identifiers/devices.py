"""Device identifiers: IMEI, MAC address, UUID, and whatever else an operating system or app calls a device."""

import re
import uuid

from . import checksums, shared
from .text import compact, refuse

_DEVICE = re.compile(r"[A-Za-z0-9._:-]{8,64}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_MAC = re.compile(
    r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}|[0-9a-fA-F]{4}(?:[.:-][0-9a-fA-F]{4}){2}|[0-9a-fA-F]{12}"
)
_UUID = re.compile(
    r"(?:urn:uuid:)?(\{)?([0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12})(?(1)\})",
    re.IGNORECASE,
)


def device(text: str) -> str:
    """`imei:…`, `mac:…` in pairs, a UUID in lower case, or the ID as it is. Raises `IdentifierError`."""
    digits = compact(text.removeprefix("imei:"))
    named_mac = text.removeprefix("mac:")
    written_uuid = _UUID.fullmatch(text)
    if len(digits) == 15 and digits.isascii() and digits.isdigit():
        if not checksums.luhn(digits):
            raise refuse("device", "an IMEI with a wrong check digit")
        value = f"imei:{digits}"
    elif _MAC.fullmatch(named_mac):
        hexadecimal = re.sub(r"[.:-]", "", named_mac).lower()
        value = "mac:" + ":".join(hexadecimal[i : i + 2] for i in range(0, 12, 2))
    elif written_uuid:
        value = str(uuid.UUID(written_uuid[2]))
    elif _DEVICE.fullmatch(text):
        value = text.lower() if _HEX.fullmatch(text) else text
    else:
        raise refuse("device", "a device ID has 8 to 64 letters, digits and . _ : -")
    serial = value.removeprefix("imei:").removeprefix("mac:")
    if value in shared.PLACEHOLDER_DEVICES or len(set(serial) - set("-:._")) <= 1:
        raise refuse("placeholder", "a placeholder that many devices share")
    return value
