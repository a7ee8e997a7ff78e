"""The tree and its entries in tiles of 256 (C2SP tlog-tiles v0.1.0).

Level 0 holds leaf hashes, level l+1 the roots of full tiles of level l, `ENTRIES` the leaves' data. A tile only
grows, so a partial one is the beginning of every later version of it.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from .. import merkle
from ..errors import DecodeError, MisuseError

HEIGHT = 8
WIDTH = 1 << HEIGHT
ENTRIES = -1
MAX_ENTRY = 65_535  # bytes
Reader = Callable[[int, int], bytes]  # (level, number) → all hashes there are
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?",
    re.ASCII,
)


def path(level: int, number: int, width: int = WIDTH) -> str:
    """Where a tile is read, below the log's prefix."""
    digits = f"{number:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    place = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    name = "entries" if level == ENTRIES else str(level)
    return f"tile/{name}/{place}" + (f".p/{width}" if width < WIDTH else "")


def parse_path(text: str) -> tuple[int, int, int]:
    """(level, number, width); raises `DecodeError` for any path that `path` does not make."""
    found = _PATH.fullmatch(text)
    if found is None or len(text) > 80:
        raise DecodeError("not a tile's path")
    level = ENTRIES if found["level"] == "entries" else int(found["level"])
    number = int(found["number"].replace("/", "").replace("x", ""))
    width = int(found["width"] or WIDTH)
    if level > 63 or path(level, number, width) != text:
        raise DecodeError("not a tile's path")
    return level, number, width


def width(level: int, number: int, size: int) -> int:
    """Hashes or entries of a tile in a tree of `size` leaves: 0 to 256."""
    return max(0, min(WIDTH, (size >> (HEIGHT * max(level, 0))) - number * WIDTH))


def pack(entries: Iterable[bytes]) -> bytes:
    """An entry bundle."""
    out = bytearray()
    for each in entries:
        if len(each) > MAX_ENTRY:
            raise MisuseError(f"an entry has at most {MAX_ENTRY} bytes")
        out += len(each).to_bytes(2, "big") + each
    return bytes(out)


def unpack(data: bytes) -> list[bytes]:
    """The entries of a bundle; raises `DecodeError` where it ends in the middle of one."""
    entries, place = [], 0
    while place < len(data):
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        if place + 2 > len(data) or end > len(data):
            raise DecodeError("an entry bundle ends in the middle of an entry")
        entries.append(data[place + 2 : end])
        place = end
    return entries


def cut(level: int, content: bytes, width: int) -> bytes:
    """The first `width` entries or hashes of a tile."""
    if level == ENTRIES:
        return pack(unpack(content)[:width])
    return content[: width * merkle.HASH]


def grow(size: int, leaves: Sequence[bytes], read: Reader) -> dict[tuple[int, int], bytes]:
    """New contents of every tile that changes when leaf hashes are appended to a tree of `size`."""
    changed: dict[tuple[int, int], bytes] = {}
    level, fresh = 0, list(leaves)
    while fresh:
        count = size >> (HEIGHT * level)
        upper, place = [], 0
        while place < len(fresh):
            number, used = divmod(count, WIDTH)
            part = fresh[place : place + WIDTH - used]
            place += len(part)
            before = read(level, number)[: used * merkle.HASH] if used else b""
            if len(before) != used * merkle.HASH:
                raise MisuseError(f"tile {path(level, number)} is shorter than the tree says")
            content = before + b"".join(part)
            changed[(level, number)] = content
            count += len(part)
            if len(content) == WIDTH * merkle.HASH:
                upper.append(_inner(content)[-1][0])
        level, fresh = level + 1, upper
    return changed


@functools.lru_cache(maxsize=256)
def _inner(content: bytes) -> list[list[bytes]]:
    """All perfect subtrees within a tile, level by level."""
    hashes = [content[i : i + merkle.HASH] for i in range(0, len(content), merkle.HASH)]
    levels = [hashes]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([merkle.node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])
    return levels


def nodes(read: Reader) -> merkle.Nodes:
    """A tree's perfect subtrees out of its tiles. Raises `MisuseError` for one that is not there."""

    def node(level: int, index: int) -> bytes:
        tile, inside = divmod(level, HEIGHT)
        number, place = divmod(index << inside, WIDTH)
        levels = _inner(read(tile, number))
        if inside >= len(levels) or place >> inside >= len(levels[inside]):
            raise MisuseError(f"tile {path(tile, number)} does not reach so far")
        return levels[inside][place >> inside]

    return node
