"""Our own executor of Flower tasks, and the few calls to Flower's control plane that a coordinator makes.

The one module that imports Flower's inside: written against, and pinned to, flwr 1.41. A stock SuperNode or SuperLink runs
whatever bundle a task comes with; this executor claims tasks itself, admits them by the SHA-256 of their bundle and the
job they name, never unpacks a bundle, and runs the applications that this institution has installed.
"""

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flwr
from cryptography.hazmat.primitives import serialization as ser
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    fab_from_proto,
    fab_to_proto,
    run_from_proto,
    user_config_to_proto,
)
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushTaskOutputRequest,
)
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from federation.apps import client as client_app
from federation.apps import server as server_app
from federation.errors import LearningError
from federation.job import JobDescriptor

from ..errors import ConfigError
from .desk import RUNNING
from .seats import AdmittedSeats, NodeSeats, SeatRefused

_log = logging.getLogger("lianfang.learn")
_POLL = 0.2  # seconds between two looks for a task
_AT_ONCE = 8  # tasks
_PINNED = "1.41."
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def check_version() -> None:
    """Raise `ConfigError` for another Flower than this module was written against."""
    version = str(getattr(flwr, "__version__", ""))
    if not version.startswith(_PINNED):
        raise ConfigError(f"flwr {version} is installed; this executor is for {_PINNED}x")


def _retries(tries: int | None) -> Any:
    invoker = make_simple_http_retry_invoker()
    if tries is not None:
        invoker.max_tries = tries
    return invoker


_naming = threading.Lock()


@contextlib.contextmanager
def _identity(given: PullTaskInputResponse) -> Iterator[None]:
    """Flower keeps who makes a message in globals of the process: one task at a time names itself there."""
    with _naming:
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        yield


class Executor:
    """Claims tasks of one kind and runs each in a thread of its own, so that two jobs go on at once."""

    def __init__(
        self,
        address: str,
        secret: Path,
        seats: NodeSeats,
        *,
        coordinator: bool,
        certificate: bytes,
        name_of: Callable[[int], str] = str,
    ) -> None:
        check_version()
        self._name_of = name_of
        self._address, self._seats, self._certificate = address, seats, certificate
        self._coordinator = coordinator
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        self._kind = TaskType.SERVER_APP if coordinator else TaskType.CLIENT_APP
        self._secret = load_superexec_auth_secret(secret_file=str(secret)) or b""

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping`; a runtime that is not there is waited for."""
        boss = self._client(
            1,  # a look for a task is not retried: the next one comes soon
            SuperExecAuthHttpInterceptor(master_secret=self._secret, protected_methods=frozenset({_ACQUIRE})),
        )
        try:
            self._claim(boss, stopping)
        finally:
            boss.close()

    def _claim(self, boss: RuntimeHttpClient, stopping: threading.Event) -> None:
        silent = False
        while not stopping.is_set():
            try:
                found = boss.AcquireTask(AcquireTaskRequest(supported_task_types=[self._kind]))
                silent = False
            except Exception as error:  # whatever HTTP raises: the runtime restarts, we stay
                if not silent:
                    _log.info("waiting for Flower at %s (%s)", self._address, type(error).__name__)
                silent = True
                stopping.wait(1.0)
                continue
            if not (found.HasField("task") and found.token):
                stopping.wait(_POLL)
                continue
            target = self._serve if self._coordinator else self._train
            self._room.acquire()
            threading.Thread(target=self._guarded, args=(target, found.token), daemon=True).start()

    def _client(self, tries: int | None, *interceptors: Any) -> RuntimeHttpClient:
        # A SuperNode and its executor are on one machine: plain HTTP over loopback.
        component = "flwr-serverapp" if self._coordinator else "flwr-clientapp"
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=not self._coordinator,
            root_certificates=self._certificate if self._coordinator else None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), *interceptors],
            retry_invoker=_retries(tries),
        )

    def _guarded(self, target: Callable[[str], None], token: str) -> None:
        try:
            target(token)
        except Exception:
            _log.exception("a task failed")
        finally:
            self._room.release()

    # -- a bank's task -----------------------------------------------------------------------------------------

    def _train(self, token: str) -> None:
        client = self._client(None, RuntimeTokenHttpInterceptor(token))
        heart = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heart.start()
        try:
            message, context, _run, fab = pull_task_input(client)
            digest = hashlib.sha256(fab.content).digest()
            status, why = SubStatus.COMPLETED, ""
            try:
                reply = self._answer(message, context, digest)
            except Exception as error:
                if isinstance(error, SeatRefused):
                    why = str(error)
                else:
                    _log.exception("a task failed")
                    why = "this party failed; see its log"
                _log.warning("refused a task: %s (bundle %s)", why, digest.hex())
                refusal = Error(
                    code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=f"{self._seats.own}: {why}"
                )
                reply, status = Message(refusal, reply_to=message), SubStatus.FAILED
            push_message(client, reply, context)
            push_task_output(client=client, context=context, sub_status=status, details=why)
        finally:
            heart.stop()
            client.close()

    def _answer(self, message: Message, context: Context, bundle: bytes) -> Message:
        """Run the installed application. Raises `SeatRefused` unless the node's gate lets the job in with this bundle.

        A job of others is none of the gate's business: the application says that this node is no party.
        """
        try:
            job = JobDescriptor.read(client_app.descriptor_of(message))
        except LearningError:
            self._seats.admit(b"", bundle)
            raise SeatRefused("the task names no job") from None
        admitted = None
        if self._seats.own in job.parties:
            admitted = self._seats.admit(job.hash(), bundle)
        try:
            return client_app.make(AdmittedSeats(self._seats, admitted))(message=message, context=context)
        except Exception:
            self._seats.report(job.hash(), "failed", "this node failed; see its log")
            raise

    # -- the coordinator's task --------------------------------------------------------------------------------

    def _serve(self, token: str) -> None:
        grid = HttpGrid(
            runtime_api_address=self._address,
            insecure=False,
            root_certificates=self._certificate,
            token=token,
        )
        runtime = grid._runtime_client
        heart = HeartbeatSender(make_task_heartbeat_fn_http(runtime))
        heart.start()
        context, status, why = None, SubStatus.FAILED, ""
        job_hash = b""
        try:
            given = runtime.PullTaskInput(PullTaskInputRequest())
            context, run, fab = (
                context_from_proto(given.context),
                run_from_proto(given.run),
                fab_from_proto(given.fab),
            )
            grid.set_run(run)
            digest = hashlib.sha256(fab.content).digest()
            named = str(run.override_config.get("job", ""))
            job_hash = bytes.fromhex(named) if len(named) == 64 else b""
            seat = self._seats.admit(job_hash, digest)
            job = JobDescriptor.read(seat.descriptor)
            self._seats.report(job_hash, "running", "launched")
            server_app.launch(
                grid,
                job,
                len(job.parties),
                _identity(given),
                lambda why: self._seats.report(job_hash, "failed", why),
                self._name_of,
            )
            status = SubStatus.COMPLETED
            self._seats.report(job_hash, "done", "every party has finished")
        except (LearningError, ValueError) as error:
            why = str(error)
            _log.warning("run ended: %s", why)
            if job_hash and getattr(error, "reason", "") != RUNNING:
                self._seats.report(job_hash, "failed", why)
        except Exception as error:
            why = f"the coordinator's server application failed ({type(error).__name__})"
            if job_hash:
                self._seats.report(job_hash, "failed", why)
            raise
        finally:
            runtime.PushTaskOutput(
                PushTaskOutputRequest(
                    context=context_to_proto(context) if context else None, sub_status=status, details=why
                )
            )
            heart.stop()
            grid.close()


# -- control plane --------------------------------------------------------------------------------------------------


def pem_of(key: bytes) -> bytes:
    """An OpenSSH public key in the form that Flower keeps."""
    public = ser.load_ssh_public_key(key)
    return public.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)


class Control:
    """What a coordinator asks of its own SuperLink."""

    def __init__(self, address: str, certificate: bytes) -> None:
        check_version()
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=certificate,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def register(self, member: str, key: bytes) -> int:
        """Let a member's SuperNode in, by its key as PEM; its id."""
        request = RegisterNodeRequest(public_key=key, name=member.rpartition("/")[2])
        return int(self._client.RegisterNode(request).node_id)

    def nodes(self) -> dict[bytes, int]:
        """Registered SuperNodes: ids by public key."""
        found = self._client.ListNodes(ListNodesRequest())
        return {bytes(node.public_key): node.node_id for node in found.nodes_info if not node.unregistered_at}

    def unregister(self, node_id: int) -> None:
        """Shut a SuperNode out."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start(self, bundle: bytes, job_hash: bytes) -> int:
        """Start a run of a job; the run's id."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        reply = self._client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(fab),
                override_config=user_config_to_proto({"job": job_hash.hex()}),
                federation="",
            )
        )
        if not reply.HasField("run_id"):
            raise ConfigError("the SuperLink did not start the run")
        return int(reply.run_id)


def wait_until_ready(control: Control, seconds: float) -> None:
    """Until the SuperLink answers; raises `ConfigError`."""
    end = time.monotonic() + seconds
    while True:
        try:
            control.nodes()
            return
        except Exception as error:  # whatever HTTP raises until it is up
            if time.monotonic() > end:
                raise ConfigError(f"the SuperLink does not answer: {error}") from error
            time.sleep(0.3)


def start_run(control: Control, bundle: bytes, job_hash: bytes) -> int:
    """Start a run; raises `ConfigError` where the SuperLink does not answer."""
    try:
        return control.start(bundle, job_hash)
    except ConfigError:
        raise
    except Exception as error:  # whatever HTTP raises
        raise ConfigError(f"the SuperLink does not answer ({type(error).__name__})") from error
