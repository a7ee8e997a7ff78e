"""Private lookup beside openmined.psi, in one run on the same cores. Medians of interleaved rounds; ratios count.

python benchmarks/lookup.py --peer-python .venv-peer/bin/python [--entries 1000000] [--rounds 5]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = ("1", "1000", "10000")
LIMIT = 1_800  # seconds of one run: parties of a peer have been seen to wait for each other for ever


def run(python: str, script: str, *arguments: str) -> dict:
    done = subprocess.run(
        [python, str(HERE / script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    return json.loads(done.stdout.splitlines()[-1])  # behind what a peer's library logs


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def row(name: str, ours: float, peer: float | None, unit: str, target: str = "") -> None:
    ratio = f"{ours / peer:8.2f}" if peer else " " * 8
    other = f"{peer:12.2f}" if peer is not None else " " * 12
    print(f"{name:58}{ours:12.2f}{other}{ratio}  {unit:10}{target}", flush=True)


def sealing(arguments: argparse.Namespace) -> None:
    ours, peer = [], []
    for _ in range(arguments.rounds):
        peer.append(run(arguments.peer_python, "peer.py", "setup", str(arguments.sample)))
        ours.append(run(sys.executable, "ours.py", "setup", str(arguments.sample)))

    def median(results: list[dict], key: str) -> float:
        return statistics.median(each[key] for each in results)

    row(
        "sealing, CPU per entry",
        median(ours, "cpu_per_entry") * 1e6,
        median(peer, "cpu_per_entry") * 1e6,
        "µs",
        "≤ 0.85",
    )
    pairs = sorted(a["cpu_per_entry"] / b["cpu_per_entry"] for a, b in zip(ours, peer, strict=True))
    print(f"{'  pair by pair':58}{'':24}{pairs[0]:.2f} … {statistics.median(pairs):.2f} … {pairs[-1]:.2f}")
    row("sealed list, bytes per entry", median(ours, "bytes_per_entry"), median(peer, "bytes_per_entry"), "B")


def batches(arguments: argparse.Namespace, entries: int) -> None:
    ours, peer = [], []
    for _ in range(max(1, arguments.rounds // 2)):
        peer.append(run(arguments.peer_python, "peer.py", "batches", str(entries), *SIZES))
        ours.append(run(sys.executable, "ours.py", "batches", str(entries), *SIZES))
    for size in SIZES:
        for part in ("request", "answer", "finish", "total"):
            a, b = (
                statistics.median(each["batches"][size][part] for each in results) * 1e3
                for results in (ours, peer)
            )
            row(
                f"batch of {size} against {entries:,}: {part}",
                a,
                b,
                "ms CPU",
                "≤ 1.7" if (size, part) == ("10000", "total") else "",
            )
    row(f"peak memory, both roles, {entries:,}", ours[0]["peak_mb"], peer[0]["peak_mb"], "MB")
    if arguments.spu_python:
        found = [
            run(arguments.spu_python, "peer_psi.py", "unbalanced", str(entries), SIZES[-1])["online"]
            for _ in ours
        ]
        mine = statistics.median(each["batches"][SIZES[-1]]["total"] for each in ours)
        cpu = statistics.median(sum(party[0] for party in online) for online in found)
        wall = statistics.median(max(party[1] for party in online) for online in found)
        row(
            f"batch of {SIZES[-1]} against {entries:,} (SPU unbalanced, online)",
            mine * 1e3,
            cpu * 1e3,
            "ms CPU",
            "< 1",
        )
        row("  ours on one core, theirs on two", mine * 1e3, wall * 1e3, "ms wall")


def network(arguments: argparse.Namespace) -> None:
    found = run(sys.executable, "network.py", str(arguments.entries), str(arguments.count))
    entries = f"{found['entries']:,}"
    row(
        f"normalise and import {entries} rows",
        found["import"]["import_rows_per_s"],
        None,
        "rows/s",
        "≥ 20,000",
    )
    row("seal on all cores, wall per entry", found["import"]["seal_wall_per_entry"] * 1e6, None, "µs")
    row(
        "anonymous memory while importing and sealing, most", found["import"]["peak_anonymous_mb"], None, "MB"
    )
    row(f"anonymous memory of a node with {entries}", found["holder_anonymous_mb"], None, "MB", "≤ 300")
    row("anonymous memory of a querier with three copies", found["querier_anonymous_mb"], None, "MB")
    row("sealed list file", found["list_file_mb"], None, "MB", "≤ 200")
    row("a querier's copy", found["copy_file_mb"], None, "MB")
    row("sync of three lists", found["sync_three_lists_s"], None, "s")
    row("evaluations with proof, per core and second", found["evaluations_per_core_s"], None, "1/s")
    row("… in batches of 100", found["evaluations_per_core_s_in_hundreds"], None, "1/s")
    targets = {
        "one_identifier_three_holders": ("≤ 8", "≤ 20", ""),
        "one_identifier_one_holder": ("", "", ""),
        "by_stream": ("", "", ""),
        "while_another_runs_10000_batches": ("", "≤ 25", ""),
        "with_30_ms_round_trip": ("", "", ""),
    }
    for key, limits in targets.items():
        floor = found[key].get("transport", {})  # the peer of these: gRPC with nobody working
        for (quantile, value), limit in zip(list(found[key].items())[:3], limits, strict=True):
            name = f"{key.replace('_', ' ')}: {quantile.removesuffix('_ms')}"
            row(name, value, floor.get(quantile), "ms", limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--spu-python", help="also beside the SPU wheel's unbalanced PSI")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--only", choices=("sealing", "batches", "network"))
    arguments = parser.parse_args()
    print(processor())
    print(f"{'':58}{'ours':>12}{'peer':>12}{'ratio':>8}  {'unit':10}to reach")
    if arguments.only in (None, "sealing"):
        sealing(arguments)
    if arguments.only in (None, "batches"):
        for entries in (arguments.entries // 10, arguments.entries):
            batches(arguments, entries)
    if arguments.only in (None, "network"):
        network(arguments)


if __name__ == "__main__":
    main()
