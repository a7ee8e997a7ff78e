"""Two parties' sets beside openmined.psi (and the SPU wheel, where it is given), CPU seconds of each side, one core.

python benchmarks/psi.py --peer-python .venv-peer/bin/python [--spu-python .venv-spu/bin/python] [--bits 16 20] [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def ours(bits: int) -> dict:
    """Both sides of an intersection to one, from identifiers to rows, with the deployed pieces of work and the disk's sort."""
    from nodes.psi.workspace import Workspace
    from protocols import psi

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
        missing = psi.size(count) - count
        space.add_masked(psi.dummies(missing), [0] * missing)
        space.sort_own()

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
        found = sum(1 for _ in spaces[0].common_rows())
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
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--spu-python", default="")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 20])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{'':58}{'ours':>12}{'peer':>12}{'ratio':>8}")
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
