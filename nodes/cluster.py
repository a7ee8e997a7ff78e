"""Sealing on a Ray cluster: the same pieces of work as `workers`, on other machines of the same institution.

Each piece carries the list's key and identifiers under the key of the lists' entries, so the cluster is trusted as the node is: an
address that is not loopback needs Ray's mutual TLS. The machines run the same Lianfang; `ray` comes with the extra `cluster`
(or `learn`).

Ray's driver has a process of its own for each stretch of work: Ray takes over a process's signals, may wait for minutes where
nobody answers, and may end the process it is in. The node speaks to it by turns over a pipe and ends it whenever it likes.
"""

import collections
import contextlib
import functools
import importlib.metadata
import ipaddress
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .errors import ConfigError, NodeError
from .workers import Workers

_AT_HOME = 128  # pieces: connecting takes seconds, in which this machine has done as much
_BUNDLE = 4  # pieces in one of Ray's tasks, which costs as much as a tenth of them
_CONNECT_SECONDS = 60.0
_SILENT_SECONDS = 900.0  # of one piece, on the slowest machine
_KNOCK_SECONDS = 5.0
_WIDTH_SECONDS = 2.0


class Pool(Protocol):
    """Where bulk work is done: this machine's `Workers`, or a `Cluster`."""

    def stream(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], ahead: int = 2
    ) -> Iterator[Any]: ...


def check_address(address: str) -> None:
    """Raise `ConfigError` for what is no host:port, and for another machine without TLS."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"node.cluster: {address!r} is not host:port of a Ray head")
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and os.environ.get("RAY_USE_TLS") != "1":
        raise ConfigError(
            f"node.cluster: {host} is another machine, and keys travel there: set up Ray's TLS "
            "(RAY_USE_TLS=1 and its files)"
        )


def check_machines(addresses: Collection[str]) -> None:
    """Raise `ConfigError` where a cluster without TLS has machines besides this one: keys would travel in clear."""
    if len(addresses) > 1 and os.environ.get("RAY_USE_TLS") != "1":
        others = ", ".join(sorted(addresses))
        raise ConfigError(
            f"node.cluster: without Ray's TLS (RAY_USE_TLS=1) it has several machines: {others}"
        )


def knock(address: str) -> None:
    """Raise `NodeError` where nobody listens, at once; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except OSError as error:
        raise _failed(address, f"does not answer: {error}") from error


def _tls() -> str:
    """Where one side speaks TLS and the other not, neither of them hears anything."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return "; does this node use Ray's TLS (RAY_USE_TLS), and it not?"
    return "; does it use Ray's TLS, and this node not (RAY_USE_TLS)?"


def _failed(address: str, why: str) -> NodeError:
    return NodeError(f"the Ray cluster at {address} {why}", "CLUSTER")


class Cluster:
    """A Ray cluster that runs already. Little work stays with this machine's `home` workers."""

    def __init__(self, address: str, home: Workers, at_home: int = _AT_HOME) -> None:
        """Raises `ConfigError` for an address that keys may not travel to."""
        check_address(address)
        self.address, self._home, self._at_home = address, home, at_home
        self._lock = threading.Lock()
        self._drivers: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def stream(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], ahead: int = 2
    ) -> Iterator[Any]:
        """Results in order, `ahead` pieces a core of the cluster under way. Raises what the function raises, or `NodeError`."""
        pieces = iter(arguments)
        yield from self._home.stream(function, itertools.islice(pieces, self._at_home), ahead)
        bundles = iter(lambda: list(itertools.islice(pieces, _BUNDLE)), [])
        first = next(bundles, None)
        if first is None:
            return
        knock(self.address)
        with self._driver() as (driver, connection):
            self._send(driver, connection, (self.address, function, ahead, _version()))
            under_way, width = 0, self._receive(driver, connection, _CONNECT_SECONDS, _tls())
            for bundle in itertools.chain([first], bundles):
                self._send(driver, connection, bundle)
                under_way += 1
                while under_way >= width:
                    width, results = self._receive(driver, connection, _SILENT_SECONDS)
                    under_way -= 1
                    yield from results
            self._send(driver, connection, None)
            for _ in range(under_way):
                _, results = self._receive(driver, connection, _SILENT_SECONDS)
                yield from results

    @contextlib.contextmanager
    def _driver(self) -> Iterator[tuple["subprocess.Popen[bytes]", Connection]]:
        here, there = multiprocessing.Pipe()
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        with self._lock:
            if self._closed:
                raise NodeError(
                    "the node is stopping; what was under way resumes at its next start", "STOPPING"
                )
            driver = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(there.fileno()), str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what Ray has to say stands in its own logs
                pass_fds=(there.fileno(),),
                start_new_session=True,
            )
            self._drivers.add(driver)
        there.close()
        try:
            yield driver, here
        finally:
            _end(driver)
            here.close()
            with self._lock:
                self._drivers.discard(driver)

    def _gone(self, driver: "subprocess.Popen[bytes]") -> NodeError:
        if self._closed:
            return NodeError("the node is stopping", "STOPPING")
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(5)
        return _failed(self.address, f"ended our driver (status {driver.poll()}); try again")

    def _send(self, driver: "subprocess.Popen[bytes]", connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError as error:
            self._receive(driver, connection, 1.0)  # raises what the driver said before it went
            raise self._gone(driver) from error

    def _receive(
        self, driver: "subprocess.Popen[bytes]", connection: Connection, seconds: float, advice: str = ""
    ) -> Any:
        try:
            if not connection.poll(seconds):
                raise _failed(self.address, f"has said nothing for {seconds:.0f} s{advice}")
            failed, said = connection.recv()
        except (OSError, EOFError) as error:
            raise self._gone(driver) from error
        except NodeError:
            raise
        except Exception as error:  # what was sent cannot be read here
            raise _failed(self.address, f"failed: {type(error).__name__}: {error}") from error
        if failed:
            raise said
        return said

    def close(self) -> None:
        """End what is under way, whose caller gets a `NodeError`; the cluster runs on."""
        with self._lock:
            self._closed = True
            for driver in self._drivers:
                _end(driver)


def _end(driver: "subprocess.Popen[bytes]") -> None:
    if driver.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


@functools.cache
def _version() -> str:
    return importlib.metadata.version("lianfang")


# -- the driver's process, and the cluster's --------------------------------------------------------------------------


def run(version: str, function: Callable[..., Any], bundle: list[tuple[Any, ...]]) -> list[Any]:
    """On a machine of the cluster: results in order. Raises `NodeError` where that has another Lianfang."""
    if version != _version():
        host = socket.gethostname()
        raise NodeError(
            f"{host} of the Ray cluster has Lianfang {_version()}, this node {version}", "CLUSTER"
        )
    return [function(*arguments) for arguments in bundle]


def main(connection: Connection) -> None:
    """By turns with `Cluster.stream`: takes bundles until `width` are under way, then gives one's results."""
    address, function, ahead, version = connection.recv()
    try:
        for result in _drive(connection, address, function, ahead, version):
            connection.send((False, result))
    except BaseException as error:
        if not isinstance(error, Exception):  # Ray makes a signal one, which would end the node
            error = _failed(address, f"ended our driver: {error!r}")
        try:
            connection.send((True, error))
        except OSError:
            pass  # the node has gone
        except Exception:  # an error that does not travel
            connection.send((True, _failed(address, f"failed: {type(error).__name__}: {error}")))


def _drive(
    connection: Connection, address: str, function: Callable[..., Any], ahead: int, version: str
) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise NodeError(
            "node.cluster needs the extra `cluster`: pip install 'lianfang[cluster]'", "EXTRA"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (Exception, SystemExit) as error:
        raise _failed(address, f"does not let us in: {error}") from error

    def cores() -> int:
        alive = [each for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
        check_machines({each["NodeManagerAddress"] for each in alive})
        return max(1, int(sum(each["Resources"].get("CPU", 0) for each in alive)))

    task = ray.remote(run).options(num_cpus=1, max_retries=3)
    window: collections.deque[Any] = collections.deque()
    width, asked, more = ahead * cores(), time.monotonic(), True
    yield width
    try:
        while more or window:
            while more and len(window) < width:
                bundle = connection.recv()
                more = bundle is not None
                if more:
                    window.append(task.remote(version, function, bundle))
            if not window:
                break
            results = ray.get(window.popleft())
            if time.monotonic() - asked > _WIDTH_SECONDS:  # machines come and go
                width, asked = ahead * cores(), time.monotonic()
            yield width, results
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        raise _failed(address, f"failed: {error}; try again") from error


def _watch(parent: int) -> None:
    """An orphan of a killed node must not live on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    # By its own name, so that Ray's workers import what crosses to them instead of receiving this file's code.
    from nodes.cluster import main as named

    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    with contextlib.suppress(EOFError):
        named(Connection(int(sys.argv[1])))
    os._exit(0)
