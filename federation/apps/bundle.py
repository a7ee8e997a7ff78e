"""The bundle that launches a job through Flower. It holds no code of value: every institution runs what it installed,
and knows the bundle by its SHA-256 only. `flwr build` makes the same bytes from the same files.
"""

import tempfile
from pathlib import Path

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lianfang-launch"
version = "1.0.0"
description = "Launches a Lianfang job; institutions run the code they have installed"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "lianfang"

[tool.flwr.app.components]
serverapp = "lianfang_launch.server:app"
clientapp = "lianfang_launch.client:app"

[tool.flwr.app.config]
job = ""
""",
    "lianfang_launch/__init__.py": '"""Nothing runs from here."""\n',
    "lianfang_launch/client.py": """\
\"\"\"Loaded by nobody: a node's own executor never unpacks a bundle.\"\"\"

from flwr.clientapp import ClientApp

app = ClientApp()
""",
    "lianfang_launch/server.py": """\
\"\"\"Loaded by nobody: the coordinator's own executor never unpacks a bundle.\"\"\"

from flwr.serverapp import ServerApp

app = ServerApp()
""",
}


def write(folder: Path) -> None:
    """The bundle's files."""
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def build() -> bytes:
    """The bundle, as Flower ships it."""
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory(prefix="lianfang-bundle-") as name:
        write(Path(name))
        return bytes(build_fab_from_disk(Path(name)))
