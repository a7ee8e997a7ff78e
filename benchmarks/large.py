"""A large list through real processes: import, sealing, first sync, and a day's change of 0.1 %. Real time on all cores.

python benchmarks/large.py [--entries 1000000 10000000]
Numbers that are linear in the list are also printed per entry: their slope is what 10^8 is extrapolated from.
"""

import argparse
import csv
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lianfang.v1 import admin_pb2 as pb
from lookup import processor
from network import POLICY, admin, agree, anonymous_mb, import_list

from nodes.cli.lists import Format, _Upload
from nodes.demo.network import Network
from nodes.importers.table import Mapping
from nodes.people.roles import Role

BANK = "bank-a"
ROWS = ("kind", "value", "category", "severity", "basis", "observed_on")


def write(path: Path, rows: Iterator[int]) -> None:
    """A list of mainland mobiles."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ROWS)
        writer.writerows(
            ("phone", f"13{5 + j // 10**8}{j % 10**8:08d}", "mule-account", "4", "report", "2026-10-01")
            for j in rows
        )


def batch_bytes(network: Network) -> int:
    return sum(each.stat().st_size for each in network.node(BANK).glob("data/lists/fraud/1/*.batch"))


def clocked(work) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def measure(entries: int) -> None:
    """One list, printed as it comes."""
    network = Network(Path(tempfile.mkdtemp(prefix="lf-large-")))
    try:
        network.start()
        for name in (BANK, "centre"):
            (network.node(name) / "policy.toml").write_text(POLICY)
        agree(network)
        path = network.folder / "list.csv"
        write(path, iter(range(entries)))

        def row(what: str, value: float, unit: str, each: bool = True) -> None:
            slope = f"{value / entries * 1e6:12.2f} µ{unit} an entry" if each else ""
            print(f"{entries:>12,} {what:48}{value:12.1f} {unit:3}{slope}", flush=True)

        found = import_list(network, BANK, path)
        row("normalise and import", entries / found["import_rows_per_s"], "s")
        row("seal", found["seal_wall_per_entry"] * entries, "s")
        row(
            "anonymous memory while importing and sealing, most", found["peak_anonymous_mb"], "MB", each=False
        )
        row("sealed list", batch_bytes(network) / 1e6, "MB")
        row("first sync of another member", clocked(lambda: network.run("centre", "sync")), "s")
        row("anonymous memory of the holder", anonymous_mb(network.pid(BANK)), "MB", each=False)
        before, changed = batch_bytes(network), entries // 1_000
        write(path, iter(range(entries, entries + changed)))
        upload = _Upload(path, Format.AUTO, Mapping())
        node = admin(network, BANK, Role.OPERATOR)
        start = pb.ImportStart(list="fraud")
        row(
            f"import and seal {changed:,} new entries",
            clocked(lambda: list(node.Import(upload.requests(upload.parsed(), start)))),
            "s",
            each=False,
        )
        row("what travels of them", (batch_bytes(network) - before) / 1e6, "MB", each=False)
        row("sync of them", clocked(lambda: network.run("centre", "sync")), "s", each=False)
    finally:
        network.stop()
        subprocess.run(["rm", "-rf", str(network.folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000_000, 10_000_000])
    print(processor())
    for entries in parser.parse_args().entries:
        measure(entries)


if __name__ == "__main__":
    main()
