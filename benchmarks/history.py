"""Whether a question takes longer after many others: one holder, one case. Real processes; before and after follow each other in time.

python benchmarks/history.py [--evaluations 20000] [--answers 10000] [--unanswered 1000]
"""

import argparse
import csv
import shutil
import statistics
import tempfile
import threading
from pathlib import Path

from lianfang.v1 import admin_pb2 as pb
from lookup import processor, row
from network import POLICY, Load, admin, agree, ask_once, import_list, set_tick

from nodes.demo.network import Network

HOLDER, ASKER, GONE = "bank-a", "bank-c", "bank-b"
QUESTIONS, LARGE, THREADS = 200, 100, 8


class Numbers:
    """Mobiles that were not asked about yet."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, count: int) -> list[str]:
        self.next += count
        return [f"138{self.next - i:08d}" for i in range(1, count + 1)]


def median_ms(network: Network, numbers: Numbers) -> float:
    stub = admin(network, ASKER)
    times = [ask_once(stub, number, holders=[HOLDER]) for number in numbers.take(QUESTIONS)]
    return statistics.median(times) * 1000


def question(values: list[str], holder: str) -> pb.QueryRequest:
    items = [pb.QueryItem(kind="phone", value=value) for value in values]
    return pb.QueryRequest(items=items, purpose=2, basis=3, case_number="bench", members=[holder])


def evaluate(network: Network, count: int) -> None:
    """By the asker's key, of the holder, within the burst's hour."""
    loads = [Load(network, 1) for _ in range(THREADS)]

    def run(load: Load) -> None:
        while load.evaluations < count // THREADS:
            load.once()

    threads = [threading.Thread(target=run, args=(load,)) for load in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--unanswered", type=int, default=1_000)
    arguments = parser.parse_args()
    network, numbers = Network(Path(tempfile.mkdtemp(prefix="lf-bench-"))), Numbers()
    try:
        network.start()
        for name in (HOLDER, ASKER, GONE):
            (network.node(name) / "policy.toml").write_text(POLICY)
        agree(network, burst_seconds=3_600)
        for bank in (HOLDER, GONE):
            path = network.folder / f"{bank}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("kind", "value"))
                writer.writerows(("phone", f"139{i:08d}") for i in range(2_000))
            import_list(network, bank, path)
        set_tick(network, 60)
        network.run(ASKER, "sync")
        median_ms(network, numbers)
        print(processor())
        print(f"{'p50 of one identifier of one holder':58}{'after':>12}{'before':>12}{'ratio':>8}")

        def compare(name: str, before: float) -> float:
            after = median_ms(network, numbers)
            row(name, after, before, "ms")
            return after

        now = median_ms(network, numbers)
        evaluate(network, arguments.evaluations)
        now = compare(f"{arguments.evaluations:,} evaluations within the burst's hour", now)
        stub = admin(network, ASKER)
        for _ in range(arguments.answers // LARGE):
            list(stub.Query(question(numbers.take(LARGE), HOLDER)))
        now = compare(f"{arguments.answers:,} answers in the same case", now)
        network.stop_member(GONE)
        now = median_ms(network, numbers)
        for number in numbers.take(arguments.unanswered):
            stub.Ask(question([number], GONE))
        compare(f"{arguments.unanswered:,} questions of it without an answer", now)
    finally:
        network.stop()
        shutil.rmtree(network.folder)


if __name__ == "__main__":
    main()
