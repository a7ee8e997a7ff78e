"""Sealing on a Ray cluster: the same pieces of work as `workers`, on other machines of the same institution.

Each piece carries the list's key and identifiers under the node's storage key, so the cluster is trusted as the node is: an address that
is not loopback needs Ray's mutual TLS. The machines run the same Lianfang; `ray` comes with the extra `cluster` (or `learn`).
"""

import collections
import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from .errors import ConfigError, NodeError

_CONNECT_SECONDS = 10
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
            f"node.cluster: {host} is another machine, and keys travel there: set up Ray's TLS (RAY_USE_TLS=1 and its files)"
        )


class Cluster:
    """A Ray cluster that runs already; connects at its first use, from a thread."""

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address = address
        self._lock = threading.Lock()
        self._connected = False

    def _ray(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise NodeError(
                "node.cluster needs the extra `cluster`: pip install 'lianfang[cluster]'", "EXTRA"
            ) from error
        with self._lock:
            if not self._connected:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                try:
                    # Ray itself would try for minutes where nobody listens.
                    host, _, port = self.address.rpartition(":")
                    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
                    ray.init(
                        address=self.address,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        namespace="lianfang",
                    )
                except (Exception, SystemExit) as error:  # Ray ends the process where a head does not answer
                    raise NodeError(
                        f"the Ray cluster at {self.address} does not answer: {error}", "CLUSTER"
                    ) from error
                self._connected = True
        return ray

    def stream(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], ahead: int = 2
    ) -> Iterator[Any]:
        """Results in order, `ahead` pieces a core of the cluster under way. Raises what the function raises, or `NodeError`."""
        ray = self._ray()
        task = ray.remote(function).options(num_cpus=1, max_retries=3)
        window: collections.deque[Any] = collections.deque()
        width, asked = 0, float("-inf")
        try:
            for each in arguments:
                if time.monotonic() - asked > _WIDTH_SECONDS:  # machines come and go
                    width, asked = (
                        ahead * max(1, int(ray.cluster_resources().get("CPU", 1))),
                        time.monotonic(),
                    )
                window.append(task.remote(*each))
                if len(window) >= width:
                    yield ray.get(window.popleft())
            while window:
                yield ray.get(window.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayError as error:
            self.close()
            raise NodeError(
                f"the Ray cluster at {self.address} failed: {error}; try again", "CLUSTER"
            ) from error
        finally:
            for waiting in window:
                with contextlib.suppress(Exception):
                    ray.cancel(waiting)

    def close(self) -> None:
        """Leave the cluster; it runs on."""
        with self._lock:
            if self._connected:
                import ray

                ray.shutdown()
                self._connected = False
