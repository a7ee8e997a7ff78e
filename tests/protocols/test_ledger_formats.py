"""The C2SP formats: the specifications' own examples, strict parsing, and rubbish."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocols import merkle
from protocols.errors import DecodeError, MisuseError, PeerError, SignatureError
from protocols.ledger import checkpoints, notes, proofs, tiles, witnessing
from protocols.ledger.checkpoints import Checkpoint
from protocols.ledger.notes import COSIGNATURE, ED25519, Note, VerifierKey
from protocols.ledger.witnessing import AddCheckpoint, Refusal, Seen
from protocols.merkle import Tree

# C2SP signed-note v1.0.0, "Example".
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# C2SP tlog-cosignature, the example at its beginning.
EXAMPLE_CHECKPOINT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
LOG, WITNESS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
LOG_KEY = VerifierKey("net.example/bank/a", ED25519, LOG.public_key().public_bytes_raw())
WITNESS_KEY = VerifierKey("net.example/bank/b", COSIGNATURE, WITNESS.public_key().public_bytes_raw())
HASHES = [merkle.leaf_hash(bytes([i])) for i in range(40)]
TREE = Tree(HASHES)


def head(size, tree=TREE, origin=LOG_KEY.name, key=LOG):
    return bytes(checkpoints.sign(Checkpoint(origin, size, tree.root(size)), key))


def test_the_notes_example_verifies():
    key = VerifierKey.parse(EXAMPLE_KEY)
    assert str(key) == EXAMPLE_KEY
    note = Note.parse(EXAMPLE_NOTE.encode())
    assert bytes(note) == EXAMPLE_NOTE.encode()
    notes.verify(note, key)
    with pytest.raises(SignatureError):
        notes.verify(Note(note.text.replace("example", "other"), note.signatures), key)
    with pytest.raises(SignatureError):
        notes.verify(note, LOG_KEY)


def test_the_cosignatures_example_parses_to_its_parts():
    note = Note.parse(EXAMPLE_CHECKPOINT.encode())
    parsed = Checkpoint.parse(note.text)
    assert (parsed.origin, parsed.size) == ("example.com/behind-the-sofa", 20852163)
    line = note.signatures[1]
    assert line.key_id == bytes.fromhex("8d66cf3f")
    assert int.from_bytes(line.data[:8], "big") == 1679315147
    assert len(line.data) == 72
    assert bytes(note) == EXAMPLE_CHECKPOINT.encode()


def test_a_key_id_is_what_the_specification_says():
    name, public = "net.example/x", bytes(range(32))
    for kind in (ED25519, COSIGNATURE):
        expected = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]
        assert VerifierKey(name, kind, public).key_id == expected


def test_heads_and_cosignatures():
    note = Note.parse(head(7))
    line = checkpoints.cosign(note.text, WITNESS_KEY.name, WITNESS, 1_700_000_000)
    both = note.with_signatures([line])
    opened = checkpoints.open_head(bytes(both), LOG_KEY, [WITNESS_KEY])
    assert opened.checkpoint == Checkpoint(LOG_KEY.name, 7, TREE.root(7))
    assert opened.cosigned == {WITNESS_KEY.name: 1_700_000_000}
    assert opened.time == 1_700_000_000
    # A witness that is not known counts for nothing, and its line is dropped.
    assert checkpoints.open_head(bytes(both), LOG_KEY, []).cosigned == {}
    # A cosignature over another head, or at another time, is refused with the whole note.
    for text, time in ((note.text.replace("7", "8"), 1_700_000_000), (note.text, 1_700_000_001)):
        forged = checkpoints.cosign(text, WITNESS_KEY.name, WITNESS, time)
        moved = notes.Signature(
            forged.name, forged.key_id, (1_700_000_000).to_bytes(8, "big") + forged.data[8:]
        )
        with pytest.raises(SignatureError):
            checkpoints.open_head(bytes(note.with_signatures([moved])), LOG_KEY, [WITNESS_KEY])
    # The log's signature is no cosignature and a cosignature no log's.
    with pytest.raises(SignatureError):
        checkpoints.open_head(
            bytes(note), VerifierKey(LOG_KEY.name, ED25519, WITNESS_KEY.public), [WITNESS_KEY]
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n7\n", "\n07\n"),
        lambda text: text.replace("\n7\n", "\n-7\n"),
        lambda text: text.replace("\n7\n", "\n７\n"),
        lambda text: text.replace("\n7\n", "\n99999999999999999999\n"),
        lambda text: text.replace("\n7\n", "\n\n7\n"),
        lambda text: text.replace("=\n\n", "=\nextension\n\n"),
        lambda text: text.replace("=\n\n", "\n\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("— ", "- "),
        lambda text: text.replace("— ", "—  "),
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: text.rsplit("— ", 1)[0],
        lambda text: "\x00" + text,
        lambda text: "a b" + text,
        lambda text: "a+b" + text,
        lambda text: "",
    ],
)
def test_a_head_that_is_written_otherwise_is_refused(change):
    text = head(7).decode()
    assert change(text) != text
    with pytest.raises((DecodeError, SignatureError)):
        checkpoints.open_head(change(text).encode(), LOG_KEY, [WITNESS_KEY])


def test_every_byte_of_a_head_counts():
    note = Note.parse(head(7))
    whole = bytes(
        note.with_signatures([checkpoints.cosign(note.text, WITNESS_KEY.name, WITNESS, 1_700_000_000)])
    )
    kept = bytes(checkpoints.open_head(whole, LOG_KEY, [WITNESS_KEY]).note)
    for place in range(len(whole)):
        for bit in (1, 32):
            changed = bytearray(whole)
            changed[place] ^= bit
            try:
                opened = checkpoints.open_head(bytes(changed), LOG_KEY, [WITNESS_KEY])
            except PeerError:
                continue
            # Another name or key id makes a cosignature a stranger's, which is ignored: it must not count.
            assert bytes(opened.note) != kept
            assert opened.cosigned == {}


def test_quorums():
    assert [checkpoints.quorum(n) for n in range(8)] == [0, 1, 2, 2, 3, 4, 4, 5]
    for n in range(1, 40):
        liars = (n - 1) // 3
        assert 2 * checkpoints.quorum(n) > n + liars
        if n >= 3:
            assert checkpoints.quorum(n) <= n - 1, "one witness alone could stop the network"


@given(st.binary(max_size=300))
def test_rubbish_notes(data):
    try:
        note = Note.parse(data)
    except DecodeError:
        return
    assert bytes(note) == data


@given(st.text(max_size=80))
def test_rubbish_lines(text):
    for parse in (Checkpoint.parse, VerifierKey.parse, notes.Signature.parse, proofs.LogProof.parse):
        try:
            parsed = parse(text)
        except DecodeError:
            continue
        assert str(parsed).rstrip("\n") == text.rstrip("\n")


# -- tiles ------------------------------------------------------------------------------------------------------------


def test_tile_paths_are_the_specifications():
    assert tiles.path(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.path(tiles.ENTRIES, 0, 112) == "tile/entries/000.p/112"
    assert tiles.path(2, 999, 1) == "tile/2/999.p/1"
    # "A tree of size 70,000": 273 full tiles, one of 112; one full of level 1, one of 17; one of level 2 with 1.
    assert [tiles.width(0, n, 70_000) for n in (272, 273, 274)] == [256, 112, 0]
    assert [tiles.width(1, n, 70_000) for n in (0, 1, 2)] == [256, 17, 0]
    assert [tiles.width(2, n, 70_000) for n in (0, 1)] == [1, 0]
    assert [tiles.width(1, n, 256) for n in (0, 1)] == [1, 0]


@given(st.integers(-1, 63), st.integers(0, 1 << 40), st.integers(1, 256))
def test_tile_paths_round_trip(level, number, width):
    assert tiles.parse_path(tiles.path(level, number, width)) == (level, number, width)


@given(st.text(alphabet="tile/entrisx0123456789.p", max_size=40))
def test_rubbish_paths(text):
    try:
        level, number, width = tiles.parse_path(text)
    except DecodeError:
        return
    assert tiles.path(level, number, width) == text


@pytest.mark.parametrize(
    "text",
    [
        "tile/00/000",
        "tile/64/000",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/../000",
        "tile/0/٠٠٠",
        "tile/0/000\n",
    ],
)
def test_paths_that_are_not_canonical(text):
    with pytest.raises(DecodeError):
        tiles.parse_path(text)


class Store:
    def __init__(self):
        self.size, self.tiles = 0, {}

    def read(self, level, number):
        return self.tiles.get((level, number), b"")

    def append(self, leaves):
        changed = tiles.grow(self.size, leaves, self.read)
        for key, content in changed.items():
            assert content.startswith(self.tiles.get(key, b"")), "a tile only grows"
        self.tiles |= changed
        self.size += len(leaves)


@given(st.lists(st.integers(0, 700), max_size=5))
def test_a_tree_in_tiles_is_the_tree_in_memory(steps):
    store, tree = Store(), Tree()
    for count in steps:
        fresh = [hashlib.sha256(bytes([len(tree) % 251, i % 256])).digest() for i in range(count)]
        store.append(fresh)
        for each in fresh:
            tree.append(each)
        node = tiles.nodes(store.read)
        assert merkle.root(store.size, node) == tree.root()
        for (level, number), content in store.tiles.items():
            assert len(content) == 32 * tiles.width(level, number, store.size)
        if store.size:
            index = store.size * 2 // 3
            assert merkle.inclusion(index, store.size, node) == merkle.inclusion(index, store.size, tree.node)
            assert merkle.consistency(index, store.size, node) == merkle.consistency(
                index, store.size, tree.node
            )


def test_three_levels_of_tiles():
    store = Store()
    store.append([hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(70_000)])
    assert len(store.tiles[(2, 0)]) == 32
    tree = Tree([hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(70_000)])
    assert merkle.root(70_000, tiles.nodes(store.read)) == tree.root()
    with pytest.raises(MisuseError):
        tiles.nodes(store.read)(0, 70_000)


@given(st.lists(st.binary(max_size=50), max_size=20), st.binary(max_size=3))
def test_bundles_round_trip_and_refuse_a_broken_end(entries, more):
    data = tiles.pack(entries)
    assert tiles.unpack(data) == entries
    try:
        again = tiles.unpack(data + more)
    except DecodeError:
        return
    assert tiles.pack(again) == data + more


# -- witnesses --------------------------------------------------------------------------------------------------------


def request(old, new, tree=TREE, **changes):
    proof = tuple(merkle.consistency(old, new, tree.node))
    return AddCheckpoint(changes.get("old", old), changes.get("proof", proof), head(new, tree))


def refused(what, log=LOG_KEY, seen=witnessing.NOTHING):
    with pytest.raises(Refusal) as caught:
        witnessing.consider(what, log, seen)
    return caught.value.status, caught.value.size


def test_a_witness_follows_a_log():
    seen = witnessing.NOTHING
    for size in (0, 1, 5, 5, 8, 40):
        body = bytes(request(seen.size, size))
        asked = AddCheckpoint.parse(body)
        assert bytes(asked) == body
        assert asked.origin() == LOG_KEY.name
        new = witnessing.consider(asked, LOG_KEY, seen).checkpoint
        seen = Seen(new.size, new.root)
    assert seen == Seen(40, TREE.root(40))


def test_statuses_of_the_witness_protocol():
    seen = Seen(5, TREE.root(5))
    other = Tree([*HASHES[:2], merkle.leaf_hash(b"another"), *HASHES[3:]])
    assert refused(request(5, 8), log=None)[0] == 404
    stranger = VerifierKey(LOG_KEY.name, ED25519, WITNESS_KEY.public)
    assert refused(request(5, 8), log=stranger)[0] == 403
    note = Note.parse(head(8))
    broken = notes.Signature(LOG_KEY.name, LOG_KEY.key_id, bytes(64))
    forged = AddCheckpoint(5, (), bytes(Note(note.text, (broken, *note.signatures))))
    assert refused(forged, seen=seen)[0] == 403
    assert refused(AddCheckpoint(9, (), head(8)), seen=seen)[0] == 400
    assert refused(request(4, 8), seen=seen) == (409, 5)
    assert refused(request(0, 8), seen=seen) == (409, 5)
    assert refused(AddCheckpoint(6, (), head(6)), seen=Seen(8, TREE.root(8))) == (409, 8)
    assert refused(request(5, 5, other), seen=seen) == (409, 5)
    assert refused(request(5, 8, other), seen=seen)[0] == 422
    assert refused(request(5, 8, proof=()), seen=seen)[0] == 422
    assert refused(AddCheckpoint(0, (bytes(32),), head(8)))[0] == 422


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"old 5", b"old 05"),
        lambda body: body.replace(b"old 5", b"old  5"),
        lambda body: body.replace(b"old 5", b"new 5"),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + b"AAAA\n"),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + base64.b64encode(bytes(32)) + b"\n" * 2),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + (base64.b64encode(bytes(32)) + b"\n") * 64),
        lambda body: body.replace(b"\n\n", b"\n", 1),
        lambda body: b"\xff" + body,
        lambda body: body + b"x" * 70_000,
    ],
)
def test_requests_that_are_not_the_protocols(change):
    body = bytes(request(5, 8))
    with pytest.raises(DecodeError):
        AddCheckpoint.parse(change(body)).origin()


@given(st.binary(max_size=200))
def test_rubbish_requests(body):
    try:
        parsed = AddCheckpoint.parse(body)
    except DecodeError:
        return
    assert bytes(parsed) == body


def test_a_proof_of_an_entry():
    proof = proofs.LogProof(11, tuple(merkle.inclusion(11, 40, TREE.node)), head(40))
    text = str(proof)
    assert text.startswith("c2sp.org/tlog-proof@v1\nindex 11\n")
    again = proofs.LogProof.parse(text)
    assert again == proof
    opened = checkpoints.open_head(again.head, LOG_KEY, [])
    merkle.verify_inclusion(11, opened.checkpoint.size, HASHES[11], again.path, opened.checkpoint.root)
    for bad in (
        text.replace("index 11", "index 011"),
        text.replace("index 11\n", ""),
        text.replace("index 11", "extra AAAA\nindex 11"),
        text.replace("@v1", "@v2"),
    ):
        with pytest.raises(DecodeError):
            proofs.LogProof.parse(bad)
