"""A session's points on disk: sorted, each once, compared; in memory or dealt out to files."""

import random
import secrets
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.psi import workspace
from nodes.psi.workspace import Workspace
from protocols.errors import DecodeError, MisuseError

_NAME = bytes(range(16))


def point(number: int) -> bytes:
    """As uniform as a point; the same for the same number."""
    return random.Random(number).randbytes(32)


def joined(numbers) -> bytes:
    return b"".join(map(point, numbers))


def messages(iterator) -> list[bytes]:
    content = b"".join(iterator)
    return [content[i : i + 32] for i in range(0, len(content), 32)]


@pytest.fixture(params=[1 << 17, 20], ids=["in-memory", "dealt"])
def limit(request, monkeypatch):
    monkeypatch.setattr(workspace, "_IN_MEMORY", request.param)


_numbers = st.lists(st.integers(0, 60), max_size=80)


@settings(max_examples=25, deadline=None)
@given(own=_numbers, theirs=st.sets(st.integers(0, 60)), dummies=st.integers(0, 20), piece=st.integers(1, 30))
@pytest.mark.usefixtures("limit")
def test_own_points_are_sorted_each_once_and_met_as_sets_say(tmp_path_factory, own, theirs, dummies, piece):
    place = tmp_path_factory.mktemp("psi") / "work"
    space = Workspace(place, values=True, names=True)
    rows = list(range(1, len(own) + 1))
    for i in range(0, len(own), piece):
        part = slice(i, i + piece)
        names = [bytes([number]) * 16 for number in own[part]]
        space.add_masked(joined(own[part]), rows[part], [10 + row for row in rows[part]], names)
    fill = [secrets.token_bytes(32) for _ in range(dummies)]
    told = []

    def filled(count):
        told.append(count)
        return [b"".join(fill[:3]), b"".join(fill[3:])] if len(fill) > 3 else fill

    assert space.sort_own(filled) == len(set(own))
    assert told == [len(set(own))]
    expected = sorted([*map(point, set(own)), *fill])
    assert messages(space.own()) == expected
    values: dict[bytes, int] = {}
    first: dict[bytes, int] = {}
    for number, row in zip(own, rows, strict=True):
        values[point(number)] = values.get(point(number), 0) + 10 + row
        first.setdefault(point(number), row)
    weighted = [
        (p, value)
        for points, some in space.own_weighted(7)
        for p, value in zip(messages([points]), some, strict=True)
    ]
    assert weighted == [(each, values.get(each, 0)) for each in expected]

    # Doubled points stand for themselves here; what is compared are bytes.
    came = [*theirs]
    random.Random(1).shuffle(came)
    for number in came:
        space.add_theirs(point(number), number.to_bytes(2, "big"), 2)
        space.add_their_doubled(point(number))
    space.add_own_doubled(b"".join(expected))
    assert messages(space.theirs()) == messages(space.their_doubled(True)) == [*map(point, came)]
    assert messages(space.their_doubled(False)) == sorted(map(point, came))
    space.prepare_to_compare()
    both = set(own) & theirs
    assert space.common() == len(both)
    assert space.common_rows() == sorted(first[point(number)] for number in both)
    assert sorted(space.common_elements()) == sorted(
        (point(number), bytes([number]) * 16, first[point(number)]) for number in both
    )
    met = [
        (int.from_bytes(content[2 * i : 2 * i + 2], "big"), flag)
        for content, flags in space.ciphertexts(4)
        for i, flag in enumerate(flags)
    ]
    assert met == [(number, number in own) for number in came]
    space.close()
    assert not place.exists()


# Points that begin alike, as only somebody who chooses them gets them.
_chosen = st.builds(
    lambda head, tail: bytes([head]) * 8 + bytes(16) + tail.to_bytes(8, "big"),
    st.sampled_from([0, 8, 255]),
    st.integers(0, 5),
)


@settings(max_examples=60, deadline=None)
@given(own=st.lists(_chosen, min_size=1, max_size=14), theirs=st.sets(_chosen), doubled=st.data())
@pytest.mark.usefixtures("limit")
def test_points_that_begin_alike_are_met_as_sets_say(tmp_path_factory, own, theirs, doubled):
    space = Workspace(tmp_path_factory.mktemp("psi") / "work", values=True)
    space.add_masked(b"".join(own), range(1, len(own) + 1), [1] * len(own))
    distinct = sorted(set(own))
    assert space.sort_own(lambda _: []) == len(distinct)
    assert messages(space.own()) == distinct
    ((_, values),) = space.own_weighted(100)
    assert values == [own.count(each) for each in distinct]
    given = doubled.draw(st.lists(_chosen, min_size=len(distinct), max_size=len(distinct)))
    for point in theirs:
        space.add_their_doubled(point)
    space.add_own_doubled(b"".join(given))
    if len(set(given)) < len(given):
        with pytest.raises(DecodeError, match="same|begin alike"):
            space.prepare_to_compare()
    else:
        space.prepare_to_compare()
        met = [own.index(distinct[i]) + 1 for i, each in enumerate(given) if each in theirs]
        assert space.common_rows() == sorted(met)
    space.close()


@pytest.mark.parametrize("alike", [False, True])
def test_what_both_have_does_not_choose_the_way_they_are_compared(monkeypatch, alike):
    """It would show in the time: pairs of own points that begin alike, of which one is met or none."""
    ways, way = [], workspace._sorted
    monkeypatch.setattr(workspace, "_sorted", lambda points: ways.append(len(points)) or way(points))

    def array(points) -> workspace.Array:
        return np.frombuffer(b"".join(points), workspace._POINT)["point"]

    own = [point(1), point(1)[:8] + point(2)[8:] if alike else point(2), point(3)]
    for theirs, met in (
        ([point(4), point(5)], []),
        ([point(4), point(1)], [0]),
        ([point(3), point(1)], [0, 2]),
    ):
        found, by = workspace._met(array(own), array(theirs))
        assert sorted(found) == met
        assert [own[i] for i in found] == [theirs[i] for i in by]
    assert ways == [5] * 3 * alike


def test_a_point_without_a_row_is_refused(tmp_path):
    space = Workspace(tmp_path / "work", values=True)
    for rows, values in (([1], [1, 1]), ([1, 2], [1]), ([1, 2, 3], [])):
        with pytest.raises(MisuseError, match="each point"):
            space.add_masked(joined([1, 2]), rows, values)
    space.close()


@pytest.mark.usefixtures("limit")
def test_two_points_doubled_to_the_same_are_refused_also_where_they_meet_nothing(tmp_path):
    space = own_and_theirs(tmp_path / "work", 41)
    space.add_own_doubled(joined([*range(110, 150), 112]))
    with pytest.raises(DecodeError, match="same"):
        space.prepare_to_compare()
    space.close()


def test_doubled_points_that_would_all_come_to_one_part_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "_IN_MEMORY", 20)
    space = own_and_theirs(tmp_path / "work", 41)
    space.add_own_doubled(b"".join(b"\x08" + bytes([i]) * 31 for i in range(41)))
    with pytest.raises(DecodeError, match="begin alike"):
        space.prepare_to_compare()
    space.close()


def own_and_theirs(place, count) -> Workspace:
    space = Workspace(place)
    space.add_masked(joined(range(count)), [*range(1, count + 1)])
    space.sort_own(lambda _: [])
    for each in (1, 2, 3):
        space.add_their_doubled(point(each))
    return space


def test_nobody_else_can_read_it_and_nothing_stays(tmp_path):
    place = tmp_path / "work"
    place.write_bytes(b"a file, as earlier versions had")
    space = Workspace(place)
    space.add_masked(point(1), [1])
    assert place.stat().st_mode & 0o777 == 0o700
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in place.iterdir())
    again = Workspace(place)  # after a crash
    assert again.sort_own(lambda _: []) == 0
    again.close()
    space.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("limit")
def test_an_identifier_in_every_other_row_becomes_one_point_and_fills_no_part(tmp_path, monkeypatch):
    space, sizes, dealt = Workspace(tmp_path / "work", values=True), [], Workspace._dealt

    def watched(*arguments, **named):
        for part in dealt(*arguments, **named):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(Workspace, "_dealt", watched)
    numbers = [each for i in range(20_000) for each in (7, 100 + i % 50)]
    for i in range(0, len(numbers), 1_000):
        some = numbers[i : i + 1_000]
        space.add_masked(joined(some), range(i + 1, i + 1 + len(some)), [1] * len(some))
    assert space.sort_own(lambda _: []) == 51
    assert max(sizes) <= 51 * 5  # of 40,000, read in five pieces
    values = {
        p: value
        for points, some in space.own_weighted(7)
        for p, value in zip(messages([points]), some, strict=True)
    }
    assert values == {point(7): 20_000} | {point(100 + i): 400 for i in range(50)}
    space.close()


def test_a_full_disk_keeps_nothing(tmp_path):
    space = Workspace(tmp_path / "work")
    with Path("/dev/full").open("w+b") as full:
        space._masked._file = full
        space.add_masked(point(1), [1])
        with pytest.raises(OSError, match="No space"):
            space.sort_own(lambda _: [])
        space.close()
    assert not list(tmp_path.iterdir())
