"""`lianfang job`, `train`, `stats` and `learn`: what several institutions compute together."""

import json as jsons
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from lianfang.v1 import learning_pb2 as pb
from lianfang.v1 import learning_pb2_grpc
from rich.markup import escape

from ..config import Home
from ..identity.members import MemberBook
from ..identity.names import Role
from . import common
from .common import HERE, CommandError, Config, Json, as_dict, err, out, print_json
from .i18n import t, word
from .learning import Set, learning, settings_of

job_app = typer.Typer(no_args_is_help=True, help=t("jobs of learning", "联合学习任务"))
train_app = typer.Typer(no_args_is_help=True, help=t("train a model together", "联合训练模型"))
stats_app = typer.Typer(no_args_is_help=True, help=t("count together", "联合统计"))
vertical_app = typer.Typer(
    no_args_is_help=True, help=t("models on several institutions' columns", "纵向联邦学习")
)
learn_app = typer.Typer(no_args_is_help=True, help=t("this node's part in Flower", "本节点的 Flower 进程"))

JobFile = Annotated[Path, typer.Argument(help=t("the job's file", "任务文件"))]
Out = Annotated[Path, typer.Option("--out", "-o", help=t("file to write", "写入的文件"))]
Parties = Annotated[
    str, typer.Option(help=t("names with commas; default: all banks", "成员名，逗号分隔；默认全部银行"))
]
Minimum = Annotated[
    int,
    typer.Option(
        help=t("contributors at least, 3 or more; default: all parties", "最少参与数（≥3）；默认全部参与方")
    ),
]
Exposure = Annotated[
    bool,
    typer.Option(
        "--accept-exposure",
        help=t(
            "these rows may be in several sums; the parties accept what some can then compute",
            "同一批数据可参与多次求和；各方接受由此可能的推算",
        ),
    ),
]
_FOLLOW = 0.5
_READY = 30.0  # seconds for the SuperLink to answer


@contextmanager
def _desk(config: Path) -> Iterator[tuple[Home, learning_pb2_grpc.LearningAdminStub]]:
    home = Home(config)
    with common.channel(home) as opened:
        yield home, learning_pb2_grpc.LearningAdminStub(opened)


def _read(path: Path) -> Any:
    from federation.job import JobDescriptor

    return JobDescriptor.read(path.read_bytes(), str(path))


def members_of(home: Home, names: str, roles: tuple[Role, ...]) -> list[str]:
    book = MemberBook(
        home.certs / "members.bin", x509.load_pem_x509_certificate((home.certs / "ca.crt").read_bytes())
    )
    if names:
        return sorted(book.current.find(name.strip()).id for name in names.split(",") if name.strip())
    return sorted(member.id for member in book.current if member.name.role in roles)


def coordinator_of(home: Home) -> str:
    if home.name.role is Role.COORDINATOR:
        return str(home.name)
    found = members_of(home, home.config.learn.coordinator, (Role.COORDINATOR,))
    if len(found) != 1:
        raise CommandError(
            t("the network has not exactly one coordinator: name it in [learn]", "请在 [learn] 中指定协调方")
        )
    return found[0]


def write_job(path: Path, job: Any, json: bool) -> None:
    path.write_bytes(job.to_bytes())
    if json:
        print_json({"job": job.hash().hex(), "file": str(path)})
        return
    _describe(job)
    out.print(
        t(
            f"Wrote {path}. One party proposes it: lianfang contract propose {path.name}",
            f"已写入 {path}。由一方提出合约：lianfang contract propose {path.name}",
        ),
        markup=False,
    )


def exposure_text(job: Any) -> str:
    """What approvers accept, or that nothing of the kind can happen."""
    if job.exposure == "refused":
        return t("refused, unless the cohort and the rows are the same", "拒绝（成员与数据完全相同除外）")
    names = [each.rpartition("/")[2] for each in job.parties if each not in job.observers]
    coordinator = job.coordinator.rpartition("/")[2]
    return t(
        f"ACCEPTED: the rows of any of {', '.join(names)} could be exposed to the others and {coordinator}, who compare sums of "
        "several runs, with other members or other versions of the rows",
        f"已接受：{'、'.join(names)} 中任一方的数据，可能被其他各方与 {coordinator} 通过比较多次求和（成员或数据版本不同）推算",
    )


def _describe(job: Any) -> None:
    shown = common.table("", t("job", "任务"), job.name)
    rows: list[tuple[str, str]] = [
        (t("hash", "哈希"), job.hash().hex()),
        (t("kind", "类型"), job.kind),
        (t("parties", "参与方"), ", ".join(each.rpartition("/")[2] for each in job.parties)),
        (t("add zeros", "只加零"), ", ".join(each.rpartition("/")[2] for each in job.observers) or "–"),
        (t("coordinator", "协调方"), job.coordinator.rpartition("/")[2]),
    ]
    if job.kind != "vertical":
        rows.append((t("at least", "最少参与"), str(job.minimum)))
        rows.append((t("other sums over these rows", "同一批数据的其他求和"), exposure_text(job)))
    if job.kind == "train":
        rows += [
            (t("rows", "数据集"), job.dataset),
            (t("label", "标签"), job.label),
            (
                t("features", "特征"),
                f"{len(job.features)}: {', '.join(job.features)}",  # all: they are what is approved
            ),
            (t("model", "模型"), f"{job.model} {jsons.dumps(dict(job.settings))}"),
            (t("test", "评估"), job.evaluate),
        ]
    elif job.kind == "vertical":
        rows += [
            (t("label holder", "标签方"), job.holder.rpartition("/")[2]),
            (t("label", "标签"), job.label),
            *(
                (
                    t(f"aligned with {partner.rpartition('/')[2]}", f"与 {partner.rpartition('/')[2]} 对齐"),
                    t(
                        f"session {job.alignment_of(partner)[1].hex()[:12]}",
                        f"会话 {job.alignment_of(partner)[1].hex()[:12]}",
                    ),
                )
                for partner in job.partners
            ),
            (t("model", "模型"), f"{job.model} {jsons.dumps(dict(job.settings))}"),
            (t("test", "评估"), job.evaluate),
        ]
    else:
        span = f"{job.since or '…'} – {job.until or '…'}"
        rows += [(t("categories", "类别"), ", ".join(job.categories)), (t("observed", "观察期"), span)]
    rows.append((t("code", "代码"), job.code[:16]))
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


@train_app.command("new", help=t("Write a training job.", "编写训练任务。"))
def train_new(
    name: Annotated[str, typer.Option(help=t("lower-case, with hyphens", "小写字母与连字符"))],
    dataset: Annotated[
        str, typer.Option(help=t("each bank maps it to rows of its own", "各银行映射到自己的数据"))
    ],
    label: Annotated[str, typer.Option(help=t("label column", "标签列"))],
    features: Annotated[
        str,
        typer.Option(
            help=t("columns with commas, or a CSV or Parquet file to take them from", "特征列，或取列的文件")
        ),
    ],
    to: Out,
    parties: Parties = "",
    model: Annotated[str, typer.Option(help="trees, linear, mlp")] = "trees",
    setting: Set = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    minimum: Minimum = 0,
    drop: Annotated[str, typer.Option(help=t("columns that are no features", "非特征列"))] = "id",
    test: Annotated[
        bool, typer.Option(help=t("measure on the banks' test rows", "用各行测试数据评估"))
    ] = True,
    exposure: Exposure = False,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """A job descriptor for all parties to approve."""
    with learning():
        from federation import data
        from federation import job as jobs
        from federation.version import code_hash

        from ..learning.desk import bundle_hash

        home = Home(config)
        path = Path(features)
        if path.suffix.lower() in (".csv", ".parquet", ".pq"):
            names = data.feature_names(data.read_table(path), label, drop.split(","))
        else:
            names = [each.strip() for each in features.split(",")]
        taking_part = members_of(home, parties, (Role.BANK,))
        job = jobs.make(
            name=name,
            kind="train",
            network=home.name.network,
            coordinator=coordinator_of(home),
            parties=taking_part,
            minimum=minimum or max(len(taking_part), 3),
            dataset=dataset,
            code=code_hash(),
            bundle=bundle_hash(),
            seed=seed,
            features=names,
            label=label,
            model=model,
            settings=settings_of(setting),
            evaluate="test" if test else "none",
            exposure="accepted" if exposure else "refused",
        )
        write_job(to, job, json)


@stats_app.command("new", help=t("Write a statistics job.", "编写统计任务。"))
def stats_new(
    name: Annotated[str, typer.Option(help=t("lower-case, with hyphens", "小写字母与连字符"))],
    to: Out,
    categories: Annotated[str, typer.Option(help=t("with commas; default: all", "逗号分隔；默认全部"))] = "",
    since: Annotated[str, typer.Option(help="YYYY-MM-DD")] = "",
    until: Annotated[str, typer.Option(help="YYYY-MM-DD")] = "",
    parties: Parties = "",
    observers: Annotated[
        str,
        typer.Option(help=t("learn the sums and add zeros; default: the centres", "只得结果；默认反诈中心")),
    ] = "",
    minimum: Minimum = 0,
    exposure: Exposure = False,
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Counts of live entries by category over all parties' lists, by the day they were observed."""
    with learning():
        from federation import job as jobs
        from federation.version import code_hash
        from protocols.label import Category, slug

        from ..learning.desk import bundle_hash

        home = Home(config)
        known = [slug(each) for each in Category]
        wanted = [each.strip() for each in categories.split(",")] if categories else known
        unknown = [each for each in wanted if each not in known]
        if unknown:
            raise CommandError(
                t(f"{unknown[0]} is not one of {', '.join(known)}", f"{unknown[0]} 不属于 {', '.join(known)}")
            )
        watching = members_of(home, observers, (Role.CENTRE,))
        counting = members_of(home, parties, (Role.BANK,))
        job = jobs.make(
            name=name,
            kind="stats",
            network=home.name.network,
            coordinator=coordinator_of(home),
            parties=sorted({*counting, *watching}),
            observers=watching,
            minimum=minimum or max(len(set(counting) - set(watching)), 3),
            dataset="lists",
            code=code_hash(),
            bundle=bundle_hash(),
            categories=wanted,
            since=since,
            until=until,
            exposure="accepted" if exposure else "refused",
        )
        write_job(to, job, json)


@job_app.command("show", help=t("What a job asks for.", "查看任务内容。"))
def job_show(file: JobFile, json: Json = False) -> None:
    """In words; nothing is changed."""
    with learning():
        job = _read(file)
        if json:
            print_json(job.model_dump(mode="json") | {"hash": job.hash().hex()})
            return
        _describe(job)


@job_app.command("list", help=t("Jobs and how they stand.", "任务及状态。"))
def job_list(config: Config = HERE, json: Json = False) -> None:
    """Newest change first."""
    with learning(), _desk(config) as (_, desk):
        jobs = as_dict(desk.Jobs(pb.JobsRequest())).get("jobs", [])
        if json:
            print_json(jobs)
            return
        shown = common.table(
            "",
            t("job", "任务"),
            t("kind", "类型"),
            t("state", "状态"),
            t("sums", "求和"),
            t("contract", "合约"),
            t("detail", "说明"),
            t("changed", "更新"),
        )
        for each in jobs:
            shown.add_row(
                f"{each['name']} {each['job'][:12]}",
                each["kind"],
                each["state"],
                f"{each['sums']:.0f}",
                f"{each['contract'][:12]} {word(each['contract_state'])}",
                f"[yellow]{escape(each['detail'])}[/yellow]"
                if "WARNING" in each["detail"]
                else escape(each["detail"]),
                each["at"],
            )
        out.print(shown)


def _launch(file: Path, config: Path, json: bool) -> None:
    with learning(), _desk(config) as (home, desk):
        from federation.apps import bundle

        from ..learning import flower
        from ..learning.service import SUPERLINK_CERTIFICATE

        job = _read(file)
        if home.name.role is not Role.COORDINATOR:
            raise CommandError(t("a job is launched at the coordinator's node", "任务须在协调方节点启动"))
        certificate = home.data / SUPERLINK_CERTIFICATE
        if not certificate.exists():
            raise CommandError(
                t(
                    "the SuperLink is not running: `lianfang learn serve`",
                    "SuperLink 未运行：`lianfang learn serve`",
                )
            )
        desk.Launch(pb.JobFile(descriptor=job.to_bytes()))
        port = home.config.learn.superlink.rpartition(":")[2]
        control = flower.Control(f"localhost:{port}", certificate.read_bytes())
        try:
            flower.wait_until_ready(control, _READY)  # it may be on its way back
            started = time.monotonic()
            run = flower.start_run(control, bundle.build(), job.hash())
        finally:
            control.close()
        if not json:
            err.print(
                t(f"run {run} of {job.name} has started", f"已启动 {job.name}，运行号 {run}"), markup=False
            )
        state = _follow(desk, job.hash(), json)
        state["seconds"] = round(time.monotonic() - started, 1)
        state["run"] = str(run)
        if json:
            print_json(state)
        elif state["state"] == "done":
            out.print(t(f"Done in {state['seconds']} s.", f"完成，用时 {state['seconds']} 秒。"))
        if state["state"] != "done":
            raise CommandError(state["detail"])


def _follow(desk: learning_pb2_grpc.LearningAdminStub, job_hash: bytes, json: bool) -> dict[str, Any]:
    """Show how a job goes on until it ends."""
    with common.progress() as bars:
        bars.disable = json
        task = bars.add_task(t("sums", "求和"), total=None, note="")
        while True:
            (state,) = as_dict(desk.Jobs(pb.JobsRequest(hash=job_hash)))["jobs"]
            room = state.get("room")
            if room:
                waiting = ", ".join(each.rpartition("/")[2] for each in room["waiting_for"])
                note = f"{room['phase']}" + (
                    t(f", waiting for {waiting}", f"，等待 {waiting}") if waiting else ""
                )
                bars.update(task, completed=room["sums"], note=note)
            if state["state"] in ("done", "failed"):
                return dict(state)
            time.sleep(_FOLLOW)


@train_app.command("run", help=t("Launch a training, at the coordinator.", "在协调方启动训练。"))
def train_run(file: JobFile, config: Config = HERE, json: Json = False) -> None:
    """Launch, follow to the end; the model stays with the banks."""
    _launch(file, config, json)


@vertical_app.command("run", help=t("Launch a vertical job, at the coordinator.", "在协调方启动纵向任务。"))
def vertical_run(file: JobFile, config: Config = HERE, json: Json = False) -> None:
    """Launch, follow to the end; each party keeps its part of the model."""
    _launch(file, config, json)


@stats_app.command("run", help=t("Launch statistics, at the coordinator.", "在协调方启动统计。"))
def stats_run(file: JobFile, config: Config = HERE, json: Json = False) -> None:
    """Launch, follow to the end; the figures are with the parties."""
    _launch(file, config, json)


@stats_app.command("show", help=t("Figures that this party learnt.", "查看本方得到的统计。"))
def stats_show(
    name: Annotated[str, typer.Argument(help=t("of the job; default: all", "任务名；默认全部"))] = "",
    config: Config = HERE,
    json: Json = False,
) -> None:
    """Counts by category over all contributors."""
    with learning():
        folder = Home(config).data / "statistics"
        found = [jsons.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
        found = [each for each in found if not name or each["name"] == name]
        if name and not found:
            raise CommandError(t(f"no figures of {name} here", f"没有 {name} 的统计结果"))
        if json:
            print_json(found)
            return
        for each in found:
            title = (
                f"{each['name']}  {each['since'] or '…'} – {each['until'] or '…'}  ({each['contributors']})"
            )
            shown = common.table(title, t("category", "类别"), t("entries", "条目"))
            for category, count in each["counts"].items():
                shown.add_row(category, f"{count:,}")
            out.print(shown)


@learn_app.command(
    "serve", help=t("Run this node's SuperLink or SuperNode.", "运行本节点的 SuperLink 或 SuperNode。")
)
def learn_serve(config: Config = HERE) -> None:
    """SuperLink at the coordinator, SuperNode elsewhere, with our own executor; until SIGTERM."""
    with learning():
        from ..learning import processes
        from .network import start_logging

        home = Home(config)
        start_logging(home)
        processes.serve(home)
