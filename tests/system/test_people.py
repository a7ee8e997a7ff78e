"""People at a real node: its socket, its command line, a terminal, `kill -9`."""

import json
import os
import shutil
import subprocess
import time

import grpc
import pyotp
import pytest
from lianfang.v1 import people_pb2, people_pb2_grpc

from nodes.demo.network import Network, program
from nodes.demo.people import PEOPLE
from nodes.people.roles import NEEDS, Role
from nodes.services import wire
from tests.system.conftest import call, import_phones, make_network, phones, query, start, write_list
from tests.system.terminal import Terminal


@pytest.fixture(scope="module")
def house():
    """A network of which bank-a is looked at, and its people."""
    made = make_network("people")
    try:
        start(made)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def socket_of(network: Network):
    return network.node("bank-a") / "data" / "admin.sock"


def here():
    """What a node offers that does not learn."""
    learning = ("LearningAdmin/", "VerticalAdmin/")
    return {method: need for method, need in NEEDS.items() if not method.startswith(learning)}


def test_no_method_without_signing_in_and_none_beyond_a_role(house):
    with wire.admin_channel(socket_of(house)) as channel:
        for method, need in here().items():
            found = call(channel, method)
            assert (found == "SIGN_IN") or need.open, (method, found)
    for name, role in PEOPLE.items():
        session = house.node("bank-a") / "people" / f"{name}.session"
        with wire.admin_channel(socket_of(house), session.read_text) as channel:
            for method, need in here().items():
                if need.process:
                    assert call(channel, method) == "SIGN_IN", method
                elif not need.open and role not in need.roles:
                    assert call(channel, method) == "ROLE", (name, method)


def test_a_method_that_is_in_no_table_does_not_exist(house):
    session = house.session("bank-a", Role.ADMINISTRATOR)
    with wire.admin_channel(socket_of(house), session.read_text) as channel:
        assert call(channel, "Admin/NoSuch") == "UNIMPLEMENTED"


def test_the_command_line_says_who_is_missing(house):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
    environment |= {"LIANFANG_SESSION": str(house.folder / "nobody"), "LIANFANG_LANG": "en"}
    command = program(["lianfang", "status", "--config", str(house.node("bank-a"))])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sign in: lianfang login NAME" in done.stderr
    token = house.session("bank-b", Role.OPERATOR).read_text()
    done = subprocess.run(
        command, env=environment | {"LIANFANG_TOKEN": token}, capture_output=True, text=True, check=False
    )
    assert "this is a token of bank-b, and this node is bank-a" in done.stderr
    done = house.run("bank-a", "user", "roles", "li-na", "--role", "wizard", check=False)
    assert done.returncode == 2


def test_somebody_new_enrols_at_a_terminal_signs_in_and_makes_a_token(house, tmp_path):
    made = house.json("bank-a", "user", "invite", "zhou-min", "--role", "analyst")
    config, session = str(house.node("bank-a")), str(tmp_path / "state" / "zhou-min")
    terminal = Terminal("user", "enrol", "zhou-min", "--config", config, LIANFANG_SESSION=session)
    terminal.expect("invitation:")
    terminal.answer(made["invitation"])
    secret = terminal.expect(r"type in:\s*([A-Z2-7]{32})")[1]
    assert made["invitation"] not in terminal.said  # it was not echoed
    for code in (lambda: "000000", lambda: pyotp.TOTP(secret).now()):  # the secret outlives a failed try
        terminal.expect("new password[^:]*:")
        terminal.answer("wind over water 8")
        terminal.expect("once more:")
        terminal.answer("wind over water 8")
        terminal.expect("code[^:]*:")
        terminal.answer(code())
    terminal.expect("zhou-min is enrolled and signed in")
    assert terminal.end() == 0
    assert (tmp_path / "state" / "zhou-min").stat().st_mode & 0o777 == 0o600

    def run(*arguments, text=None, **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
        return subprocess.run(
            [*program(["lianfang", *arguments]), "--config", config],
            env=inherited | {"LIANFANG_SESSION": session, "LIANFANG_LANG": "en"} | environment,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    assert json.loads(run("whoami", "--json").stdout)["roles"] == ["analyst"]
    assert run("logout").returncode == 0
    assert run("whoami").returncode == 1
    wrong = run("login", "zhou-min", text="wind over water 9\n000000\n")
    assert (wrong.returncode, "name, password or code is wrong" in wrong.stderr) == (1, True)
    later = pyotp.TOTP(secret).at(int(time.time()) + 30)  # this step's code is spent
    done = run("login", "zhou-min", text=f"wind over water 8\n{later}\n")
    assert done.returncode == 0, done.stderr
    assert "1 attempts to sign in as zhou-min had failed" in done.stderr.replace("\n", " ")
    replayed = run("login", "zhou-min", text=f"wind over water 8\n{later}\n")
    assert replayed.returncode == 1
    token = json.loads(run("user", "token", "make", "case system", "--scope", "status", "--json").stdout)
    nobody = {"LIANFANG_SESSION": str(tmp_path / "nobody"), "LIANFANG_TOKEN": token["token"]}
    assert run("status", **nobody).returncode == 0
    assert "SCOPE" not in run("status", **nobody).stderr
    beyond = run("sync", **nobody)
    assert (beyond.returncode, "needs the scope sync" in beyond.stderr) == (1, True)
    house.run("bank-a", "user", "remove", "zhou-min")  # by two administrators
    assert run("status", **nobody).returncode == 1
    log = house.log("bank-a").read_text()
    for secret_text in (made["invitation"], "wind over water 8", secret, token["token"]):
        assert secret_text not in log


def test_a_bulk_question_takes_two_and_the_ledger_says_who(house):
    import_phones(house, "bank-a", phones(0, 20))
    house.run("centre", "sync", "bank-a")
    text = "\n".join(phones(0, 150)) + "\n"
    arguments = ("query", "-", "--kind", "phone", "--purpose", "payment", "--case", "C-bulk")
    arguments += ("--basis", "police-request", "--to", "bank-a", "--list", "fraud", "--json")
    alone = house.run("centre", *arguments, text=text, check=False, alone=True)
    assert (alone.returncode, "needs a second person" in alone.stderr) == (4, True)
    (waiting,) = house.json("centre", "pending", "list")
    assert waiting["to_decide"]
    shown = house.json("centre", "pending", "show", waiting["id"][:12])
    assert shown["content"]["identifiers"] == 150
    assert shown["content"]["case"] == "C-bulk"
    assert len(shown["content"]["values"]) == 150
    analyst = house.session("centre", Role.ANALYST)
    with wire.admin_channel(house.node("centre") / "data" / "admin.sock", analyst.read_text) as channel:
        decision = people_pb2.ActionDecision(
            id=waiting["id"], verdict=people_pb2.ActionDecision.VERDICT_APPROVE
        )
        with pytest.raises(grpc.RpcError) as caught:
            people_pb2_grpc.PeopleStub(channel).DecideAction(decision)
        assert wire.reason_of(caught.value) == "OWN"
    house.kill("centre")  # what waits is durable
    house.start_member(house.member("centre"))
    house.wait("centre")
    house.approve("centre", waiting["id"])
    changed = house.run("centre", *arguments, text=text + "13900009999\n", check=False, alone=True)
    assert "needs a second person" in changed.stderr  # other bytes
    document = json.loads(house.run("centre", *arguments, text=text, alone=True).stdout)
    assert document["complete"]
    assert sum(row["answers"][0]["outcome"] == "hit" for row in document["rows"]) == 20
    again = house.run("centre", *arguments, text=text, check=False, alone=True)
    assert "needs a second person" in again.stderr  # once
    rows = house.json("centre", "ledger", "events", "--since", "1h")["events"]
    told = [(row["reason"], row["by"]) for row in rows if row["resource"] == "Admin/Query"]
    assert told[:4] == [
        ("proposed", "zhang-wei"),
        ("approved", "wang-fang"),
        ("proposed", "zhang-wei"),
        ("done", "zhang-wei"),
    ]
    assert {row["by"] for row in rows if row["type"] == "query-asked"} == {"zhang-wei"}
    # Neither the case nor an identifier stands in the node's log.
    log = house.log("centre").read_text()
    assert "C-bulk" not in log
    assert "13900000001" not in log


def test_whoever_approves_a_question_sees_what_it_will_not_ask(house):
    """Rows that cannot be asked, and lists that will not answer, are told before the approval, to both people."""
    masked, twofold = "138****0001", "0041213119757"
    text = "\n".join([*phones(700, 105), masked, twofold]) + "\n"
    arguments = ("query", "-", "--purpose", "payment", "--case", "C-rows", "--basis", "police-request")
    alone = house.run("centre", *arguments, text=text, check=False, alone=True)
    assert alone.returncode == 4
    assert "2 values are not asked" in alone.stderr
    (waiting,) = [
        each for each in house.json("centre", "pending", "list") if "107 identifiers" in each["title"]
    ]
    content = house.json("centre", "pending", "show", waiting["id"][:12])["content"]
    assert content["values not asked"] == 2
    assert [row.partition(":")[0] for row in content["rows not asked"]] == ["row 106", "row 107"]
    assert "masked" in content["rows not asked"][0]
    assert "phone" in content["rows not asked"][1]
    # The demonstration's contract names lists that this member's holders have not activated.
    assert any("bank-b / mass" in each for each in content["lists not asked"])
    house.run("centre", "pending", "reject", waiting["id"][:12])


def test_many_small_questions_are_one_large_one(house):
    policy = house.node("centre") / "policy.toml"
    before = policy.read_text()
    try:
        policy.write_text(before + "\n[second_person]\nevaluations_a_day = 40\n")
        time.sleep(0.1)
        values = phones(300, 60)
        done = []
        for i in range(0, 60, 6):
            document = house.run(
                "centre",
                *("query", "-", "--kind", "phone", "--purpose", "payment", "--case", "C-drip"),
                *("--basis", "police-request", "--to", "bank-a", "--list", "fraud", "--json"),
                text="\n".join(values[i : i + 6]) + "\n",
                check=False,
                alone=True,
            )
            done.append(document.returncode)
        assert done[0] == 0
        assert done[-1] == 4
        assert done == sorted(done)
    finally:
        policy.write_text(before)


def test_withdrawing_many_by_command_or_by_import_takes_two(house):
    import_phones(house, "bank-a", phones(500, 60), name="mass")
    few = write_list(house.folder / "few.csv", [("phone", value) for value in phones(500, 5)], "kind,value")
    many = write_list(
        house.folder / "many.csv", [("phone", value) for value in phones(505, 30)], "kind,value"
    )
    assert house.json("bank-a", "list", "withdraw", "mass", "--file", str(few))["changed"] == 5
    alone = house.run("bank-a", "list", "withdraw", "mass", "--file", str(many), check=False, alone=True)
    assert "needs a second person" in alone.stderr
    assert house.json("bank-a", "list", "stats", "mass")["live"] == 55
    assert house.json("bank-a", "list", "withdraw", "mass", "--file", str(many))["changed"] == 30
    rest = write_list(
        house.folder / "rest.csv",
        [("phone", value, "mule-account", "4") for value in phones(535, 1)],
    )
    replacing = ("list", "import", str(rest), "--list", "mass", "--replace")
    alone = house.run("bank-a", *replacing, check=False, alone=True)
    assert "24 entries leave it: this needs a second person" in alone.stderr
    assert house.json("bank-a", "list", "stats", "mass")["live"] == 25  # nothing of it happened
    (waiting,) = house.json("bank-a", "pending", "list")
    shown = house.json("bank-a", "pending", "show", waiting["id"])["content"]
    assert (len(shown["leaving"]), shown["replace"]) == (24, True)
    house.approve("bank-a", waiting["id"])
    import_phones(house, "bank-a", phones(600, 3), name="mass")
    changed = house.run("bank-a", *replacing, check=False, alone=True)
    assert (
        "27 entries leave it: this needs a second person" in changed.stderr
    )  # it would do something else now
    assert house.json("bank-a", *replacing)["withdrawn"] == 27
    ended = write_list(
        house.folder / "ended.csv",
        [("phone", value, "mule-account", "4", "2020-01-01") for value in phones(0, 20)],
        "kind,value,category,severity,valid_until",
    )
    import_phones(house, "bank-a", phones(0, 30), name="fraud")
    alone = house.run("bank-a", "list", "import", str(ended), "--list", "fraud", check=False, alone=True)
    assert "20 entries leave it: this needs a second person" in alone.stderr


def test_a_new_list_is_offered_to_nobody_before_two_people_say_so(house):
    path = write_list(
        house.folder / "new.csv", [("phone", value, "gambling", "3") for value in phones(800, 4)]
    )
    assert house.json("bank-b", "list", "import", str(path), "--list", "whole")["inactive"]
    steps = house.json("centre", "sync", "bank-b", check=False)
    assert "whole" not in {step["list"] for step in steps}
    alone = house.run("bank-b", "list", "activate", "whole", check=False, alone=True)
    assert "activate the list whole with 4 entries" in alone.stderr
    (waiting,) = house.json("bank-b", "pending", "list")
    house.approve("bank-b", waiting["id"])
    more = write_list(
        house.folder / "more.csv", [("phone", value, "gambling", "3") for value in phones(810, 4)]
    )
    house.run("bank-b", "list", "import", str(more), "--list", "whole")
    alone = house.run("bank-b", "list", "activate", "whole", check=False, alone=True)
    assert "with 8 entries: this needs a second person" in alone.stderr  # what was approved is another list
    house.run("bank-b", "list", "activate", "whole")
    steps = house.json("centre", "sync", "bank-b")
    assert "whole" in {step["list"] for step in steps}
    document = query(house, "centre", phones(800, 1), "--to", "bank-b", "--list", "whole", case="C-new")
    assert [answer["outcome"] for answer in document["rows"][0]["answers"] if answer["list"] == "whole"] == [
        "hit"
    ]


def test_evidence_leaves_by_two(house):
    query(house, "centre", phones(0, 1), "--to", "bank-a", case="C-proof")
    target = house.folder / "proof.json"
    bundle = ("ledger", "bundle", "C-proof", "--out", str(target))
    alone = house.run("centre", *bundle, check=False, alone=True)
    assert "export the evidence of a case: this needs a second person" in alone.stderr
    assert not target.exists()
    house.run("centre", *bundle)
    assert target.exists()
    rows = house.json("centre", "ledger", "events", "--since", "1h")["events"]
    identity = next(row["id"] for row in rows if row["type"] == "query-asked")
    alone = house.run("centre", "ledger", "prove", identity, check=False, alone=True)
    assert "needs a second person" in alone.stderr


def test_guessing_at_the_socket_locks_and_is_noticed(house):
    with wire.admin_channel(socket_of(house)) as channel:
        node = people_pb2_grpc.PeopleStub(channel)
        found = []
        for i in range(7):
            with pytest.raises(grpc.RpcError) as caught:
                node.Login(people_pb2.LoginRequest(name="chen-jie", password=f"guess {i}", code="123456"))
            found.append(wire.reason_of(caught.value))
        assert found == ["SIGN_IN"] * 5 + ["LOCKED"] * 2
    assert house.json("bank-a", "status")["people"]["locked"] == ["chen-jie"]
    assert "locked" in house.run("bank-a", "status").stdout
    rows = house.json("bank-a", "ledger", "events", "--since", "1h")["events"]  # a session goes on
    assert any((row["reason"], row["resource"]) == ("locked", "chen-jie") for row in rows)
