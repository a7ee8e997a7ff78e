"""`lianfang status`, `peers` and `doctor`."""

import datetime as dt
import shutil
import time
from typing import Annotated, Any

import grpc
import typer
from cryptography import x509
from lianfang.v1 import admin_pb2 as pb
from rich.markup import escape

from protocols.backends import VARIABLE, Reason

from .. import policy
from ..config import Home
from ..errors import NodeError
from ..identity import certificates, keys
from ..identity.members import MemberBook
from . import common
from .common import HERE, CommandError, Config, Json, admin, as_dict, errors, out, print_json
from .i18n import t

OK, WARN, BAD = "ok", "warning", "problem"
_LOW_DISK = 2 * 10**9
_EASY_DAYS = 365  # a budget that enumerates a carrier's numbers sooner is worth a warning


def status(config: Config = HERE, json: Json = False) -> None:
    """This node, its lists, its copies, and what was asked of it today."""
    with errors(), admin(config) as node:
        document = as_dict(node.Status(pb.StatusRequest()))
        if json:
            print_json(document)
            return
        out.print(f"{document['member']}  ({document['software']}, {document['listen']})")
        _show(
            t("own lists", "本方名单"),
            document["lists"],
            ("list", "live", "epoch", "batch", "pending", "closes_at"),
        )
        _show(
            t("copies of others' lists", "他方名单副本"),
            document["copies"],
            ("member", "list", "epoch", "batch", "entries", "as_of"),
        )
        _show(
            t("asked of us today", "今日被查询"),
            document["asked_of_us_today"],
            ("member", "list", "evaluations"),
        )
        _show(
            t("refused today", "今日拒绝"), document["refused_today"], ("member", "list", "reason", "times")
        )
        ledger = document["ledger"]
        out.print(
            t(
                f"ledger: {ledger['published_size']} entries published {ledger['published_at']}, cosigned by "
                f"{ledger['cosigned_by']}/{ledger['witnesses']}",
                f"账本：{ledger['published_at']} 公布 {ledger['published_size']} 条，联署 "
                f"{ledger['cosigned_by']}/{ledger['witnesses']}",
            ),
            markup=False,
        )
        agreed = document["contracts"]
        out.print(
            t(
                f"contracts: {agreed['active']} in force, {agreed['proposed']} proposed, {agreed['to_decide_here']} to "
                f"decide here, {agreed['dead']} dead since somebody left",
                f"合约：{agreed['dead']} 份因成员退出失效，{agreed['active']} 份生效，{agreed['proposed']} 份待批准，"
                f"{agreed['to_decide_here']} 份待本方决定",
            ),
            markup=False,
        )
        people = document["people"]
        if people["waiting_for_a_second"]:
            count = people["waiting_for_a_second"]
            out.print(
                t(
                    f"{count} actions wait for a second person: lianfang pending list",
                    f"{count} 项操作等待第二人批准：lianfang pending list",
                )
            )
        if people["locked"]:
            names = ", ".join(people["locked"])
            text = t(f"locked after failed attempts to sign in: {names}", f"登录失败过多已锁定：{names}")
            out.print(text, style="red", markup=False)
        if people["open_to_owner"]:
            text = t(
                "whoever reads data/owner.token may invite people: two administrators have to enrol, and node.owner_invites to go",
                "可读 data/owner.token 的账户可以邀请人员：须有两名管理员登记，并关闭 node.owner_invites",
            )
            out.print(text, style="yellow", markup=False)
        if ledger["unpublished_seconds"]:
            seconds = ledger["unpublished_seconds"]
            text = t(
                f"NO QUORUM for {seconds} s: urgent purposes go on, recorded and unpublished; others are refused",
                f"已 {seconds} 秒未达见证法定数：紧急用途继续并记录待公布，其余被拒绝",
            )
            out.print(text, style="red", markup=False)
        _show(t("ALARMS", "警报"), document["alarms"], ("holder", "list", "what", "at"))
        if document["policy_trouble"]:
            out.print(document["policy_trouble"], style="red", markup=False)


def _show(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    if not rows:
        return
    shown = common.table(title, *columns)
    for row in rows:
        shown.add_row(*(common.local(str(row.get(column, ""))) for column in columns))
    out.print(shown)


def peers(
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help=t("ask each", "逐一连接"))] = True,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """The other members, and whether each answers."""
    with errors(), admin(config) as node:
        document = as_dict(node.Peers(pb.PeersRequest(probe=probe)))
        if json:
            print_json(document)
        else:
            rows = [
                {
                    **each,
                    "lists": ", ".join(item["list"] for item in each.get("lists", [])),
                    "answers": each.get("detail") or each.get("answers", ""),
                }
                for each in document["peers"]
            ]
            _show("", rows, ("name", "role", "endpoint", "answers", "milliseconds", "lists"))
        if probe and not all(each["answers"] for each in document["peers"]):
            raise typer.Exit(1)


class _Report:
    """Findings of the doctor."""

    def __init__(self) -> None:
        self.findings: list[dict[str, str]] = []

    def add(self, state: str, what: str, found: str, advice: str = "") -> None:
        self.findings.append({"state": state, "what": what, "found": found, "advice": advice})

    def attempt(self, what: str, check: Any) -> Any:
        """Run a check that raises; its value, or None after reporting."""
        try:
            return check()
        except (NodeError, OSError, ValueError) as error:
            self.add(BAD, what, str(error))
            return None


def doctor(config: Config = HERE, json: Json = False) -> None:
    """Check configuration, keys, certificates, clock, disk, peers and budgets, and say what to do."""
    report = _Report()
    home = report.attempt(t("configuration", "配置"), lambda: Home(config))
    if home is not None:
        report.add(OK, t("configuration", "配置"), str(home.file))
        _check_files(home, report)
        _check_running(home, report)
    if json:
        print_json({"findings": report.findings})
    else:
        marks = {OK: "[green]✓[/green]", WARN: "[yellow]![/yellow]", BAD: "[red]✗[/red]"}
        shown = common.table("", "", "", "", "")
        for each in report.findings:
            shown.add_row(marks[each["state"]], *(escape(each[key]) for key in ("what", "found", "advice")))
        out.print(shown)
    if any(each["state"] == BAD for each in report.findings):
        raise typer.Exit(1)


def _check_files(home: Home, report: _Report) -> None:
    loaded = report.attempt(t("keys", "密钥"), lambda: keys.NodeKeys.load(home.keys))
    if loaded is not None:
        report.add(OK, t("keys", "密钥"), t("present, 0600", "齐全，权限 0600"))
    rules = report.attempt(t("policy", "策略"), lambda: policy.load(home.policy))
    if rules is not None:
        said = t("the contracts alone decide", "完全由合约决定")
        report.add(OK, t("policy", "策略"), f"{len(rules.allow)} × [[allow]]" if rules.allow else said)
    if home.config.node.owner_invites:
        report.add(
            WARN,
            t("people", "人员"),
            "owner_invites",
            t(
                "the node's owner may invite anybody: take it out again",
                "节点所有者可邀请任何人：请尽快关闭",
            ),
        )
    paths = (home.certs / "ca.crt", home.certs / "node.crt")
    read = report.attempt(
        t("certificate", "证书"), lambda: [x509.load_pem_x509_certificate(p.read_bytes()) for p in paths]
    )
    if read is None:
        report.findings[-1]["advice"] = t(
            f"send {home.file.parent / 'request.json'} to the CA, then `lianfang enroll`",
            f"把 {home.file.parent / 'request.json'} 交给证书机构，再运行 `lianfang enroll`",
        )
        return
    ca, own = read
    _check_certificate(home, ca, own, loaded, report)
    book = report.attempt(t("member list", "成员名单"), lambda: MemberBook(home.certs / "members.bin", ca))
    if book is not None:
        names = ", ".join(member.name.name for member in book.current)
        days = int((book.current.valid_until - time.time()) // 86_400)
        report.add(
            OK if days > 14 else WARN,
            t("member list", "成员名单"),
            f"{book.current.version}: {names}; {days} d",
            "" if days > 14 else t("ask the CA to reissue it", "请证书机构重新签署"),
        )
        report.attempt(t("member list", "成员名单"), lambda: book.current.authenticate(own))
    if home.capture:
        report.add(
            WARN,
            t("capture", "抓取"),
            str(home.capture),
            t(
                "every message is written to disk: remove [debug] capture",
                "报文会写入磁盘：请删除 [debug] capture",
            ),
        )


def _check_certificate(
    home: Home, ca: x509.Certificate, own: x509.Certificate, loaded: keys.NodeKeys | None, report: _Report
) -> None:
    what = t("certificate", "证书")
    left = (own.not_valid_after_utc - dt.datetime.now(dt.UTC)).days
    report.attempt(what, lambda: certificates.check_issued(own, ca))
    if loaded is not None and not certificates.same_key(own, loaded.tls):
        report.add(BAD, what, t("is not for this node's key", "与本机密钥不符"))
    renew = t(
        "renew: `lianfang ca sign` and `lianfang enroll`", "请续签：`lianfang ca sign` 与 `lianfang enroll`"
    )
    state = OK if left > 30 else WARN
    found = f"{certificates.member_of(own)}, {left} d, CA {certificates.fingerprint(ca)}"
    report.add(state, what, found, "" if state == OK else renew)


def _check_running(home: Home, report: _Report) -> None:
    folder = home.data if home.data.exists() else home.file.parent
    free = shutil.disk_usage(folder).free
    state = OK if free > _LOW_DISK else WARN
    report.add(state, t("disk", "磁盘"), f"{common.size(free)} {t('free', '可用')}")
    try:
        with admin(home.file) as node:
            document = as_dict(node.Diagnose(pb.DiagnoseRequest(), timeout=60))
    except (CommandError, grpc.RpcError) as error:
        found = t("is not running", "未运行")
        advice = t("start it: peers and budgets are checked then", "启动后再检查成员与额度")
        if isinstance(error, grpc.RpcError) and common.answered(error):
            found = error.details() or error.code().name
            advice = t("peers and budgets are checked then", "之后再检查成员与额度")
        report.add(WARN, t("node", "节点"), found, advice)
        return
    report.add(
        OK, t("node", "节点"), t(f"{document['workers']} workers", f"{document['workers']} 个工作进程")
    )
    if cluster := document["cluster"]:
        report.add(
            BAD if cluster["trouble"] else OK,
            t("cluster", "集群"),
            cluster["trouble"]
            or t(f"lists are sealed at {cluster['address']}", f"名单在 {cluster['address']} 密封"),
            t("start it, or take node.cluster out", "请启动集群，或去掉 node.cluster")
            if cluster["trouble"]
            else "",
        )
    _check_arithmetic(document["group_backend"], Reason(document["group_reason"]), report)
    for trouble in [*document["key_troubles"], document["policy_trouble"], document["certificate_trouble"]]:
        if trouble:
            report.add(BAD, t("node", "节点"), trouble)
    _check_institutions(document["institutions"], report)
    _check_ledger(document["ledger"], report)
    agreed = document["contracts"]
    propose = t(
        "nothing is exchanged without one: `lianfang contract propose`",
        "没有合约则不交换任何内容：`lianfang contract propose`",
    )
    decide = t("`lianfang contract list`", "`lianfang contract list`")
    report.add(
        OK if agreed["active"] and not agreed["to_decide_here"] else WARN,
        t("contracts", "合约"),
        t(
            f"{agreed['active']} in force, {agreed['to_decide_here']} to decide here",
            f"{agreed['active']} 份生效，{agreed['to_decide_here']} 份待本方决定",
        ),
        decide if agreed["to_decide_here"] else "" if agreed["active"] else propose,
    )
    for each in document["peers"]:
        _check_peer(each, report)
    for each in document["budgets"]:
        days = each["days_to_enumerate"]
        text = t(
            f"{each['list']}: {each['member']} could try 10^7 phone numbers in {days:,} days",
            f"{each['list']}：{each['member']} 遍历 10^7 个手机号需 {days:,} 天",
        )
        advice = t("narrow its day or epoch budget in policy.toml", "请在 policy.toml 中收紧其额度")
        easy = 0 < days < _EASY_DAYS
        report.add(WARN if easy else OK, t("budget", "额度"), text, advice if easy else "")


def _check_institutions(document: dict[str, Any], report: _Report) -> None:
    """Accounts under a code that nobody asks under are missed without a word."""
    what = t("institutions", "机构代码表")
    if document["missing"]:
        report.add(
            WARN,
            what,
            t("the member list names a directory that is not here yet", "成员名单所指的机构代码表尚未取得"),
            t(
                "copy the CA's institutions.tsv into the certs folder",
                "请把证书机构的 institutions.tsv 复制到 certs 目录",
            ),
        )
    for name, found in document["lists"].items():
        accounts, unknown = found["accounts"], found["unknown"]
        if not document["hash"]:
            text = t(
                f"{name}: {accounts:,} accounts under codes as they were imported; the network has no directory",
                f"{name}：{accounts:,} 个账户按导入时的代码列示；全网尚无机构代码表",
            )
            report.add(
                WARN,
                what,
                text,
                t("the CA runs `lianfang ca directory`", "由证书机构运行 `lianfang ca directory`"),
            )
        elif unknown:
            shown = ", ".join(f"{code} ({count:,})" for code, count in sorted(unknown.items())[:10])
            text = t(
                f"{name}: nobody can ask for accounts under {len(unknown):,} codes that the directory lacks: {shown}",
                f"{name}：机构代码表缺少 {len(unknown):,} 个代码，其账户无法被查询：{shown}",
            )
            report.add(BAD, what, text, t("have the CA add them", "请由证书机构补充"))
    if document["hash"]:
        count = document["institutions"]
        report.add(
            OK,
            what,
            t(f"{count:,} institutions, {document['hash'][:12]}", f"{count:,} 家，{document['hash'][:12]}"),
        )


def _check_arithmetic(backend: str, reason: Reason, report: _Report) -> None:
    """Which code multiplies points, and why that one."""
    state, why, advice = {
        Reason.FASTEST: (OK, t("the fastest that this processor runs", "本机处理器可用的最快实现"), ""),
        Reason.ASKED_FOR: (OK, t(f"{VARIABLE} asks for it", f"由 {VARIABLE} 指定"), ""),
        Reason.NO_VECTORS: (
            OK,
            t(
                "this processor has no AVX-512, which the batch kernel needs",
                "处理器没有批量内核所需的 AVX-512",
            ),
            "",
        ),
        Reason.NOT_BUILT: (
            WARN,
            t(
                "the batch kernel was not built: no C compiler at installation",
                "批量内核未构建：安装时没有 C 编译器",
            ),
            t(
                "install a compiler, then Lianfang again: several times faster",
                "装好编译器后重新安装：快数倍",
            ),
        ),
        Reason.NOT_LOADED: (
            WARN,
            t(
                "the batch kernel does not load: built for another machine or Python",
                "批量内核无法加载：为其他机器或 Python 构建",
            ),
            t("install Lianfang again on this machine", "请在本机重新安装"),
        ),
        Reason.DISAGREES: (
            BAD,
            t(
                "the batch kernel disagrees with libsodium here and does not serve",
                "批量内核与 libsodium 结果不一致，已停用",
            ),
            t(
                "a fault of compiler or processor: report it, do not go on",
                "编译器或处理器有故障：请上报并停用本机",
            ),
        ),
    }[reason]
    report.add(state, t("curve arithmetic", "曲线运算"), f"{backend}: {why}", advice)


def _check_ledger(ledger: dict[str, Any], report: _Report) -> None:
    what = t("ledger", "账本")
    cosigned = f"{ledger['cosigned_by']}/{ledger['witnesses']}"
    if ledger["unpublished_seconds"]:
        report.add(
            BAD,
            what,
            t(
                f"no quorum for {ledger['unpublished_seconds']} s",
                f"{ledger['unpublished_seconds']} 秒未达法定数",
            ),
            "; ".join(ledger["not_cosigning"].values()) or t("ask the other members", "请联系其他成员"),
        )
    elif ledger["witnesses"] < ledger["quorum"] + 1:
        found = t(f"{cosigned} witnesses, all are needed", f"见证 {cosigned}，缺一不可")
        report.add(WARN, what, found, t("one that fails stops this node: have four", "建议至少四个见证方"))
    else:
        report.add(OK, what, t(f"published, cosigned by {cosigned}", f"已公布，联署 {cosigned}"))
    if ledger["trouble"]:
        report.add(BAD, what, ledger["trouble"], "docs/operations.md")
    for member, why in ledger["not_cosigning"].items():
        report.add(
            WARN, what, why, t("ask its operator", "请联系对方运维") + f" ({member.rpartition('/')[2]})"
        )


def _check_peer(each: dict[str, Any], report: _Report) -> None:
    what = t("peer", "成员")
    if not each["answers"]:
        advice = t("ask its operator; check the address and firewall", "请联系对方运维，检查地址与防火墙")
        report.add(WARN, what, each["detail"], advice)
        return
    skew = abs(each["clock_difference_seconds"])
    if skew > 60:
        report.add(
            BAD if skew > 300 else WARN,
            t("clock", "时钟"),
            t(f"{skew:.0f} s from {each['name']}", f"与 {each['name']} 相差 {skew:.0f} 秒"),
            t(
                "set the clock by NTP; beyond 5 minutes questions are refused",
                "请用 NTP 校时；超过 5 分钟将被拒绝",
            ),
        )
    lists = ", ".join(item["list"] for item in each["lists"])
    report.add(OK, what, f"{each['name']}: {each['milliseconds']} ms; {lists or t('no lists', '无名单')}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status", help=t("This node at a glance.", "节点概况。"))(status)
    app.command("peers", help=t("The other members.", "其他成员。"))(peers)
    app.command("doctor", help=t("Check everything and say what to do.", "全面检查并给出建议。"))(doctor)
