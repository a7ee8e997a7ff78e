"""Two parties' sets beside openmined.psi (and the SPU wheel, where it is given), CPU seconds of each side, one core.

python benchmarks/psi.py --peer-python .venv-peer/bin/python [--spu-python .venv-spu/bin/python] [--bits 16 20] [--rounds 3]
python benchmarks/psi.py --deployed --spu-python .venv-spu/bin/python [--bits 20]: from CSV to CSV, two real nodes under a contract over
mutual TLS beside two parties of the SPU wheel, both on all cores
"""

import argparse
import json
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from protocols import group, psi

HERE = Path(__file__).parent


def ours(bits: int) -> dict:
    """Both sides of an intersection to one, from identifiers to rows, with the deployed pieces of work and the disk's sort."""
    from nodes.psi.workspace import Workspace

    count = 1 << bits
    where = psi.domain(bytes(32), bytes(16))
    sides = [[b"phone\x1f+86139%08d" % (i + start) for i in range(count)] for start in (0, count // 2)]
    seconds, sent, spaces, exponents = [0.0, 0.0], [0, 0], [], [psi.Exponent(), psi.Exponent()]
    folder = Path(tempfile.mkdtemp(prefix="psi-bench-"))

    def clocked(side: int, work) -> None:
        started = time.process_time()
        work()
        seconds[side] += time.process_time() - started

    def mask(side: int) -> None:
        space = Workspace(folder / str(side))
        spaces.append(space)
        for i in range(0, count, psi.CHUNK):
            part = sides[side][i : i + psi.CHUNK]
            space.add_masked(
                psi.mask_chunk(where, exponents[side].scalar, part), range(i + 1, i + 1 + len(part))
            )
        space.sort_own(lambda distinct: [psi.dummies(psi.size(distinct) - distinct)])

    def double(side: int) -> None:
        arrivals = psi.Arrivals(psi.size(count), count)
        for points in spaces[1 - side].own():
            sent[1 - side] += len(points)
            spaces[side].add_theirs(arrivals.take(points))
        arrivals.end()
        for points in spaces[side].theirs():
            spaces[side].add_their_doubled(psi.double_chunk(exponents[side].scalar, points))

    def compare() -> None:
        for points in spaces[1].their_doubled(True):
            sent[1] += len(points)
            spaces[0].add_own_doubled(points)
        spaces[0].prepare_to_compare()
        found = len(spaces[0].common_rows())
        assert found == count - count // 2, found

    for side in (0, 1):
        clocked(side, lambda side=side: mask(side))
    for side in (0, 1):
        clocked(side, lambda side=side: double(side))
    clocked(0, compare)
    for space in spaces:
        space.close()
    folder.rmdir()
    return {"seconds": seconds, "bytes": sent}


CONTRACT = """
title = "benchmark"
days = 30
[psi]
variant = "intersection"
kind = "phone"
sessions_a_day = 5
output_to = ["bank-a"]
minimum_cardinality = 0
[[psi.input]]
party = "bank-a"
dataset = "mine"
column = "phone"
max_elements = {count}
[[psi.input]]
party = "bank-b"
dataset = "mine"
column = "phone"
max_elements = {count}
"""


def deployed(bits: int) -> dict:
    """CPU of both nodes with all their processes, and of the command that writes the outcome; wall time of that command."""
    from network import cpu_seconds, set_tick

    from nodes.contracts import draft as drafts
    from nodes.demo.network import Network

    count, banks = 1 << bits, ("bank-a", "bank-b")
    network = Network(Path(tempfile.mkdtemp(prefix="lf-psi-")))
    try:
        network.start()
        for bank, start in zip(banks, (0, count // 2), strict=True):
            path = network.folder / f"{bank}.csv"
            with path.open("w") as file:
                file.write("phone\n")
                file.writelines(f"139{i + start:08d}\n" for i in range(count))
            settings = network.node(bank) / "node.toml"
            settings.write_text(settings.read_text() + f'\n[learn.datasets.mine]\npath = "{path}"\n')
            network.stop_member(bank)
            network.start_member(network.member(bank))
        for bank in banks:
            network.wait(bank)
        draft = network.folder / "contract.toml"
        draft.write_text(CONTRACT.format(count=count))
        name = network.agree(drafts.load(draft), "bank-a")
        set_tick(network, 60)
        pids = [network.pid(bank) for bank in banks]
        before = [cpu_seconds(pid) for pid in pids]
        command = resource.getrusage(resource.RUSAGE_CHILDREN)
        started, out = time.monotonic(), network.folder / "common.csv"
        found = network.json("bank-a", "psi", "run", name[:12], "--output", str(out))
        wall = time.monotonic() - started
        assert found["common"] == count - count // 2, found
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = [cpu_seconds(pid) - spent for pid, spent in zip(pids, before, strict=True)]
        own = after.ru_utime + after.ru_stime - command.ru_utime - command.ru_stime
        return {"seconds": [seconds[0] + own, seconds[1]], "wall": wall}
    finally:
        network.stop()
        shutil.rmtree(network.folder)


def curve_arithmetic(bits: int) -> float:
    """CPU seconds that both sides' multiplications take by themselves, here and now."""
    scalar, count = group.random_scalar(), 8 * psi.CHUNK
    points, uniform = psi.dummies(count), secrets.token_bytes(group.UNIFORM * count)
    seconds = 0.0
    for work, given in ((group.hash_and_multiply_all, uniform), (group.multiply_all, points)):
        taken = []
        for _ in range(5):
            started = time.process_time()
            work(scalar, given)
            taken.append(time.process_time() - started)
        seconds += min(taken) / count
    return 2 * (1 << bits) * seconds


def from_csv_to_csv(bits: int, spu_python: str) -> None:
    """One run each."""
    floor = curve_arithmetic(bits)
    mine = deployed(bits)
    command = [spu_python, str(HERE / "peer_psi.py"), "ecdh", str(bits)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    peer = json.loads(done.stdout.splitlines()[-1])
    what = f"2^{bits} a side from CSV to CSV, beside SPU's ECDH"
    row(f"{what}: CPU of both", sum(mine["seconds"]), sum(peer["seconds"]), "s", "≤ 0.8")
    row(f"{what}: wall", mine["wall"], peer["wall"], "s")
    print(
        f"{'… of ours, multiplications at what the kernel takes for them':58}{floor:12.2f}  {floor / sum(mine['seconds']):.2f} of the whole"
    )


def row(what: str, mine: float, other: float | None, unit: str, target: str = "") -> None:
    """One line."""
    theirs, ratio = (f"{other:12.2f}", f"{mine / other:8.2f}") if other else (" " * 12, " " * 8)
    print(f"{what:58}{mine:12.2f}{theirs}{ratio}  {unit:8}{target}", flush=True)


def main() -> None:
    """Interleaved rounds; medians."""
    if sys.argv[1:2] == ["ours"]:
        print(json.dumps(ours(int(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--deployed", action="store_true")
    parser.add_argument("--spu-python", default="")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 20])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not (given.spu_python if given.deployed else given.peer_python):
        parser.error("the peer's Python is needed")
    print(f"{'':58}{'ours':>12}{'peer':>12}{'ratio':>8}")
    if given.deployed:
        for bits in given.bits:
            from_csv_to_csv(bits, given.spu_python)
        return
    for bits in given.bits:
        runs: dict[str, list[dict]] = {"ours": [], "openmined": [], "ecdh": [], "rr22": []}
        for _ in range(given.rounds if bits < 20 else 1):
            commands = {
                "ours": [sys.executable, __file__, "ours", str(bits)],
                "openmined": [given.peer_python, str(HERE / "peer_psi.py"), "openmined", str(bits)],
            }
            if given.spu_python:
                for protocol in ("ecdh", "rr22"):
                    commands[protocol] = [given.spu_python, str(HERE / "peer_psi.py"), protocol, str(bits)]
            for name, command in commands.items():
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
                )
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))

        def median(name: str, key: str, side: int, found: dict[str, list[dict]] = runs) -> float:
            return statistics.median(each[key][side] for each in found[name])

        for name, found in runs.items():
            if name == "ours" or not found:
                continue
            both = sum(median("ours", "seconds", side) for side in (0, 1))
            other = sum(median(name, "seconds", side) for side in (0, 1))
            target = "≤ 0.85" if name == "openmined" else ""
            row(f"2^{bits} per side, CPU both sides, beside {name}", both, other, "s", target)
            for side, who in enumerate(("who learns", "the other")):
                mine, theirs = median("ours", "seconds", side), median(name, "seconds", side)
                row(f"  {who}", mine, theirs, "s")
                row(
                    f"  {who}, sent",
                    median("ours", "bytes", side) / 1e6,
                    median(name, "bytes", side) / 1e6,
                    "MB",
                )


if __name__ == "__main__":
    main()
