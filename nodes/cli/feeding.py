"""`lianfang list feed`: a list is kept from a folder into which another system puts files, each night for instance."""

import contextlib
import datetime as dt
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from federation.files import Reading

from ..files import write_atomic
from ..importers.table import FileError
from ..services import wire
from .common import HERE, PENDING, CommandError, Config, Json, err, errors, out, print_json
from .i18n import t
from .importing import Format, How, bring_in, show_import
from .lists import ListName

_ENDINGS = (".csv", ".txt", ".xlsx", ".xlsm", ".parquet", ".pq")


def feed(
    folder: Annotated[Path, typer.Argument(help=t("where files arrive", "文件到达的目录"))],
    list_name: ListName,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help=t("stay, and import each day at HH:MM, local time", "常驻，每日 HH:MM（本地时间）导入"),
        ),
    ] = "",
    kind: Annotated[Format, typer.Option("--format")] = Format.AUTO,
    mapping: Annotated[
        Path | None, typer.Option(help=t("TOML: which column is what", "TOML：各列含义"))
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help=t("set bad rows aside in failed/", "坏行另存于 failed/"))
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help=t("each file is the whole list", "每个文件为全部名单"))
    ] = False,
    of_kind: Annotated[
        str, typer.Option("--kind", "-k", help=t("of rows that name none", "未注明种类的行"))
    ] = "",
    encoding: Annotated[str, typer.Option(help=t("of the files", "文件编码"))] = "",
    official: Annotated[bool, typer.Option("--official")] = False,
    settle: Annotated[
        float, typer.Option(min=0, help=t("seconds since a file last changed", "文件静止秒数"))
    ] = 10,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Files in order of name: what went in moves to done/, what did not to failed/ with the reason beside it.

    Status 1 where a file failed, 4 where one waits for a second person: it stays and goes in once that is approved.
    """
    with errors():
        if not folder.is_dir():
            raise CommandError(t(f"{folder} is no folder", f"{folder} 不是文件夹"))
        hour = _time(at) if at else None
        how = How(kind, mapping, skip_bad, replace, of_kind, Reading(encoding), official)
        while True:
            with _alone(folder):
                told = [
                    _take(file, folder, list_name, how, config, json) for file in _waiting(folder, settle)
                ]
            if json:
                print_json(told)
            elif not told:
                out.print(t("no new file", "没有新文件"))
            if hour is None:
                break
            _sleep_until(hour)
        states = {each["state"] for each in told}
        if "failed" in states:
            raise typer.Exit(1)
        if "waiting" in states:
            raise typer.Exit(PENDING)


def _time(text: str) -> dt.time:
    try:
        return dt.time.fromisoformat(text)
    except ValueError:
        raise CommandError(t("--at is a time of day like 02:30", "--at 须为 02:30 这样的时刻")) from None


def _sleep_until(hour: dt.time) -> None:
    now = dt.datetime.now().astimezone()
    next_time = dt.datetime.combine(now.date(), hour, now.tzinfo)
    if next_time <= now:
        next_time += dt.timedelta(days=1)
    err.print(t(f"next at {next_time:%Y-%m-%d %H:%M}", f"下次：{next_time:%Y-%m-%d %H:%M}"))
    while (left := (next_time - dt.datetime.now().astimezone()).total_seconds()) > 0:
        time.sleep(min(left, 60))  # the clock may be set meanwhile


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two feeds of one folder would take each other's files; raises `CommandError` where another is at work."""
    with (folder / ".lianfang-feed.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(
                t(f"{folder} is being fed by another command", f"{folder} 正由另一命令导入")
            ) from None
        yield


def _waiting(folder: Path, settle: float) -> list[Path]:
    """Files by name that nobody is writing any more."""
    before = time.time() - settle
    return sorted(
        each
        for each in folder.iterdir()
        if each.is_file()
        and not each.name.startswith(".")
        and each.suffix.lower() in _ENDINGS
        and each.stat().st_mtime <= before
    )


def _place(folder: Path, name: str) -> Path:
    """A name that nothing has yet, with the day before it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in range(1, 10_000):
        target = folder / f"{dt.date.today().isoformat()}{'' if number == 1 else f'-{number}'}-{name}"
        if not target.exists():
            return target
    raise CommandError(t(f"too many files in {folder}", f"{folder} 中文件过多"))


def _take(file: Path, folder: Path, list_name: str, how: How, config: Path, json: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"file": str(file), "state": "done"}
    if not json:
        out.print(f"{file.name}:", markup=False)
    try:
        target = _place(folder / "failed", f"{file.name}.bad.csv") if how.skip_bad else None
        brought = bring_in(file, list_name, How(**{**vars(how), "bad_file": target}), config, quiet=True)
        if not json:
            show_import(brought, json)
        told |= {
            "added": brought.result.added,
            "changed": brought.result.changed,
            "withdrawn": brought.result.withdrawn,
        }
        told["bad"] = len(brought.problems)
        if not brought.whole:
            reasons = [
                f"{place or number}: {column}: {reason}" for number, place, column, reason in brought.problems
            ]
            return _failed(file, folder, told, "\n".join(reasons))
    except grpc.RpcError as error:
        if wire.reason_of(error) == "PENDING":
            err.print(error.details() or "", markup=False)
            return told | {"state": "waiting", "reason": error.details()}
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED):
            raise  # it is not the file's fault: it stays
        return _failed(file, folder, told, error.details() or error.code().name)
    except FileError as error:
        return _failed(file, folder, told, str(error))
    moved = _place(folder / "done", file.name)
    file.rename(moved)
    return told | {"moved": str(moved)}


def _failed(file: Path, folder: Path, told: dict[str, Any], reason: str) -> dict[str, Any]:
    moved = _place(folder / "failed", file.name)
    write_atomic(moved.with_name(moved.name + ".reason.txt"), (reason + "\n").encode(), 0o600)
    file.rename(moved)
    err.print(
        t(f"{file.name} failed: see {moved}.reason.txt", f"{file.name} 未导入：见 {moved}.reason.txt"),
        markup=False,
    )
    return told | {"state": "failed", "moved": str(moved), "reason": reason.split("\n", maxsplit=1)[0]}


def register(app: typer.Typer) -> None:
    """Add the command to those of lists."""
    app.command(
        "feed",
        help=t("Import what lies in a folder, once or each night.", "导入文件夹中的文件，可每晚自动进行。"),
    )(feed)
