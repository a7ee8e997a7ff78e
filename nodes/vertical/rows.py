"""A dataset's rows by the keyed hash of who they are about, and what was aligned with whom."""

import functools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lianfang.v1 import vertical_pb2 as pb

from federation import data
from federation.data import Labels, Matrix
from federation.errors import JobError, LearningError
from federation.job import JobDescriptor
from federation.vertical.links import MOST
from protocols import psi
from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from .. import words
from ..config import Home
from ..identity.keys import Vault

INDEX = 16  # bytes of a keyed hash
LEAST_ROWS = 50  # of a job
_TEST_SHARE = 0.2
_CIPHERTEXT = 512  # bytes


@dataclass(frozen=True)
class Aligned:
    """What this node and a partner have in common, by the partner's name."""

    partner: str
    dataset: str
    column: str
    kind: str
    minimum: int  # of rows that the contract asks for
    identifiers: dict[bytes, bytes]  # id, ascending → keyed hash of the own identifier

    @functools.cached_property
    def ids(self) -> dict[bytes, bytes]:
        """The other way round."""
        return {index: each for each, index in self.identifiers.items()}

    @classmethod
    def read(cls, parts: Iterable[pb.AlignedRows]) -> "list[Aligned]":
        """From the node, which sends each partner's in pieces."""
        found: dict[str, Aligned] = {}
        for part in parts:
            each = found.setdefault(
                part.partner,
                cls(part.partner, part.dataset, part.column, part.kind, part.minimum, {}),
            )
            ids = split(part.ids, psi.ID)
            each.identifiers.update(zip(ids, split(part.identifiers, INDEX), strict=True))
        return list(found.values())


def split(data_: bytes, size: int) -> list[bytes]:
    """Pieces of so many bytes."""
    return [data_[i : i + size] for i in range(0, len(data_), size)]


class Rows:
    """Of one dataset: `x` of shape (rows, features), `y` where a label is asked for."""

    def __init__(
        self, home: Home, vault: Vault, aligned: Aligned, label: str = "", features: Sequence[str] = ()
    ) -> None:
        """Raise `LearningError` naming file, column and row. `features` empty: those of the configuration, or all."""
        section = home.config.learn.datasets.get(aligned.dataset)
        if section is None:
            raise JobError(f"the dataset {aligned.dataset} is not configured here")
        path = home.file.parent / section.path
        region = home.config.lists.default_region
        chosen = tuple(features or section.features)
        try:
            with _loading:
                self.features, self.x, self.y, self._places = _load(
                    path, _state(path), aligned.column, aligned.kind, region, label, chosen, vault
                )
        except LearningError as error:  # the other side hears of no column and no cell
            raise JobError(str(error), "its dataset does not fit the job") from error

    def places(self, identifiers: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Row numbers, -1 for who has no row any more."""
        return np.array([self._places.get(each, -1) for each in identifiers], dtype=np.int64)

    def all_places(self, identifiers: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Row numbers; raises `JobError` saying how many have none any more."""
        places = self.places(identifiers)
        if gone := int((places < 0).sum()):
            raise JobError(
                f"{gone} of {len(places)} aligned customers are not in the dataset any more: align again",
                "its dataset has changed since it was aligned",
            )
        return places


@dataclass(frozen=True)
class Split:
    """The label holder's aligned rows: to learn from and to test on, and each partner's ids of all of them."""

    places: npt.NDArray[np.int64]
    ids: list[list[bytes]]
    learnt: list[int]
    tested: list[int]


def holder_rows(home: Home, vault: Vault, job: JobDescriptor, sides: list[Aligned]) -> tuple[Rows, Split]:
    """What a label holder brings to a job. Raises `JobError` for rows that no model can be learnt from."""
    rows = Rows(home, vault, sides[0], job.label)
    assert rows.y is not None
    identifiers, ids = common(sides)
    places = rows.all_places(identifiers)
    y = rows.y[places]
    learnt, tested = _divided(job, y)
    if len(learnt) * _CIPHERTEXT > MOST:
        raise JobError(f"{len(learnt):,} rows are more than one message holds")
    least = max(least_rows(each) for each in sides)
    if len(learnt) < least:
        raise JobError(f"{len(learnt):,} rows to learn from are fewer than the {least} that a job needs")
    for part, what in ((learnt, "learn from"), (tested, "test on")):
        if part and not 0 < int(y[part].sum()) < len(part):
            raise JobError(f"the rows to {what} are of one class only", "its rows are of one class only")
    return rows, Split(places, ids, learnt, tested)


def _divided(job: JobDescriptor, y: Labels) -> tuple[list[int], list[int]]:
    """A fifth of each class to test on, where the job says so: drawn from its seed."""
    if job.evaluate == "none":
        return list(range(len(y))), []
    tested: list[int] = []
    for label in (0, 1):
        of_class = np.flatnonzero(y == label)
        order = np.random.default_rng([job.seed, len(y), label]).permutation(of_class)
        tested += order[: round(len(order) * _TEST_SHARE)].tolist()
    chosen = set(tested)
    return [i for i in range(len(y)) if i not in chosen], sorted(tested)


def least_rows(aligned: Aligned) -> int:
    """That a job over an alignment needs."""
    return max(aligned.minimum, LEAST_ROWS)


def common(sides: list[Aligned]) -> tuple[list[bytes], list[list[bytes]]]:
    """Identifiers that were aligned with every partner, and each partner's ids of them, in one order."""
    first, *others = sides
    identifiers, ids = [], []
    for each, index in first.identifiers.items():
        if all(index in side.ids for side in others):
            identifiers.append(index)
            ids.append([each, *(side.ids[index] for side in others)])
    return identifiers, [[row[number] for row in ids] for number in range(len(sides))]


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}", "its dataset cannot be read") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


_loading = threading.Lock()


@functools.lru_cache(maxsize=2)  # scores ask for the same rows again and again
def _load(
    path: Path,
    _state_: tuple[int, int, int],
    column: str,
    kind: str,
    region: str,
    label: str,
    features: tuple[str, ...],
    vault: Vault,
) -> tuple[tuple[str, ...], Matrix, Labels | None, dict[bytes, int]]:
    table = data.read_table(path, column)
    if column not in table.column_names:  # headers are compared as they were when the rows were aligned
        same = [name for name in table.column_names if words.key(name) == words.key(column)]
        if len(same) != 1:
            raise JobError(f"{path}: no column {column}")
        column = same[0]
        table = data.read_table(path, column)
    names = features or tuple(data.feature_names(table, label, [column]))
    if not names or label in names or column in names:
        raise JobError(
            f"{path}: the features are neither the identifier's column nor the label",
            "its features do not fit",
        )
    x, y = data.to_matrix(path, table, names), None
    if label:
        y = data.to_block(path, table, [names[0]], label, "").y
    places: dict[bytes, int] = {}
    for row, cell in enumerate(table.column(column).to_pylist()):
        try:
            canonical = normalise(Kind(kind), cell or "", "", "", region).canonical
        except IdentifierError:
            continue
        places.setdefault(vault.index(canonical), row)
    return names, x, y, places
