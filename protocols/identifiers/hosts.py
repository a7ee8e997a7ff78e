"""Domains, e-mail addresses and IP addresses."""

import functools
import ipaddress
import re
import unicodedata

import idna
from publicsuffixlist import PublicSuffixList

from . import shared
from .text import STOPS, refuse

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LOCAL = re.compile(r"[^\s@\x00-\x1f\"(),:;<>\[\]\\。]{1,64}")


@functools.cache
def suffixes() -> PublicSuffixList:
    """The Public Suffix List, private section included (https://publicsuffix.org, MPL-2.0)."""
    return PublicSuffixList(accept_unknown=False)


@functools.lru_cache(maxsize=4096)
def _host(text: str) -> str:
    """ASCII form of a host name of at least two labels; underscores may stand in it, as in DNS."""
    wrong = refuse("domain", "not a domain name")
    try:
        mapped = idna.uts46_remap(text.translate(STOPS), std3_rules=False)
        labels = mapped.removesuffix(".").split(".")
        encoded = ".".join(
            each if _LABEL.fullmatch(each) and not each.startswith("xn--") else _encoded(each)
            for each in labels
        )
    except (idna.IDNAError, UnicodeError):
        raise wrong from None
    if len(labels) < 2 or labels[-1].isdigit() or len(encoded) > 253:
        raise wrong
    return encoded


def _encoded(label: str) -> str:
    return idna.encode(label, uts46=True).decode()


def has_known_suffix(text: str) -> bool:
    """Whether a host name ends in a suffix of the public list."""
    host = text.translate(STOPS).lower().rstrip(".")
    return suffixes().publicsuffix(host) not in (None, host)


def domain(text: str) -> str:
    """A domain without `www.`; raises `IdentifierError` for one under which many people have names or pages."""
    host = _host(text)
    bare = host.removeprefix("www.")
    # www.gov.cn is a site of its own: what follows `www.` there is a public suffix.
    if "." in bare and not suffixes().is_public(bare):
        host = bare
    if suffixes().is_public(host) or host in shared.SHARED_DOMAINS:
        raise refuse("shared", "a domain that many people share")
    return host


def email(text: str) -> str:
    """Lower-case domain in ASCII, case-folded local part. Raises `IdentifierError`."""
    local, separator, host = text.rpartition("@")
    if not separator or not _LOCAL.fullmatch(local) or local[0] == "." or local[-1] == "." or ".." in local:
        raise refuse("email", "not an e-mail address")
    return f"{unicodedata.normalize('NFKC', local.casefold())}@{_host(host)}"


def ip(text: str) -> str:
    """RFC 5952 text of a public address. Raises `IdentifierError`."""
    try:
        address = ipaddress.ip_address(text.translate(STOPS).strip("[]"))
    except ValueError:
        raise refuse("ip", "not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            raise refuse("ip", "an address with a zone is local")
        address = address.ipv4_mapped or address
    if not address.is_global or address.is_multicast:
        raise refuse("shared", "a private or reserved address, used by many")
    return str(address)
