"""What is installed without an extra works without it."""

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"gmpy2", "phe"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    "work",
    [
        "import nodes.node, nodes.learning.mount, nodes.learning.processes, nodes.psi.service, nodes.cli.app",
        # A coordinator and an approver read what they do not run.
        "from federation import job; from federation.vertical.settings import settings_for\n"
        "settings_for('linear', {}); settings_for('trees', {'trees': 3})",
        "import protocols.psi, protocols.contract, federation.models.registry, federation.simulate.arms",
    ],
)
def test_without_the_vertical_extra(work):
    done = subprocess.run([sys.executable, "-c", BLOCKED + work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
