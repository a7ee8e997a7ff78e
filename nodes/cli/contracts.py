"""`lianfang contract`: what this institution agrees on with others."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import contract_pb2 as pb
from lianfang.v1 import contract_pb2_grpc
from rich.markup import escape

from ..config import Home
from ..contracts import draft as drafts
from . import common
from .common import HERE, CommandError, Config, Json, err, local, out, print_json, table
from .i18n import t, word

app = typer.Typer(
    no_args_is_help=True,
    help=t("what members agree on before anything is exchanged", "交换任何内容之前的多方合约"),
)
Contract = Annotated[
    str, typer.Argument(help=t("the hash, or its beginning", "合约哈希或其开头"), metavar="CONTRACT")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=t("do not ask", "不再询问"))]


@contextmanager
def _contracts(config: Path) -> Iterator[contract_pb2_grpc.ContractAdminStub]:
    with common.errors(), common.channel(Home(config)) as opened:
        yield contract_pb2_grpc.ContractAdminStub(opened)


def _document(reply: pb.ContractReply) -> dict[str, Any]:
    return common.as_dict(reply.document)


def _read(file: Path, days: float | None, retention: int) -> pb.Contract:
    data = file.read_bytes()
    if not data.lstrip().startswith(b"{"):
        return drafts.load(file)
    try:
        from federation.errors import LearningError
    except ImportError as error:
        raise CommandError(t("install the `learn` extra for jobs", "任务需要安装 learn 组件")) from error
    try:
        return drafts.over_job(data, days or 30, retention, time.time())
    except LearningError as error:
        raise CommandError(f"{file}: {error}") from error


@app.command("template", help=t("Print a file to fill in.", "输出一份可填写的模板。"))
def template() -> None:
    """In TOML."""
    out.print(drafts.TEMPLATE, markup=False, end="")


@app.command("propose", help=t("Sign a contract and send it to the others.", "签署合约并发送给其他方。"))
def propose(
    file: Annotated[Path, typer.Argument(help=t("TOML terms, or a job (JSON)", "TOML 条款，或任务 JSON"))],
    days: Annotated[
        float | None, typer.Option(help=t("a job's: until it expires; 30", "任务合约有效天数，默认 30"))
    ] = None,
    retention: Annotated[
        int, typer.Option(help=t("a job's: days that its model may be kept", "任务合约的保留天数"))
    ] = 365,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """It is in force once every signer has approved."""
    with _contracts(config) as node:
        document = _document(node.Propose(_read(file, days, retention)))
        if json:
            print_json(document)
            return
        _show(document)
        waiting = ", ".join(document["waiting_for"])
        short = document["contract"][:12]
        out.print(
            t(
                f"Proposed. To approve at {waiting}: lianfang contract approve {short}",
                f"已提出。请 {waiting} 执行：lianfang contract approve {short}",
            ),
            markup=False,
        )


@app.command("approve", help=t("Sign a contract of another.", "批准并签署合约。"))
def approve(contract: Contract, yes: Yes = False, config: Config = HERE, json: Json = False) -> None:
    """Checked against this node first: a job's rows and code, the network, the parties."""
    _decide(contract, pb.ContractAct.ACTION_APPROVE, yes, config, json)


@app.command("reject", help=t("Decline a proposal.", "拒绝合约提议。"))
def reject(contract: Contract, yes: Yes = False, config: Config = HERE, json: Json = False) -> None:
    """It can then never come into force."""
    _decide(contract, pb.ContractAct.ACTION_REJECT, yes, config, json)


@app.command("revoke", help=t("End a contract at once.", "立即终止合约。"))
def revoke(contract: Contract, yes: Yes = False, config: Config = HERE, json: Json = False) -> None:
    """This node refuses from now on; the others as soon as they are told."""
    _decide(contract, pb.ContractAct.ACTION_REVOKE, yes, config, json)


def _decide(
    contract: str, action: "pb.ContractAct.Action.ValueType", yes: bool, config: Path, json: bool
) -> None:
    with _contracts(config) as node:
        if sys.stdin.isatty() and err.is_terminal and not yes and not json:
            _show(_document(node.List(pb.ListContractsRequest(contract=contract))))
            typer.confirm(t("Sign this?", "确认签署？"), abort=True, err=True)
        document = _document(node.Decide(pb.ContractDecision(contract=contract, action=action)))
        if json:
            print_json(document)
            return
        out.print(f"{document['title']} ({document['contract'][:12]}): {_state(document)}", markup=False)


@app.command("show", help=t("A contract's terms, and who has signed.", "查看合约条款与签署情况。"))
def show(contract: Contract, config: Config = HERE, json: Json = False) -> None:
    """In words."""
    with _contracts(config) as node:
        document = _document(node.List(pb.ListContractsRequest(contract=contract)))
        if json:
            print_json(document)
            return
        _show(document)


@app.command("list", help=t("Contracts and how they stand.", "合约列表。"))
def list_(config: Config = HERE, json: Json = False) -> None:
    """Newest proposal first."""
    with _contracts(config) as node:
        rows = _document(node.List(pb.ListContractsRequest())).get("contracts", [])
        if json:
            print_json(rows)
            return
        shown = table(
            "",
            t("contract", "合约"),
            t("title", "标题"),
            t("kind", "类型"),
            t("state", "状态"),
            t("parties", "参与方"),
            t("until", "有效期至"),
        )
        for each in rows:
            shown.add_row(
                str(each["contract"])[:12],
                escape(each["title"]),
                word(each["kind"]),
                escape(_state(each)),
                escape(", ".join(each["parties"])),
                local(each["expires_at"]),
            )
        out.print(shown)


def _state(document: dict[str, Any]) -> str:
    text = word(document["state"])
    if document["state"] == "proposed":
        text += t(", waits for ", "，等待 ") + ", ".join(document["waiting_for"])
    if document["gone"]:
        gone = ", ".join(document["gone"])
        text += t(f"; DEAD: {gone} left the network", f"；已失效：{gone} 已退出网络")
    return text


def _show(document: dict[str, Any]) -> None:
    shown = table("", t("contract", "合约"), str(document["contract"]))
    for name, value in (
        (t("title", "标题"), document["title"]),
        (t("state", "状态"), _state(document)),
        (t("proposed by", "提出方"), f"{document['proposer']}, {local(document['proposed_at'])}"),
        (t("parties", "参与方"), ", ".join(document["parties"])),
        (t("signers", "签署方"), ", ".join(document["signers"])),
        (t("until", "有效期至"), local(document["expires_at"])),
        (t("kept for", "保留"), t(f"{document['retention_days']} days", f"{document['retention_days']} 天")),
        *((word(act["action"]), f"{act['party']}, {local(act['at'])}") for act in document["acts"]),
    ):
        shown.add_row(name, escape(value))
    out.print(shown)
    terms = document["terms"]
    if "grants" in terms:
        grants = table(
            "",
            t("asker", "查询方"),
            t("holder", "持有方"),
            t("lists", "名单"),
            t("purposes", "目的"),
            t("bases", "依据"),
            t("evaluations an epoch / a day / a burst", "额度：周期 / 每日 / 突发"),
        )
        for each in terms["grants"]:
            budget = each["budget"]
            grants.add_row(
                escape(each["asker"]),
                escape(each["holder"]),
                ", ".join(map(str, each["lists"])),
                ", ".join(map(word, each["purposes"])),
                ", ".join(each["bases"]) or t("any", "任意"),
                f"{budget['epoch']:,} / {budget['day']:,} / {budget['burst']:,} ({budget['burst_seconds']} s)",
            )
        out.print(grants)
        return
    out.print_json(data=terms)
