"""The network's directory of institutions: every code and name that a bank goes by, mapped to one code.

One account under a CNAPS number, a clearing number and a BIC would be three identifiers. The members of a network agree on one
directory; its hash stands in the member list and in the form of every list that was normalised with it.

A directory is a text file in UTF-8: `lianfang/institutions/v1`, then one line an institution, sorted: its code, and after
tabs the further codes and names, sorted. A code that ends in `*` stands for all codes that begin so; of several the longest counts.
"""

import bisect
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from ..encoding import frame
from ..errors import DecodeError, IdentifierError, MisuseError
from .text import compact, refuse

HASH_BYTES = 32
MAX_BYTES = 16 << 20
_HEADER = "lianfang/institutions/v1"
_CODE = re.compile(r"[A-Z0-9]{2,14}")
_PREFIX = re.compile(r"[A-Z0-9]{3,13}")
_BIC = re.compile(r"[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?")
_NAME_CHARACTERS = 60


def code_of(text: str) -> str:
    """A code or name as it is compared: NFKC, capital letters, no spaces and hyphens; of a BIC the first 8 characters."""
    code = compact(unicodedata.normalize("NFKC", text)).upper()
    return code[:8] if _BIC.fullmatch(code) else code  # the branch is not part of who keeps the account


class Directory:
    """A checked directory."""

    def __init__(self, institutions: Mapping[str, Iterable[str]]) -> None:
        """`institutions` gives the further codes and names of each code.

        Raises `MisuseError` for a code that is none, or that two institutions have.
        """
        self._lines: dict[str, list[str]] = {}
        self._of: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        for given, others in institutions.items():
            main = code_of(given)
            if not _CODE.fullmatch(main):
                raise MisuseError(f"{given!r} is no institution's code: 2 to 14 letters and digits")
            if main in self._lines:
                raise MisuseError(f"{main} stands in two lines")
            names = sorted({self._checked(main, other) for other in others} - {main, ""})
            self._lines[main] = names
            for name in (main, *names):
                known = self._prefixes if name.endswith("*") else self._of
                key = name.removesuffix("*")
                if known.setdefault(key, main) != main:
                    raise MisuseError(f"{name} stands for {known[key]} and for {main}")
        if not self._lines:
            raise MisuseError("a directory without institutions")
        self._longest = max(map(len, self._prefixes), default=0)
        self._sorted = sorted(self._of)

    @staticmethod
    def _checked(main: str, other: str) -> str:
        name = code_of(other)
        if name.endswith("*"):
            if not _PREFIX.fullmatch(name[:-1]):
                raise MisuseError(f"{main}: {other!r}: 3 to 13 letters and digits stand before the asterisk")
        elif "*" in name or not name.isprintable() or len(name) > _NAME_CHARACTERS:
            raise MisuseError(f"{main}: {other!r} is neither a code nor a name")
        return name

    def __len__(self) -> int:
        return len(self._lines)

    def encode(self) -> bytes:
        """The file's bytes; equal directories have equal bytes."""
        lines = ["\t".join((main, *names)) for main, names in sorted(self._lines.items())]
        return ("\n".join((_HEADER, *lines)) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> "Directory":
        """Raise `DecodeError` unless `data` is exactly what `encode` gives."""
        if len(data) > MAX_BYTES:
            raise DecodeError(f"directory of institutions: more than {MAX_BYTES >> 20} MiB")
        try:
            head, *lines = data.decode().removesuffix("\n").split("\n")
            rows = [line.split("\t") for line in lines]
            directory = cls({main: names for main, *names in rows})
        except (UnicodeDecodeError, ValueError, MisuseError) as error:
            raise DecodeError(f"directory of institutions: {error}") from error
        if head != _HEADER or directory.encode() != data:
            raise DecodeError("directory of institutions: not in its canonical form")
        return directory

    @property
    def hash(self) -> bytes:
        """SHA-256 of the file, domain separated."""
        return hash_of(self.encode())

    def knows(self, code: str) -> bool:
        """Whether `resolve` finds it."""
        try:
            self.resolve(code)
        except IdentifierError:
            return False
        return True

    def resolve(self, text: str) -> str:
        """The one code of the institution that `text` names; raises `IdentifierError` with a hint for an unknown one."""
        code = code_of(text)
        found = self._of.get(code)
        if found is None and _CODE.fullmatch(code):
            lengths = range(min(self._longest, len(code)), 2, -1)
            found = next(filter(None, (self._prefixes.get(code[:length]) for length in lengths)), None)
        if found is None:
            raise refuse(
                "institution",
                f"the network's directory of {len(self):,} institutions has no such code or name{self._hint(code)}: give "
                "the BIC, CNAPS or clearing number, or have the network's CA add it (lianfang ca directory)",
            )
        return found

    def _hint(self, code: str) -> str:
        """What the directory has that begins like an unknown code."""
        place = bisect.bisect(self._sorted, code)
        near = self._sorted[max(0, place - 1) : place + 1]
        like = [each for each in near if len(each) > 4 and each[:4] == code[:4]]
        return f" (it has {' and '.join(like)})" if like else ""


def hash_of(data: bytes) -> bytes:
    """SHA-256 of a directory's file, domain separated."""
    return hashlib.sha256(frame("lianfang/v1/institutions", data)).digest()
