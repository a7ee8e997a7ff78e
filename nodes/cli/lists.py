"""`lianfang list …`: importing, looking at and withdrawing from the node's own lists."""

import csv
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from lianfang.v1 import admin_pb2 as pb
from rich.progress import Progress, TaskID

from federation.files import Reading

from .. import limits
from ..errors import NodeError
from ..importers import ofac, table
from ..importers.table import FIELDS, BadCell, Mapping, ReadRow, private_file
from . import common
from .common import HERE, CommandError, Config, Json, admin, as_dict, err, errors, out, print_json
from .i18n import t, word

app = typer.Typer(no_args_is_help=True, help=t("this node's own lists", "本节点的名单"))
ListName = Annotated[str, typer.Option("--list", "-l", help=t("the list", "名单名"))]
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


@app.command(
    "import", help=t("Import a CSV or XLSX file, or OFAC's SDN.CSV.", "导入 CSV、XLSX 或 OFAC 名单。")
)
def import_file(
    file: Annotated[Path, typer.Argument()],
    list_name: ListName,
    kind: Annotated[
        Format, typer.Option("--format", help=t("auto: by the file's ending", "默认按扩展名"))
    ] = Format.AUTO,
    mapping: Annotated[
        Path | None, typer.Option(help=t("TOML: which column is what", "TOML：各列含义"))
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help=t("take the good rows; the others go to FILE.bad.csv", "跳过坏行，坏行另存")
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help=t("the file is the whole list: withdraw what it lacks", "以此文件为全部名单")
        ),
    ] = False,
    of_kind: Annotated[
        str, typer.Option("--kind", "-k", help=t("of rows that name none", "未注明种类的行"))
    ] = "",
    encoding: Annotated[str, typer.Option(help=t("of a CSV that is not UTF-8 or GB18030", "CSV 编码"))] = "",
    sheet: Annotated[str, typer.Option(help=t("of a workbook with several", "工作表"))] = "",
    official: Annotated[
        bool,
        typer.Option("--official", help=t("valid until removed, where no date is given", "无日期者长期有效")),
    ] = False,
    region: Annotated[
        str, typer.Option(help=t("of phone numbers without country code", "无国家码号码的地区"))
    ] = "",
    bad_file: Annotated[Path | None, typer.Option(help=t("where bad rows go", "坏行文件"))] = None,
    overflow: Annotated[
        Path | None,
        typer.Option(help=t("SDN_COMMENTS.CSV to OFAC's SDN.CSV", "OFAC 名单的 SDN_COMMENTS.CSV")),
    ] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Import a file: all of it, or with --skip-bad its good rows. Repeating an import changes nothing."""
    with errors():
        if bad_file is not None and bad_file.exists() and file.exists() and bad_file.samefile(file):
            raise CommandError(t("--bad-file is the file itself", "--bad-file 与原文件相同"))
        columns = Mapping.load(mapping) if mapping else Mapping()
        columns.reading = Reading(encoding, sheet)
        if of_kind:
            columns.constants["kind"] = of_kind
        upload = _Upload(file, kind, columns, overflow)
        rows = upload.parsed()
        first = next(rows, None)  # so that a file that is none fails before the node is asked
        start = pb.ImportStart(
            list=list_name,
            replace=replace,
            skip_bad=skip_bad,
            official=official or kind is Format.OFAC_SDN,
            default_region=region,
        )
        result, bad = _send(upload, _chain(first, rows), start, config, quiet=json)
        if columns.unread and not json:
            names = ", ".join(columns.unread)
            err.print(t(f"columns that were not read: {names}", f"未读取的列：{names}"), markup=False)
        problems = _problems(upload, bad)
        written = ""
        if problems and skip_bad:
            target = bad_file or _free_name(file)
            _write_bad(upload, target, {number: reason for number, _, _, reason in problems})
            written = str(target)
        _show_import(result, problems, columns.unread, written, json)
        if result.refused or (problems and not skip_bad):
            raise typer.Exit(1)


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


def _show_import(
    result: pb.ImportResult,
    problems: list[tuple[int, str, str, str]],
    unread: list[str],
    written: str,
    json: bool,
) -> None:
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


@app.command("stats", help=t("Counts of a list.", "名单统计。"))
def stats(
    list_name: Annotated[str, typer.Argument(metavar="LIST")], config: Config = HERE, json: Json = False
) -> None:
    """Counts by status, kind, category and basis; epochs and what is sealed."""
    with errors(), admin(config) as node:
        document = as_dict(node.ListStats(pb.ListRequest(list=list_name)))
        if json:
            print_json(document)
            return
        for heading, counts in document["counts"].items():
            shown = common.table(heading, "", "")
            for name, count in sorted(counts.items(), key=lambda each: -each[1]):
                shown.add_row(word(name), f"{count:,}")
            out.print(shown)
        shown = common.table(
            t("epochs", "密钥周期"),
            "",
            t("state", "状态"),
            t("batches", "批次"),
            t("records", "记录"),
            t("size", "大小"),
            t("closes", "关闭"),
        )
        for each in document["epochs"]:
            shown.add_row(
                str(each["epoch"]),
                each["state"],
                str(each["batches"]),
                f"{each['records']:,}",
                common.size(each["bytes"]),
                common.local(each["closes_at"]),
            )
        out.print(shown)


@app.command("activate", help=t("Offer a new list to others; takes two.", "启用新名单（须两人）。"))
def activate(
    list_name: Annotated[str, typer.Argument(metavar="LIST")], config: Config = HERE, json: Json = False
) -> None:
    """With what it holds now; a list is activated once."""
    with errors():
        with admin(config) as node, common.progress() as bars:
            bars.disable = json
            result, _ = follow(bars, node.Activate(pb.ListRequest(list=list_name)))
        if json:
            print_json(as_dict(result))
        else:
            out.print(t(f"{list_name} is active", f"{list_name} 已启用"))


def _entry(entry: pb.Entry) -> dict[str, Any]:
    document = {field: getattr(entry, field) for field in FIELDS if field not in ("country", "institution")}
    if entry.kind in ("passport", "foreign-id", "tax-id"):
        document["country"], _, document["value"] = entry.value.partition("/")
    if entry.kind == "account":
        document["institution"], _, document["value"] = entry.value.partition("/")
    document["entry_ref"] = entry.entry_ref.hex()
    return document


@app.command("show", help=t("Entries in clear.", "查看条目。"))
def show(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    limit: Annotated[int, typer.Option(min=1)] = 20,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """The first entries of a list, in clear, for the node's own people."""
    with errors(), admin(config) as node:
        request = pb.ListEntriesRequest(list=list_name, limit=limit)
        entries = [_entry(entry) for entry in node.ListEntries(request)]
        if json:
            print_json(entries)
            return
        shown = common.table(
            "",
            *(t("kind", "种类"), t("value", "值"), t("category", "类别"), t("severity", "程度")),
            *(
                t("basis", "依据"),
                t("status", "状态"),
                t("observed", "观察"),
                t("valid until", "有效至"),
                "ref",
            ),
        )
        for entry in entries:
            shown.add_row(
                word(entry["kind"]),
                entry["value"],
                word(entry["category"]),
                str(entry["severity"]),
                word(entry["basis"]),
                word(entry["status"]),
                entry["observed_on"],
                entry["valid_until"],
                entry["entry_ref"][:8],
            )
        out.print(shown)


@app.command("find", help=t("Entries of a value, on all lists of this node.", "在本方各名单中查找一个值。"))
def find(
    value: Annotated[str, typer.Argument(help=t("as it is written", "标识值"))],
    kind: Annotated[str, typer.Option("--kind", "-k", help=t("where it fits several", "种类"))] = "",
    country: Annotated[str, typer.Option(help=t("of a document", "签发国家"))] = "",
    institution: Annotated[str, typer.Option(help=t("of an account", "机构代码"))] = "",
    list_name: Annotated[
        str, typer.Option("--list", "-l", help=t("one list; default: all", "名单，默认全部"))
    ] = "",
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Which of this node's own lists have a value, with the entries in clear; status 1 where none has."""
    with errors(), admin(config) as node:
        names = [each["list"] for each in as_dict(node.Status(pb.StatusRequest()))["lists"]]
        only = [pb.Row(kind=kind, value=value, country=country, institution=institution)]
        found = [
            {"list": name, **_entry(entry)}
            for name in ([list_name] if list_name else names)
            for entry in node.ListEntries(pb.ListEntriesRequest(list=name, only=only))
        ]
        if json:
            print_json(found)
        else:
            shown = common.table(
                "",
                *(t("list", "名单"), t("kind", "种类"), t("value", "值"), t("category", "类别")),
                *(
                    t("basis", "依据"),
                    t("status", "状态"),
                    t("valid until", "有效至"),
                    t("reference", "参考号"),
                    "ref",
                ),
            )
            for each in found:
                shown.add_row(
                    each["list"],
                    word(each["kind"]),
                    each["value"],
                    word(each["category"]),
                    word(each["basis"]),
                    word(each["status"]),
                    each["valid_until"],
                    each["reference"],
                    each["entry_ref"][:8],
                )
            out.print(shown)
        if not found:
            raise typer.Exit(1)


@app.command("export", help=t("All entries as CSV that can be imported.", "导出为可再导入的 CSV。"))
def export(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    output: Annotated[Path, typer.Option("--output", "-o")],
    config: Config = HERE,
    json: Json = False,
) -> None:
    """All entries in clear as CSV, readable by its owner alone."""
    with errors(), admin(config) as node:
        entries = node.ListEntries(pb.ListEntriesRequest(list=list_name))
        count = 0
        with private_file(output) as file:
            writer = csv.DictWriter(file, [*FIELDS, "entry_ref"], restval="")
            writer.writeheader()
            for entry in entries:
                writer.writerow(_entry(entry))
                count += 1
        if json:
            print_json({"file": str(output), "entries": count})
        else:
            out.print(t(f"{count:,} entries in {output}", f"{count:,} 条已写入 {output}"))


@app.command(
    "withdraw", help=t("Withdraw, suspend, contest or restore entries.", "撤回、暂停、标注异议或恢复条目。")
)
def withdraw(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    file: Annotated[
        Path | None, typer.Option("--file", help=t("CSV with kind and value", "含 kind、value 的 CSV"))
    ] = None,
    refs: Annotated[list[str] | None, typer.Option("--ref", help=t("entry_ref, in hex", "条目引用"))] = None,
    status: Annotated[str, typer.Option(help="withdrawn, suspended, contested, active")] = "withdrawn",
    reason: Annotated[str, typer.Option(help="appeal-upheld, operator-decision, …")] = "operator-decision",
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Change entries' status; what leaves the list leaves with the batch that is sealed at once."""
    with errors():
        rows = [pb.Row(number=row.number, **row.fields) for row in _good_rows(file)] if file else []
        try:
            references = [bytes.fromhex(each) for each in refs or []]
        except ValueError:
            raise CommandError(t("--ref is not hex", "--ref 不是十六进制")) from None
        request = pb.WithdrawRequest(
            list=list_name, only=rows, entry_refs=references, status=status, reason=reason
        )
        with admin(config) as node, common.progress() as bars:
            bars.disable = json
            result, _ = follow(bars, node.Withdraw(request))
        if json:
            print_json(as_dict(result))
        else:
            out.print(t(f"{result.changed} changed", f"{result.changed} 条已变更"))


def _good_rows(file: Path) -> list[ReadRow]:
    rows = list(table.rows(file, Mapping()))
    for row in rows:
        if isinstance(row, BadCell):
            raise CommandError(f"{file}: row {row.number}: {row.reason}")
    return [row for row in rows if isinstance(row, ReadRow)]


@app.command("rotate", help=t("A new key epoch: seal the list anew.", "更换密钥周期并重新封装。"))
def rotate(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    now: Annotated[
        bool, typer.Option("--close-now", help=t("destroy the old key at once", "立即销毁旧密钥"))
    ] = False,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Open the next key epoch; the old one answers for the overlap, then its key is destroyed."""
    with errors(), admin(config) as node, common.progress() as bars:
        bars.disable = json
        result, _ = follow(bars, node.Rotate(pb.RotateRequest(list=list_name, close_now=now)))
        if json:
            print_json(as_dict(result))
        else:
            out.print(
                t(
                    f"{result.sealed:,} entries sealed under the new key",
                    f"已用新密钥封装 {result.sealed:,} 条",
                )
            )
