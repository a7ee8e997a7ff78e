"""The house itself: who imports whom, generated code, secrets, licences of what is installed."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protocols", "federation", "nodes")


def modules(room: str) -> list[Path]:
    return sorted(ROOT.joinpath(room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("room", "forbidden"), [("protocols", {"federation", "nodes"}), ("federation", {"nodes"})]
)
def test_imports_run_one_way(room, forbidden):
    for path in modules(room):
        assert not imported(path) & forbidden, path


def test_every_module_can_be_imported():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ROOMS
        for path in modules(room)
        if "migrations" not in path.parts and path.stem != "__main__"
    ]
    subprocess.run(
        [sys.executable, "-c", "\n".join(f"import {name}" for name in names)], cwd=ROOT, check=True
    )


def test_protocols_touch_no_network_disk_clock_or_log():
    outside = {
        "socket",
        "grpc",
        "asyncio",
        "logging",
        "structlog",
        "time",
        "pathlib",
        "sqlalchemy",
        "lmdb",
        "subprocess",
    }
    for path in modules("protocols"):
        assert not imported(path) & outside, path


def test_generated_code_is_up_to_date(tmp_path):
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*_pb2*"))
    sources = sorted((tmp_path / "proto/lianfang/v1").glob("*.proto"))
    assert sources
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path / 'proto'}"),
            *(
                f"--{kind}_out={tmp_path / 'proto'}"
                for kind in ("python", "grpc_python", "mypy", "mypy_grpc")
            ),
            *map(str, sources),
        ],
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
    )
    for fresh in (tmp_path / "proto/lianfang/v1").glob("*_pb2*"):
        assert fresh.read_text() == (ROOT / "proto/lianfang/v1" / fresh.name).read_text(), fresh.name


def test_no_pickle_no_eval_no_unauthenticated_port():
    allowed = {
        "nodes/node.py": 'add_insecure_port(f"unix:',
        "nodes/services/wire.py": 'insecure_channel(f"unix:',
        # The simulation's own socket in a private temporary folder: `address` and `socket` begin with unix:.
        "federation/simulate/flower.py": "insecure_",
    }
    for room in ROOMS:
        for path in modules(room):
            text = path.read_text("utf-8")
            name = str(path.relative_to(ROOT))
            for line in text.splitlines():
                if re.search(r"\bpickle\b|\beval\(|shell=True|insecure_channel|add_insecure_port", line):
                    assert name in allowed, f"{name}: {line.strip()}"
                    assert allowed[name] in line, f"{name}: {line.strip()}"


def test_the_node_image_has_no_gpl_code():
    everything = (ROOT / "requirements.lock").read_text()
    for name in ("requirements-node.lock", "requirements-learn.lock"):
        lock = (ROOT / name).read_text()
        assert not re.search(r"^(phe|gmpy2)==", lock, re.MULTILINE)
        for line in re.findall(r"^[a-z0-9-]+==\S+", lock, re.MULTILINE):
            assert line in everything, f"{line}: {name} and requirements.lock differ"


def test_package_data_is_declared():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["*"]
    (extension,) = settings["ext-modules"]
    built_from = {ROOT / name for name in extension["sources"] + extension["depends"]}
    assert built_from == set(ROOT.joinpath("protocols", "_kernel").iterdir())
    for room in ROOMS:
        for path in ROOT.joinpath(room).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".so") and path not in built_from:
                assert any(path.match(pattern) for pattern in patterns), path
