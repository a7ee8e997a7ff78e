"""A screening that is larger than a day's budget: it paces itself, survives a kill, and leaves the rest of the day to others."""

import datetime as dt
import json
import time
from zoneinfo import ZoneInfo

import grpc
import openpyxl
import pytest
from lianfang.v1 import admin_pb2, admin_pb2_grpc

from nodes.people.roles import Role
from nodes.services import wire
from tests.system.conftest import import_phones, phones, write_list

START = (
    "-p",
    "payment",
    "--case",
    "S-2026-0001",
    "-b",
    "customer-consent",
    "--to",
    "bank-a",
    "--list",
    "fraud",
)


@pytest.fixture
def screened(own_network):
    import_phones(own_network, "bank-a", phones(0, 40))
    own_network.run("bank-b", "sync", "bank-a")
    return own_network


def _run(network, *arguments, **options):
    """As the analyst whose work it is."""
    return network.run("bank-b", "screen", *arguments, **options)


def _json(network, *arguments, **options):
    return json.loads(_run(network, *arguments, "--json", **options).stdout)


def _wait(network, condition, seconds=90):
    end = time.monotonic() + seconds
    while True:
        (known,) = _json(network, "list")
        if condition(known):
            return known
        assert time.monotonic() < end, known
        time.sleep(1)


def test_a_screening_goes_on_over_budgets_and_a_kill(screened, tmp_path):
    network = screened
    values = phones(0, 100)
    path = write_list(
        tmp_path / "customers.csv",
        [("phone", each, f"B-{i}") for i, each in enumerate(values)],
        "kind,value,branch",
    )
    planned = _json(network, "start", str(path), *START, "--plan")
    assert planned["id"] == ""
    assert _json(network, "list") == []
    alone = _run(network, "start", str(path), *START, check=False, alone=True)
    assert (alone.returncode, "needs a second person" in alone.stderr) == (4, True)
    started = _json(network, "start", str(path), *START)
    (place,) = started["places"]
    assert (place["member"], place["list"], place["a_day"]) == ("bank-a", "fraud", 64)  # half of 128
    china = ZoneInfo("Asia/Shanghai")
    tomorrow = dt.datetime.now(china).date() + dt.timedelta(1)
    midnight = dt.datetime.combine(tomorrow, dt.time(), china)
    assert dt.datetime.fromisoformat(started["ends_at"]) == midnight
    # It takes its half of the day and waits for the next.
    waiting = _wait(network, lambda each: "waits for its budget" in each["places"][0]["detail"])
    done = waiting["places"][0]["done"]
    assert 32 <= done <= 64
    assert waiting["places"][0]["charged"] <= 64
    # The other half is left to the same member's other questions.
    other = network.json(
        "bank-b", "query", "-", "-k", "phone", "-p", "payment", "--case", "K-2", "-b", "customer-consent",
        "--to", "bank-a", "--list", "fraud", text="\n".join(phones(500, 40)) + "\n",
    )  # fmt: skip
    assert other["complete"]
    # What there is can be read, and says that it is not all.
    target = tmp_path / "so-far.csv"
    so_far = _run(network, "results", started["id"][:8], "-o", str(target), check=False)
    assert so_far.returncode == 3
    assert f"{done} of 100 values" in so_far.stdout
    assert sum(",hit," in line for line in target.read_text("utf-8-sig").splitlines()) == min(done, 40)
    # Killed in the middle: nothing is lost, nothing is asked twice. More of the budget lets it end.
    network.kill("bank-b")
    network.start_member(network.member("bank-b"), {"LIANFANG_ASK__SCREENING_SHARE": "1"})
    network.wait("bank-b")
    (again,) = _json(network, "list")
    assert again["places"][0]["done"] >= done
    ended = _wait(network, lambda each: each["state"] != "running" or "waits" in each["places"][0]["detail"])
    assert ended["places"][0]["charged"] <= 128 - 40
    if ended["state"] == "running":  # 128 a day, of which the other question had 40
        assert ended["places"][0]["done"] < 100
        _run(network, "stop", started["id"][:8])
        assert _json(network, "list")[0]["state"] == "stopped"


def test_results_are_complete_in_order_and_for_who_asked_alone(screened, tmp_path):
    network = screened
    values = phones(20, 50)
    rows = [("phone", each, f"B-{i}") for i, each in enumerate(values)]
    rows.insert(7, ("phone", "138****0001", "B-x"))
    path = write_list(tmp_path / "customers.csv", rows, "kind,value,branch")
    started = _json(network, "start", str(path), *START)
    assert [each["row"] for each in started["problems"]] == [8]
    ended = _wait(network, lambda each: each["state"] == "finished")
    assert ended["places"][0]["done"] == 51
    target = tmp_path / "all.xlsx"
    done = _run(network, "results", started["id"], "-o", str(target), check=False)
    assert done.returncode == 3  # a value was not asked
    header, *cells = openpyxl.load_workbook(target).active.iter_rows(values_only=True)
    column = header.index
    found = {row[column("value")]: row[column("bank-a/fraud")] for row in cells}
    assert [row[column("branch")] for row in cells] == [row[2] for row in rows]
    assert {value for value, outcome in found.items() if outcome == "hit"} == set(phones(20, 20))
    assert found["138****0001"] == "not-asked"
    assert {row[column("case")] for row in cells} == {"S-2026-0001"}
    # Nobody else reads them, and none of it lies open on the disk.
    network.run("bank-b", "user", "roles", "li-na", "--role", "operator", "--role", "analyst")
    with network.channel("bank-b", Role.OPERATOR) as channel:
        request = admin_pb2.ScreeningResultsRequest(id=started["id"])
        with pytest.raises(grpc.RpcError) as caught:
            list(admin_pb2_grpc.AdminStub(channel).ScreeningResults(request))
    assert wire.reason_of(caught.value) == "OWN"
    folder = network.node("bank-b") / "data" / "screenings"
    everything = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert phones(20, 1)[0].encode() not in everything
    assert b"S-2026-0001" not in everything
    assert all(each.stat().st_mode & 0o077 == 0 for each in folder.rglob("*") if each.is_file())
    events = network.json("bank-b", "ledger", "events", "--since", "1h")["events"]
    assert {"proposed", "approved", "done"} <= {
        each["reason"] for each in events if each["resource"] == "Admin/StartScreening"
    }


def test_whoever_may_not_ask_any_more_asks_no_more(screened, tmp_path):
    network = screened
    path = write_list(tmp_path / "many.csv", [("phone", each) for each in phones(0, 150)], "kind,value")
    _json(network, "start", str(path), *START)
    _wait(network, lambda each: "waits for its budget" in each["places"][0]["detail"])
    network.run("bank-b", "user", "remove", "zhang-wei")
    end = time.monotonic() + 60
    while True:
        with network.channel("bank-b", Role.OPERATOR) as channel:
            (known,) = admin_pb2_grpc.AdminStub(channel).Screenings(admin_pb2.ScreeningsRequest()).screenings
        if known.state == "stopped":
            break
        assert time.monotonic() < end
        time.sleep(1)
    assert known.detail == "zhang-wei may not ask any more"
    assert known.case_number == ""  # to who asked alone
