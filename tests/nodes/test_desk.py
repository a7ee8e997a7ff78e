"""The desk without processes: which jobs are let in, and which cohorts over the same rows."""

import json
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import JobError
from federation.job import JobDescriptor, make
from federation.version import code_hash
from nodes import policy
from nodes.cli.network import Place, create_node
from nodes.config import Home
from nodes.errors import ConfigError, Refused
from nodes.gate import Gate
from nodes.identity import authority
from nodes.identity.keys import NodeKeys
from nodes.identity.members import MemberBook
from nodes.identity.names import MemberName, Role
from nodes.learning.desk import Desk, _overlap, bundle_hash
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from tests.nodes.conftest import make_log, publish

NETWORK = "test.example"
BANKS = [str(MemberName(NETWORK, Role.BANK, f"bank-{c}")) for c in "abcd"]
COORDINATOR = str(MemberName(NETWORK, Role.COORDINATOR, "coordinator"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    ca = authority.Authority.create(folder / "ca", NETWORK)
    names = [MemberName.parse(each) for each in (*BANKS, COORDINATOR)]
    for name in names:
        learn = "" if name.role is Role.COORDINATOR else 'coordinator = "coordinator"\n'
        create_node(folder / name.name, name, Place("127.0.0.1:1"), learn)
        request = authority.read_request((folder / name.name / "request.json").read_text())
        bundle = ca.sign(request)
        authority.install(
            bundle, NodeKeys.load(folder / name.name / "keys"), name, folder / name.name / "certs"
        )
    for name in names:
        (folder / name.name / "certs" / "members.bin").write_bytes(ca.members.signed)
    (folder / "bank-a" / "rows.csv").write_text(
        "a,b,y\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(50))
    )
    config = folder / "bank-a" / "node.toml"
    config.write_text(config.read_text() + '[learn.datasets.credit]\npath = "rows.csv"\n')
    return folder


@pytest.fixture
def desk(network, tmp_path):
    home = Home(network / "bank-a")
    ca = x509.load_pem_x509_certificate((home.certs / "ca.crt").read_bytes())
    database = db.connect(tmp_path / "node.db", "node")
    rules = tmp_path / "policy.toml"
    rules.write_text(policy.TEMPLATE)
    file = policy.PolicyFile(rules)
    writer = GroupWriter(database)
    log = make_log(database, NodeKeys.load(home.keys), home.name, tmp_path)
    publish(log, writer)
    book = MemberBook(home.certs / "members.bin", ca)
    made = Desk(database, Gate(database, writer, file, log), file, book, home, log)
    made.policy_path = rules
    yield made
    writer.close()


def job(**changes) -> JobDescriptor:
    values = {
        "name": "credit",
        "kind": "train",
        "network": NETWORK,
        "coordinator": COORDINATOR,
        "parties": BANKS,
        "dataset": "credit",
        "code": code_hash(),
        "bundle": bundle_hash(),
        "features": ["a", "b"],
        "label": "y",
        "model": "trees",
    }
    return make(**{**values, **changes})


def stats(since: str, until: str) -> JobDescriptor:
    return job(
        kind="stats", features=[], label="", model="", categories=["gambling"], since=since, until=until
    )


def test_a_job_is_let_in_by_its_hash_and_its_bundle(desk):
    descriptor = job()
    with pytest.raises(Refused, match="has not approved"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    desk.approve(descriptor.to_bytes())
    seat, earlier = desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    assert seat == descriptor
    assert earlier == []
    with pytest.raises(Refused, match="under way here already"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    desk.report(descriptor.hash(), "done", "", 3)
    with pytest.raises(Refused, match=r"the bundle 0{12}, which this job does not name"):
        desk.take_seat(descriptor.hash(), bytes(32))
    desk.revoke(descriptor.hash())
    with pytest.raises(Refused, match="has not approved"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "1" * 64}, "learning code 111111111111"),
        ({"bundle": "1" * 64}, "bundle 111111111111"),
        ({"parties": BANKS[1:]}, "is no party of this job"),
        ({"network": "other.example"}, "of the network other.example"),
        ({"coordinator": BANKS[0], "parties": BANKS[1:]}, "is no party|code|coordinates"),
        ({"features": ["a", "c"]}, "no column c"),
        ({"dataset": "other"}, r"learn\.datasets\.other is not configured"),
        ({"evaluate": "test"}, "has no test rows here"),
    ],
)
def test_a_job_that_does_not_fit_changes_nothing(desk, changes, message):
    before = desk.policy_path.read_text()
    if "coordinator" in changes:
        assert desk.approve(job(**changes).to_bytes())  # this node would coordinate it
        return
    with pytest.raises(Exception, match=message):
        desk.approve(job(**changes).to_bytes())
    assert desk.policy_path.read_text() == before
    assert desk.jobs() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parties": BANKS[:2]}, "parties"),
        ({"parties": BANKS[::-1]}, "not ascending"),
        ({"minimum": 2}, "minimum"),
        ({"minimum": 5}, "fewer than 5 parties contribute"),
        ({"coordinator": BANKS[0]}, "the coordinator is no party"),
        ({"features": ["a", "a"]}, "each once"),
        ({"features": ["a", "y"]}, "the label is among the features"),
        ({"features": ["[/red]"]}, "features"),
        ({"features": ["a\x1b[2J"]}, "features"),
        ({"model": "forest"}, "forest"),
        ({"settings": {"positive_weight": float("nan")}}, "positive_weight"),
        ({"observers": BANKS[:1]}, "no observers"),
        ({"kind": "stats", "categories": []}, "categories"),
        ({"kind": "stats", "categories": ["a"], "since": "2026-02-30"}, "day"),
        ({"kind": "stats", "categories": ["a"], "since": "2026-03-02", "until": "2026-03-01"}, "after until"),
    ],
)
def test_a_job_that_does_not_hold_together_cannot_be_made(changes, message):
    with pytest.raises(JobError, match=message):
        job(**changes)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 200_000, b'"\\ud800"', b"x" * 600_000])
def test_a_file_that_is_no_job_is_refused(data):
    with pytest.raises(JobError):
        JobDescriptor.read(data)
    loose = json.dumps(json.loads(job().to_bytes()), indent=1).encode()
    with pytest.raises(JobError, match="canonical"):
        JobDescriptor.read(loose)


def test_cohorts_over_the_same_rows_differ_by_nobody_or_by_many(desk):
    first, second = job(), job(seed=1)
    for each in (first, second):
        desk.approve(each.to_bytes())
    desk.record_cohort(first.hash(), BANKS)
    desk.record_cohort(second.hash(), BANKS)
    with pytest.raises(Refused, match="differs from an earlier cohort"):
        desk.record_cohort(second.hash(), BANKS[:3])
    assert desk.take_seat(second.hash(), bytes.fromhex(bundle_hash()))[1] == [frozenset(BANKS)]


def test_of_two_jobs_side_by_side_only_one_cohort_gets_through(desk):
    descriptors = [job(seed=seed) for seed in (1, 2)]
    for each in descriptors:
        desk.approve(each.to_bytes())
        desk.take_seat(each.hash(), bytes.fromhex(bundle_hash()))
    outcomes = []

    def commit(descriptor, members):
        try:
            desk.record_cohort(descriptor.hash(), members)
            outcomes.append("recorded")
        except Refused:
            outcomes.append("refused")

    threads = [
        threading.Thread(target=commit, args=pair)
        for pair in zip(descriptors, (BANKS, BANKS[:3]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["recorded", "refused"]


def test_statistics_over_times_that_overlap_are_over_the_same_rows(desk):
    june, longer, july = (
        stats("2026-06-01", "2026-06-30"),
        stats("2026-06-01", "2026-07-01"),
        stats("2026-07-02", ""),
    )
    for each in (june, longer, july):
        desk.approve(each.to_bytes())
    desk.record_cohort(june.hash(), BANKS)
    with pytest.raises(Refused, match="differs"):
        desk.record_cohort(longer.hash(), BANKS[:3])
    desk.record_cohort(july.hash(), BANKS[:3])
    assert _overlap("stats::", "stats:2026-01-01:2026-01-02")
    assert not _overlap("stats:2026-01-01:2026-01-02", "stats:2026-01-03:")
    assert not _overlap("credit", "stats::")


def test_the_policy_takes_many_approvals_at_once_and_never_breaks(desk):
    descriptors = [job(seed=seed) for seed in range(12)]
    threads = [threading.Thread(target=desk.approve, args=(each.to_bytes(),)) for each in descriptors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = policy.load(desk.policy_path)
    assert {each.hash for each in loaded.jobs} == {each.hash().hex() for each in descriptors}
    assert loaded.allow == policy.Policy(**__import__("tomllib").loads(policy.TEMPLATE)).allow
    desk.policy_path.write_text("jobs = []\n" + policy.TEMPLATE)
    with pytest.raises(ConfigError, match="edit it by hand"):
        desk.approve(job(seed=99).to_bytes())
    policy.load(desk.policy_path)


def test_flower_keys_are_checked_before_they_are_kept(desk):
    member = next(each for each in desk._book.current if each.id == BANKS[1])
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH)
    assert desk.enrol(member, text) is False
    assert desk.supernodes([member.id]) == {member.id: text}
    assert desk.enrol(member, text) is True
    small = ec.generate_private_key(ec.SECP256R1()).public_key()
    for bad in (
        b"",
        b"ecdsa-sha2-nistp384 garbage",
        small.public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH),
    ):
        with pytest.raises(Refused, match="flower_key"):
            desk.enrol(member, bad)
    coordinator = next(each for each in desk._book.current if each.id == COORDINATOR)
    with pytest.raises(Refused, match="does not learn"):
        desk.enrol(coordinator, text)


def test_what_was_running_when_the_learning_process_ended_has_failed(desk):
    descriptor = job()
    desk.approve(descriptor.to_bytes())
    desk.report(descriptor.hash(), "running", "tree 1", 7)
    desk.interrupted()
    (found,) = desk.jobs()
    assert (found["state"], found["sums"]) == ("failed", 7)
