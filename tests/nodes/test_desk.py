"""The desk without processes: which jobs are let in, and which cohorts over the same rows."""

import json
import threading
import time

import pyarrow as pa
import pyarrow.parquet
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from lianfang.v1 import contract_pb2

from federation import data
from federation.errors import JobError
from federation.job import JobDescriptor, make
from federation.version import code_hash
from nodes import policy
from nodes.cli.network import Place, create_node
from nodes.config import Home
from nodes.contracts import draft as drafts
from nodes.contracts import service
from nodes.contracts.book import JOB, ContractBook
from nodes.contracts.rules import Rules
from nodes.errors import Refused
from nodes.gate import Gate
from nodes.identity import authority
from nodes.identity.keys import NodeKeys, Vault
from nodes.identity.members import MemberBook
from nodes.identity.names import MemberName, Role
from nodes.learning.desk import Desk, _overlap, bundle_hash
from nodes.learning.releases import Releases
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from protocols import contract
from tests.nodes.conftest import everybody_signs, make_log, publish

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
        "a,b,y\n" + "".join(f"{i * 3 % 50},{i % 7},{i % 2}\n" for i in range(50))
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
    writer = GroupWriter(database)
    keys = NodeKeys.load(home.keys)
    log = make_log(database, keys, home.name, tmp_path)
    publish(log, writer)
    book = MemberBook(home.certs / "members.bin", ca)
    contracts = ContractBook(database, log, keys, book, home.name)
    gate = Gate(database, writer, Rules(contracts, policy.PolicyFile(rules), str(home.name)), log)
    made = Desk(database, gate, contracts, book, home, log, Releases(tmp_path / "releases", keys.vault))
    contracts.check_before_signing(JOB, made.check_terms)
    made.contracts = contracts
    made.keys = {each.id: NodeKeys.load(network / each.name.name / "keys") for each in book.current}
    yield made
    writer.close()


def propose(desk, descriptor):
    """At this node; nobody else has signed yet."""
    return desk.contracts.propose(drafts.over_job(descriptor.to_bytes(), 30, 365, time.time()))


def approve(desk, descriptor):
    """By everybody."""
    return everybody_signs(desk.contracts, propose(desk, descriptor), desk.keys)


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
    with pytest.raises(Refused, match="no contract over the job .* none was proposed here"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    held = propose(desk, descriptor)
    with pytest.raises(Refused, match="waits for bank-b, bank-c, bank-d, coordinator"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    everybody_signs(desk.contracts, held, desk.keys)
    seat, earlier = desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    assert seat == descriptor
    assert earlier == []
    with pytest.raises(Refused, match="under way here already"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    desk.report(descriptor.hash(), "done", "", 3)
    with pytest.raises(Refused, match=r"the bundle 0{12}, which this job does not name"):
        desk.take_seat(descriptor.hash(), bytes(32))
    assert desk.report(descriptor.hash(), "running", "tree 1", 7) == ""
    desk.contracts.decide(held.hash.hex(), contract.REVOKE)
    assert "was revoked by bank-a" in desk.report(descriptor.hash(), "running", "tree 2", 9)
    with pytest.raises(Refused, match="was revoked by bank-a"):
        desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "1" * 64}, "learning code 111111111111"),
        ({"bundle": "1" * 64}, "bundle 111111111111"),
        ({"parties": BANKS[1:]}, "is no party of the contract"),
        ({"network": "other.example"}, "of the network other.example"),
        ({"coordinator": BANKS[0], "parties": BANKS[1:]}, "is no party|code|coordinates"),
        ({"features": ["a", "c"]}, "no column c"),
        ({"dataset": "other"}, r"learn\.datasets\.other is not configured"),
        ({"evaluate": "test"}, "has no test rows here"),
    ],
)
def test_a_job_that_does_not_fit_changes_nothing(desk, changes, message):
    if "coordinator" in changes:
        assert propose(desk, job(**changes))  # this node would coordinate it
        return
    with pytest.raises(Exception, match=message):
        propose(desk, job(**changes))
    assert desk.contracts.all() == desk.jobs() == []


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


def rows(desk, descriptor) -> dict[str, bytes]:
    """What a learning process finds in the files now."""
    return {part: each.id for part, each in desk._rows(descriptor).items()}


def commit(desk, descriptor, members) -> None:
    desk.record_cohort(descriptor.hash(), members, rows(desk, descriptor))


def test_rows_are_in_the_sums_of_one_cohort_only(desk):
    first, second = job(), job(seed=1)
    for each in (first, second):
        approve(desk, each)
    commit(desk, first, BANKS)
    commit(desk, second, BANKS)
    with pytest.raises(Refused, match="differs from an earlier cohort"):
        commit(desk, second, BANKS[:3])
    others = [f"spiffe://{NETWORK}/bank/bank-{c}" for c in "xyz"]
    with pytest.raises(Refused, match="some members could compute"):  # however many differ
        commit(desk, second, [BANKS[0], *others])
    assert desk.take_seat(second.hash(), bytes.fromhex(bundle_hash()))[1] == [frozenset(BANKS)]


@pytest.fixture
def files(network, desk):
    """bank-a's files, put back afterwards."""
    config, table = network / "bank-a" / "node.toml", network / "bank-a" / "rows.csv"
    before = config.read_text(), table.read_text()
    yield network / "bank-a"
    config.write_text(before[0])
    table.write_text(before[1])


def test_a_file_that_changed_since_the_approval_is_not_summed(desk, files):
    first = job()
    approve(desk, first)
    table = files / "rows.csv"
    table.write_text(table.read_text() + "1,2,1\n")
    with pytest.raises(Refused, match="not those that the contract was approved with"):
        commit(desk, first, BANKS)


def test_another_version_of_rows_that_were_summed_needs_everybodys_word(desk, files):
    first = job()
    approve(desk, first)
    commit(desk, first, BANKS)
    table = files / "rows.csv"
    before = table.read_text().splitlines()
    for changed in (
        [*before, "1,2,1"],  # one row more
        before[:-1],  # one row less
        [*before, before[7]],  # one that is there already
        [*before[:9], "9,9,0", *before[10:]],  # another value in one row
    ):
        table.write_text("\n".join(changed) + "\n")
        with pytest.raises(Refused, match="summed before in another version.*--accept-exposure"):
            propose(desk, job(name="again"))
        accepted = approve(desk, job(name="again", exposure="accepted"))
        said = service._terms(accepted.terms)["exposure"]
        assert "the rows of any of bank-a, bank-b, bank-c, bank-d could be exposed" in said
        assert "coordinator" in said
    commit(desk, job(name="again", exposure="accepted"), BANKS[:3])


def test_rows_are_known_by_their_content_and_not_by_a_name(desk, files):
    first = job()
    approve(desk, first)
    commit(desk, first, BANKS)
    header, *lines = (files / "rows.csv").read_text().splitlines()
    shuffled = [
        header.replace("a,b,y", "y,b,a"),
        *(",".join(reversed(line.split(","))) for line in reversed(lines)),
    ]
    (files / "copy.csv").write_text("\n".join(shuffled) + "\n")
    columns = list(zip(*(map(int, line.split(",")) for line in lines), strict=True))
    pyarrow.parquet.write_table(pa.table(dict(zip("aby", columns, strict=True))), files / "copy.parquet")
    (files / "other.csv").write_text(
        header + "\n" + "".join(f"{i + 100},{i * 3 % 11},{i % 2}\n" for i in range(20))
    )
    config = (files / "node.toml").read_text()
    for name in ("copy.csv", "copy.parquet", "other.csv"):
        config += f'[learn.datasets.{name.replace(".", "-")}]\npath = "{name}"\n'
    (files / "node.toml").write_text(config)
    for name in ("copy-csv", "copy-parquet"):
        same = job(dataset=name)
        approve(desk, same)
        with pytest.raises(Refused, match="differs from an earlier cohort"):
            commit(desk, same, BANKS[:3])
        commit(desk, same, BANKS)
    other = job(dataset="other-csv")
    approve(desk, other)
    commit(desk, other, BANKS[:3])  # no row in common: nothing to subtract
    # The same name for rows that are others altogether is no overlap either.
    (files / "rows.csv").write_text(
        header + "\n" + "".join(f"{i + 900},{i * 3 % 11},{i % 2}\n" for i in range(20))
    )
    fresh = job(name="fresh")
    approve(desk, fresh)
    commit(desk, fresh, BANKS[1:])


def test_what_is_kept_of_rows_tells_nobody_without_the_key(desk, files, tmp_path):
    approve(desk, job())
    (kept,) = (tmp_path / "releases").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    table = data.read_table(files / "rows.csv")
    assert Releases(tmp_path / "other", Vault(b"x" * 32)).of_table(table).id != bytes.fromhex(kept.stem)


def test_of_two_jobs_side_by_side_only_one_cohort_gets_through(desk):
    descriptors = [job(seed=seed) for seed in (1, 2)]
    for each in descriptors:
        approve(desk, each)
        desk.take_seat(each.hash(), bytes.fromhex(bundle_hash()))
    outcomes = []

    def record(descriptor, members):
        try:
            commit(desk, descriptor, members)
            outcomes.append("recorded")
        except Refused:
            outcomes.append("refused")

    threads = [
        threading.Thread(target=record, args=pair)
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
        approve(desk, each)
    counts = {"gambling": 5, "phishing": 2}
    desk.counted(june.hash(), counts)
    desk.record_cohort(june.hash(), BANKS, {})
    desk.counted(june.hash(), counts)  # the same again shows nothing new
    desk.record_cohort(june.hash(), BANKS, {})
    with pytest.raises(Refused, match="differs"):
        desk.record_cohort(june.hash(), BANKS[:3], {})
    with pytest.raises(Refused, match="in another version"):  # a day longer: the difference is that day
        desk.counted(longer.hash(), counts)
    with pytest.raises(Refused, match="in another version"):  # one entry came in meanwhile
        desk.counted(june.hash(), counts | {"gambling": 6})
    desk.counted(july.hash(), counts)
    desk.record_cohort(july.hash(), BANKS[:3], {})
    assert _overlap("stats::", "stats:2026-01-01:2026-01-02")
    assert not _overlap("stats:2026-01-01:2026-01-02", "stats:2026-01-03:")
    assert not _overlap("credit", "stats::")


def test_a_contract_that_is_not_its_jobs_is_not_signed(desk):
    whole = drafts.over_job(job().to_bytes(), 30, 365, time.time())
    for field, value, message in (
        ("schema_hash", bytes(32), "schema hash"),
        ("descriptor", json.dumps(json.loads(job().to_bytes())).encode(), "canonical|encoding"),
    ):
        draft = contract_pb2.Contract()
        draft.CopyFrom(whole)
        setattr(draft.job, field, value)
        with pytest.raises(Refused, match=message):
            desk.contracts.propose(draft)
    del whole.parties[-1]
    with pytest.raises(Refused, match="parties are not the job's"):
        desk.contracts.propose(whole)
    assert desk.jobs() == []


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
    approve(desk, descriptor)
    desk.take_seat(descriptor.hash(), bytes.fromhex(bundle_hash()))
    desk.report(descriptor.hash(), "running", "tree 1", 7)
    desk.interrupted()
    (found,) = desk.jobs()
    assert (found["state"], found["sums"]) == ("failed", 7)
