"""A log, its witnesses and its mirrors: what is durable, what is refused, and what is caught."""

import base64
import functools
import hashlib
import json
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lianfang.v1 import common_pb2, ledger_pb2

from nodes.errors import NodeError, NotFound, Refused
from nodes.ledger import book, bundle
from nodes.ledger.book import random_id
from nodes.ledger.bundle import BundleError, Case, Evidence, Evidences
from nodes.querier.peers import PeerFailed
from protocols import merkle
from protocols.ledger import checkpoints, events, tiles
from protocols.ledger.checkpoints import Checkpoint
from protocols.ledger.witnessing import AddCheckpoint
from tests.nodes.cluster import Cluster, Template


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def cluster(template, tmp_path):
    made = Cluster(template, tmp_path)
    yield made
    made.close()


def leaves_of(party):
    size, out = party.log.size, []
    for number in range(-(-size // tiles.WIDTH)):
        out += tiles.unpack(party.log.tile(tiles.ENTRIES, number, tiles.width(tiles.ENTRIES, number, size)))
    return out


def fork(party, leaves):
    """A head over other leaves, signed with the log's own key: what only its owner can do."""
    tree = merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves])
    return tree, checkpoints.sign(Checkpoint(party.log.origin, len(tree), tree.root()), party.keys.log)


# -- the log -----------------------------------------------------------------------------------------------------------


def test_events_wait_for_the_tick_and_then_stand_in_a_published_head(cluster):
    party = cluster.parties["bank-a"]
    leaf = party.append(count=3)
    assert party.log.waiting() == 1
    head = cluster.tick("bank-a")
    assert party.log.waiting() == 0
    published = party.log.published
    assert published.head.checkpoint == head.checkpoint
    assert len(published.head.cosigned) >= 3
    position = leaves_of(party).index(leaf)
    proof = party.log.prove(position)
    bundle.verify_proof(proof, leaf, party.member, party.book.current)
    with pytest.raises(NotFound):
        party.log.prove(head.checkpoint.size)


def test_an_event_is_recorded_once_whatever_happens(cluster):
    party = cluster.parties["bank-a"]
    id_ = random_id()

    def record(count):
        entry = party.log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ASKED, "spiffe://x", id_, count=count)
        return party.writer.submit(lambda c: party.log.record(c, entry)).result()

    first, second = record(1), record(2)
    assert second.committed == first.committed
    cluster.tick("bank-a")
    assert record(3).committed == first.committed
    found = list(party.log.find(event_id=id_))
    assert [each.committed for each in found] == [first.committed]
    receipt = party.log.receipt(second)
    assert events.verify_receipt(receipt, party.member.verifier, party.member.id) == first.committed


def test_what_a_transaction_undoes_leaves_no_event(cluster):
    party = cluster.parties["bank-a"]
    entry = party.log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ASKED, "spiffe://x", random_id())

    def fail(connection):
        party.log.record(connection, entry)
        raise RuntimeError("after the record, before the commit")

    with pytest.raises(NodeError):
        party.writer.submit(fail).result()
    assert party.log.waiting() == 0


def test_heads_grow_by_public_sizes_whatever_was_recorded(template, tmp_path):
    """Volumes: a silent log, a busy one and one with other events grow alike, tick by tick."""
    cluster = Cluster(template, tmp_path, leaves=8)
    sizes = {}
    for name, counts in (("bank-a", (0, 0, 0)), ("bank-b", (8, 1, 5)), ("bank-c", (2, 8, 0))):
        cluster.tick(name)  # the members' admission
        sizes[name] = []
        for count in counts:
            for _ in range(count):
                cluster.parties[name].append(count=1_000, purpose=common_pb2.PURPOSE_SCREENING)
            sizes[name].append(cluster.tick(name).checkpoint.size)
    assert sizes["bank-a"] == sizes["bank-b"] == sizes["bank-c"]
    for _ in range(9):
        cluster.parties["bank-a"].append()
    assert cluster.tick("bank-a").checkpoint.size - sizes["bank-a"][-1] == 32
    cluster.close()


def test_leaves_of_a_tick_do_not_show_their_order_or_which_are_real(template, tmp_path):
    cluster = Cluster(template, tmp_path, leaves=64)
    party = cluster.parties["bank-a"]
    cluster.tick("bank-a")
    before = party.log.size
    recorded = [party.append(count=i) for i in range(32)]
    cluster.tick("bank-a")
    fresh = leaves_of(party)[before:]
    assert len({len(leaf) for leaf in fresh}) == 1
    assert fresh == sorted(fresh, key=merkle.leaf_hash)
    assert set(recorded) < set(fresh)
    cluster.close()


def test_nothing_of_a_query_is_readable_in_a_copy_or_a_head(cluster):
    """Type, counterparty, purpose, basis, count, list: searched for in all that witnesses and mirrors receive."""
    party, other = cluster.parties["bank-a"], cluster.parties["bank-b"]
    kind = ledger_pb2.EVENT_TYPE_QUERY_ASKED
    fields = {
        "resource": "a-list-with-a-telling-name",
        "purpose": common_pb2.PURPOSE_PAYMENT,
        "basis": common_pb2.LEGAL_BASIS_POLICE_REQUEST,
        "count": 123_457,
        "request_hash": b"\x77" * 32,
    }
    entry = party.log.prepare(kind, other.member.id, b"\x55" * 16, **fields)
    party.writer.submit(lambda c: party.log.record(c, entry)).result()
    cluster.tick("bank-a")
    cluster.run(other.mirrors.refresh(party.member))
    cluster.down("bank-b")
    received = b"".join(
        path.read_bytes() for path in (cluster.folder / "bank-b").iterdir() if path.name.startswith("mirrors")
    ) + b"".join(body for _, body in cluster.signatures)
    assert entry.committed.commitment in received
    event = entry.committed.opening
    for secret in (
        event.event,
        event.salt,
        fields["resource"].encode(),
        fields["request_hash"],
        b"\x55" * 16,
        ledger_pb2.Event(count=fields["count"]).SerializeToString(),
    ):
        assert secret not in received
    cluster.up("bank-b")


def test_erasure_destroys_the_opening_and_leaves_the_tree(cluster):
    party = cluster.parties["bank-a"]
    leaf = party.append(resource="fraud")
    head = cluster.tick("bank-a")
    cluster.now += 10 * 86_400
    assert party.log.erase(9) >= 1
    assert list(party.log.find()) == []
    assert leaf in leaves_of(party)
    assert party.log.signed.checkpoint == head.checkpoint
    cluster.tick("bank-a")
    assert party.log.published_size > head.checkpoint.size


def test_erasure_takes_what_is_due_whatever_a_wrong_clock_dated(cluster):
    party, day = cluster.parties["bank-a"], 86_400
    began = cluster.now
    for number in range(12):  # one of them dated a year ahead, one a year back
        cluster.now = began + number * day + {4: 365 * day, 7: -365 * day}.get(number, 0)
        party.append(resource=f"day-{number}")
        cluster.now = began + number * day
        cluster.tick("bank-a")

    def left():
        return {int(each.committed.event.resource[4:]) for each in party.log.find(since=-(1 << 62))}

    for age, gone in ((12, {7}), (9.5, {0, 1, 7}), (5.5, {0, 1, 2, 3, 5, 7}), (1.5, {*range(10)} - {4})):
        party.log.erase(age)
        assert left() == {*range(12)} - gone
        assert party.log.erase(age) == 0


def test_promises_are_forgotten_with_their_day(cluster, monkeypatch):
    monkeypatch.setattr(book, "_STRETCH", 3)
    party, day = cluster.parties["bank-a"], 86_400
    ids = [random_id() for _ in range(10)]
    for number, event_id in enumerate(ids):
        event = ledger_pb2.Event(log="spiffe://y", type=1, id=event_id, at=1)
        committed = events.commit(event)
        receipt = events.receipt(committed, int(cluster.now) + number * day, party.keys.signing)
        keep = functools.partial(party.log.record_promise, receipt=receipt, committed=committed)
        party.writer.submit(lambda connection, keep=keep: keep(connection)).result()
    cluster.now += 9 * day
    for age, gone in ((9.5, 0), (4.5, 5), (0.5, 9), (-0.5, 10)):
        party.log.erase(age)
        assert [bool(party.log.promised(each)) for each in ids] == [False] * gone + [True] * (10 - gone)


def test_promises_that_came_out_of_order_are_forgotten_a_stretch_at_a_time(cluster, monkeypatch):
    monkeypatch.setattr(book, "_STRETCH", 4)
    party, day = cluster.parties["bank-a"], 86_400
    ages = [9, 1, 9, 9, 9, 1, 9, 9, 1, 1, 1, 1, 9, 1, 1, 1, 9]
    ids = []
    for age in ages:
        ids.append(random_id())
        committed = events.commit(ledger_pb2.Event(log="spiffe://y", type=1, id=ids[-1], at=1))
        receipt = events.receipt(committed, int(cluster.now) - age * day, party.keys.signing)
        keep = functools.partial(party.log.record_promise, receipt=receipt, committed=committed)
        party.writer.submit(lambda connection, keep=keep: keep(connection)).result()
    party.log.erase(5)
    # The third stretch has none that is due: what came behind it waits for that one.
    left = [age for age, each in zip(ages, ids, strict=True) if party.log.promised(each)]
    assert left == [1, 1, 1, 1, 1, 1, 9, 1, 1, 1, 9]
    cluster.now += 6 * day
    party.log.erase(5)
    assert not any(map(party.log.promised, ids))


# -- crashes and backups -----------------------------------------------------------------------------------------------

_CHILD = """
import sys
from pathlib import Path
from tests.nodes.cluster import Cluster, Template
template = Template.__new__(Template)
template.folder, template.names = Path(sys.argv[1]), ("bank-a",)
from cryptography import x509
template.ca = x509.load_pem_x509_certificate((template.folder / "ca" / "ca.crt").read_bytes())
cluster = Cluster(template, Path(sys.argv[2]))
party = cluster.parties["bank-a"]
print("up", flush=True)
while True:
    for _ in range(3):
        print(party.append().hex(), flush=True)
    cluster.run(__import__("asyncio").to_thread(party.log.tick, party.writer))
"""


def test_kill_at_any_moment_loses_nothing_acknowledged(template, tmp_path):
    """A process appends and ticks until it is killed, six times over: its tree recomputes, its heads are prefixes."""
    acknowledged, heads = set(), []
    for round_ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(template.folder), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=sys.path[0] or ".",
        )
        assert child.stdout.readline() == "up\n"
        for _ in range(3 * round_):  # so many are acknowledged, and then some time passes
            acknowledged.add(bytes.fromhex(child.stdout.readline()))
        time.sleep(0.007 * round_)
        child.kill()
        acknowledged |= {bytes.fromhex(line) for line in child.stdout.read().split("\n")[:-1]}
        child.wait()
        names, template.names = template.names, ("bank-a",)
        cluster = Cluster(template, tmp_path)
        template.names = names
        party = cluster.parties["bank-a"]
        assert party.log.lost is None
        party.log.tick(party.writer)
        leaves = leaves_of(party)
        assert acknowledged <= set(leaves)
        assert len(leaves) == len(set(leaves))
        heads.append(party.log.signed.checkpoint)
        for head in heads:
            assert merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves[: head.size]]).root() == head.root
        cluster.close()
    assert acknowledged


def test_a_restored_backup_brings_its_entries_back_before_it_signs(cluster, tmp_path):
    party = cluster.parties["bank-a"]
    party.append()
    cluster.tick("bank-a")
    cluster.backup("bank-a", tmp_path / "backup")
    party = cluster.parties["bank-a"]
    kept = party.append()
    head = cluster.tick("bank-a")
    cluster.run(cluster.parties["regulator"].mirrors.refresh(party.member))
    cluster.restore("bank-a", tmp_path / "backup")
    party = cluster.parties["bank-a"]
    assert party.log.lost.size == head.checkpoint.size
    with pytest.raises(Refused, match="older than the head"):
        party.log.tick(party.writer)
    cluster.now += 5
    again = cluster.tick("bank-a")
    leaves = leaves_of(party)
    assert kept in leaves
    assert merkle.Tree([merkle.leaf_hash(each) for each in leaves[: head.checkpoint.size]]).root() == (
        head.checkpoint.root
    )
    assert party.log.published_size == again.checkpoint.size


def test_a_restored_log_signs_nothing_where_nobody_has_its_entries(cluster, tmp_path):
    cluster.tick("bank-a")
    cluster.backup("bank-a", tmp_path / "backup")
    cluster.tick("bank-a")
    cluster.restore("bank-a", tmp_path / "backup")
    with pytest.raises(NodeError, match="signs nothing"):
        cluster.tick("bank-a")


def test_a_log_restored_with_its_mark_is_told_by_its_witnesses(cluster, tmp_path):
    cluster.tick("bank-a")
    cluster.backup("bank-a", tmp_path / "backup")
    shutil.copy(cluster.folder / "bank-a" / "ledger.mark", tmp_path / "backup")
    head = cluster.tick("bank-a")
    cluster.restore("bank-a", tmp_path / "backup")
    cluster.down("bank-a")
    shutil.copy(tmp_path / "backup" / "ledger.mark", cluster.folder / "bank-a")
    party = cluster.up("bank-a")
    assert party.log.lost is None
    with pytest.raises(NodeError, match="signs nothing"):
        cluster.tick("bank-a")  # nobody has a copy
    cluster.cut = [{"bank-a", name} for name in ("bank-b", "bank-c", "centre", "regulator")]
    with pytest.raises(NodeError):
        cluster.tick("bank-a")
    assert party.log.lost.size == head.checkpoint.size


def test_a_restored_witness_takes_its_marks_word(cluster, tmp_path):
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]
    first = cluster.tick("bank-a")
    cluster.backup("bank-b", tmp_path / "backup")
    cluster.tick("bank-a")
    cluster.restore("bank-b", tmp_path / "backup")
    b = cluster.parties["bank-b"]
    tree, note = fork(a, [*leaves_of(a)[: first.checkpoint.size], events.dummy_leaf()])
    proof = tuple(merkle.consistency(first.checkpoint.size, len(tree), tree.node))
    with pytest.raises(Exception, match="the last head cosigned here") as caught:
        b.witness.add(bytes(AddCheckpoint(first.checkpoint.size, proof, bytes(note))))
    assert caught.value.status == 409


# -- quorum ------------------------------------------------------------------------------------------------------------


def test_without_a_quorum_urgent_purposes_go_on_for_a_time_and_others_are_refused(cluster):
    party = cluster.parties["bank-a"]
    cluster.tick("bank-a")
    party.log.check_standing("screening")
    cluster.cut = [{"bank-a", "bank-b"}, {"bank-a", "bank-c"}]
    cluster.tick("bank-a")
    assert party.log.published_size < party.log.size
    assert set(party.publisher.refusing) == {cluster.parties[n].member.id for n in ("bank-b", "bank-c")}
    cluster.now += 60
    assert party.log.unpublished_for() > 60
    party.log.check_standing("payment")
    for purpose in ("screening", "account-opening", "train"):
        with pytest.raises(Refused, match="no quorum"):
            party.log.check_standing(purpose)
    leaf = party.append()
    cluster.now += 24 * 3_600
    with pytest.raises(Refused, match="longer than configured"):
        party.log.check_standing("payment")
    cluster.cut = []
    cluster.tick("bank-a")
    party.log.check_standing("screening")
    assert leaf in leaves_of(party)  # what was recorded unpublished is published now
    assert party.log.published_size == party.log.size


def test_one_witness_alone_stops_nothing(cluster):
    for name in ("bank-b", "bank-c", "centre", "regulator"):
        cluster.cut = [{"bank-a", name}]
        head = cluster.tick("bank-a")
        assert cluster.parties["bank-a"].log.published_size == head.checkpoint.size


def test_members_admission_and_a_changed_list_are_in_the_log_in_clear(cluster):
    party = cluster.parties["bank-a"]
    cluster.tick("bank-a")
    said = [events.parse_leaf(leaf) for leaf in leaves_of(party)]
    admitted = {leaf.member.member for leaf in said if leaf.WhichOneof("body") == "member"}
    assert admitted == {member.id for member in party.book.current}
    before = len(leaves_of(party))
    cluster.restart("bank-a")
    cluster.tick("bank-a")
    fresh = [events.parse_leaf(leaf) for leaf in leaves_of(cluster.parties["bank-a"])[before:]]
    assert {leaf.WhichOneof("body") for leaf in fresh} == {"commitment"}


# -- what is caught ----------------------------------------------------------------------------------------------------


def test_a_log_that_shows_two_members_different_trees(cluster):
    """It needs other heads for each; the witnesses sign one history only, and heads are compared between members."""
    a, b, c = (cluster.parties[name] for name in ("bank-a", "bank-b", "bank-c"))
    cluster.tick("bank-a")
    cluster.run(b.mirrors.refresh(a.member))
    a.append()
    # The second history is shown to bank-c as a witness, while the first grows for the others.
    cluster.cut = [{"bank-a", "bank-c"}]
    before = leaves_of(a)
    tree, note = fork(a, [*before, *(events.dummy_leaf() for _ in range(2))])
    proof = tuple(merkle.consistency(len(before), len(tree), tree.node))
    c.witness.add(bytes(AddCheckpoint(len(before), proof, bytes(note))))
    cluster.tick("bank-a")
    cluster.cut = []
    cluster.run(b.mirrors.refresh(a.member))
    with pytest.raises(Refused, match="different logs"):
        cluster.run(b.mirrors.compare(a.member))
    (alarm,) = b.pins.alarms()
    assert alarm["what"].startswith("split view")
    (path,) = (cluster.folder / "bank-b" / "evidence").iterdir()
    text = path.read_text()
    assert text.count(f"\n{a.log.origin}\n{len(tree)}\n") == 2  # one size, two roots, both signed
    with pytest.raises(Refused, match="split view"):
        b.pins.check(a.member.id, "fraud")


def test_a_witness_that_signs_two_inconsistent_heads(cluster):
    """bank-c cosigns both histories: the alarm names it."""
    a, b, c = (cluster.parties[name] for name in ("bank-a", "bank-b", "bank-c"))
    cluster.tick("bank-a")
    size = a.log.size
    _, note = fork(a, [events.dummy_leaf() for _ in range(size)])
    line = checkpoints.cosign(note.text, c.witness.name, c.keys.witness, int(cluster.now))
    cluster.run(b.mirrors.refresh(a.member))
    path = f"/witness/{hashlib.sha256(a.log.origin.encode()).hexdigest()}/checkpoint"
    cluster.overrides[("bank-b", "bank-c", path)] = bytes(note.with_signatures([line]))
    with pytest.raises(Refused):
        cluster.run(b.mirrors.compare(a.member))
    alarms = {alarm["holder"]: alarm["what"] for alarm in b.pins.alarms()}
    assert alarms[c.member.id].startswith("two-faced witness")
    assert alarms[a.member.id].startswith("split view")


def test_an_old_head_replayed(cluster):
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]
    cluster.tick("bank-a")
    old = bytes(a.log.published.head.note)
    cluster.tick("bank-a")
    newest = cluster.run(b.mirrors.refresh(a.member)).head.checkpoint
    cluster.overrides[("bank-b", "bank-a", "/checkpoint")] = old
    assert cluster.run(b.mirrors.refresh(a.member)).head.checkpoint == newest
    (alarm,) = b.pins.alarms()
    assert alarm["what"].startswith("rewind")
    # Presented to the witness as new it is refused: it would take cosigned leaves back.
    body = AddCheckpoint(0, (), old)
    with pytest.raises(Exception, match="the last head cosigned here"):
        b.witness.add(bytes(body))


def test_a_head_without_a_quorum_or_of_another_key_is_not_followed(cluster):
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]
    cluster.cut = [{"bank-a", "bank-c"}, {"bank-a", "centre"}]
    cluster.tick("bank-a")
    with pytest.raises(PeerFailed, match="no head"):
        cluster.run(b.mirrors.refresh(a.member))
    cluster.overrides[("bank-b", "bank-a", "/checkpoint")] = bytes(a.log.signed.note)
    with pytest.raises(Refused, match="are needed"):
        cluster.run(b.mirrors.refresh(a.member))
    cluster.cut = []
    cluster.tick("bank-a")
    forged = bytes(a.log.published.head.note).replace(b"\n", b"\n", 1)
    cluster.overrides[("bank-b", "bank-a", "/checkpoint")] = forged.replace(b"bank-a\n", b"bank-c\n", 1)
    with pytest.raises(Refused):
        cluster.run(b.mirrors.refresh(a.member))
    assert b.pins.alarms() == []


def test_entries_that_do_not_lead_to_the_head_are_not_taken(cluster):
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]
    cluster.tick("bank-a")
    size = a.log.size
    path = "/" + tiles.path(tiles.ENTRIES, 0, size)
    honest = a.log.tile(tiles.ENTRIES, 0, size)
    for content in (honest[:-1], b"", tiles.pack([b"x"] * size), honest + b"\x00\x00"):
        cluster.overrides[("bank-b", "bank-a", path)] = content
        with pytest.raises(NodeError):
            cluster.run(b.mirrors.refresh(a.member))
    assert b.mirrors.state(a.member) is None
    assert b.pins.alarms() == []  # rubbish is no contradiction between signed heads
    cluster.overrides.clear()
    assert cluster.run(b.mirrors.refresh(a.member)).head.checkpoint.size == size


def test_a_broken_promise_is_noticed(cluster):
    """bank-a gives its receipt and records nothing: the leaf never comes."""
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]
    cluster.tick("bank-a")
    entry = a.log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ANSWERED, b.member.id, random_id())
    receipt = a.log.receipt(entry)
    committed = events.verify_receipt(receipt, a.member.verifier, a.member.id)
    b.writer.submit(lambda c: b.log.record_promise(c, receipt, committed)).result()
    kept = a.log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ANSWERED, b.member.id, random_id())
    a.writer.submit(lambda c: a.log.record(c, kept)).result()
    good = a.log.receipt(kept)
    b.writer.submit(lambda c: b.log.record_promise(c, good, kept.committed)).result()
    cluster.tick("bank-a")
    cluster.run(b.mirrors.refresh(a.member))
    assert b.pins.alarms() == []  # clocks may differ by five minutes
    assert b.log.promised(kept.committed.event.id)[0][1] is not None
    cluster.now += 400
    cluster.tick("bank-a")
    cluster.run(b.mirrors.refresh(a.member))
    (alarm,) = b.pins.alarms()
    assert (
        alarm["what"] == f"broken promise: its log does not hold the event {entry.committed.event.id.hex()}"
    )
    with pytest.raises(Refused):
        b.pins.check(a.member.id, "any")


def test_stale_heads_and_missed_ticks_are_told(cluster):
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]

    def state():
        return next(row for row in b.mirrors.overview() if row["member"] == "bank-a")["state"]

    assert state() == "unknown"
    cluster.tick("bank-a")
    cluster.run(b.mirrors.refresh(a.member))
    assert state() == "current"
    cluster.now += 100
    assert state() == "stale"
    cluster.tick("bank-a")
    cluster.run(b.mirrors.refresh(a.member))
    assert state() == "missed-tick"


# -- bundles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made_bundle(cluster):
    a = cluster.parties["bank-a"]
    salt = b"\x07" * 32
    commitment = bundle.case_commitment(salt, "C-1")
    entry = a.log.prepare(
        ledger_pb2.EVENT_TYPE_QUERY_ASKED,
        cluster.parties["bank-b"].member.id,
        random_id(),
        case_commitment=commitment,
        resource="fraud",
        epoch=1,
        count=4,
        purpose=common_pb2.PURPOSE_PAYMENT,
        basis=common_pb2.LEGAL_BASIS_POLICE_REQUEST,
    )
    a.writer.submit(lambda c: a.log.record(c, entry)).result()
    cluster.tick("bank-a")
    (recorded,) = a.log.find(case=commitment)
    found = Evidences((Evidence(recorded.committed.opening, a.log.prove(recorded.position)),))
    data = bundle.make(a.log.owner, a.keys, a.book.current, cluster.template.ca, Case("C-1", (salt,)), found)
    return cluster, data


def test_a_bundle_verifies_and_says_what_it_proves(made_bundle):
    cluster, data = made_bundle
    found = bundle.verify(data, cluster.template.ca)
    (entry,) = found.entries
    assert (found.ca_trusted, found.case, entry.in_case, entry.quorum) == (True, "C-1", True, 3)
    english, chinese = bundle.describe(entry)
    assert "asked bank-b" in english
    assert "提问" in chinese
    assert not bundle.verify(data).ca_trusted


def test_every_byte_of_a_bundle_counts(made_bundle):
    cluster, data = made_bundle
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(BundleError):
            bundle.verify(bytes(changed), cluster.template.ca)
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(BundleError):
            bundle.verify(data[:cut], cluster.template.ca)
    with pytest.raises(BundleError):
        bundle.verify(data + b"\n", cluster.template.ca)


@given(st.binary(max_size=200))
def test_rubbish_bundles(data):
    with pytest.raises(BundleError):
        bundle.verify(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["ca", "members", "maker", "made_at", "case", "entries", "network", "signature"]),
    value=_JSON,
)
def test_fields_of_any_kind_in_a_bundle(made_bundle, field, value):
    """Signed by its maker or not: a documented error, or what is proven all the same."""
    cluster, data = made_bundle
    keys = cluster.parties["bank-a"].keys
    document = json.loads(data)
    document[field] = value
    if field != "signature":
        part = bundle._signed_part(document)
        document["signature"] = base64.b64encode(keys.signing.sign(part)).decode()
    try:
        bundle.verify(bundle._serialise(document), cluster.template.ca)
    except BundleError:
        return
    assert field in ("made_at", "case", "entries")


def test_a_liars_bundle_is_refused_though_it_signs_it(made_bundle):
    """The maker signs the file, so only what logs and witnesses signed may count."""
    cluster, data = made_bundle
    a, b = cluster.parties["bank-a"], cluster.parties["bank-b"]

    def resign(change):
        document = json.loads(data)
        change(document)
        document["signature"] = base64.b64encode(a.keys.signing.sign(bundle._signed_part(document))).decode()
        return bundle._serialise(document)

    def other_event(document):
        event = ledger_pb2.Event.FromString(base64.b64decode(document["entries"][0]["event"]))
        event.count = 1
        document["entries"][0]["event"] = base64.b64encode(
            event.SerializeToString(deterministic=True)
        ).decode()

    def other_log(document):
        event = ledger_pb2.Event.FromString(base64.b64decode(document["entries"][0]["event"]))
        event.log = b.member.id
        document["entries"][0]["event"] = base64.b64encode(
            event.SerializeToString(deterministic=True)
        ).decode()

    def other_index(document):
        lines = document["entries"][0]["proof"]
        lines[1] = f"index {int(lines[1].split()[1]) ^ 1}"

    def fewer_witnesses(document):
        del document["entries"][0]["proof"][-2:]

    def other_head(document):
        lines = document["entries"][0]["proof"]
        start = lines.index("") + 1
        _, note = fork(a, [events.dummy_leaf()] * 4)
        lines[start:] = bytes(note).decode().splitlines()

    assert bundle.verify(resign(lambda document: None), cluster.template.ca)
    for change in (other_event, other_log, other_index, fewer_witnesses, other_head):
        with pytest.raises(BundleError, match="entry 1"):
            bundle.verify(resign(change), cluster.template.ca)

    def other_case(document):
        document["case"]["number"] = "C-2"

    (entry,) = bundle.verify(resign(other_case), cluster.template.ca).entries
    assert not entry.in_case
