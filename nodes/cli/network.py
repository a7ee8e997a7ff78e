"""Joining and running: `init`, `ca`, `enroll`, `serve`, and the development network's `dev`."""

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from federation.files import Reading

from .. import config as configuration
from .. import limits, policy
from ..config import Home
from ..errors import ConfigError
from ..files import write_atomic
from ..identity import authority, certificates, keys
from ..identity.authority import Authority, Bundle
from ..identity.names import MemberName, Role
from .common import HERE, CommandError, Config, Json, err, errors, out, print_json, table
from .i18n import t, word

ca_app = typer.Typer(no_args_is_help=True, help=t("the network's certificate authority", "网络的证书机构"))
dev_app = typer.Typer(no_args_is_help=True, help=t("a development network", "开发用网络"))

Folder = Annotated[Path, typer.Argument(help=t("the node's folder", "节点目录"))]
NameOption = Annotated[
    str, typer.Option("--name", envvar="LIANFANG_NAME", help=t("the institution", "机构名称"))
]
RoleOption = Annotated[Role, typer.Option("--role", envvar="LIANFANG_ROLE", help=t("its role", "机构角色"))]
NetworkOption = Annotated[
    str, typer.Option("--network", envvar="LIANFANG_NETWORK", help=t("the network", "网络名"))
]
ListenOption = Annotated[
    str, typer.Option("--listen", envvar="LIANFANG_LISTEN", help=t("host:port to answer on", "监听地址"))
]
AdvertiseOption = Annotated[
    str,
    typer.Option("--advertise", envvar="LIANFANG_ADVERTISE", help=t("host:port for the others", "对外地址")),
]
LedgerListenOption = Annotated[
    str,
    typer.Option(
        "--ledger-listen",
        envvar="LIANFANG_LEDGER_LISTEN",
        help=t("host:port of its log and witness", "账本与见证的监听地址"),
    ),
]
LedgerAdvertiseOption = Annotated[
    str,
    typer.Option(
        "--ledger-advertise",
        envvar="LIANFANG_LEDGER_ADVERTISE",
        help=t("host:port of these for the others", "账本与见证的对外地址"),
    ),
]
CaFolder = Annotated[Path, typer.Option("--ca", help=t("the CA's folder", "证书机构目录"))]


_DEMO_POLICY = Path(__file__).parent.parent / "demo" / "policy.toml"


@dataclass(frozen=True)
class Place:
    """Where a node answers and where others reach it: gRPC, and its ledger over HTTPS."""

    listen: str
    advertise: str = ""
    ledger_listen: str = "127.0.0.1:7444"
    ledger_advertise: str = ""
    tick_seconds: float = 60


def create_node(folder: Path, name: MemberName, place: Place, learn: str = "") -> Path:
    """Make a node's folder: keys, configuration, policy, request. Returns the request's path.

    `learn` is the text of a `[learn]` section, or nothing.
    """
    endpoint = place.advertise or place.listen
    ledger_endpoint = place.ledger_advertise or place.ledger_listen
    file = folder / "node.toml"
    if file.exists():
        raise ConfigError(f"{file} exists; this folder holds a node already")
    authority.check_endpoint("--advertise", endpoint)  # before anything is made
    authority.check_endpoint("--ledger-advertise", ledger_endpoint)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.create(folder / "keys")
    text = configuration.TEMPLATE.format(
        name=name.name,
        role=name.role.value,
        network=name.network,
        listen=place.listen,
        advertise=endpoint,
        ledger_listen=place.ledger_listen,
        ledger_advertise=ledger_endpoint,
        tick_seconds=f"{place.tick_seconds:g}",
    )
    if learn:
        text += f"\n[learn]\n{learn}"
    if not (folder / "policy.toml").exists():
        write_atomic(folder / "policy.toml", policy.TEMPLATE.encode())
    request = folder / "request.json"
    node_keys = keys.NodeKeys.load(folder / "keys")
    write_atomic(request, authority.make_request(node_keys, name, endpoint, ledger_endpoint).encode())
    write_atomic(file, text.encode())
    return request


def init(
    folder: Folder,
    name: NameOption,
    role: RoleOption,
    network: NetworkOption = "lianfang.example",
    listen: ListenOption = "127.0.0.1:7443",
    advertise: AdvertiseOption = "",
    ledger_listen: LedgerListenOption = "127.0.0.1:7444",
    ledger_advertise: LedgerAdvertiseOption = "",
    json: Json = False,
) -> None:
    """Make a node: its keys are born here and never leave."""
    with errors():
        member = MemberName(network, role, name)
        place = Place(listen, advertise, ledger_listen, ledger_advertise)
        request = create_node(folder, member, place)
        mark = authority.fingerprint(request.read_text("utf-8"))
        if json:
            print_json(
                {"member": str(member), "folder": str(folder), "request": str(request), "fingerprint": mark}
            )
            return
        out.print(
            t("The request's fingerprint, for the CA to compare:", "申请指纹（供证书机构核对）："), mark
        )
        out.print(t(f"Made the node {member} in {folder}.", f"已在 {folder} 建立节点 {member}。"))
        out.print(
            t(
                f"Next: send {request} to the network's CA, then run\n"
                f"  lianfang enroll {folder} BUNDLE\n  lianfang serve --config {folder}/node.toml",
                f"下一步：把 {request} 交给网络的证书机构，然后运行\n"
                f"  lianfang enroll {folder} BUNDLE\n  lianfang serve --config {folder}/node.toml",
            )
        )


def enroll(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(help=t("what the CA gave back", "证书机构发回的文件"))],
    json: Json = False,
) -> None:
    """Install the CA's certificate, the node's and the member list; also renews them."""
    with errors():
        home = Home(folder)
        try:
            text = bundle.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{bundle}: {error}") from error
        loaded = Bundle.from_json(text, str(bundle))
        authority.install(loaded, keys.NodeKeys.load(home.keys), home.name, home.certs)
        mark = certificates.fingerprint(loaded.ca)
        if json:
            print_json({"member": str(home.name), "ca_fingerprint": mark})
            return
        out.print(t(f"{home.name} is enrolled.", f"{home.name} 已入网。"))
        out.print(t("Compare the CA's fingerprint by telephone:", "请电话核对证书机构指纹："), mark)


def renew(folder: Folder, json: Json = False) -> None:
    """A new TLS key and a request for it; `enroll` then puts both in place under the running node."""
    with errors():
        home = Home(folder)
        node_keys = keys.NodeKeys.load(home.keys)
        tls = keys.load_tls(keys.renew_tls(home.keys))
        settings = home.config
        request = home.file.parent / "renewal.json"
        text = authority.make_request(
            node_keys,
            home.name,
            settings.node.advertise or settings.node.listen,
            settings.ledger.advertise or settings.ledger.listen,
            tls,
        )
        write_atomic(request, text.encode())
        mark = authority.fingerprint(text)
        if json:
            print_json({"member": str(home.name), "request": str(request), "fingerprint": mark})
            return
        out.print(
            t("The request's fingerprint, for the CA to compare:", "申请指纹（供证书机构核对）："), mark
        )
        out.print(
            t(
                f"Next: send {request} to the CA, which runs `lianfang ca sign {request.name} --keep-old-key`; then\n"
                f"  lianfang enroll {folder} BUNDLE",
                f"下一步：把 {request} 交给证书机构，由其运行 `lianfang ca sign {request.name} --keep-old-key`；然后\n"
                f"  lianfang enroll {folder} BUNDLE",
            )
        )


_PASSPHRASE = "LIANFANG_CA_PASSPHRASE"  # noqa: S105  # the variable's name


def passphrase() -> str:
    """The CA key's: from the environment, else asked. Raises `ConfigError` where nobody can be asked."""
    given = os.environ.get(_PASSPHRASE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise ConfigError(f"the CA's key is under a passphrase: set {_PASSPHRASE}, or run this at a terminal")
    return str(typer.prompt(t("passphrase of the CA's key", "证书机构密钥口令"), hide_input=True, err=True))


def new_passphrase() -> str:
    """A new one, asked twice; 12 characters or more. Raises `ConfigError`."""
    given = os.environ.get(_PASSPHRASE)
    if given is None and sys.stdin.isatty():
        given = typer.prompt(
            t(
                "new passphrase of the CA's key (12 characters or more)",
                "证书机构密钥的新口令（至少 12 个字符）",
            ),
            hide_input=True,
            confirmation_prompt=True,
            err=True,
        )
    if given is None:
        raise ConfigError(f"the CA's key needs a passphrase: set {_PASSPHRASE}, or give --no-passphrase")
    if len(given) < limits.PASSWORD_CHARACTERS:
        raise ConfigError(f"the passphrase has {limits.PASSWORD_CHARACTERS} characters or more")
    return given


# -- CA ------------------------------------------------------------------------------------------------------


@ca_app.command("init", help=t("Make the network's CA.", "建立网络的证书机构。"))
def ca_init(
    folder: CaFolder = Path("ca"),
    network: NetworkOption = "lianfang.example",
    unprotected: Annotated[
        bool,
        typer.Option("--no-passphrase", help=t("the key lies open, for trials", "密钥不设口令，仅供试验")),
    ] = False,
    json: Json = False,
) -> None:
    """Make the network's CA; its key is under a passphrase."""
    with errors():
        if (folder / "ca.key").exists():
            raise ConfigError(f"{folder} holds a CA already")
        made = Authority.create(folder, network, "" if unprotected else new_passphrase())
        mark = certificates.fingerprint(made.certificate)
        if json:
            print_json({"network": network, "folder": str(folder), "fingerprint": mark})
            return
        out.print(t(f"Made the CA of {network} in {folder}.", f"已在 {folder} 建立 {network} 的证书机构。"))
        out.print(t("Its fingerprint:", "指纹："), mark)


@ca_app.command("sign", help=t("Check and sign a node's request.", "核对并签署节点的申请。"))
def ca_sign(
    request: Annotated[Path, typer.Argument(help=t("the node's request.json", "节点的 request.json"))],
    folder: CaFolder = Path("ca"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=t("where the bundle goes", "发回文件的位置"))
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825)] = certificates.NODE_DAYS,
    keep_old_key: Annotated[
        bool,
        typer.Option(
            "--keep-old-key",
            help=t(
                "planned renewal: the former TLS key serves until it enrols", "计划内换钥：旧密钥用至入网"
            ),
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Check and sign a node's request; the bundle goes back to the node."""
    with errors():
        ca = Authority(folder, passphrase)
        try:
            text = request.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{request}: {error}") from error
        asked = authority.read_request(text, str(request))
        mark = authority.fingerprint(text)
        if not json:
            out.print(
                t("The request's fingerprint (compare it by telephone):", "申请指纹（请电话核对）："), mark
            )
        bundle = ca.sign(asked, days, keep_old_key)
        path = output or request.with_name(f"bundle-{asked.name.name}.json")
        write_atomic(path, bundle.to_json().encode())
        document = {
            "member": str(asked.name),
            "fingerprint": mark,
            "endpoint": asked.endpoint,
            "bundle": str(path),
            "member_list_version": ca.members.version,
            "expires": bundle.certificate.not_valid_after_utc.date().isoformat(),
        }
        if json:
            print_json(document)
            return
        out.print(t(f"Signed {asked.name}: {path}", f"已签署 {asked.name}：{path}"))


@ca_app.command("revoke", help=t("Strike a member off.", "除名并吊销证书。"))
def ca_revoke(
    member: Annotated[str, typer.Argument(help=t("name or spiffe:// id", "名称或 spiffe:// 标识"))],
    folder: CaFolder = Path("ca"),
    json: Json = False,
) -> None:
    """Strike a member off and revoke its certificates; hand the new members.bin to the nodes."""
    with errors():
        ca = Authority(folder, passphrase)
        serials = ca.revoke(member)
        path = folder / "members.bin"
        if json:
            print_json(
                {"revoked": serials, "member_list": str(path), "member_list_version": ca.members.version}
            )
            return
        out.print(
            t(
                f"Revoked {member}. Copy {path} into a node's certs folder; the others learn it from there.",
                f"已吊销 {member}。请把 {path} 复制到任一节点的 certs 目录，其他节点会自动获得。",
            )
        )


@ca_app.command("reissue", help=t("Sign the member list anew.", "重新签署成员名单。"))
def ca_reissue(
    folder: CaFolder = Path("ca"),
    regulator_signs: Annotated[
        bool | None,
        typer.Option(
            "--regulator-signs/--no-regulator-signs",
            help=t("new contracts need the regulators' signatures too", "新合约是否还须监管方签署"),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Sign the member list anew before it expires (90 days); hand members.bin to any node."""
    with errors():
        version = Authority(folder, passphrase).reissue(regulator_signs)
        path = folder / "members.bin"
        if json:
            print_json({"member_list": str(path), "member_list_version": version})
            return
        out.print(t(f"Version {version} is in {path}.", f"第 {version} 版在 {path}。"))


@ca_app.command("directory", help=t("The network's directory of institutions.", "全网统一的机构代码表。"))
def ca_directory(
    file: Annotated[
        Path | None,
        typer.Argument(
            help=t(
                "column institution, and further codes and names in others: CSV, XLSX, Parquet",
                "含“机构代码”列，其余列为其他代码与名称",
            )
        ),
    ] = None,
    folder: CaFolder = Path("ca"),
    none: Annotated[bool, typer.Option("--none", help=t("the network has none", "不再使用"))] = False,
    encoding: Annotated[str, typer.Option(help=t("of the file", "文件编码"))] = "",
    sheet: Annotated[str, typer.Option(help=t("of the workbook", "工作表"))] = "",
    json: Json = False,
) -> None:
    """Put the codes that each bank goes by in force for all members: an account is one under any of them."""
    from ..importers import institutions

    with errors():
        if (file is None) != none:
            raise CommandError(t("give a file, or --none", "请给出文件，或 --none"))
        directory = institutions.read(file, Reading(encoding, sheet)) if file is not None else None
        ca = Authority(folder, passphrase)
        version = ca.set_institutions(directory)
        list_file, own = folder / "members.bin", folder / "institutions.tsv"
        if json:
            print_json(
                {
                    "member_list": str(list_file),
                    "member_list_version": version,
                    "directory": str(own) if directory is not None else "",
                    "institutions": len(directory) if directory is not None else 0,
                    "hash": directory.hash.hex() if directory is not None else "",
                }
            )
            return
        count = len(directory) if directory is not None else 0
        out.print(
            t(
                f"{count:,} institutions. Copy {own} and {list_file} into one node's certs folder; the others get both from it. "
                "Each list takes it up with a new key epoch.",
                f"共 {count:,} 家机构。请把 {own} 和 {list_file} 复制到任一节点的 certs 目录，其他节点会自动获得。"
                "各名单在新的密钥周期启用。",
            )
        )


@ca_app.command("list", help=t("Members and their certificates.", "成员及其证书。"))
def ca_list(folder: CaFolder = Path("ca"), json: Json = False) -> None:
    """Members and their certificates."""
    with errors():
        ca = Authority(folder, passphrase)
        rows = [
            {"member": each.id, "endpoint": each.endpoint, "certificates": len(each.certificates)}
            for each in ca.members
        ]
        if json:
            print_json({"member_list_version": ca.members.version, "members": rows})
            return
        shown = table("", t("member", "成员"), t("endpoint", "地址"))
        for each in ca.members:
            shown.add_row(each.id, each.endpoint)
        out.print(shown)


# -- running ---------------------------------------------------------------------------------------------------


def start_logging(home: Home) -> None:
    """Structured logs on standard error."""
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if home.config.log.format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("lianfang").setLevel(home.config.log.level.upper())


def serve(config: Config = HERE) -> None:
    """Run the node until SIGTERM; alone opens its stores."""
    import uvloop

    from ..node import Node

    with errors():
        home = Home(config)
        start_logging(home)

        def ready(address: str) -> None:
            text = t(
                f"{home.name.name} is ready: it answers on {address}.",
                f"{home.name.name} 已就绪：监听 {address}。",
            )
            err.print(text, markup=False)

        uvloop.run(Node(home).serve(ready))


# -- a development network ---------------------------------------------------------------------------------------


def _wait_for(path: Path, seconds: float) -> str:
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise ConfigError(f"{path} did not appear within {seconds:.0f} s")
        time.sleep(0.1)
    return path.read_text("utf-8")


@dev_app.command(
    "ca", help=t("Sign the members of a development network, then end.", "签署开发网络的成员后结束。")
)
def dev_ca(
    names: Annotated[str, typer.Option("--members", envvar="LIANFANG_MEMBERS")],
    enrol: Annotated[Path, typer.Option("--enrol", envvar="LIANFANG_ENROL")],
    folder: CaFolder = Path("ca"),
    network: NetworkOption = "lianfang.example",
    seconds: Annotated[float, typer.Option("--wait")] = 120.0,
) -> None:
    """Wait for the named members' requests in a shared folder, sign them all, and leave their bundles there."""
    with errors():
        ca = Authority(folder) if (folder / "ca.key").exists() else Authority.create(folder, network)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        enrol.mkdir(parents=True, exist_ok=True)
        known = {member.name.name for member in ca.members}
        if set(wanted) <= known and all((enrol / f"{name}.bundle.json").exists() for name in wanted):
            return
        signed: dict[str, Bundle] = {}
        for name in wanted:
            path = enrol / f"{name}.request.json"
            request = authority.read_request(_wait_for(path, seconds), str(path))
            if request.name.name != name:
                raise ConfigError(f"{path} is a request of {request.name}")
            signed[name] = ca.sign(request)
        for name, bundle in signed.items():
            complete = Bundle(bundle.certificate, bundle.ca, ca.members.signed)
            write_atomic(enrol / f"{name}.bundle.json", complete.to_json().encode())
        out.print(t(f"signed {', '.join(wanted)}", f"已签署 {', '.join(wanted)}"))


@dev_app.command(
    "node", help=t("Make, enrol and run a node of a development network.", "建立、入网并运行开发节点。")
)
def dev_node(
    folder: Folder,
    name: NameOption,
    role: RoleOption,
    enrol: Annotated[Path, typer.Option("--enrol", envvar="LIANFANG_ENROL")],
    network: NetworkOption = "lianfang.example",
    listen: ListenOption = "127.0.0.1:7443",
    advertise: AdvertiseOption = "",
    ledger_listen: LedgerListenOption = "127.0.0.1:7444",
    ledger_advertise: LedgerAdvertiseOption = "",
    tick_seconds: Annotated[float, typer.Option("--tick", envvar="LIANFANG_TICK_SECONDS")] = 60,
    rules: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            envvar="LIANFANG_POLICY",
            help=t("a policy to start with, or demo", "初始策略文件，或 demo"),
        ),
    ] = None,
    coordinator: Annotated[str, typer.Option(envvar="LIANFANG_COORDINATOR")] = "",
    superlink: Annotated[str, typer.Option(envvar="LIANFANG_SUPERLINK")] = "",
    superlink_advertise: Annotated[str, typer.Option(envvar="LIANFANG_SUPERLINK_ADVERTISE")] = "",
) -> None:
    """Make the node if it is new, have it signed through a shared folder, and serve."""
    with errors():
        if not (folder / "node.toml").exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if rules is not None:
                source = _DEMO_POLICY if str(rules) == "demo" else rules
                write_atomic(folder / "policy.toml", source.read_bytes())
            fields = {
                "coordinator": coordinator,
                "superlink": superlink,
                "superlink_advertise": superlink_advertise,
            }
            learn = "".join(f'{field} = "{value}"\n' for field, value in fields.items() if value)
            place = Place(listen, advertise, ledger_listen, ledger_advertise, tick_seconds)
            create_node(folder, MemberName(network, role, name), place, learn)
        home = Home(folder)
        if not (home.certs / "node.crt").exists():
            enrol.mkdir(parents=True, exist_ok=True)
            target = enrol / f"{name}.request.json"
            with contextlib.suppress(FileExistsError):
                write_atomic(target, (folder / "request.json").read_bytes())
            bundle = Bundle.from_json(_wait_for(enrol / f"{name}.bundle.json", 120.0))
            authority.install(bundle, keys.NodeKeys.load(home.keys), home.name, home.certs)
        os.environ.pop("LIANFANG_CONFIG", None)
    serve(home.file)


@dev_app.command(
    "people", help=t("Enrol the people of a development network's member.", "登记开发网络成员的人员。")
)
def dev_people(folder: Folder) -> None:
    """Two administrators, an operator, an analyst, an approver, an auditor; their sessions go to FOLDER/people."""
    from ..demo import people

    with errors():
        people.enrol(folder)
        shown = table("", t("name", "姓名"), t("role", "角色"), "LIANFANG_SESSION")
        for name, role in people.PEOPLE.items():
            shown.add_row(name, word(role), str(people.session(folder, name)))
        out.print(shown)


def register(app: typer.Typer) -> None:
    """Add the top-level commands."""
    app.command(
        "init", help=t("Make a node: its keys are born here and never leave.", "建立节点，密钥在本机生成。")
    )(init)
    app.command("enroll", help=t("Install what the CA gave back.", "安装证书机构发回的文件。"))(enroll)
    app.command("renew", help=t("A new TLS key, and a request for it.", "更换 TLS 密钥并生成申请。"))(renew)
    app.command("serve", help=t("Run the node.", "运行节点。"))(serve)
