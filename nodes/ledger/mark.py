"""What must never go back: how far this node's log and its witness have signed.

Kept beside the epoch keys, in a folder that is not to be backed up, and written after the database and before a
signature leaves. A database that is behind it was restored from a backup: the witness takes the mark's word, and the
log signs nothing until it has its own entries back.
"""

import json
import threading
from pathlib import Path

from protocols.ledger.witnessing import NOTHING, Seen

from ..errors import ConfigError
from ..files import write_atomic


class Mark:
    """`ledger.mark`, 0600."""

    def __init__(self, path: Path) -> None:
        """Read the file, or begin one; raises `ConfigError` where it is damaged."""
        self._path = path
        self._guard = threading.Lock()
        self.own = NOTHING
        self._witnessed: dict[str, Seen] = {}
        if not path.exists():
            return
        try:
            document = json.loads(path.read_text("ascii"))
            self.own = _seen(document["own"])
            self._witnessed = {origin: _seen(each) for origin, each in document["witnessed"].items()}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"{path} is damaged; without it a restored backup cannot be told, see docs/operations.md"
            ) from error

    def witnessed(self, origin: str) -> Seen:
        """What was cosigned last for a log."""
        return self._witnessed.get(origin, NOTHING)

    def note_own(self, seen: Seen) -> None:
        """This node's log is about to hand out a head."""
        with self._guard:
            if seen.size >= self.own.size:
                self.own = seen
                self._write()

    def note_witnessed(self, origin: str, seen: Seen) -> None:
        """This node is about to hand out a cosignature."""
        with self._guard:
            if seen.size >= self.witnessed(origin).size:
                self._witnessed[origin] = seen
                self._write()

    def _write(self) -> None:
        document = {
            "own": [self.own.size, self.own.root.hex()],
            "witnessed": {origin: [each.size, each.root.hex()] for origin, each in self._witnessed.items()},
        }
        write_atomic(self._path, json.dumps(document).encode(), 0o600)


def _seen(value: list[object]) -> Seen:
    size, root = value
    if not isinstance(size, int) or not isinstance(root, str) or len(bytes.fromhex(root)) != 32:
        raise ValueError("not a size and a root")
    return Seen(size, bytes.fromhex(root))
