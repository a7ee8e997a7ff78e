"""`lianfang screen`: bulk questions that go on by themselves until every value is answered."""

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import admin_pb2 as pb

from federation.files import Reading

from ..policy import BASES, BASIS_NAMES, PURPOSES
from . import results
from .asking import INCOMPLETE, check_words, read_items
from .common import HERE, CommandError, Config, Json, admin, as_dict, err, errors, out, print_json, table
from .i18n import t, word

app = typer.Typer(
    no_args_is_help=True,
    help=t("bulk questions within budgets, over days", "按额度分日进行的批量筛查"),
)
Identity = Annotated[str, typer.Argument(metavar="ID", help=t("as of `screen list`", "见 screen list"))]


@app.command("start", help=t("Begin a screening; takes two.", "开始筛查（须两人）。"))
def start(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help=t("values, one a line, or CSV/XLSX", "待查值"))
    ],
    case: Annotated[str, typer.Option("--case", help=t("case number; it stays here", "案件编号，不外传"))],
    basis: Annotated[str, typer.Option("--basis", "-b", help=", ".join(BASES))],
    purpose: Annotated[str, typer.Option("--purpose", "-p", help=", ".join(PURPOSES))] = "screening",
    kind: Annotated[str, typer.Option("--kind", "-k", help=t("of values without one", "未注明种类时"))] = "",
    to: Annotated[
        list[str] | None, typer.Option("--to", help=t("members; default all", "成员，默认全部"))
    ] = None,
    lists: Annotated[list[str] | None, typer.Option("--list", "-l")] = None,
    both: Annotated[
        bool, typer.Option("--both", help=t("what fits several kinds, under each", "多种可能逐一查询"))
    ] = False,
    days: Annotated[
        int, typer.Option(min=1, max=366, help=t("then it ends, finished or not", "最长天数"))
    ] = 30,
    plan: Annotated[bool, typer.Option("--plan", help=t("cost and end only", "只看费用与完成时间"))] = False,
    encoding: Annotated[str, typer.Option(help=t("of the file", "文件编码"))] = "",
    sheet: Annotated[str, typer.Option(help=t("of the workbook", "工作表"))] = "",
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Ask all lists about all values, each day as much as the budgets have room for."""
    check_words(purpose, basis)
    with errors():
        items, further = read_items(source, kind, [], Reading(encoding, sheet))
        question = pb.QueryRequest(
            items=items,
            purpose=PURPOSES[purpose],
            basis=BASES[basis],
            case_number=case,
            members=to or [],
            lists=lists or [],
            both=both,
            plan_only=plan,
        )
        request = pb.ScreeningRequest(
            question=question,
            further=jsons.dumps(further, ensure_ascii=False).encode() if further else b"",
            days=days,
        )
        with admin(config) as node:
            started = node.StartScreening(request)
        gathered = results.Gathered(items, results.Question(case, purpose, basis, further))
        gathered.take(pb.QueryEvent(plan=started.plan))
        if json:
            print_json(
                {
                    **_document(started.screening),
                    "id": started.id,
                    "problems": gathered.document()["problems"],
                }
            )
            return
        results.show_problems(gathered)
        _show_one(started.screening)
        if started.id:
            short = started.id[:12]
            out.print(
                t(
                    f"Started {short}. It goes on while the node runs: lianfang screen list; results: "
                    f"lianfang screen results {short} -o FILE",
                    f"已开始 {short}。节点运行期间自动进行：lianfang screen list；结果：lianfang screen results {short} -o FILE",
                )
            )


def _document(screening: pb.Screening) -> dict[str, Any]:
    document = as_dict(screening)
    for each in (document, *document["places"]):
        for name in ("started_at", "expires_at", "ends_at"):
            if name in each:
                each[name] = results.iso(each[name])
    return document


def _ending(ends_at: float, expires_at: float) -> str:
    if not ends_at:
        return t("cannot be foreseen", "无法预计")
    when = results.clock(ends_at)
    return when if ends_at <= expires_at else t(f"{when}: after its last day", f"{when}：超出期限")


def _show_one(screening: pb.Screening) -> None:
    shown = table(
        t(f"{screening.values:,} values", f"{screening.values:,} 个值"),
        *(t("member", "成员"), t("list", "名单"), t("answered", "已答复"), t("charged", "额度消耗")),
        *(t("today", "今日可用"), t("a day", "每日"), t("ends about", "预计完成"), ""),
    )
    for each in screening.places:
        done = each.done == screening.values
        shown.add_row(
            *(
                each.member,
                each.list,
                f"{each.done:,}",
                f"{each.charged:,}",
                f"{each.today:,}",
                f"{each.a_day:,}",
            ),
            t("ended", "已完成") if done else _ending(each.ends_at, screening.expires_at),
            each.detail,
        )
    out.print(shown)
    if screening.state == "running" and not 0 < screening.ends_at <= screening.expires_at:
        err.print(
            t(
                "As budgets stand, it does not finish within its days: ask fewer lists, or for a larger budget, or give --days.",
                "按现有额度，期限内无法完成：请减少名单、申请更多额度或增加 --days。",
            )
        )


@app.command("list", help=t("How far screenings are.", "筛查进度。"))
def show(config: Config = HERE, json: Json = False) -> None:
    """All screenings of this node, with each list's progress and when it ends."""
    with errors():
        with admin(config) as node:
            known = node.Screenings(pb.ScreeningsRequest()).screenings
        if json:
            print_json([_document(each) for each in known])
            return
        for each in known:
            name = f"{each.id[:12]}  {word(each.state)}  {each.by}  {each.case_number}".rstrip()
            out.print(f"{name}  {each.detail}".rstrip(), markup=False)
            _show_one(each)


@app.command("stop", help=t("End a screening; results stay.", "终止筛查，已有结果保留。"))
def stop(identity: Identity, config: Config = HERE, json: Json = False) -> None:
    """Ask no more; what was answered can still be read."""
    with errors():
        with admin(config) as node:
            (ended,) = node.StopScreening(pb.ScreeningResultsRequest(id=identity)).screenings
        if json:
            print_json(_document(ended))
        else:
            _show_one(ended)


@app.command("results", help=t("What a screening has brought so far.", "筛查结果（截至目前）。"))
def show_results(
    identity: Identity,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=t("all rows: .csv, .xlsx or .json", "全部结果文件"))
    ] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Hits, and all rows in a file; status 3 while some list has not answered for every value."""
    if output is not None and output.suffix.lower() not in results.WRITERS:
        raise typer.BadParameter(", ".join(results.WRITERS), param_hint="--output")
    with errors():
        gathered: results.Gathered | None = None
        with admin(config) as node:
            for each in node.ScreeningResults(pb.ScreeningResultsRequest(id=identity)):
                if gathered is None:
                    asked = each.asked.question
                    further = jsons.loads(each.asked.further) if each.asked.further else []
                    question = results.Question(
                        asked.case_number, each.screening.purpose, BASIS_NAMES[asked.basis], further
                    )
                    gathered = results.Gathered(list(asked.items), question)
                else:
                    gathered.take(each.event)
        if gathered is None:
            raise CommandError(t("the node sent nothing", "节点未返回内容"))
        if json:
            print_json(gathered.document())
        else:
            results.show_problems(gathered)
            results.show(gathered)
        if output is not None:
            results.WRITERS[output.suffix.lower()](output, gathered)
            if not json:
                out.print(t(f"all rows are in {output}", f"全部结果在 {output}"))
        sys.stdout.flush()
        if not gathered.complete:
            raise typer.Exit(INCOMPLETE)
