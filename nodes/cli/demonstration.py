"""`lianfang demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import errors
from .i18n import t


def demo(
    folder: Annotated[
        Path | None, typer.Option("--folder", help=t("keep the network here", "保留网络的目录"))
    ] = None,
    seed: Annotated[int, typer.Option(help=t("of the made-up data", "数据种子"))] = 2026,
    entries: Annotated[int, typer.Option(min=200, help=t("a bank", "每家银行条目数"))] = 20_000,
) -> None:
    """Three banks and the anti-fraud centre on this machine, as real processes with mutual TLS."""
    with errors():
        from ..demo.run import run

        if not run(folder, seed, entries):
            raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help=t("Three banks and the centre, here and now.", "三家银行与反诈中心的演示。"))(
        demo
    )
