"""Connections and calls that only take up room: of strangers, of one member, of who is a member no more, and before signing in."""

import os
import resource
import socket
import subprocess
import threading
import time

import grpc
import pytest
from lianfang.v1 import node_pb2

from nodes.demo.network import program
from nodes.services import wire as wires
from tests.system.conftest import Wire


def raw(wire, to="bank-a"):
    """A connection of its own, whatever its messages."""
    member = wire.member(to)
    credentials = grpc.ssl_channel_credentials(member.trusted_pem(), wire.keys.tls_pem(), wire.certificate)
    options = [
        ("grpc.ssl_target_name_override", member.name.dns),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.secure_channel(member.endpoint, credentials, options)


def half_open(channels, method, count, until):
    """Calls with headers and no message."""

    def never():
        until.wait()
        yield b""

    stubs = [
        channel.stream_unary(method, request_serializer=bytes, response_deserializer=bytes)
        for channel in channels
    ]
    return [stubs[i % len(stubs)].future(never(), timeout=60) for i in range(count)]


def ended(calls, seconds):
    """Reasons of calls that have ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(call.done() for call in calls):
        time.sleep(0.1)
    return [wires.reason_of(call) for call in calls if call.done()]


def resident(network, name):
    """Megabytes that a node's process has had at most."""
    with open(f"/proc/{network.pid(name)}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024


def test_half_open_calls_of_one_member_leave_room_for_the_others(network):
    one, other, until = Wire(network, "bank-b"), Wire(network, "centre"), threading.Event()
    channels = [raw(one) for _ in range(21)]
    try:
        calls = half_open(channels, "/lianfang.v1.Lookup/Evaluate", 2_100, until)
        refused = ended(calls, 8)
        assert refused.count("BUSY") > 2_000  # at their headers, before a message
        assert other.info("bank-a").member.endswith("bank-a")
        assert (
            ended(calls, 30).count("NO_MESSAGE") >= 20
        )  # those that were let in hold their place for ten seconds
        assert one.info("bank-a").member.endswith("bank-a")
    finally:
        until.set()
        for channel in channels:
            channel.close()
        one.close()
        other.close()


def test_who_is_a_member_no_more_takes_up_nothing(own_network, tmp_path):
    network, until = own_network, threading.Event()
    gone, other = Wire(network, "bank-c"), Wire(network, "centre")
    revoked = subprocess.run(
        program(["lianfang", "ca", "revoke", "bank-c", "--ca", str(network.folder / "ca")]),
        capture_output=True,
        check=False,
    )
    assert revoked.returncode == 0, revoked.stderr
    certs = network.node("bank-a") / "certs" / "members.bin"
    certs.write_bytes((network.folder / "ca" / "members.bin").read_bytes())
    time.sleep(2)
    channels = [raw(gone) for _ in range(21)]
    try:
        calls = half_open(channels, "/lianfang.v1.Lookup/Evaluate", 2_100, until)
        refused = ended(calls, 20)
        assert len(refused) == 2_100
        assert set(refused) <= {
            "REVOKED_CERTIFICATE",
            "NOT_A_MEMBER",
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
            "UNAVAILABLE",
        }
        assert refused.count("REVOKED_CERTIFICATE") > 1_000
        assert other.info("bank-a").member.endswith("bank-a")
    finally:
        until.set()
        for channel in channels:
            channel.close()
        gone.close()
        other.close()


def test_large_messages_of_nobody_are_not_read(network):
    """16 clients of 56 MiB each, without a token, at the same moment."""
    path = network.node("bank-a") / "data" / "admin.sock"
    before = resident(network, "bank-a")
    data = b"\x0a\x80\x80\x80\x1c" + bytes(56 << 20)
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    channels = [grpc.secure_channel(f"unix:{path}", local, options) for _ in range(16)]
    try:
        calls = [
            channel.unary_unary(
                "/lianfang.v1.Admin/Status", request_serializer=bytes, response_deserializer=bytes
            ).future(data, timeout=60)
            for channel in channels
        ]
        assert {wires.reason_of(call.exception()) for call in calls} == {"SIGN_IN"}
    finally:
        for channel in channels:
            channel.close()
    assert resident(network, "bank-a") - before < 300
    assert network.run("bank-a", "status").returncode == 0


@pytest.fixture
def many_files():
    """The tests hold the other ends of all these connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def usual(own_network, many_files):
    """bank-a started where a process may have 1,024 files open unless it asks for more."""

    def spawn(command, env, stdin, stdout, stderr):
        def limited():
            resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

        return subprocess.Popen(
            command,
            env=env,
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=limited,
        )

    own_network.stop_member("bank-a")
    before, own_network.spawn = own_network.spawn, spawn
    own_network.start_member(own_network.member("bank-a"))
    own_network.spawn = before
    own_network.wait("bank-a")
    return own_network


def test_idle_connections_of_strangers_stop_nobody(usual):
    """1,100 at each port: more than the files that a process may usually have open."""
    network, held = usual, []
    member = Wire(network, "centre")
    try:
        for port in (network.ports["bank-a"], network.ledger_ports["bank-a"]):
            for _ in range(1_100):
                each = socket.socket()
                each.settimeout(5)
                each.connect(("127.0.0.1", port))
                held.append(each)
        time.sleep(1)
        assert len(os.listdir(f"/proc/{network.pid('bank-a')}/fd")) > 1_500
        with open(f"/proc/{network.pid('bank-a')}/limits") as file:
            core = next(line for line in file if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]  # a core dump would hold keys
        assert isinstance(member.info("bank-a"), node_pb2.GetInfoResponse)
        assert network.run("bank-a", "status").returncode == 0
        assert network.run("bank-a", "ledger", "head").returncode == 0
    finally:
        for each in held:
            each.close()
        member.close()
