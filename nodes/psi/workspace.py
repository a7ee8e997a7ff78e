"""One session's points on disk, in a folder that goes with the session: sets may be larger than memory.

What lies here are points, numbers of rows, values and keyed hashes; nobody else's, and nothing that names anybody without the exponents,
which are in memory alone. Files of records of equal size, each beginning with a point: points are uniform, so what does not fit into memory is
dealt out by their first bits, to be sorted or compared part by part. A point is four numbers of 64 bits, big-endian: in the order of its bytes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from protocols import group
from protocols.errors import DecodeError, MisuseError

from ..files import remove

Array = NDArray[Any]  # of records; of points, n × 4 words

_ROWS = 8_192  # points in one message
_AT_ONCE = 1 << 16  # records that are dealt out together
_IN_MEMORY = 1 << 18  # records that are sorted or compared at once
_BUFFER = 1 << 16  # bytes of a file
# A file that has more is dealt out by so many bits of the first byte, whose lowest one is 0 in every point: of some 10^6 records a part
# fits into a core's own memory.
_BITS = 6
_PARTS = 1 << _BITS
_UNEVEN = 4  # times its share: as much no part of uniform points gets
_WORDS = ("point", ">u8", (group.POINT // 8,))
_POINT = np.dtype([_WORDS])
_ROW, _VALUE = ("row", "u8"), ("value", "u8")
_NAME = ("name", "V16")  # its identifier's keyed hash
_NUMBERED = np.dtype([_WORDS, ("place", "u8")])  # one of the other's points: which of them it is


class Records:
    """A file of records of one type, written to its end and read from its beginning."""

    def __init__(self, path: Path, kind: np.dtype[Any]) -> None:
        self._path, self._kind = path, kind
        path.touch(mode=0o600)
        self._file: BinaryIO = path.open("w+b", _BUFFER)
        self.count = 0

    def add(self, content: bytes) -> None:
        """Whole records."""
        self._file.write(content)
        self.count += len(content) // self._kind.itemsize

    def pieces(self, count: int = _ROWS) -> Iterator[bytes]:
        """So many records together, the last piece maybe fewer."""
        self._file.seek(0)
        while piece := self._file.read(count * self._kind.itemsize):
            yield piece

    def arrays(self, count: int = _AT_ONCE) -> Iterator[Array]:
        """In pieces of so many."""
        return (np.frombuffer(piece, self._kind) for piece in self.pieces(count))

    def each_of(self, counts: Iterable[int]) -> Iterator[Array]:
        """The records in order, so many at a time."""
        self._file.seek(0)
        for count in counts:
            yield np.frombuffer(self._file.read(count * self._kind.itemsize), self._kind)

    def remove(self) -> None:
        """It is not needed any more: what was not written yet, on a full disk maybe, need not be."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


class Workspace:
    """Made for one session by one thread, and removed with it. Raises `OSError` where the disk does.

    With `values` and `names` each own point has one, beside its row.
    """

    def __init__(self, path: Path, *, values: bool = False, names: bool = False) -> None:
        self._path = path
        details = np.dtype([_ROW, *[_VALUE] * values, *[_NAME] * names])
        self._kind = np.dtype([_WORDS, ("details", details)])
        remove(path)
        path.mkdir(mode=0o700)
        self._files: list[Records] = []
        try:
            self._masked = self._records("masked", self._kind)
            self._own = self._records("own", _POINT)
            self._details = self._records("details", details)
            self._theirs = self._records("theirs", _POINT)
            self._own_doubled = self._records("own-doubled", _POINT)
            self._their_doubled = self._records("their-doubled", _POINT)
            self._common = self._records("common", self._kind)
        except BaseException:
            self.close()
            raise
        self._weighted: Records | None = None
        self._theirs_met = np.zeros(0, bool)  # which of the other's points have met one, if they have weights

    def close(self) -> None:
        """Remove everything."""
        try:
            for each in self._files:
                each.remove()
        finally:
            remove(self._path)

    def _records(self, name: str, kind: np.dtype[Any]) -> Records:
        made = Records(self._path / name, kind)
        self._files.append(made)
        return made

    def _done_with(self, *files: Records) -> None:
        for each in files:
            each.remove()
            self._files.remove(each)

    def _dealt(
        self, name: str, arrays: Iterable[Array], kind: np.dtype[Any], count: int, strange: bool = False
    ) -> Iterator[Array]:
        """The records part by part, in one part where `count` fits into memory; `name` is of the parts' files.

        `strange`: the other side has chosen what the points are. Raises `DecodeError` where too many of those begin alike.
        """
        if count <= _IN_MEMORY:
            yield np.concatenate([np.empty(0, kind), *arrays], dtype=kind)
            return
        files = [self._records(f"{name}-{i}", kind) for i in range(_PARTS)]
        for records in arrays:
            part = (records["point"][:, 0] >> np.uint64(64 - _BITS)).astype(np.uint8)
            ends = np.cumsum(np.bincount(part, minlength=_PARTS))[:-1]
            hands = np.split(records[np.argsort(part, kind="stable")], ends)
            for file, hand in zip(files, hands, strict=True):
                file.add(hand.tobytes())
        for file in files:
            if strange and file.count > max(_IN_MEMORY, _UNEVEN * count // _PARTS):
                raise DecodeError("the points do not look like doubled ones: too many begin alike")
            (part,) = file.each_of([file.count])
            yield part
            self._done_with(file)

    # -- own points ------------------------------------------------------------------------------------------

    def add_masked(
        self, points: bytes, rows: Sequence[int], values: Sequence[int] = (), hashes: Sequence[bytes] = ()
    ) -> None:
        """Own masked points, as they come: each one's row, and its value and its identifier's keyed hash (16 bytes), if it has them."""
        records = np.zeros(len(points) // group.POINT, self._kind)
        if any(len(each) not in (0, len(records)) for each in (values, hashes)) or len(rows) != len(records):
            raise MisuseError("each point has one row, and one value and hash if there are any")
        records["point"] = np.frombuffer(points, _POINT)["point"]
        records["details"]["row"] = rows
        if values:
            records["details"]["value"] = values
        if hashes:
            records["details"]["name"] = np.frombuffer(b"".join(hashes), "V16")
        self._masked.add(records.tobytes())

    def sort_own(self, dummies: Callable[[int], Iterable[bytes]]) -> int:
        """Put them in ascending order, with `dummies(how many they are)` between them; those have row 0.

        Points that are repeated become one, with the first of their rows and the sum of their values. Returns how many they are then.
        """
        distinct, sizes = self._records("distinct", self._kind), []
        # An identifier in every other row is to fill no part: of each piece of the file one stays.
        pieces = (_once(records) for records in self._masked.arrays(_ROWS))
        for part in self._dealt("part", pieces, self._kind, self._masked.count):
            once = _once(part)
            distinct.add(once.tobytes())
            sizes.append(len(once))
        filling = self._records("filling", _POINT)
        for points in dummies(distinct.count):
            filling.add(points)
        # In as many parts as before, so that each pair is one part of the whole.
        fills = self._dealt("part", filling.arrays(), _POINT, self._masked.count)
        for part, fill in zip(distinct.each_of(sizes), fills, strict=True):
            rest = np.zeros(len(fill), self._kind)
            rest["point"] = fill["point"]
            whole = np.concatenate([part, rest], dtype=self._kind)
            whole = whole[_ascending(whole["point"])[0]]
            self._own.add(whole["point"].tobytes())
            self._details.add(whole["details"].tobytes())
        self._done_with(self._masked, filling, distinct)
        return distinct.count

    def own(self) -> Iterator[bytes]:
        """Own masked points in messages, ascending."""
        return self._own.pieces()

    def own_weighted(self, count: int) -> Iterator[tuple[bytes, list[int]]]:
        """Own masked points in messages of `count`, ascending, with their values; 0 for dummies."""
        for points, details in zip(self._own.pieces(count), self._details.arrays(count), strict=True):
            yield points, details["value"].tolist()

    # -- what comes and goes ---------------------------------------------------------------------------------

    def add_theirs(self, points: bytes, ciphertexts: bytes = b"", size: int = 1) -> None:
        """The other's masked points, as they come, and for a sum the ciphertexts of their values."""
        self._theirs.add(points)
        if ciphertexts:
            if self._weighted is None:
                self._weighted = self._records("weighted", np.dtype((np.void, size)))
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
        for part in self._dealt("part", points.arrays(), _POINT, points.count):
            ordered = part[_ascending(part["point"])[0]]
            for i in range(0, len(ordered), _ROWS):
                yield ordered[i : i + _ROWS].tobytes()

    # -- comparing -------------------------------------------------------------------------------------------

    def prepare_to_compare(self) -> None:
        """Both doubled sequences are here. Raises `DecodeError` where the other side doubled two points to the same one."""
        own, theirs, weighted = self._own_doubled, self._their_doubled, self._weighted is not None
        self._theirs_met = np.zeros(theirs.count if weighted else 0, bool)
        count = max(own.count, theirs.count)
        mine = self._dealt("mine", self._own_with_details(), self._kind, count, strange=True)
        others = self._dealt(
            "others",
            _numbered(theirs) if weighted else theirs.arrays(),
            _NUMBERED if weighted else _POINT,
            count,
        )
        for own_part, their_part in zip(mine, others, strict=True):
            met, by = _met(own_part["point"], their_part["point"])
            self._common.add(own_part[met].tobytes())
            if weighted:
                self._theirs_met[their_part["place"][by]] = True

    def _own_with_details(self) -> Iterator[Array]:
        for points, details in zip(self._own_doubled.arrays(), self._details.arrays(), strict=True):
            records = np.empty(len(points), self._kind)
            records["point"], records["details"] = points["point"], details
            yield records

    def common(self) -> int:
        """How many doubled points both sequences have; of a cardinality nobody can say whose they are."""
        return self._common.count

    def common_rows(self) -> list[int]:
        """Own rows whose points met one of the other's, ascending."""
        rows = np.concatenate(
            [np.empty(0, "u8"), *(records["details"]["row"] for records in self._common.arrays())]
        )
        found: list[int] = np.sort(rows[rows > 0]).tolist()
        return found

    def common_elements(self) -> Iterator[tuple[bytes, bytes, int]]:
        """(doubled point, keyed hash of the own identifier, its row) of what both have."""
        for records in self._common.arrays():
            details = records["details"]
            for point, row, name in zip(records["point"], details["row"], details["name"], strict=True):
                if row:
                    yield point.tobytes(), bytes(name), int(row)

    def ciphertexts(self, count: int) -> Iterator[tuple[bytes, list[bool]]]:
        """Of all of the other's elements, so many together, and which of them met one."""
        start = 0
        for ciphertexts in self._weighted.pieces(count) if self._weighted else ():
            yield ciphertexts, self._theirs_met[start : start + count].tolist()
            start += count


def _numbered(records: Records) -> Iterator[Array]:
    start = 0
    for points in records.arrays():
        numbered = np.empty(len(points), _NUMBERED)
        numbered["point"] = points["point"]
        numbered["place"] = np.arange(start, start + len(points), dtype="u8")
        yield numbered
        start += len(points)


def _first_words(points: Array) -> Array:
    return points[:, 0].astype("u8")


def _like_the_next(ascending: Array) -> Array:
    alike: Array = ascending[1:] == ascending[:-1]
    return alike


def _sorted(points: Array) -> Array:
    """Their order by all of their bytes; equal ones in the order that they have."""
    return np.lexsort([word.astype("u8") for word in points.T[::-1]])


def _equal(points: Array, others: Array) -> Array:
    """Which of them (n × 4 words each) are the same."""
    same: Array = np.logical_and.reduce(
        [points[:, word] == others[:, word] for word in range(points.shape[1])]
    )
    return same


def _ascending(points: Array) -> tuple[Array, bool]:
    """The order of points (n × 4 words) by all of their bytes, and whether some of them begin with the same word."""
    first = _first_words(points)
    order = np.argsort(first)
    alike = bool(_like_the_next(first[order]).any())
    return _sorted(points) if alike else order, alike


def _once(records: Array) -> Array:
    """Each point once, ascending: with the first row, and the sum of the values."""
    order, alike = _ascending(records["point"])
    records = records[order]
    if not alike:
        return records
    points = records["point"]
    starts = np.flatnonzero(np.concatenate([[True], ~_equal(points[1:], points[:-1])]))
    once = records[starts]
    once["details"]["row"] = np.minimum.reduceat(records["details"]["row"], starts)
    if "value" in (records["details"].dtype.names or ()):
        once["details"]["value"] = np.add.reduceat(records["details"]["value"], starts)
    return once


def _met(own: Array, theirs: Array) -> tuple[Array, Array]:
    """(place in own, place in theirs) of the points that both have; theirs are distinct.

    Raises `DecodeError` where own ones are not: the other side has doubled two to the same.
    """
    points = np.concatenate([own, theirs])
    first = _first_words(points)
    # Equal points stand side by side also by the first word alone, unless two of one side share it. Which way is taken shows in
    # the time: it depends on either side's points, and not on what both have.
    chosen = any(_like_the_next(np.sort(_first_words(each))).any() for each in (own, theirs))
    order = _sorted(points) if chosen else np.argsort(first)
    alike = np.flatnonzero(_like_the_next(first[order]))
    before, after = order[alike], order[alike + 1]
    equal = _equal(points[before], points[after])
    before, after = before[equal], after[equal]
    low, high = np.minimum(before, after), np.maximum(before, after)
    if (high < len(own)).any():
        raise DecodeError("the other side doubled two points to the same one")
    return low, high - len(own)
