"""Processes of `lianfang`, forked from one that has loaded the program.

A command takes a second or two to load before it does its work, and the system tests run hundreds of commands
on two cores. So one process loads the program, touches nothing, and forks for each command: what runs then is
what `python -m nodes` runs, in a process of its own, with its own environment and standard files.
Commands that a test types itself still start from nothing, as a user's do.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_MODULES = (
    "nodes.cli.app",
    "nodes.node",
    "nodes.learning.processes",
    "nodes.demo.people",
    "structlog",
    "uvloop",
)


class Process:
    """What a test needs of `subprocess.Popen`, of a process that another one forked."""

    def __init__(self, channel: socket.socket, pid: int, command: Sequence[str]) -> None:
        self._channel = channel
        self._command = command
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended; raises `subprocess.TimeoutExpired`."""
        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired(self._command, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _said(self, timeout: float | None) -> bool:
        waiting = select.poll()  # any number of files may be open here
        waiting.register(self._channel, select.POLLIN)
        return bool(waiting.poll(None if timeout is None else timeout * 1_000))

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._said(timeout):
            said = self._channel.recv(64)
            self._channel.close()
            if not said:
                raise RuntimeError("the process that forks has ended")
            self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process that has loaded the program, from this side."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "fork.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen()
            listener.set_inheritable(True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.warm", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def spawn(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: IO[bytes] | None,
        stdout: IO[bytes],
        stderr: IO[bytes] | None,
    ) -> Process:
        """`python -m nodes …`, forked."""
        assert list(command[1:3]) == ["-m", "nodes"], command
        request = json.dumps({"arguments": command[3:], "env": dict(env), "folder": os.getcwd()}).encode()
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(self._path)
        with open(os.devnull, "rb") as nothing:
            files = [stdin or nothing, stdout, stderr or sys.__stderr__]
            socket.send_fds(channel, [len(request).to_bytes(4, "big")], [file.fileno() for file in files])
            channel.sendall(request)
        return Process(channel, int.from_bytes(_exactly(channel, 4), "big"), command)

    def stop(self) -> None:
        """End it; what it forked has ended before."""
        self._process.kill()
        self._process.wait()


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            raise ConnectionError("the other process has ended")
        parts += part
    return parts


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as channel, contextlib.suppress(OSError):
            channel.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _serve(listener: socket.socket) -> list[str]:
    """Forks for each request until this side is killed; returns in the child, with its arguments."""
    running: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    with selectors.DefaultSelector() as selector:
        for source in (listener, woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                _reap(running)
            if listener not in ready:
                continue
            channel, _ = listener.accept()
            size, files, _, _ = socket.recv_fds(channel, 4, 3)
            request = json.loads(_exactly(channel, int.from_bytes(size, "big")))
            pid = os.fork()
            if not pid:
                break
            for file in files:
                os.close(file)
            running[pid] = channel
            channel.sendall(pid.to_bytes(4, "big"))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in (listener, woken, wake, channel, *running.values()):
        each.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["folder"])
    arguments: list[str] = request["arguments"]
    return arguments


def _main() -> None:
    import gc
    import importlib
    import runpy
    import threading

    from nodes.cli import i18n

    for name in _MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "nothing may run yet in a process that forks"
    gc.freeze()
    sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    # The language was chosen when the module was loaded; help texts, which nobody asks for here, stay as they were.
    i18n.CHINESE = i18n._chosen().lower().startswith("zh")
    runpy.run_module("nodes", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
