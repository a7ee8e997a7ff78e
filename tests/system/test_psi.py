"""Two real nodes compare a column each: what both learn, what a liar sends, what a contract does not allow."""

import csv
import json
import re
import secrets
import shutil
import time

import grpc
import openpyxl
import pytest
from lianfang.v1 import psi_pb2 as pb
from lianfang.v1 import psi_pb2_grpc

from nodes.contracts import draft as drafts
from nodes.identity.keys import NodeKeys
from nodes.services import wire
from protocols import group, psi
from protocols.identifiers import form
from tests.system.conftest import Wire, make_network, phones

TERMS = """
title = "{title}"
days = 30
[psi]
variant = "{variant}"
kind = "phone"
sessions_a_day = {sessions}
output_to = [{output}]
minimum_cardinality = {minimum}
[[psi.input]]
party = "bank-a"
dataset = "customers"
column = "mobile"
max_elements = {most}
{values}
[[psi.input]]
party = "bank-b"
dataset = "subscribers"
column = "手机号"
max_elements = 5000
{theirs}
"""


SUM = """
sum_bits = 40
decimals = 2"""


def write(path, header, values):
    """The row with the number n has lost n yuan and five fen."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", header, "loss"])
        writer.writerows((i, value, f"{i}.05") for i, value in enumerate(values))


@pytest.fixture(scope="module")
def pair():
    """bank-a has 300 customers, of whom 120 are among bank-b's 1,500 subscribers."""
    made = make_network("psi", capture=True)
    try:
        made.start()
        mine = [*phones(0, 300), "", "not a number", *phones(0, 5), "+86 139-0000-0001"]
        write(made.folder / "customers.csv", "mobile", mine)
        write(made.folder / "subscribers.csv", "手机号", phones(180, 1_500))
        for bank, name in (("bank-a", "customers"), ("bank-b", "subscribers")):
            file = made.node(bank) / "node.toml"
            path = made.folder / f"{name}.csv"
            file.write_text(file.read_text() + f'\n[learn.datasets.{name}]\npath = "{path}"\n')
            assert made.stop_member(bank) == 0
            made.start_member(made.member(bank))
        for bank in ("bank-a", "bank-b"):
            made.wait(bank)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def agree(
    network,
    variant="intersection",
    output=("bank-a",),
    minimum=0,
    sessions=20,
    most=5_000,
    values="",
    theirs="",
) -> str:
    path = network.folder / f"{secrets.token_hex(4)}.toml"
    path.write_text(
        TERMS.format(
            title=f"{variant} {secrets.token_hex(3)}",
            variant=variant,
            output=", ".join(f'"{each}"' for each in output),
            minimum=minimum,
            sessions=sessions,
            most=most,
            values=values,
            theirs=theirs,
        ).replace("[psi]", "[psi]" + SUM if values or theirs else "[psi]")
    )
    return network.agree(drafts.load(path), "bank-a")


def test_the_intersection_to_one_side(pair, tmp_path):
    name = agree(pair)
    for suffix in (".csv", ".xlsx", ".json"):
        target = tmp_path / f"common{suffix}"
        outcome = pair.json("bank-a", "psi", "run", name[:12], "--output", str(target))
        assert target.stat().st_mode & 0o777 == 0o600
        assert outcome["common"] == 120
        counts = {key: outcome[key] for key in ("rows", "elements", "empty", "bad", "repeated")}
        assert counts == {"rows": 308, "elements": 300, "empty": 1, "bad": 1, "repeated": 6}
        assert outcome["their_elements_at_most"] == psi.size(1_500)
    with (tmp_path / "common.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == phones(180, 120)
    assert [int(row["row"]) for row in rows] == list(range(182, 302))  # the header is row 1
    sheet = openpyxl.load_workbook(tmp_path / "common.xlsx").active
    assert sheet.max_row == 121
    assert len(json.loads((tmp_path / "common.json").read_text())["in_common"]) == 120
    # The other side has held it too, and learnt how many there are at most.
    held = pair.json("bank-b", "psi", "list")
    assert {(each["with"], each["learns"], each["opened_here"]) for each in held} == {
        ("bank-a", False, False)
    }
    assert all("common" not in each for each in held)
    assert held[0]["their_elements_at_most"] == psi.size(300)
    shown = pair.run("bank-b", "psi", "show", held[0]["session"][:8]).stdout
    assert "not for this side" in shown


def test_to_both_and_opened_by_either(pair):
    name = agree(pair, output=("bank-a", "bank-b"))
    outcome = pair.json("bank-b", "psi", "run", name[:12])
    assert (outcome["common"], outcome["elements"]) == (120, 1_500)
    (other,) = [each for each in pair.json("bank-a", "psi", "list") if each["session"] == outcome["session"]]
    assert (other["common"], other["opened_here"]) == (120, False)
    target = pair.folder / "theirs.json"
    pair.run("bank-b", "psi", "show", outcome["session"], "--output", str(target))
    found = json.loads(target.read_text())["in_common"]
    assert [each["value"] for each in found] == phones(180, 120)


def test_an_outcome_that_an_earlier_version_has_kept_can_still_be_read(pair):
    name, session = secrets.token_hex(16), secrets.token_bytes(16).hex()
    learnt = {"session": session, "with": "bank-b", "at": "2026-01-01T00:00:00Z", "variant": "alignment"}
    learnt |= dict.fromkeys(("rows", "empty", "bad", "repeated", "elements", "their_elements_at_most"), 9)
    learnt |= {"learns": True, "below_minimum": False, "common": 2}
    rows = [[7, "13900000007", "ab" * 16], [5, "13900000005", "cd" * 16]]
    kept = json.dumps({"outcome": learnt, "rows": rows}).encode()
    vault = NodeKeys.load(pair.node("bank-a") / "keys").vault
    place = pair.node("bank-a") / "data" / "psi" / f"{name}.outcome"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(vault.encrypt(kept, b"psi outcome" + name.encode()))
    target = pair.folder / "earlier.json"
    pair.run("bank-a", "psi", "show", session[:12], "--output", str(target))
    found = json.loads(target.read_text())["in_common"]
    place.unlink()
    assert found == [{"id": "ab" * 16, "value": "13900000007"}, {"id": "cd" * 16, "value": "13900000005"}]


def test_cardinality_alone(pair, tmp_path):
    name = agree(pair, variant="cardinality", output=("bank-a", "bank-b"))
    target = tmp_path / "common.json"
    outcome = pair.json("bank-a", "psi", "run", name[:12], "--output", str(target))
    assert outcome["common"] == 120
    assert json.loads(target.read_text())["in_common"] == []


def test_below_the_minimum_nothing_is_output(pair):
    name = agree(pair, variant="cardinality", minimum=121)
    outcome = pair.json("bank-a", "psi", "run", name[:12])
    assert outcome["below_minimum"]
    assert "common" not in outcome


def test_no_identifier_and_no_hash_of_one_is_sent(pair):
    from nodes.demo import views
    from protocols.identifiers import normalise

    known = [normalise("phone", value).canonical for value in phones(0, 300)]
    needles = views.traces(set(phones(0, 300)), known)
    for bank in ("bank-a", "bank-b"):
        path = pair.node(bank) / "data"
        for file in [*path.glob("psi/*"), path / "node.db", path / "node.db-wal"]:
            data = file.read_bytes()
            assert not any(each in data for each in needles), file


def test_both_ledgers_have_the_session(pair):
    name = agree(pair)
    session = pair.json("bank-a", "psi", "run", name[:12])["session"]
    for bank in ("bank-a", "bank-b"):
        rows = pair.json(bank, "ledger", "events", "--since", "1h")["events"]
        told = [(row["type"], row["reason"]) for row in rows if row["id"] == session]
        assert told == [("meeting", "begun"), ("meeting", "ended")]
        assert {row["contract"] for row in rows if row["id"] == session} == {name}


def test_without_a_contract_after_its_end_and_beyond_its_number(pair):
    name = agree(pair, sessions=1)
    pair.run("bank-a", "psi", "run", name[:12])
    done = pair.run("bank-b", "psi", "run", name[:12], check=False)  # either side's count
    assert (done.returncode, "1 sessions a day" in done.stderr) == (1, True)
    pair.run("bank-b", "contract", "revoke", name[:12])
    pair.wait_for_contract("bank-a", name, "revoked")
    done = pair.run("bank-a", "psi", "run", name[:12], check=False)
    assert "was revoked by bank-b" in done.stderr
    small = agree(pair, most=100)
    done = pair.run("bank-a", "psi", "run", small[:12], check=False)
    assert "more than the 100 elements of the contract" in done.stderr


def test_datasets_and_columns_that_are_not_there(pair):
    path = pair.folder / "other.toml"
    text = TERMS.format(
        title="other",
        variant="intersection",
        output='"bank-a"',
        minimum=0,
        sessions=5,
        most=5_000,
        values="",
        theirs="",
    )
    for change, message in (
        (text.replace('"customers"', '"clients"'), "learn.datasets.clients is not configured at bank-a"),
        (text.replace('"subscribers"', '"people"'), "learn.datasets.people is not configured at bank-b"),
        (text.replace('"mobile"', '"cell"'), "names no column for value"),
        # of both sides: whichever of them notices first
        (text.replace('"phone"', '"card"'), "has no card|could not hold the session"),
    ):
        path.write_text(change)
        name = pair.agree(drafts.load(path), "bank-a")
        done = pair.run("bank-a", "psi", "run", name[:12], check=False)
        assert done.returncode == 1
        assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    # Nothing of it stays: the other side ends a moment later.
    folders, end = [pair.node(bank) / "data" / "psi" for bank in ("bank-a", "bank-b")], time.monotonic() + 180
    while any(list(folder.glob("*.work")) for folder in folders):
        assert time.monotonic() < end
        time.sleep(0.1)


class Liar:
    """bank-b's keys in other hands: opens a session with bank-a and sends what it likes."""

    def __init__(self, pair, contract: str) -> None:
        self.wire = Wire(pair, "bank-b")
        self.stub = psi_pb2_grpc.PsiStub(self.wire.channel("bank-a"))
        self.contract, self.session = bytes.fromhex(contract), secrets.token_bytes(16)

    def hello(self) -> pb.PsiMessage:
        return pb.PsiMessage(hello=pb.PsiHello(contract=self.contract, session=self.session, form=form()))

    def run(self, *messages: pb.PsiMessage) -> str:
        """How the node ends it: the status, or OK."""
        try:
            for _ in self.stub.Meet(iter([self.hello(), *messages]), timeout=60):
                pass
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        finally:
            self.wire.close()
        return "OK"


def sequence(points, announced=None, ended=True):
    out = [pb.PsiMessage(elements=len(points) if announced is None else announced)]
    out.append(pb.PsiMessage(points=b"".join(points)))
    return [*out, pb.PsiMessage(end=pb.PsiEnd())] if ended else out


GOOD = sorted(group.split(psi.dummies(16)))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "ended where elements was due"),
        ([pb.PsiMessage(end=pb.PsiEnd())], "sent end, not elements"),
        (sequence(GOOD, announced=15), "no bucket"),
        (sequence(GOOD, announced=1 << 50), "no bucket"),
        (sequence(GOOD[:8], announced=16), "8 of 16 announced elements"),
        (sequence(GOOD, announced=8), "more than the 8 elements"),
        (sequence([*GOOD[:15], GOOD[14]]), "repeated or out of order"),
        (sequence(GOOD[::-1]), "repeated or out of order"),
        (sequence([bytes(32), *GOOD[1:]]), "the identity"),
        (sequence([*GOOD[:15], b"\xff" * 32]), "not a canonical ristretto255 encoding"),
        ([pb.PsiMessage(elements=16), pb.PsiMessage(points=b"x")], "no whole points"),
        (sequence(GOOD, ended=False), "ended where points or end was due"),
        ([pb.PsiMessage(hello=pb.PsiHello())], "sent hello, not elements"),
    ],
)
def test_what_a_liar_sends_ends_the_session_saying_why(pair, messages, said):
    if not hasattr(pair, "liars"):
        pair.liars = agree(pair, sessions=100)
    answer = Liar(pair, pair.liars).run(*messages)
    assert answer.startswith("INVALID_ARGUMENT"), answer
    assert said in answer


def test_an_old_session_is_not_played_again(pair):
    name = agree(pair, output=("bank-b",))
    first = Liar(pair, name)
    assert first.run(*sequence(GOOD)) == "OK"  # it gets doubled points of nothing it knows
    again = Liar(pair, name)
    again.session = first.session
    assert "this session was held before" in again.run(*sequence(GOOD))


def test_who_is_no_party_holds_no_session(pair):
    name = agree(pair)
    stranger = Liar(pair, name)
    stranger.wire = Wire(pair, "bank-c")
    stranger.stub = psi_pb2_grpc.PsiStub(stranger.wire.channel("bank-a"))
    assert stranger.run(*sequence(GOOD)).startswith("PERMISSION_DENIED")


VALUES = 'values = "loss"'


def expected_sum(rows):
    """Of bank-a's rows in common, with those in which an identifier is repeated."""
    return f"{sum(rows) + len(rows) * 0.05:.2f}"


# bank-a's customers 180 to 299 are in common; rows 302 to 306 repeat customers 0 to 4, row 307 customer 1.
COMMON_LOSS = expected_sum(range(180, 300))


@pytest.mark.parametrize(
    ("output", "caller"),
    [(("bank-a",), "bank-a"), (("bank-b",), "bank-a"), (("bank-a", "bank-b"), "bank-b")],
)
def test_the_sum_of_one_sides_values_over_what_both_have(pair, output, caller):
    name = agree(pair, variant="sum", minimum=10, output=output, values=VALUES)
    session = pair.json(caller, "psi", "run", name[:12])["session"]
    for bank in ("bank-a", "bank-b"):
        deadline = time.monotonic() + 180
        while not (held := [x for x in pair.json(bank, "psi", "list") if x["session"] == session]):
            assert time.monotonic() < deadline
        learnt = (held[0].get("sum"), held[0].get("common"))
        assert learnt == ((COMMON_LOSS, 120) if bank in output else (None, None))


def test_a_sum_below_the_minimum_is_withheld_and_who_learns_nothing_sees_no_difference(pair):
    name = agree(pair, variant="sum", minimum=121, output=("bank-b",), values=VALUES)
    outcome = pair.json("bank-b", "psi", "run", name[:12])
    assert outcome["below_minimum"]
    assert "sum" not in outcome
    name = agree(pair, variant="sum", minimum=121, output=("bank-a",), values=VALUES)
    outcome = pair.json("bank-a", "psi", "run", name[:12])
    assert outcome["below_minimum"]
    assert "sum" not in outcome


def test_values_that_cannot_be_added_up_are_named(pair):
    path = pair.folder / "customers.csv"
    before = path.read_text("utf-8")
    name = agree(pair, variant="sum", minimum=10, values=VALUES)
    try:
        path.write_text(before.replace(",17.05", ",17.055"), "utf-8")
        done = pair.run("bank-a", "psi", "run", name[:12], check=False)
        said = " ".join(done.stderr.split())
        assert (
            done.returncode,
            "row 19: loss is not a number of 0 or more with at most 2 decimals" in said,
        ) == (1, True)
        path.write_text(before.replace(",17.05", ",99999999999.00"), "utf-8")
        done = pair.run("bank-a", "psi", "run", name[:12], check=False)
        assert "contract's sum of 40 bits" in " ".join(done.stderr.split())
    finally:
        path.write_text(before, "utf-8")


def test_a_false_key_or_ciphertexts_that_are_none_end_the_session(pair):
    """bank-b's values are added up by bank-a, which checks all that comes before anything is compared."""
    from protocols import paillier, psi_sum

    name = agree(pair, variant="sum", minimum=2, output=("bank-b",), sessions=100, theirs=VALUES)
    key = paillier.generate()
    size, n = key.public.size, int(key.public.n)
    values = key.public.write(key.encrypt([1] * 16))
    points = b"".join(GOOD)

    def said(change=lambda proof: proof, ciphertexts=values, modulus=key.public.encode(), weighted=True):
        liar = Liar(pair, name)
        proof = key.prove(psi_sum._context(liar.contract, liar.session))
        sent = pb.PsiKey(modulus=modulus, proof=change(proof))
        part = (
            pb.PsiMessage(weighted=pb.PsiWeighted(points=points, ciphertexts=ciphertexts))
            if weighted
            else pb.PsiMessage(points=points)
        )
        return liar.run(
            pb.PsiMessage(elements=16),
            pb.PsiMessage(key=sent),
            part,
            pb.PsiMessage(end=pb.PsiEnd()),
            *(
                [pb.PsiMessage(points=b"".join(sorted(group.split(psi.dummies(psi.size(300))))))]
                if weighted
                else []
            ),
            pb.PsiMessage(end=pb.PsiEnd()),
        )

    assert said() == "OK"  # nothing is in common: a random number comes back, or that it is too few
    assert "proof of a modulus" in said(lambda proof: bytes(len(proof)))
    assert "proof of a modulus has" in said(lambda proof: proof[:-1])
    assert "modulus of 1024 bits" in said(modulus=key.public.encode()[:128])
    assert "sent points, not weighted or end" in said(weighted=False)
    for value in (0, n, n * n):
        wrong = value.to_bytes(size, "big") + values[size:]
        assert "ciphertext 1 is" in said(ciphertexts=wrong)
    assert "not every element has one ciphertext" in said(ciphertexts=values[size:])
    # Without its own answer to the sum the session broke, and nobody learnt anything.
    assert all("sum" not in each for each in pair.json("bank-a", "psi", "list") if each["contract"] == name)


def test_alignment_gives_both_the_same_ids_in_the_same_order(pair):
    name = agree(pair, variant="alignment", output=("bank-a", "bank-b"))
    target = pair.folder / "aligned-a.csv"
    outcome = pair.json("bank-a", "align", name[:12], "--output", str(target))
    assert outcome["common"] == 120
    pair.run("bank-b", "psi", "show", outcome["session"], "--output", str(pair.folder / "aligned-b.csv"))
    found = []
    for bank in "ab":
        with (pair.folder / f"aligned-{bank}.csv").open(encoding="utf-8-sig", newline="") as file:
            found.append([(row["id"], row["value"]) for row in csv.DictReader(file)])
    assert found[0] == found[1]
    assert sorted(value for _, value in found[0]) == phones(180, 120)
    ids = [each for each, _ in found[0]]
    assert ids == sorted(set(ids))
    again = pair.json("bank-b", "align", name[:12], "--output", str(pair.folder / "again.json"))
    more = json.loads((pair.folder / "again.json").read_text())["in_common"]
    assert again["common"] == 120
    assert not {row["id"] for row in more} & set(ids)  # of no use beyond one session
    wrong = agree(pair)
    done = pair.run("bank-a", "align", wrong[:12], check=False)
    assert "is about intersection, not alignment" in " ".join(done.stderr.split())


def test_killed_in_mid_session_leaves_nothing_and_runs_again(pair):
    big = pair.folder / "subscribers.csv"
    before = big.read_text("utf-8")
    try:
        write(big, "手机号", phones(180, 4_900))
        name = agree(pair)
        command, environment = pair.command("bank-a", "psi", "run", name[:12])
        import subprocess

        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 180
        while not list((pair.node("bank-b") / "data" / "psi").glob("*.work")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pair.kill("bank-b")
        _, said = child.communicate(timeout=300)
        assert child.returncode == 1
        assert "bank-b" in said
        pair.start_member(pair.member("bank-b"))
        pair.wait("bank-b")
        assert not list((pair.node("bank-b") / "data" / "psi").glob("*.work"))
        assert not list((pair.node("bank-a") / "data" / "psi").glob("*.work"))
        assert pair.json("bank-a", "psi", "run", name[:12])["common"] == 120
    finally:
        big.write_text(before, "utf-8")


def test_a_session_is_the_work_of_operators_and_analysts(pair):
    from nodes.people.roles import Role

    name = agree(pair)
    with pair.channel("bank-a", Role.AUDITOR) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(psi_pb2_grpc.PsiAdminStub(channel).Run(pb.PsiRunRequest(contract=name)))
        assert wire.reason_of(caught.value) == "ROLE"


def test_who_alone_learns_learns_although_the_other_called(pair):
    """The caller gives last, and stays until the other has it."""
    name = agree(pair, output=("bank-b",))
    outcome = pair.json("bank-a", "psi", "run", name[:12])
    assert (outcome["learns"], "common" in outcome) == (False, False)
    deadline = time.monotonic() + 180
    while not (
        found := [
            each for each in pair.json("bank-b", "psi", "list") if each["session"] == outcome["session"]
        ]
    ):
        assert time.monotonic() < deadline
    assert (found[0]["common"], found[0]["opened_here"]) == (120, False)


def test_refused_sessions_leave_no_events(pair):
    name = agree(pair, sessions=1)
    pair.run("bank-a", "psi", "run", name[:12])
    before = len(pair.json("bank-a", "ledger", "events", "--since", "1h")["events"])
    for _ in range(5):
        assert "1 sessions a day" in Liar(pair, name).run(*sequence(GOOD))
    after = pair.json("bank-a", "ledger", "events", "--since", "1h")["events"]
    assert [row["type"] for row in after[before:] if row["type"] == "meeting"] == []


def test_points_doubled_to_the_same_are_refused(pair):
    name = agree(pair, sessions=100)
    one = psi.dummies(1)
    answer = Liar(pair, name).run(
        *sequence(GOOD), pb.PsiMessage(points=one * psi.size(300)), pb.PsiMessage(end=pb.PsiEnd())
    )
    assert answer == "OK"  # the exchange was as announced: the comparison finds it, and keeps nothing
    deadline = time.monotonic() + 180
    while "doubled two points to the same one" not in pair.log("bank-a").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
