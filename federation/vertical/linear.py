"""Logistic regression on two institutions' columns: the cheap baseline, by Newton's method on encrypted weights.

The label holder fits its own columns alone first. A step: it encrypts for each row, side by side in one plaintext, the weight
p(1-p), the residual y-p and its own columns times the weight. The partner, whose columns are cut into bins that each stand for one
number, sums the ciphertexts by bins and takes them times these numbers: that is its part of gradient and Hessian. The label holder
solves and returns the partner's coefficients; the partner answers with its score of every row, which the next step starts from.
A step therefore shows the label holder one linear combination of the partner's columns a row, as every prediction does; two steps are
enough. Of products of two of the partner's columns only the Hessian's slot is shown.

Newton's method for logistic regression: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", §4.4.1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt
from gmpy2 import mpz
from lianfang.v1 import vertical_pb2 as pb

from protocols.errors import DecodeError
from protocols.paillier import BITS

from .. import bins as binning
from ..bins import Bins
from ..data import Block, Matrix
from ..errors import JobError
from ..models import base, scaling
from ..models.base import Part, Scores
from ..models.scaling import Scaling
from ..steps import one_by_one
from . import slots
from .holder import Asking, Key, expect
from .partner import Session, secret_order
from .settings import LinearSettings
from .slots import Stream

Floats = npt.NDArray[np.float64]
_LEVELS = 1023  # a partner's column is a number in 0 … 1, in so many parts
_UNIT = 2.0**18  # of weights, residuals and products in a plaintext
_WIDTH = 64
_LARGEST = 64.0  # coefficient of a partner's column
_SCORE = 2.0**12  # parts of one in which a partner's score is given
_MOST_GROUPS = 8


# -- pieces of work ---------------------------------------------------------------------------------------------------


def columns_chunk(
    modulus: bytes, least: int, groups: Sequence[bytes], bins: slots.Bins, levels: Sequence[int]
) -> bytes:
    """Σ level·ciphertext over rows, for each group of ciphertexts, which `split_chunk` has made."""
    key, _ = slots.public_key(modulus, least)
    out = []
    for data in groups:
        cells = slots.sum_by(key, key.halves(data), bins, len(levels))
        out.append(_weighted(key.square, cells, levels))
    return key.write(out)


def pair_chunk(
    modulus: bytes,
    least: int,
    data: bytes,
    first: slots.Bins,
    second: slots.Bins,
    levels: Sequence[Sequence[int]],
) -> bytes:
    """Σ level·level'·ciphertext over rows, of two columns."""
    key, _ = slots.public_key(modulus, least)
    width = len(levels[1])
    places = first.astype(np.int64) * width + second
    cells = slots.sum_by(key, key.halves(data), places, len(levels[0]) * width)
    inner = [
        _weighted(key.square, cells[i * width : (i + 1) * width], levels[1]) for i in range(len(levels[0]))
    ]
    return key.write([_weighted(key.square, inner, levels[0])])


def _weighted(square: mpz, cells: Sequence[mpz], levels: Sequence[int]) -> mpz:
    """Π cell^level, all squarings shared."""
    total = mpz(1)
    for bit in range(_LEVELS.bit_length() - 1, -1, -1):
        total = total * total % square
        for cell, level in zip(cells, levels, strict=True):
            if level >> bit & 1:
                total = total * cell % square
    return total


# -- the partner ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A feature as numbers in 0 … 1: one for each bin, the last for missing values."""

    feature: str
    edges: tuple[float, ...]
    levels: tuple[int, ...]
    coefficient: float

    def numbers(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Bins of a column's values."""
        out = np.searchsorted(np.array(self.edges, dtype=np.float32), values, side="right")
        out[np.isnan(values)] = len(self.edges) + 1
        return np.asarray(out)


class LinearPartnerModel(Part):
    """A partner's part of a linear model."""

    kind = "vertical-linear-partner"

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.features = tuple(column.feature for column in columns)

    def scores(self, x: Matrix) -> Scores:
        """This part of the log-odds, shape (rows,), rounded: a score is to say no more. `x` has `features`."""
        out = np.zeros(len(x))
        for index, column in enumerate(self.columns):
            levels = np.array(column.levels) / _LEVELS
            out += column.coefficient * levels[column.numbers(x[:, index])]
        return np.rint(out * _SCORE) / _SCORE

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        columns = [
            {**vars(column), "edges": list(column.edges), "levels": list(column.levels)}
            for column in self.columns
        ]
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "columns": columns,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "LinearPartnerModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        columns = []
        for each in document["columns"]:
            column = Column(**{**each, "edges": tuple(each["edges"]), "levels": tuple(each["levels"])})
            base.numbers(column.coefficient, ())
            if len(column.levels) != len(column.edges) + 2:
                raise JobError(f"the column {column.feature} has not one number a bin")
            columns.append(column)
        return cls(columns)


class LinearPartner:
    """Of a linear model. `x` has the aligned rows, shape (rows, features), in the order of their ids."""

    def __init__(
        self,
        x: Matrix,
        features: Sequence[str],
        settings: LinearSettings,
        context: bytes,
        run: Stream = slots.inline,
        least: int = BITS,
        keep: Callable[[LinearPartnerModel], None] = lambda _model: None,
    ) -> None:
        """Raises `JobError` where no column has two values."""
        self._session = Session(x, context, run, least)
        self._run, self._settings, self._keep = run, settings, keep
        (bins,) = one_by_one([binning.find(x, settings.bins)])
        found = [_column(x[:, i], name, bins, i) for i, name in enumerate(features)]
        columns = [(i, column) for i, column in enumerate(found) if column.edges]
        if not columns:
            raise JobError("no column here has two values that occur often enough to tell rows apart")
        # The label holder sees coefficients; whose they are is this side's business.
        columns = [columns[i] for i in secret_order(len(columns))]
        self._x = x[:, [i for i, _ in columns]]
        self.model = LinearPartnerModel([column for _, column in columns])
        self._numbers = [
            column.numbers(self._x[:, i]).astype(np.uint8) for i, column in enumerate(self.model.columns)
        ]
        self._ciphertexts: list[bytes] = []
        self._step = 0
        self._due = False  # a step, once for each sums
        self.digest = b""

    def answer(self, request: pb.VerticalRequest) -> pb.VerticalReply:
        """Raise `PeerError` for what the protocol does not allow."""
        part = request.WhichOneof("part")
        if part == "start":
            self._session.start(request.start)
            if self._session.width != _WIDTH:
                raise DecodeError(f"slots of {self._session.width} bits")
            return pb.VerticalReply(ready=pb.VerticalReady(columns=len(self.model.columns)))
        if part == "gradients" and not self._due:
            self._begin(request.gradients)
        elif part == "nodes" and self._ciphertexts:
            if list(request.nodes.nodes) != [0]:
                raise DecodeError("a linear model has one node")
            return pb.VerticalReply(sums=pb.VerticalSums(packed=self._sums()))
        elif part == "step" and self._due:
            return self._take(request.step)
        elif part == "end" and not self.digest and not self._due and self._step == self._settings.steps:
            if len(request.end.digest) != 32:
                raise DecodeError("a digest has 32 bytes")
            self.digest = request.end.digest
        else:
            raise DecodeError(f"{part} is not what is due")
        return pb.VerticalReply(done=pb.VerticalDone())

    def _begin(self, said: pb.VerticalGradients) -> None:
        if said.step != self._step + 1 or said.step > self._settings.steps or self.digest:
            raise DecodeError(f"step {said.step} after step {self._step}")
        row = len(self._session.x) * max(self._session.size, 1)
        groups = len(said.ciphertexts) // row
        if not 1 <= groups <= _MOST_GROUPS:
            raise DecodeError(f"{len(said.ciphertexts)} bytes are no whole ciphertexts for each row")
        data = self._session.ciphertexts(said.ciphertexts, groups)
        self._ciphertexts = [data[i * row : (i + 1) * row] for i in range(groups)]
        self._step = said.step

    def _sums(self) -> list[bytes]:
        session, columns = self._session, self.model.columns
        modulus, least = session.modulus, session.least
        singles = self._run(
            columns_chunk,
            (
                (modulus, least, self._ciphertexts, self._numbers[i], column.levels)
                for i, column in enumerate(columns)
            ),
        )
        each = slots.slots(session.bits, _WIDTH)
        single = b"".join(singles)
        pairs = self._run(
            pair_chunk,
            (
                (
                    modulus,
                    least,
                    self._ciphertexts[0],
                    self._numbers[i],
                    self._numbers[j],
                    (columns[i].levels, columns[j].levels),
                )
                for i, j in combinations_with_replacement(range(len(columns)), 2)
            ),
        )
        paired = b"".join(pairs)
        self._ciphertexts, self._due = [], True
        return [
            b"".join(self._run(slots.hide_chunk, [(modulus, least, _WIDTH, each, single)])),
            b"".join(self._run(slots.hide_chunk, [(modulus, least, _WIDTH, 1, paired)])),
        ]

    def _take(self, said: pb.VerticalStep) -> pb.VerticalReply:
        values = np.array(said.coefficients)
        # Large ones would write several columns side by side into a score.
        if values.shape != (len(self.model.columns),) or not (np.abs(values) <= _LARGEST).all():
            raise DecodeError("coefficients that are too large, or not one a column")
        if said.last != (self._step == self._settings.steps):
            raise DecodeError("the last step is not the job's last")
        self._due = False
        self.model = LinearPartnerModel(
            [
                Column(column.feature, column.edges, column.levels, float(value))
                for column, value in zip(self.model.columns, values, strict=True)
            ]
        )
        self._keep(self.model)
        if said.last:
            return pb.VerticalReply(done=pb.VerticalDone())
        return pb.VerticalReply(scores=pb.VerticalScores(values=self.model.scores(self._x)))


def _column(values: npt.NDArray[np.float32], feature: str, bins: Bins, index: int) -> Column:
    """Each bin stands for its rows' mean, scaled to 0 … 1; missing values for the mean of all."""
    edges = bins.edges[index]
    numbers = np.searchsorted(edges, values, side="right")
    there = ~np.isnan(values)
    count = np.bincount(numbers[there], minlength=len(edges) + 1)
    total = np.bincount(numbers[there], values[there].astype(np.float64), len(edges) + 1)
    means = total / np.maximum(count, 1)
    low, high = (float(means.min()), float(means.max())) if there.any() else (0.0, 0.0)
    spread = high - low or 1.0
    levels = np.rint((means - low) / spread * _LEVELS).astype(int).tolist()
    middle = float((levels @ count) / max(count.sum(), 1)) if there.any() else 0.0
    return Column(feature, tuple(edges.tolist()), (*levels, round(middle)), 0.0)


# -- the label holder -------------------------------------------------------------------------------------------------


class LinearHolderModel(Part):
    """The label holder's part: coefficients of its own scaled features."""

    kind = "vertical-linear-holder"

    def __init__(
        self,
        features: Sequence[str],
        partners: Sequence[str],
        scale: Scaling,
        coefficients: Floats,
        bias: float,
    ) -> None:
        self.features, self.partners = tuple(features), tuple(partners)
        self.scale, self.coefficients, self.bias = scale, coefficients, bias

    def margin(self, x: Matrix, theirs: Sequence[Scores]) -> Scores:
        """Log-odds of fraud, shape (rows,), from own features and the partner's scores."""
        return np.asarray(self.bias + self.scale.apply(x) @ self.coefficients + sum(theirs))

    def importance(self) -> dict[str, float]:
        """Size of each own coefficient."""
        return dict(zip(self.features, np.abs(self.coefficients).tolist(), strict=True))

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "partners": list(self.partners),
            "scaling": self.scale.to_document(),
            "coefficients": self.coefficients.tolist(),
            "bias": self.bias,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "LinearHolderModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        count = len(document["features"])
        coefficients = base.numbers(document["coefficients"], (count,))
        bias = float(base.numbers(document["bias"], ()))
        scale = Scaling.from_document(document["scaling"], count)
        return cls(document["features"], document["partners"], scale, coefficients, bias)


class LinearHolder:
    """Fits a linear model with one partner: of two, products of their columns would be needed, which nobody has."""

    def __init__(
        self,
        settings: LinearSettings,
        features: Sequence[str],
        partners: Sequence[str],
        key: Key,
        tell: Callable[[str], None] = lambda _what: None,
        ids: Sequence[bytes] = (),
    ) -> None:
        """Raises `JobError` for more partners than one."""
        if len(partners) != 1:
            raise JobError("a vertical linear model has one partner")
        self._settings, self._features, self._partners = settings, tuple(features), tuple(partners)
        self._key, self._tell, self._ids = key, tell, ids

    def learn(self, block: Block) -> Asking[LinearHolderModel]:
        """The aligned rows, in the order of their ids. Raises `JobError` for rows of one class."""
        (shape,) = one_by_one([base.find_shape([block], [np.zeros(len(block.y), dtype=np.bool_)], 1)])
        weight = base.weight_of_positives(self._settings.positive_weight, shape)
        (scale,) = one_by_one([scaling.find(block.x, 1)])
        own = np.column_stack([np.ones(len(block.y)), scale.apply(block.x)])
        y, weights = block.y.astype(np.float64), np.where(block.y > 0, weight, 1.0)
        ready = (yield from self._key.start(1, shape.rows, _WIDTH, self._ids))[0]
        columns = ready.columns
        if not 0 < columns <= 10_000:
            raise DecodeError("the partner announces no columns, or too many")
        beta = np.zeros(own.shape[1] + columns)
        beta[0] = shape.base
        theirs = np.zeros(len(y))
        for _ in range(_ALONE):
            beta[: own.shape[1]] += self._solve(own, y, weights, own @ beta[: own.shape[1]], beta)
        for step in range(1, self._settings.steps + 1):
            self._tell(f"step {step}")
            margin = own @ beta[: own.shape[1]] + theirs
            beta = yield from self._step(own, y, weights, margin, beta, columns, step)
            if not (np.abs(beta[own.shape[1] :]) <= _LARGEST).all():
                raise JobError(f"a coefficient of the partner's is beyond {_LARGEST:.0f}: try a larger l2")
            last = step == self._settings.steps
            said = pb.VerticalStep(coefficients=beta[own.shape[1] :].tolist(), last=last)
            (reply,) = yield [(0, pb.VerticalRequest(step=said))]
            if last:
                expect(reply, "done")
                break
            theirs = np.array(expect(reply, "scores").scores.values)
            if theirs.shape != y.shape or not np.isfinite(theirs).all():
                raise DecodeError("the partner's scores are not one finite number a row")
        coefficients = beta[1 : own.shape[1]]
        model = LinearHolderModel(self._features, self._partners, scale, coefficients, float(beta[0]))
        end = pb.VerticalRequest(end=pb.VerticalEnd(digest=bytes.fromhex(model.hash())))
        (reply,) = yield [(0, end)]
        expect(reply, "done")
        return model

    def _solve(self, own: Floats, y: Floats, weights: Floats, margin: Floats, beta: Floats) -> Floats:
        """A step on own columns alone."""
        p = base.sigmoid(margin)
        hessian = own.T @ (own * (weights * p * (1 - p))[:, None])
        gradient = own.T @ (weights * (y - p))
        return self._newton(hessian, gradient, beta[: own.shape[1]])

    def _newton(self, hessian: Floats, gradient: Floats, beta: Floats) -> Floats:
        ridge = np.full(len(beta), self._settings.l2)
        ridge[0] = 1e-9  # not the constant
        return np.asarray(
            np.linalg.solve(hessian + np.diag(ridge), gradient - ridge * beta), dtype=np.float64
        )

    def _step(
        self,
        own: Floats,
        y: Floats,
        weights: Floats,
        margin: Floats,
        beta: Floats,
        columns: int,
        step: int,
    ) -> Asking[Floats]:
        p = base.sigmoid(margin)
        # Whole numbers from here on: what the partner sums is what is summed here.
        h = np.rint(weights * p * (1 - p) * _UNIT)
        residual = np.rint(weights * (y - p) * _UNIT)
        crossed = np.rint(h[:, None] * own[:, 1:])
        each = slots.slots(self._key.private.public.bits, _WIDTH)
        # A group of a row's numbers is a plaintext; the first has weight and residual.
        numbers = np.column_stack([h, residual, crossed]).astype(np.int64)
        if max(np.abs(numbers).sum(axis=0).max() * _LEVELS, h.sum() * _LEVELS**2) >= 2.0**62:
            raise JobError(f"{len(y):,} rows with these weights are too many for a linear model")
        groups = [numbers[:, i : i + each] for i in range(0, numbers.shape[1], each)]
        if len(groups) > _MOST_GROUPS:
            raise JobError(f"{own.shape[1] - 1} own columns are too many for a vertical linear model")
        ciphertexts = b"".join(self._key.encrypt(list(_packed(group))) for group in groups)
        said = pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=ciphertexts, step=step))
        (reply,) = yield [(0, said)]
        expect(reply, "done")
        (reply,) = yield [(0, pb.VerticalRequest(nodes=pb.VerticalNodes(nodes=[0])))]
        packed = expect(reply, "sums").sums.packed
        pairs = columns * (columns + 1) // 2
        if len(packed) != 2:
            raise DecodeError("the sums are not as announced")
        sizes = [group.shape[1] for group in groups] * columns
        single = np.array(self._key.open_each(packed[0], _WIDTH, sizes), dtype=np.float64)
        paired = np.array(self._key.open_each(packed[1], _WIDTH, [1] * pairs), dtype=np.float64)
        single = single.reshape(columns, numbers.shape[1]) / _UNIT / _LEVELS
        at = own.shape[1]
        hessian = np.zeros((at + columns, at + columns))
        hessian[:at, :at] = own.T @ (own * (h / _UNIT)[:, None])
        hessian[at:, 0] = single[:, 0]
        hessian[at:, 1:at] = single[:, 2:]
        hessian[:at, at:] = hessian[at:, :at].T
        for value, (i, j) in zip(paired, combinations_with_replacement(range(columns), 2), strict=True):
            hessian[at + i, at + j] = hessian[at + j, at + i] = value / _UNIT / _LEVELS**2
        gradient = np.concatenate([own.T @ (residual / _UNIT), single[:, 1]])
        return beta + self._newton(hessian, gradient, beta)


_ALONE = 8  # Newton's steps on own columns


def _packed(numbers: npt.NDArray[np.int64]) -> Iterator[int]:
    for row in numbers.tolist():
        yield sum(value << (_WIDTH * slot) for slot, value in enumerate(row))
