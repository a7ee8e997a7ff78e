"""`lianfang simulate` and `lianfang predict`: learning on one machine, without a node."""

import contextlib
import csv
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from . import common
from .common import CommandError, Json, err, errors, out, print_json
from .i18n import t


@contextlib.contextmanager
def learning() -> Iterator[None]:
    """Errors of the learning room as the command's; says how to install it where it is not."""
    with errors():
        try:
            import federation.data  # noqa: F401  # the extra's libraries, at once
            from federation.errors import LearningError
        except ImportError as error:
            raise CommandError(
                t(
                    f"learning is not installed ({error.name}); install lianfang with its `learn` extra",
                    f"未安装学习组件（{error.name}）；请安装 lianfang 的 `learn` 扩展",
                )
            ) from error
        try:
            yield
        except LearningError as error:
            raise CommandError(str(error)) from error


def settings_of(values: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs, values as in TOML; raises `CommandError`."""
    found: dict[str, Any] = {}
    for each in values or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise CommandError(t(f"--set {each}: name=value is needed", f"--set {each}：应为 名=值"))
        try:
            found[name] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


Set = Annotated[
    list[str] | None,
    typer.Option("--set", help=t("a model setting, name=value; may be repeated", "模型参数，名=值；可重复")),
]


def simulate(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help=t("run.toml; options go before it", "run.toml；选项优先")),
    ] = None,
    banks: Annotated[int | None, typer.Option(help=t("how many", "银行数"))] = None,
    data: Annotated[
        str | None,
        typer.Option(help=t("generated, amlsim, or a CSV or Parquet file", "generated、amlsim 或文件")),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help=t("AMLSim's folder or .tgz", "AMLSim 目录或压缩包"))
    ] = None,
    test_path: Annotated[Path | None, typer.Option(help=t("rows to test on", "测试数据"))] = None,
    label: Annotated[str | None, typer.Option(help=t("label column", "标签列"))] = None,
    rows: Annotated[int | None, typer.Option(help=t("generated, a bank", "每家生成行数"))] = None,
    fraud_rate: Annotated[float | None, typer.Option(help=t("of generated data", "生成数据的欺诈率"))] = None,
    split: Annotated[
        str | None,
        typer.Option(help=t("iid, label, quantity, column or time", "iid、label、quantity、column、time")),
    ] = None,
    column: Annotated[str | None, typer.Option(help=t("that names the bank", "银行列"))] = None,
    time: Annotated[str | None, typer.Option(help=t("column of days", "时间列（天）"))] = None,
    delay_days: Annotated[
        float | None, typer.Option(help=t("until a label is known", "标签延迟天数"))
    ] = None,
    dirichlet: Annotated[float | None, typer.Option(help=t("of the skews", "偏斜参数"))] = None,
    model: Annotated[str | None, typer.Option(help="trees, linear, mlp")] = None,
    setting: Set = None,
    encryption: Annotated[str | None, typer.Option(help="full, masks, none")] = None,
    engine: Annotated[str | None, typer.Option(help="inline, ray")] = None,
    seeds: Annotated[str | None, typer.Option(help=t("such as 0,1,2", "如 0,1,2"))] = None,
    save_to: Annotated[Path | None, typer.Option("--out", help=t("folder of results", "结果目录"))] = None,
    vertical: Annotated[
        bool,
        typer.Option("--vertical", help=t("columns at two institutions and more", "纵向联邦（按列拆分）")),
    ] = False,
    partner: Annotated[
        list[Path] | None,
        typer.Option(help=t("vertical: a partner's file; may be repeated", "纵向：合作方文件；可重复")),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help=t("vertical: column that joins them", "纵向：对齐列"))
    ] = None,
    json: Json = False,
) -> None:
    """Compare local, federated and pooled models of simulated banks; no node is needed."""
    if vertical:
        _refuse(
            "--vertical",
            {
                "--config": config,
                "--banks": banks,
                "--path": path,
                "--test-path": test_path,
                "--split": split,
                "--column": column,
                "--time": time,
                "--delay-days": delay_days,
                "--dirichlet": dirichlet,
                "--encryption": encryption,
                "--engine": engine,
            },
        )
        chosen_ = {
            "data": Path(data) if data not in (None, "generated") else None,
            "partners": partner,
            "id": id_column,
            "label": label,
            "rows": rows,
            "fraud_rate": fraud_rate,
            "model": model,
            "seeds": _seeds(seeds),
            "out": save_to,
            "settings": settings_of(setting),
        }
        _simulate_vertical(chosen_, json)
        return
    _refuse("", {"--partner": partner, "--id": id_column})
    with learning():
        try:
            from federation.simulate import arms, report
            from federation.simulate import config as configs
        except ImportError as error:
            raise CommandError(
                t(
                    f"simulating is not installed ({error.name}); install lianfang with its `simulate` extra",
                    f"未安装模拟组件（{error.name}）；请安装 lianfang 的 `simulate` 扩展",
                )
            ) from error

        given = {
            "banks": banks,
            "data": data,
            "path": path,
            "test_path": test_path,
            "label": label,
            "rows": rows,
            "fraud_rate": fraud_rate,
            "split": split,
            "column": column,
            "time": time,
            "delay_days": delay_days,
            "dirichlet": dirichlet,
            "model": model,
            "encryption": encryption,
            "engine": engine,
            "seeds": _seeds(seeds),
            "out": save_to,
            "settings": settings_of(setting),
        }
        chosen = configs.load(config, given)
        with common.progress() as bars:
            bars.disable = json
            task = bars.add_task(t("seeds", "种子"), total=len(chosen.seeds), note="")
            results = arms.run(
                chosen, lambda done, of, what: bars.update(task, completed=done, total=of, note=what)
            )
        written = report.save(chosen, results)
        summary = results.summary()
        if json:
            print_json(
                {
                    "summary": report.in_json(summary),
                    "files": [str(each) for each in written],
                    "notes": results.notes,
                }
            )
            return
        shown = common.table("", t("mean over seeds", "各种子均值"), *summary)
        for metric, title in report.TITLES.items():
            cells = []
            for values in summary.values():
                half = values[metric]["half_width_95"]
                cells.append(f"{values[metric]['mean']:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}"))
            shown.add_row(title, *cells)
        out.print(shown)
        for note in results.notes:
            err.print(note, markup=False)
        out.print(t(f"report: {written[-1]}", f"报告：{written[-1]}"), markup=False)


def _refuse(with_: str, given: dict[str, Any]) -> None:
    """Raise a usage error for options that would be ignored."""
    ignored = [name for name, value in given.items() if value is not None]
    if ignored:
        english = f"goes not with {with_}" if with_ else "goes with --vertical alone"
        chinese = f"不能与 {with_} 同用" if with_ else "只能与 --vertical 同用"
        raise typer.BadParameter(t(english, chinese), param_hint=", ".join(ignored))


def _simulate_vertical(given: dict[str, Any], json: bool) -> None:
    with learning():
        try:
            from federation.simulate import vertical
        except ImportError as error:
            raise CommandError(
                t(
                    f"vertical learning is not installed ({error.name}); install lianfang with its `vertical` extra",
                    f"未安装纵向学习组件（{error.name}）；请安装 lianfang 的 `vertical` 扩展",
                )
            ) from error
        from ..workers import Workers

        config = vertical.configure(given)
        workers = Workers()
        try:
            with common.progress() as bars:
                bars.disable = json
                task = bars.add_task(t("seeds", "种子"), total=len(config.seeds), note="")
                results = vertical.run(
                    config,
                    lambda done, of, what: bars.update(task, completed=done, total=of, note=what),
                    workers.stream,
                    workers.count,
                )
        finally:
            workers.close()
        written = vertical.save(config, results)
        summary = results.summary()
        if json:
            print_json(
                {"summary": summary, "seconds": results.seconds, "files": [str(each) for each in written]}
            )
            return
        titles = {
            "local": t("label holder alone", "仅标签方"),
            "vertical": t("vertical", "纵向联邦"),
            "joined": t("joined columns", "合并各列"),
        }
        shown = common.table("", t("mean over seeds", "各种子均值"), *(titles[arm] for arm in summary))
        for metric, title in (
            ("auprc", "AUPRC"),
            ("auroc", "AUROC"),
            ("recall_at_1_percent", "Recall at 1 % alerts"),
        ):
            shown.add_row(title, *(f"{values[metric]:.4f}" for values in summary.values()))
        out.print(shown)
        for note in results.notes:
            err.print(note, markup=False)
        seconds = sum(results.seconds) / len(results.seconds)
        out.print(
            t(
                f"{seconds:.1f} s a seed; parts of the model: {config.out}",
                f"每个种子 {seconds:.1f} 秒；模型分片：{config.out}",
            ),
            markup=False,
        )


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise CommandError(
            t(f"--seeds {text}: numbers with commas", f"--seeds {text}：应为逗号分隔的数字")
        ) from error


def predict(
    model: Annotated[Path, typer.Argument(help=t("model.json", "model.json"))],
    file: Annotated[
        Path, typer.Argument(help=t("CSV or Parquet with the model's columns", "含模型各列的文件"))
    ],
    to: Annotated[
        Path | None, typer.Option("--out", help=t("CSV to write; default: beside the file", "输出 CSV"))
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help=t("columns to copy, such as id", "保留的列，如 id"))
    ] = None,
    label: Annotated[
        str | None, typer.Option(help=t("column to measure against", "用于评估的标签列"))
    ] = None,
    json: Json = False,
) -> None:
    """Score a file's rows with a model: probability of fraud."""
    with learning():
        from federation import data, metrics
        from federation.models import registry

        found = registry.read(model.read_bytes())
        table = data.read_table(file)
        x = data.to_matrix(file, table, list(found.features))
        score = found.predict(x)
        kept = keep if keep is not None else [name for name in ("id",) if name in table.column_names]
        missing = [name for name in kept if name not in table.column_names]
        if missing:
            raise CommandError(t(f"{file}: no column {missing[0]}", f"{file}：没有列 {missing[0]}"))
        target = to or file.with_suffix(".scores.csv")
        columns = [table.column(name).to_pylist() for name in kept]
        with target.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow([*kept, "score"])
            for row in zip(*columns, score.tolist(), strict=True):
                writer.writerow([*row[:-1], f"{row[-1]:.9g}"])
        document: dict[str, Any] = {"rows": len(score), "out": str(target), "model": found.hash()}
        if label:
            block = data.to_block(file, table, list(found.features), label, "file")
            document["quality"] = metrics.measure(block.y, score).as_dict()
        if json:
            print_json(document)
            return
        out.print(
            t(f"{len(score):,} rows scored: {target}", f"已评分 {len(score):,} 行：{target}"), markup=False
        )
        for name, value in document.get("quality", {}).items():
            out.print(f"  {name} {value:.4f}", markup=False)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("simulate", help=t("Simulate a federation on this machine.", "在本机模拟联邦学习。"))(
        simulate
    )
    app.command("predict", help=t("Score a file with a model.", "用模型为文件评分。"))(predict)
