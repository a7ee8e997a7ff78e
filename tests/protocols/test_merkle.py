"""RFC 6962 trees: all published vectors, the recursive definition, and every way to be wrong that we can think of."""

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import merkle
from protocols.errors import MisuseError, ProtocolError
from protocols.merkle import Tree

LEAVES = [bytes([i]) * (i % 5) for i in range(70)]


def _bytes(text):
    return base64.b64decode(text) if text else b""


def _vectors(shared, name):
    return json.loads((shared / "vectors" / f"rfc6962_{name}_vectors.json").read_text())


def _holds(check, *arguments):
    try:
        check(*arguments)
    except ProtocolError:
        return False
    return True


def test_published_inclusion_vectors(shared):
    vectors = _vectors(shared, "inclusion")
    refused = 0
    for each in vectors:
        proof = [_bytes(part) for part in each["proof"] or []]
        holds = _holds(
            merkle.verify_inclusion,
            each["leafIdx"],
            each["treeSize"],
            _bytes(each["leafHash"]),
            proof,
            _bytes(each["root"]),
        )
        assert holds is not each["wantErr"], each["name"]
        refused += not holds
    assert (len(vectors), refused) == (98, 92)


def test_published_consistency_vectors(shared):
    vectors = _vectors(shared, "consistency")
    refused = 0
    for each in vectors:
        proof = [_bytes(part) for part in each["proof"] or []]
        holds = _holds(
            merkle.verify_consistency,
            each["size1"],
            each["size2"],
            proof,
            _bytes(each["root1"]),
            _bytes(each["root2"]),
        )
        assert holds is not each["wantErr"], each["name"]
        refused += not holds
    assert (len(vectors), refused) == (98, 92)


@given(st.lists(st.binary(max_size=40), max_size=130), st.data())
def test_fast_code_agrees_with_the_recursive_definition(leaves, data):
    tree = Tree([merkle.leaf_hash(each) for each in leaves])
    root = merkle.reference_root(leaves)
    assert tree.root() == root
    if not leaves:
        return
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle.inclusion(index, len(leaves), tree.node)
    assert path == merkle.reference_inclusion(index, leaves)
    merkle.verify_inclusion(index, len(leaves), merkle.leaf_hash(leaves[index]), path, root)
    old = data.draw(st.integers(1, len(leaves)))
    proof = merkle.consistency(old, len(leaves), tree.node)
    assert proof == merkle.reference_consistency(old, leaves)
    merkle.verify_consistency(old, len(leaves), proof, merkle.reference_root(leaves[:old]), root)


def test_every_pair_of_sizes():
    hashes = [merkle.leaf_hash(each) for each in LEAVES]
    tree = Tree(hashes)
    for new in range(len(LEAVES) + 1):
        for old in range(new + 1):
            proof = merkle.consistency(old, new, tree.node)
            merkle.verify_consistency(old, new, proof, tree.root(old), tree.root(new))
        for index in range(new):
            path = merkle.inclusion(index, new, tree.node)
            merkle.verify_inclusion(index, new, hashes[index], path, tree.root(new))


@given(st.integers(1, 70), st.data())
def test_a_proof_for_one_thing_proves_no_other(size, data):
    hashes = [merkle.leaf_hash(each) for each in LEAVES[:size]]
    tree = Tree(hashes)
    index = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion(index, size, tree.node)
    wrong_index, wrong_size = data.draw(st.integers(0, 80)), data.draw(st.integers(0, 80))
    if wrong_index != index:
        assert not _holds(merkle.verify_inclusion, wrong_index, size, hashes[index], path, tree.root())
    if len(merkle.inclusion(index, wrong_size, Tree(hashes * 81).node) if index < wrong_size else []) != len(
        path
    ):
        assert not _holds(merkle.verify_inclusion, index, wrong_size, hashes[index], path, tree.root())
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        changed = bytearray(path[place])
        changed[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
        forged = [*path[:place], bytes(changed), *path[place + 1 :]]
        assert not _holds(merkle.verify_inclusion, index, size, hashes[index], forged, tree.root())
        assert not _holds(merkle.verify_inclusion, index, size, hashes[index], path[:-1], tree.root())
    assert not _holds(merkle.verify_inclusion, index, size, hashes[index], [*path, bytes(32)], tree.root())


@given(st.integers(1, 60), st.integers(1, 10), st.data())
def test_a_changed_history_has_no_consistency_proof(old, more, data):
    hashes = [merkle.leaf_hash(each) for each in LEAVES[: old + more]]
    honest = Tree(hashes)
    changed = list(hashes)
    changed[data.draw(st.integers(0, old - 1))] = merkle.leaf_hash(b"another")
    forged = Tree(changed)
    new = old + more
    for tree in (honest, forged):
        proof = merkle.consistency(old, new, tree.node)
        assert not _holds(merkle.verify_consistency, old, new, proof, honest.root(old), forged.root(new))
        assert not _holds(merkle.verify_consistency, old, new, proof, forged.root(old), honest.root(new))


def test_a_node_is_no_leaf():
    """Leaves and nodes hash in different domains, so the two children of a root are not a leaf."""
    hashes = [merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")]
    joined = hashes[0] + hashes[1]
    assert merkle.leaf_hash(joined) != Tree(hashes).root()


@given(
    st.integers(-3, 1 << 70),
    st.integers(-3, 1 << 70),
    st.lists(st.binary(max_size=40), max_size=70),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_rubbish_is_refused_with_the_documented_errors(one, two, proof, first, second):
    for check in (merkle.verify_inclusion, merkle.verify_consistency):
        try:
            if check is merkle.verify_inclusion:
                check(one, two, first, proof, second)
            else:
                check(one, two, proof, first, second)
        except ProtocolError:
            continue
        assert one in (two, 0)


def test_misuse():
    tree = Tree([merkle.leaf_hash(b"x")])
    for index in (-1, 1, random.randrange(2, 100)):
        with pytest.raises(MisuseError):
            merkle.inclusion(index, 1, tree.node)
    with pytest.raises(MisuseError):
        merkle.consistency(2, 1, tree.node)
