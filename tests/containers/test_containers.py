"""The images and docker-compose.yml with a real engine: an import, an activation, a question and a short training.

Run by `make test-containers`; needs Docker's daemon, and its compose plugin or docker-compose.
"""

import csv
import io
import json
import math
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from federation import generate

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "lianfang-test"
BANKS = ("bank-a", "bank-b", "bank-c")
NODES = (*BANKS, "centre", "regulator", "coordinator")
PENDING = re.compile(r"lianfang pending approve (\w+)")
SESSIONS = {"operator": "li-na", "analyst": "zhang-wei", "approver": "wang-fang"}


def run(*words, text=None, check=True, seconds=600):
    done = subprocess.run(
        words, cwd=ROOT, input=text, capture_output=True, text=True, timeout=seconds, check=False
    )
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(words[:8])} … ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done


def compose(*words, **options):
    plugin = (
        subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    )
    program = ["docker", "compose"] if plugin else ["docker-compose"]
    return run(*program, "-p", PROJECT, *words, **options)


def lianfang(member, *words, who="operator", text=None, check=True):
    """A command in a member's container, as one of its people; what takes two is approved and run again."""
    session = f"/data/people/{SESSIONS[who]}.session"

    def once(words, who_session):
        return compose(
            "exec",
            "-T",
            "-e",
            f"LIANFANG_SESSION={who_session}",
            member,
            "lianfang",
            *words,
            text=text,
            check=False,
        )

    done = once(words, session)
    waiting = PENDING.search(done.stdout + done.stderr)
    if done.returncode and waiting:
        once(("pending", "approve", waiting[1]), f"/data/people/{SESSIONS['approver']}.session")
        done = once(words, session)
    if check and done.returncode:
        raise AssertionError(
            f"{member}: lianfang {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def put(member, path, text, append=False):
    compose("exec", "-T", member, "sh", "-c", f"cat {'>>' if append else '>'} {path}", text=text)


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, compose("logs", "--tail=40", check=False).stdout
        time.sleep(1)


def healthy():
    found = run(
        "docker",
        "ps",
        "--filter",
        f"label=com.docker.compose.project={PROJECT}",
        "--format",
        "{{.Names}} {{.Status}}",
    )
    up = [line for line in found.stdout.splitlines() if "(healthy)" in line]
    return len(up) == len(NODES)


@pytest.fixture(scope="module")
def containers():
    build = [
        "docker",
        "build",
        "--quiet",
        "-t",
        "lianfang-learn",
        "--build-arg",
        "LOCK=requirements-learn.lock",
    ]
    run(*build, *os.environ.get("DOCKER_BUILD_OPTIONS", "").split(), ".", seconds=1200)
    compose("down", "-v", check=False)
    try:
        compose("up", "-d", "--no-build")
        wait_until(healthy)
        for member in NODES:
            compose("exec", "-T", member, "lianfang", "dev", "people", "/data")
        yield
    finally:
        compose("down", "-v")


def agree(member, terms):
    """Propose terms at a member and approve them everywhere."""
    put(member, "/data/terms.toml", terms)
    made = json.loads(lianfang(member, "contract", "propose", "/data/terms.toml", "--json").stdout)
    approve(member, made)


def approve(proposer, made):
    name = made["contract"]
    for signer in (each.rpartition("/")[2] for each in made["signers"]):
        if signer != proposer:
            wait_until(
                lambda signer=signer: (
                    lianfang(signer, "contract", "show", name[:12], check=False).returncode == 0
                )
            )
            lianfang(signer, "contract", "approve", name[:12])
    for signer in (each.rpartition("/")[2] for each in made["signers"]):
        wait_until(
            lambda signer=signer: (
                '"active"' in lianfang(signer, "contract", "show", name[:12], "--json").stdout
            )
        )


def test_nodes_run_on_a_read_only_root_with_a_temporary_folder_that_runs_no_code(containers):
    mounts = compose("exec", "-T", "bank-a", "cat", "/proc/mounts").stdout
    assert re.search(r"^\S+ /tmp tmpfs \S*noexec", mounts, re.MULTILINE)
    assert re.search(r"^\S+ / overlay ro,", mounts, re.MULTILINE)
    written = compose("exec", "-T", "bank-a", "find", "/data", "/tmp", "-name", "*.so").stdout
    assert written == ""


def test_an_import_an_activation_and_a_question(containers):
    agree("bank-a", (ROOT / "nodes/demo/contract.toml").read_text("utf-8"))
    for number, bank in enumerate(BANKS):
        rows = f"种类,值,类别\n手机号,1390000000{number},跑分\n手机号,13900000009,电信诈骗\n"
        put(bank, "/data/list.csv", rows)
        lianfang(bank, "list", "import", "/data/list.csv", "--list", "fraud")
        lianfang(bank, "list", "activate", "fraud")
    words = ("query", "--value", "13900000009", "--kind", "phone", "--purpose", "payment", "--case", "C-1")
    words = (*words, "--basis", "police-request", "--json")
    document = json.loads(lianfang("centre", *words, who="analyst").stdout)
    assert document["complete"]
    assert {
        answer["member"]: answer["outcome"] for answer in document["rows"][0]["answers"]
    } == dict.fromkeys(BANKS, "hit")


def rows_of(bank):
    block = generate.accounts(400, 0.1, 5, bank)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*generate.FEATURES, "fraud"])
    for values, label in zip(block.x.tolist(), block.y.tolist(), strict=True):
        writer.writerow(["" if math.isnan(value) else repr(value) for value in values] + [label])
    return text.getvalue()


def test_a_short_training(containers):
    for bank in BANKS:
        put(bank, "/data/rows.csv", rows_of(bank))
        put(bank, "/data/node.toml", '\n[learn.datasets.accounts]\npath = "rows.csv"\n', append=True)
    compose("restart", *BANKS, *(f"{bank}-learn" for bank in BANKS))
    wait_until(healthy)
    lianfang(
        "bank-a",
        *("train", "new", "--name", "accounts", "--dataset", "accounts", "--label", "fraud", "--no-test"),
        *(
            "--features",
            ",".join(generate.FEATURES),
            "--out",
            "/data/job.json",
            "--set",
            "trees=2",
            "--set",
            "depth=2",
        ),
    )
    job = compose("exec", "-T", "bank-a", "cat", "/data/job.json").stdout
    made = json.loads(lianfang("bank-a", "contract", "propose", "/data/job.json", "--json").stdout)
    approve("bank-a", made)
    put("coordinator", "/data/job.json", job)
    words = ("-e", "LIANFANG_SESSION=/data/people/li-na.session", "coordinator-learn")
    done = compose("exec", "-T", *words, "lianfang", "train", "run", "/data/job.json", "--json")
    assert json.loads(done.stdout)["state"] == "done"
    for bank in BANKS:
        found = compose("exec", "-T", bank, "sh", "-c", "cat /data/data/models/accounts-*/model.json").stdout
        assert json.loads(found)["lianfang_model"] == "trees"
