"""The main job through the command line and real processes."""

import csv
import json
import os
import secrets
import signal
import time

import grpc
import openpyxl
import pytest
from lianfang.v1 import admin_pb2, admin_pb2_grpc, common_pb2, ledger_pb2, sync_pb2

from nodes import limits
from nodes.demo import views
from nodes.people.roles import Role
from protocols import group, voprf
from protocols.identifiers import normalise
from protocols.ledger import events
from protocols.lookup import Question
from protocols.statement import parse
from tests.system.conftest import Wire, import_list, import_phones, outcomes, phones, query, wait_until


@pytest.fixture(scope="module", autouse=True)
def lists(network):
    """bank-a lists 0–39, bank-b 20–59, bank-c one phone, a card and a name; the centre has synced."""
    import_phones(network, "bank-a", phones(0, 40))
    import_phones(network, "bank-b", phones(20, 40))
    path = network.folder / "c.csv"
    path.write_text(
        "kind,value,category,severity,basis,observed_on\n"
        f"phone,{phones(0, 1)[0]},telecom-fraud,5,police-certified,2026-09-01\n"
        "card,6222021234567890128,gambling,2,report,\n"
        "name-birth,Zhang San 1970-01-01,other,1,report,\n",
        "utf-8",
    )
    import_list(network, "bank-c", path, "fraud")
    network.run("centre", "sync")


def test_all_members_are_asked_at_once_and_rows_keep_their_order(network):
    values = [*reversed(phones(0, 70)), phones(5, 1)[0]]
    document = query(network, "centre", values, case="order")
    assert [row["value"] for row in document["rows"]] == values
    assert document["complete"]
    for bank, start in (("bank-a", 0), ("bank-b", 20)):
        found = outcomes(document, bank)
        assert {value for value, outcome in found.items() if outcome == "hit"} == set(phones(start, 40))
    first = next(row for row in document["rows"] if row["value"] == phones(0, 1)[0])
    label = next(answer for answer in first["answers"] if answer["member"] == "bank-c")
    assert (label["category"], label["severity"], label["basis"]) == ("telecom-fraud", 5, "police-certified")
    assert label["age_days"] > 0
    assert len(bytes.fromhex(label["reference"])) == 16


def test_a_program_asks_in_one_message_each_way(network):
    """The same events as the stream's: the plan, then each holder's answers with its end."""
    with network.channel("centre", Role.ANALYST) as channel:
        node = admin_pb2_grpc.AdminStub(channel)

        def question(case, values):
            items = [admin_pb2.QueryItem(kind="phone", value=value) for value in values]
            return admin_pb2.QueryRequest(items=items, purpose=2, basis=3, case_number=case, lists=["fraud"])

        def told(events):
            plan, *rest = events
            assert plan.plan.identifiers == 2
            return {
                event.holder.member: (
                    event.holder.outcome,
                    [(answer.index, answer.outcome) for answer in event.answers.answers],
                )
                for event in rest
            }

        values = [phones(0, 1)[0], phones(500, 1)[0]]
        found = told(node.Ask(question("program", values)).events)
        assert found == told(node.Query(question("stream", values)))
        assert found["bank-a"] == ("answered", [(0, "hit"), (1, "miss")])
        assert set(found) == {"bank-a", "bank-b", "bank-c"}
        many = question("many", phones(0, limits.BATCH_INLINE + 1))
        for bad in (many, admin_pb2.QueryRequest()):
            with pytest.raises(grpc.RpcError) as caught:
                node.Ask(bad)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_program_has_the_others_answers_before_its_own_deadline(network):
    """A holder that is mute, and a deadline of the caller's that is shorter than each holder has."""
    item = admin_pb2.QueryItem(kind="phone", value=phones(0, 1)[0])
    request = admin_pb2.QueryRequest(
        items=[item], purpose=2, basis=3, case_number="late", lists=["fraud"], deadline_s=60
    )
    os.kill(network.pid("bank-b"), signal.SIGSTOP)
    try:
        with network.channel("centre", Role.ANALYST) as channel:
            node = admin_pb2_grpc.AdminStub(channel)
            plan, *rest = node.Ask(request, timeout=10).events
            with pytest.raises(grpc.RpcError) as caught:
                node.Ask(request, timeout=0.3)  # less than is kept for the way back
    finally:
        os.kill(network.pid("bank-b"), signal.SIGCONT)
    assert len(plan.plan.holders) == 3
    found = {event.holder.member: event.holder.outcome for event in rest}
    assert found == {"bank-a": "answered", "bank-c": "answered", "bank-b": "timeout"}
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with network.channel("centre", Role.ANALYST) as channel:  # what was not answered is asked again
        _, *rest = admin_pb2_grpc.AdminStub(channel).Ask(request, timeout=60).events
    assert {event.holder.outcome for event in rest} == {"answered"}


def test_a_name_alone_is_never_more_than_review(network):
    document = network.json(
        "centre",
        *("query", "-", "--purpose", "payment", "--case", "n", "--basis", "police-request", "--to", "bank-c"),
        *("--list", "fraud"),
        text="name-birth\tzhang  san 1970-01-01\n",
    )
    assert document["rows"][0]["answers"][0]["outcome"] == "review"


def test_a_rerun_asks_only_what_is_unanswered(network):
    values = phones(100, 10)
    first = query(network, "centre", values, "--to", "bank-a", case="rerun")
    assert (first["plan"][0]["cost"], first["holders"][0]["charged"]) == (16, 16)
    again = query(network, "centre", [*values, phones(110, 1)[0]], "--to", "bank-a", case="rerun")
    assert (again["plan"][0]["cost"], again["plan"][0]["answered"], again["holders"][0]["charged"]) == (
        1,
        10,
        1,
    )
    assert len(outcomes(again, "bank-a")) == 11
    afresh = query(network, "centre", values, "--to", "bank-a", "--again", case="rerun")
    assert afresh["holders"][0]["charged"] == 16


def test_the_plan_shows_cost_and_budget_and_asks_nothing(network):
    before = network.json("bank-a", "status")["asked_of_us_today"]
    document = query(network, "centre", phones(200, 30), "--plan", "--list", "fraud", case="plan")
    assert [(each["member"], each["cost"]) for each in document["plan"]] == [
        ("bank-a", 30),
        ("bank-b", 30),
        ("bank-c", 30),
    ]
    assert all(each["budget"]["day_left"] > 0 for each in document["plan"])
    assert network.json("bank-a", "status")["asked_of_us_today"] == before


def test_ambiguous_and_unknown_values_are_listed_not_guessed(network):
    done = network.run(
        "centre",
        *("query", "-", "--purpose", "payment", "--case", "amb", "--basis", "police-request", "--json"),
        *("--list", "fraud"),
        text="490154203237518\nwhat is this\n13900000000\n",
        check=False,
    )
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert [(each["row"], each["candidates"]) for each in document["problems"]] == [
        (1, ["card", "account", "device"]),
        (2, []),
    ]
    assert [answer["outcome"] for answer in document["rows"][0]["answers"]] == ["not-asked"] * 3
    assert document["rows"][2]["answers"][0]["outcome"] == "hit"


def test_results_as_csv_and_xlsx_with_identifiers_as_text(network, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("kind,value\ncard,6222021234567890128\nphone,+8613900000000\nphone,=1+1\n", "utf-8")
    for name in ("out.csv", "out.xlsx"):
        network.run(
            "centre",
            *("query", str(source), "--purpose", "payment", "--case", "f", "--basis", "police-request"),
            *("--output", str(tmp_path / name)),
            check=False,
        )
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["6222021234567890128", "+8613900000000", "'=1+1"]
    assert rows[0]["bank-c/fraud"] == "hit"
    assert rows[0]["bank-c/fraud category"] == "gambling"
    assert rows[1]["bank-a/fraud"] == "hit"
    assert rows[2]["problem"]
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    assert sheet.cell(2, 3).value == "6222021234567890128"
    assert sheet.cell(2, 3).data_type == "s"


def test_members_that_are_named_wrongly(network):
    done = network.run(
        "centre",
        *("query", "-", "--purpose", "payment", "--case", "x", "--basis", "police-request", "--to", "bank-x"),
        text="13900000000\n",
        check=False,
    )
    assert done.returncode == 1
    assert "bank-x" in done.stderr


def test_usage_errors_end_with_two(network):
    for arguments in (
        ["query", "-"],
        ["query", "-", "--purpose", "nosiness", "--case", "1", "--basis", "court-order"],
        ["nonsense"],
    ):
        assert network.run("centre", *arguments, text="", check=False).returncode == 2


def test_a_new_list_is_asked_and_a_withdrawn_entry_misses_without_anybody_syncing(network):
    """A list that was activated since the last sync was left out unsaid: 0 hits, status 0."""
    values, only_a = phones(300, 3), ("--list", "quick", "--to", "bank-a")
    before = query(network, "centre", values, *only_a, case="w0", check=False)
    assert (before["complete"], before["holders"][0]["outcome"]) == (False, "not-offered")
    import_phones(network, "bank-a", values, name="quick")
    first = query(network, "centre", values, *only_a, case="w1")
    assert set(outcomes(first, "bank-a", "quick").values()) == {"hit"}
    assert first["complete"]
    path = network.folder / "gone.csv"
    path.write_text(f"kind,value\nphone,{values[0]}\n", "utf-8")
    result = network.json(
        "bank-a", "list", "withdraw", "quick", "--file", str(path), "--reason", "appeal-upheld"
    )
    assert (result["changed"], result["tombstones"]) == (1, 1)
    document = query(network, "centre", values, *only_a, case="w2")
    assert outcomes(document, "bank-a", "quick") == dict(zip(values, ["miss", "hit", "hit"], strict=True))
    # A rerun of the question from before does not repeat the old hit, nor an old miss of what is listed since.
    document = query(network, "centre", values, *only_a, case="w1")
    assert outcomes(document, "bank-a", "quick")[values[0]] == "miss"
    new = phones(310, 1)
    assert set(outcomes(query(network, "centre", new, *only_a, case="w3"), "bank-a", "quick").values()) == {
        "miss"
    }
    import_phones(network, "bank-a", new, name="quick")
    document = query(network, "centre", new, *only_a, case="w3")
    assert outcomes(document, "bank-a", "quick") == {new[0]: "hit"}
    answer = document["rows"][0]["answers"][0]
    assert (answer["kind"], answer["kept"], answer["epoch"]) == ("phone", False, 1)
    again = query(network, "centre", new, *only_a, case="w3")
    kept = again["rows"][0]["answers"][0]
    assert (kept["kept"], kept["answered_at"], again["holders"][0]["charged"]) == (
        True,
        answer["answered_at"],
        0,
    )


def test_copies_follow_their_holders_by_themselves(network):
    """Nobody asks and nobody syncs: the centre's copy gets the batch, and says as of when it is."""
    import_phones(network, "bank-b", phones(330, 2), name="quick")

    def copies():
        found = network.json("centre", "status")["copies"]
        return {(each["member"].rpartition("/")[2], each["list"]): each for each in found}

    wait_until(lambda: ("bank-b", "quick") in copies())
    batch = copies()[("bank-b", "quick")]["batch"]
    import_phones(network, "bank-b", phones(340, 2), name="quick")
    wait_until(lambda: copies()[("bank-b", "quick")]["batch"] > batch)
    assert copies()[("bank-b", "quick")]["as_of"]


def test_a_value_that_fits_two_kinds_is_asked_under_both_or_not_at_all(network):
    """Digits listed as a phone were asked as a card: one in ten passes Luhn by chance."""
    value = "0041213119757"
    network.folder.joinpath("swiss.csv").write_text(f"kind,value\nphone,{value}\n", "utf-8")
    import_list(network, "bank-c", network.folder / "swiss.csv", "fraud")
    asked = ("query", "--purpose", "payment", "--case", "two", "--basis", "police-request", "--to", "bank-c")
    options = (*asked, "--list", "fraud", "--value", value)
    done = network.run("centre", *options, "--json", check=False)
    document = json.loads(done.stdout)
    assert (done.returncode, document["rows"][0]["answers"][0]["outcome"]) == (1, "not-asked")
    assert {"card", "phone"} <= set(document["problems"][0]["candidates"])
    both = network.json("centre", *options, "--both")
    row = both["rows"][0]
    assert row["kind"].split() == ["card", "phone"]
    assert row["normal_form"].split() == [value, "+41213119757"]
    assert (row["answers"][0]["outcome"], row["answers"][0]["kind"]) == ("hit", "phone")
    assert both["holders"][0]["charged"] == 2


def test_exports_keep_the_files_own_columns_and_say_what_an_answer_stands_on(network, tmp_path):
    source = tmp_path / "customers.csv"
    source.write_text(f"customer,kind,value,branch\n0007,phone,{phones(0, 1)[0]},北京\n", "utf-8")
    result = tmp_path / "out.csv"
    network.run(
        "centre",
        *("query", str(source), "--purpose", "payment", "--case", "X-9", "--basis", "police-request"),
        *("--to", "bank-a", "--list", "fraud", "--output", str(result)),
    )
    with result.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["customer"], row["branch"], row["case"], row["purpose"]) == ("0007", "北京", "X-9", "payment")
    assert (row["normal form"], row["bank-a/fraud"]) == (f"+86{phones(0, 1)[0]}", "hit")
    assert row["bank-a/fraud epoch"] == "1"
    assert row["asker"]


def test_rotation_goes_unnoticed_by_who_asks(network):
    values = phones(400, 3)
    import_phones(network, "bank-b", values, name="turning")
    only_b = ("--list", "turning", "--to", "bank-b")
    query(network, "centre", values, *only_b, case="r1")
    network.run("bank-b", "list", "rotate", "turning", "--close-now")
    document = query(network, "centre", values, *only_b, case="r2")
    assert set(outcomes(document, "bank-b", "turning").values()) == {"hit"}
    epochs = network.json("bank-b", "list", "stats", "turning")["epochs"]
    assert [each["state"] for each in epochs] == ["closed", "open"]


# -- on the wire ---------------------------------------------------------------------------------------------------


def question(*inputs: bytes, public: bytes) -> Question:
    return Question(public, list(inputs) or [b"phone\x1f+8613900000000"])


@pytest.fixture(scope="module")
def bank_a(network):
    wire = Wire(network, "centre")
    head = next(each for each in wire.info("bank-a").lists if each.list == "fraud").epochs[-1]
    yield wire, parse(head.opened.statement).epoch_opened.public_key, parse(head.head.statement).batch.number
    wire.close()


def refused(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    reason = next(
        (item.value for item in caught.value.trailing_metadata() if item.key == "lianfang-reason"), ""
    )
    return caught.value.code(), reason, caught.value.details()


@pytest.mark.parametrize(
    ("blinded", "why"),
    [
        (b"", "1 to"),
        (bytes(32), "identity"),
        (b"\xff" * 32, "canonical"),
        (b"\x01" * 31, "multiple"),
        (bytes.fromhex("ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20"), "canonical"),
        (group.multiply_base((5).to_bytes(32, "little")) * 3, "bucket"),
        (group.multiply_base((5).to_bytes(32, "little")) * 20_000, "1 to"),
        (group.multiply_base((5).to_bytes(32, "little")) * 63 + bytes(32), "63: the identity"),
    ],
)
def test_bad_batches_are_refused_and_cost_nothing(network, bank_a, blinded, why):
    wire, _, batch = bank_a
    before = network.json("bank-a", "status")["asked_of_us_today"]
    code, _, details = refused(
        wire.lookup("bank-a").Evaluate, wire.request(blinded, secrets.token_bytes(16), table_batch=batch)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert why in details
    assert network.json("bank-a", "status")["asked_of_us_today"] == before


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"suite": 0}, "INVALID_ARGUMENT", "INVALID"),
        ({"suite": 7}, "INVALID_ARGUMENT", "INVALID"),
        ({"query_id": b"short"}, "INVALID_ARGUMENT", "INVALID"),
        ({"case_commitment": b""}, "INVALID_ARGUMENT", "INVALID"),
        ({"asker": b""}, "INVALID_ARGUMENT", "INVALID"),
        ({"purpose": 0}, "INVALID_ARGUMENT", "INVALID"),
        ({"basis": 0}, "INVALID_ARGUMENT", "INVALID"),
        ({"purpose": 4}, "PERMISSION_DENIED", "PURPOSE"),
        ({"list": "nothing"}, "PERMISSION_DENIED", "CONTRACT"),
        ({"list": "typo"}, "FAILED_PRECONDITION", "EPOCH"),
        ({"epoch": 9}, "FAILED_PRECONDITION", "EPOCH"),
        ({"table_batch": 0}, "FAILED_PRECONDITION", "BEHIND"),
        ({"asked_at": -400}, "FAILED_PRECONDITION", "CLOCK"),  # seconds from now
        ({"asked_at": 400}, "FAILED_PRECONDITION", "CLOCK"),
    ],
)
def test_requests_that_no_rule_allows(bank_a, changes, code, reason):
    wire, public, batch = bank_a
    if "asked_at" in changes:
        changes = {"asked_at": int(time.time()) + changes["asked_at"]}
    request = wire.request(
        question(public=public).request(), secrets.token_bytes(16), **{"table_batch": batch} | changes
    )
    found = refused(wire.lookup("bank-a").Evaluate, request)
    assert (found[0].name, found[1]) == (code, reason)


@pytest.mark.parametrize("back", [301, 7 * 86_400 - 60])
def test_a_question_that_is_dated_back_is_not_answered(network, bank_a, back):
    """The log would hold it, and whoever checks evidence would read that it was asked a week ago."""
    wire, public, batch = bank_a
    before = network.json("bank-a", "status")["asked_of_us_today"]
    request = wire.request(question(public=public).request(), secrets.token_bytes(16), table_batch=batch)
    event = events.open_commitment(wire.receipt(request, "bank-a").opening).event
    event.at -= back * 1000
    receipt = events.receipt(events.commit(event), event.at // 1000 + 60, wire.keys.signing)
    request.receipt.CopyFrom(receipt)
    found = refused(wire.lookup("bank-a").Evaluate, request)
    assert (found[0].name, found[1]) == ("FAILED_PRECONDITION", "AGED")
    assert network.json("bank-a", "status")["asked_of_us_today"] == before


def test_the_same_request_twice_is_charged_once_and_answered_alike(bank_a):
    wire, public, batch = bank_a
    asked = question(public=public)
    request = wire.request(asked.request(), secrets.token_bytes(16), table_batch=batch)
    stub = wire.lookup("bank-a")
    first = stub.Evaluate(request, timeout=10)
    pending = [stub.Evaluate.future(request, timeout=10) for _ in range(4)]  # at once
    answers = [each.result() for each in pending]
    assert all(each.evaluated == first.evaluated and each.repeated_answer for each in answers)
    assert {each.budget.epoch_left for each in answers} == {first.budget.epoch_left}
    asked.finish(answers[0].evaluated, answers[0].proof)
    other = question(public=public)
    changed = wire.request(other.request(), request.query_id, table_batch=batch)
    assert refused(stub.Evaluate, changed)[:2] == (grpc.StatusCode.ALREADY_EXISTS, "QUERY_ID_REUSED")


def test_a_key_other_than_the_announced_one_is_caught(bank_a):
    wire, public, batch = bank_a
    asked = Question(voprf.generate_key_pair().public, [b"x"])
    response = wire.lookup("bank-a").Evaluate(
        wire.request(asked.request(), secrets.token_bytes(16), table_batch=batch), timeout=10
    )
    with pytest.raises(Exception, match="announced key"):
        asked.finish(response.evaluated, response.proof)


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": 0},
        {"from_batch": 0},
        {"pull_id": b""},
        {"list": "nothing"},
        {"epoch": 99},
        {"from_offset": 10**12},
    ],
)
def test_bad_pulls(bank_a, changes):
    wire, _, _ = bank_a
    values = {
        "suite": common_pb2.SUITE_RISTRETTO255_SHA512,
        "list": "fraud",
        "epoch": 1,
        "from_batch": 1,
        "pull_id": secrets.token_bytes(16),
    }
    with pytest.raises(grpc.RpcError) as caught:
        list(wire.sync("bank-a").Pull(sync_pb2.PullRequest(**values | changes), timeout=10))
    expected = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
    if changes.get("list") == "nothing":
        expected = {grpc.StatusCode.PERMISSION_DENIED}  # no contract is about it
    assert caught.value.code() in expected


def test_health_and_reflection_answer(network, bank_a):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    wire, _, _ = bank_a
    channel = wire.channel("bank-a")
    health = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service="lianfang.v1.Lookup"), timeout=10
    )
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(
        reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=10)
    )
    names = {service.name for service in answer.list_services_response.service}
    assert {"lianfang.v1.NodeInfo", "lianfang.v1.ListSync", "lianfang.v1.Lookup"} <= names
    assert "lianfang.v1.Admin" not in names


# -- transcripts -----------------------------------------------------------------------------------------------------


def test_no_identifier_nor_its_hash_is_in_any_conversation_log_error_or_file(network):
    """Everything the banks listed and the centre asked, searched for byte by byte."""
    values = [*phones(0, 70), "6222021234567890128"]
    query(network, "centre", values[:70], case="transcript-4711")
    canonical = [normalise("phone", value).canonical for value in values[:70]]
    plain = [each.split(b"\x1f")[1].decode() for each in canonical]
    needles = views.traces(
        [*values, *plain, "transcript-4711", "Zhang San 1970-01-01", "zhang san/1970-01-01"], canonical
    )
    names = set()
    places = [place for name in network.ports for place in (network.log(name), network.node(name))]
    for path, held in views.contents(*places):
        names.add(path.name)
        data = held
        if path.name == "capture.jsonl":
            data = b"\n".join(message.data for message in views.read(path))
        assert not views.occurring(data, needles), path
    assert {"capture.jsonl", "node.db"} <= names


_BESIDE = ("GetInfo", "Follow")  # come at their own times, whatever is asked


def test_hit_and_miss_differ_in_nothing_that_the_holder_sees(network):
    """One question that hits and one that misses: the same messages, but for uniform bytes and the time."""
    capture = network.node("bank-a") / "data" / "capture.jsonl"
    seen = []
    for case, value in (("hit", phones(0, 1)[0]), ("miss", phones(900, 1)[0])):
        before = len(views.read(capture))
        document = query(network, "centre", [value], "--to", "bank-a", "--list", "fraud", case=case)
        assert set(outcomes(document, "bank-a").values()) == {case}
        seen.append([each for each in views.read(capture)[before:] if each.method not in _BESIDE])
    shapes = [[(each.side, each.method, len(each.data)) for each in messages] for messages in seen]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 2
    requests = [messages[0].message for messages in seen]
    for request in requests:
        event = ledger_pb2.Event.FromString(request.receipt.opening.event)
        for field in ("id", "request_hash", "case_commitment", "at"):
            event.ClearField(field)
        request.receipt.CopyFrom(
            ledger_pb2.Receipt(opening=ledger_pb2.Opening(event=event.SerializeToString()))
        )
        for field in ("query_id", "blinded", "case_commitment", "asked_at"):
            request.ClearField(field)
    assert requests[0] == requests[1]
