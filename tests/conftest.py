"""What tests share: where the data of `../shared` lies, and a node's folder in memory of a test."""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also what takes minutes")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and vectors beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist here")
    return SHARED


@pytest.fixture(scope="session")
def rfc9497(shared: Path) -> list[dict[str, Any]]:
    """All vectors of RFC 9497's suites."""
    return json.loads((shared / "vectors" / "rfc9497_vectors.json").read_text())
