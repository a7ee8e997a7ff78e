"""Ray: the simulation on Flower's engine (real workers, the deployed applications, the real aggregation service); sealing on a cluster."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.simulate import config, engines, worlds
from nodes.cluster import Cluster, check_address
from nodes.config import ListsSection
from nodes.demo.network import free_port
from nodes.errors import ConfigError, NodeError
from nodes.holder.epochs import Epochs
from nodes.querier.tables import Tables
from protocols import group, padding, sealed, voprf
from protocols.errors import MisuseError
from tests.nodes.conftest import make_holder, workers  # noqa: F401  (fixtures)
from tests.system.conftest import import_phones, outcomes, phones, query, write_list

SMALL = {"rows": 120, "fraud_rate": 0.1, "seeds": [3], "settings": {"trees": 2, "depth": 2, "bins": 8}}


def federated(**values):
    chosen = config.load(None, {**SMALL, **values})
    return engines.run(chosen, worlds.make(chosen, 3), 3, lambda _what: None)


def test_ten_banks_on_two_cores_with_ray_give_the_inline_engines_model():
    """Banks that wait for each other's sums share clients, so that as many clients as cores are enough."""
    inline, _ = federated(banks=10)
    model, costs = federated(banks=10, engine="ray")
    assert model.to_bytes() == inline.to_bytes()
    assert len(costs) == 10
    assert all(cost.sums and cost.sent for cost in costs.values())


def start_head(port: int) -> subprocess.Popen:
    """A head of its own, with two cores, as an institution would start one. On a busy machine it may need a second start."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(3):
        head = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"),
                *("--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"),
                "--disable-usage-stats",
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while head.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return head
            time.sleep(0.2)
        head.terminate()
        head.wait(60)
    raise RuntimeError("Ray did not start in three attempts")


@pytest.fixture(scope="module")
def cluster():
    port = free_port()
    head, pool = start_head(port), Cluster(f"127.0.0.1:{port}")
    try:
        for left in reversed(range(3)):  # the port is open a moment before the head has a node
            try:
                assert list(pool.stream(padding.bucket, [(1_000,)])) == [padding.bucket(1_000)]
                break
            except NodeError:
                if not left:
                    raise
        yield pool
    finally:
        pool.close()
        head.terminate()
        head.wait(60)


def test_a_list_is_sealed_on_a_cluster_as_it_is_here(cluster, make_holder, tmp_path):  # noqa: F811
    holder = make_holder()
    count = 1_500
    holder.load(
        *({"kind": "phone", "value": f"139{i:08d}", "category": "mule account"} for i in range(count))
    )
    epochs = Epochs(
        holder.database, holder.store, holder.keys, holder.name, holder.folder / "lists",
        holder.folder / "epoch-keys", ListsSection(), cluster, holder.log,
    )  # fmt: skip
    (batch,) = epochs.seal_changes("fraud")
    assert batch.sealed == count
    table = Tables(tmp_path / "copies").get(str(holder.name), "fraud", 1)
    table.apply(epochs.batch_path("fraud", 1, 1), 1, (batch.additions, batch.removals))
    identifiers = [f"phone\x1f+86139{i:08d}".encode() for i in range(count)]
    outputs = voprf.evaluate_inputs(epochs.key("fraud", 1).secret, identifiers)
    context = epochs.where("fraud", 1).context
    found = table.get(sealed.tags_of(outputs))
    labels = sealed.open_each(
        context, [(o, *record) for o, record in zip(outputs, found, strict=True) if record]
    )
    assert len([label for label in labels if isinstance(label, sealed.Label)]) == count


def test_what_fails_on_a_cluster_is_raised_here(cluster):
    with pytest.raises(MisuseError, match="the scalar is zero"):
        list(cluster.stream(group.multiply_base, [(bytes(32),)]))
    numbers = range(1, 41)
    assert list(cluster.stream(padding.bucket, ((i,) for i in numbers))) == list(map(padding.bucket, numbers))


def test_keys_travel_to_another_machine_only_under_tls(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    for address in ("10.0.0.5:6379", "cluster.bank:6379"):
        with pytest.raises(ConfigError, match="another machine, and keys travel there"):
            check_address(address)
    for address in ("", "localhost", "127.0.0.1:x"):
        with pytest.raises(ConfigError, match="not host:port"):
            check_address(address)
    check_address("127.0.0.1:6379")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    check_address("10.0.0.5:6379")


def test_a_node_that_names_a_cluster_seals_there_and_stops_well(cluster, own_network):
    bank = own_network.member("bank-a")
    assert own_network.stop_member("bank-a") == 0
    own_network.start_member(bank, {"LIANFANG_NODE__CLUSTER": cluster.address})
    own_network.wait("bank-a")
    assert import_phones(own_network, "bank-a", phones(0, 900))["added"] == 900
    own_network.run("centre", "sync")
    answers = query(own_network, "centre", [*phones(890, 20)], "--to", "bank-a")
    assert list(outcomes(answers, "bank-a").values()) == ["hit"] * 10 + ["miss"] * 10
    assert own_network.stop_member("bank-a") == 0
    # A cluster that does not answer is an error that names it, and nothing is lost.
    own_network.start_member(bank, {"LIANFANG_NODE__CLUSTER": f"127.0.0.1:{free_port()}"})
    own_network.wait("bank-a")
    path = write_list(own_network.folder / "more.csv", [("phone", phones(990, 1)[0], "mule-account", "4")])
    done = own_network.run("bank-a", "list", "import", str(path), "--list", "fraud", check=False)
    assert done.returncode == 1
    assert "the Ray cluster at 127.0.0.1:" in done.stderr
    assert own_network.stop_member("bank-a") == 0
    own_network.start_member(bank)
    own_network.wait("bank-a")
    own_network.run("bank-a", "list", "import", str(path), "--list", "fraud")
    own_network.run("centre", "sync")
    answers = query(own_network, "centre", phones(990, 1), "--to", "bank-a", case="C-2")
    assert list(outcomes(answers, "bank-a").values()) == ["hit"]
