"""`lianfang ledger`: this node's log, proofs from it, the evidence of a case, and what others' logs show."""

import datetime as dt
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from lianfang.v1 import ledger_pb2 as pb
from lianfang.v1 import ledger_pb2_grpc

from ..config import Home
from ..errors import ConfigError
from ..files import write_atomic
from ..ledger import bundle as bundles
from ..ledger.bundle import BundleError, Verified
from . import common
from .common import HERE, CommandError, Config, Json, as_dict, err, out, print_json, table
from .i18n import CHINESE, t

app = typer.Typer(
    no_args_is_help=True,
    help=t("the log that others witness: proofs and evidence", "由他方见证的账本：证明与证据"),
)
_SPAN = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


@contextmanager
def _ledger(config: Path) -> Iterator[ledger_pb2_grpc.LedgerAdminStub]:
    with common.channel(Home(config)) as opened:
        yield ledger_pb2_grpc.LedgerAdminStub(opened)


def _moment(text: str) -> int:
    """Milliseconds: an ISO date or time (UTC where it names no zone), or so long ago (90m, 24h, 7d)."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return int((time.time() - int(span[1]) * _UNITS[span[2]]) * 1000)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            t(f"{text!r} is no time: give 2026-11-22, 2026-11-22T08:00 or 24h", f"{text!r} 不是时间")
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _id(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 16:
        raise CommandError(t("a query id has 32 hexadecimal digits", "查询编号为 32 位十六进制"))
    return data


@app.command("head", help=t("This log's newest published head.", "本账本最近公布的账本头。"))
def head(
    note: Annotated[
        bool, typer.Option("--note", help=t("print the signed head itself", "输出已签名的账本头"))
    ] = False,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """How this node's log stands; exit status 1 where no quorum witnesses it."""
    with common.errors(), _ledger(config) as node:
        answer = node.Head(pb.HeadRequest())
        status = as_dict(answer.status)
        if note:
            sys.stdout.write(answer.note.decode())
        elif json:
            print_json({**status, "note": answer.note.decode()})
        else:
            out.print(status["origin"])
            rows = (
                (t("entries", "条目"), status["size"]),
                (t("published", "已公布"), f"{status['published_size']}  {status['published_at']}"),
                (t("waiting for the next tick", "等待下一次"), status["waiting"]),
                (
                    t("cosigned by", "联署"),
                    f"{status['cosigned_by']}/{status['witnesses']}, {t('needed', '需要')} {status['quorum']}",
                ),
            )
            for label, value in rows:
                out.print(f"  {label}: {value}", markup=False)
            if status["trouble"]:
                out.print(f"  {status['trouble']}", style="red", markup=False)
            for member, why in status["not_cosigning"].items():
                out.print(f"  {member}: {why}", style="yellow", markup=False)
        if status["unpublished_seconds"]:
            err.print(
                t(
                    f"No quorum for {status['unpublished_seconds']} s: only urgent purposes go on.",
                    f"已 {status['unpublished_seconds']} 秒未达到见证法定数：仅紧急用途可继续。",
                ),
                style="red",
            )
            raise typer.Exit(1)


@app.command("prove", help=t("C2SP proofs of one event, or of one entry.", "某事件或某条目的 C2SP 证明。"))
def prove(
    query_id: Annotated[
        str, typer.Argument(help=t("a query id in hexadecimal", "查询编号（十六进制）"))
    ] = "",
    index: Annotated[
        int | None, typer.Option("--index", min=0, help=t("an entry instead", "或条目序号"))
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help=t("write .tlog-proof files here", "写入 .tlog-proof 文件的目录")),
    ] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Proofs by this log, and by the other parties' of what they recorded under the same id."""
    with common.errors(), _ledger(config) as node:
        if bool(query_id) == (index is not None):
            raise CommandError(t("give a query id or --index", "请给出查询编号或 --index"))
        request = pb.ProveRequest(id=_id(query_id)) if query_id else pb.ProveRequest(index=index or 0)
        proofs = node.Prove(request).proofs
        files = []
        for number, each in enumerate(proofs):
            name = f"{each.log.rpartition('/')[2]}-{query_id[:12] or index}-{number}.tlog-proof"
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / name, each.proof.encode())
                files.append(str(folder / name))
        if json:
            print_json(
                {"proofs": [{"log": each.log, "proof": each.proof} for each in proofs], "files": files}
            )
        elif folder is not None:
            out.print("\n".join(files), markup=False)
        else:
            sys.stdout.write("\n".join(each.proof for each in proofs))


@app.command("events", help=t("What this node has recorded.", "本节点的记录。"))
def events(
    since: Annotated[
        str, typer.Option(help=t("a time, or so long ago: 24h, 7d", "起始时间，或 24h、7d"))
    ] = "24h",
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 1_000,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """This node's own events, opened: nobody else can read them."""
    with common.errors(), _ledger(config) as node:
        document = as_dict(node.List(pb.ListEventsRequest(since=_moment(since), limit=limit)))
        if json:
            print_json(document)
            return
        columns = ("at", "type", "by", "peer", "resource", "count", "purpose", "reason", "position")
        shown = table("", *columns)
        for row in document["events"]:
            resource = str(row["resource"])[:24]
            shown.add_row(*(resource if column == "resource" else str(row[column]) for column in columns))
        out.print(shown)


@app.command("bundle", help=t("The evidence of a case in one file.", "将一个案件的证据写入一个文件。"))
def bundle(
    case: Annotated[str, typer.Argument(help=t("the case number", "案件编号"))] = "",
    query_id: Annotated[str, typer.Option("--query", help=t("one query instead", "或单个查询编号"))] = "",
    output: Annotated[Path, typer.Option("--out", "-o", help=t("the file to write", "写入的文件"))] = Path(
        "case.bundle.json"
    ),
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Everything that this node recorded about a case, with others' receipts and all proofs."""
    with common.errors(), _ledger(config) as node:
        if bool(case) == bool(query_id):
            raise CommandError(t("give a case number or --query", "请给出案件编号或 --query"))
        request = pb.BundleRequest(case_number=case) if case else pb.BundleRequest(query_id=_id(query_id))
        answer = node.Bundle(request)
        write_atomic(output, answer.bundle, 0o600)
        if json:
            print_json({"file": str(output), "entries": answer.entries, "promises": answer.promises})
        else:
            out.print(
                t(f"{output}: {answer.entries} recorded events", f"{output}：{answer.entries} 条记录"),
                markup=False,
            )


@app.command("verify", help=t("Check a bundle: no network, no database.", "离线核验证据文件。"))
def verify(
    file: Annotated[Path, typer.Argument()],
    ca: Annotated[
        Path | None,
        typer.Option(help=t("the network CA's certificate that you trust", "您信任的网络证书机构证书")),
    ] = None,
    json: Json = False,
) -> None:
    """Say in plain words what the file proves and what it does not; exit status 1 where it does not hold."""
    with common.errors():
        found = bundles.verify(_contents(file), _certificate(ca) if ca is not None else None)
        if json:
            print_json(_as_json(found))
        else:
            _show(found)


def _contents(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def _as_json(found: Verified) -> dict[str, object]:
    return {
        "verified": True,
        "maker": found.maker,
        "ca_fingerprint": found.ca_fingerprint,
        "ca_trusted": found.ca_trusted,
        "case": found.case,
        "member_list_version": found.member_list_version,
        "entries": [
            {
                "log": each.committed.event.log,
                "type": bundles.type_name(each.committed.event.type),
                "id": each.committed.event.id.hex(),
                "peer": each.committed.event.peer,
                "index": each.index,
                "size": each.head.checkpoint.size,
                "cosigned_by": sorted(each.head.cosigned),
                "in_case": each.in_case,
                "text": bundles.describe(each)[CHINESE],
            }
            for each in found.entries
        ],
        "promises": [{"log": each.event.log, "id": each.event.id.hex()} for each in found.promises],
        "not_proven": [each[CHINESE] for each in bundles.NOT_PROVEN],
    }


def _show(found: Verified) -> None:
    out.print(t("PROVEN", "已证明"), style="bold green")
    if found.case:
        inside = sum(each.in_case for each in found.entries)
        out.print(
            t(
                f"  {inside} of {len(found.entries)} events carry the commitment of case {found.case}.",
                f"  {len(found.entries)} 条记录中 {inside} 条带有案件 {found.case} 的承诺值。",
            ),
            markup=False,
        )
    for each in found.entries:
        out.print(f"  • {bundles.describe(each)[CHINESE]}", markup=False)
    out.print(
        t(
            f"  • The file is unchanged since {found.maker} signed it; keys are those of member list "
            f"{found.member_list_version}.",
            f"  • 文件自 {found.maker} 签名后未被改动；密钥取自第 {found.member_list_version} 版成员名单。",
        ),
        markup=False,
    )
    out.print(t("NOT PROVEN", "未证明"), style="bold yellow")
    if not found.ca_trusted:
        out.print(
            t(
                f"  • that this is your network: compare the CA's fingerprint {found.ca_fingerprint}, or give --ca",
                f"  • 是否为贵方网络：请核对证书机构指纹 {found.ca_fingerprint}，或使用 --ca",
            ),
            markup=False,
        )
    for promise in found.promises:
        said = t(
            f"  • that {promise.event.log} recorded {promise.event.id.hex()}: it signed so, its log has not shown it",
            f"  • {promise.event.log} 已签名称其记录了 {promise.event.id.hex()}，但其账本尚未显示",
        )
        out.print(said, markup=False)
    for text in bundles.NOT_PROVEN:
        out.print(f"  • {text[CHINESE]}", markup=False)


@app.command("reconcile", help=t("Both sides' records side by side.", "双方记录逐笔对账。"))
def reconcile(
    since: Annotated[
        str, typer.Option(help=t("a time, or so long ago: 24h, 7d", "起始时间，或 24h、7d"))
    ] = "24h",
    until: Annotated[str, typer.Option(help=t("a time; default: now", "截止时间；默认现在"))] = "",
    members: Annotated[
        list[str] | None, typer.Option("--with", help=t("these members only", "仅与这些成员"))
    ] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Pair every query with the other party's record of it; exit status 1 where anything differs."""
    with common.errors(), _ledger(config) as node:
        end = _moment(until) if until else int(time.time() * 1000) + 1
        request = pb.ReconcileRequest(since=_moment(since), until=end, members=members or [])
        document = as_dict(node.Reconcile(request))
        if json:
            print_json(document)
        else:
            shown = table(
                "",
                t("member", "成员"),
                t("matched", "一致"),
                t("unanswered", "未答复"),
                t("missing here", "我方缺失"),
                t("missing there", "对方缺失"),
                t("differing", "不一致"),
                "",
            )
            for each in document["members"]:
                counts = (len(each[field]) for field in ("missing_here", "missing_there", "differing"))
                shown.add_row(
                    each["member"], *map(str, (each["matched"], each["unanswered"], *counts)), each["trouble"]
                )
            out.print(shown)
            for each in document["members"]:
                for field in ("missing_here", "missing_there", "differing"):
                    for line in each[field]:
                        out.print(f"{each['member']}: {line}", style="red", markup=False)
        if not document["agrees"]:
            raise typer.Exit(1)


@app.command("monitor", help=t("Follow the other members' logs.", "监视其他成员的账本。"))
def monitor(
    compare: Annotated[
        bool,
        typer.Option("--compare/--no-compare", help=t("with what witnesses have seen", "与各见证方所见比对")),
    ] = True,
    follow: Annotated[
        float, typer.Option("--every", min=0, help=t("seconds; 0: look once", "间隔秒数；0 只看一次"))
    ] = 0,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """How far each log is known and what contradicts it; exit status 1 with an alarm."""
    with common.errors(), _ledger(config) as node:
        while True:
            document = as_dict(node.Monitor(pb.MonitorRequest(compare=compare)))
            if json:
                print_json(document)
            else:
                columns = ("member", "size", "head_seconds_old", "witnesses", "state", "detail")
                shown = table("", *columns)
                for row in document["logs"]:
                    shown.add_row(*(str(row[column]) for column in columns))
                out.print(shown)
                for each in document["alarms"]:
                    out.print(
                        f"{t('ALARM', '警报')} {each['holder']}: {each['what']}", style="red", markup=False
                    )
                if document["evidence"]:
                    out.print(t("Signed heads are kept in", "已签名的账本头保存于"), document["evidence"])
            troubled = any(row["state"] not in ("current", "unknown") for row in document["logs"])
            if not follow or document["alarms"]:
                break
            time.sleep(follow)
        if document["alarms"] or troubled:
            raise typer.Exit(1)
