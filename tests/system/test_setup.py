"""The first hour of two members, from nothing to a hit, by `lianfang setup`; and a list that is fed from a folder."""

import json
import os
import re
import subprocess
import time

import pytest

from nodes.demo.network import free_port, program
from tests.system.conftest import phones, write_list
from tests.system.terminal import enrol

_PERSON = re.compile(r"^\s*(ada|bob|olga)\s.*?(\S{20,})\s*$", re.MULTILINE)


class Member:
    """A member's folder and its people; counts the commands that they type."""

    def __init__(self, base, name):
        self.base, self.name, self.folder = base, name, base / name
        self.listen = f"127.0.0.1:{free_port()}"
        self.ledger = f"127.0.0.1:{free_port()}"
        self.commands = 0
        self.server = None

    def environment(self, person):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
        return inherited | {
            "LIANFANG_LANG": "en",
            "LIANFANG_SESSION": str(self.base / f"{self.name}-{person}.session"),
        }

    def start(self, *arguments, person="nobody"):
        self.commands += 1
        return subprocess.Popen(
            program(["lianfang", *map(str, arguments)]),
            env=self.environment(person),
            stdin=subprocess.DEVNULL,
            stdout=(out := (self.base / f"{self.name}-out").open("w+")),
            stderr=out,
            text=True,
        )

    def said(self):
        return (self.base / f"{self.name}-out").read_text()

    def run(self, *arguments, person="nobody", status=0):
        process = self.start(*arguments, person=person)
        ended = process.wait(180)
        assert status is None or ended == status, self.said()
        return self.said()

    def serve(self):
        self.commands += 1
        self.server = subprocess.Popen(
            program(["lianfang", "serve", "--config", str(self.folder / "node.toml")]),
            stderr=(self.base / f"{self.name}.log").open("wb"),
            env=self.environment("nobody") | {"LIANFANG_LEDGER__TICK_SECONDS": "2"},
        )
        end = time.monotonic() + 180
        while "is ready" not in (self.base / f"{self.name}.log").read_text():
            assert time.monotonic() < end
            time.sleep(0.2)

    def approve(self, seen=()):
        """The second person approves what the waiting command names; its id."""
        end = time.monotonic() + 120
        while True:
            found = [
                each
                for each in re.findall(r"pending\s+approve\s+([0-9a-f]{12})", self.said())
                if each not in seen
            ]
            if found:
                break
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)
        self.commands += 1
        subprocess.run(
            program(["lianfang", "pending", "approve", found[0], "--config", str(self.folder)]),
            env=self.environment("bob"),
            check=True,
            capture_output=True,
        )
        return found[0]


def _join(member, ca):
    """Keys, bundle, node, people: what each member does first."""
    said = member.run(
        *("setup", member.folder, "--name", member.name, "--role", "bank", "--network", "n.example"),
        *("--listen", member.listen, "--ledger-listen", member.ledger),
    )
    assert "request.json" in said
    assert "--bundle BUNDLE" in said
    bundle = member.base / f"{member.name}.json"
    subprocess.run(
        program(
            [
                "lianfang",
                "ca",
                "sign",
                str(member.folder / "request.json"),
                "--ca",
                str(ca),
                "-o",
                str(bundle),
            ]
        ),
        check=True,
        capture_output=True,
    )
    assert "lianfang serve" in member.run("setup", member.folder, "--bundle", bundle)
    member.serve()
    people = (
        "--person",
        "ada=administrator",
        "--person",
        "bob=administrator,approver",
        "--person",
        "olga=operator,analyst",
    )
    said = member.run("setup", member.folder, *people)
    invitations = dict(_PERSON.findall(said))
    assert set(invitations) == {"ada", "bob", "olga"}, said
    for name, invitation in invitations.items():
        member.commands += 1
        enrol(name, invitation, str(member.folder), str(member.base / f"{member.name}-{name}.session"))


@pytest.fixture
def members(tmp_path_factory):
    base = tmp_path_factory.mktemp("hour")
    ca = base / "ca"
    subprocess.run(
        program(["lianfang", "ca", "init", "--ca", str(ca), "--network", "n.example", "--no-passphrase"]),
        check=True,
        capture_output=True,
    )
    made = [Member(base, "bank-x"), Member(base, "bank-y")]
    try:
        for each in made:
            _join(each, ca)
        yield made
    finally:
        for each in made:
            if each.server is not None:
                each.server.terminate()
        for each in made:
            assert each.server is None or each.server.wait(60) == 0


def test_from_nothing_to_a_hit_in_fifteen_commands_a_side(members):
    first, second = members
    cases = write_list(
        first.base / "cases.csv",
        [("phone", each, "gambling") for each in phones(0, 5)],
        "kind,value,category",
    )
    # Nobody is signed in: it says who has to be, and does nothing.
    assert "lianfang login" in first.run("setup", first.folder, "--with", "bank-y", person="stranger")
    first.commands -= 1
    # bank-x has heard of nobody yet but those that the CA had signed before: the newcomer shows itself.
    end = time.monotonic() + 120
    while "bank-y" not in first.run("peers", "--no-probe", "--config", first.folder, person="olga"):
        assert time.monotonic() < end
        time.sleep(1)
        first.commands -= 1
    first.commands -= 1
    hour = first.start("setup", first.folder, "--with", "bank-y", "--file", cases, person="olga")
    contract = first.approve()
    first.approve({contract})
    assert hour.wait(180) == 0, first.said()
    assert "This member is set up" in first.said()

    end = time.monotonic() + 120
    while True:  # once the proposal has arrived
        done = second.start("setup", second.folder, person="olga")
        done.wait(180)
        if "decide on" in second.said():
            break
        second.commands -= 1
        assert time.monotonic() < end
        time.sleep(1)
    hour = second.start("setup", second.folder, "--yes", person="olga")
    second.approve()
    assert hour.wait(180) == 0, second.said()
    assert "approved the contract" in second.said()

    question = second.base / "ask.txt"
    question.write_text(phones(0, 1)[0] + "\n")
    ask = (
        "query",
        question,
        "-k",
        "phone",
        "-p",
        "payment",
        "--case",
        "C-1",
        "-b",
        "customer-consent",
        "--config",
        second.folder,
        "--json",
    )
    end = time.monotonic() + 60
    while True:
        document = json.loads(second.run(*ask, person="olga", status=None).strip())
        if document["rows"][0]["answers"] and document["rows"][0]["answers"][0]["outcome"] == "hit":
            break
        second.commands -= 1
        assert time.monotonic() < end, document
        time.sleep(1)
    assert document["complete"]
    assert first.commands <= 15, first.commands
    assert second.commands <= 15, second.commands
    # Running it once more changes nothing.
    again = first.run("setup", first.folder, person="olga")
    assert "This member is set up" in again
    assert again.count("✓") == 6


def test_a_list_is_fed_from_a_folder(network, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    write_list(
        inbox / "1-monday.csv",
        [("phone", each, "gambling") for each in phones(8_000, 5)],
        "kind,value,category",
    )
    write_list(inbox / "2-bad.csv", [("phone", "138****0001", "gambling")], "kind,value,category")
    write_list(
        inbox / "3-tuesday.csv",
        [("phone", each, "gambling") for each in phones(8_003, 5)],
        "kind,value,category",
    )
    (inbox / "notes.md").write_text("not a list")
    write_list(inbox / "4-growing.csv", [("phone", phones(8_100, 1)[0], "gambling")], "kind,value,category")
    os.utime(inbox / "4-growing.csv", (time.time() + 30, time.time() + 30))  # as if somebody still wrote it
    for name in ("1-monday.csv", "2-bad.csv", "3-tuesday.csv"):
        os.utime(inbox / name, (0, time.time() - 60))
    feed = ("list", "feed", str(inbox), "--list", "nightly")
    done = network.run("bank-b", *feed, "--json", check=False)
    assert done.returncode == 1
    told = {each["file"].rpartition("/")[2]: each for each in json.loads(done.stdout)}
    assert {name: each["state"] for name, each in told.items()} == {
        "1-monday.csv": "done",
        "2-bad.csv": "failed",
        "3-tuesday.csv": "done",
    }
    assert (told["1-monday.csv"]["added"], told["3-tuesday.csv"]["added"]) == (5, 3)
    failed = sorted(each.name.partition("-2-")[2] for each in (inbox / "failed").iterdir())
    assert failed == ["bad.csv", "bad.csv.reason.txt"]
    reason = next((inbox / "failed").glob("*.reason.txt")).read_text()
    assert "masked" in reason
    assert "138" not in reason
    assert sorted(
        each.name for each in inbox.iterdir() if each.is_file() and not each.name.startswith(".")
    ) == [
        "4-growing.csv",
        "notes.md",
    ]
    assert len(list((inbox / "done").iterdir())) == 2
    assert network.json("bank-b", "list", "stats", "nightly")["live"] == 8
    # What takes two people waits in its place, and goes in once it is approved.
    network.run("bank-b", "list", "activate", "nightly")
    write_list(inbox / "5-withdrawn.csv", [("phone", phones(8_900, 1)[0], "gambling")], "kind,value,category")
    os.utime(inbox / "5-withdrawn.csv", (0, time.time() - 60))
    policy = network.node("bank-b") / "policy.toml"
    before = policy.read_text()
    try:
        policy.write_text(before + "\n[second_person]\nwithdraw_entries = 2\n")
        time.sleep(0.2)
        waiting = network.run("bank-b", *feed, "--replace", "--json", check=False, alone=True)
        assert waiting.returncode == 4, waiting.stderr
        assert (inbox / "5-withdrawn.csv").exists()
        network.approve("bank-b", re.search(r"approve ([0-9a-f]{12})", waiting.stderr)[1])
        (taken,) = network.json("bank-b", *feed, "--replace")
        assert (taken["state"], taken["withdrawn"]) == ("done", 8)
    finally:
        policy.write_text(before)
    # A node that is away is not the file's fault.
    (again,) = [each for each in (inbox / "done").iterdir() if "monday" in each.name]
    again.rename(inbox / "6-again.csv")
    absent = subprocess.run(
        program(["lianfang", "list", "feed", str(inbox), "--list", "nightly", "--config", str(tmp_path)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert absent.returncode == 1
    assert (inbox / "6-again.csv").exists()
    # A second feed of the same folder stays out of the first one's way; one that stays wakes at its hour.
    command, environment = network.command("bank-b", *feed, "--at", "00:00")
    staying = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert staying.stderr.readline().startswith("next at")
        assert not (inbox / "6-again.csv").exists()
    finally:
        staying.terminate()
        staying.wait(30)
    assert network.run("bank-b", *feed, "--at", "25:00", check=False).returncode == 1
