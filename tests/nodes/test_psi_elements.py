"""A column's elements: each identifier once, with the sum of its values, whether it is remembered or not."""

import hashlib
import random
from types import SimpleNamespace

import openpyxl
import pytest
from lianfang.v1 import contract_pb2

from nodes.errors import NodeError
from nodes.psi import meeting
from nodes.psi.meeting import Meeting, Plan
from nodes.psi.rows import Column, Counts
from nodes.psi.workspace import Workspace

_TERMS = contract_pb2.PsiTerms


def plan(path, values: str, most: int = 1_000, bits: int = 40) -> Plan:
    own = _TERMS.Input(party="a", column="mobile", max_elements=most, values=values)
    terms = _TERMS(variant=_TERMS.VARIANT_SUM, kind="phone", sum_bits=bits)
    column = Column(path, "mobile", "phone", "CN", values)
    return Plan(bytes(32), bytes(16), terms, own, _TERMS.Input(party="b"), column, True, lambda: None)


def pieces(given: Plan, counts: Counts) -> list[tuple[list[int], list[bytes], list[int]]]:
    made = object.__new__(Meeting)  # what it is for otherwise needs another side
    made._plan = given
    made._line = SimpleNamespace(check=lambda: None)
    return list(made._elements(counts))


def elements(given: Plan, counts: Counts) -> list[tuple[int, bytes, int]]:
    return [
        each
        for rows, canonicals, values in pieces(given, counts)
        for each in zip(rows, canonicals, values or [0] * len(rows), strict=True)
    ]


@pytest.fixture
def column(tmp_path):
    """(path, for each identifier: its first row and the sum of its values)"""
    draw = random.Random(7)
    rows = [(f"139{draw.randrange(30):08d}", draw.randrange(100)) for _ in range(400)]
    path = tmp_path / "column.csv"
    path.write_text("mobile,loss\n" + "".join(f"{mobile},{loss}\n" for mobile, loss in rows))
    found: dict[bytes, tuple[int, int]] = {}
    for number, (mobile, loss) in enumerate(rows, 2):
        canonical = f"phone\x1f+86{mobile}".encode()
        first, total = found.get(canonical, (number, 0))
        found[canonical] = (first, total + loss)
    return path, found


@pytest.mark.parametrize("remembered", [0, 1, 7, 1_000])
@pytest.mark.parametrize("values", ["loss", ""])
def test_each_counts_once_with_its_first_row_and_its_sum(tmp_path, monkeypatch, column, remembered, values):
    monkeypatch.setattr(meeting, "_KNOWN", remembered)
    path, expected = column
    counts = Counts()
    found = elements(plan(path, values), counts)
    assert counts.rows == 400
    assert len(found) < 400 or not remembered
    space = Workspace(tmp_path / "work", values=True)
    points = b"".join(hashlib.sha256(canonical).digest() for _, canonical, _ in found)
    space.add_masked(points, [row for row, _, _ in found], [value for _, _, value in found])
    assert space.sort_own(lambda _: []) == len(expected)
    counts.found(len(expected))
    assert counts.repeated == 400 - len(expected)
    ((sorted_points, sums),) = space.own_weighted(1_000)
    by_point = {hashlib.sha256(canonical).digest(): each for canonical, each in expected.items()}
    for place, total in enumerate(sums):
        point = sorted_points[32 * place : 32 * place + 32]
        assert total == (by_point[point][1] if values else 0)
    for point in by_point:
        space.add_their_doubled(point)
    space.add_own_doubled(sorted_points)
    space.prepare_to_compare()
    assert space.common_rows() == sorted(row for row, _ in expected.values())
    space.close()


def test_a_workbooks_amounts_with_cents_add_up_exactly(tmp_path):
    path = tmp_path / "column.xlsx"
    book = openpyxl.Workbook()
    amounts = (5, 1234.56, 0.1 + 0.2, 70368744177.17)
    for row in (("mobile", "loss"), *((f"1390000000{i}", amount) for i, amount in enumerate(amounts))):
        book.active.append(row)
    book.save(path)
    column = Column(path, "mobile", "phone", "CN", "loss", 2)
    values = [value for _, _, values in column.elements(Counts()) for value in values]
    assert values == [500, 123456, 30, 7036874417717]
    book.active["B3"] = "1.234,56"
    book.save(path)
    with pytest.raises(NodeError, match="row 3: loss is not a number"):
        list(column.elements(Counts()))


def test_repetitions_and_broken_rows_leave_whole_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting.psi, "CHUNK", 7)
    path = tmp_path / "column.csv"
    path.write_text("mobile\n" + "".join(f'139{i // 3:08d}\n"x"y\n\n' for i in range(120)))
    counts = Counts()
    sizes = [len(canonicals) for _, canonicals, _ in pieces(plan(path, ""), counts)]
    assert sum(sizes) == 40
    assert len(sizes) <= 40 // 7 + 2
    assert (counts.rows, counts.bad, counts.empty) == (240, 120, 0)


def test_too_many_and_too_large_are_said(column):
    path, _ = column
    with pytest.raises(NodeError, match="more than the 5 elements"):
        elements(plan(path, "", most=5), Counts())
    with pytest.raises(NodeError, match="up to row [0-9]+ are together more"):
        elements(plan(path, "loss", bits=8), Counts())
