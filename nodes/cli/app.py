"""The command line's tree."""

import sys
from typing import Annotated

import typer

from . import (
    asking,
    checks,
    contracts,
    demonstration,
    feeding,
    jobs,
    learning,
    ledger,
    lists,
    network,
    people,
    psi,
    screening,
    setup,
    vertical,
)
from .i18n import t

app = typer.Typer(
    name="lianfang",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    pretty_exceptions_enable=False,
    help=t(
        "Lianfang: fraud intelligence between institutions that do not show each other their data.",
        "联防：机构之间互不出示数据的反诈情报网络。",
    ),
)


@app.callback()
def options(
    lang: Annotated[
        str | None,
        typer.Option("--lang", help=t("en or zh; by default the locale", "en 或 zh；默认按系统语言")),
    ] = None,
) -> None:
    """Options before the command."""
    if lang is not None and lang.lower()[:2] not in ("en", "zh"):
        raise typer.BadParameter("en, zh", param_hint="--lang")


app.add_typer(network.ca_app, name="ca")
app.add_typer(lists.app, name="list")
app.add_typer(screening.app, name="screen")
app.add_typer(contracts.app, name="contract")
app.add_typer(jobs.job_app, name="job")
app.add_typer(jobs.train_app, name="train")
app.add_typer(jobs.stats_app, name="stats")
app.add_typer(jobs.learn_app, name="learn")
app.add_typer(ledger.app, name="ledger")
app.add_typer(psi.app, name="psi")
app.add_typer(vertical.app, name="vertical")
app.add_typer(people.user_app, name="user")
app.add_typer(people.pending_app, name="pending")
app.add_typer(network.dev_app, name="dev", hidden=True)
feeding.register(lists.app)
for module in (setup, network, people, asking, learning, psi, checks, demonstration):
    module.register(app)


def run() -> None:
    """Entry point; `--lang` may stand anywhere."""
    arguments = sys.argv[1:]
    for i, argument in enumerate(arguments):
        if argument == "--lang" and i + 1 < len(arguments):
            moved = arguments[i : i + 2]
            sys.argv[1:] = [*moved, *arguments[:i], *arguments[i + 2 :]]
            break
        if argument.startswith("--lang="):
            sys.argv[1:] = [argument, *arguments[:i], *arguments[i + 1 :]]
            break
    app(prog_name="lianfang")
