"""One session's points on disk, in a folder that goes with the session: sets may be larger than memory.

What lies here are points, numbers of rows, values and keyed hashes; nobody else's, and nothing that names anybody without the exponents,
which are in memory alone. Files of records of equal size, each beginning with a point: points are uniform, so what does not fit into memory is
dealt out by their first byte, to be sorted or compared part by part.
"""

import contextlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from protocols import group
from protocols.errors import DecodeError

_ROWS = 8_192  # points in one message
_IN_MEMORY = 1 << 17  # records that are sorted or compared at once
_PARTS = 64  # of a file that has more: by the first byte, whose lowest bit is 0 in every point
_UNEVEN = 4  # times its share: as much no part of uniform points gets
_POINT = group.POINT
_DETAILS = struct.Struct(">QQ16s")  # of an own point: row, value, keyed hash of its identifier
_OWN = _POINT + _DETAILS.size
_ROW = struct.Struct(f">{_POINT}xQ{_OWN - _POINT - 8}x")  # of an own point with its details
_PLACE = struct.Struct(">Q")  # of one of the other's points: which of them it is
_NUMBERED = _POINT + _PLACE.size
_NO_HASH = bytes(16)


class Records:
    """A file of records of `width` bytes each, written to its end and read from its beginning."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width
        path.touch(mode=0o600)
        self._file: BinaryIO = path.open("w+b")
        self.count = 0

    def add(self, content: bytes) -> None:
        """Whole records."""
        self._file.write(content)
        self.count += len(content) // self._width

    def pieces(self, count: int = _ROWS) -> Iterator[bytes]:
        """So many records together, the last piece maybe fewer."""
        self._file.seek(0)
        while piece := self._file.read(count * self._width):
            yield piece

    def each_of(self, counts: Iterable[int]) -> Iterator[list[bytes]]:
        """The records in order, so many at a time."""
        self._file.seek(0)
        for count in counts:
            yield group.split(self._file.read(count * self._width), self._width)

    def lists(self) -> Iterator[list[bytes]]:
        """In pieces, split."""
        return (group.split(piece, self._width) for piece in self.pieces())

    def remove(self) -> None:
        """It is not needed any more: what was not written yet, on a full disk maybe, need not be."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


class Workspace:
    """Made for one session by one thread, and removed with it. Raises `OSError` where the disk does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        remove(path)
        path.mkdir(mode=0o700)
        self._files: list[Records] = []
        try:
            self._masked = self._records("masked", _OWN)
            self._own = self._records("own", _POINT)
            self._details = self._records("details", _DETAILS.size)
            self._theirs = self._records("theirs", _POINT)
            self._own_doubled = self._records("own-doubled", _POINT)
            self._their_doubled = self._records("their-doubled", _POINT)
            self._common = self._records("common", _OWN)
        except BaseException:
            self.close()
            raise
        self._weighted: Records | None = None
        # For each of the other's points, if they have weights: 1 where it met one.
        self._theirs_met = bytearray()

    def close(self) -> None:
        """Remove everything."""
        try:
            for each in self._files:
                each.remove()
        finally:
            remove(self._path)

    def _records(self, name: str, width: int) -> Records:
        made = Records(self._path / name, width)
        self._files.append(made)
        return made

    def _done_with(self, *files: Records) -> None:
        for each in files:
            each.remove()
            self._files.remove(each)

    def _dealt(
        self, name: str, lists: Iterable[list[bytes]], width: int, count: int, strange: bool = False
    ) -> Iterator[list[bytes]]:
        """The records part by part, in one part where `count` fits into memory; `name` is of the parts' files.

        `strange`: the other side has chosen what the points are. Raises `DecodeError` where too many of those begin alike.
        """
        if count <= _IN_MEMORY:
            yield [record for records in lists for record in records]
            return
        files = [self._records(f"{name}-{i}", width) for i in range(_PARTS)]
        hands: list[list[bytes]] = [[] for _ in files]
        deal = [hands[first * _PARTS >> 8].append for first in range(256)]
        for records in lists:
            for record in records:
                deal[record[0]](record)
            for file, hand in zip(files, hands, strict=True):
                file.add(b"".join(hand))
                hand.clear()
        for file in files:
            if strange and file.count > max(_IN_MEMORY, _UNEVEN * count // _PARTS):
                raise DecodeError("the points do not look like doubled ones: too many begin alike")
            yield [record for records in file.lists() for record in records]
            self._done_with(file)

    # -- own points ------------------------------------------------------------------------------------------

    def add_masked(
        self, points: bytes, rows: Sequence[int], values: Sequence[int] = (), hashes: Sequence[bytes] = ()
    ) -> None:
        """Own masked points, as they come: each one's row, and maybe its value and its identifier's keyed hash (16 bytes)."""
        values, hashes = values or [0] * len(rows), hashes or [_NO_HASH] * len(rows)
        pack = _DETAILS.pack
        each = zip(group.split(points), rows, values, hashes, strict=True)
        self._masked.add(b"".join([point + pack(row, value, name) for point, row, value, name in each]))

    def sort_own(self, dummies: Callable[[int], Iterable[bytes]]) -> int:
        """Put them in ascending order, with `dummies(how many they are)` between them; those have row 0.

        Points that are repeated become one, with the first of their rows and the sum of their values. Returns how many they are then.
        """
        distinct, sizes = self._records("distinct", _OWN), []
        # An identifier in every other row is to fill no part: of each piece of the file one stays.
        pieces = (_once(records) for records in self._masked.lists())
        for part in self._dealt("part", pieces, _OWN, self._masked.count):
            once = _once(part)
            distinct.add(b"".join(once))
            sizes.append(len(once))
        filling = self._records("filling", _POINT)
        for points in dummies(distinct.count):
            filling.add(points)
        rest = _DETAILS.pack(0, 0, _NO_HASH)
        # In as many parts as before, so that each pair is one part of the whole.
        fills = self._dealt("part", filling.lists(), _POINT, self._masked.count)
        for part, fill in zip(distinct.each_of(sizes), fills, strict=True):
            part += [point + rest for point in fill]
            part.sort()
            self._own.add(b"".join([record[:_POINT] for record in part]))
            self._details.add(b"".join([record[_POINT:] for record in part]))
        self._done_with(self._masked, filling, distinct)
        return distinct.count

    def own(self) -> Iterator[bytes]:
        """Own masked points in messages, ascending."""
        return self._own.pieces()

    def own_weighted(self, count: int) -> Iterator[tuple[bytes, list[int]]]:
        """Own masked points in messages of `count`, ascending, with their values; 0 for dummies."""
        for points, details in zip(self._own.pieces(count), self._details.pieces(count), strict=True):
            yield points, [value for _, value, _ in _DETAILS.iter_unpack(details)]

    # -- what comes and goes ---------------------------------------------------------------------------------

    def add_theirs(self, points: bytes, ciphertexts: bytes = b"", size: int = 1) -> None:
        """The other's masked points, as they come, and for a sum the ciphertexts of their values."""
        self._theirs.add(points)
        if ciphertexts:
            if self._weighted is None:
                self._weighted = self._records("weighted", size)
            self._weighted.add(ciphertexts)

    def theirs(self) -> Iterator[bytes]:
        """In messages, as they came."""
        return self._theirs.pieces()

    def add_own_doubled(self, points: bytes) -> None:
        """Own points, doubled by the other, as they come."""
        self._own_doubled.add(points)

    def add_their_doubled(self, points: bytes) -> None:
        """The other's points, doubled here, as they came."""
        self._their_doubled.add(points)

    def their_doubled(self, as_they_came: bool) -> Iterator[bytes]:
        """In messages; else ascending."""
        if as_they_came:
            yield from self._their_doubled.pieces()
            return
        points = self._their_doubled
        for part in self._dealt("part", points.lists(), _POINT, points.count):
            part.sort()
            for i in range(0, len(part), _ROWS):
                yield b"".join(part[i : i + _ROWS])

    # -- comparing -------------------------------------------------------------------------------------------

    def prepare_to_compare(self) -> None:
        """Both doubled sequences are here. Raises `DecodeError` where the other side doubled two points to the same one."""
        own, theirs, weighted = self._own_doubled, self._their_doubled, self._weighted is not None
        self._theirs_met = bytearray(theirs.count if weighted else 0)
        count = max(own.count, theirs.count)
        mine = self._dealt("mine", self._own_with_details(), _OWN, count, strange=True)
        others = self._dealt(
            "others",
            _numbered(theirs) if weighted else theirs.lists(),
            _NUMBERED if weighted else _POINT,
            count,
        )
        for own_part, their_part in zip(mine, others, strict=True):
            points = [record[:_POINT] for record in own_part]
            distinct = set(points)
            if len(distinct) < len(points):
                raise DecodeError("the other side doubled two points to the same one")
            both = distinct.intersection(
                [record[:_POINT] for record in their_part] if weighted else their_part
            )
            met = [record for point, record in zip(points, own_part, strict=True) if point in both]
            self._common.add(b"".join(met))
            for record in their_part if weighted else ():
                if record[:_POINT] in both:
                    self._theirs_met[_PLACE.unpack(record[_POINT:])[0]] = 1

    def _own_with_details(self) -> Iterator[list[bytes]]:
        for points, details in zip(self._own_doubled.lists(), self._details.lists(), strict=True):
            yield [point + detail for point, detail in zip(points, details, strict=True)]

    def common(self) -> int:
        """How many doubled points both sequences have; of a cardinality nobody can say whose they are."""
        return self._common.count

    def common_rows(self) -> list[int]:
        """Own rows whose points met one of the other's, ascending."""
        rows = [row for piece in self._common.pieces() for (row,) in _ROW.iter_unpack(piece)]
        return sorted(row for row in rows if row)

    def common_elements(self) -> Iterator[tuple[bytes, bytes, int]]:
        """(doubled point, keyed hash of the own identifier, its row) of what both have."""
        for records in self._common.lists():
            for record in records:
                row, _, name = _DETAILS.unpack_from(record, _POINT)
                if row:
                    yield record[:_POINT], name, row

    def ciphertexts(self, count: int) -> Iterator[tuple[bytes, list[bool]]]:
        """Of all of the other's elements, so many together, and which of them met one."""
        start = 0
        for ciphertexts in self._weighted.pieces(count) if self._weighted else ():
            met = self._theirs_met[start : start + count]
            yield ciphertexts, [bool(each) for each in met]
            start += count


def remove(path: Path) -> None:
    """A session's folder, also one that a crash has left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _numbered(records: Records) -> Iterator[list[bytes]]:
    start = 0
    for points in records.lists():
        yield [point + _PLACE.pack(i) for i, point in enumerate(points, start)]
        start += len(points)


def _once(records: list[bytes]) -> list[bytes]:
    """Each point once: with the first row, and the sum of the values."""
    if len({record[:_POINT] for record in records}) == len(records):
        return records
    once: list[bytes] = []
    last = b""
    for record in sorted(records):
        if not last.startswith(record[:_POINT]):
            last = record
            once.append(record)
            continue
        row, value, name = _DETAILS.unpack_from(last, _POINT)
        more = _DETAILS.unpack_from(record, _POINT)[1]
        last = once[-1] = last[:_POINT] + _DETAILS.pack(row, value + more, name)
    return once
