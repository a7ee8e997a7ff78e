"""The normal form's name: its version, and a hash of all data that normalising depends on.

Numbering plans, public suffixes, registries and country names change between releases of the libraries that carry them.
Two members with different data could write one identifier in two ways and miss each other, so lists and set sessions
name the form that they were made under.
"""

import functools
import hashlib
import unicodedata
from importlib import metadata, resources
from importlib.resources.abc import Traversable

import idna

from ..encoding import frame
from . import countries, shared

VERSION = 2  # of the rules; a change to them is a new version, with vectors
HASH_BYTES = 16


def _files(place: Traversable) -> list[tuple[str, bytes]]:
    return sorted((each.name, each.read_bytes()) for each in place.iterdir() if each.name.endswith(".py"))


@functools.cache
def data_hash() -> bytes:
    """16 bytes: SHA-256 over the contents of all data files, and over the Unicode version behind NFKC and IDNA."""
    content = hashlib.sha256(b"lianfang/identifiers/data")
    names = sorted(countries.names().items())
    parts: list[tuple[str, bytes]] = [
        ("suffixes", (resources.files("publicsuffixlist") / "public_suffix_list.dat").read_bytes()),
        ("iban", (resources.files("stdnum") / "iban.dat").read_bytes()),
        ("countries", repr(names).encode()),
        ("shared", repr((sorted(shared.SHARED_DOMAINS), sorted(shared.PLACEHOLDER_DEVICES))).encode()),
        ("unicode", unicodedata.unidata_version.encode()),
        ("idna", metadata.version("idna").encode()),
        *_files(resources.files("phonenumbers") / "data"),
    ]
    assert idna.__version__ == metadata.version("idna")
    for name, data in parts:
        content.update(frame(name, data))
    return content.digest()[:HASH_BYTES]


def form(directory: bytes = b"") -> bytes:
    """The pair (version, data hash) as 18 bytes, as descriptors and greetings carry it.

    `directory` is the hash of the network's directory of institutions, empty for a network without one.
    """
    data = data_hash()
    if directory:
        data = hashlib.sha256(frame("lianfang/identifiers/directory", data, directory)).digest()[:HASH_BYTES]
    return VERSION.to_bytes(2, "big") + data


def form_text(value: bytes) -> str:
    """For people: `2:9f86d081`, or `unknown`."""
    return (
        f"{int.from_bytes(value[:2], 'big')}:{value[2:6].hex()}"
        if len(value) == 2 + HASH_BYTES
        else "unknown"
    )
