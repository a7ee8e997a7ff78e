"""Workbooks and Parquet files are read in a process of its own, with bounded memory and time and without this one's secrets.

Their libraries unpack and parse what anybody may have written: 300 kB of a workbook become gigabytes, a row number of 10^9 spins. The
child writes rows as JSON lines, which the parent counts; it never unpickles.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import NATURAL, Reading, UnreadableFile

MEMORY = 2 << 30  # bytes of address space
SECONDS = 900  # of processor time: a million rows of ten columns take about 200
ROWS = 20_000_000
_AT_ONCE = 500  # rows in a line
_LINE = 256 << 20  # characters
_BOOT = "from federation.files.guarded import child; child()"
_TOO_LARGE = "more memory or time is needed to read it than an honest file takes: save it as CSV, or in parts"


def records(kind: str, path: Path, reading: Reading = NATURAL) -> Iterator[Any]:
    """What the reader of a kind (`xlsx`, `parquet`) gives, as JSON has it. Raises `UnreadableFile`."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve more address space than is allowed
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, kind, str(path.absolute()), reading.sheet, str(MEMORY), str(SECONDS)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield from _received(process, path)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _received(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[Any]:
    assert process.stdout is not None
    rows = 0
    while line := process.stdout.readline(_LINE):
        try:
            what, content = json.loads(line)
        except (ValueError, TypeError) as error:
            raise UnreadableFile(path, _TOO_LARGE) from error  # it broke off in the middle of a line
        if what == "error":
            raise UnreadableFile(path, str(content))
        if what == "end":
            return
        rows += len(content)
        if rows > ROWS:
            raise UnreadableFile(path, f"more than {ROWS:,} rows")
        yield from content
    raise UnreadableFile(path, _TOO_LARGE)


# -- in the child ------------------------------------------------------------------------------------------------------


def _limit(memory: int, seconds: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def _reader(kind: str) -> Callable[[Path, Reading], Iterable[Any]]:
    if kind == "parquet":
        from .parquet import records_here as parquet

        return parquet
    from .xlsx_file import records_here as xlsx

    return xlsx


def _say(what: str, content: Any) -> None:
    sys.stdout.write(json.dumps([what, content], ensure_ascii=True, separators=(",", ":")) + "\n")


def child() -> None:
    """Read the file that the command line names, and say so or why not."""
    kind, path, sheet, memory, seconds = sys.argv[1:]
    _limit(int(memory), int(seconds))
    try:
        rows: list[Any] = []
        for record in _reader(kind)(Path(path), Reading(sheet=sheet)):
            rows.append(record)
            if len(rows) == _AT_ONCE:
                _say("rows", rows)
                rows = []
        _say("rows", rows)
        _say("end", None)
    except UnreadableFile as error:
        _say("error", error.message)
    except MemoryError:
        _say("error", _TOO_LARGE)
    sys.stdout.flush()
