"""Results as files: tidy Parquet, JSON, PNG plots and one HTML page that needs no network."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ..errors import JobError
from ..models.trees import TreeModel
from .arms import METRICS, Results
from .config import SimulationConfig

TITLES = {
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "recall_at_0_1_percent": "Recall at 0.1 % alerts",
    "recall_at_1_percent": "Recall at 1 % alerts",
    "calibration": "Calibration error",
}
OUTPUTS = (
    *(f"{name}.parquet" for name in ("scores", "costs", "banks", "curves")),
    *("summary.json", "model.json", "model.xgboost.json", "report.html"),
    *(f"{name}.png" for name in ("quality", "curves", "costs")),
)
_COLOURS = {"local": "#9aa5b1", "federated": "#1f6feb", "pooled": "#2d333b"}
_PAGE = Path(__file__).with_name("report.html.jinja")


def save(config: SimulationConfig, results: Results) -> list[Path]:
    """Write everything into `config.out`; the files written. Raises `JobError` naming the folder."""
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:  # an earlier run's would pass for this one's
            (out / name).unlink(missing_ok=True)
        return _save(config, results, out)
    except OSError as error:
        raise JobError(f"{error.filename or out}: {error.strerror}") from error


def in_json(summary: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """A summary as JSON has it: null for what is not known of one seed alone."""
    return {
        arm: {
            metric: {name: None if np.isnan(value) else value for name, value in values.items()}
            for metric, values in each.items()
        }
        for arm, each in summary.items()
    }


def _save(config: SimulationConfig, results: Results, out: Path) -> list[Path]:
    written = []
    for name in ("scores", "costs", "banks", "curves"):
        rows = getattr(results, name)
        if rows:
            written.append(out / f"{name}.parquet")
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), written[-1])
    summary = results.summary()
    names = {row["bank"] for row in results.banks}
    document = {
        "config": config.model_dump(mode="json", exclude={"out"}) | {"banks": len(names)},
        "summary": in_json(summary),
        "notes": results.notes,
        "model_hash": results.model.hash() if results.model else "",
    }
    written.append(out / "summary.json")
    written[-1].write_text(json.dumps(document, indent=2) + "\n")
    if results.model is not None:
        written.append(out / "model.json")
        written[-1].write_bytes(results.model.to_bytes())
        if isinstance(results.model, TreeModel):
            written.append(out / "model.xgboost.json")
            written[-1].write_text(json.dumps(results.model.to_xgboost()))
    pictures = {}
    for name, figure in _figures(results, summary).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        written.append(out / f"{name}.png")
        written[-1].write_bytes(buffer.getvalue())
        pictures[name] = base64.b64encode(buffer.getvalue()).decode()
    written.append(out / "report.html")
    written[-1].write_text(_page(config, results, summary, pictures), "utf-8")
    return written


def _figures(results: Results, summary: dict[str, Any]) -> dict[str, Any]:
    from matplotlib.figure import Figure

    figures: dict[str, Any] = {}
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("auprc", "auroc"), strict=True):
        arms = [arm for arm in _COLOURS if metric in summary.get(arm, {})]
        means = [summary[arm][metric]["mean"] for arm in arms]
        halves = [np.nan_to_num(summary[arm][metric]["half_width_95"]) for arm in arms]
        axis.bar(arms, means, yerr=halves, color=[_COLOURS[arm] for arm in arms], capsize=4)
        local = [r["value"] for r in results.scores if r["arm"] == "local" and r["metric"] == metric]
        axis.scatter(["local"] * len(local), local, s=8, color="#57606a", zorder=3)
        for index, mean in enumerate(means):
            axis.annotate(f"{mean:.3f}", (index, mean), ha="center", va="bottom", fontsize=8)
        axis.set_title(TITLES[metric])
        axis.set_ylim(min([0.5 if metric == "auroc" else 0.0, *local, *means]) * 0.98, None)
    figures["quality"] = figure
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots(1, 2)
    first = results.curves[0]["seed"] if results.curves else 0
    for axis, curve, labels in (
        (axes[0], "precision-recall", ("recall", "precision")),
        (axes[1], "calibration", ("mean score", "rate of fraud")),
    ):
        for arm in ("federated", "pooled"):
            points = [
                (r["x"], r["y"])
                for r in results.curves
                if r["arm"] == arm and r["curve"] == curve and r["seed"] == first
            ]
            style = "-" if arm == "federated" else "--"  # where they agree both show
            style = style if curve == "precision-recall" else f"o{style}"
            axis.plot(
                *zip(*points, strict=True), style, label=arm, color=_COLOURS[arm], markersize=3, linewidth=1.2
            )
        axis.set(xlabel=labels[0], ylabel=labels[1])
        axis.legend(fontsize=8)
    axes[1].axline((0, 0), slope=1, color="#d0d7de", linewidth=0.8)
    figures["curves"] = figure
    phases = ("compute", "cryptography", "waiting")
    names = sorted({r["bank"] for r in results.costs if r["bank"]})
    if any(r["seconds"] for r in results.costs if r["phase"] in phases):
        figure = Figure(figsize=(9, 0.6 + 0.28 * len(names)))
        axis = figure.subplots()
        left = np.zeros(len(names))
        for phase, colour in zip(phases, ("#57606a", "#1f6feb", "#d0d7de"), strict=True):
            seconds = np.array(
                [
                    np.mean([r["seconds"] for r in results.costs if r["bank"] == n and r["phase"] == phase])
                    for n in names
                ]
            )
            axis.barh(names, seconds, left=left, color=colour, label=phase)
            left += seconds
        axis.set_xlabel("seconds a bank")
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figures["costs"] = figure
    return figures


def _page(
    config: SimulationConfig, results: Results, summary: dict[str, Any], pictures: dict[str, str]
) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)

    def cell(values: dict[str, float] | None) -> str:
        if values is None:
            return "–"
        half = values["half_width_95"]
        return f"{values['mean']:.4f}" + ("" if np.isnan(half) else f" ± {half:.4f}")

    rows = [
        (TITLES[metric], [cell(summary.get(arm, {}).get(metric)) for arm in _COLOURS]) for metric in METRICS
    ]
    per_bank = []
    for name in sorted({r["bank"] for r in results.banks}):
        own = [r for r in results.costs if r["bank"] == name]
        mean = {
            phase: float(np.mean([r["seconds"] + r["bytes"] for r in own if r["phase"] == phase] or [0]))
            for phase in ("compute", "cryptography", "waiting", "sent", "received")
        }
        size = next(r for r in results.banks if r["bank"] == name)
        per_bank.append((name, size["rows"], size["positives"], mean))
    importance: list[tuple[str, float]] = []
    if results.model is not None and results.model.importance():
        found = results.model.importance()
        largest = max(found.values()) or 1.0
        importance = [(n, v / largest) for n, v in sorted(found.items(), key=lambda item: -item[1])[:15]]
    return environment.from_string(_PAGE.read_text("utf-8")).render(
        config=config.model_dump(mode="json"),
        arms=list(_COLOURS),
        rows=rows,
        banks=per_bank,
        pictures=pictures,
        importance=importance,
        notes=results.notes,
        model_hash=results.model.hash() if results.model else "",
    )
