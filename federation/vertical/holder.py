"""The label holder: grows boosted trees on its own columns and on partners' columns that it never sees.

SecureBoost (Cheng et al., IEEE Intelligent Systems 2021) with gradient and hessian in one plaintext, packed sums and subtraction
of histograms (Chen et al., "SecureBoost+", 2021). The first tree is grown here alone, so that partners never see memberships that follow from
the labels only. All sums are of integers, so that the model is the same, bit for bit, as the same engine's on the joined columns.

Two generators that yield requests to partners and are sent their replies; who carries them is the driver's business.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from lianfang.v1 import vertical_pb2 as pb

from protocols import paillier
from protocols.errors import DecodeError
from protocols.paillier import BITS, PrivateKey

from .. import bins as binning
from ..bins import Bins
from ..data import Block, Matrix
from ..models import base
from ..models.base import Scores
from ..models.growing import (
    Floats,
    Ints,
    Node,
    Rows,
    Scale,
    Split,
    Tree,
    TreeSettings,
    best_splits,
    divide,
    gains,
    goes_left,
    histograms,
    leaf,
    quantised,
    totals,
    unpack,
    walk,
    worth,
)
from ..steps import one_by_one
from . import slots
from .partner import Mask, pack_rows, unpack_rows
from .settings import check_trees
from .slots import Stream

_OPENED = 8  # ciphertexts in one piece of work
_MOST_SPLITS = 100_000
R = TypeVar("R")
Asks = list[tuple[int, pb.VerticalRequest]]  # (number of the partner, what it is asked)
Asking = Generator[Asks, list[pb.VerticalReply], R]


class HolderModel(base.Part):
    """The label holder's part: trees, in which a partner's split stands as a record number.

    A split's feature is a number into `features`, or `len(features) + partner`; its `edge` is then the record.
    """

    kind = "vertical-trees-holder"

    def __init__(
        self, features: Sequence[str], partners: Sequence[str], bias: float, trees: list[Tree]
    ) -> None:
        self.features, self.partners = tuple(features), tuple(partners)
        self.bias, self.trees = bias, trees

    def margin(self, x: Matrix, left: Sequence[Mask]) -> Scores:
        """Log-odds of fraud, shape (rows,), from own features and each partner's bits, shape (rows, records)."""
        total = np.full(len(x), np.float32(self.bias), dtype=np.float32)
        for tree in self.trees:
            total += self._values(tree, x, left)
        return total.astype(np.float64)

    def _values(self, tree: Tree, x: Matrix, left: Sequence[Mask]) -> npt.NDArray[np.float32]:
        def to_left(node: int, rows: Ints) -> Mask:
            feature = tree.feature[node]
            if feature < len(self.features):
                values = x[rows, feature]
                below = values < np.float32(tree.threshold[node])
                return np.asarray(np.where(np.isnan(values), tree.missing_left[node], below))
            bits = left[feature - len(self.features)]
            if tree.edge[node] >= bits.shape[1]:
                raise DecodeError("a partner's model has fewer splits than this one names")
            return np.asarray(bits[rows, tree.edge[node]])

        return walk(tree, len(x), to_left)

    def importance(self) -> dict[str, float]:
        """Total gain of own features, and of each partner's together."""
        names = [*self.features, *self.partners]
        out = dict.fromkeys(names, 0.0)
        for tree in self.trees:
            for feature, gain in zip(tree.feature, tree.gain, strict=True):
                if feature >= 0:
                    out[names[feature]] += gain
        return out

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "partners": list(self.partners),
            "bias": self.bias,
            "trees": [tree.document() for tree in self.trees],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "HolderModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        trees = [Tree(**tree) for tree in document["trees"]]
        for tree in trees:
            tree.check(len(document["features"]) + len(document["partners"]))
        bias = float(base.numbers(document["bias"], ()))
        return cls(document["features"], document["partners"], bias, trees)


@dataclass(frozen=True)
class Key:
    """This run's key, and who works with it: `pieces` of work at once."""

    private: PrivateKey
    proof: bytes
    run: Stream = slots.inline
    pieces: int = 1
    least: int = BITS

    def start(
        self, partners: int, rows: int, width: int, ids: Sequence[bytes] = ()
    ) -> Asking[list[pb.VerticalReady]]:
        """Tell every partner, and each its own ids of the rows. Raises `DecodeError` for what is no reply to that."""
        modulus, asks = self.private.public.encode(), []
        for number in range(partners):
            said = pb.VerticalStart(modulus=modulus, proof=self.proof, rows=rows, width=width)
            if ids:
                said.ids = ids[number]
            asks.append((number, pb.VerticalRequest(start=said)))
        replies = yield asks
        return [expect(reply, "ready").ready for reply in replies]

    def encrypt(self, plaintexts: Sequence[int]) -> bytes:
        """On all cores."""
        secret = self.private.secret
        parts = (
            (secret, self.least, plaintexts[i : i + slots.CHUNK])
            for i in range(0, len(plaintexts), slots.CHUNK)
        )
        return b"".join(self.run(slots.encrypt_chunk, parts))

    def open(self, packed: Sequence[bytes], width: int, count: int) -> list[list[int]]:
        """Signed sums, `count` in each. Raises `DecodeError`."""
        each = slots.slots(self.private.public.bits, width)
        sizes = [min(each, count - i) for i in range(0, count, each)]
        if any(len(data) != len(sizes) * self.private.public.size for data in packed):
            raise DecodeError("the sums are not as announced")
        values = self.open_each(b"".join(packed), width, sizes * len(packed))
        return [values[i : i + count] for i in range(0, len(values), count)]

    def open_each(self, packed: bytes, width: int, counts: Sequence[int]) -> list[int]:
        """Signed sums, so many of each ciphertext. Raises `DecodeError`."""
        size, secret = self.private.public.size, self.private.secret
        if len(packed) != len(counts) * size:
            raise DecodeError("the sums are not as announced")
        work = (
            (secret, self.least, width, packed[i * size : (i + _OPENED) * size], counts[i : i + _OPENED])
            for i in range(0, len(counts), _OPENED)
        )
        return [value for part in self.run(slots.open_chunk, work) for value in part]


def new_key(context: bytes, run: Stream, pieces: int, bits: int = BITS, least: int = BITS) -> Key:
    """Of a run; takes some seconds."""
    private = paillier.generate(bits, least)
    return Key(private, private.prove(context), run, pieces, least)


def expect(reply: pb.VerticalReply, part: str) -> pb.VerticalReply:
    """Raise `DecodeError` for another reply than is due."""
    if reply.WhichOneof("part") != part:
        raise DecodeError(f"a partner answers {reply.WhichOneof('part')}, not {part}")
    return reply


class Holder:
    """Grows the trees. `partners` are names for people; `context` binds the key's proof to the job."""

    def __init__(
        self,
        settings: TreeSettings,
        features: Sequence[str],
        partners: Sequence[str],
        seed: int,
        key: Key,
        keep: Callable[[HolderModel], None] = lambda _model: None,
        tell: Callable[[str], None] = lambda _what: None,
        ids: Sequence[bytes] = (),
    ) -> None:
        """`keep` is given the model after each tree, `tell` what is being done; `ids` are each partner's of the rows.

        Raises `JobError`.
        """
        check_trees(settings)
        self._settings, self._features, self._partners = settings, tuple(features), tuple(partners)
        self._seed, self._key, self._keep, self._tell, self._ids = seed, key, keep, tell, ids

    def learn(self, block: Block) -> Asking[HolderModel]:
        """The aligned rows, in the order of their ids. Raises `JobError` for rows of one class."""
        settings = self._settings
        held = np.zeros(len(block.y), dtype=np.bool_)
        (shape,) = one_by_one([base.find_shape([block], [held], 1)])
        weight = base.weight_of_positives(settings.positive_weight, shape)
        (bins,) = one_by_one([binning.find(block.x, settings.bins)])
        rows = Rows([block], [held], bins)
        bias = float(np.float32(base.weighted(shape, weight).base))
        rows.margin[:] = np.float32(bias)
        scale = Scale.choose(shape, max(weight, 1.0))
        # Where both do not fit one slot of a secure sum, a wider slot of a plaintext holds them.
        shift, width = (scale.shift, 64) if scale.shift else (62, 128)
        ready = yield from self._key.start(len(self._partners), shape.rows, width, self._ids)
        counts = [(each.splits, each.splits_missing) for each in ready]
        if any(not 0 < right <= _MOST_SPLITS or left > right for right, left in counts):
            raise DecodeError("a partner announces no splits, or too many")
        growing = _Growing(settings, self._key, rows, bins, scale, shift, width, counts)
        model = HolderModel(self._features, self._partners, bias, [])
        for step in range(settings.trees):
            self._tell(f"tree {step + 1}")
            used, gradient, hessian = quantised(rows, scale, weight, 1.0, self._seed, step)
            tree = yield from growing.tree(used, gradient, hessian, step)
            model.trees.append(tree)
            self._keep(model)
        end = pb.VerticalRequest(end=pb.VerticalEnd(digest=bytes.fromhex(model.hash())))
        for reply in (yield to_all(len(self._partners), end)):
            expect(reply, "done")
        return model


def to_all(partners: int, request: pb.VerticalRequest) -> Asks:
    """The same to each."""
    return [(number, request) for number in range(partners)]


@dataclass
class _Growing:
    """All that the trees of one run share."""

    settings: TreeSettings
    key: Key
    rows: Rows
    bins: Bins
    scale: Scale
    shift: int
    width: int
    counts: list[tuple[int, int]]  # of each partner: candidates, and those with missing values left

    def tree(self, used: Ints, gradient: Floats, hessian: Floats, step: int) -> Asking[Tree]:
        """One tree; margins move by its leaves. The first one is grown on own columns."""
        settings, joint = self.settings, step > 0
        columns = np.arange(len(self.rows.bins))

        def own(groups: list[Ints]) -> list[Ints]:
            packed = histograms(
                self.rows.bins, columns, self.bins.width, gradient, hessian, self.scale, groups
            )
            return unpack(packed, len(groups), len(columns), self.bins.width, self.scale)

        if joint:
            yield from self._send(gradient, hessian, step)
        tree = Tree()
        (histogram,) = own([used])
        g, h = totals(histogram, self.scale)
        root = Node(tree.add(leaf(g, h, settings), h), used, histogram)
        theirs = yield from self._theirs([root], joint)
        level = [_Open(root, theirs[0])]
        leaves = {root.number: root.rows}
        for depth in range(settings.depth):
            last = depth + 1 == settings.depth
            best = best_splits(
                np.stack([each.node.histogram for each in level]), self.scale, settings, self.bins, columns
            )
            splits = [self._best(each, split) for each, split in zip(level, best, strict=True)]
            children = yield from self._divide(tree, level, splits, joint and not last, gradient, hessian)
            for parent, left, right, _ in children:
                del leaves[parent.node.number]
                leaves |= {left.number: left.rows, right.number: right.rows}
            if not children or last:
                break
            small = [left if is_left else right for _, left, right, is_left in children]
            found = own([node.rows for node in small])
            theirs = yield from self._theirs(small, joint)
            level = []
            for (parent, left, right, is_left), histogram, sums in zip(children, found, theirs, strict=True):
                near, far = (left, right) if is_left else (right, left)
                near.histogram, far.histogram = histogram, parent.node.histogram - histogram
                rest = [whole - part for whole, part in zip(parent.theirs, sums, strict=True)]
                pair = [_Open(near, sums), _Open(far, rest)]
                level += pair if is_left else pair[::-1]
        for number, rows in leaves.items():
            self.rows.margin[rows] += np.float32(tree.value[number])
        return tree

    def _send(self, gradient: Floats, hessian: Floats, step: int) -> Asking[None]:
        shifted = 1 << self.shift
        pairs = zip(gradient.tolist(), hessian.tolist(), strict=True)
        ciphertexts = self.key.encrypt([int(g) * shifted + int(h) for g, h in pairs])
        said = pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=ciphertexts, step=step + 1))
        for reply in (yield to_all(len(self.counts), said)):
            expect(reply, "done")

    def _theirs(self, nodes: list[Node], joint: bool) -> Asking[list[list[Ints]]]:
        """For each node, each partner's sums left of its candidates: int64 of shape (2, candidates)."""
        if not joint:
            return [[] for _ in nodes]
        said = pb.VerticalRequest(nodes=pb.VerticalNodes(nodes=[node.number for node in nodes]))
        replies = yield to_all(len(self.counts), said)
        out: list[list[Ints]] = [[] for _ in nodes]
        for (right, left), reply in zip(self.counts, replies, strict=True):
            packed = expect(reply, "sums").sums.packed
            if len(packed) != len(nodes):
                raise DecodeError("the sums are not as announced")
            for number, values in enumerate(self.key.open(packed, self.width, right + left)):
                out[number].append(self._unpacked(values))
        return out

    def _unpacked(self, values: list[int]) -> Ints:
        mask = (1 << self.shift) - 1
        pairs = [(value >> self.shift, value & mask) for value in values]
        if any(not -(1 << 62) <= g < 1 << 62 for g, _ in pairs):
            raise DecodeError("the sums are not as announced")
        return np.array(pairs, dtype=np.int64).reshape(-1, 2).T

    def _best(self, open_: "_Open", own: Split | None) -> "Split | _Theirs | None":
        """Of equal gains the first: missing values right before left, then own columns before partners'."""
        # Any column's bins hold every row of the node.
        everything = open_.node.histogram[:, 0].sum(axis=1)[:, None]
        candidates: list[tuple[float, int, int, Split | _Theirs]] = []
        if own is not None:
            candidates.append((-own.gain, int(own.missing_left), -1, own))
        for number, ((right, _), sums) in enumerate(zip(self.counts, open_.theirs, strict=False)):
            gain, (gl, hl), (gr, hr) = gains(sums, everything, self.scale, self.settings)
            best = float(gain.max())
            if not worth(best, self.settings):
                continue
            equal = np.flatnonzero(gain == best)
            way = int(equal[0] >= right)
            equal = equal if way else equal[equal < right]
            at = int(equal[0])
            split = Split(
                len(self.rows.bins) + number,
                0,
                bool(way),
                best,
                (float(gl[at]), float(hl[at])),
                (float(gr[at]), float(hr[at])),
            )
            left = (int(sums[0, at]), int(sums[1, at]))
            candidates.append((-best, way, number, _Theirs(number, equal.tolist(), split, left)))
        return min(candidates, key=lambda each: each[:3])[3] if candidates else None

    def _divide(
        self,
        tree: Tree,
        level: "list[_Open]",
        splits: "list[Split | _Theirs | None]",
        tell: bool,
        gradient: Floats,
        hessian: Floats,
    ) -> "Asking[list[tuple[_Open, Node, Node, bool]]]":
        """Divide the nodes that have a split. Partners hear of others' divisions where they will be asked for sums again."""
        made = [(each, split) for each, split in zip(level, splits, strict=True) if split is not None]
        first = len(tree.feature)
        asks: Asks = []
        for place, (each, split) in enumerate(made):
            if isinstance(split, _Theirs):
                choice = pb.VerticalChoice(
                    node=each.node.number,
                    left=first + 2 * place,
                    right=first + 2 * place + 1,
                    candidates=split.candidates,
                )
                asks.append((split.partner, pb.VerticalRequest(choice=choice)))
        replies = iter((yield asks) if asks else [])
        children = []
        news: Asks = []
        for each, split in made:
            node = each.node
            if isinstance(split, _Theirs):
                record = expect(next(replies), "record").record
                chosen = dataclasses.replace(split.split, edge=record.record)
                to_left, threshold, owner = unpack_rows(record.left_rows, len(node.rows)), 0.0, split.partner
                # The rows that it names are those whose sums it gave.
                rows = node.rows[to_left]
                if (int(gradient[rows].sum()), int(hessian[rows].sum())) != split.left:
                    raise DecodeError("a partner's split divides other rows than it added up")
            else:
                chosen, owner = split, -1
                to_left = goes_left(self.rows, self.bins.width, node, chosen)
                threshold = float(self.bins.edges[chosen.feature][chosen.edge])
            left, right, is_left = divide(tree, node, chosen, to_left, threshold, self.settings)
            children.append((each, left, right, is_left))
            division = pb.VerticalDivision(
                node=node.number, left=left.number, right=right.number, left_rows=pack_rows(to_left)
            )
            news += [
                (number, pb.VerticalRequest(division=division))
                for number in range(len(self.counts))
                if tell and number != owner
            ]
        if news:
            for reply in (yield news):
                expect(reply, "done")
        return children


@dataclass
class _Open:
    """A node that may be divided, with the sums left of every partner's candidates: shape (2, candidates) each."""

    node: Node
    theirs: list[Ints]


@dataclass(frozen=True)
class _Theirs:
    """The best of a partner's candidates of a node."""

    partner: int
    candidates: list[int]  # all that are equally good
    split: Split
    left: tuple[int, int]  # sums of gradient and hessian left of it, as whole numbers
