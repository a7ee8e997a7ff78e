"""`lianfang sync` and `lianfang query`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import admin_pb2 as pb
from rich.progress import TaskID

from federation.files import NATURAL, Reading, UnreadableFile
from federation.files.text import Dialect, decoded, encoding_of, opened

from .. import limits
from ..importers import table
from ..importers.table import BadCell, FileError, Mapping
from ..policy import BASES, PURPOSES
from . import common, results
from .common import HERE, CommandError, Config, Json, admin, err, errors, out, print_json
from .i18n import t, word


def sync(
    members: Annotated[list[str] | None, typer.Argument(help=t("default: all", "默认全部"))] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Bring the copies of other members' sealed lists up to date."""
    with errors():
        ended: list[dict[str, Any]] = []
        pulled: dict[tuple[str, str, int], dict[int, int]] = {}
        tasks: dict[tuple[str, str, int], TaskID] = {}
        with admin(config) as node, common.progress() as bars:
            bars.disable = json
            for step in node.Sync(pb.SyncRequest(members=members or [])):
                key = (step.member, step.list, step.epoch)
                if step.state != "pulling":
                    sizes = pulled.get(key, {})
                    ended.append(
                        {
                            "member": step.member,
                            "list": step.list,
                            "epoch": step.epoch,
                            "batch": step.batch,
                            "state": step.state,
                            "detail": step.detail,
                            "batches_pulled": len(sizes),
                            "bytes": sum(sizes.values()),
                        }
                    )
                    continue
                pulled.setdefault(key, {})[step.batch] = step.bytes_total
                if key not in tasks:
                    tasks[key] = bars.add_task(f"{step.member} / {step.list}", total=None, note="")
                bars.update(
                    tasks[key],
                    completed=step.bytes_done,
                    total=step.bytes_total,
                    note=common.size(step.bytes_total),
                )
        if json:
            print_json(ended)
        else:
            _show_synced(ended)
        if any(each["state"] == "failed" for each in ended):
            raise typer.Exit(1)


def _show_synced(ended: list[dict[str, Any]]) -> None:
    shown = common.table(
        "",
        t("member", "成员"),
        t("list", "名单"),
        t("epoch", "周期"),
        t("batch", "批次"),
        t("pulled", "拉取"),
        "",
    )
    for each in ended:
        shown.add_row(
            each["member"],
            each["list"],
            str(each["epoch"] or ""),
            str(each["batch"] or ""),
            common.size(each["bytes"]) if each["bytes"] else "",
            each["detail"] or word(each["state"]),
        )
    out.print(shown)


Read = tuple[list[pb.QueryItem], list[dict[str, str]]]  # values, and the further columns of each one's row


def read_items(source: str, kind: str, values: list[str], reading: Reading = NATURAL) -> Read:
    """Values of a question: from `--value`, a CSV, XLSX or Parquet file with a header, or one a line.

    Raises `CommandError` for none or too many, and `FileError`.
    """
    items, further = _read_items(source, kind, values, reading)
    if not items:
        raise CommandError(t("there is nothing to ask", "没有要查询的值"))
    if len(items) > limits.QUERY_ITEMS:
        raise CommandError(t(f"at most {limits.QUERY_ITEMS:,} values", f"最多 {limits.QUERY_ITEMS:,} 个值"))
    return items, further


def check_words(purpose: str, basis: str) -> None:
    """Raise a usage error for a purpose or basis that is none."""
    for name, given, known in (("--purpose", purpose, PURPOSES), ("--basis", basis, BASES)):
        if given not in known:
            raise typer.BadParameter(", ".join(known), param_hint=name)


def _read_items(source: str, kind: str, values: list[str], reading: Reading) -> Read:
    if values:
        return [pb.QueryItem(kind=kind, value=value) for value in values], []
    if source == "-":
        if sys.stdin.isatty():
            err.print(t("One value a line, Ctrl-D to end:", "每行一个值，Ctrl-D 结束："))
        try:
            return _lines(decoded(sys.stdin.buffer.read(), reading.encoding), kind), []
        except UnreadableFile as error:
            raise FileError(error.path, error.message) from error
    path = Path(source)
    if path.suffix.lower() in (".csv", ".xlsx", ".xlsm", ".parquet", ".pq"):
        mapping = Mapping(constants={"kind": kind} if kind else {}, reading=reading, keep_further=True)
        items, further = [], []
        for row in table.rows(path, mapping):
            if isinstance(row, BadCell):
                raise FileError(path, f"row {row.number}: {row.column} {row.reason}")
            names = ("kind", "value", "country", "institution")
            items.append(pb.QueryItem(**{name: row.fields.get(name, "") for name in names}))
            beside = {name: text for name, text in row.fields.items() if name not in names}
            further.append({**beside, **row.further})
        return items, further
    try:
        with opened(path, Dialect(encoding_of(path, reading.encoding), ",", 0)) as file:
            return _lines(file.read(), kind), []
    except UnreadableFile as error:
        raise FileError(error.path, error.message) from error
    except OSError as error:
        raise FileError(path, str(error.strerror)) from error


def _lines(text: str, kind: str) -> list[pb.QueryItem]:
    items = []
    for line in text.splitlines():
        if line.strip():
            first, tab, rest = line.partition("\t")
            items.append(pb.QueryItem(kind=first if tab else kind, value=rest if tab else line))
    return items


def query(
    purpose: Annotated[str, typer.Option("--purpose", "-p", help=", ".join(PURPOSES))],
    case: Annotated[str, typer.Option("--case", help=t("case number; it stays here", "案件编号，不外传"))],
    basis: Annotated[str, typer.Option("--basis", "-b", help=", ".join(BASES))],
    source: Annotated[
        str, typer.Argument(metavar="[FILE|-]", help=t("values, one a line, or CSV/XLSX", "待查值"))
    ] = "-",
    kind: Annotated[str, typer.Option("--kind", "-k", help=t("of values without one", "未注明种类时"))] = "",
    to: Annotated[
        list[str] | None, typer.Option("--to", help=t("members; default all", "成员，默认全部"))
    ] = None,
    lists: Annotated[list[str] | None, typer.Option("--list", "-l")] = None,
    value: Annotated[
        list[str] | None,
        typer.Option("--value", help=t("a value; stays in the shell's history", "会留在命令历史中")),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=t("all rows: .csv, .xlsx or .json", "全部结果文件"))
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help=t("cost and budget only", "只看费用与额度"))] = False,
    again: Annotated[
        bool, typer.Option("--again", help=t("ask also what is answered", "已答复的也重查"))
    ] = False,
    both: Annotated[
        bool,
        typer.Option(
            "--both",
            help=t("ask what fits several kinds under each, each charged", "多种可能时逐一查询，分别计额度"),
        ),
    ] = False,
    encoding: Annotated[str, typer.Option(help=t("of the file", "文件编码"))] = "",
    sheet: Annotated[str, typer.Option(help=t("of the workbook", "工作表"))] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help=t("do not ask back", "不再确认"))] = False,
    deadline: Annotated[float, typer.Option(help=t("seconds for each member", "每成员秒数"))] = 0.0,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Ask all members at once whether they list the given identifiers."""
    check_words(purpose, basis)
    if output is not None and output.suffix.lower() not in results.WRITERS:
        raise typer.BadParameter(", ".join(results.WRITERS), param_hint="--output")
    with errors():
        if output is not None:
            results.check_writable(output)
        items, further = read_items(source, kind, value or [], Reading(encoding, sheet))
        request = pb.QueryRequest(
            items=items,
            purpose=PURPOSES[purpose],
            basis=BASES[basis],
            case_number=case,
            members=to or [],
            lists=lists or [],
            again=again,
            deadline_s=deadline,
            both=both,
        )
        question = results.Question(case, purpose, basis, further)
        gathered = _ask(request, question, config, json, plan, yes)
        if json:
            print_json(gathered.document())
        elif not plan:
            results.show(gathered)
        if output is not None and not plan:
            results.WRITERS[output.suffix.lower()](output, gathered)
            if not json:
                out.print(t(f"all rows are in {output}", f"全部结果在 {output}"))
        if not gathered.complete and not plan:
            raise typer.Exit(INCOMPLETE if gathered.answered else 1)


INCOMPLETE = 3  # exit status: the question ran, and some list or value has no answer


def _ask(
    request: pb.QueryRequest, question: results.Question, config: Path, json: bool, plan: bool, yes: bool
) -> results.Gathered:
    gathered = results.Gathered(list(request.items), question)
    with admin(config) as node:
        ask_first = (
            sys.stdin.isatty() and err.is_terminal and not yes and not json and len(request.items) > 100
        )
        if plan or ask_first:
            request.plan_only = True
            for event in node.Query(request):
                gathered.take(event)
            if not json:
                results.show_plan(gathered)
            if plan:
                return gathered
            typer.confirm(t("Ask?", "确认查询？"), default=True, abort=True, err=True)
            request.plan_only = False
            gathered = results.Gathered(list(request.items), question)
        with common.progress() as bars:
            bars.disable = json
            tasks: dict[tuple[str, str], TaskID] = {}
            for event in node.Query(request):
                gathered.take(event)
                if event.HasField("plan") and not json and not ask_first:
                    results.show_plan(gathered)
                elif event.HasField("progress"):
                    key = (event.progress.member, event.progress.list)
                    if key not in tasks:
                        tasks[key] = bars.add_task(" / ".join(key), total=event.progress.total, note="")
                    bars.update(tasks[key], completed=event.progress.done)
    if not gathered.plan.holders:
        raise CommandError(
            t("no contract in force lets this node ask any list", "没有生效的合约允许本节点查询任何名单")
        )
    return gathered


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        "sync", help=t("Bring copies of others' sealed lists up to date.", "同步其他成员的加密名单。")
    )(sync)
    app.command("query", help=t("Ask all members at once.", "同时向各成员查询。"))(query)
