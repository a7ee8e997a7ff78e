"""`lianfang vertical`: models on several institutions' columns."""

import csv
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from lianfang.v1 import psi_pb2, psi_pb2_grpc, vertical_pb2_grpc
from lianfang.v1 import vertical_pb2 as pb

from ..config import Home
from . import common, jobs, results
from .common import HERE, CommandError, Config, Json, as_dict, out, print_json
from .i18n import t
from .jobs import Out, coordinator_of, members_of, write_job
from .learning import Set, learning, settings_of

app = jobs.vertical_app
_SHOWN = 20


@app.command(
    "new", help=t("Write a vertical job; this node has the label.", "编写纵向任务（本节点为标签方）。")
)
def new(
    name: Annotated[str, typer.Option(help=t("lower-case, with hyphens", "小写字母与连字符"))],
    alignment: Annotated[
        list[str],
        typer.Option(help=t("session of an alignment; one a partner", "对齐会话；每个合作方一个")),
    ],
    label: Annotated[str, typer.Option(help=t("label column", "标签列"))],
    to: Out,
    model: Annotated[str, typer.Option(help="trees, linear")] = "trees",
    setting: Set = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    test: Annotated[bool, typer.Option(help=t("hold a fifth of the rows out", "留出五分之一评估"))] = True,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """A job descriptor for all parties to approve."""
    with learning():
        from federation import job as descriptors
        from federation.version import code_hash

        from ..learning.desk import bundle_hash

        home = Home(config)
        with common.channel(home) as opened:
            held = as_dict(psi_pb2_grpc.PsiAdminStub(opened).Sessions(psi_pb2.PsiSessionsRequest())).get(
                "sessions", []
            )
        found = {}
        for each in alignment:
            sessions = [
                row for row in held if str(row["session"]).startswith(each) and row["variant"] == "alignment"
            ]
            if len(sessions) != 1:
                raise CommandError(
                    t(
                        f"{each!r} names {len(sessions)} alignments here",
                        f"{each!r} 对应 {len(sessions)} 次对齐",
                    )
                )
            (partner,) = members_of(home, sessions[0]["with"], ())
            if partner in found:
                raise CommandError(t(f"two alignments with {partner}", f"与 {partner} 的对齐重复"))
            found[partner] = f"{sessions[0]['contract']}:{sessions[0]['session']}"
        job = descriptors.make(
            name=name,
            kind="vertical",
            network=home.name.network,
            coordinator=coordinator_of(home),
            parties=sorted([str(home.name), *found]),
            dataset="aligned",
            code=code_hash(),
            bundle=bundle_hash(),
            seed=seed,
            label=label,
            model=model,
            settings=settings_of(setting),
            evaluate="test" if test else "none",
            holder=str(home.name),
            alignments=[found[partner] for partner in sorted(found)],
        )
        write_job(to, job, json)


@app.command(
    "score",
    help=t("Score customers with a joint model; at the label holder.", "用联合模型为客户评分（标签方）。"),
)
def score(
    job: Annotated[
        str, typer.Argument(help=t("its name, or the beginning of its hash", "任务名称或哈希开头"))
    ],
    file: Annotated[
        Path | None,
        typer.Argument(
            help=t("identifiers, a line each; - for standard input", "每行一个标识；- 为标准输入")
        ),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(help=t("an identifier; it stays in the shell's history", "标识（会留在命令历史中）")),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=t("CSV to write", "输出 CSV"))] = None,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Partners are asked which way the rows go in their part of the model; nobody else learns a score."""
    values = list(value or [])
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else _text(file)
        values += [line.strip() for line in text.splitlines() if line.strip()]
    if not values:
        raise CommandError(
            t("no identifiers: give a file, - or --value", "没有标识：请提供文件、- 或 --value")
        )
    if output is not None:
        results.check_writable(output)
    rows: list[dict[str, Any]] = []
    with common.errors(), common.channel(Home(config)) as opened:
        for part in vertical_pb2_grpc.VerticalAdminStub(opened).Predict(
            pb.PredictRequest(job=job, values=values)
        ):
            rows += [
                {"value": row.value, "score": None if row.trouble else row.score, "trouble": row.trouble}
                for row in part.rows
            ]
    if output is not None:
        from ..importers.table import private_file

        with private_file(output) as handle:
            writer = csv.writer(handle)
            writer.writerow(["value", "score", "trouble"])
            for row in rows:
                shown = "" if row["score"] is None else f"{row['score']:.9g}"
                writer.writerow([results.harmless(row["value"]), shown, row["trouble"]])
    if json:
        print_json(rows)
        return
    table = common.table("", t("identifier", "标识"), t("probability of fraud", "欺诈概率"))
    for row in rows[:_SHOWN]:
        table.add_row(row["value"], row["trouble"] or f"{row['score']:.4f}")
    out.print(table)
    if len(rows) > _SHOWN:
        out.print(t(f"… and {len(rows) - _SHOWN:,} more", f"……另有 {len(rows) - _SHOWN:,} 行"))
    if output is not None:
        out.print(t(f"scores are in {output}", f"评分在 {output}"), markup=False)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}") from error
