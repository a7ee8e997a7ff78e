"""Commands at a terminal."""

import os
import pty
import re
import select
import subprocess
import time

import pyotp

from nodes.demo.network import program


class Terminal:
    """A command at a terminal, answered line by line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            program(["lianfang", *arguments]),
            env=inherited | {"LIANFANG_LANG": "en", "TERM": "dumb"} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def expect(self, pattern: str) -> re.Match:
        end = time.monotonic() + 180
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < end, self.said
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.said += os.read(self._master, 65_536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.said), self.said
        return found

    def answer(self, text: str) -> None:
        self.said = ""
        os.write(self._master, (text + "\n").encode())

    def end(self) -> int:
        status = self._process.wait(30)
        os.close(self._master)
        return status


def enrol(name: str, invitation: str, config: str, session: str, password: str = "wind over water 8") -> None:
    """Somebody accepts an invitation and is signed in."""
    terminal = Terminal("user", "enrol", name, "--config", config, LIANFANG_SESSION=session)
    terminal.expect("invitation:")
    terminal.answer(invitation)
    secret = terminal.expect(r"type in:\s*([A-Z2-7]{32})")[1]
    terminal.expect("new password[^:]*:")
    terminal.answer(password)
    terminal.expect("once more:")
    terminal.answer(password)
    terminal.expect("code of the authenticator:")
    terminal.answer(pyotp.TOTP(secret).now())
    terminal.expect("is enrolled and signed in")
    assert terminal.end() == 0
