"""Merkle trees of RFC 6962 §2.1 with SHA-256: hashes, roots, inclusion and consistency proofs, made and verified.

A tree is read through `Nodes`: a function that gives the hash of the perfect subtree of 2^level leaves that begins at
leaf index·2^level. So the same code proves from a list in memory and from tiles on a disk. Verification follows
RFC 9162 §2.1.3.2 and §2.1.4.2. The recursive definition stands at the end, as the reference that tests compare with.
"""

import hashlib
from collections.abc import Callable, Sequence

from .errors import DecodeError, MisuseError, ProofError

HASH = 32
EMPTY = hashlib.sha256(b"").digest()
MAX_SIZE = 1 << 62  # leaves
MAX_PROOF = 63  # hashes: more than any tree of that size needs
Nodes = Callable[[int, int], bytes]
_sha256 = hashlib.sha256


def leaf_hash(data: bytes) -> bytes:
    """32 bytes: SHA-256(0x00 ‖ data)."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """32 bytes: SHA-256(0x01 ‖ left ‖ right)."""
    return _sha256(b"\x01" + left + right).digest()


def split(size: int) -> int:
    """The largest power of two smaller than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


class Tree:
    """A tree in memory that grows by leaf hashes."""

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for each in leaves:
            self.append(each)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add one leaf by its hash."""
        level, current = 0, leaf
        while True:
            self._levels[level].append(current)
            if len(self._levels[level]) % 2:
                return
            current = node_hash(*self._levels[level][-2:])
            level += 1
            if level == len(self._levels):
                self._levels.append([])

    def node(self, level: int, index: int) -> bytes:
        """A perfect subtree's hash."""
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        """Of the first `size` leaves, by default all."""
        return root(len(self) if size is None else size, self.node)


# -- making -----------------------------------------------------------------------------------------------------------


def _range(low: int, high: int, node: Nodes) -> bytes:
    """The hash over leaves [low, high); `low` is a multiple of the range's size rounded up to a power of two."""
    size = high - low
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, low >> level)
    middle = low + split(size)
    return node_hash(_range(low, middle, node), _range(middle, high, node))


def root(size: int, node: Nodes) -> bytes:
    """MTH of the first `size` leaves; `EMPTY` for none."""
    return _range(0, size, node) if size else EMPTY


def inclusion(index: int, size: int, node: Nodes) -> list[bytes]:
    """PATH(index, D[size]): hashes from the leaf's sibling upwards. Raises `MisuseError` past the tree's end."""
    if not 0 <= index < size:
        raise MisuseError(f"leaf {index} is not in a tree of {size}")
    path = []
    low, high = 0, size
    while high - low > 1:
        middle = low + split(high - low)
        if index < middle:
            path.append(_range(middle, high, node))
            high = middle
        else:
            path.append(_range(low, middle, node))
            low = middle
    return path[::-1]


def consistency(old: int, new: int, node: Nodes) -> list[bytes]:
    """PROOF(old, D[new]); empty where `old` is 0 or `new`. Raises `MisuseError` where `old` is larger."""
    if not 0 <= old <= new:
        raise MisuseError(f"a tree of {new} does not contain one of {old}")
    if old in (0, new):
        return []
    path = []
    low, high, whole = 0, new, True
    while old != high:
        middle = low + split(high - low)
        if old <= middle:
            path.append(_range(middle, high, node))
            high = middle
        else:
            path.append(_range(low, middle, node))
            low, whole = middle, False
    if not whole:
        path.append(_range(low, high, node))
    return path[::-1]


# -- verifying --------------------------------------------------------------------------------------------------------


def _check(*hashes: bytes) -> None:
    if any(len(each) != HASH for each in hashes):
        raise DecodeError(f"a hash has {HASH} bytes")


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root_: bytes) -> None:
    """Raise `ProofError` unless the leaf with hash `leaf` stands at `index` of the tree with this root and size."""
    _check(leaf, root_, *proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError(f"leaf {index} cannot be in a tree of {size}")
    position, last, current = index, size - 1, leaf
    for each in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long")
        if position & 1 or position == last:
            current = node_hash(each, current)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            current = node_hash(current, each)
        position >>= 1
        last >>= 1
    if last:
        raise ProofError("the inclusion proof is too short")
    if current != root_:
        raise ProofError("the inclusion proof leads to another root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Raise `ProofError` unless the tree of `new` leaves begins with the tree of `old` leaves."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise ProofError(f"a tree of {new} cannot contain one of {old}")
    if old in (0, new):
        if proof:
            raise ProofError("the consistency proof should be empty")
        if old == new and old_root != new_root:
            raise ProofError("two roots for one size")
        if old == 0:
            _check(new_root)
            if old_root != EMPTY:
                raise ProofError("an empty tree has another root")
        return
    _check(old_root, new_root, *proof)
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the consistency proof is empty")
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    before = after = path[0]
    for each in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long")
        if position & 1 or position == last:
            before, after = node_hash(each, before), node_hash(each, after)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            after = node_hash(after, each)
        position >>= 1
        last >>= 1
    if last:
        raise ProofError("the consistency proof is too short")
    if before != old_root:
        raise ProofError("the consistency proof leads to another old root")
    if after != new_root:
        raise ProofError("the consistency proof leads to another new root")


# -- the reference: RFC 6962 §2.1, word for word ----------------------------------------------------------------------


def reference_root(leaves: Sequence[bytes]) -> bytes:
    """MTH(D[n]) over the leaves' data."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = split(len(leaves))
    return node_hash(reference_root(leaves[:k]), reference_root(leaves[k:]))


def reference_inclusion(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*reference_inclusion(index, leaves[:k]), reference_root(leaves[k:])]
    return [*reference_inclusion(index - k, leaves[k:]), reference_root(leaves[:k])]


def reference_consistency(old: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PROOF(m, D[n]) for 0 < m ≤ n."""
    return _subproof(old, leaves, True)


def _subproof(old: int, leaves: Sequence[bytes], whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [reference_root(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*_subproof(old, leaves[:k], whole), reference_root(leaves[k:])]
    return [*_subproof(old - k, leaves[k:], False), reference_root(leaves[:k])]
