"""The ledger through real processes: HTTPS, receipts on the wire, quorum, reconciliation, evidence, training."""

import hashlib
import json
import secrets
import shutil
import sqlite3
import ssl
import subprocess
import time
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from lianfang.v1 import ledger_pb2

from nodes.config import Home
from nodes.demo.network import program
from nodes.identity import certificates
from nodes.identity.authority import Authority
from nodes.ledger import tls
from protocols import group, merkle
from protocols.ledger import checkpoints, events, tiles
from protocols.ledger.proofs import LogProof
from protocols.ledger.witnessing import AddCheckpoint
from protocols.statement import parse
from tests.system.conftest import Wire, import_phones, make_network, outcomes, phones, query, start

POINT = group.multiply_base((5).to_bytes(32, "little"))


@pytest.fixture(scope="module")
def witnessed():
    """A network of this module's own."""
    made = make_network("ledger")
    try:
        start(made)
        import_phones(made, "bank-a", phones(0, 30))
        made.run("centre", "sync", "bank-a")
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def centre(witnessed):
    wire = Wire(witnessed, "centre")
    yield wire
    wire.close()


def ledger(network, name):
    return network.json(name, "status")["ledger"]


def wait_for_head(network, name, more=1):
    """Until a member has published so many heads more."""
    size, seen, deadline = ledger(network, name)["published_size"], 0, time.monotonic() + 180
    while seen < more:
        assert time.monotonic() < deadline, ledger(network, name)
        time.sleep(0.3)
        now = ledger(network, name)["published_size"]
        seen, size = seen + (now > size), now


def client(network, who, to, context=None):
    """An HTTPS client as any program would be one."""
    member = Wire(network, who).member(to)
    chosen = context or tls.for_member(member, Home(network.node(who)))
    return httpx.Client(base_url=f"https://{member.ledger_endpoint}", verify=chosen, trust_env=False), {
        "sni_hostname": member.name.dns
    }


# -- over HTTPS --------------------------------------------------------------------------------------------------------


def test_any_reader_of_tiles_finds_the_published_head_in_the_log(witnessed, centre):
    """Checkpoint, entries, leaf hashes and inner tiles, as tlog-tiles says."""
    http, name = client(witnessed, "centre", "bank-a")
    with http:
        answer = http.get("/checkpoint", extensions=name)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        others = [member.witness for member in centre.book.current if member.name.name != "bank-a"]
        head = checkpoints.open_head(answer.content, centre.member("bank-a").log, others)
        assert len(head.cosigned) >= 3
        size, leaves, hashes = head.checkpoint.size, [], b""
        for number in range(-(-size // 256)):
            width = tiles.width(0, number, size)
            found = http.get("/" + tiles.path(tiles.ENTRIES, number, width), extensions=name)
            assert found.status_code == 200
            assert "immutable" in found.headers["cache-control"]
            leaves += tiles.unpack(found.content)
            hashes += http.get("/" + tiles.path(0, number, width), extensions=name).content
        assert hashes == b"".join(merkle.leaf_hash(leaf) for leaf in leaves)
        assert merkle.reference_root(leaves) == head.checkpoint.root
        said = {events.parse_leaf(leaf).WhichOneof("body") for leaf in leaves}
        assert said == {"commitment", "contract", "member", "padding", "statement"}
        for path in ("/tile/0/x999/000", "/tile/0/000.p/256", "/tile/9/000", "/tile/0/..%2f000", "/nothing"):
            assert http.get(path, extensions=name).status_code == 404
        assert http.post("/checkpoint", extensions=name).status_code == 405


def test_the_witness_answers_with_the_protocols_statuses(witnessed, centre):
    wait_for_head(witnessed, "bank-a")
    http, name = client(witnessed, "centre", "bank-b")
    own, own_name = client(witnessed, "centre", "bank-a")
    with http, own:
        head = own.get("/checkpoint", extensions=own_name).content
        origin = hashlib.sha256(centre.member("bank-a").log.name.encode()).hexdigest()
        seen = http.get(f"/witness/{origin}/checkpoint", extensions=name)
        checkpoints.open_head(seen.content, centre.member("bank-a").log, [centre.member("bank-b").witness])

        def post(body):
            return http.post("/add-checkpoint", content=body, extensions=name)

        assert post(b"").status_code == 400
        assert post(b"x" * 100_000).status_code == 400
        unknown = head.replace(b"lianfang.example/bank/bank-a", b"lianfang.example/bank/bank-x")
        assert post(bytes(AddCheckpoint(0, (), unknown))).status_code == 404
        text, _, lines = head.partition(b"\n\n")
        size = int(text.split(b"\n")[1])
        forged = text.replace(b"%d" % size, b"%d" % (size + 1)) + b"\n\n" + lines
        assert post(bytes(AddCheckpoint(0, (), forged))).status_code == 403
        answer = post(bytes(AddCheckpoint(0, (), head)))
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "text/x.tlog.size"
        assert int(answer.text) >= size
        assert http.get(f"/witness/{'0' * 64}/checkpoint", extensions=name).status_code == 404


def test_who_is_no_member_gets_no_further_than_the_handshake(own_network):
    network = own_network
    member = Wire(network, "centre").member("bank-a")
    ca = Authority(network.folder / "ca")
    # A certificate that the CA issued and the member list does not bind; one of another CA; none at all.
    key = ec.generate_private_key(ec.SECP256R1())
    unlisted = certificates.issue(
        ca._key, ca.certificate, key.public_key(), Wire(network, "centre").member("centre").name
    )
    other = ec.generate_private_key(ec.SECP256R1())
    foreign_ca = certificates.make_authority(other, network.settings.network)
    foreign = certificates.issue(
        other, foreign_ca, key.public_key(), Wire(network, "centre").member("centre").name
    )
    from nodes.identity.keys import _pem

    (network.folder / "own.key").write_bytes(_pem(key))
    for certificate in (unlisted, foreign, None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=member.trusted_pem().decode())
        if certificate is not None:
            (network.folder / "own.crt").write_bytes(certificates.pem(certificate))
            context.load_cert_chain(network.folder / "own.crt", network.folder / "own.key")
        http, name = client(network, "centre", "bank-a", context)
        with http, pytest.raises(httpx.HTTPError):
            http.get("/checkpoint", extensions=name)
    http, name = client(network, "bank-c", "bank-a")
    with http:
        assert http.get("/checkpoint", extensions=name).status_code == 200
        ca.revoke("bank-c")
        (network.node("bank-a") / "certs" / "members.bin").write_bytes(
            (network.folder / "ca" / "members.bin").read_bytes()
        )
        deadline, last = time.monotonic() + 180, 200
        while last == 200:  # the connection that is open, and every new or resumed one
            assert time.monotonic() < deadline
            try:
                last = http.get("/checkpoint", extensions=name).status_code
            except httpx.HTTPError:
                break
            time.sleep(0.3)
        for _ in range(3):
            with pytest.raises(httpx.HTTPError):
                http.get("/checkpoint", extensions=name)
    # Two of three remaining witnesses are enough for the others: the network goes on without bank-c.
    wait_for_head(network, "bank-a")


# -- receipts on the wire ----------------------------------------------------------------------------------------------


def test_a_request_without_a_receipt_of_itself_is_not_answered(witnessed, centre):
    head = next(each for each in centre.info("bank-a").lists if each.list == "fraud").epochs[-1]
    batch = parse(head.head.statement).batch.number
    stub, before = centre.lookup("bank-a"), witnessed.json("bank-a", "status")["asked_of_us_today"]

    def refused(change):
        request = centre.request(POINT, secrets.token_bytes(16), table_batch=batch)
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Evaluate(request, timeout=60)
        trailers = {item.key: item.value for item in caught.value.trailing_metadata()}
        return trailers["lianfang-reason"]

    other = centre.request(POINT, secrets.token_bytes(16), table_batch=batch)

    def again(**changes):
        return lambda request: request.receipt.CopyFrom(centre.receipt(request, "bank-a", **changes))

    def flipped(request):
        request.receipt.signature = bytes([request.receipt.signature[0] ^ 1]) + request.receipt.signature[1:]

    assert refused(lambda request: request.ClearField("receipt")) == "RECEIPT"
    assert refused(lambda request: request.receipt.CopyFrom(other.receipt)) == "RECEIPT"
    assert refused(flipped) == "RECEIPT"
    for changes in (
        {"count": 2},
        {"purpose": 4},
        {"peer": centre.own},
        {"request_hash": bytes(32)},
        {"type": ledger_pb2.EVENT_TYPE_QUERY_ANSWERED},
        {"log": centre.member("bank-b").id},
    ):
        assert refused(again(**changes)) == "RECEIPT", changes
    assert refused(again(at=1)) == "INVALID"
    assert refused(again(at=int((time.time() + 3_600) * 1000))) == "INVALID"
    assert witnessed.json("bank-a", "status")["asked_of_us_today"] == before


def test_a_question_that_its_asker_never_recorded_is_a_broken_promise_and_a_difference(witnessed, centre):
    """The test signs a receipt and records nothing: bank-a answers, and its books show what is missing."""
    head = next(each for each in centre.info("bank-a").lists if each.list == "fraud").epochs[-1]
    query_id = secrets.token_bytes(16)
    request = centre.request(POINT, query_id, table_batch=parse(head.head.statement).batch.number)
    response = centre.lookup("bank-a").Evaluate(request, timeout=60)
    told = events.verify_receipt(
        response.receipt, centre.member("bank-a").verifier, centre.member("bank-a").id
    )
    assert told.event.id == query_id
    wait_for_head(witnessed, "bank-a", 2)
    document = witnessed.json(
        "bank-a", "ledger", "reconcile", "--since", "5m", "--with", "centre", check=False
    )
    (with_centre,) = document["members"]
    assert not document["agrees"]
    assert [each.split(":")[0] for each in with_centre["missing_there"]] == [query_id.hex()]
    document = witnessed.json(
        "centre", "ledger", "reconcile", "--since", "5m", "--with", "bank-a", check=False
    )
    assert [each.split(":")[0] for each in document["members"][0]["missing_here"]] == [query_id.hex()]


# -- the command line --------------------------------------------------------------------------------------------------


def test_a_case_from_question_to_proof(witnessed, tmp_path):
    values = phones(0, 5)
    document = query(witnessed, "centre", values, "--to", "bank-a", case="2026-77")
    assert set(outcomes(document, "bank-a").values()) == {"hit"}
    file = tmp_path / "case.json"
    made = witnessed.json("centre", "ledger", "bundle", "2026-77", "--out", str(file))
    assert made["entries"] == 2
    assert file.stat().st_mode & 0o777 == 0o600
    data = file.read_bytes()
    for value in values:
        assert value.encode() not in data

    def verify(*options, path=file):
        command = program(["lianfang", *options, "ledger", "verify", str(path)])
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = verify()
    assert done.returncode == 0
    assert "2 of 2 events carry the commitment of case 2026-77" in done.stdout
    assert "compare the CA's fingerprint" in done.stdout
    assert "未证明" in verify("--lang", "zh").stdout
    certificate = witnessed.node("regulator") / "certs" / "ca.crt"
    command = program(["lianfang", "ledger", "verify", str(file), "--ca", str(certificate), "--json"])
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["ca_trusted"]
    assert [each["type"] for each in found["entries"]] == ["query-asked", "query-answered"]
    changed = bytearray(data)
    changed[len(data) // 3] ^= 1
    (tmp_path / "changed.json").write_bytes(changed)
    done = verify(path=tmp_path / "changed.json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert verify(path=tmp_path / "absent.json").returncode == 1
    # Each entry is a C2SP proof by itself.
    proofs = witnessed.json(
        "centre", "ledger", "prove", found["entries"][0]["id"], "--out", str(tmp_path / "p")
    )
    for each, path in zip(proofs["proofs"], proofs["files"], strict=True):
        assert LogProof.parse(Path(path).read_text()) == LogProof.parse(each["proof"])
    assert witnessed.run("centre", "ledger", "bundle", "no-such-case", check=False).returncode == 1
    assert witnessed.run("centre", "ledger", "prove", "xyz", check=False).returncode == 1
    note = witnessed.run("centre", "ledger", "head", "--note").stdout
    assert note.startswith("lianfang.example/centre/centre\n")
    assert witnessed.run("centre", "ledger", "reconcile", "--since", "soon", check=False).returncode == 1


def test_records_that_one_side_has_lost_are_found(witnessed):
    query(witnessed, "centre", phones(500, 2), "--to", "bank-a", case="lost")
    rows = witnessed.json("bank-a", "ledger", "events", "--since", "10m")["events"]
    newest = [row for row in rows if row["type"] == "query-answered" and row["peer"] == "centre"][-1]
    with sqlite3.connect(witnessed.node("bank-a") / "data" / "node.db", timeout=30) as database:
        database.execute(
            "UPDATE ledger_entry SET opening = NULL WHERE event_id = ?", (bytes.fromhex(newest["id"]),)
        )
    document = witnessed.json(
        "centre", "ledger", "reconcile", "--since", "10m", "--with", "bank-a", check=False
    )
    missing = document["members"][0]["missing_there"]
    assert any(each.startswith(newest["id"]) for each in missing)


def test_the_monitor_sees_every_log_and_no_contradiction(witnessed):
    document = witnessed.json("regulator", "ledger", "monitor")
    assert {row["member"] for row in document["logs"]} == {"bank-a", "bank-b", "bank-c", "centre"}
    assert {row["state"] for row in document["logs"]} == {"current"}
    assert document["alarms"] == []


# -- quorum ------------------------------------------------------------------------------------------------------------


def test_two_witnesses_down_urgent_questions_go_on_and_others_are_refused(witnessed):
    network = witnessed
    for name in ("regulator", "bank-c"):
        network.stop_member(name)
    deadline = time.monotonic() + 180
    while (
        not ledger(network, "centre")["unpublished_seconds"]
        or not ledger(network, "bank-a")["unpublished_seconds"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    done = network.run("centre", "status")
    assert "NO QUORUM" in done.stdout
    assert network.run("centre", "ledger", "head", check=False).returncode == 1
    document = query(network, "centre", phones(0, 2), "--to", "bank-a", case="urgent")
    assert set(outcomes(document, "bank-a").values()) == {"hit"}
    arguments = (
        "query",
        "-",
        "--kind",
        "phone",
        "--purpose",
        "screening",
        "--case",
        "x",
        "--basis",
        "police-request",
    )
    done = network.run("centre", *arguments, "--to", "bank-a", text=phones(3, 1)[0] + "\n", check=False)
    assert done.returncode == 1
    assert "not urgent" in done.stdout + done.stderr
    assert ledger(network, "centre")["published_size"] < ledger(network, "centre")["size"]
    for name in ("regulator", "bank-c"):
        network.start_member(network.member(name))
    for name in ("regulator", "bank-c"):
        network.wait(name)
    wait_for_head(network, "centre")
    wait_for_head(network, "bank-a")
    # What was recorded without a quorum is published, proven and agreed on now.
    file = network.folder / "urgent.json"
    assert network.json("centre", "ledger", "bundle", "urgent", "--out", str(file))["entries"] == 2


def test_a_killed_node_goes_on_with_its_log(witnessed):
    wait_for_head(witnessed, "bank-b")
    before = ledger(witnessed, "bank-b")["published_size"]
    witnessed.kill("bank-b")
    witnessed.start_member(witnessed.member("bank-b"))
    witnessed.wait("bank-b")
    deadline = time.monotonic() + 180
    while ledger(witnessed, "bank-b")["published_size"] <= before:
        assert time.monotonic() < deadline, ledger(witnessed, "bank-b")
        time.sleep(0.3)
    document = witnessed.json("regulator", "ledger", "monitor", check=False)
    assert document["alarms"] == []


def test_appeals_and_changed_settings_are_recorded(witnessed):
    path = witnessed.folder / "contested.csv"
    path.write_text(f"kind,value\nphone,{phones(20, 1)[0]}\n", "utf-8")
    for status, reason in (("contested", "operator-decision"), ("withdrawn", "appeal-upheld")):
        options = ("--file", str(path), "--status", status, "--reason", reason)
        assert witnessed.json("bank-a", "list", "withdraw", "fraud", *options)["changed"] == 1
    policy = witnessed.node("bank-a") / "policy.toml"
    policy.write_text(policy.read_text() + "\n# a remark\n")
    wait_for_head(witnessed, "bank-a", 2)
    rows = witnessed.json("bank-a", "ledger", "events", "--since", "1h")["events"]
    told = [(row["type"], row["reason"]) for row in rows if row["type"].startswith("appeal")]
    assert told == [
        ("appeal", "contested, operator-decision"),
        ("appeal-outcome", "withdrawn, appeal-upheld"),
    ]
    changed = [row for row in rows if row["type"] == "configuration" and row["resource"] == "policy.toml"]
    assert len({row["digest"] for row in changed}) >= 2
    assert all(row["published"] for row in rows)
