"""Sealing on a Ray cluster: a real head, the driver's process, and a node that seals there."""

import collections
import contextlib
import datetime as dt
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nodes import cluster as clusters
from nodes.cluster import Cluster, check_address
from nodes.config import ListsSection
from nodes.demo.network import free_port
from nodes.errors import ConfigError, NodeError
from nodes.holder.epochs import Epochs
from nodes.querier.tables import Tables
from nodes.workers import Workers
from protocols import group, padding, sealed, voprf
from protocols.errors import MisuseError
from tests.nodes.conftest import make_holder, workers  # noqa: F401  (fixtures)
from tests.system.conftest import import_phones, outcomes, phones, query

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@contextlib.contextmanager
def machine(said, *arguments):
    """A machine of a cluster as an institution would start one, with two cores; its process, which leads a group."""
    with said.open("ab") as log:
        process = subprocess.Popen(
            [RAY, "start", "--block", "--num-cpus=2", "--disable-usage-stats", *arguments],
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def counted(pool):
    """What the cluster counts with; raises as `stream` does."""
    return list(pool.stream(padding.bucket, [(1_000,)])) == [padding.bucket(1_000)]


def patiently(pool, process=None):
    """Whether the cluster counts before the process ends or time is over."""
    end = time.monotonic() + 180
    while time.monotonic() < end and (process is None or process.poll() is None):
        with contextlib.suppress(NodeError):
            clusters.knock(pool.address)
            return counted(pool)
        time.sleep(0.5)
    return False


@contextlib.contextmanager
def head(folder, host="127.0.0.1"):
    """The address of a cluster's first machine. On a busy machine Ray may need a second start."""
    said = folder / "ray.log"
    for _ in range(3):
        # Ray's workers have ports from 10,002 to 19,999.
        port = next((port for port in (free_port() for _ in range(200)) if port > 20_000), None)
        if port is None:
            pytest.skip("Ray's own ports leave none to it")
        address = f"{host}:{port}"
        arguments = ("--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false")
        with machine(said, *arguments) as process:
            if patiently(Cluster(address, Workers(), at_home=0), process):
                yield address
                return
    raise RuntimeError(f"Ray did not start in three attempts: {said.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with head(tmp_path_factory.mktemp("ray")) as found:
        yield found


@pytest.fixture
def pool(address):
    made = Cluster(address, Workers(), at_home=0)
    yield made
    made.close()


def check_sealed_on(pool, holder, copies, count=3_000):
    """A list that is sealed there opens as one that is sealed here."""
    holder.load(
        *({"kind": "phone", "value": f"139{i:08d}", "category": "mule account"} for i in range(count))
    )
    epochs = Epochs(
        holder.database, holder.store, holder.keys, holder.name, holder.folder / "lists",
        holder.folder / "epoch-keys", ListsSection(), pool, holder.log,
    )  # fmt: skip
    (batch,) = epochs.seal_changes("fraud")
    assert batch.sealed == count
    table = Tables(copies).get(str(holder.name), "fraud", 1)
    table.apply(epochs.batch_path("fraud", 1, 1), 1, (batch.additions, batch.removals))
    identifiers = [f"phone\x1f+86139{i:08d}".encode() for i in range(count)]
    outputs = voprf.evaluate_inputs(epochs.key("fraud", 1).secret, identifiers)
    context = epochs.where("fraud", 1).context
    found = table.get(sealed.tags_of(outputs))
    labels = sealed.open_each(
        context, [(o, *record) for o, record in zip(outputs, found, strict=True) if record]
    )
    assert len([label for label in labels if isinstance(label, sealed.Label)]) == count


def test_a_list_is_sealed_on_a_cluster_as_it_is_here(pool, make_holder, tmp_path):  # noqa: F811
    check_sealed_on(pool, make_holder(), tmp_path / "copies")


def test_results_come_in_order_and_errors_are_raised_here(pool):
    numbers = range(1, 201)
    assert list(pool.stream(padding.bucket, ((i,) for i in numbers))) == list(map(padding.bucket, numbers))
    with pytest.raises(MisuseError, match="the scalar is zero"):
        list(pool.stream(group.multiply_base, [(bytes(32),)]))
    assert list(pool.stream(padding.bucket, ())) == []


def test_little_work_stays_at_home(workers):  # noqa: F811
    """Nobody listens at the address, and nobody is asked."""
    pool = Cluster(f"127.0.0.1:{free_port()}", workers, at_home=10)
    assert list(pool.stream(padding.bucket, ((i,) for i in range(1, 11)))) == list(
        map(padding.bucket, range(1, 11))
    )
    with pytest.raises(NodeError, match="does not answer"):
        list(pool.stream(padding.bucket, ((i,) for i in range(1, 12))))


def test_a_head_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        pool = Cluster(f"127.0.0.1:{mute.getsockname()[1]}", Workers(), at_home=0)
        with pytest.raises(NodeError, match="has said nothing for 4 s"):
            list(pool.stream(padding.bucket, [(1,)]))
    assert not pool._drivers


def test_another_version_on_the_cluster_is_named(pool, monkeypatch):
    monkeypatch.setattr(clusters, "_version", lambda: "0.0.1")
    with pytest.raises(NodeError, match=r"of the Ray cluster has Lianfang .*, this node 0\.0\.1"):
        list(pool.stream(padding.bucket, [(1,)]))


def under_way(pool):
    """Long work that has begun, and its driver."""
    results = pool.stream(time.sleep, ((0.05,) for _ in range(10_000)))
    next(results)
    (driver,) = pool._drivers
    return results, driver


def test_a_driver_that_dies_and_a_node_that_stops(pool):
    pool = Cluster(pool.address, Workers(), at_home=0)
    results, driver = under_way(pool)
    os.killpg(driver.pid, signal.SIGKILL)
    with pytest.raises(NodeError, match="ended our driver"):
        list(results)
    assert not pool._drivers
    results, driver = under_way(pool)
    threading.Timer(1.0, pool.close).start()
    with pytest.raises(NodeError, match="the node is stopping"):
        list(results)
    assert driver.poll() is not None
    with pytest.raises(NodeError, match="the node is stopping"):
        list(pool.stream(padding.bucket, [(1,)]))


def test_keys_travel_to_another_machine_only_under_tls(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    for where in ("10.0.0.5:6379", "cluster.bank:6379"):
        with pytest.raises(ConfigError, match="another machine, and keys travel there"):
            check_address(where)
    for where in ("", "localhost", "127.0.0.1:x"):
        with pytest.raises(ConfigError, match="not host:port"):
            check_address(where)
    check_address("127.0.0.1:6379")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    check_address("10.0.0.5:6379")
    clusters.check_machines({"10.0.0.5", "10.0.0.6"})


def test_a_local_head_that_other_machines_have_joined_needs_tls_too(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    clusters.check_machines({"10.0.0.5"})
    with pytest.raises(ConfigError, match=r"several machines: 10\.0\.0\.5, 10\.0\.0\.6"):
        clusters.check_machines({"10.0.0.6", "10.0.0.5"})


def test_a_machine_that_joins_without_tls_ends_what_is_under_way(pool, tmp_path):
    """And no piece of what comes after is sent while it is there."""
    results, _ = under_way(pool)
    several = r"without Ray's TLS .* several machines: .*127\.0\.0\.3"
    with machine(tmp_path / "ray.log", f"--address={pool.address}", "--node-ip-address=127.0.0.3"):
        with pytest.raises(ConfigError, match=several):
            list(results)
        with pytest.raises(ConfigError, match=several):
            counted(pool)
    assert patiently(pool)


def tls_files(folder, *hosts):
    """Ray's variables: one certificate that is its own authority's, for all machines."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
    addresses = [x509.IPAddress(ipaddress.ip_address(host)) for host in hosts]
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    shown, secret = folder / "cluster.crt", folder / "cluster.key"
    shown.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(shown),
        "RAY_TLS_SERVER_KEY": str(secret),
        "RAY_TLS_CA_CERT": str(shown),
    }


def where(number):
    """A piece of work that says in which order it came and which machine did it: by its own Ray daemon."""
    return (["sh", "-c", f"sleep 0.1; echo {number} $RAY_RAYLET_PID"],)


def test_two_machines_under_tls_share_the_work_and_one_may_die(make_holder, tmp_path, monkeypatch):  # noqa: F811
    hosts = ("127.0.0.2", "127.0.0.3")
    variables = tls_files(tmp_path, *hosts)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with head(tmp_path, hosts[0]) as address:
        pool = Cluster(address, Workers(), at_home=0)
        with monkeypatch.context() as without:
            without.setattr(clusters, "_CONNECT_SECONDS", 10.0)
            without.delenv("RAY_USE_TLS")
            with pytest.raises(
                NodeError, match=r"said nothing for 10 s; does it use Ray's TLS, and this node not"
            ):
                counted(pool)
        joining = (f"--address={address}", f"--node-ip-address={hosts[1]}")
        with machine(tmp_path / "joined.log", *joining) as joined:
            check_sealed_on(pool, make_holder(), tmp_path / "copies")
            did = collections.Counter()
            end = time.monotonic() + 180
            while len(did) < 2 and time.monotonic() < end:
                did.update(
                    said.split()[1] for said in pool.stream(subprocess.check_output, map(where, range(40)))
                )
            assert len(did) == 2
            results = pool.stream(subprocess.check_output, map(where, range(200)))
            said = [next(results) for _ in range(20)]
            os.killpg(joined.pid, signal.SIGKILL)
            said += results
        assert [int(each.split()[0]) for each in said] == list(range(200))
        assert patiently(pool)


def test_a_signal_to_the_driver_does_not_end_the_node(pool):
    """Ray makes SIGTERM a SystemExit, which must not be raised here."""
    results, driver = under_way(pool)
    os.kill(driver.pid, signal.SIGTERM)
    with pytest.raises(NodeError, match="ended our driver"):
        list(results)


MANY = 70_000  # more than stay at home


def test_a_node_that_names_a_cluster_seals_there_and_stops_well(address, own_network):
    bank = own_network.member("bank-a")
    assert own_network.stop_member("bank-a") == 0
    own_network.start_member(bank, {"LIANFANG_NODE__CLUSTER": address})
    own_network.wait("bank-a")
    assert import_phones(own_network, "bank-a", phones(0, MANY))["added"] == MANY
    own_network.run("centre", "sync")
    answers = query(own_network, "centre", [*phones(MANY - 10, 20)], "--to", "bank-a")
    assert list(outcomes(answers, "bank-a").values()) == ["hit"] * 10 + ["miss"] * 10
    assert own_network.stop_member("bank-a") == 0
    assert "Traceback" not in own_network.log("bank-a").read_text()
    # One that is gone is named.
    own_network.start_member(bank, {"LIANFANG_NODE__CLUSTER": f"127.0.0.1:{free_port()}"})
    own_network.wait("bank-a")
    found = own_network.json("bank-a", "doctor", check=False)["findings"]
    assert [each["state"] for each in found if each["what"] == "cluster"] == ["problem"]
