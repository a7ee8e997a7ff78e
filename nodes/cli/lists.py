"""`lianfang list …`: importing, looking at and withdrawing from the node's own lists."""

import csv
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import admin_pb2 as pb

from federation.files import Reading

from ..importers import table
from ..importers.table import FIELDS, BadCell, Mapping, ReadRow, private_file
from . import common
from .common import HERE, CommandError, Config, Json, admin, as_dict, errors, out, print_json
from .i18n import t, word
from .importing import Format, How, bring_in, follow, show_import

app = typer.Typer(no_args_is_help=True, help=t("this node's own lists", "本节点的名单"))
ListName = Annotated[str, typer.Option("--list", "-l", help=t("the list", "名单名"))]


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
        how = How(
            kind,
            mapping,
            skip_bad,
            replace,
            of_kind,
            Reading(encoding, sheet),
            official,
            region,
            bad_file,
            overflow,
        )
        brought = bring_in(file, list_name, how, config, quiet=json)
        show_import(brought, json)
        if not brought.whole:
            raise typer.Exit(1)


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
