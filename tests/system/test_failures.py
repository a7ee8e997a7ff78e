"""Slow, dead, killed and lying nodes. Each test breaks a network of its own or what only it uses."""

import contextlib
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from lianfang.v1 import common_pb2, node_pb2, node_pb2_grpc, sync_pb2, sync_pb2_grpc

from nodes.demo.network import Network, family, free_port, program
from nodes.identity.authority import Authority, read_request
from nodes.ledger.book import clear_key
from protocols import group, sealed, statement, voprf
from protocols.identifiers import form
from protocols.ledger import events
from protocols.sealed import BatchHash, ListEpoch
from tests.system.conftest import Wire, import_phones, outcomes, phones, query, start, wait_until, write_list


class Unfollowing(Network):
    """Its nodes hear of a list's changes when they sync: what each sync meets is up to the tests."""

    def start_member(self, member, extra=None):
        super().start_member(member, {"LIANFANG_ASK__FOLLOW": "false"} | (extra or {}))


@pytest.fixture(scope="module")
def broken():
    import shutil
    import tempfile

    made = Unfollowing(Path(tempfile.mkdtemp(prefix="lf-broken-")))
    try:
        start(made)
        for i, bank in enumerate(("bank-a", "bank-b", "bank-c")):
            import_phones(made, bank, phones(i * 10, 30))
        made.run("centre", "sync")
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def test_a_slow_holder_is_named_and_delays_nobody_beyond_the_deadline(broken):
    os.kill(broken.pid("bank-c"), signal.SIGSTOP)
    try:
        started = time.monotonic()
        document = query(broken, "centre", phones(0, 40), "--deadline", "8", case="slow", check=False)
        seconds = time.monotonic() - started
    finally:
        os.kill(broken.pid("bank-c"), signal.SIGCONT)
    assert seconds < 60  # as long as it is mute, nothing else would end the command
    assert not document["complete"]
    assert {each["member"]: each["outcome"] for each in document["holders"]} == {
        "bank-a": "answered",
        "bank-b": "answered",
        "bank-c": "timeout",
    }
    assert sum(outcome == "hit" for outcome in outcomes(document, "bank-a").values()) == 30
    assert set(outcomes(document, "bank-c").values()) == {"timeout"}
    # The same question again asks bank-c only, with the same bytes: it is charged once.
    again = query(broken, "centre", phones(0, 40), case="slow")
    assert {each["member"]: each["charged"] for each in again["holders"] if each["member"] != "bank-c"} == {
        "bank-a": 0,
        "bank-b": 0,
    }
    assert again["complete"]
    asked = broken.json("bank-c", "status")["asked_of_us_today"]
    assert [each["evaluations"] for each in asked] == [40]


def test_a_dead_holder_is_named_and_comes_back(broken):
    broken.kill("bank-b")
    document = query(broken, "centre", phones(100, 5), case="dead", check=False)
    assert {each["member"]: each["outcome"] for each in document["holders"]}["bank-b"] == "unreachable"
    assert set(outcomes(document, "bank-a").values()) == {"miss"}
    broken.start_member(broken.member("bank-b"))
    broken.wait("bank-b")
    deadline = time.monotonic() + 180
    while not (again := query(broken, "centre", phones(100, 5), case="dead", check=False))["complete"]:
        assert time.monotonic() < deadline
    assert set(outcomes(again, "bank-b").values()) == {"miss"}


def test_a_member_that_is_back_is_reached_at_once(broken):
    """Not only when gRPC tries to connect the next time."""
    for _ in range(2):
        broken.kill("bank-b")
        for _ in range(3):
            away = broken.run("centre", "sync", "bank-b", check=False)
            assert "cannot be reached" in away.stdout + away.stderr
        broken.start_member(broken.member("bank-b"))
        broken.wait("bank-b", published=False)
        broken.run("centre", "sync", "bank-b")


def test_a_caller_that_hangs_up_stops_nothing(broken):
    """Forty pulls and questions that are cancelled at once: the next one is answered all the same."""
    wire = Wire(broken, "centre")
    head = next(each for each in wire.info("bank-a").lists if each.list == "fraud").epochs[-1]
    batch = statement.parse(head.head.statement).batch.number
    point = group.multiply_base((7).to_bytes(32, "little"))
    lookup, sync = wire.lookup("bank-a"), wire.sync("bank-a")
    for i in range(40):
        request = wire.request(point, secrets.token_bytes(16), table_batch=batch)
        call = lookup.Evaluate.future(request, timeout=60)
        time.sleep(i / 10_000)
        call.cancel()
        pull = sync_pb2.PullRequest(
            suite=1, list="fraud", epoch=1, from_batch=1, pull_id=secrets.token_bytes(16)
        )
        sync.Pull(pull, timeout=60).cancel()
    request = wire.request(point, secrets.token_bytes(16), table_batch=batch)
    assert len(lookup.Evaluate(request, timeout=60).evaluated) == 32
    wire.close()


def test_members_who_collude_run_into_the_lists_budget(broken):
    """Two banks share what they learn: together they get no more than the list gives to all.

    Half of the list's 200 is kept for urgent questions, so the second bank's 64 are too many.
    """
    path = broken.node("bank-a") / "policy.toml"
    text = path.read_text()
    path.write_text(text + '\n[budgets."pooled"]\nepoch = 200\nday = 200\n')
    import_phones(broken, "bank-a", phones(0, 5), name="pooled")
    outcomes_by_bank = []
    for bank in ("bank-b", "bank-c"):
        broken.run(bank, "sync", "bank-a")
        document = query(
            broken, bank, phones(500, 64), "--to", "bank-a", "--list", "pooled", case="pool", check=False
        )
        outcomes_by_bank.append(document["holders"][0]["outcome"])
    assert outcomes_by_bank == ["answered", "refused"]
    path.write_text(text)


def test_a_batch_file_that_lost_its_end_ends_the_pull(broken):
    """A damaged disk at the holder: an error in time, not a stream without end, and no path in it."""
    import_phones(broken, "bank-a", phones(0, 5), name="damaged")
    (path,) = broken.node("bank-a").glob("data/lists/damaged/1/*.batch")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    wire = Wire(broken, "centre")
    request = sync_pb2.PullRequest(
        suite=1, list="damaged", epoch=1, from_batch=1, pull_id=secrets.token_bytes(16)
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(wire.sync("bank-a").Pull(request, timeout=60))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert str(broken.folder) not in caught.value.details()
    wire.close()
    import_phones(broken, "bank-a", phones(0, 5), name="whole")
    steps = broken.json("centre", "sync", "bank-a", check=False)
    states = {step["list"] or step["member"]: step["state"] for step in steps}
    # One bad list does not keep the others old.
    assert (states["bank-a"], states["whole"]) == ("failed", "current")
    path.write_bytes(whole)
    broken.run("centre", "sync", "bank-a")


def go_on(paused):
    for each in paused:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)


def test_a_graceful_stop_lets_calls_in_flight_end_well(broken):
    """SIGTERM while a large batch is evaluated: the answer arrives, the process ends with 0."""
    wire = Wire(broken, "centre")
    point = group.multiply_base((9).to_bytes(32, "little"))
    head = next(each for each in wire.info("bank-c").lists if each.list == "fraud").epochs[-1]
    batch = statement.parse(head.head.statement).batch.number
    request = wire.request(point * 16_384, secrets.token_bytes(16), "bank-c", table_batch=batch)
    _, *workers = family(broken.pid("bank-c"))
    assert workers, "they have sealed a list"
    try:
        # However fast they are, the answer is not ready before the node is told to stop.
        for each in workers:
            os.kill(each, signal.SIGSTOP)
        call = wire.lookup("bank-c").Evaluate.future(request, timeout=60)
        time.sleep(0.5)
        assert not call.done()
        threading.Timer(1.0, go_on, [workers]).start()
        assert broken.stop_member("bank-c") == 0
        assert len(call.result().evaluated) == 32 * 16_384
        wire.close()
    finally:
        go_on(workers)
        broken.start_member(broken.member("bank-c"))
        broken.wait("bank-c")


def test_two_serves_do_not_share_a_store(broken):
    done = subprocess.run(
        program(["lianfang", "serve", "--config", str(broken.node("bank-a"))]),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    assert "in use" in done.stderr


# -- kill -9 -------------------------------------------------------------------------------------------------------


def restart(network: Network, name: str) -> None:
    network.kill(name)
    network.start_member(network.member(name))
    network.wait(name)


def in_background(network: Network, member: str, *arguments: str) -> subprocess.Popen:
    command, environment = network.command(member, *arguments)
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


def test_kill_at_random_moments_of_import_seal_sync_and_query(broken):
    """Nothing acknowledged is lost, no budget is forgotten, and the same commands bring everything to its end."""
    rng = random.Random(20261122)
    values = phones(2_000, 6_000)
    path = write_list(broken.folder / "big.csv", [("phone", value, "gambling", "2") for value in values])
    arguments = ("list", "import", str(path), "--list", "big", "--json")
    for _ in range(3):  # import and seal
        command = in_background(broken, "bank-a", *arguments)
        time.sleep(rng.uniform(0.8, 3.0))
        restart(broken, "bank-a")
        command.wait(60)
    result = broken.json("bank-a", "list", "import", str(path), "--list", "big")
    assert result["added"] + result["unchanged"] == 6_000
    assert result["inactive"]
    for _ in range(2):  # approved once, sealed in the end
        broken.run("bank-a", "list", "activate", "big", check=False, alone=True)
    (waiting,) = [each for each in broken.json("bank-a", "pending", "list") if each["to_decide"]]
    broken.approve("bank-a", waiting["id"])
    command = in_background(broken, "bank-a", "list", "activate", "big")
    time.sleep(rng.uniform(0.8, 2.0))
    restart(broken, "bank-a")
    command.wait(60)
    broken.run("bank-a", "list", "activate", "big", check=False)  # it may be active by now
    deadline = time.monotonic() + 180
    while (stats := broken.json("bank-a", "list", "stats", "big"))["pending"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert stats["live"] == stats["epochs"][0]["sealed"] == 6_000
    for _ in range(2):  # sync, killing the querier and the holder in turns
        for victim in ("centre", "bank-a"):
            command = in_background(broken, "centre", "sync", "bank-a")
            time.sleep(rng.uniform(0.6, 1.4))
            restart(broken, victim)
            command.wait(60)
    broken.run("centre", "sync", "bank-a")
    asked = [*values[:1_500], *phones(9_000, 500)]
    file = broken.folder / "asked.txt"
    file.write_text("\n".join(asked) + "\n")
    options = (
        "query",
        str(file),
        "--kind",
        "phone",
        "--purpose",
        "payment",
        "--case",
        "kill",
        "--basis",
        "police-request",
    )
    options += ("--to", "bank-a", "--list", "big", "--json")
    policy = broken.node("centre") / "policy.toml"  # one person asks: what is killed here is the question
    policy.write_text(
        policy.read_text() + "\n[second_person]\nquery_items = 5000\nevaluations_a_day = 100000\n"
    )
    for victim in ("centre", "bank-a", "centre"):  # query
        command = in_background(broken, "centre", *options)
        time.sleep(rng.uniform(1.0, 2.5))
        restart(broken, victim)
        command.wait(60)
    deadline = time.monotonic() + 180
    while not (document := broken.json("centre", *options[:-1], check=False))["complete"]:
        assert time.monotonic() < deadline
    found = outcomes(document, "bank-a", "big")
    assert {value for value, outcome in found.items() if outcome == "hit"} == set(values[:1_500])
    # One question of 2,000, padded to 2,048, was charged once, whatever was killed.
    used = [
        each["evaluations"]
        for each in broken.json("bank-a", "status")["asked_of_us_today"]
        if each["list"] == "big"
    ]
    assert used == [2_048]


# -- a lying holder --------------------------------------------------------------------------------------------------


class LyingHolder(node_pb2_grpc.NodeInfoServicer, sync_pb2_grpc.ListSyncServicer):
    """bank-b's own keys in dishonest hands: says and sends what a test tells it to."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.wire = Wire(network, "bank-b")
        self.name = str(self.wire.member("bank-b").name)
        self.key = voprf.generate_key_pair()
        self.where = ListEpoch(network.settings.network, self.name, "lies", 1)
        self.heads: list[node_pb2.EpochHead] = []
        self.parts: list[sync_pb2.PullResponse] = []
        self.script: list[list[sync_pb2.PullResponse]] = []  # for the next pulls, one by one
        self.raw_lists: list[node_pb2.ListHead] | None = None

    def opened(self, key: voprf.KeyPair | None = None) -> common_pb2.SignedStatement:
        now = int(time.time())
        said = statement.epoch_opened(self.where, now - 5, (key or self.key).public, now + 86_400, form())
        return statement.sign(self.wire.keys.signing, said)

    def batch(
        self, number: int, previous: bytes, content: bytes, counts: tuple[int, int]
    ) -> tuple[common_pb2.SignedStatement, bytes]:
        hasher = BatchHash(self.where, number, previous, *counts)
        hasher.update(content)
        said = statement.batch(
            self.where, int(time.time()) - number, number, previous, hasher.digest(), counts
        )
        return statement.sign(self.wire.keys.signing, said), hasher.digest()

    def publish(self, *signed: common_pb2.SignedStatement) -> None:
        """Put statements into bank-b's log, past its own code, and wait for the head that holds them."""
        path = self.network.node("bank-b") / "data" / "node.db"
        with sqlite3.connect(path, timeout=30) as connection:
            for each in signed:
                leaf = events.statement_leaf(each)
                connection.execute(
                    "INSERT OR IGNORE INTO ledger_entry VALUES (NULL, ?, 0, '', x'', x'', 0, 0, ?, NULL, NULL)",
                    (clear_key(leaf), leaf),
                )
        deadline = time.monotonic() + 180
        size = self.network.json("bank-b", "status")["ledger"]["published_size"]
        while True:
            ledger = self.network.json("bank-b", "status")["ledger"]
            if not ledger["waiting"] and ledger["published_size"] > size:
                return
            assert time.monotonic() < deadline, ledger
            time.sleep(0.3)

    def GetInfo(self, request, context):
        lists = self.raw_lists
        if lists is None:
            lists = [
                node_pb2.ListHead(
                    list="lies", epochs=self.heads, purposes=[2], budget=common_pb2.Budget(day_left=9)
                )
            ]
        return node_pb2.GetInfoResponse(member=self.name, now=int(time.time()), suites=[1], lists=lists)

    def Pull(self, request, context):
        yield from self.script.pop(0) if self.script else self.parts


@pytest.fixture
def liar(broken):
    """Stops bank-b and serves in its place; gives the place back afterwards."""
    broken.stop_member("bank-b")
    # Its real node goes on elsewhere, for its log: a liar who is believed has to publish its lies.
    broken.start_member(broken.member("bank-b"), {"LIANFANG_NODE__LISTEN": f"127.0.0.1:{free_port()}"})
    broken.wait("bank-b")
    holder = LyingHolder(broken)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    node_pb2_grpc.add_NodeInfoServicer_to_server(holder, server)
    sync_pb2_grpc.add_ListSyncServicer_to_server(holder, server)
    ca = (broken.node("bank-b") / "certs" / "ca.crt").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(holder.wire.keys.tls_pem(), holder.wire.certificate)], ca, True
    )
    server.add_secure_port(f"127.0.0.1:{broken.ports['bank-b']}", credentials)
    server.start()
    yield holder
    server.stop(0).wait()
    broken.stop_member("bank-b")
    broken.start_member(broken.member("bank-b"))
    broken.wait("bank-b")


def sync_bank_b(network: Network, status: int) -> str:
    done = network.run("centre", "sync", "bank-b", "--json", check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def content(count: int) -> bytes:
    return b"".join(sorted(secrets.token_bytes(sealed.RECORD) for _ in range(count)))


def test_a_stream_that_is_truncated_reordered_repeated_or_changed(broken, liar):
    data = content(64)
    descriptor, _ = liar.batch(1, bytes(32), data, (64, 0))
    liar.heads = [node_pb2.EpochHead(opened=liar.opened(), head=descriptor)]
    liar.publish(liar.heads[0].opened, descriptor)
    opening = sync_pb2.PullResponse(descriptor=descriptor)
    half, rest = data[:3_000], data[3_000:]
    flipped = bytes([data[0] ^ 1]) + data[1:]
    unsorted = data[96:192] + data[:96] + data[192:]

    def parts(*pieces: bytes, first: bool = True) -> list[sync_pb2.PullResponse]:
        return [*([opening] if first else []), *(sync_pb2.PullResponse(content=piece) for piece in pieces)]

    lies = {
        "not what its descriptor says": [
            parts(flipped),
            parts(unsorted),
            parts(rest, half),
            parts(half, half, data[6_000:]),
        ],
        "longer": [parts(half, data)],
        "before a descriptor": [parts(data, first=False)],
        "before the last one": [[*parts(half), opening, *parts(rest, first=False)]],
    }
    for message, streams in lies.items():
        for stream in streams:
            liar.parts = stream
            said = sync_bank_b(broken, 1)
            assert message in said or "ended the stream" in said or "longer" in said, (message, said)
    liar.script, liar.parts = [parts(half)], [opening]  # truncated, and nothing more when asked again
    assert "ended the stream" in sync_bank_b(broken, 1)
    liar.parts = [opening, sync_pb2.PullResponse(content=rest)]  # taken up where it broke off
    sync_bank_b(broken, 0)
    copies = {each["list"]: each for each in broken.json("centre", "status")["copies"]}
    assert (copies["lies"]["batch"], copies["lies"]["entries"]) == (1, 64)
    # Two descriptors for one slot: caught, kept as evidence, and the list is not asked any more.
    second, _ = liar.batch(1, bytes(32), content(64), (64, 0))
    liar.heads = [node_pb2.EpochHead(opened=liar.opened(), head=second)]
    liar.heads[0].opened.CopyFrom(liar.opened())
    sync_bank_b(broken, 1)
    assert any(each["list"] == "lies" for each in broken.json("centre", "status")["alarms"])
    document = query(
        broken, "centre", phones(0, 1), "--to", "bank-b", "--list", "lies", case="lie", check=False
    )
    assert "two statements" in str(document["plan"]) + str(document["holders"])


def test_a_key_or_a_table_for_one_asker_alone_is_caught(broken, liar):
    """What bank-b shows the centre is not what its log shows everybody: refused, with an alarm, and never asked."""
    network = broken.settings.network

    def shown(name: str, opened: common_pb2.SignedStatement, head: common_pb2.SignedStatement) -> None:
        epoch = node_pb2.EpochHead(opened=opened, head=head)
        budget = common_pb2.Budget(day_left=9)
        liar.raw_lists = [node_pb2.ListHead(list=name, epochs=[epoch], purposes=[2], budget=budget)]

    for name in ("own-key", "own-table"):
        liar.where = ListEpoch(network, liar.name, name, 1)
        opened, (public, _) = liar.opened(), liar.batch(1, bytes(32), content(16), (16, 0))
        liar.publish(opened, public)
        own_table, _ = liar.batch(1, bytes(32), content(16), (16, 0))
        if name == "own-key":
            shown(name, liar.opened(voprf.generate_key_pair()), public)
        else:
            shown(name, opened, own_table)
        said = sync_bank_b(broken, 1)
        assert "kept as evidence" in said
    # A whole list that the log does not know at all.
    liar.where = ListEpoch(network, liar.name, "own-list", 1)
    liar.key = voprf.generate_key_pair()
    head, _ = liar.batch(1, bytes(32), content(16), (16, 0))
    shown("own-list", liar.opened(), head)
    assert "unlogged statement" in sync_bank_b(broken, 1)
    alarms = {each["list"]: each["what"] for each in broken.json("centre", "status")["alarms"]}
    assert alarms["own-key"] == "two statements for epoch 1, epoch-opened"
    assert alarms["own-table"] == "two statements for epoch 1, batch-1"
    assert alarms["own-list"] == "unlogged statement for epoch 1, epoch-opened"
    assert not {each["list"] for each in broken.json("centre", "status")["copies"]} & set(alarms)


def test_what_a_holder_says_wrongly_harms_its_own_list_only(broken, liar):
    foreign = LyingHolder(broken)
    foreign.wire = Wire(broken, "bank-c")
    good, _ = liar.batch(1, bytes(32), content(16), (16, 0))
    broken_opened = common_pb2.SignedStatement(statement=b"\xff\xff", signature=bytes(64))
    lies = [
        [node_pb2.ListHead(list="lies", epochs=[node_pb2.EpochHead(opened=broken_opened, head=good)])],
        [node_pb2.ListHead(list="lies", epochs=[node_pb2.EpochHead(opened=foreign.opened(), head=good)])],
        [node_pb2.ListHead(list="../../etc", epochs=[])],
        [node_pb2.ListHead(list="lies", epochs=[node_pb2.EpochHead(opened=good, head=good)])],
        [node_pb2.ListHead(list=f"list-{i}") for i in range(50)],
    ]
    for raw in lies:
        liar.raw_lists = raw
        sync_bank_b(broken, 1)
        document = query(
            broken, "centre", phones(0, 3), "--to", "bank-a", "--to", "bank-c", case=secrets.token_hex(4)
        )
        assert document["complete"]


# -- certificates ------------------------------------------------------------------------------------------------------


def test_tls_keys_are_renewed_twice_under_running_nodes(own_network):
    """`enroll` twice without a restart took a node off the network."""
    network = own_network
    import_phones(network, "bank-a", phones(0, 3))
    ca = Authority(network.folder / "ca")
    keys = set()
    for turn in range(3):
        for member in ("bank-a", "centre"):
            folder = network.node(member)
            before = (folder / "keys" / "tls.key").read_bytes()
            made = subprocess.run(
                program(["lianfang", "renew", str(folder), "--json"]),
                capture_output=True,
                check=True,
                text=True,
            )
            request = read_request((folder / "renewal.json").read_text())
            assert json.loads(made.stdout)["fingerprint"]
            bundle = folder / "bundle.json"
            bundle.write_text(ca.sign(request, keep_old_key=True).to_json())
            subprocess.run(
                program(["lianfang", "enroll", str(folder), str(bundle)]), capture_output=True, check=True
            )
            keys |= {before, (folder / "keys" / "tls.key").read_bytes()}
        said = []

        def complete(turn=turn, said=said):
            values, case = phones(0, 3), f"renewed-{turn}"
            found = query(network, "centre", values, "--to", "bank-a", "--again", case=case, check=False)
            said[:] = [each["detail"] for each in found["holders"]]
            return found["complete"]

        try:
            wait_until(complete)
        except AssertionError:
            raise AssertionError((turn, said)) from None
    assert len(keys) == 8
    # Whoever is spoken to hears of the newest list.
    wait_until(lambda: network.json("bank-b", "status")["member_list_version"] == ca.members.version)
    shown = Wire(network, "bank-b")
    assert shown.info("bank-a").member.endswith("/bank-a")  # under the newest certificate alone
    shown.close()


def test_a_revoked_member_is_refused_everywhere_once_the_list_has_spread(own_network):
    network = own_network
    import_phones(network, "bank-a", phones(0, 3))
    network.run("bank-c", "sync", "bank-a")
    query(network, "bank-c", phones(0, 3), "--to", "bank-a", case="before")
    ca = Authority(network.folder / "ca")
    ca.revoke("bank-c")
    # The new list reaches one node only; bank-b learns it when it next talks to bank-a.
    (network.node("bank-a") / "certs" / "members.bin").write_bytes(
        (network.folder / "ca" / "members.bin").read_bytes()
    )
    time.sleep(1.2)
    wire = Wire(network, "bank-c")
    with pytest.raises(grpc.RpcError) as caught:
        wire.info("bank-a")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "revoked" in caught.value.details()
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(wire.channel("bank-a")).Check(health_pb2.HealthCheckRequest(), timeout=60)
    network.json("bank-a", "peers", check=False)  # bank-b hears of a newer list and fetches it
    deadline = time.monotonic() + 180
    while network.json("bank-b", "status")["member_list_version"] < ca.members.version:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    with pytest.raises(grpc.RpcError, match="revoked"):
        wire.info("bank-b")
    done = network.run(
        "bank-c",
        "query",
        "--value",
        "13900000000",
        "--purpose",
        "payment",
        "--case",
        "x",
        "--basis",
        "police-request",
        "--to",
        "bank-a",
        "--again",
        check=False,
    )
    assert done.returncode == 1
    wire.close()
    # The contract that all of them had signed goes on among the others.
    query(network, "centre", phones(0, 3), "--to", "bank-a", case="after")
    listed = network.json("bank-a", "contract", "list")
    assert [each["gone"] for each in listed] == [[]]


def test_a_stranger_may_introduce_itself_and_nothing_else(broken):
    """A list that the CA signed is taken; anything else is refused, and no other method answers."""
    wire = Wire(broken, "centre")
    stub = node_pb2_grpc.NodeInfoStub(wire.channel("bank-a"))
    assert stub.Introduce(
        node_pb2.IntroduceRequest(member_list=wire.book.current.signed), timeout=60
    ).member_list_version
    forged = bytearray(wire.book.current.signed)
    forged[-1] ^= 1
    for bad in (b"", b"rubbish", bytes(forged)):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Introduce(node_pb2.IntroduceRequest(member_list=bad), timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wire.close()


def test_certificates_that_are_foreign_expired_unbound_or_of_another_name(broken):
    import datetime as dt

    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from nodes.identity import certificates
    from nodes.identity.names import MemberName, Role

    wire = Wire(broken, "centre")
    ca = Authority(broken.folder / "ca")
    foreign_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = MemberName(broken.settings.network, Role.CENTRE, "centre")
    foreign_ca = certificates.make_authority(foreign_key, broken.settings.network)
    real, public = ca.certificate, key.public_key()
    past = certificates.now() - dt.timedelta(days=3)
    expired = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.subject)
        .public_key(public)
        .serial_number(77)
        .not_valid_before(past)
        .not_valid_after(past + dt.timedelta(days=1))
        .add_extension(certificates._names(name), critical=False)
    )
    from cryptography.hazmat.primitives import hashes

    cases = [
        certificates.issue(foreign_key, foreign_ca, public, name),
        expired.sign(ca._key, hashes.SHA256()),
        certificates.issue(ca._key, real, public, name),
        certificates.issue(ca._key, real, public, MemberName(broken.settings.network, Role.BANK, "nobody")),
        certificates.issue(ca._key, real, public, MemberName("other.example", Role.CENTRE, "centre")),
    ]
    bank = wire.member("bank-a")
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for certificate in cases:
        credentials = grpc.ssl_channel_credentials(bank.trusted_pem(), secret, certificates.pem(certificate))
        with grpc.secure_channel(
            bank.endpoint, credentials, [("grpc.ssl_target_name_override", bank.name.dns)]
        ) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                node_pb2_grpc.NodeInfoStub(channel).GetInfo(node_pb2.GetInfoRequest(), timeout=60)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
    wire.close()


def test_a_client_does_not_take_one_member_for_another(broken):
    """bank-c's node answers at bank-a's address, with a certificate of the same CA: the channel's pin refuses it."""
    wire = Wire(broken, "centre")
    member = wire.member("bank-a")
    for name in (member.name.dns, wire.member("bank-c").name.dns):
        credentials = grpc.ssl_channel_credentials(
            member.trusted_pem(), wire.keys.tls_pem(), wire.certificate
        )
        options = [("grpc.ssl_target_name_override", name)]
        with grpc.secure_channel(f"127.0.0.1:{broken.ports['bank-c']}", credentials, options) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                node_pb2_grpc.NodeInfoStub(channel).GetInfo(node_pb2.GetInfoRequest(), timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    wire.close()
