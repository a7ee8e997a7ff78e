"""The command line as people use it: from an empty folder to an answered question, in two languages, with rubbish."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nodes.config import Home
from nodes.demo.network import free_port, program
from protocols import group
from tests.system.conftest import import_phones, outcomes, phones, query, write_list


def run(*arguments, text=None, check=True, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
    done = subprocess.run(
        program(["lianfang", *map(str, arguments)]),
        env=inherited | {"LIANFANG_LANG": "en"} | environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def as_person(folder, *arguments, person="li-na", text=None, check=True):
    """As somebody of a node's people; the approver approves what takes two."""

    def session(name):
        return {"LIANFANG_SESSION": str(folder / "people" / f"{name}.session")}

    command = (*arguments, "-c", folder)
    done = run(*command, text=text, check=False, **session(person))
    waiting = re.search(r"pending approve ([0-9a-f]{12})", done.stderr)
    if waiting:
        run("pending", "approve", waiting[1], "-c", folder, **session("wang-fang"))
        done = run(*command, text=text, check=False, **session(person))
    assert not check or done.returncode == 0, done.stderr
    return done


def test_from_nothing_to_an_answer_by_the_readmes_commands(tmp_path_factory):
    base = Path(tmp_path_factory.mktemp("cli"))
    run("ca", "init", "--ca", base / "ca", "--network", "n.example", "--no-passphrase")
    servers = []
    try:
        for name, role in (("bank-x", "bank"), ("centre", "centre")):
            address = f"127.0.0.1:{free_port()}"
            run(
                "init",
                base / name,
                "--name",
                name,
                "--role",
                role,
                "--network",
                "n.example",
                "--listen",
                address,
                "--ledger-listen",
                f"127.0.0.1:{free_port()}",
            )
        for name in ("bank-x", "centre"):
            run("ca", "sign", base / name / "request.json", "--ca", base / "ca", "-o", base / f"{name}.json")
        for name in ("bank-x", "centre"):
            run("enroll", base / name, base / f"{name}.json")
            log = (base / f"{name}.log").open("wb")
            servers.append(
                subprocess.Popen(
                    program(["lianfang", "serve", "--config", str(base / name / "node.toml")]),
                    stderr=log,
                    env=os.environ | {"LIANFANG_LEDGER__TICK_SECONDS": "2"},  # not the minute of real ones
                )
            )
        for name in ("bank-x", "centre"):
            deadline = time.monotonic() + 180
            while run("ping", "-c", base / name, check=False).returncode:
                assert time.monotonic() < deadline
            assert "sign in" in run("status", "-c", base / name, check=False).stderr
            found = json.loads(run("doctor", "-c", base / name, "--json").stdout)["findings"]
            assert "sign in" in found[-1]["found"]  # not that the node were not running
            run("dev", "people", base / name)
        path = write_list(base / "list.csv", [("phone", value, "gambling", "3") for value in phones(0, 5)])
        as_person(base / "bank-x", "list", "import", path, "--list", "fraud")
        as_person(base / "bank-x", "list", "activate", "fraud")
        # bank-x was signed before the centre and has not heard of it: the centre shows it the CA's newer list.
        terms = run("contract", "template").stdout.replace(
            'holder = ["bank-a", "bank-b"]', 'holder = "bank-x"'
        )
        (base / "contract.toml").write_text(terms)
        done = as_person(base / "centre", "contract", "propose", base / "contract.toml", "--json")
        contract = json.loads(done.stdout)["contract"]
        deadline = time.monotonic() + 180
        while as_person(base / "bank-x", "contract", "approve", contract[:12], check=False).returncode:
            assert time.monotonic() < deadline
        while "active" not in as_person(base / "centre", "contract", "show", contract[:12]).stdout:
            assert time.monotonic() < deadline
        as_person(base / "centre", "sync")
        done = as_person(
            base / "centre",
            *("query", "-", "--purpose", "payment", "--case", "A-1", "--basis", "police-request", "--json"),
            person="zhang-wei",
            text=phones(0, 1)[0] + "\n",
        )
        assert json.loads(done.stdout)["rows"][0]["answers"][0]["outcome"] == "hit"
        done = as_person(base / "bank-x", "doctor", "--json")
        findings = json.loads(done.stdout)["findings"]
        assert {each["state"] for each in findings} <= {"ok", "warning"}
        assert any("10^7" in each["found"] for each in findings)
        assert any(each["found"].startswith(f"{group.BACKEND}: ") for each in findings)
    finally:
        for server in servers:
            server.terminate()
        assert [server.wait(60) for server in servers] == [0] * len(servers)


def test_a_token_that_cannot_be_read_is_named(tmp_path):
    run("init", tmp_path / "n", "--name", "n", "--role", "bank")
    (tmp_path / "session").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:  # as of a node that runs
        place = Home(tmp_path / "n").socket
        place.parent.mkdir(exist_ok=True)
        listening.bind(str(place))
        done = run("status", "-c", tmp_path / "n", check=False, LIANFANG_SESSION=str(tmp_path / "session"))
    assert done.returncode == 1
    assert str(tmp_path / "session") in done.stderr


def test_bundles_and_requests_that_are_none(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    run("ca", "init", "--ca", tmp_path / "ca", "--no-passphrase")
    assert run("ca", "sign", tmp_path / "x.json", "--ca", tmp_path / "ca", check=False).returncode == 1
    assert run("ca", "init", "--ca", tmp_path / "ca", check=False).returncode == 1
    run("init", tmp_path / "n", "--name", "n", "--role", "bank")
    assert run("init", tmp_path / "n", "--name", "n", "--role", "bank", check=False).returncode == 1
    done = run("enroll", tmp_path / "n", tmp_path / "x.json", check=False)
    assert (done.returncode, "x.json" in done.stderr) == (1, True)
    assert run("init", tmp_path / "m", "--name", "m", "--role", "robber", check=False).returncode == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("[lists]\nepoch_days = -1\n", "lists.epoch_days"),
        ("[nonsense]\n", "nonsense"),
        ("broken [", "node.toml"),
        ("[ask]\ndeadline_seconds = 'x'\n", "ask.deadline_seconds"),
    ],
)
def test_a_broken_configuration_is_named_by_file_and_field(tmp_path, change, field):
    run("init", tmp_path / "n", "--name", "n", "--role", "bank")
    path = tmp_path / "n" / "node.toml"
    path.write_text(path.read_text().split("[lists]")[0] + change)
    for command in ("serve", "doctor", "status"):
        done = run(command, "-c", path, check=False)
        assert done.returncode == 1
        assert field in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_commands_say_what_to_do_where_nothing_runs(tmp_path):
    run("init", tmp_path / "n", "--name", "n", "--role", "bank")
    done = run("status", "-c", tmp_path / "n", check=False)
    assert (done.returncode, "lianfang serve" in done.stderr) == (1, True)
    done = run("doctor", "-c", tmp_path / "n", check=False)
    assert (done.returncode, "request.json" in done.stdout) == (1, True)
    assert run("status", "-c", tmp_path / "nowhere", check=False).returncode == 1


def test_chinese_and_english(tmp_path):
    assert "节点" in run("--help", LIANFANG_LANG="zh_CN.UTF-8").stdout
    assert "节点" in run("--help", "--lang", "zh").stdout
    assert "节点" not in run("--help", "--lang", "en", LIANFANG_LANG="zh").stdout
    assert run("--lang", "fr", "status", check=False).returncode == 2
    (tmp_path / "x.json").write_text("{}")
    assert "错误" in run("enroll", tmp_path, tmp_path / "x.json", "--lang", "zh", check=False).stderr


def test_fifty_thousand_lines(network):
    """As many as an investigator may paste: cost first, all rows in order, a rerun costs nothing."""
    import_phones(network, "bank-a", phones(0, 50), name="mass")
    network.run("centre", "sync", "bank-a")
    values = [f"1380{i:07d}" for i in range(49_950)] + phones(0, 50)
    path = network.folder / "mass.txt"
    path.write_text("\n".join(values) + "\n")
    options = (
        "query",
        str(path),
        "--kind",
        "phone",
        "--purpose",
        "payment",
        "--case",
        "mass",
        "--basis",
        "police-request",
    )
    options += ("--to", "bank-a", "--list", "mass")
    assert network.json("centre", *options, "--plan")["plan"][0]["cost"] >= 50_000
    document = network.json("centre", *options)
    assert document["complete"]
    assert [row["value"] for row in document["rows"]] == values
    found = outcomes(document, "bank-a", "mass")
    assert {value for value, outcome in found.items() if outcome == "hit"} == set(phones(0, 50))
    again = network.json("centre", *options)
    assert (again["holders"][0]["charged"], again["complete"]) == (0, True)


def test_thousands_of_bad_rows_are_all_reported(network):
    path = network.folder / "awful.csv"
    rows = [
        ("phone", "x" * 20, "gambling", "3") if i % 2 else ("phone", f"1390{i:07d}", "gambling", "3")
        for i in range(30_000)
    ]
    write_list(path, rows)
    refused = network.run("bank-b", "list", "import", str(path), "--list", "awful", check=False)
    assert (refused.returncode, "Nothing was imported" in refused.stderr) == (1, True)
    result = network.json("bank-b", "list", "import", str(path), "--list", "awful", "--skip-bad")
    assert (result["added"], result["bad"]) == (15_000, 15_000)
    assert len(Path(result["bad_file"]).read_text("utf-8-sig").splitlines()) == 15_001


def test_exports_come_back_and_a_typo_destroys_nothing(network, tmp_path):
    import_phones(network, "bank-b", phones(700, 20), name="round")
    path = tmp_path / "export.csv"
    assert network.json("bank-b", "list", "export", "round", "--output", str(path))["entries"] == 20
    assert path.stat().st_mode & 0o777 == 0o600
    again = network.json("bank-b", "list", "import", str(path), "--list", "round")
    assert (again["unchanged"], again["added"]) == (20, 0)
    assert network.run("bank-b", "list", "export", "typo", "--output", str(path), check=False).returncode == 1
    assert len(path.read_text().splitlines()) == 21
    source = write_list(tmp_path / "s.csv", [("phone", "bad", "gambling", "3")])
    done = network.run(
        "bank-b",
        "list",
        "import",
        str(source),
        "--list",
        "round",
        "--skip-bad",
        "--bad-file",
        str(source),
        check=False,
    )
    assert done.returncode == 1
    assert "phone,bad" in source.read_text()


def test_results_that_cannot_be_written_are_not_asked_for(network):
    before = network.json("bank-a", "status")["asked_of_us_today"]
    done = network.run(
        "centre",
        *(
            "query",
            "-",
            "--purpose",
            "payment",
            "--case",
            "nw",
            "--basis",
            "police-request",
            "-o",
            "/nonexistent/x.csv",
        ),
        text="13900000000\n",
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert network.json("bank-a", "status")["asked_of_us_today"] == before


def test_gb18030_on_standard_input(network):
    command, environment = network.command(
        "centre", "query", "-", "--purpose", "payment", "--case", "gb", "--basis", "police-request", "--json"
    )
    done = subprocess.run(
        command,
        env=environment,
        input="手机号\t13900000000\n".encode("gb18030"),
        capture_output=True,
        check=False,
    )
    assert json.loads(done.stdout)["problems"] == []


class Relay(threading.Thread):
    """Passes TLS through unseen, choosing the node by the server name in the ClientHello, as a bank's gateway does."""

    def __init__(self, routes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.routes, self.port, self.seen = routes, free_port(), []
        self.ready = threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._connection, "127.0.0.1", self.port):
            self.ready.set()
            await asyncio.sleep(60)

    async def _connection(self, reader, writer) -> None:
        hello = await reader.read(4096)
        name = next((name for name in self.routes if name.encode() in hello), None)
        self.seen.append(name)
        if name is None:
            writer.close()
            return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.routes[name])
        upstream.write(hello)

        async def pump(source, target):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()

        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer), return_exceptions=True)


def test_it_works_behind_a_relay_that_routes_by_server_name(network):
    from tests.system.conftest import Wire

    wire = Wire(network, "centre")
    relay = Relay({wire.member(name).name.dns: network.ports[name] for name in ("bank-a", "bank-b")})
    relay.start()
    assert relay.ready.wait(10)
    from lianfang.v1 import node_pb2, node_pb2_grpc

    for name in ("bank-a", "bank-b"):
        stub = node_pb2_grpc.NodeInfoStub(wire.channel(name, f"127.0.0.1:{relay.port}"))
        assert stub.GetInfo(node_pb2.GetInfoRequest(), timeout=60).member == wire.member(name).id
    assert set(relay.seen) == set(relay.routes)
    wire.close()


def test_an_interrupted_query_leaves_no_traceback(network):
    """While the program loads, while the question is under way, and perhaps when it has ended."""
    import_phones(network, "bank-a", phones(0, 3), name="mass")
    network.run("centre", "sync")
    path = network.folder / "slow.txt"
    path.write_text("\n".join(f"1370{i:07d}" for i in range(4_000)) + "\n")
    options = ("--kind", "phone", "--purpose", "payment", "--case", "int", "--basis", "police-request")
    command, environment = network.command("centre", "query", str(path), *options)
    for seconds in (1, 2.5, 5):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors
        # The signal itself: before the interpreter has its handler, and when it has given it back. 4: the question
        # was sent before the signal came, and waits for a second person.
        assert process.returncode in (0, 1, 4, 130, -signal.SIGINT)
    assert query(network, "centre", phones(0, 1), case="after-int", check=False)["rows"]
