"""Two institutions' columns, deployed: alignment, a job through Flower, both parts of the model, and joint scores."""

import csv
import functools
import hashlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from lianfang.v1 import vertical_pb2 as pb
from lianfang.v1 import vertical_pb2_grpc

from federation import steps
from federation.data import Block
from federation.models.base import sigmoid
from federation.models.growing import TreeSettings
from federation.models.trees import Grower
from federation.vertical import registry
from nodes.contracts import draft as drafts
from nodes.demo.network import Network
from nodes.services import wire
from tests.system.conftest import Wire, phones
from tests.system.jobs import configure, launch, wait_for, wait_for_state

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder does not exist")
COMMON, EXTRA = 900, 60
OWN, THEIRS = [f"g{i}" for i in range(13)], [f"h{i}" for i in range(10)]
WALLETS = [f"w{i}" for i in range(4)]
NO_WALLET = 100  # of the common customers
ALIGN = """
title = "{title}"
days = 30
[psi]
variant = "alignment"
kind = "phone"
sessions_a_day = 20
output_to = ["bank-a", "{partner}"]
minimum_cardinality = 100
[[psi.input]]
party = "bank-a"
dataset = "customers"
column = "mobile"
max_elements = 5000
[[psi.input]]
party = "{partner}"
dataset = "{dataset}"
column = "手机号"
max_elements = 5000
"""


@functools.cache
def tables():
    """Both sides' rows by customer number: label and columns of one, columns of the other."""
    guest = np.genfromtxt(SHARED / "default_credit_hetero_guest.csv", delimiter=",", names=True)
    host = np.genfromtxt(SHARED / "default_credit_hetero_host.csv", delimiter=",", names=True)
    guest, host = np.sort(guest, order="id"), np.sort(host, order="id")
    return guest, host


def wallet(host, i):
    """bank-c's columns about a customer."""
    return [f"{float(host[f'x{k}'][i]) - float(host[f'x{k + 5}'][i]):.9g}" for k in range(4)]


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture(scope="module")
def pair():
    """bank-a has the label of 960 customers, bank-b columns about 900 of them and 60 others, in another order.

    bank-c has columns about 800 of those 900.
    """
    made = Network(Path(tempfile.mkdtemp(prefix="lf-vert-")), learning=True)
    try:
        made.start()
        guest, host = tables()
        mobile = phones(0, COMMON + 2 * EXTRA)
        mine = [
            [mobile[i], int(guest["y"][i]), *(f"{guest[f'x{k}'][i]:.9g}" for k in range(13))]
            for i in range(COMMON + EXTRA)
        ]
        theirs = [
            [f"+86 {mobile[i]}", *("" if (i + k) % 17 == 0 else f"{host[f'x{k}'][i]:.9g}" for k in range(10))]
            for i in [*range(COMMON), *range(COMMON + EXTRA, COMMON + 2 * EXTRA)]
        ]
        np.random.default_rng(1).shuffle(theirs)
        write(made.folder / "customers.csv", ["mobile", "y", *OWN], mine)
        write(made.folder / "subscribers.csv", ["手机号", *THEIRS], theirs)
        payers = [[mobile[i], *wallet(host, i)] for i in range(NO_WALLET, COMMON)]
        write(made.folder / "payers.csv", ["手机号", *WALLETS], payers[::-1])
        for bank, name in (("bank-a", "customers"), ("bank-b", "subscribers"), ("bank-c", "payers")):
            section = f'[learn.datasets.{name}]\npath = "{made.folder / name}.csv"\n'
            configure(made, bank, f"entry_seconds = 60\n{section}")
            assert made.stop_member(bank) == 0
            made.start_member(made.member(bank))
        made.stop_member("coordinator")
        configure(made, "coordinator", "entry_seconds = 180\n")
        made.start_member(made.member("coordinator"))
        for member in ("bank-a", "bank-b", "bank-c", "coordinator"):
            made.wait(member)
        made.start_learning("coordinator", "bank-a", "bank-b", "bank-c")
        for member in ("bank-a", "bank-b", "bank-c"):
            wait_for(made, "coordinator-learn", f"registered the SuperNode of .*{member}")
            wait_for(made, f"{member}-learn", "SuperNode ID")
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def align(network, partner, dataset, expected):
    """The session, and its ids by phone number."""
    path = network.folder / f"align-{partner}.toml"
    path.write_text(ALIGN.format(title=f"alignment with {partner}", partner=partner, dataset=dataset))
    name = network.agree(drafts.load(path), "bank-a")
    target = network.folder / f"aligned-{partner}.csv"
    outcome = network.json("bank-a", "align", name[:12], "--output", str(target))
    assert outcome["common"] == expected
    with target.open(encoding="utf-8-sig", newline="") as file:
        return outcome["session"], {row["value"]: row["id"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def aligned(pair):
    return align(pair, "bank-b", "subscribers", COMMON)


def new_job(network, session, name, *options, approve=True):
    path = network.folder / f"{name}.json"
    network.run(
        "bank-a",
        *("vertical", "new", "--name", name, "--alignment", session[:12], "--label", "y"),
        *("--out", str(path), *options),
    )
    contract = ""
    if approve:
        contract = network.agree(drafts.over_job(path.read_bytes(), 30, 365, time.time()), "bank-a")
    return path, contract


def part(network, bank, name):
    (folder,) = (
        each
        for each in network.node(bank).glob(f"data/models/{name}-*")
        if not each.name.endswith("-partial")
    )
    card = json.loads((folder / "card.json").read_text())
    return registry.read((folder / "part.json").read_bytes()), card


def joined(ids):
    """Rows as both sides have them, in the order of the ids: (phones, label, own columns, theirs)."""
    order = sorted(ids, key=lambda phone: bytes.fromhex(ids[phone]))
    places = [int(phone) - int(phones(0, 1)[0]) for phone in order]
    guest, host = tables()
    x = np.array([[np.float32(guest[f"x{k}"][i]) for k in range(13)] for i in places])
    other = np.array(
        [[np.nan if (i + k) % 17 == 0 else np.float32(host[f"x{k}"][i]) for k in range(10)] for i in places],
        dtype=np.float32,
    )
    return order, guest["y"][places].astype(np.uint8), x, other


TREES = (
    "--set",
    "trees=3",
    "--set",
    "depth=3",
    "--set",
    "bins=16",
    "--set",
    "learning_rate=0.3",
    "--seed",
    "5",
)


def test_trees_are_those_of_the_joined_columns_and_scores_too(pair, aligned, tmp_path):
    session, ids = aligned
    path, _ = new_job(pair, session, "both", *TREES, "--no-test")
    outcome = launch(pair, path)
    assert outcome["state"] == "done"
    (mine, card), (theirs, other_card) = part(pair, "bank-a", "both"), part(pair, "bank-b", "both")
    assert card["model"]["of"] == other_card["model"]["of"] == mine.hash()
    assert card["data"] == {"rows": COMMON, "positives": card["data"]["positives"], "test_rows": 0}
    assert other_card["data"]["positives"] == 0  # it does not know
    order, y, x, other = joined(ids)
    chosen = TreeSettings(trees=3, depth=3, bins=16, learning_rate=0.3, min_child_weight=1.0)
    block = Block("spiffe://lianfang.example/bank/bank-a", np.concatenate([x, other], axis=1), y)
    grower = Grower(chosen, [*OWN, *THEIRS], 5, 1, first=range(13))
    (pooled,) = steps.one_by_one([grower.learn([block])])
    assert len(theirs.records) > 0
    expected = sigmoid(pooled.margin(block.x))
    # One at a time, and all together.
    for phone in (order[0], order[-1]):
        (row,) = pair.json("bank-a", "vertical", "score", "both", "--value", f"+86{phone}")
        assert row["score"] == expected[order.index(phone)]
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("\n".join([*order, phones(COMMON, 1)[0], "no number"]))
    target = tmp_path / "scores.csv"
    rows = pair.json("bank-a", "vertical", "score", "both", str(numbers), "--output", str(target))
    assert [row["score"] for row in rows[:-2]] == expected.tolist()
    assert [row["trouble"] for row in rows[-2:]][0] == "not aligned"
    assert rows[-1]["score"] is None
    assert target.stat().st_mode & 0o777 == 0o600
    # Neither side's file names the other's features; both ledgers have the model and its trees.
    assert not set(THEIRS) & set(json.dumps(mine.to_document()))
    for bank in ("bank-a", "bank-b"):
        events = pair.json(bank, "ledger", "events", "--since", "1h")["events"]
        assert any(row["type"] == "job-ended" and row["digest"] == mine.hash() for row in events)
        assert {row["reason"] for row in events} >= {"tree 2", "scored"}


def test_who_has_left_a_dataset_gets_no_score(pair, aligned):
    """After `both`: of bank-b's file one customer is gone, of bank-a's another one."""
    order = sorted(aligned[1], key=lambda phone: bytes.fromhex(aligned[1][phone]))
    paths = {name: pair.folder / f"{name}.csv" for name in ("customers", "subscribers")}
    before = {name: path.read_text("utf-8") for name, path in paths.items()}
    try:
        for phone, path in zip(order, paths.values(), strict=False):
            kept = [line for line in path.read_text("utf-8").splitlines() if phone not in line]
            path.write_text("\n".join(kept) + "\n", "utf-8")
        rows = pair.json("bank-a", "vertical", "score", "both", *(f"--value={each}" for each in order[:3]))
        assert [row["trouble"] for row in rows] == [
            "not in the dataset any more",
            "bank-b has no row of this customer any more",
            "",
        ]
    finally:
        for name, path in paths.items():
            path.write_text(before[name], "utf-8")


def test_a_part_of_another_run_is_not_scored_with(pair, aligned):
    """The two halves know each other by the label holder's hash."""
    folder = next(pair.node("bank-b").glob("data/models/both-*"))
    before = (folder / "card.json").read_text()
    phone = next(iter(aligned[1]))
    try:
        card = json.loads(before)
        card["model"]["of"] = "0" * 64
        (folder / "card.json").write_text(json.dumps(card))
        done = pair.run("bank-a", "vertical", "score", "both", "--value", phone, check=False)
        assert "both has left another model here" in " ".join(done.stderr.split())
    finally:
        (folder / "card.json").write_text(before)


def test_jobs_that_do_not_fit_are_refused_saying_why(pair, aligned):
    session, _ = aligned
    path, _ = new_job(pair, session, "misfit", *TREES, approve=False)
    document = json.loads(path.read_text())
    contract = document["alignments"][0].partition(":")[0]
    wrong = pair.folder / "wrong.json"
    for change, said in (
        ({"alignments": [f"{contract}:{secrets.token_hex(16)}"]}, "was not held here"),
        ({"label": "income"}, "no column income"),
        ({"label": "g0"}, "a label is 0 or 1"),
        ({"settings": {"rows": 0.5}}, "no setting rows"),
        ({"alignments": []}, "one alignment a partner"),
    ):
        wrong.write_text(
            json.dumps({**document, **change}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        )
        done = pair.run("bank-a", "contract", "propose", str(wrong), check=False)
        text = " ".join(done.stderr.split())
        assert (done.returncode, said in text) == (1, True), text
    done = pair.run(
        "bank-a",
        "vertical",
        "new",
        "--name",
        "x",
        "--alignment",
        "ffff",
        "--label",
        "y",
        "--out",
        str(wrong),
        check=False,
    )
    assert "names 0 alignments" in " ".join(done.stderr.split())


class Stranger:
    """A member's keys in other hands."""

    def __init__(self, network, who) -> None:
        self.wire = Wire(network, who)
        self.stub = vertical_pb2_grpc.VerticalStub(self.wire.channel("bank-b"))

    def work(self, job, *frames):
        enter = pb.VerticalFrame(enter=pb.VerticalEnter(job=job))
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self.stub.Work(iter([enter, *frames]), timeout=60):
                pass
        return wire.reason_of(caught.value)

    def score(self, job, ids):
        with pytest.raises(grpc.RpcError) as caught:
            self.stub.Score(pb.VerticalScoreRequest(job=job, ids=ids), timeout=60)
        return wire.reason_of(caught.value)


def test_who_is_not_the_label_holder_and_what_was_not_aligned(pair, aligned):
    path, contract = new_job(pair, aligned[0], "guarded", *TREES)
    job = bytes.fromhex(
        next(each["job"] for each in pair.json("bank-a", "job", "list") if each["name"] == "guarded")
    )
    good, *others = (bytes.fromhex(each) for each in aligned[1].values())
    stranger, holder = Stranger(pair, "bank-c"), Stranger(pair, "bank-a")
    assert stranger.work(job) == "NOT_A_PARTY"
    assert stranger.score(job, good) == "NOT_A_PARTY"
    assert holder.work(bytes(32)) == holder.score(bytes(32), good) == "CONTRACT"
    assert holder.score(b"", good) == "INVALID"
    assert holder.score(job, good) == "NO_MODEL"
    assert holder.score(job, b"") == "INVALID"
    assert holder.score(job, b"short") == "INVALID"
    assert launch(pair, path)["state"] == "done"
    # A fifth of each class was held out, and measured jointly.
    _, card = part(pair, "bank-a", "guarded")
    assert abs(card["data"]["test_rows"] - COMMON // 5) <= 1
    assert 0.5 < card["quality"]["auroc"] < 1
    assert card["importance"]["bank-b"] > 0
    holder.stub.Score(pb.VerticalScoreRequest(job=job, ids=good), timeout=60)
    # bank-b's own bound: the rows of the test and the one above are counted.
    policy = pair.node("bank-b") / "policy.toml"
    before = policy.read_text()
    counted = card["data"]["test_rows"] + 1
    policy.write_text(f"{before}\n[vertical]\nscores_a_day = {counted + 1}\n")
    assert holder.score(job, good + others[0]) == "BUDGET"
    holder.stub.Score(pb.VerticalScoreRequest(job=job, ids=good), timeout=60)
    assert holder.score(job, good) == "BUDGET"
    policy.write_text(before)
    # Refusals are on record, whoever refused.
    assert holder.score(job, secrets.token_bytes(16)) == "ALIGNMENT"
    refused = [
        (row["peer"].rpartition("/")[2], row["reason"])
        for row in pair.json("bank-b", "ledger", "events", "--since", "1h")["events"]
        if row["type"] == "refused" and row["resource"] == job.hex()
    ]
    assert {
        ("bank-c", "NOT_A_PARTY"),
        ("bank-a", "BUDGET"),
        ("bank-a", "NO_MODEL"),
        ("bank-a", "ALIGNMENT"),
    } <= set(refused)
    pair.run("bank-b", "contract", "revoke", contract[:12])
    assert holder.score(job, good) == "CONTRACT"
    assert holder.work(job) == "CONTRACT"
    pair.wait_for_contract("bank-a", contract, "revoked")
    done = pair.run("bank-a", "vertical", "score", "guarded", "--value", "13900000000", check=False)
    assert "was revoked by bank-b" in " ".join(done.stderr.split())


def test_two_partners(pair, aligned):
    """Trees over three parties' columns, of the customers that all of them have, are those of the joined columns."""
    wallets, with_wallet = align(pair, "bank-c", "payers", COMMON - NO_WALLET)
    path, _ = new_job(pair, aligned[0], "three", "--alignment", wallets[:12], *TREES, "--no-test")
    assert launch(pair, path)["state"] == "done"
    mine, card = part(pair, "bank-a", "three")
    theirs = {bank: part(pair, bank, "three")[0] for bank in ("bank-b", "bank-c")}
    assert card["data"]["rows"] == COMMON - NO_WALLET
    assert all(each.records for each in theirs.values())
    order, y, x, other = joined({phone: aligned[1][phone] for phone in with_wallet})
    first = int(phones(0, 1)[0])
    third = np.array([wallet(tables()[1], int(phone) - first) for phone in order], dtype=np.float32)
    block = Block("spiffe://lianfang.example/bank/bank-a", np.concatenate([x, other, third], axis=1), y)
    grower = Grower(
        TreeSettings(trees=3, depth=3, bins=16, learning_rate=0.3, min_child_weight=1.0),
        [*OWN, *THEIRS, *WALLETS],
        5,
        1,
        first=range(13),
    )
    (pooled,) = steps.one_by_one([grower.learn([block])])
    numbers = pair.folder / "three.txt"
    numbers.write_text("\n".join(order))
    rows = pair.json("bank-a", "vertical", "score", "three", str(numbers))
    assert [row["score"] for row in rows] == sigmoid(pooled.margin(block.x)).tolist()
    # Who has no wallet is in no job of all three.
    without = next(phone for phone in aligned[1] if phone not in with_wallet)
    (row,) = pair.json("bank-a", "vertical", "score", "three", "--value", without)
    assert row["trouble"] == "not aligned"
    # A partner knows its own columns only.
    for bank, names in (("bank-b", {*OWN, *WALLETS}), ("bank-c", {*OWN, *THEIRS})):
        assert not names & set(json.dumps(theirs[bank].to_document()).split('"'))


def test_a_partner_that_dies_is_named_and_the_next_job_is_done(pair, aligned):
    path, _ = new_job(pair, aligned[0], "broken", "--set", "trees=30", "--set", "depth=3", "--no-test")
    command, environment = pair.command("coordinator", "vertical", "run", str(path), "--json")
    going = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_state(pair, "bank-b", "broken", {"running"})
    end = time.monotonic() + 180
    while "tree 3" not in json.dumps(pair.json("bank-b", "job", "list")):
        assert time.monotonic() < end
        time.sleep(0.2)
    pair.kill("bank-b-learn")
    pair.start_learning("bank-b")
    found = wait_for_state(pair, "bank-a", "broken", {"failed"})
    assert "bank-b ended the run" in found["detail"]
    assert not list(pair.node("bank-a").glob("data/models/broken-*"))
    going.communicate(timeout=300)
    wait_for(pair, "bank-b-learn", r"(?s)SuperNode ID.*SuperNode ID")
    wait_for_state(pair, "bank-b", "broken", {"failed"})
    # The next one is done: a linear model on the same channel.
    path, _ = new_job(pair, aligned[0], "line", "--model", "linear", "--set", "bins=8")
    assert launch(pair, path)["state"] == "done"
    _, card = part(pair, "bank-a", "line")
    assert 0.5 < card["quality"]["auroc"] < 1
    rows = pair.json("bank-a", "vertical", "score", "line", "--value", next(iter(aligned[1])))
    assert 0 < rows[0]["score"] < 1


def test_no_identifier_travels_and_the_coordinator_has_no_part_of_a_model(pair, aligned):
    from nodes.demo import views
    from protocols.identifiers import normalise

    known = [normalise("phone", value).canonical for value in phones(0, COMMON)]
    needles = views.traces(set(phones(0, COMMON)), known)
    for member in ("coordinator", "coordinator-learn", "bank-a", "bank-a-learn", "bank-b", "bank-b-learn"):
        text = pair.log(member).read_bytes()
        assert not any(each in text for each in needles), member
    mine, _ = part(pair, "bank-a", "both")
    files = [content for _, content in views.contents(pair.node("coordinator"))]
    values = {repr(value) for tree in mine.trees for value in tree.value if value}
    long = [value.encode() for value in values if len(value) > 7]  # shorter ones are found by chance
    assert len(long) > len(values) / 2
    for value in long:
        assert not any(value in each for each in files)
    assert not any(bytes.fromhex(mine.hash()) in each for each in files)
    assert hashlib.sha256(mine.to_bytes()).hexdigest() == mine.hash()
