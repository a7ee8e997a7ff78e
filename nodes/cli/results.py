"""What a question brought: gathered from the node's events, shown as a table, written as CSV, XLSX or JSON."""

import csv
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lianfang.v1 import admin_pb2 as pb

from ..importers.table import private_file
from ..services.wire import plain
from . import common
from .common import as_dict, err, out
from .i18n import t, word

_DETAILS = ("category", "severity", "confidence", "basis", "status", "reason", "observed_on", "valid_until")
_FOUND = ("hit", "review")
_STANDS_ON = ("epoch", "batch", "answered_at")


_RANK = ("hit", "review", "unreadable", "expired", "miss")  # what counts of a value asked under several kinds


def iso(seconds: float) -> str:
    """Local time with its offset; empty for never."""
    if not seconds:
        return ""
    return dt.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def clock(seconds: float) -> str:
    """Time of day, with the date where it is not today's."""
    at = dt.datetime.fromtimestamp(seconds)
    return at.strftime("%H:%M" if at.date() == dt.date.today() else "%Y-%m-%d %H:%M")


@dataclass(frozen=True)
class Question:
    """What a question was asked for, and the columns that its file had besides."""

    case: str = ""
    purpose: str = ""
    basis: str = ""
    further: Sequence[Mapping[str, str]] = ()  # by row

    @property
    def columns(self) -> list[str]:
        """Headers of the file's own further columns."""
        return list(dict.fromkeys(name for row in self.further for name in row))


class Gathered:
    """All rows in the order they were given, with one status per member and list."""

    def __init__(self, items: list[pb.QueryItem], question: Question = Question()) -> None:  # frozen
        self.items, self.question = items, question
        self.plan = pb.QueryPlan()
        self.answers: list[dict[tuple[str, str], list[pb.QueryAnswer]]] = [{} for _ in items]
        self.holders: dict[tuple[str, str], pb.QueryHolder] = {}
        self.problems: dict[int, pb.ItemProblem] = {}
        self.understood: dict[int, list[pb.Understood]] = {}

    def take(self, event: pb.QueryEvent) -> None:
        """Add one event."""
        if event.HasField("plan"):
            self.plan = event.plan
            self.problems = {problem.index: problem for problem in event.plan.problems}
            for each in event.plan.understood:
                self.understood.setdefault(each.index, []).append(each)
        for answer in event.answers.answers:
            self.answers[answer.index].setdefault((answer.member, answer.list), []).append(answer)
        if event.HasField("holder"):
            self.holders[(event.holder.member, event.holder.list)] = event.holder

    @property
    def places(self) -> list[tuple[str, str]]:
        """(member, list) in the plan's order."""
        return [(each.member, each.list) for each in self.plan.holders]

    @property
    def answered(self) -> bool:
        """Whether anybody answered."""
        return any(holder.outcome == "answered" for holder in self.holders.values())

    @property
    def complete(self) -> bool:
        """Every value was asked and every list answered."""
        return (
            bool(self.plan.holders)
            and not self.problems
            and all(
                place in self.holders and self.holders[place].outcome == "answered" for place in self.places
            )
        )

    def answer(self, index: int, place: tuple[str, str]) -> pb.QueryAnswer | None:
        """What a list says of a value; of one that was asked under several kinds, what weighs most."""
        found = self.answers[index].get(place, [])
        return min(found, key=lambda each: _RANK.index(each.outcome), default=None)

    def status(self, index: int, place: tuple[str, str]) -> str:
        """One word for a row and a list: hit, miss, expired, review, not-asked, or why there is no answer."""
        answer = self.answer(index, place)
        if answer is not None:
            return answer.outcome
        if index in self.problems:
            return "not-asked"
        holder = self.holders.get(place)
        return holder.outcome if holder is not None and holder.outcome != "answered" else "unanswered"

    def hits(self) -> list[tuple[int, pb.QueryAnswer]]:
        """(row, answer) of all hits, in order of rows."""
        return [
            (index, each)
            for index, answers in enumerate(self.answers)
            for place in self.places
            for each in answers.get(place, ())
            if each.outcome in _FOUND
        ]

    def kinds(self, index: int) -> str:
        """How a value was understood, or the kind it was given under."""
        return " ".join(each.kind for each in self.understood.get(index, ())) or self.items[index].kind

    def normal(self, index: int) -> str:
        """The normal form that was asked; several where it was asked under several kinds."""
        return " ".join(dict.fromkeys(each.value for each in self.understood.get(index, ())))

    def document(self) -> dict[str, Any]:
        """As plain data."""
        plan = as_dict(self.plan)
        question = self.question
        return {
            "case": question.case,
            "purpose": question.purpose,
            "basis": question.basis,
            "asker": self.plan.asker,
            "identifiers": plan["identifiers"],
            "plan": [each | {"as_of": iso(each["as_of"])} for each in plan["holders"]],
            "problems": [
                {
                    "row": each.index + 1,
                    "value": self.items[each.index].value,
                    "reason": each.reason,
                    "candidates": list(each.candidates),
                }
                for each in self.plan.problems
            ],
            "rows": [self._row(index) for index in range(len(self.items))],
            "holders": [as_dict(each) | {"as_of": iso(each.as_of)} for each in self.holders.values()],
            "complete": self.complete,
        }

    def _row(self, index: int) -> dict[str, Any]:
        answers = []
        for place in self.places:
            answer: dict[str, Any] = {
                "member": place[0],
                "list": place[1],
                "outcome": self.status(index, place),
            }
            found = self.answer(index, place)
            if found is not None:
                answer |= {
                    "kind": found.kind,
                    "epoch": found.epoch,
                    "batch": found.batch,
                    "answered_at": iso(found.answered_at),
                    "kept": found.kept,
                }
            if found is not None and found.HasField("label"):
                label = {name: getattr(found.label, name) for name in (*_DETAILS, "age_days")}
                answer |= {**label, "reference": found.label.reference.hex()}
            answers.append(answer)
        row: dict[str, Any] = {
            "row": index + 1,
            "kind": self.kinds(index),
            "value": self.items[index].value,
            "normal_form": self.normal(index),
        }
        if notes := [each.note for each in self.understood.get(index, ()) if each.note]:
            row["note"] = "; ".join(notes)
        if self.question.further:
            row["further"] = dict(self.question.further[index])
        return row | {"answers": answers}

    def table_rows(self) -> "tuple[list[str], list[list[Any]]]":
        """Header and rows for a spreadsheet; identifiers as text."""
        question, columns = self.question, self.question.columns
        header = [
            "row",
            "kind",
            "value",
            "normal form",
            "problem",
            "case",
            "purpose",
            "basis",
            "asker",
            *columns,
        ]
        for member, list_name in self.places:
            name = f"{member}/{list_name}"
            header += [name, *(f"{name} {detail}" for detail in (*_DETAILS, "age_days", *_STANDS_ON))]
        rows = []
        for index, item in enumerate(self.items):
            problem = self.problems.get(index)
            cells: list[Any] = [
                index + 1,
                self.kinds(index),
                harmless(item.value),
                harmless(self.normal(index)),
                problem.reason if problem else "",
                *(
                    harmless(each)
                    for each in (question.case, question.purpose, question.basis, self.plan.asker)
                ),
                *(harmless(question.further[index].get(name, "")) for name in columns),
            ]
            for place in self.places:
                found = self.answer(index, place)
                cells.append(self.status(index, place))
                label = found.label if found is not None and found.HasField("label") else None
                cells += [getattr(label, name) if label else "" for name in (*_DETAILS, "age_days")]
                cells += [found.epoch, found.batch, iso(found.answered_at)] if found else ["", "", ""]
            rows.append(cells)
        return header, rows


class Tabular(Protocol):
    """What the writers write: rows whose third cell is an identifier."""

    def table_rows(self) -> "tuple[list[str], Iterable[Sequence[Any]]]":
        """Header and rows, once."""

    def document(self) -> dict[str, Any]:
        """Everything, as plain data."""


_FORMULA, _SIGNS = frozenset("=@\t\r"), frozenset("+-")


def harmless(value: str) -> str:
    """A value that a spreadsheet would run as a formula gets an apostrophe; phone numbers keep their plus."""
    first = value[:1]
    if first in _FORMULA or (first in _SIGNS and not value[1:2].isdigit()):
        return "'" + value
    return value


def write_csv(path: Path, gathered: Tabular) -> None:
    """All rows as CSV (UTF-8 with BOM), readable by its owner alone."""
    header, rows = gathered.table_rows()
    with private_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_xlsx(path: Path, gathered: Tabular) -> None:
    """All rows as XLSX with identifiers in text cells."""
    import openpyxl  # takes longer to import than most commands to run

    header, rows = gathered.table_rows()
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("lianfang")
    sheet.append(header)
    for cells in rows:
        value = openpyxl.cell.WriteOnlyCell(sheet, value=cells[2])
        value.data_type = "s"
        value.number_format = "@"
        sheet.append([*cells[:2], value, *cells[3:]])
    _private(path)
    book.save(path)


def write_json(path: Path, gathered: Tabular) -> None:
    """Everything as JSON."""
    _private(path)
    path.write_text(json.dumps(gathered.document(), ensure_ascii=False, indent=1), "utf-8")


def check_writable(path: Path) -> None:
    """Raise `OSError` before anything is asked and charged, where the results could not be written."""
    probe = path.with_name(f".{path.name}.probe")
    probe.touch(mode=0o600)
    probe.unlink()


def _private(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)


WRITERS: dict[str, Callable[[Path, Tabular], None]] = {
    ".csv": write_csv,
    ".xlsx": write_xlsx,
    ".json": write_json,
}


def show_plan(gathered: Gathered) -> None:
    """Cost and what is left, before anything is asked."""
    shown = common.table(
        t(f"{gathered.plan.identifiers:,} identifiers", f"{gathered.plan.identifiers:,} 个标识"),
        *(t("member", "成员"), t("list", "名单"), t("cost", "额度消耗"), t("known", "已知")),
        *(t("left for this", "可用于此"), t("by", "限额"), t("at once", "单次可用")),
        *(t("in reserve", "紧急预留"), ""),
    )
    for each in gathered.plan.holders:
        budget, known = each.budget, each.budget_known
        shown.add_row(
            each.member,
            each.list,
            f"{each.cost:,}",
            f"{each.answered:,}" if each.answered else "",
            f"{each.left:,}" if known else "?",
            word(each.limit) if known else "",
            f"{budget.burst_left:,} / {budget.burst_seconds} s" if known else "?",
            f"{budget.reserve_left:,}" if known and budget.reserve_limit else "",
            each.trouble,
        )
    err.print(shown)
    show_problems(gathered)
    for each in gathered.plan.holders:
        if each.budget_known and each.cost > each.left:
            err.print(
                t(
                    f"{each.member} / {each.list}: {each.cost:,} evaluations are needed, the {each.limit} budget has "
                    f"{each.left:,} left: this question cannot finish there today; `lianfang screen` goes on tomorrow.",
                    f"{each.member} / {each.list}：需要 {each.cost:,} 次额度，{word(each.limit)}额度仅剩 {each.left:,}："
                    "今日无法完成；`lianfang screen` 可分日进行。",
                )
            )


def show_problems(gathered: Gathered) -> None:
    """Rows that cannot be asked, and why; nothing where there is none."""
    if not gathered.problems:
        return
    count = len(gathered.problems)
    missed = common.table(
        t(f"{count:,} values are not asked", f"{count:,} 个值不查询"),
        *(t("row", "行"), t("reason", "原因"), t("may be", "可能是")),
    )
    for index, problem in list(gathered.problems.items())[:20]:
        kinds = ", ".join(word(kind) for kind in problem.candidates)
        missed.add_row(str(index + 1), problem.reason, kinds)
    err.print(missed)


def show(gathered: Gathered, limit: int = 60) -> None:
    """Hits as a table, then one line a member, then what was not asked."""
    hits = gathered.hits()
    shown = common.table(
        t(f"{len(hits)} hits", f"{len(hits)} 个命中"),
        *(
            t("value", "值"),
            t("kind", "种类"),
            t("listed by", "列入方"),
            t("category", "类别"),
            t("severity", "风险等级"),
        ),
        *(t("basis", "依据"), t("age", "天数"), t("valid until", "有效至"), t("status", "状态")),
    )
    for index, answer in hits[:limit]:
        label = answer.label
        shown.add_row(
            gathered.items[index].value,
            word(answer.kind),
            f"{answer.member} / {answer.list}",
            word(label.category) + (f" ({word('review')})" if answer.outcome == "review" else ""),
            str(label.severity),
            word(label.basis),
            f"{label.age_days} d" if label.age_days >= 0 else "?",
            label.valid_until or t("removal", "移除为止"),
            word(label.status)
            + (
                t(f"; answer of {clock(answer.answered_at)}", f"；{clock(answer.answered_at)} 的答复")
                if answer.kept
                else ""
            ),
        )
    out.print(shown)
    if len(hits) > limit:
        out.print(
            t(
                f"… and {len(hits) - limit} more: use --output",
                f"…… 另有 {len(hits) - limit} 个：请用 --output",
            )
        )
    for place in gathered.places:
        holder = gathered.holders.get(place)
        counts = Counter(gathered.status(index, place) for index in range(len(gathered.items)))
        summary = ", ".join(f"{word(name)} {count:,}" for name, count in counts.most_common())
        outcome = word(holder.outcome) if holder else word("failed")
        charged = t(f"charged {holder.charged:,}", f"额度消耗 {holder.charged:,}") if holder else ""
        line = f"{place[0]} / {place[1] or '?'}: {outcome}; {summary}; {charged}"
        kept = [each for answers in gathered.answers for each in answers.get(place, ()) if each.kept]
        if kept:
            oldest = clock(min(each.answered_at for each in kept))
            line += t(f"; {len(kept):,} answers of {oldest}", f"；{len(kept):,} 条为 {oldest} 的答复")
        if holder and holder.as_of:
            as_of = clock(holder.as_of)
            line += t(
                f"; as of {as_of}, epoch {holder.epoch} batch {holder.batch}",
                f"；数据截至 {as_of}，周期 {holder.epoch} 批次 {holder.batch}",
            )
        out.print(plain(line + (f"; {holder.detail}" if holder and holder.detail else "")), markup=False)
    if not gathered.complete:
        err.print(
            t(
                "INCOMPLETE: not every list answered for every value; no hit here does not mean that nobody lists it.",
                "结果不完整：并非每份名单都答复了每个值；未命中不等于无人列入。",
            )
        )
    if gathered.problems:
        count = len(gathered.problems)
        err.print(t(f"{count:,} values were not asked: see above", f"{count:,} 个值未查询：见上"))
