"""A partner: columns about the aligned rows, no label. Answers what the label holder asks for, in the order of the protocol.

    Start → (Gradients → (Nodes | Choice | Division)*)* → End          trees
    Start → (Gradients → Nodes → Step)* → End                          linear, see `linear.py`

Anything else ends the run. A partner keeps names and thresholds of its splits; the label holder knows records' numbers.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from lianfang.v1 import vertical_pb2 as pb

from protocols import paillier
from protocols.errors import DecodeError
from protocols.paillier import BITS, PublicKey

from .. import bins as binning
from ..data import Matrix
from ..errors import JobError
from ..models import base
from ..models.base import Part
from ..models.growing import TreeSettings, bins_left
from ..steps import one_by_one
from . import slots
from .slots import Stream

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Record:
    """A split of this partner's: rows below the threshold go left."""

    feature: str
    threshold: float
    missing_left: bool

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {"feature": self.feature, "threshold": self.threshold, "missing_left": self.missing_left}


class PartnerModel(Part):
    """A partner's part of a model of trees: splits by record number."""

    kind = "vertical-trees-partner"

    def __init__(self, features: Sequence[str], records: list[Record]) -> None:
        self.features, self.records = tuple(features), records

    def left(self, x: Matrix) -> Mask:
        """Which rows go left at each record: shape (rows, records). `x` has this part's features, NaN for missing."""
        out = np.empty((len(x), len(self.records)), dtype=np.bool_)
        for number, record in enumerate(self.records):
            values = x[:, self.features.index(record.feature)]
            out[:, number] = np.where(
                np.isnan(values), record.missing_left, values < np.float32(record.threshold)
            )
        return out

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        records = [record.document() for record in self.records]
        return {
            "lianfang_model": self.kind,
            "version": 1,
            "features": list(self.features),
            "records": records,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "PartnerModel":
        """Raise `JobError` for what is not such a document."""
        base.known(document, cls.kind)
        records = [Record(**each) for each in document["records"]]
        for record in records:
            base.numbers(record.threshold, ())
            if record.feature not in document["features"]:
                raise JobError(f"a record names the feature {record.feature}, which the model lacks")
        return cls(document["features"], records)


def pack_rows(mask: Mask) -> bytes:
    """A bit for each row."""
    return np.packbits(mask).tobytes()


def unpack_rows(data: bytes, count: int) -> Mask:
    """Raise `DecodeError` unless `data` is a mask of so many rows."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if len(bits) != -(-count // 8) * 8 or bits[count:].any():
        raise DecodeError(f"{len(data)} bytes are no bits of {count} rows")
    return bits[:count].astype(np.bool_)


class Session:
    """What both kinds of partner check alike: the label holder's key, the rows, one set of ciphertexts a step."""

    def __init__(self, x: Matrix, context: bytes, run: Stream, least: int) -> None:
        self.x, self.context, self.run, self.least = x, context, run, least
        self.modulus, self.size, self.width, self.bits = b"", 0, 0, 0

    def start(self, said: pb.VerticalStart) -> None:
        """Raise `DecodeError` or `ProofError` for a key that nobody should use, `JobError` for other rows."""
        if self.modulus:
            raise DecodeError("a run starts once")
        if said.rows != len(self.x):
            raise JobError(
                f"the label holder has {said.rows} aligned rows, this side {len(self.x)}: align again",
                "the two sides have different numbers of aligned rows",
            )
        if said.width not in slots.WIDTHS:
            raise DecodeError(f"slots of {said.width} bits")
        key = PublicKey.decode(said.modulus, self.least)
        paillier.verify(key, said.proof, self.context)
        self.modulus, self.size, self.width, self.bits = said.modulus, key.size, said.width, key.bits

    def ciphertexts(self, data: bytes, each: int = 1) -> bytes:
        """`each` a row, all of them checked, and split for the sums."""
        if not self.modulus:
            raise DecodeError("a run starts with its key")
        if len(data) != len(self.x) * each * self.size:
            raise DecodeError(f"{len(data)} bytes are not {each} ciphertexts a row")
        step = slots.CHUNK * self.size
        parts = ((self.modulus, self.least, data[i : i + step]) for i in range(0, len(data), step))
        return b"".join(self.run(slots.split_chunk, parts))

    def pack(self, sums: bytes) -> bytes:
        """Packed as one sequence, in pieces of whole plaintexts."""
        step = slots.slots(self.bits, self.width) * self.size * 4
        parts = (
            (self.modulus, self.least, self.width, sums[i : i + step]) for i in range(0, len(sums), step)
        )
        return b"".join(self.run(slots.pack_chunk, parts))


class TreePartner:
    """Of boosted trees. `x` has the aligned rows, shape (rows, features), in the order of their ids."""

    def __init__(
        self,
        x: Matrix,
        features: Sequence[str],
        settings: TreeSettings,
        context: bytes,
        run: Stream = slots.inline,
        pieces: int = 1,
        least: int = BITS,
        keep: Callable[[PartnerModel], None] = lambda _model: None,
    ) -> None:
        """`context` binds the key's proof to the job; `pieces` are how many a runner works on at once.

        Raises `JobError` where no column has two values.
        """
        self._session = Session(x, context, run, least)
        self._run, self._pieces, self._settings, self._keep = run, pieces, settings, keep
        self.model = PartnerModel(features, [])
        self.digest = b""  # of the label holder's part, once the run has ended
        (self._bins,) = one_by_one([binning.find(x, settings.bins)])
        self._edges = [len(edges) for edges in self._bins.edges]
        if not any(self._edges):
            raise JobError("no column here has two values that occur often enough to split by")
        numbers = self._bins.transform(x)
        # The last bin of each column, not of the widest, holds missing values.
        for column, count in enumerate(self._edges):
            numbers[column][numbers[column] == self._bins.width - 1] = count + 1
        self._numbers = numbers
        self._missing = [
            bool((numbers[column] == count + 1).any()) for column, count in enumerate(self._edges)
        ]
        right = [(column, edge) for column, count in enumerate(self._edges) for edge in range(count)]
        left = [place for place in right if self._missing[place[0]]]
        self._places = [*((*each, False) for each in right), *((*each, True) for each in left)]
        self._right = len(right)
        self._ciphertexts = b""
        self._tree = 1  # the first is the label holder's alone
        self._depths: dict[int, int] = {}  # of all nodes of this tree
        self._rows: dict[int, npt.NDArray[np.int64]] = {}
        self._summed: set[int] = set()
        self._order: list[int] = []

    def answer(self, request: pb.VerticalRequest) -> pb.VerticalReply:
        """Raise `PeerError` for what the protocol does not allow."""
        part = request.WhichOneof("part")
        if part == "start":
            # Gradients of rows that all weigh the same fit the narrow slot.
            if request.start.width > slots.WIDTHS[0] and self._settings.positive_weight == 1.0:
                raise DecodeError(f"slots of {request.start.width} bits")
            self._session.start(request.start)
            ready = pb.VerticalReady(splits=self._right, splits_missing=len(self._places) - self._right)
            return pb.VerticalReply(ready=ready)
        if part == "gradients" and not self.digest:
            self._begin(request.gradients)
        elif part == "nodes" and self._ciphertexts:
            if len(request.nodes.nodes) > len(self._rows):
                raise DecodeError("sums of more nodes than there are")
            return pb.VerticalReply(sums=pb.VerticalSums(packed=self._sums(list(request.nodes.nodes))))
        elif part == "choice" and self._ciphertexts:
            return pb.VerticalReply(record=self._choose(request.choice))
        elif part == "division" and self._ciphertexts:
            said = request.division
            rows = self._take(said.node)
            to_left = unpack_rows(said.left_rows, len(rows))
            self._divide(rows, to_left, said.node, said.left, said.right)
        elif part == "end" and not self.digest:
            if len(request.end.digest) != 32:
                raise DecodeError("a digest has 32 bytes")
            self.digest = request.end.digest
            self._ciphertexts = b""
        else:
            raise DecodeError(f"{part} is not what is due")
        return pb.VerticalReply(done=pb.VerticalDone())

    def _begin(self, said: pb.VerticalGradients) -> None:
        if said.step != self._tree + 1 or said.step > self._settings.trees:
            raise DecodeError(f"tree {said.step} of {self._settings.trees} after tree {self._tree}")
        self._ciphertexts = self._session.ciphertexts(said.ciphertexts)
        self._tree = said.step
        self._rows, self._depths = {0: np.arange(len(self._session.x))}, {0: 0}
        self._summed = set()
        # One order for a whole tree, so that the label holder can take a child's sums from its parent's.
        self._order = secret_order(self._right) + [
            self._right + each for each in secret_order(len(self._places) - self._right)
        ]
        self._keep(self.model)

    def _take(self, node: int) -> npt.NDArray[np.int64]:
        if node not in self._rows:
            raise DecodeError(f"node {node} is not known, or divided already")
        return self._rows.pop(node)

    def _divide(self, rows: npt.NDArray[np.int64], to_left: Mask, node: int, left: int, right: int) -> None:
        if left == right or left in self._depths or right in self._depths:
            raise DecodeError("children of a node that have other nodes' numbers")
        depth = self._depths[node] + 1
        if depth > self._settings.depth:
            raise DecodeError(f"a node at depth {depth}")
        self._depths |= {left: depth, right: depth}
        self._rows[left], self._rows[right] = rows[to_left], rows[~to_left]

    def _sums(self, nodes: list[int]) -> list[bytes]:
        if not nodes or len(set(nodes)) != len(nodes) or set(nodes) & self._summed:
            raise DecodeError("sums of no node, or of one twice")
        groups = []
        for node in nodes:
            if node not in self._rows:
                raise DecodeError(f"node {node} is not known, or divided already")
            groups.append(self._rows[node])
        self._summed |= set(nodes)
        rows, size = np.concatenate(groups), self._session.size
        array = np.frombuffer(self._ciphertexts, dtype=np.uint8).reshape(-1, size)
        chosen = array[rows].tobytes()
        counts = [len(group) for group in groups]
        usable = [column for column, count in enumerate(self._edges) if count]
        shares = [usable[i :: self._pieces] for i in range(min(self._pieces, len(usable)))]
        work = (
            (
                self._session.modulus,
                self._session.least,
                chosen,
                counts,
                self._numbers[share][:, rows],
                [self._edges[column] for column in share],
                [self._missing[column] for column in share],
            )
            for share in shares
        )
        found = list(self._run(slots.bucket_chunk, work))
        out = []
        for number in range(len(nodes)):
            sums = self._in_order(shares, [piece[number] for piece in found])
            out.append(self._session.pack(b"".join(sums[place] for place in self._order)))
        return out

    def _in_order(self, shares: list[list[int]], pieces: list[tuple[bytes, bytes]]) -> list[bytes]:
        """Ciphertexts in the order of `_places`."""
        size = self._session.size
        sums: dict[tuple[int, int, bool], bytes] = {}
        for share, (right, left) in zip(shares, pieces, strict=True):
            places = [(column, edge) for column in share for edge in range(self._edges[column])]
            for (column, edge), at in zip(places, range(0, len(right), size), strict=True):
                sums[column, edge, False] = right[at : at + size]
            places = [place for place in places if self._missing[place[0]]]
            for (column, edge), at in zip(places, range(0, len(left), size), strict=True):
                sums[column, edge, True] = left[at : at + size]
        return [sums[place] for place in self._places]

    def _choose(self, said: pb.VerticalChoice) -> pb.VerticalRecord:
        """Of equally good candidates the first one in this partner's own order, so that the model does not hang on the
        secret order."""
        if not 0 < len(said.candidates) <= len(self._order) or max(said.candidates) >= len(self._order):
            raise DecodeError("a choice between candidates that are not there")
        candidates = list(said.candidates)
        rows = self._take(said.node)
        places = [self._places[self._order[each]] for each in candidates]
        column, edge, missing_left = min(places, key=lambda place: (place[2], place[0], place[1]))
        to_left = bins_left(self._numbers[column][rows], edge, missing_left, self._edges[column] + 1)
        self._divide(rows, to_left, said.node, said.left, said.right)
        record = Record(self.model.features[column], float(self._bins.edges[column][edge]), missing_left)
        self.model.records.append(record)
        return pb.VerticalRecord(record=len(self.model.records) - 1, left_rows=pack_rows(to_left))


def secret_order(count: int) -> list[int]:
    """A uniform permutation."""
    order = list(range(count))
    secrets.SystemRandom().shuffle(order)
    return order
