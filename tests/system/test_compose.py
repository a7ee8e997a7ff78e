"""docker-compose.yml and Dockerfile without an engine: each service's command and environment, run as a process."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from nodes.demo import network as demo

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


NODES = {name for name in SERVICES if name != "ca" and not name.endswith("-learn")}
LEARNERS = {name for name in SERVICES if name.endswith("-learn")}


def test_the_members_and_settings_are_those_of_the_demonstration():
    settings = demo.settings()
    assert {member.name for member in settings.members} == NODES
    assert {f"{name}-learn" for name in NODES - {"regulator"}} == LEARNERS
    for member in settings.members:
        service = SERVICES[member.name]
        addresses = demo.Addresses(
            "0.0.0.0:7443",
            f"{member.name}:7443",
            "0.0.0.0:8443",
            "coordinator-learn:8443",
            "0.0.0.0:7444",
            f"{member.name}:7444",
        )
        assert service["environment"] == demo.environment(settings, member, addresses, "/enrol")
        assert service["command"] == demo.node_command("/data")
        if member.name == "regulator":
            continue  # it only watches
        assert SERVICES[f"{member.name}-learn"]["command"] == demo.learn_command("/data")
        assert SERVICES[f"{member.name}-learn"]["depends_on"] == {
            member.name: {"condition": "service_healthy"}
        }
    assert SERVICES["ca"]["environment"] == demo.ca_environment(settings, "/enrol")
    assert SERVICES["ca"]["command"] == demo.ca_command("/data")


def test_containers_are_confined_and_watched():
    for name, service in SERVICES.items():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        mounted = {volume.split(":")[0] for volume in service["volumes"]}
        assert mounted == {name.removesuffix("-learn"), "enrol"}
        assert mounted <= set(COMPOSE["volumes"])
        if name in NODES:
            assert service["healthcheck"]["test"] == ["CMD", "lianfang", "ping"]


def test_the_image_is_non_root_pinned_and_has_what_the_wheel_needs():
    last = DOCKERFILE.split("FROM ")[-1]
    assert re.search(r"^USER lianfang$", last, re.MULTILINE)
    assert "--require-hashes" in DOCKERFILE
    assert "HEALTHCHECK" in last
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == kept
    assert all((ROOT / each).exists() for each in kept)
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(r'"(setuptools==\S+)"', DOCKERFILE)[1] in lock


def test_a_compose_plugin_agrees_where_there_is_one():
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no docker compose plugin here")
    done = subprocess.run(
        ["docker", "compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_service_as_a_process():
    """Volumes become folders and host names loopback addresses; commands and environments stay as they are."""
    base = Path(tempfile.mkdtemp(prefix="lf-compose-"))
    folders = {name: base / name for name in COMPOSE["volumes"]}
    ports = {name: demo.free_port() for name in SERVICES}
    ledgers = {name: demo.free_port() for name in SERVICES}
    superlink = demo.free_port()
    processes = {}
    try:
        for folder in folders.values():
            folder.mkdir()

        def start(name):
            service = SERVICES[name]
            mounts = {
                target: str(folders[source])
                for source, target in (volume.split(":") for volume in service["volumes"])
            }

            def here(text, mounts=mounts, name=name):
                for target, folder in mounts.items():
                    text = re.sub(rf"^{target}\b", folder, text)
                text = text.replace(f"{name}:7443", f"127.0.0.1:{ports[name]}")
                text = text.replace("0.0.0.0:7443", f"127.0.0.1:{ports[name]}")
                text = text.replace(f"{name}:7444", f"127.0.0.1:{ledgers[name]}")
                text = text.replace("0.0.0.0:7444", f"127.0.0.1:{ledgers[name]}")
                text = text.replace("coordinator-learn:8443", f"127.0.0.1:{superlink}")
                return text.replace("0.0.0.0:8443", f"127.0.0.1:{superlink}")

            environment = {key: here(value) for key, value in service.get("environment", {}).items()}
            inherited = {key: value for key, value in os.environ.items() if not key.startswith("LIANFANG_")}
            with (base / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    demo.program([here(word) for word in service["command"]]),
                    env=inherited | environment,
                    stdout=log,
                    stderr=log,
                )

        for name in ("ca", *NODES):
            start(name)
        assert processes["ca"].wait(120) == 0, (base / "ca.log").read_text()
        for name in NODES:
            check = demo.program(SERVICES[name]["healthcheck"]["test"][1:])
            deadline = time.monotonic() + 180
            while True:
                done = subprocess.run(
                    check,
                    env=os.environ | {"LIANFANG_CONFIG": str(folders[name] / "node.toml")},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode == 0:
                    break
                assert time.monotonic() < deadline, (base / f"{name}.log").read_text()
                time.sleep(0.3)
            made = demo.program(["lianfang", "dev", "people", str(folders[name])])
            subprocess.run(made, capture_output=True, check=True)
        peers = subprocess.run(
            demo.program(["lianfang", "peers", "--json", "--config", str(folders["centre"])]),
            env=os.environ | {"LIANFANG_SESSION": str(folders["centre"] / "people" / "li-na.session")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(peer["answers"] for peer in json.loads(peers.stdout)["peers"])
        for name in ("coordinator-learn", "bank-a-learn"):
            start(name)
        deadline = time.monotonic() + 180
        while "SuperNode ID" not in (base / "bank-a-learn.log").read_text():
            assert time.monotonic() < deadline, (base / "coordinator-learn.log").read_text()[-2000:]
            time.sleep(0.3)
    finally:
        for process in processes.values():
            process.terminate()
        statuses = {name: process.wait(60) for name, process in processes.items()}
        shutil.rmtree(base, ignore_errors=True)
    assert set(statuses.values()) == {0}
