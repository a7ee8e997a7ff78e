"""What tests of jobs share: processes that have said something, launching, and how a job stands."""

import json
import re
import time
from pathlib import Path

from nodes.demo.network import Network


def wait_for(network: Network, name: str, pattern: str, seconds: float = 180) -> str:
    """Until a process has logged something; what it logged."""
    end = time.monotonic() + seconds
    while not re.search(pattern, text := network.log(name).read_text()):
        assert time.monotonic() < end, f"{name} did not say {pattern}: {text[-3000:]}"
        time.sleep(0.2)
    return text


def configure(network: Network, name: str, lines: str) -> None:
    """`[learn]` is the last section of a development node's file."""
    path = network.node(name) / "node.toml"
    path.write_text(path.read_text() + lines)


def launch(network: Network, path: Path, check: bool = True) -> dict:
    kind = json.loads(path.read_bytes())["kind"]
    done = network.run("coordinator", kind, "run", str(path), "--json", check=check)
    return json.loads(done.stdout) if done.stdout else {"state": "", "detail": done.stderr}


def state_of(network: Network, bank: str, name: str) -> dict:
    return next(job for job in network.json(bank, "job", "list") if job["name"] == name)


def wait_for_state(network: Network, bank: str, name: str, states: set[str], seconds: float = 180) -> dict:
    end = time.monotonic() + seconds
    while (state := state_of(network, bank, name))["state"] not in states:
        assert time.monotonic() < end, state
        time.sleep(0.2)
    return state
