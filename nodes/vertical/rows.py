"""A dataset's rows by the keyed hash of who they are about, and what was aligned with whom."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lianfang.v1 import vertical_pb2 as pb

from federation import data
from federation.data import Labels, Matrix
from federation.errors import JobError
from protocols import psi
from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from ..config import Home
from ..identity.keys import Vault

INDEX = 16  # bytes of a keyed hash


@dataclass(frozen=True)
class Aligned:
    """What this node and a partner have in common, by the partner's name."""

    partner: str
    dataset: str
    column: str
    kind: str
    minimum: int  # of rows that the contract asks for
    identifiers: dict[bytes, bytes]  # id, ascending → keyed hash of the own identifier

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
        self.features, self.x, self.y, self._places = _load(
            path,
            _state(path),
            aligned.column,
            aligned.kind,
            region,
            label,
            tuple(features or section.features),
            vault,
        )

    def places(self, identifiers: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Row numbers, -1 for who has no row any more."""
        return np.array([self._places.get(each, -1) for each in identifiers], dtype=np.int64)


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise JobError(f"{path}: {error.strerror}", "its dataset cannot be read") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=4)  # scores ask for the same rows again and again
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
    names = features or tuple(data.feature_names(table, label, [column]))
    if column not in table.column_names:
        raise JobError(f"{path}: no column {column}", "its dataset has changed since it was aligned")
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
