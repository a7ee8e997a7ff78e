"""`lianfang learn serve`: this node's SuperLink or SuperNode as a child process, and our executor beside it."""

import datetime as dt
import ipaddress
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from lianfang.v1 import learning_pb2 as pb
from lianfang.v1 import learning_pb2_grpc, vertical_pb2_grpc

from ..config import Home
from ..errors import ConfigError
from ..files import write_atomic, write_secret
from ..identity.keys import NodeKeys, check_private
from ..identity.names import Role
from ..services.wire import admin_channel
from . import flower
from .seats import NodeSeats
from .service import SUPERLINK_CERTIFICATE

_log = logging.getLogger("lianfang.learn")
_DAYS = 3650
_AGAIN = 2.0  # seconds before a child that ended is started again
_READY = 60.0
_TENDING = 1.0  # seconds between two looks at who has enrolled

# No telemetry, no update checks, nothing installed at run time.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise ConfigError(f"{name} is not installed: install the `learn` extra")
    return found


def flower_key(keys: Path) -> tuple[Path, bytes]:
    """This node's SuperNode key (ECDSA P-384, OpenSSH), made at first use: its file and its public half."""
    path = keys / "flower.key"
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        write_secret(path, key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption()))
    check_private(path)
    loaded = ser.load_ssh_private_key(path.read_bytes(), None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an elliptic-curve key")
    public = loaded.public_key().public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH)
    return path, public


def superlink_identity(home: Home) -> tuple[Path, Path]:
    """The SuperLink's key and self-signed certificate for the host it is reached at; the others pin it."""
    key_path, path = home.keys / "superlink.key", home.data / SUPERLINK_CERTIFICATE
    settings = home.config.learn
    host = (settings.superlink_advertise or settings.superlink).rpartition(":")[0].strip("[]")
    if not key_path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        write_secret(
            key_path, fresh.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        )
        path.unlink(missing_ok=True)
    check_private(key_path)
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    try:
        names.insert(0, x509.IPAddress(ipaddress.ip_address(host)))
    except ValueError:
        names.insert(0, x509.DNSName(host))
    wanted = x509.SubjectAlternativeName(names)
    if path.exists():
        known = x509.load_pem_x509_certificate(path.read_bytes())
        if known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == wanted:
            return key_path, path
    key = ser.load_pem_private_key(key_path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key_path} is not an elliptic-curve key")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"SuperLink of {home.name.name}")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, certificate.public_bytes(ser.Encoding.PEM))
    return key_path, path


def executor_secret(home: Home) -> Path:
    """What Flower's process and our executor share: nobody else may claim tasks."""
    path = home.keys / "superexec.secret"
    if not path.exists():
        write_secret(path, secrets.token_hex(32).encode())
    check_private(path)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# An orphaned SuperNode would hold this node's place at the SuperLink: it ends with its parent (PR_SET_PDEATHSIG).
_LEASHED = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
os.execv(sys.argv[1], sys.argv[1:])
"""


class Child:
    """A process that is started again when it ends, until `stop`."""

    def __init__(self, command: Sequence[str], home: Home) -> None:
        self._command = list(command)
        folder = home.data / "learn" / "flower"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
        self._environment = inherited | QUIET | {"FLWR_HOME": str(folder)}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            command = [sys.executable, "-c", _LEASHED, *self._command]
            self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL)
            status = self._process.wait()
            if not self._stopping.is_set():
                _log.warning("%s ended with %d; starting it again", Path(self._command[0]).name, status)
                self._stopping.wait(_AGAIN)

    @property
    def pid(self) -> int:
        """Of the process now running; 0 between two."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def stop(self) -> None:
        """SIGTERM, then wait."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(20)


def serve(home: Home) -> None:
    """Run until SIGTERM. Raises `ConfigError` for what is missing."""
    flower.check_version()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    os.environ |= QUIET
    keys = NodeKeys.load(home.keys)
    channel = admin_channel(home.socket, home.process_token.read_text)
    desk = learning_pb2_grpc.LearningAdminStub(channel)
    vertical = vertical_pb2_grpc.VerticalAdminStub(channel)
    try:
        _say_started(desk, stopping)
        if home.name.role is Role.COORDINATOR:
            _coordinate(home, keys, desk, vertical, stopping)
        else:
            _take_part(home, keys, desk, vertical, stopping)
    finally:
        channel.close()


def _say_started(desk: learning_pb2_grpc.LearningAdminStub, stopping: threading.Event) -> None:
    """Until the node answers."""
    while not stopping.is_set():
        try:
            desk.Started(pb.LearningStarted(), timeout=30)
            return
        except grpc.RpcError as error:
            _log.info("waiting for the node: %s", error.code().name)
            stopping.wait(1.0)


def _coordinate(
    home: Home,
    keys: NodeKeys,
    desk: learning_pb2_grpc.LearningAdminStub,
    vertical: vertical_pb2_grpc.VerticalAdminStub,
    stopping: threading.Event,
) -> None:
    address = home.config.learn.superlink
    if not address:
        raise ConfigError(f"{home.file}: learn.superlink: host:port is needed at the coordinator")
    key, certificate = superlink_identity(home)
    secret = executor_secret(home)
    local = f"localhost:{address.rpartition(':')[2]}"  # the executor speaks to it on this machine
    child = Child(superlink_command(home, key, certificate, secret), home)
    try:
        control = flower.Control(local, certificate.read_bytes())
        flower.wait_until_ready(control, _READY)
        _log.info("SuperLink answers on %s", address)
        seats = NodeSeats(home, keys, desk, vertical)
        registered: dict[int, str] = {}
        names: dict[int, str] = {}  # also of those that are not let in any more
        executor = flower.Executor(
            local,
            secret,
            seats,
            coordinator=True,
            certificate=certificate.read_bytes(),
            name_of=lambda node: names.get(node, f"SuperNode {node}"),
        )
        threading.Thread(target=executor.run, args=(stopping,), daemon=True).start()
        while not stopping.wait(_TENDING):
            registered = _tend(control, desk, registered)
            names |= registered
        control.close()
    finally:
        child.stop()


def superlink_command(home: Home, key: Path, certificate: Path, secret: Path) -> list[str]:
    """A SuperLink that knows SuperNodes by their keys and runs nothing by itself."""
    host, _, port = home.config.learn.superlink.rpartition(":")
    return [
        _program("flower-superlink"),
        *(
            "--ssl-certfile",
            str(certificate),
            "--ssl-keyfile",
            str(key),
            "--ssl-ca-certfile",
            str(certificate),
        ),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--database", str(home.data / "learn" / "superlink.db")),
        *("--host", host, "--port", port),
    ]


def _tend(
    control: flower.Control, desk: learning_pb2_grpc.LearningAdminStub, registered: dict[int, str]
) -> dict[int, str]:
    """The member list and who has enrolled decide which SuperNodes are let in; those who are, by id."""
    try:
        request = pb.SuperNodesRequest(registered=registered.values())
        enrolled = desk.SuperNodes(request, timeout=10).nodes
        wanted = {flower.pem_of(node.key): node.member for node in enrolled}
        known = control.nodes()
        for key, node_id in known.items():
            if key not in wanted:
                control.unregister(node_id)
                _log.info("shut out a SuperNode that is no member's: %d", node_id)
        for key, member in wanted.items():
            if key not in known:
                known[key] = control.register(member, key)
                _log.info("registered the SuperNode of %s", member)
        return {known[key]: member for key, member in wanted.items()}
    except grpc.RpcError as error:
        _log.info("the node does not answer: %s", error.details())
    except Exception as error:  # whatever HTTP raises while the SuperLink restarts
        _log.info("the SuperLink does not answer: %s", type(error).__name__)
    return registered


def _take_part(
    home: Home,
    keys: NodeKeys,
    desk: learning_pb2_grpc.LearningAdminStub,
    vertical: vertical_pb2_grpc.VerticalAdminStub,
    stopping: threading.Event,
) -> None:
    if not home.config.learn.coordinator:
        raise ConfigError(f"{home.file}: learn.coordinator: the name of the coordinator is needed")
    key, public = flower_key(home.keys)
    enrolment = _enrol(desk, public, stopping)
    if enrolment is None:
        return
    certificate = home.data / "learn" / "superlink.pem"
    certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(certificate, enrolment.certificate)
    secret, port = executor_secret(home), _free_port()
    child = Child(
        [
            _program("flower-supernode"),
            *("--root-certificates", str(certificate), "--superlink", enrolment.superlink),
            *("--auth-supernode-private-key", str(key)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        home,
    )
    try:
        seats = NodeSeats(home, keys, desk, vertical)
        executor = flower.Executor(f"127.0.0.1:{port}", secret, seats, coordinator=False, certificate=b"")
        _log.info("SuperNode joins %s", enrolment.superlink)
        executor.run(stopping)
    finally:
        child.stop()


def _enrol(
    desk: learning_pb2_grpc.LearningAdminStub, public: bytes, stopping: threading.Event
) -> pb.EnrolResponse | None:
    """Until node and coordinator answer."""
    said, last = 0.0, ""
    while not stopping.is_set():
        try:
            reply = desk.Enter(pb.EnrolRequest(flower_key=public), timeout=30)
            if reply.registered:
                return reply
        except grpc.RpcError as error:
            text = error.details() or error.code().name
            if text != last or time.monotonic() - said > 60:
                _log.info("not enrolled yet: %s", text)
                said, last = time.monotonic(), text
        stopping.wait(0.5)
    return None
