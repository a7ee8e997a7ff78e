"""`lianfang psi`: two members compare a column each, as their contract says."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import psi_pb2 as pb
from lianfang.v1 import psi_pb2_grpc
from rich.progress import TaskID

from ..config import Home
from . import common, results
from .common import HERE, CommandError, Config, Json, as_dict, out, print_json, table
from .i18n import t, word

app = typer.Typer(
    no_args_is_help=True, help=t("compare sets with another member", "与其他成员做隐私集合求交")
)
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help=t("own rows in common: .csv, .xlsx or .json", "共有行的输出文件")),
]


@dataclass
class _Common:
    """Own rows that the other has, too; for the writers of files."""

    outcome: dict[str, Any]
    numbers: list[int]
    values: list[str]
    ids: list[str]  # of an alignment

    @property
    def _aligned(self) -> bool:
        return bool(self.outcome["variant"] == "alignment")

    def table_rows(self) -> "tuple[list[str], Iterable[Sequence[Any]]]":
        """Header and rows."""
        first = self.ids if self._aligned else self.numbers
        session, values = itertools.repeat(self.outcome["session"]), map(results.harmless, self.values)
        return ["id" if self._aligned else "row", "session", "value"], zip(
            first, session, values, strict=False
        )

    def document(self) -> dict[str, Any]:
        """Everything."""
        name, first = ("id", self.ids) if self._aligned else ("row", self.numbers)
        found = [{name: each, "value": value} for each, value in zip(first, self.values, strict=True)]
        return {**self.outcome, "in_common": found}


@contextmanager
def _sets(config: Path) -> Iterator[psi_pb2_grpc.PsiAdminStub]:
    with common.errors(), common.channel(Home(config)) as opened:
        yield psi_pb2_grpc.PsiAdminStub(opened)


def _check(output: Path | None) -> None:
    if output is not None:
        if output.suffix.lower() not in results.WRITERS:
            raise typer.BadParameter(", ".join(results.WRITERS), param_hint="--output")
        results.check_writable(output)


@app.command(
    "run", help=t("Hold a session with the other party of a contract.", "与合约另一方执行一次求交。")
)
def run(
    contract: Annotated[str, typer.Argument(help=t("the hash, or its beginning", "合约哈希或其开头"))],
    output: Output = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Both nodes compute at the same time; the other's people need not be there."""
    hold(contract, output, config, json)


def register(target: typer.Typer) -> None:
    """Add the commands that stand by themselves."""
    target.command(
        "align",
        help=t("Agree on random ids for customers in common.", "与合约另一方对齐共有客户（随机编号）。"),
    )(align)


def align(
    contract: Annotated[str, typer.Argument(help=t("the hash, or its beginning", "合约哈希或其开头"))],
    output: Output = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Both keep the ids of what they have in common: what models of both sides' columns are trained on."""
    hold(contract, output, config, json, "alignment")


def hold(contract: str, output: Path | None, config: Path, json: bool, variant: str = "") -> None:
    """A session, with progress, and what was learnt; `variant` is refused where the contract has another."""
    with _sets(config) as node:
        _check(output)
        outcome: dict[str, Any] = {}
        with common.progress() as bars:
            bars.disable = json
            tasks: dict[str, TaskID] = {}
            for step in node.Run(pb.PsiRunRequest(contract=contract, variant=variant)):
                if step.phase == "done":
                    outcome = as_dict(step.outcome)
                    continue
                if step.phase not in tasks:
                    tasks[step.phase] = bars.add_task(word(step.phase), total=None, note="")
                bars.update(tasks[step.phase], completed=step.done, total=step.total)
        if not outcome:
            raise CommandError(t("the node ended without a result", "节点未返回结果"))
        _give(node, outcome, output, json)


@app.command("list", help=t("Sessions held, also those that the other side opened.", "已执行的求交。"))
def list_(config: Config = HERE, json: Json = False) -> None:
    """Newest first."""
    with _sets(config) as node:
        rows = as_dict(node.Sessions(pb.PsiSessionsRequest())).get("sessions", [])
        if json:
            print_json(rows)
            return
        shown = table(
            "",
            *(t("session", "会话"), t("with", "对方"), t("at", "时间"), t("variant", "方式")),
            *(t("own elements", "本方元素"), t("in common", "共有")),
        )
        for each in rows:
            shown.add_row(
                str(each["session"])[:12],
                each["with"],
                each["at"],
                word(each["variant"]),
                f"{each['elements']:,}",
                _in_common(each),
            )
        out.print(shown)


@app.command("show", help=t("What was learnt in one of them.", "查看一次求交的结果。"))
def show(
    session: Annotated[str, typer.Argument(help=t("its id, or the beginning", "编号或其开头"))],
    output: Output = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Counts; with --output the own rows in common."""
    with _sets(config) as node:
        _check(output)
        rows = as_dict(node.Sessions(pb.PsiSessionsRequest())).get("sessions", [])
        found = [each for each in rows if str(each["session"]).startswith(session)]
        if len(found) != 1:
            raise CommandError(
                t(f"{session!r} names {len(found)} sessions", f"{session!r} 对应 {len(found)} 次求交")
            )
        _give(node, found[0], output, json)


def _in_common(outcome: dict[str, Any]) -> str:
    if not outcome["learns"]:
        return t("not for this side", "不向本方输出")
    if outcome["below_minimum"]:
        return t("fewer than the contract's minimum", "少于合约规定的最小值")
    return f"{outcome['common']:,}"


def _give(node: psi_pb2_grpc.PsiAdminStub, outcome: dict[str, Any], output: Path | None, json: bool) -> None:
    if output is not None:
        found = _Common(outcome, [], [], [])
        for part in node.Outcome(pb.PsiOutcomeRequest(session=str(outcome["session"]))):
            found.numbers += part.number
            found.values += part.value
            found.ids += map(bytes.hex, part.id)
        results.WRITERS[output.suffix.lower()](output, found)
    if json:
        print_json(outcome)
        return
    shown = table("", t("session", "会话"), str(outcome["session"]))
    for name, value in (
        (t("with", "对方"), outcome["with"]),
        (t("variant", "方式"), word(outcome["variant"])),
        (t("rows", "行数"), f"{outcome['rows']:,}"),
        (t("empty", "空值"), f"{outcome['empty']:,}"),
        (t("no identifier", "无法识别"), f"{outcome['bad']:,}"),
        (t("repeated", "重复"), f"{outcome['repeated']:,}"),
        (t("own elements", "本方元素"), f"{outcome['elements']:,}"),
        (t("theirs, at most", "对方元素（上限）"), f"{outcome['their_elements_at_most']:,}"),
        (t("in common", "共有"), _in_common(outcome)),
        *([(t("sum", "合计"), outcome["sum"])] if "sum" in outcome else []),
    ):
        shown.add_row(name, str(value))
    out.print(shown)
    if output is not None:
        out.print(t(f"own rows in common are in {output}", f"共有行在 {output}"))
