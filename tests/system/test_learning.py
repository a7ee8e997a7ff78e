"""Training together, deployed: SuperLink, SuperNodes, nodes and their learning processes, with real encryption."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xgboost
from sklearn.metrics import average_precision_score, roc_auc_score

from federation import data, steps
from federation.apps import bundle
from federation.job import JobDescriptor
from federation.models.trees import Grower, TreeSettings
from nodes.config import Home
from nodes.contracts import draft as drafts
from nodes.demo import people, views
from nodes.demo.network import Network, family, program
from nodes.learning import flower, processes
from nodes.people.roles import NEEDS, Role
from nodes.services import wire
from tests.system.conftest import call, import_phones, phones
from tests.system.jobs import configure, launch, state_of, wait_for, wait_for_state

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PARTS = {"bank-a": "guest", "bank-b": "host_1", "bank-c": "host_2"}
BANKS = list(PARTS)
FEATURES = [f"x{i}" for i in range(23)]
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder does not exist")


def part(bank: str) -> Path:
    return SHARED / f"default_credit_homo_{PARTS[bank]}.csv"


@pytest.fixture(scope="module")
def federation():
    made = Network(Path(tempfile.mkdtemp(prefix="lf-learn-")), learning=True)
    try:
        made.start()
        made.stop_member("coordinator")
        configure(
            made,
            "coordinator",
            # Less than the half minute after which Flower calls a node unavailable.
            "entry_seconds = 180\nlost_seconds = 8\nanswer_seconds = 22\ncompute_seconds = 22\n",
        )
        made.start_member(made.member("coordinator"))
        made.wait("coordinator")
        test = SHARED / "default_credit_homo_test.csv"
        for bank in BANKS:
            configure(made, bank, f'[learn.datasets.credit]\npath = "{part(bank)}"\ntest = "{test}"\n')
        made.start_learning()
        for member in (*BANKS, "centre"):
            wait_for(made, "coordinator-learn", f"registered the SuperNode of .*{member}")
            wait_for(made, f"{member}-learn", "SuperNode ID")
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def new_job(network: Network, name: str, *options: str, approve=BANKS, trees: int = 3) -> Path:
    path = network.folder / f"{name}.json"
    network.run(
        "bank-a",
        *("train", "new", "--name", name, "--dataset", "credit", "--label", "y"),
        *("--features", str(part("bank-a")), "--out", str(path)),
        *("--set", f"trees={trees}", "--set", "depth=3", *options),
    )
    if approve:
        agree(network, path, approve)
    return path


def agree(network: Network, path: Path, approve=BANKS) -> str:
    """The contract over a job, proposed by the first; in force where all banks approve."""
    draft = drafts.over_job(path.read_bytes(), 30, 365, time.time())
    if set(approve) >= set(BANKS):
        return network.agree(draft, "bank-a")
    with network.contracts("bank-a") as node:
        name = network.together("bank-a", lambda: node.Propose(draft)).document["contract"]
    for member in (*approve[1:], "coordinator"):
        network.wait_for_contract(member, name, "proposed")
        network.run(member, "contract", "approve", name)
    return name


def launching(network: Network, path: Path) -> subprocess.Popen:
    command, environment = network.command("coordinator", "train", "run", str(path), "--json")
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_sums(network: Network, bank: str, name: str, sums: int, seconds: float = 180) -> None:
    """Until a job is under way at a bank, and has come so far."""
    state = wait_for_state(network, bank, name, {"running"}, seconds)
    end = time.monotonic() + seconds
    while state["sums"] < sums:
        assert time.monotonic() < end, state
        assert state["state"] == "running", state
        time.sleep(0.2)
        state = state_of(network, bank, name)


def models(network: Network, name: str) -> dict[str, Path]:
    return {bank: next(network.node(bank).glob(f"data/models/{name}-*/model.json")) for bank in BANKS}


def test_three_banks_train_the_model_of_their_pooled_rows(federation, tmp_path):
    path = new_job(federation, "credit", trees=8)
    outcome = launch(federation, path)
    assert outcome["state"] == "done"
    assert outcome["room"]["phase"] == "finished"
    found = models(federation, "credit")
    contents = {bank: file.read_bytes() for bank, file in found.items()}
    assert len(set(contents.values())) == 1
    # The same engine on the pooled rows, bit for bit.
    blocks = [
        data.load(part(bank), FEATURES, "y", f"spiffe://lianfang.example/bank/{bank}") for bank in BANKS
    ]
    chosen = TreeSettings(trees=8, depth=3)
    (pooled,) = steps.one_by_one([Grower(chosen, FEATURES, 0, 3).learn(blocks)])
    assert contents["bank-a"] == pooled.to_bytes()
    # The same card everywhere, true to the model.
    cards = {(file.parent / "card.json").read_text() for file in found.values()}
    assert len(cards) == 1
    card = json.loads(cards.pop())
    assert card["ended_early"] is None
    assert card["data"] == {
        "rows": 24_000,
        "positives": sum(int(b.y.sum()) for b in blocks),
        "test_rows": 18_000,
    }
    assert card["model"]["sha256"] == hashlib.sha256(contents["bank-a"]).hexdigest()
    assert card["cohort"] == [f"spiffe://lianfang.example/bank/{bank}" for bank in BANKS]
    assert card["code"] == json.loads(path.read_bytes())["code"]
    test_file = SHARED / "default_credit_homo_test.csv"
    test = data.load(test_file, FEATURES, "y", "test")
    exact = roc_auc_score(test.y, pooled.predict(test.x))
    assert card["quality"]["auroc"] == pytest.approx(exact, abs=0.002)
    # `predict` scores a file; XGBoost loads the export and says the same.
    scores = tmp_path / "scores.csv"
    asked = [str(found["bank-b"]), str(test_file), "--out", str(scores), "--label", "y", "--json"]
    done = subprocess.run(
        program(["lianfang", "predict", *asked]), capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["quality"]["auroc"] == pytest.approx(exact, abs=1e-6)
    table = np.genfromtxt(scores, delimiter=",", names=True)
    booster = xgboost.Booster(model_file=found["bank-b"].parent / "model.xgboost.json")
    matrix = xgboost.DMatrix(test.x, feature_names=FEATURES, feature_types=["float"] * 23)
    assert np.abs(booster.predict(matrix) - table["score"]).max() < 1e-6


def test_each_bank_is_told_what_it_would_be_alone(federation):
    """On its own test rows, in a file of its own; the right values by XGBoost and scikit-learn."""
    test = data.load(SHARED / "default_credit_homo_test.csv", FEATURES, "y", "test")
    matrix = xgboost.DMatrix(test.x, feature_names=FEATURES, feature_types=["float"] * 23)
    for number, (bank, file) in enumerate(models(federation, "credit").items()):
        found = json.loads((file.parent / "alone.json").read_text())
        assert (file.parent / "alone.json").stat().st_mode & 0o077 == 0
        scores = xgboost.Booster(model_file=file.parent / "model.xgboost.json").predict(matrix)
        assert found["together"]["auprc"] == pytest.approx(average_precision_score(test.y, scores), abs=1e-5)
        own = data.load(part(bank), FEATURES, "y", bank)
        (alone,) = steps.one_by_one([Grower(TreeSettings(trees=8, depth=3), FEATURES, 0, 1).learn([own])])
        expected = average_precision_score(test.y, alone.predict(test.x))
        assert found["alone"]["auprc"] == pytest.approx(expected, abs=1e-9)
        assert found["test_rows"] == len(test.y)
        assert found["better_alone"] == (expected > found["together"]["auprc"])
        assert ("WARNING" in state_of(federation, bank, "credit")["detail"]) == found["better_alone"], number


def test_a_bank_that_loses_by_learning_together_is_told_so_and_nobody_else(federation):
    """bank-c calls fraud what the others call none: the common model serves it worse than its own."""
    for bank in BANKS:
        folder = federation.node(bank) / "odd"
        folder.mkdir()
        for name, source in (("train", part(bank)), ("test", SHARED / "default_credit_homo_test.csv")):
            rows = source.read_text().splitlines()
            label = rows[0].split(",").index("y")
            lines = [rows[0]]
            for row in rows[1:3_001]:
                cells = row.split(",")
                cells[0] = (
                    f"{float(cells[0]) + 0.25:g}"  # other rows than those of `credit`, of which sums were taken
                )
                if bank == "bank-c":
                    cells[label] = str(1 - int(float(cells[label])))
                lines.append(",".join(cells))
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        configure(federation, bank, '[learn.datasets.odd]\npath = "odd/train.csv"\ntest = "odd/test.csv"\n')
    path = federation.folder / "odd.json"
    federation.run(
        "bank-a",
        *("train", "new", "--name", "odd", "--dataset", "odd", "--label", "y"),
        *("--features", str(part("bank-a")), "--out", str(path), "--set", "trees=5", "--set", "depth=3"),
    )
    agree(federation, path)
    assert launch(federation, path)["state"] == "done"
    told = {bank: state_of(federation, bank, "odd")["detail"] for bank in BANKS}
    assert "a model of this bank's own rows alone is better on its own test rows" in told["bank-c"]
    assert "better" not in json.dumps(state_of(federation, "coordinator", "odd"))
    cards = {(file.parent / "card.json").read_text() for file in models(federation, "odd").values()}
    assert len(cards) == 1
    assert "alone" not in cards.pop()


def test_one_row_more_is_another_version_that_all_have_to_accept(federation):
    """The difference of two runs would be the row: refused at the bank whose row it is, before it signs."""
    table = federation.node("bank-b") / "odd" / "train.csv"
    before = table.read_text()
    table.write_text(before + before.splitlines()[-1] + "\n")
    path, accepted = federation.folder / "odd-2.json", federation.folder / "odd-3.json"
    for file, options in ((path, ()), (accepted, ("--accept-exposure",))):
        federation.run(
            "bank-a",
            *("train", "new", "--name", file.stem, "--dataset", "odd", "--label", "y", *options),
            *("--features", str(part("bank-a")), "--out", str(file), "--set", "trees=2", "--set", "depth=2"),
        )
    done = federation.run("bank-b", "contract", "propose", str(path), check=False)
    assert done.returncode == 1
    assert "summed before in another version" in done.stderr.replace("\n", " ")
    shown = subprocess.run(
        program(["lianfang", "--lang", "en", "job", "show", str(accepted)]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ACCEPTED" in shown.stdout
    agree(federation, accepted)
    assert launch(federation, accepted)["state"] == "done"
    # What changes after the approval is not summed either.
    third = federation.folder / "odd-4.json"
    federation.run(
        "bank-a",
        *("train", "new", "--name", "odd-4", "--dataset", "odd", "--label", "y", "--accept-exposure"),
        *("--features", str(part("bank-a")), "--out", str(third), "--set", "trees=2", "--set", "depth=2"),
    )
    agree(federation, third)
    table.write_text(before)
    assert "not those that the contract was approved with" in launch(federation, third, check=False)["detail"]


def test_rounds_cohort_and_model_are_in_every_participants_log(federation):
    """What the banks recorded of the run of `credit`: the same cohort, the same rounds, the same model."""
    expected = hashlib.sha256(models(federation, "credit")["bank-a"].read_bytes()).hexdigest()
    seen = []
    for bank in BANKS:
        rows = federation.json(bank, "ledger", "events", "--since", "1h")["events"]
        ended = [row for row in rows if row["type"] == "job-ended" and row["digest"] == expected]
        assert len(ended) == 1, bank
        mine = [row for row in rows if row["resource"] == ended[0]["resource"]]
        assert [row["type"] for row in mine if row["type"] == "job-entered"] == ["job-entered"]
        cohort = [row["digest"] for row in mine if row["reason"] == "cohort"]
        rounds = {row["reason"] for row in mine if row["type"] == "job-round"} - {"cohort"}
        assert {"tree 1", "tree 2", "tree 3"} <= rounds
        seen.append((cohort, rounds))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0][0]) == 1


def test_the_coordinator_holds_neither_model_nor_figures(federation):
    """Nothing that the coordinator stored or logged contains the model, a leaf of it, its hash or a metric."""
    file = models(federation, "credit")["bank-a"]
    card = json.loads((file.parent / "card.json").read_text())
    document = json.loads(file.read_bytes())
    wanted = {card["model"]["sha256"], str(card["data"]["positives"])}
    wanted |= {
        repr(value) for tree in document["trees"] for value in (*tree["value"], *tree["gain"]) if value
    }
    wanted |= {repr(value) for value in card["quality"].values()}
    logs = (federation.log("coordinator"), federation.log("coordinator-learn"))
    texts = [data for _, data in views.contents(*logs, federation.node("coordinator"))]
    assert len(wanted) > 50
    for value in wanted:
        if len(value) < 8:  # a short number occurs by chance within others, in base64 and in hexadecimal
            alone = re.compile(rb"(?<![0-9A-Za-z+/.])" + value.encode() + rb"(?![0-9A-Za-z+/.])")
            assert not any(alone.search(text) for text in texts), value
            continue
        for form in (value.encode(), bytes.fromhex(value) if re.fullmatch("[0-9a-f]{64}", value) else b""):
            assert not form or not any(form in text for text in texts), value


def test_secure_statistics_reach_the_centre_without_any_banks_figure(federation):
    sizes = {"bank-a": 5, "bank-b": 17, "bank-c": 11}
    for bank, size in sizes.items():
        import_phones(federation, bank, phones(0, size), category="gambling")
        import_phones(federation, bank, phones(100, 2), category="phishing")
    path = federation.folder / "week.json"
    federation.run("centre", "stats", "new", "--name", "week", "--out", str(path))
    agree(federation, path)
    assert launch(federation, path)["state"] == "done"
    (document,) = federation.json("centre", "stats", "show", "week")
    assert document["counts"]["gambling"] == sum(sizes.values())
    assert document["counts"]["phishing"] == 6
    assert document["counts"]["telecom-fraud"] == 0
    assert document["contributors"] == 3
    # Fewer than three contributors is no job at all.
    done = federation.run(
        "centre",
        *("stats", "new", "--name", "two", "--parties", "bank-a,bank-b", "--out", str(path)),
        check=False,
    )
    assert done.returncode == 1
    assert "fewer than 3 parties contribute" in done.stderr


def start_run(network: Network, path: Path) -> None:
    """As a coordinator that does not ask its own node: what the gates say then."""
    job = JobDescriptor.read(path.read_bytes())
    home = Home(network.node("coordinator"))
    port = home.config.learn.superlink.rpartition(":")[2]
    control = flower.Control(f"localhost:{port}", (home.data / "learn" / "superlink.crt").read_bytes())
    control.start(bundle.build(), job.hash())
    control.close()


def test_a_job_whose_contract_a_bank_has_not_approved_is_refused_and_named(federation):
    path = new_job(federation, "unapproved", approve=("bank-a", "bank-b"))
    outcome = launch(federation, path, check=False)
    assert "waits for bank-c" in outcome["detail"]
    start_run(federation, path)
    wait_for(federation, "coordinator-learn", "run ended: no contract over the job .* waits for bank-c")
    refused = federation.json("coordinator", "status")["refused_today"]
    assert any(each["reason"] == "CONTRACT" for each in refused)
    assert not list(federation.node("bank-a").glob("data/models/unapproved-*"))
    (name,) = (
        each["contract"]
        for each in federation.json("bank-c", "contract", "list")
        if each["title"] == "unapproved"
    )
    federation.run("bank-c", "contract", "approve", name)
    for bank in (*BANKS, "coordinator"):
        federation.wait_for_contract(bank, name, "active")
    assert launch(federation, path)["state"] == "done"
    # A bank that ends the contract is not trained with again.
    federation.run("bank-b", "contract", "revoke", name)
    federation.wait_for_contract("coordinator", name, "revoked")
    assert "was revoked by bank-b" in launch(federation, path, check=False)["detail"]


def test_a_contract_that_is_revoked_in_mid_run_ends_the_run(federation):
    path = new_job(federation, "stopped", approve=(), trees=400)
    name = agree(federation, path)
    command = launching(federation, path)
    wait_for_sums(federation, "bank-a", "stopped", 5)
    federation.run("bank-b", "contract", "revoke", name)
    out, _ = command.communicate(timeout=300)
    assert json.loads(out)["state"] == "failed"
    for bank in BANKS:
        assert "was revoked by bank-b" in wait_for_state(federation, bank, "stopped", {"failed"})["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": ["x0", "income"]}, "no column income"),
        ({"label": "x1", "features": ["x0"]}, "a label is 0 or 1"),
        ({"dataset": "unknown"}, r"learn.datasets.unknown is not configured here \(configured: credit"),
        ({"code": "0" * 64}, "the job is for learning code 000000000000, installed is"),
        ({"network": "other.example"}, "of the network other.example"),
        ({"parties": [f"spiffe://lianfang.example/bank/bank-{c}" for c in "bcd"]}, "bank-d. names 0 members"),
        ({"settings": {"depth": 99}}, "trees.depth"),
        ({"parties": ["spiffe://lianfang.example/bank/bank-a"]}, "parties"),
    ],
)
def test_a_job_that_does_not_fit_is_not_proposed_saying_why(federation, change, message):
    document = json.loads(new_job(federation, "fits", approve=()).read_bytes()) | change
    path = federation.folder / "misfit.json"
    path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    done = federation.run("bank-a", "contract", "propose", str(path), check=False)
    assert done.returncode == 1
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    assert "Traceback" not in done.stderr


def test_a_bank_killed_in_mid_run_ends_the_job_and_is_named(federation):
    path = new_job(federation, "killed", trees=400)
    command = launching(federation, path)
    wait_for_sums(federation, "bank-a", "killed", 20)
    federation.kill("bank-b-learn")
    try:
        out, _ = command.communicate(timeout=300)
        assert json.loads(out)["state"] == "failed"
        for bank in ("bank-a", "bank-c"):
            ended = wait_for_state(federation, bank, "killed", {"failed"})
            phase = "keys|upload|commit|opening|between sums"
            assert re.search(rf"({phase}): .*bank/bank-b: did not answer in time", ended["detail"])
            # The finished trees stay, marked as what they are.
            folder = next(federation.node(bank).glob("data/models/killed-*-partial"))
            kept = json.loads((folder / "model.json").read_bytes())["trees"]
            assert 2 <= len(kept) < 400
            card = json.loads((folder / "card.json").read_text())
            assert "did not answer in time" in card["ended_early"]
            assert card["data"]["rows"] == 24_000
    finally:  # it comes back, and the next job runs
        federation.start_learning("bank-b")
        time.sleep(0.5)
        wait_for(federation, "bank-b-learn", r"(?s)SuperNode ID.*SuperNode ID")
    assert launch(federation, new_job(federation, "after"))["state"] == "done"


def test_a_bank_that_never_answers_is_named(federation):
    path = new_job(federation, "silent", trees=400)
    command = launching(federation, path)
    wait_for_sums(federation, "bank-a", "silent", 2)  # all have entered
    os.kill(federation.pid("bank-c-learn"), signal.SIGSTOP)
    try:
        out, _ = command.communicate(timeout=300)
    finally:
        os.kill(federation.pid("bank-c-learn"), signal.SIGCONT)
    state = wait_for_state(federation, "bank-a", "silent", {"failed"})
    assert "bank-c: did not answer in time" in state["detail"]


def test_a_bank_whose_processes_stand_still_is_named_before_the_patience_for_entries_ends(federation):
    """Flower misses the heartbeat of its SuperNode and says so without a name."""
    path = new_job(federation, "still")
    own, *others = processes = family(federation.pid("bank-c-learn"))
    os.kill(own, signal.SIGSTOP)  # it takes no task
    try:
        command = launching(federation, path)
        wait_for_state(federation, "coordinator", "still", {"running"})
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        out, _ = command.communicate(timeout=300)
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    assert json.loads(out)["state"] == "failed"
    for member in ("bank-a", "coordinator"):
        detail = wait_for_state(federation, member, "still", {"failed"})["detail"]
        assert re.search(r"bank/bank-c: did not answer in time \(.*heartbeat", detail), detail
    assert launch(federation, new_job(federation, "moving"))["state"] == "done"


def test_a_superlink_that_restarts_in_mid_run_does_not_stop_the_sums(federation):
    path = new_job(federation, "restarted", trees=60)
    command = launching(federation, path)
    wait_for_state(federation, "bank-a", "restarted", {"running"})
    found = subprocess.run(
        ["pgrep", "-P", str(federation.pid("coordinator-learn")), "-f", "flower-superlink"],
        capture_output=True,
        text=True,
        check=True,
    )
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    for bank in BANKS:
        assert wait_for_state(federation, bank, "restarted", {"done", "failed"})["state"] == "done"
    out, _ = command.communicate(timeout=300)
    assert json.loads(out)["room"]["phase"] == "finished"
    assert launch(federation, new_job(federation, "afterwards"))["state"] == "done"


def test_a_second_launch_of_a_job_under_way_stops_nothing(federation):
    path = new_job(federation, "twice", trees=40)
    first = launching(federation, path)
    wait_for_state(federation, "bank-a", "twice", {"running"})
    second = launching(federation, path)
    outcomes = [json.loads(command.communicate(timeout=300)[0]) for command in (first, second)]
    assert [each["state"] for each in outcomes] == ["done", "done"]
    assert len({file.read_bytes() for file in models(federation, "twice").values()}) == 1
    wait_for(federation, "coordinator-learn", "the job is under way here already")


def test_a_bank_that_cannot_save_its_model_is_named(federation):
    """As on a full disk: the others keep the model they have."""
    path = new_job(federation, "unsaved")
    job = JobDescriptor.read(path.read_bytes())
    models_folder = federation.node("bank-c") / "data" / "models"
    models_folder.mkdir(exist_ok=True)
    blocked = models_folder / f"unsaved-{job.hash().hex()[:12]}"
    blocked.write_text("")  # a file where the job's folder would be
    outcome = launch(federation, path, check=False)
    assert "bank/bank-c: its result could not be saved: File exists" in outcome["detail"]
    assert str(federation.folder) not in outcome["detail"]
    assert str(blocked) in state_of(federation, "bank-c", "unsaved")["detail"]
    assert state_of(federation, "bank-a", "unsaved")["state"] == "done"


def test_two_jobs_at_once(federation):
    paths = [new_job(federation, f"both-{i}", "--seed", str(i), trees=5) for i in (1, 2)]
    commands = [launching(federation, path) for path in paths]
    outcomes = [json.loads(command.communicate(timeout=300)[0]) for command in commands]
    assert [each["state"] for each in outcomes] == ["done", "done"]
    for name in ("both-1", "both-2"):
        assert len({file.read_bytes() for file in models(federation, name).values()}) == 1


HOSTILE = """
from pathlib import Path
Path({marker!r}).write_bytes(Path({key!r}).read_bytes())
from flwr.clientapp import ClientApp
app = ClientApp()
"""


class _Complicit:
    """What a malicious coordinator's node says to its own executor: yes."""

    def __init__(self, descriptor: bytes) -> None:
        self.descriptor = descriptor

    def admit(self, _job, _bundle):
        return self

    def report(self, *_arguments) -> None:
        pass


def test_a_hostile_bundle_is_never_unpacked_and_is_named_and_logged(federation, tmp_path):
    """First as a stranger to the coordinator's executor, then shipped by a coordinator that plays along."""
    marker = tmp_path / "stolen"
    key = federation.node("bank-a") / "keys" / "signing.key"
    folder = tmp_path / "bundle"
    bundle.write(folder)
    text = HOSTILE.format(marker=str(marker), key=str(key))
    for name in ("__init__", "client", "server"):
        (folder / "lianfang_launch" / f"{name}.py").write_text(text)
    from flwr.cli.build import build_fab_from_disk

    hostile = bytes(build_fab_from_disk(folder))
    digest = hashlib.sha256(hostile).hexdigest()
    job = JobDescriptor.read(new_job(federation, "hostile").read_bytes())
    home = Home(federation.node("coordinator"))
    port = home.config.learn.superlink.rpartition(":")[2]
    certificate = home.data / "learn" / "superlink.crt"
    control = flower.Control(f"localhost:{port}", certificate.read_bytes())
    control.start(hostile, job.hash())
    wait_for(federation, "coordinator-learn", f"the bundle {digest[:12]}")
    assert federation.stop_member("coordinator-learn") == 0
    # The coordinator's own SuperLink, with an executor that admits anything.
    superlink_key, _ = processes.superlink_identity(home)
    secret = processes.executor_secret(home)
    child = processes.Child(processes.superlink_command(home, superlink_key, certificate, secret), home)
    stopping = threading.Event()
    try:
        flower.wait_until_ready(control, 60)
        seats = _Complicit(job.to_bytes())
        executor = flower.Executor(
            f"localhost:{port}", secret, seats, coordinator=True, certificate=certificate.read_bytes()
        )
        threading.Thread(target=executor.run, args=(stopping,), daemon=True).start()
        control.start(hostile, job.hash())
        for bank in BANKS:
            said = wait_for(federation, f"{bank}-learn", f"refused a task: .*bundle {digest}", 90)
            assert f"the bundle {digest[:12]}" in said
            refused = federation.json(bank, "status")["refused_today"]
            assert any(each["reason"] == "BUNDLE" for each in refused)
    finally:
        stopping.set()
        child.stop()
        federation.start_learning("coordinator")
    assert not marker.exists()
    assert not list(federation.node("bank-a").glob("data/models/hostile-*"))


def test_the_learning_processs_methods_are_for_nobody_else(federation):
    """And the coordinator's launch is for its operator."""
    for member, service in (("coordinator", "LearningAdmin/"), ("bank-a", "VerticalAdmin/")):
        ours = {method: need for method, need in NEEDS.items() if method.startswith(service)}
        folder = federation.node(member)
        for token in ("", *(people.session(folder, name).read_text() for name in people.PEOPLE)):
            with wire.admin_channel(folder / "data" / "admin.sock", lambda token=token: token) as channel:
                for method, need in ours.items():
                    if need.process or not token:
                        assert call(channel, method) == "SIGN_IN"
    with federation.channel("coordinator", Role.ANALYST) as channel:
        assert call(channel, "LearningAdmin/Launch") == "ROLE"
    with federation.channel("bank-a", Role.OPERATOR) as channel:
        assert call(channel, "VerticalAdmin/Predict") == "ROLE"
