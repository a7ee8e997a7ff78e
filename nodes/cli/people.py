"""`lianfang login`, `logout`, `whoami`, `user` and `pending`: who the people are, and what takes two of them."""

import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lianfang.v1 import people_pb2 as pb
from lianfang.v1 import people_pb2_grpc
from rich.markup import escape

from ..config import Home
from ..files import write_atomic
from ..people.roles import SCOPES, Role
from . import common
from .common import HERE, CommandError, Config, Json, err, out, print_json, table
from .i18n import t, word

user_app = typer.Typer(no_args_is_help=True, help=t("this institution's people", "本机构的人员"))
token_app = typer.Typer(no_args_is_help=True, help=t("for programs", "供程序使用的令牌"))
user_app.add_typer(token_app, name="token")
pending_app = typer.Typer(
    no_args_is_help=True, help=t("what waits for a second person", "等待第二人批准的操作")
)

Name = Annotated[str, typer.Argument(metavar="NAME")]
RoleOption = Annotated[
    list[Role], typer.Option("--role", "-r", help=t("may be repeated", "可重复"), show_default=False)
]
ActionId = Annotated[
    str, typer.Argument(metavar="ACTION", help=t("its id, or the beginning", "编号或其开头"))
]


@contextmanager
def _people(config: Path) -> Iterator[tuple[Home, people_pb2_grpc.PeopleStub]]:
    with common.errors():
        home = Home(config)
        with common.channel(home) as opened:
            yield home, people_pb2_grpc.PeopleStub(opened)


def _document(reply: pb.PeopleReply) -> dict[str, Any]:
    return common.as_dict(reply.document)


def _ask(*questions: tuple[str, bool]) -> list[str]:
    """Answers of a person, or one a line from standard input. Secrets are not shown."""
    if not sys.stdin.isatty():
        lines = sys.stdin.read().splitlines()
        if len(lines) < len(questions):
            raise CommandError(
                t("standard input: one line each for ", "标准输入须逐行给出：")
                + ", ".join(text for text, _ in questions)
            )
        return lines[: len(questions)]
    return [str(typer.prompt(text, hide_input=hidden, err=True)) for text, hidden in questions]


def _password() -> tuple[str, bool]:
    return t("password", "密码"), True


def _code() -> tuple[str, bool]:
    return t("code of the authenticator", "验证器动态码"), False


def _keep(home: Home, signed: pb.SignedIn) -> Path:
    path = common.session_file(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, signed.token.encode(), 0o600)
    return path


def _local(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def login(name: Name, config: Config = HERE) -> None:
    """Password and code; the session is kept in a file that this account alone can read."""
    with _people(config) as (home, node):
        password, code = _ask(_password(), _code())
        signed = node.Login(pb.LoginRequest(name=name, password=password, code=code))
        _keep(home, signed)
        out.print(
            t(
                f"{name} is signed in at {home.name.name} until {_local(signed.expires_at)}.",
                f"{name} 已登录 {home.name.name}，有效至 {_local(signed.expires_at)}。",
            )
        )
        if signed.failures:
            err.print(
                t(
                    f"{signed.failures} attempts to sign in as {name} had failed since the last one that did not.",
                    f"自上次成功登录以来，有 {signed.failures} 次以 {name} 登录的失败尝试。",
                ),
                style="yellow",
            )


def logout(config: Config = HERE) -> None:
    """End the session."""
    with _people(config) as (home, node):
        try:
            node.Logout(pb.LogoutRequest())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
        common.session_file(home).unlink(missing_ok=True)
        out.print(t("signed out", "已退出"))


def whoami(config: Config = HERE, json: Json = False) -> None:
    """Who is signed in, with which roles, sessions and tokens."""
    with _people(config) as (_, node):
        document = _document(node.WhoAmI(pb.WhoAmIRequest()))
        if json:
            print_json(document)
            return
        out.print(f"{document['name']}: {', '.join(map(word, document['roles']))}")
        shown = table("", "id", t("scopes", "范围"), t("for", "用途"), t("until", "有效至"))
        for each in document["tokens"]:
            shown.add_row(each["id"], ", ".join(each["scopes"]), escape(each["label"]), each["expires_at"])
        out.print(shown)


def ping(config: Config = HERE) -> None:
    """Whether the node answers on its socket; nobody has to be signed in."""
    with common.errors(), common.channel(Home(config)) as opened:
        health: Any = health_pb2_grpc.HealthStub(opened)
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise CommandError(t("the node is stopping", "节点正在停止"))
        out.print(t("the node answers", "节点正常"))


# -- people ----------------------------------------------------------------------------------------------------


@user_app.command("invite", help=t("Invite somebody, or somebody known anew.", "邀请人员，或为其重新登记。"))
def invite(
    name: Name,
    role: RoleOption = [],  # noqa: B006  # Typer copies it
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Hand the invitation over in person. Without a role: a new password and authenticator for somebody known."""
    with _people(config) as (_, node):
        made = node.Invite(pb.InviteRequest(name=name, roles=sorted(role)))
        if json:
            print_json({"name": name, "invitation": made.invitation, "expires_at": made.expires_at})
            return
        out.print(
            t(
                f"Give {name} this invitation, good until {_local(made.expires_at)} and once:\n"
                f"  lianfang user enrol {name}\n  {made.invitation}",
                f"请将此邀请当面交给 {name}（一次有效，至 {_local(made.expires_at)}）：\n"
                f"  lianfang user enrol {name}\n  {made.invitation}",
            ),
            markup=False,
        )


_TRIES = 3


def _finish(node: people_pb2_grpc.PeopleStub, name: str, invitation: str) -> pb.SignedIn:
    """Ask for a password and a code; raises `CommandError` or `grpc.RpcError` for what the person can mend."""
    (password,) = _ask((t("new password, 12 characters or more", "新密码（至少 12 个字符）"), True))
    (again,) = _ask((t("once more", "再输一次"), True))
    if password != again:
        raise CommandError(t("the passwords differ", "两次密码不一致"))
    (code,) = _ask(_code())
    return node.FinishEnrolment(
        pb.FinishEnrolmentRequest(name=name, invitation=invitation, password=password, code=code)
    )


@user_app.command("enrol", help=t("Accept an invitation.", "接受邀请并登记。"))
def enrol(name: Name, config: Config = HERE) -> None:
    """Show a secret for an authenticator, then set a password. Not from a pipe: the code depends on the secret."""
    with _people(config) as (home, node):
        if not sys.stdin.isatty():
            raise CommandError(t("enrolment needs a terminal", "登记需要终端"))
        err.print(
            t(
                "You need the invitation, an authenticator app with the telephone's clock set by the network, and a password of 12 characters "
                "or more, at least 6 of them different, that does not contain your name.",
                "需要：邀请码、验证器应用（手机时间须自动校准），以及密码：至少 12 个字符、至少 6 个不同字符、不含姓名。",
            )
        )
        (invitation,) = _ask((t("invitation", "邀请码"), True))
        begun = node.BeginEnrolment(pb.BeginEnrolmentRequest(name=name, invitation=invitation.strip()))
        import segno

        segno.make(begun.uri).terminal(out=sys.stderr, compact=True)
        err.print(
            t("Scan this with an authenticator, or type in:", "用验证器扫描，或手工输入："), begun.secret
        )
        for left in reversed(range(_TRIES)):
            try:
                signed = _finish(node, name, invitation.strip())
                break
            except (CommandError, grpc.RpcError) as error:
                if not left:
                    raise
                said = str(error) if isinstance(error, CommandError) else error.details()
                err.print(
                    t(f"{said}: once more, with the same secret", f"{said}：请重试，验证器无需重新扫描"),
                    markup=False,
                )
        _keep(home, signed)
        out.print(t(f"{name} is enrolled and signed in.", f"{name} 已登记并登录。"))


@user_app.command("list", help=t("Everybody and their roles.", "人员与角色。"))
def list_(config: Config = HERE, json: Json = False) -> None:
    """With the pseudonyms under which the ledger names them."""
    with _people(config) as (_, node):
        document = _document(node.ListPeople(pb.ListPeopleRequest()))
        if json:
            print_json(document)
            return
        shown = table(
            "",
            *(t("name", "姓名"), t("roles", "角色"), "", t("tokens", "令牌"), t("in the ledger", "账本假名")),
        )
        for each in document["people"]:
            stands = (
                t("removed", "已移除")
                if each["removed"]
                else t("locked", "已锁定")
                if each["locked"]
                else ""
                if each["enrolled"]
                else t("invited", "已邀请")
            )
            tokens = sum(token["kind"] == "token" for token in each["tokens"])
            roles = ", ".join(map(word, each["roles"]))
            shown.add_row(each["name"], roles, stands, str(tokens or ""), str(each["pseudonym"]))
        out.print(shown)
        if document["open_to_owner"]:
            text = t(
                "Whoever reads data/owner.token may invite people: fewer than two administrators have enrolled, or node.owner_invites.",
                "可读 data/owner.token 的账户可以邀请人员：已登记的管理员不足两名，或已设 node.owner_invites。",
            )
            out.print(text, style="yellow")


@user_app.command("roles", help=t("Give somebody other roles.", "更改角色。"))
def roles(name: Name, role: RoleOption, config: Config = HERE, json: Json = False) -> None:
    """From the next call on; takes two administrators."""
    with _people(config) as (_, node):
        document = _document(node.SetRoles(pb.SetRolesRequest(name=name, roles=sorted(role))))
        if json:
            print_json(document)
            return
        out.print(f"{name}: {', '.join(map(word, document['roles']))}")


@user_app.command("remove", help=t("Remove somebody.", "移除人员。"))
def remove(name: Name, config: Config = HERE, json: Json = False) -> None:
    """Sessions and tokens end at once; takes two administrators."""
    with _people(config) as (_, node):
        document = _document(node.Remove(pb.RemovePersonRequest(name=name)))
        if json:
            print_json(document)
            return
        out.print(t(f"{name} is removed", f"{name} 已移除"))


@user_app.command("passwd", help=t("Change your password.", "修改自己的密码。"))
def passwd(config: Config = HERE) -> None:
    """Every other session and every token ends."""
    with _people(config) as (_, node):
        new = (t("new password", "新密码"), True)
        password, code, new_password = _ask(_password(), _code(), new)
        node.ChangePassword(pb.ChangePasswordRequest(password=password, code=code, new_password=new_password))
        out.print(t("the password is changed", "密码已修改"))


@token_app.command("make", help=t("A token for a program of yours.", "为程序生成令牌。"))
def token_make(
    label: Annotated[str, typer.Argument(help=t("what it is for", "用途"))],
    scope: Annotated[list[str], typer.Option("--scope", "-s", help=", ".join(SCOPES))],
    days: Annotated[int, typer.Option(min=1)] = 30,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Shown once. The program gives it in LIANFANG_TOKEN; it may do no more than you may, within its scopes."""
    with _people(config) as (_, node):
        made = node.MakeToken(pb.MakeTokenRequest(label=label, scopes=scope, days=days))
        if json:
            print_json({"token": made.token, "expires_at": made.expires_at})
            return
        out.print(made.token, markup=False)


@token_app.command("revoke", help=t("End a session or token.", "吊销会话或令牌。"))
def token_revoke(
    token: Annotated[str, typer.Argument(help=t("its id, see whoami", "编号，见 whoami"))],
    config: Config = HERE,
    json: Json = False,
) -> None:
    """One's own; administrators anybody's."""
    with _people(config) as (_, node):
        document = _document(node.RevokeToken(pb.RevokeTokenRequest(id=token)))
        if json:
            print_json(document)
            return
        out.print(t(f"revoked a token of {document['of']}", f"已吊销 {document['of']} 的令牌"))


# -- pending actions ---------------------------------------------------------------------------------------------


@pending_app.command("list", help=t("What you have a part in.", "与自己有关的待批操作。"))
def pending_list(config: Config = HERE, json: Json = False) -> None:
    """What you have proposed, and what you may decide."""
    with _people(config) as (_, node):
        rows = _document(node.ListActions(pb.ListActionsRequest())).get("actions", [])
        if json:
            print_json(rows)
            return
        shown = table(
            "",
            *(
                t("action", "编号"),
                t("what", "内容"),
                t("by", "提出人"),
                t("state", "状态"),
                t("until", "截止"),
            ),
        )
        for each in rows:
            state = word(each["state"]) + (t(", yours to decide", "，待你批准") if each["to_decide"] else "")
            shown.add_row(str(each["id"])[:12], escape(each["title"]), each["by"], state, each["expires_at"])
        out.print(shown)


@pending_app.command("show", help=t("One action, with all that is asked for.", "查看一项操作的全部内容。"))
def pending_show(action: ActionId, config: Config = HERE, json: Json = False) -> None:
    """What the second person looks at."""
    with _people(config) as (_, node):
        _show(_document(node.ListActions(pb.ListActionsRequest(id=action))), json)


@pending_app.command("approve", help=t("As the second person.", "作为第二人批准。"))
def approve(
    action: ActionId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=t("do not ask", "不再询问"))] = False,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Then the first one sends the same again."""
    with _people(config) as (_, node):
        if sys.stdin.isatty() and err.is_terminal and not yes and not json:
            _show(_document(node.ListActions(pb.ListActionsRequest(id=action))), False)
            typer.confirm(t("Approve this?", "确认批准？"), abort=True, err=True)
        _decided(node, action, pb.ActionDecision.VERDICT_APPROVE, json)


@pending_app.command("reject", help=t("As the second person, or your own.", "驳回，或撤回自己的操作。"))
def reject(action: ActionId, config: Config = HERE, json: Json = False) -> None:
    """It is not carried out."""
    with _people(config) as (_, node):
        _decided(node, action, pb.ActionDecision.VERDICT_REJECT, json)


def _decided(
    node: people_pb2_grpc.PeopleStub,
    action: str,
    verdict: "pb.ActionDecision.Verdict.ValueType",
    json: bool,
) -> None:
    document = _document(node.DecideAction(pb.ActionDecision(id=action, verdict=verdict)))
    if json:
        print_json(document)
        return
    out.print(f"{document['title']}: {word(document['state'])}", markup=False)
    if document["state"] == "approved":
        out.print(t(f"{document['by']} now repeats the command.", f"请 {document['by']} 重新执行原命令。"))


def _show(document: dict[str, Any], json: bool) -> None:
    if json:
        print_json(document)
        return
    shown = table("", t("action", "编号"), str(document["id"]))
    for name, value in (
        (t("what", "内容"), document["title"]),
        (t("by", "提出人"), f"{document['by']}, {document['at']}"),
        (t("state", "状态"), f"{word(document['state'])} {document['decided_by']}"),
        (t("until", "截止"), document["expires_at"]),
    ):
        shown.add_row(name, escape(str(value)))
    out.print(shown)
    out.print_json(data={key: value for key, value in document["content"].items() if key != "title"})


def register(app: typer.Typer) -> None:
    """Add the top-level commands."""
    app.command("login", help=t("Sign in at the node.", "登录节点。"))(login)
    app.command("logout", help=t("Sign out.", "退出登录。"))(logout)
    app.command("whoami", help=t("Who is signed in.", "当前登录人。"))(whoami)
    app.command("ping", help=t("Whether the node answers.", "节点是否在线。"))(ping)
