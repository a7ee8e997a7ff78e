"""What all commands share: where the node is, its admin socket, errors as exit status 1, tables and JSON."""

import contextlib
import datetime as dt
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from lianfang.v1 import admin_pb2_grpc
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from protocols.errors import ProtocolError

from ..config import Home
from ..errors import NodeError
from ..services import wire
from .i18n import t

_WIDE = 140  # columns where nobody's terminal says otherwise
out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)

Config = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="LIANFANG_CONFIG",
        help=t("the node's node.toml or its folder", "节点的 node.toml 或其目录"),
    ),
]
Json = Annotated[bool, typer.Option("--json", help=t("print JSON", "输出 JSON"))]
HERE = Path("node.toml")


class CommandError(Exception):
    """Ends the command with status 1 and this message."""


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Errors a person can act on, without a traceback; status 1."""
    try:
        yield
    except (NodeError, ProtocolError, CommandError) as error:
        fail(str(error))
    except grpc.RpcError as error:
        if not answered(error):
            fail(
                t(
                    "the node is not running, or stopped meanwhile: start it with `lianfang serve`",
                    "节点未运行或已停止：请用 `lianfang serve` 启动",
                )
            )
        if wire.reason_of(error) == "PENDING":
            notice(error.details() or "")
        fail(error.details() or error.code().name)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        fail(t("interrupted", "已中断"), 130)


def answered(error: Any) -> bool:
    """Whether a call failed for another reason than that no node is there."""
    if isinstance(error, wire.TokenUnread) or error.code() is not grpc.StatusCode.UNAVAILABLE:
        return True
    return any(key == wire.REASON for key, _ in error.trailing_metadata() or ())


PENDING = 4  # exit status: waits for a second person


def notice(message: str) -> None:
    """Say what waits for a second person and end: nothing is wrong."""
    err.print(f"[yellow]{t('waiting', '待批准')}:[/yellow] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(PENDING)


def fail(message: str, status: int = 1) -> None:
    """Say why and end."""
    err.print(f"[red]{t('error', '错误')}:[/red] ", end="")
    err.print(message, markup=False, soft_wrap=True)  # so that a command in it can be copied
    raise typer.Exit(status)


@contextlib.contextmanager
def channel(home: Home) -> Iterator[grpc.Channel]:
    """To the node's admin socket; raises `CommandError` where it is not there."""
    if not home.socket.exists():
        raise CommandError(
            t(
                f"the node is not running: start it with `lianfang serve --config {home.file}`",
                f"节点未运行：请用 `lianfang serve --config {home.file}` 启动",
            )
        )
    with wire.admin_channel(home.socket, lambda: shown_token(home)) as opened:
        yield opened


def session_file(home: Home) -> Path:
    """Where this Unix account keeps its session at a node: `LIANFANG_SESSION`, or a file of the account's own."""
    named = os.environ.get("LIANFANG_SESSION")
    if named:
        return Path(named)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "lianfang" / f"{home.name.network}-{home.name.name}.session"


def shown_token(home: Home) -> str:
    """`LIANFANG_TOKEN`, else the session, else the node's own where this account may read it; empty for nobody."""
    token = os.environ.get("LIANFANG_TOKEN", "")
    if token:
        return token.strip()
    for file in (session_file(home), home.owner_token):
        try:
            return file.read_text("ascii").strip()
        except (FileNotFoundError, PermissionError, UnicodeDecodeError):
            continue
    return ""


@contextlib.contextmanager
def admin(config: Path) -> Iterator[admin_pb2_grpc.AdminStub]:
    """The node's admin service; raises `CommandError` where the socket is not there."""
    with channel(Home(config)) as opened:
        yield admin_pb2_grpc.AdminStub(opened)


_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def local(text: str) -> str:
    """A time as a node tells it, in UTC, as this machine's clock shows it; other text stays as it is."""
    if not _UTC.fullmatch(text):
        return text
    return dt.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def as_dict(message: Message) -> dict[str, Any]:
    """A message as plain data with its field names; whole numbers stay whole."""
    document = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return dict(_whole(document))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isdigit()
        and len(value) < 12
        and str(int(value)) == value
    ):
        return int(value)  # protobuf's JSON writes 64-bit numbers as text
    return value


def print_json(document: Any) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def table(title: str, *columns: str) -> Table:
    """A table in the house's style."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def progress() -> Progress:
    """Bars on standard error, so that output can be piped."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=err,
        transient=not err.is_terminal,
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
