"""What the log adds to one question to three holders: two networks asked by turns, one without the log's part. Prints JSON.

python benchmarks/added.py [ROUNDS]

Of the nodes of the second network the event of a question and of its answer are not committed to, recorded, signed, verified
or kept. All else is the same.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QUESTIONS = 25  # a turn


def without_log() -> None:
    """In a node's process: takes the log's part out of questions."""
    from lianfang.v1 import ledger_pb2

    from nodes.ledger.book import Entry, LogBook
    from nodes.querier.query import Asker
    from nodes.services.lookup import LookupService
    from protocols.ledger.events import Committed

    left_out = {ledger_pb2.EVENT_TYPE_QUERY_ASKED, ledger_pb2.EVENT_TYPE_QUERY_ANSWERED}
    prepare, record, receipt = LogBook.prepare, LogBook.record, LogBook.receipt
    nothing = Committed(ledger_pb2.Event(), ledger_pb2.Opening(), b"")

    def prepared(self: LogBook, kind: Any, peer: str, event_id: bytes, **fields: Any) -> Entry:
        if kind not in left_out:
            return prepare(self, kind, peer, event_id, **fields)
        event = ledger_pb2.Event(contract=fields.get("contract", b""))
        return Entry(b"", Committed(event, nothing.opening, b""), 0)

    def recorded(self: LogBook, connection: Any, entry: Entry) -> Entry:
        return record(self, connection, entry) if entry.key else entry

    def given(self: LogBook, entry: Entry) -> ledger_pb2.Receipt:
        return receipt(self, entry) if entry.key else ledger_pb2.Receipt()

    changed: list[tuple[type, str, Any]] = [
        (LogBook, "prepare", prepared),
        (LogBook, "record", recorded),
        (LogBook, "receipt", given),
        (LogBook, "record_promise", lambda *_: None),
        (LookupService, "_asked", lambda *_: nothing),
        (Asker, "_answered", lambda *_: (ledger_pb2.Receipt(), nothing)),
    ]
    for owner, name, function in changed:
        assert hasattr(owner, name)
        setattr(owner, name, function)


def node(arguments: list[str]) -> None:
    """One node, as `lianfang` would run it."""
    from nodes.__main__ import main as run

    without_log()
    sys.argv = ["lianfang", *arguments]
    run()


def serve(log: bool) -> None:
    """A network that asks a turn of questions for each line it reads."""
    import network as bench

    from nodes.demo import network as demo

    if not log:
        program = demo.program
        demo.program = lambda command: [sys.executable, __file__, "--node", *program(command)[3:]]
    network = demo.Network(Path(tempfile.mkdtemp(prefix="lf-bench-")))
    try:
        network.start()
        for name in (*bench.BANKS, "centre"):
            (network.node(name) / "policy.toml").write_text(bench.POLICY)
        bench.agree(network)
        for i, bank in enumerate(bench.BANKS):
            path = network.folder / f"{bank}.csv"
            path.write_text("kind,value\n" + "".join(f"phone,13{9 - i}{j:08d}\n" for j in range(2_000)))
            bench.import_list(network, bank, path)
        network.run("centre", "sync")
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


def main(rounds: int) -> dict[str, object]:
    """Both networks up at once; idle they cost next to nothing."""
    turns: list[subprocess.Popen[str]] = []
    root = Path(__file__).resolve().parents[1]
    paths = ":".join(map(str, (root, root / "proto", root / "benchmarks")))
    start = functools.partial(
        subprocess.Popen,
        cwd=root,
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for which in ("--without", "--with"):
            turns.append(child := start([sys.executable, "-P", __file__, which]))
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        found: list[list[list[float]]] = [[] for _ in turns]
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
        "p50_ms_without_and_with": [statistics.median(each) for each in p50],
        "added_ms": statistics.median(after - before for before, after in zip(*p50, strict=True)),
        "cpu_ms_a_question": [statistics.mean(each[1] for each in results) for results in found],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        node(sys.argv[2:])
    elif sys.argv[1:] in (["--without"], ["--with"]):
        serve(sys.argv[1] == "--with")
    else:
        print(json.dumps(main(int((sys.argv[1:] or ["24"])[0]))))
