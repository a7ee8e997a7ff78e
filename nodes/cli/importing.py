"""A file into one of the node's own lists: read here, sent as rows, bad ones written aside."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import grpc
from lianfang.v1 import admin_pb2 as pb
from rich.progress import Progress, TaskID

from federation.files import NATURAL, Reading

from .. import limits
from ..errors import NodeError
from ..importers import ofac, table
from ..importers.table import FIELDS, BadCell, Mapping, ReadRow, private_file
from . import common
from .common import CommandError, admin, as_dict, err, out, print_json
from .i18n import t

_MESSAGE_CHARACTERS = 400_000
_SHOWN = 12  # bad rows on the screen; --json and the file have all


class Format(StrEnum):
    """Formats of a file to import."""

    AUTO = "auto"
    OFAC_SDN = "ofac-sdn"


class _Upload:
    """Reads the file and sends rows; remembers what the reader refused, and what was sent where it matters."""

    def __init__(self, path: Path, kind: Format, mapping: Mapping, overflow: Path | None = None) -> None:
        self.path, self.kind, self.mapping, self.overflow = path, kind, mapping, overflow
        self.refused: list[BadCell] = []
        self.items: dict[int, ReadRow] = {}  # OFAC only: several identifiers a record
        self.count = 0
        self.error: NodeError | None = None

    def parsed(self) -> Iterator[ReadRow]:
        """Good rows; the others are kept aside."""
        source = (
            ofac.rows(self.path, self.overflow)
            if self.kind is Format.OFAC_SDN
            else table.rows(self.path, self.mapping)
        )
        for row in source:
            if isinstance(row, BadCell):
                self.refused.append(row)
            else:
                if self.kind is Format.OFAC_SDN:
                    self.items[row.number] = row
                yield row

    def requests(self, rows: Iterator[ReadRow], start: pb.ImportStart) -> Iterator[pb.ImportRequest]:
        """The stream to the node. A file that breaks off ends the stream without its end."""
        yield pb.ImportRequest(start=start)
        chunk: list[pb.Row] = []
        length = 0
        try:
            for row in rows:
                chunk.append(pb.Row(number=row.number, **row.fields))
                length += sum(map(len, row.fields.values()))
                self.count += 1
                if len(chunk) >= limits.IMPORT_CHUNK // 2 or length > _MESSAGE_CHARACTERS:
                    yield pb.ImportRequest(rows=pb.Rows(rows=chunk))
                    chunk, length = [], 0
            if chunk:
                yield pb.ImportRequest(rows=pb.Rows(rows=chunk))
        except NodeError as error:
            self.error = error
            return
        yield pb.ImportRequest(end=pb.ImportEnd(rows=self.count, refused=len(self.refused)))


def follow(bars: Progress, events: Iterator[pb.ImportProgress]) -> tuple[pb.ImportResult, list[pb.BadRow]]:
    """Show phases as bars; the result."""
    names = {
        "check": t("checking", "核对"),
        "store": t("storing", "入库"),
        "seal": t("sealing", "加密封装"),
        "merge": t("sorting", "排序"),
        "publish": t("waiting for the log's next head", "等待账本下一次公布"),
    }
    tasks: dict[str, TaskID] = {}
    bad: list[pb.BadRow] = []
    for event in events:
        bad.extend(event.bad)
        if event.phase == "bad":
            continue
        if event.phase == "done":
            for task in tasks.values():
                bars.update(
                    task, total=bars.tasks[task].completed or 1, completed=bars.tasks[task].completed or 1
                )
            if event.result.inactive:
                err.print(
                    t(
                        "The list is new: it is offered to nobody before two people activate it (`lianfang list activate`).",
                        "新名单：须两人启用（`lianfang list activate`）后才提供给其他成员。",
                    )
                )
            if event.result.unpublished:
                err.print(
                    t(
                        "Sealed, but no quorum has witnessed this node's log yet: the others see the change when one has"
                        " (`lianfang ledger head`).",
                        "已封装，但本节点账本尚未获得足够见证：其他成员须待公布后才能看到（见 `lianfang ledger head`）。",
                    )
                )
            return event.result, bad
        if event.phase == "publish" and bars.disable is False and not err.is_terminal:
            err.print(names["publish"])  # no bar says so
        if event.phase not in tasks:
            tasks[event.phase] = bars.add_task(names.get(event.phase, event.phase), total=None, note="")
        note = f"{event.done:,}" if event.done else ""
        total = event.total if event.phase != "check" and event.total else None
        bars.update(tasks[event.phase], completed=event.done, total=total, note=note)
    raise CommandError(t("the node ended without a result", "节点未返回结果"))


@dataclass(frozen=True)
class How:
    """How a file is to be read and taken."""

    format: Format = Format.AUTO
    mapping: Path | None = None
    skip_bad: bool = False
    replace: bool = False
    kind: str = ""  # of rows that name none
    reading: Reading = NATURAL
    official: bool = False
    region: str = ""
    bad_file: Path | None = None
    overflow: Path | None = None


@dataclass(frozen=True)
class Brought:
    """What became of a file."""

    result: pb.ImportResult
    problems: list[tuple[int, str, str, str]]  # (number, place, column, reason) of bad rows
    unread: list[str]  # columns that are no field
    written: str  # where the bad rows are, if anywhere

    @property
    def whole(self) -> bool:
        """Whether the file went in, without bad rows or with them set aside."""
        return not self.result.refused and (not self.problems or bool(self.written))


def bring_in(file: Path, list_name: str, how: How, config: Path, quiet: bool) -> Brought:
    """Import a file. Raises `CommandError`, a `NodeError` or `grpc.RpcError` where nothing was taken."""
    if how.bad_file is not None and how.bad_file.exists() and file.exists() and how.bad_file.samefile(file):
        raise CommandError(t("--bad-file is the file itself", "--bad-file 与原文件相同"))
    columns = Mapping.load(how.mapping) if how.mapping else Mapping()
    columns.reading = how.reading
    if how.kind:
        columns.constants["kind"] = how.kind
    upload = _Upload(file, how.format, columns, how.overflow)
    rows = upload.parsed()
    first = next(rows, None)  # so that a file that is none fails before the node is asked
    start = pb.ImportStart(
        list=list_name,
        replace=how.replace,
        skip_bad=how.skip_bad,
        official=how.official or how.format is Format.OFAC_SDN,
        default_region=how.region,
    )
    result, bad = _send(upload, _chain(first, rows), start, config, quiet)
    problems = _problems(upload, bad)
    written = ""
    if problems and how.skip_bad:
        target = how.bad_file or _free_name(file)
        _write_bad(upload, target, {number: reason for number, _, _, reason in problems})
        written = str(target)
    return Brought(result, problems, columns.unread, written)


def _free_name(file: Path) -> Path:
    """A name for the bad rows that replaces nobody's half-mended ones."""
    for number in range(1, 1000):
        target = file.with_name(f"{file.name}.bad{'' if number == 1 else f'-{number}'}.csv")
        if not target.exists():
            return target
    raise CommandError(t("there are too many files of bad rows", "坏行文件过多"))


def _chain(first: ReadRow | None, rest: Iterator[ReadRow]) -> Iterator[ReadRow]:
    if first is not None:
        yield first
        yield from rest


def _send(
    upload: _Upload, rows: Iterator[ReadRow], start: pb.ImportStart, config: Path, quiet: bool
) -> tuple[pb.ImportResult, list[pb.BadRow]]:
    with admin(config) as node, common.progress() as bars:
        bars.disable = quiet
        try:
            return follow(bars, node.Import(upload.requests(rows, start)))
        except grpc.RpcError:
            if upload.error is not None:
                raise upload.error from None
            raise


def _problems(upload: _Upload, bad: list[pb.BadRow]) -> list[tuple[int, str, str, str]]:
    """(number, place, column, reason) in the file's order."""
    found = [(each.number, each.place, each.column, each.reason) for each in upload.refused]
    for row in bad:
        item = upload.items.get(row.number)
        found.append((row.number, item.place if item else "", row.column, row.reason))
    return sorted(found)


def _write_bad(upload: _Upload, target: Path, bad: dict[int, str]) -> None:
    if upload.kind is Format.OFAC_SDN:
        with private_file(target) as file:
            writer = csv.writer(file)
            writer.writerow([*FIELDS, table.REASON_COLUMN])
            for number, reason in bad.items():
                item = upload.items.get(number)
                if item is not None:
                    writer.writerow([*(item.fields.get(field, "") for field in FIELDS), reason])
        return
    table.write_bad(upload.path, target, bad, upload.mapping)


def show_import(brought: Brought, json: bool) -> None:
    """What an import did: counts, bad rows with their reasons, columns that were not read."""
    result, problems, unread, written = brought.result, brought.problems, brought.unread, brought.written
    if unread and not json:
        headers = ", ".join(unread)
        err.print(t(f"columns that were not read: {headers}", f"未读取的列：{headers}"), markup=False)
    document = as_dict(result)
    document["unread_columns"] = unread
    document["bad"] = len(problems)
    if json:
        document["bad_file"] = written
        document["bad_rows"] = [
            {"row": number, "place": place, "column": column, "reason": reason}
            for number, place, column, reason in problems[: limits.BAD_ROWS_SHOWN]
        ]
        print_json(document)
        return
    if problems:
        shown = common.table(
            t(f"{len(problems)} bad rows", f"{len(problems)} 行有误"),
            t("row", "行"),
            t("column", "列"),
            t("reason", "原因"),
        )
        for number, place, column, reason in problems[:_SHOWN]:
            shown.add_row(place or str(number), column, reason)
        err.print(shown)
        if len(problems) > _SHOWN:
            err.print(t(f"… and {len(problems) - _SHOWN} more", f"…… 另有 {len(problems) - _SHOWN} 行"))
    if result.refused or (problems and not written):
        err.print(
            t(
                "Nothing was imported. Mend the rows, or import the others with --skip-bad.",
                "未导入任何行。请修改后重试，或用 --skip-bad 只导入其余各行。",
            )
        )
        return
    names = (
        ("rows", t("rows read", "读取")),
        ("added", t("added", "新增")),
        ("changed", t("changed", "变更")),
        ("unchanged", t("unchanged", "未变")),
        ("withdrawn", t("withdrawn", "撤回")),
        ("held", t("held back by a person's decision", "人工决定保留")),
        ("duplicates", t("repeated", "重复")),
        ("merged", t("further cases of a listed identifier", "同一标识的其他案件")),
        ("sealed", t("sealed", "封装")),
        ("tombstones", t("removals sealed", "封装的移除")),
    )
    text = ", ".join(f"{label} {document[key]:,}" for key, label in names if document[key])
    out.print(text or t("nothing changed", "没有变化"))
    if written:
        out.print(t(f"bad rows are in {written}", f"坏行在 {written}"))
