"""`lianfang setup`: the first hour of a member, step by step. Run again, it goes on where it stopped."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from cryptography import x509
from lianfang.v1 import admin_pb2 as admin_pb
from lianfang.v1 import contract_pb2, contract_pb2_grpc, people_pb2, people_pb2_grpc

from ..config import Home
from ..contracts.draft import Allowance, Draft, Grant
from ..errors import ConfigError
from ..identity import authority, certificates, keys
from ..identity.authority import Bundle
from ..identity.members import MemberBook
from ..identity.names import MemberName
from ..identity.names import Role as MemberRole
from ..people.roles import Role
from ..policy import PURPOSES
from ..services import wire
from . import common
from .common import CommandError, as_dict, err, errors, out, table
from .i18n import t, word
from .importing import How, bring_in, follow, show_import
from .network import Place, create_node

_T = TypeVar("_T")
_LOOK = 2.0  # seconds between two looks at what a second person has to approve
_ADMINISTRATORS = 2


class _Stop(Exception):
    """The next step is somebody else's; the message says whose."""


def setup(
    folder: Annotated[Path, typer.Argument(help=t("the node's folder", "节点目录"))],
    name: Annotated[str, typer.Option("--name", help=t("the institution", "机构名称"))] = "",
    role: Annotated[MemberRole | None, typer.Option("--role", help=t("its role", "机构角色"))] = None,
    network: Annotated[str, typer.Option("--network", help=t("the network", "网络名"))] = "",
    listen: Annotated[str, typer.Option("--listen", help=t("host:port to answer on", "监听地址"))] = "",
    advertise: Annotated[
        str, typer.Option("--advertise", help=t("host:port for the others", "对外地址"))
    ] = "",
    ledger_listen: Annotated[
        str, typer.Option("--ledger-listen", help=t("host:port of its log", "账本监听地址"))
    ] = "",
    ledger_advertise: Annotated[str, typer.Option("--ledger-advertise")] = "",
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help=t("what the CA gave back", "证书机构发回的文件"))
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option("--person", help=t("NAME=ROLE,ROLE; may be repeated", "姓名=角色,角色；可重复")),
    ] = None,
    partners: Annotated[
        list[str] | None, typer.Option("--with", help=t("members of the first contract", "首份合约的成员"))
    ] = None,
    purposes: Annotated[
        list[str] | None, typer.Option("--purpose", "-p", help=t("of the first contract", "首份合约的目的"))
    ] = None,
    day: Annotated[int, typer.Option(min=1, help=t("its budget for a day", "每日额度"))] = 60_000,
    list_name: Annotated[
        str, typer.Option("--list", "-l", help=t("name of the first list", "首份名单的名称"))
    ] = "fraud",
    file: Annotated[
        Path | None, typer.Option("--file", help=t("with the first list", "首份名单文件"))
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=t("do not ask back", "不再确认"))] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help=t("for a second person", "等待第二人批准"))
    ] = True,
) -> None:
    """Keys and request, the CA's bundle, people, the first contract, the first list.

    What is not given as an option is asked for at a terminal. Each step that is done is passed over.
    """
    with errors():
        hour = _Hour(folder, yes, wait)
        try:
            hour.node(name, role, network, Place(listen, advertise, ledger_listen, ledger_advertise))
            hour.membership(bundle)
            hour.running()
            hour.people(person or [])
            hour.contract(partners or [], purposes or [], list_name, day)
            hour.first_list(list_name, file)
        except _Stop as stop:
            out.print(f"→ {stop}", markup=False, soft_wrap=True)
            return
        out.print(
            t(
                "→ This member is set up. Look it over with `lianfang doctor`, and ask: "
                "lianfang query FILE --purpose payment --case CASE --basis BASIS",
                "→ 配置完成。请用 `lianfang doctor` 检查；查询：lianfang query FILE --purpose payment --case 案件 --basis 依据",
            ),
            markup=False,
            soft_wrap=True,
        )


def _ask(text: str, default: str = "") -> str:
    """A person's answer; empty where nobody can be asked."""
    if not sys.stdin.isatty():
        return default
    return str(typer.prompt(text, default=default, show_default=bool(default), err=True)).strip()


def _done(text: str) -> None:
    out.print(f"✓ {text}", markup=False, soft_wrap=True)


class _Hour:
    """The steps, in order; each returns once it is done, or raises `_Stop`."""

    def __init__(self, folder: Path, yes: bool, wait: bool) -> None:
        self._folder, self._yes, self._wait = folder, yes, wait

    @property
    def _home(self) -> Home:
        return Home(self._folder)

    def _again(self, option: str = "") -> str:
        return f"lianfang setup {self._folder}{' ' + option if option else ''}"

    def node(self, name: str, role: MemberRole | None, network: str, place: Place) -> None:
        """Keys, settings and request."""
        if (self._folder / "node.toml").exists():
            _done(
                t(
                    f"the node {self._home.name} is in {self._folder}",
                    f"节点 {self._home.name} 在 {self._folder}",
                )
            )
            return
        name = name or _ask(t("name of the institution, such as bank-a", "机构名称，如 bank-a"))
        chosen = role or _ask(
            t(f"its role: {', '.join(MemberRole)}", f"角色：{', '.join(MemberRole)}"), "bank"
        )
        network = network or _ask(
            t("name of the network, as the CA has it", "网络名（以证书机构为准）"), "lianfang.example"
        )
        listen = place.listen or _ask(t("host:port to answer on", "监听地址"), "0.0.0.0:7443")
        advertise = place.advertise or _ask(
            t("host:port at which others reach it", "对外地址"), _reachable(listen)
        )
        ledger_listen = place.ledger_listen or _ask(
            t("host:port of its log", "账本监听地址"), _next_port(listen)
        )
        reached = f"{advertise.rpartition(':')[0]}:{ledger_listen.rpartition(':')[2]}"
        ledger = place.ledger_advertise or _ask(t("and for the others", "账本对外地址"), reached)
        if not (name and network and listen):
            raise CommandError(
                t("give --name, --role, --network and --listen", "请给出 --name、--role、--network、--listen")
            )
        try:
            member = MemberName(network, MemberRole(chosen), name)
        except ValueError:
            raise CommandError(
                t(f"a role is one of {', '.join(MemberRole)}", f"角色为 {', '.join(MemberRole)} 之一")
            ) from None
        create_node(self._folder, member, Place(listen, advertise, ledger_listen, ledger))
        _done(t(f"made the node {member}: its keys were born here", f"已建立节点 {member}，密钥在本机生成"))

    def membership(self, bundle: Path | None) -> None:
        """The CA's certificate, this node's and the member list."""
        home = self._home
        if bundle is None and not (home.certs / "node.crt").exists():
            request = home.file.parent / "request.json"
            mark = authority.fingerprint(request.read_text("utf-8"))
            out.print(
                t(
                    f"Send {request} to the network's CA. Its fingerprint:",
                    f"请把 {request} 交给证书机构。指纹：",
                ),
                mark,
                soft_wrap=True,
            )
            given = _ask(
                t("the CA's bundle, when it is there (empty: later)", "证书机构发回的文件（留空则稍后）")
            )
            bundle = Path(given) if given else None
        if bundle is not None:
            try:
                loaded = Bundle.from_json(bundle.read_text("utf-8"), str(bundle))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{bundle}: {error}") from error
            authority.install(loaded, keys.NodeKeys.load(home.keys), home.name, home.certs)
        if not (home.certs / "node.crt").exists():
            raise _Stop(
                t(f"then: {self._again('--bundle BUNDLE')}", f"然后：{self._again('--bundle BUNDLE')}")
            )
        mark = certificates.fingerprint(_ca(home))
        _done(
            t(
                f"enrolled; compare the CA's fingerprint by telephone: {mark}",
                f"已入网；请电话核对证书机构指纹：{mark}",
            )
        )

    def running(self) -> None:
        """The node answers."""
        home = self._home
        try:
            with common.channel(home) as opened:
                grpc.channel_ready_future(opened).result(timeout=10)
        except (CommandError, grpc.FutureTimeoutError):
            raise _Stop(
                t(
                    f"start it, and leave it running: lianfang serve --config {home.file}; then: {self._again()}",
                    f"启动并保持运行：lianfang serve --config {home.file}；然后：{self._again()}",
                )
            ) from None
        _done(t("the node is running", "节点运行中"))

    # -- people ------------------------------------------------------------------------------------------------

    def people(self, given: list[str]) -> None:
        """Two administrators, an operator, an analyst, an approver; everybody enrols by themselves."""
        with common.channel(self._home) as opened:
            node = people_pb2_grpc.PeopleStub(opened)
            try:
                document = as_dict(node.ListPeople(people_pb2.ListPeopleRequest()).document)
            except grpc.RpcError as error:
                if wire.reason_of(error) not in ("ROLE", "SIGN_IN"):
                    raise
                document = None  # there are people, and this is not one who may see them
            if document is not None:
                self._invite(node, document, given)
            self._signed_in(node)

    def _invite(self, node: people_pb2_grpc.PeopleStub, document: dict[str, Any], given: list[str]) -> None:
        known = {each["name"]: each for each in document["people"] if not each["removed"]}
        wanted = _persons(given)
        if not known and not wanted:
            wanted = _ask_persons()
        new = {name: roles for name, roles in wanted.items() if name not in known}
        if not known and sum(Role.ADMINISTRATOR in roles for roles in new.values()) < _ADMINISTRATORS:
            raise CommandError(
                t(
                    "name two administrators and who works with the node: --person ada=administrator --person bob=administrator "
                    "--person olga=operator --person anna=analyst --person paul=approver",
                    "请指定两名管理员及其他人员：--person ada=administrator --person bob=administrator --person olga=operator "
                    "--person anna=analyst --person paul=approver",
                )
            )
        for missing in (Role.OPERATOR, Role.ANALYST, Role.APPROVER):
            everybody = [
                *wanted.values(),
                *({Role(role) for role in each["roles"]} for each in known.values()),
            ]
            if not any(missing in roles for roles in everybody):
                err.print(
                    t(
                        f"nobody is {missing}: some things cannot be done",
                        f"没有{word(missing)}：部分操作无法进行",
                    ),
                    style="yellow",
                )
        if new:
            shown = table(
                t("hand these over in person", "请当面交付"),
                t("name", "姓名"),
                t("roles", "角色"),
                t("invitation", "邀请码"),
            )
            for name, roles in sorted(new.items()):
                made = node.Invite(people_pb2.InviteRequest(name=name, roles=sorted(roles)))
                shown.add_row(name, ", ".join(map(word, sorted(roles))), made.invitation)
            out.print(shown)
        waiting = sorted({*new, *(name for name, each in known.items() if not each["enrolled"])})
        if waiting:
            who = ", ".join(waiting)
            raise _Stop(
                t(
                    f"{who}: each runs `lianfang user enrol NAME --config {self._home.file}` with an authenticator at hand; "
                    f"then the operator runs: {self._again()}",
                    f"{who}：各自运行 `lianfang user enrol 姓名 --config {self._home.file}`（须有验证器）；然后由操作员运行：{self._again()}",
                )
            )

    def _signed_in(self, node: people_pb2_grpc.PeopleStub) -> None:
        try:
            me = as_dict(node.WhoAmI(people_pb2.WhoAmIRequest()).document)
        except grpc.RpcError as error:
            if wire.reason_of(error) != "SIGN_IN":
                raise
            me = {"name": "", "roles": []}
        if Role.OPERATOR not in me["roles"]:
            raise _Stop(
                t(
                    f"an operator signs in and goes on: lianfang login NAME --config {self._home.file}; {self._again()}",
                    f"由操作员登录后继续：lianfang login 姓名 --config {self._home.file}；{self._again()}",
                )
            )
        _done(t(f"signed in as {me['name']}", f"已登录：{me['name']}"))

    def _second(self, call: Callable[[], _T]) -> _T:
        """Make a call that may wait for a second person; returns once that person has approved it."""
        told = False
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if wire.reason_of(error) != "PENDING" or not self._wait:
                    raise
                if not told:
                    told = True
                    err.print(error.details() or "", markup=False, soft_wrap=True)
                    err.print(
                        t(
                            "Waiting for the approval (Ctrl-C: run setup again later) …",
                            "等待批准（Ctrl-C 后可稍后再运行）……",
                        )
                    )
            time.sleep(_LOOK)

    # -- contract and list ---------------------------------------------------------------------------------------

    def contract(self, partners: list[str], purposes: list[str], list_name: str, day: int) -> None:
        """The first contract: proposed here, or another's approved."""
        home = self._home
        with common.channel(home) as opened:
            node = contract_pb2_grpc.ContractAdminStub(opened)
            listed = as_dict(node.List(contract_pb2.ListContractsRequest()).document).get("contracts", [])
            for each in listed:
                if each["state"] == "proposed" and home.name.name in each["waiting_for"]:
                    self._approve(node, each)
            if any(each["state"] in ("active", "proposed") for each in listed):
                _done(
                    t(
                        f"{len(listed)} contracts: lianfang contract list",
                        f"{len(listed)} 份合约：lianfang contract list",
                    )
                )
                return
            draft = self._draft(partners, purposes, list_name, day)

            def propose() -> dict[str, Any]:
                return as_dict(node.Propose(draft.contract(time.time())).document)

            made = self._second(propose)
            waiting = ", ".join(made["waiting_for"])
            short = made["contract"][:12]
            _done(
                t(
                    f"proposed the contract {short}; to approve at {waiting}",
                    f"已提出合约 {short}；待 {waiting} 批准",
                )
            )

    def _approve(self, node: contract_pb2_grpc.ContractAdminStub, each: dict[str, Any]) -> None:
        short = each["contract"][:12]
        shown = f"{short} ({each['title']})"
        if not self._yes and not (
            sys.stdin.isatty()
            and typer.confirm(
                t(
                    f"Approve {shown}? `lianfang contract show {short}` has its terms",
                    f"批准 {shown}？条款见 `lianfang contract show {short}`",
                ),
                err=True,
            )
        ):
            raise _Stop(
                t(
                    f"decide on {shown}: lianfang contract approve {short}",
                    f"请决定 {shown}：lianfang contract approve {short}",
                )
            )
        decision = contract_pb2.ContractDecision(
            contract=each["contract"], action=contract_pb2.ContractAct.ACTION_APPROVE
        )
        self._second(lambda: node.Decide(decision))
        _done(t(f"approved the contract {shown}", f"已批准合约 {shown}"))

    def _draft(self, partners: list[str], purposes: list[str], list_name: str, day: int) -> Draft:
        home = self._home
        members = MemberBook(home.certs / "members.bin", _ca(home)).current
        asking = (MemberRole.COORDINATOR, MemberRole.REGULATOR)
        others = [
            each.name.name for each in members if each.id != str(home.name) and each.name.role not in asking
        ]
        known = ", ".join(others)
        if not partners:
            answer = _ask(t(f"contract with ({known}; empty: later)", f"与谁签约（{known}；留空则稍后）"))
            partners = [part.strip() for part in answer.replace("，", ",").split(",") if part.strip()]
        if not partners:
            raise _Stop(
                t(
                    f"agree on a first contract: {self._again('--with MEMBER')} (members: {known or 'none yet'}), or wait for another's",
                    f"签订首份合约：{self._again('--with 成员')}（成员：{known or '暂无'}），或等待他方提出",
                )
            )
        for each in partners:
            members.find(each)
        chosen = purposes or ["case-investigation", "payment"]
        if unknown := [each for each in chosen if each not in PURPOSES]:
            raise CommandError(
                t(f"purposes are {', '.join(PURPOSES)}, not {unknown[0]}", f"目的为 {', '.join(PURPOSES)}")
            )
        parties = [home.name.name, *partners]
        draft = Draft(
            title=f"Lookups between {' and '.join(parties)}"[:100],
            grant=[
                Grant(
                    holder=parties,
                    asker=parties,
                    lists=[list_name],
                    purposes=chosen,
                    budget=Allowance(epoch=10 * day, day=day, burst=max(1, day // 3)),
                )
            ],
        )
        out.print(
            t(
                f"Contract: {', '.join(parties)} ask each other's list {list_name} for {', '.join(chosen)}, "
                f"{day:,} evaluations a day each; 365 days.",
                f"合约：{'、'.join(parties)} 互查名单 {list_name}，目的 {'、'.join(map(word, chosen))}，每方每日 {day:,} 次；365 天。",
            )
        )
        if sys.stdin.isatty() and not self._yes:
            typer.confirm(t("Propose this?", "提出此合约？"), default=True, abort=True, err=True)
        return draft

    def first_list(self, list_name: str, file: Path | None) -> None:
        """A file into a list, and the list offered to the others."""
        home = self._home
        if file is None and not self._lists():
            given = _ask(
                t(
                    f"file with the list {list_name}: CSV, XLSX, Parquet (empty: none)",
                    f"名单 {list_name} 的文件（留空则无）",
                )
            )
            file = Path(given) if given else None
        if file is not None:
            taken = file
            brought = self._second(lambda: bring_in(taken, list_name, How(), home.file, quiet=False))
            show_import(brought, json=False)
            if not brought.whole:
                raise _Stop(
                    t(
                        f"mend the rows, then: {self._again(f'--file {file}')}",
                        f"修改后：{self._again(f'--file {file}')}",
                    )
                )
        for name, active in self._lists().items():
            if not active:
                self._activate(name)
        names = ", ".join(self._lists())
        _done(t(f"lists: {names}", f"名单：{names}") if names else t("no list of its own", "本方暂无名单"))

    def _lists(self) -> dict[str, bool]:
        with common.admin(self._home.file) as node:
            status = as_dict(node.Status(admin_pb.StatusRequest()))
        return {each["list"]: bool(each["active"]) for each in status["lists"]}

    def _activate(self, name: str) -> None:
        def work() -> None:
            with common.admin(self._home.file) as node, common.progress() as bars:
                follow(bars, node.Activate(admin_pb.ListRequest(list=name)))

        self._second(work)
        _done(t(f"{name} is offered to the others", f"{name} 已提供给其他成员"))


def _ca(home: Home) -> x509.Certificate:
    from ..node import load_ca  # takes longer to import than most commands to run

    return load_ca(home)


def _reachable(listen: str) -> str:
    """A guess at what others call the address that a node listens on."""
    host, _, port = listen.rpartition(":")
    return f"{socket.getfqdn()}:{port}" if host in ("0.0.0.0", "[::]") else listen  # noqa: S104


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}" if port.isdigit() else ""


def _persons(given: list[str]) -> dict[str, set[Role]]:
    found: dict[str, set[Role]] = {}
    for each in given:
        name, _, roles = each.partition("=")
        try:
            found.setdefault(name.strip(), set()).update(Role(role.strip()) for role in roles.split(","))
        except ValueError:
            raise CommandError(
                t(
                    f"--person NAME=ROLE: roles are {', '.join(Role)}",
                    f"--person 姓名=角色：角色为 {', '.join(Role)}",
                )
            ) from None
    return found


def _ask_persons() -> dict[str, set[Role]]:
    """Names by role, several parted by commas; one person may have several roles."""
    found: dict[str, set[Role]] = {}
    questions = (
        (
            Role.ADMINISTRATOR,
            t("two administrators, who decide who the people are", "两名管理员（决定人员）"),
        ),
        (Role.OPERATOR, t("operators, who keep lists and contracts", "操作员（维护名单与合约）")),
        (Role.ANALYST, t("analysts, who ask", "分析员（查询）")),
        (Role.APPROVER, t("approvers, who are the second person", "批准人（第二人）")),
        (Role.AUDITOR, t("auditors, who read the ledger", "审计员（查看账本）")),
    )
    for role, text in questions:
        for name in _ask(text).replace("，", ",").replace("、", ",").split(","):
            if name.strip():
                found.setdefault(name.strip(), set()).add(role)
    return found


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "setup",
        help=t("The first hour, step by step; run it again to go on.", "逐步完成首次配置，可反复运行。"),
    )(setup)
