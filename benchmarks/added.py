"""What a change adds to one question to three holders: two trees of this project by turns. Prints JSON.

python benchmarks/added.py TREE-BEFORE TREE-AFTER [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTIONS = 25  # a turn


def serve() -> None:
    """In a tree of its own: a network that asks a turn of questions for each line it reads."""
    import network as bench

    from nodes.demo.network import Network

    network = Network(Path(tempfile.mkdtemp(prefix="lf-bench-")))
    try:
        network.start()
        for name in (*bench.BANKS, "centre"):
            (network.node(name) / "policy.toml").write_text(bench.POLICY)
        if hasattr(bench, "agree"):
            bench.agree(network)
        for i, bank in enumerate(bench.BANKS):
            path = network.folder / f"{bank}.csv"
            path.write_text("kind,value\n" + "".join(f"phone,13{9 - i}{j:08d}\n" for j in range(2_000)))
            bench.import_list(network, bank, path)
        network.run("centre", "sync")
        if hasattr(bench, "set_tick"):
            bench.set_tick(network, 60)
        stub = bench.admin(network, "centre")
        processes = [network.pid(name) for name in (*bench.BANKS, "centre")]
        for i in range(20):
            bench.ask_once(stub, f"136{i:08d}")
        print("ready", flush=True)
        for turn, _ in enumerate(sys.stdin):
            before = [bench.cpu_seconds(pid) for pid in processes]
            times = [bench.ask_once(stub, f"138{turn * QUESTIONS + i:08d}") * 1000 for i in range(QUESTIONS)]
            used = [bench.cpu_seconds(pid) - spent for pid, spent in zip(processes, before, strict=True)]
            print(json.dumps([statistics.median(times), sum(used) * 1000 / QUESTIONS]), flush=True)
    finally:
        network.stop()
        subprocess.run(["rm", "-rf", str(network.folder)], check=True)


def main(trees: list[str], rounds: int) -> dict[str, object]:
    """Both networks up at once; idle they cost next to nothing."""
    turns: list[subprocess.Popen[str]] = []
    try:
        for tree in trees:
            root = Path(tree).resolve()
            paths = ":".join(map(str, (root, root / "proto", root / "benchmarks")))
            child = subprocess.Popen(
                [sys.executable, "-P", __file__, "--serve"],
                cwd=root,
                env=os.environ | {"PYTHONPATH": paths},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            turns.append(child)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        found: list[list[list[float]]] = [[] for _ in trees]
        for _ in range(rounds):
            for child, results in zip(turns, found, strict=True):
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write("\n")
                child.stdin.flush()
                results.append(json.loads(child.stdout.readline()))
    finally:
        for child in turns:
            child.communicate()
    p50 = [[each[0] for each in results] for results in found]
    return {
        "p50_ms": [statistics.median(each) for each in p50],
        "added_ms": statistics.median(after - before for before, after in zip(*p50, strict=True)),
        "cpu_ms_a_question": [statistics.mean(each[1] for each in results) for results in found],
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        print(json.dumps(main(sys.argv[1:3], int((sys.argv[3:] or ["24"])[0]))))
