"""Two institutions and more in one process: a label holder alone, with its partners' columns, and on the joined columns."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import data, generate, metrics
from ..data import Block, Matrix
from ..errors import DataError, JobError
from ..job import explain
from ..models import registry as pooled_registry
from ..models.base import Model, Part, Scores, sigmoid
from ..models.growing import TreeSettings
from ..models.trees import Grower
from ..steps import one_by_one
from ..vertical import drive, registry, slots
from ..vertical.holder import new_key
from ..vertical.linear import LinearHolderModel, LinearPartner
from ..vertical.partner import TreePartner
from ..vertical.settings import settings_for
from ..vertical.slots import Stream

ARMS = ("local", "vertical", "joined")
_CONTEXT = b"simulation"
_TREES = {"trees": 10, "depth": 3, "bins": 32}


class VerticalConfig(BaseModel):
    """One simulation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(None, description="the label holder's file; default: generated rows")
    partners: list[Path] = []
    id: str = "id"
    label: str = "y"
    drop: list[str] = []
    rows: int = Field(3_000, ge=50, le=5_000_000, description="of generated data")
    fraud_rate: float = Field(0.05, gt=0, lt=0.5, description="of generated data")
    model: Literal["trees", "linear"] = "trees"
    settings: dict[str, float | int | str] = {}
    test_share: float = Field(0.3, gt=0, lt=1)
    seeds: list[int] = Field([0], min_length=1, max_length=100)
    out: Path = Path("simulation")


def configure(values: dict[str, Any]) -> VerticalConfig:
    """Raise `JobError` naming the option that does not fit."""
    try:
        config = VerticalConfig(**{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise JobError(f"options: {explain(error)}") from error
    if (config.data is None) != (not config.partners):
        raise JobError("a label holder's file and partners' files go together")
    settings_of(config)
    return config


def settings_of(config: VerticalConfig) -> BaseModel:
    """Of the model, 10 trees of depth 3 unless said otherwise. Raises `JobError`."""
    first = _TREES if config.model == "trees" else {}
    return settings_for(config.model, {**first, **config.settings})


@dataclass
class World:
    """Aligned rows: the label holder's, and each partner's columns about the same ones."""

    features: list[str]
    block: Block
    names: list[str]
    theirs: list[Matrix]
    their_features: list[list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass
class Results:
    """Quality by seed and arm; seconds of the vertical arm; the first seed's parts of the model."""

    scores: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: int = 0

    def summary(self) -> dict[str, dict[str, float]]:
        """By arm and metric: mean over seeds."""
        out: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            of_arm = [row for row in self.scores if row["arm"] == arm]
            for metric in {row["metric"] for row in of_arm}:
                values = [row["value"] for row in of_arm if row["metric"] == metric]
                out.setdefault(arm, {})[metric] = float(np.mean(values))
        return out


def world(config: VerticalConfig, seed: int) -> World:
    """Raise `DataError` naming what does not fit."""
    if config.data is None:
        whole = generate.accounts(config.rows, config.fraud_rate, seed, "generated")
        half = len(generate.FEATURES) // 2
        names = list(generate.FEATURES)
        block = Block("label holder", whole.x[:, :half], whole.y)
        return World(names[:half], block, ["partner"], [whole.x[:, half:]], [names[half:]])
    table = data.read_table(config.data, config.id)
    keys = [_keys(config.data, table, config.id)]
    features = data.feature_names(table, config.label, [config.id, *config.drop])
    block = data.to_block(config.data, table, features, config.label, "label holder")
    theirs, their_features = [], []
    for path in config.partners:
        table = data.read_table(path, config.id)
        keys.append(_keys(path, table, config.id))
        their_features.append(data.feature_names(table, config.label, [config.id, *config.drop]))
        theirs.append(data.to_matrix(path, table, their_features[-1]))
    common = sorted(set(keys[0]).intersection(*keys[1:]))
    if not common:
        raise DataError(f"{config.data} and its partners have no {config.id} in common")
    for path, x in zip(config.partners, theirs, strict=True):
        if not any(len(np.unique(column[~np.isnan(column)])) > 1 for column in x.T):
            raise DataError(f"{path}: no column has two different values: there is nothing to learn from")
    order = [np.array([places[key] for key in common]) for places in keys]
    files = zip([config.data, *config.partners], keys, strict=True)
    notes = [f"{len(common):,} of {len(places):,} rows of {path} are in common" for path, places in files]
    return World(
        features,
        block.take(order[0]),
        [path.stem for path in config.partners],
        [x[rows] for x, rows in zip(theirs, order[1:], strict=True)],
        their_features,
        notes,
    )


def _keys(path: Path, table: Any, name: str) -> dict[str, int]:
    """Each ID's row. IDs are text, compared as they stand there. Raises `DataError` for one that repeats."""
    if name not in table.column_names:
        raise DataError(f"{path}: no column {name}")
    places: dict[str, int] = {}
    for row, value in enumerate(table.column(name).to_pylist()):
        if value is None or not value.strip():
            continue
        first = places.setdefault(value.strip(), row)
        if first != row:
            raise DataError(
                f"{path}: rows {data.row_of(path, first)} and {data.row_of(path, row)} have the same {name}: "
                "each row is about one of its own"
            )
    return places


def run(
    config: VerticalConfig, progress: Callable[[int, int, str], None], stream: Stream, pieces: int
) -> Results:
    """All seeds. Raises `LearningError`."""
    results = Results()
    for number, seed in enumerate(config.seeds):

        def tell(what: str, at: int = number) -> None:
            progress(at, len(config.seeds), what)

        found = world(config, seed)
        order = np.random.default_rng([seed, len(found.block.y)]).permutation(len(found.block.y))
        cut = round(len(order) * (1 - config.test_share))
        train, test = np.sort(order[:cut]), np.sort(order[cut:])
        results.rows, results.notes = len(order), found.notes
        for arm, scores in _arms(config, found, train, test, seed, results, tell, stream, pieces):
            quality = metrics.measure(found.block.y[test], scores).as_dict()
            results.scores += [
                {"seed": seed, "arm": arm, "metric": metric, "value": value}
                for metric, value in quality.items()
            ]
    progress(len(config.seeds), len(config.seeds), "")
    return results


def _arms(
    config: VerticalConfig,
    found: World,
    train: "np.ndarray[Any, Any]",
    test: "np.ndarray[Any, Any]",
    seed: int,
    results: Results,
    tell: Callable[[str], None],
    stream: Stream,
    pieces: int,
) -> list[tuple[str, Scores]]:
    settings = settings_of(config)
    own, joined_x = found.block.x, np.concatenate([found.block.x, *found.theirs], axis=1)
    tell("local")
    local = _alone(config, found.features, own, found.block.y, train, seed).predict(own[test])
    tell("joined")
    names = [
        *found.features,
        *(
            f"{who}: {name}"
            for who, each in zip(found.names, found.their_features, strict=True)
            for name in each
        ),
    ]
    joined = _alone(config, names, joined_x, found.block.y, train, seed, len(found.features)).predict(
        joined_x[test]
    )
    started = time.perf_counter()
    model, parts = fit(
        settings,
        found.block.take(train),
        found.features,
        [x[train] for x in found.theirs],
        found.their_features,
        found.names,
        seed,
        tell,
        stream,
        pieces,
    )
    results.seconds.append(time.perf_counter() - started)
    if not results.parts:
        results.parts = {"holder": model, **dict(zip(found.names, parts, strict=True))}
    theirs = [
        x[:, [names_.index(name) for name in part.features]][test]
        for x, names_, part in zip(found.theirs, found.their_features, parts, strict=True)
    ]
    return [("local", local), ("vertical", score(model, own[test], parts, theirs)), ("joined", joined)]


def fit(
    settings: BaseModel,
    block: Block,
    features: Sequence[str],
    theirs: Sequence[Matrix],
    their_features: Sequence[Sequence[str]],
    names: Sequence[str],
    seed: int,
    tell: Callable[[str], None],
    stream: Stream = slots.inline,
    pieces: int = 1,
) -> tuple[Part, list[Any]]:
    """The label holder's part and each partner's, trained as deployed but in one process."""
    tell("key")
    key = new_key(_CONTEXT, stream, pieces)
    sides: list[TreePartner | LinearPartner] = [
        registry.partner(settings, x, own, _CONTEXT, stream, pieces)
        for x, own in zip(theirs, their_features, strict=True)
    ]
    model = drive.together(
        registry.holder(settings, features, names, seed, key, tell=tell).learn(block), sides
    )
    return model, [side.model for side in sides]


def score(model: Any, x: Matrix, parts: Sequence[Any], theirs: Sequence[Matrix]) -> Scores:
    """Joint prediction, in one process: probability of fraud, shape (rows,)."""
    linear = isinstance(model, LinearHolderModel)
    said = [
        part.scores(each) if linear else part.left(each) for part, each in zip(parts, theirs, strict=True)
    ]
    return sigmoid(model.margin(x, said))


def _alone(
    config: VerticalConfig,
    names: Sequence[str],
    x: Matrix,
    y: Any,
    train: Any,
    seed: int,
    first: int = 0,
) -> Model:
    """One party with all columns; the first tree on `first` of them."""
    block = Block("label holder", x[train], y[train])
    settings = settings_of(config)
    if isinstance(settings, TreeSettings):
        grower = Grower(settings, names, seed, 1, first=range(first) if first else None)
        model: Model = one_by_one([grower.learn([block])])[0]
        return model
    own = pooled_registry.settings_for("linear", {"l2": settings.model_dump()["l2"]})
    learner = pooled_registry.learner("linear", own, [block], tuple(names), seed, 1)
    fitted = one_by_one([learner])[0]
    assert isinstance(fitted, Model)
    return fitted


def save(config: VerticalConfig, results: Results) -> list[Path]:
    """Summary and parts of the model into `config.out`. Raises `JobError` naming the file."""
    document = {
        "config": config.model_dump(mode="json", exclude={"out"}),
        "rows": results.rows,
        "summary": results.summary(),
        "seconds": results.seconds,
        "notes": results.notes,
    }
    written = [config.out / "summary.json"]
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        written[0].write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
        for name, part in results.parts.items():
            written.append(config.out / f"part-{name}.json")
            written[-1].write_bytes(part.to_bytes())
    except OSError as error:
        raise JobError(f"{error.filename or config.out}: {error.strerror}") from error
    return written
