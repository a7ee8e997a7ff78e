"""One entry's proof that can be checked offline (C2SP tlog-proof)."""

from dataclasses import dataclass

from .. import merkle
from ..errors import DecodeError
from . import notes

_FIRST = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True)
class LogProof:
    """Where an entry stands, the way to the root, and the signed head; nothing is verified yet."""

    index: int
    path: tuple[bytes, ...]
    head: bytes  # a signed note

    def __str__(self) -> str:
        lines = [_FIRST, f"index {self.index}", *map(notes.encode_base64, self.path), ""]
        return "".join(f"{line}\n" for line in lines) + self.head.decode()

    @classmethod
    def parse(cls, text: str) -> "LogProof":
        """Raise `DecodeError`. `extra` is refused: it is not authenticated and nothing here needs it."""
        before, blank, head = text.partition("\n\n")
        first, *lines = before.split("\n")
        if first != _FIRST or not blank:
            raise DecodeError("not a c2sp.org/tlog-proof@v1")
        if not lines or not lines[0].startswith("index "):
            raise DecodeError("the proof's second line is not its index")
        index = notes.decode_decimal(lines[0].removeprefix("index "), "the index")
        path = tuple(notes.decode_base64(line, "a line of the proof") for line in lines[1:])
        if len(path) > merkle.MAX_PROOF or any(len(each) != merkle.HASH for each in path):
            raise DecodeError("a line of the proof is not a hash, or there are too many")
        return cls(index, path, head.encode())
