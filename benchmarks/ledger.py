"""The ledger: durable appends, what a lookup pays for them, proofs at a million leaves, bytes a leaf. Prints a table.

python benchmarks/ledger.py [--quick]
"""

import argparse
import asyncio
import functools
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from lianfang.v1 import common_pb2, ledger_pb2

from nodes.config import LedgerSection
from nodes.identity import keys as node_keys
from nodes.identity.keys import NodeKeys
from nodes.identity.names import MemberName, Role
from nodes.ledger.book import LogBook, grow_bundles, random_id
from nodes.ledger.mark import Mark
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from protocols import merkle
from protocols.ledger import events, tiles

NAME = MemberName("bench.example", Role.BANK, "bank-a")
PEER = "spiffe://bench.example/bank/bank-b"


def book(folder: Path, **settings: float) -> tuple[LogBook, GroupWriter]:
    """A log in a folder of its own."""
    node_keys.create(folder / "keys")
    database = db.connect(folder / "node.db", "node")
    section = LedgerSection(**settings)
    log = LogBook(database, NodeKeys.load(folder / "keys"), NAME, section, Mark(folder / "ledger.mark"))
    return log, GroupWriter(database)


def _throughput(
    writers: int, seconds: float, make: Callable[[LogBook], Callable[[sa.Connection], Any]]
) -> float:
    """Pieces of work a second that are durable: each writer waits for its own before the next."""
    with tempfile.TemporaryDirectory(prefix="lianfang-bench-") as name:
        log, writer = book(Path(name))
        counts, stop = [0] * writers, time.monotonic() + seconds

        async def one(number: int) -> None:
            while time.monotonic() < stop:
                await writer.write(make(log))
                counts[number] += 1

        async def run() -> None:
            await asyncio.gather(*(one(number) for number in range(writers)))

        started = time.monotonic()
        asyncio.run(run())
        elapsed = time.monotonic() - started
        writer.close()
        return sum(counts) / elapsed


def event(log: LogBook) -> Callable[[sa.Connection], Any]:
    """An event, committed to, encrypted and recorded."""
    entry = log.prepare(
        ledger_pb2.EVENT_TYPE_QUERY_ANSWERED,
        PEER,
        random_id(),
        resource="fraud",
        count=4,
        request_hash=secrets.token_bytes(32),
        purpose=common_pb2.PURPOSE_PAYMENT,
    )
    return functools.partial(log.record, entry=entry)


def bare_row(_log: LogBook) -> Callable[[sa.Connection], Any]:
    """The floor: a row of equal size, without an event."""
    row = (secrets.token_hex(16), secrets.token_bytes(300))
    return lambda connection: (
        connection.exec_driver_sql("INSERT INTO logged_state VALUES (?, ?)", row).rowcount
    )


def proofs(size: int, rounds: int) -> dict[str, float]:
    """Milliseconds to make and to verify, from tiles as they are stored; bytes a leaf."""
    stored: dict[tuple[int, int], bytes] = {}

    def read(level: int, number: int) -> bytes:
        return stored.get((level, number), b"")

    step, done = 65_536, 0
    while done < size:
        leaves = [events.dummy_leaf() for _ in range(min(step, size - done))]
        stored |= tiles.grow(done, [merkle.leaf_hash(leaf) for leaf in leaves], read)
        stored |= grow_bundles(done, leaves, read)
        done += len(leaves)
    node = tiles.nodes(read)
    root = merkle.root(size, node)
    made, verified = [], []
    for _ in range(rounds):
        index = secrets.randbelow(size)
        number, place = divmod(index, tiles.WIDTH)
        leaf = merkle.leaf_hash(tiles.unpack(read(tiles.ENTRIES, number))[place])
        started = time.perf_counter()
        path = merkle.inclusion(index, size, node)
        middle = time.perf_counter()
        merkle.verify_inclusion(index, size, leaf, path, root)
        verified.append(time.perf_counter() - middle)
        made.append(middle - started)
    consistent = []
    for _ in range(rounds):
        old = 1 + secrets.randbelow(size - 1)
        started = time.perf_counter()
        path = merkle.consistency(old, size, node)
        consistent.append(time.perf_counter() - started)
        merkle.verify_consistency(old, size, path, merkle.root(old, node), root)
    return {
        "leaves": size,
        "inclusion_ms": statistics.median(made) * 1000,
        "inclusion_p95_ms": sorted(made)[int(0.95 * rounds)] * 1000,
        "verify_ms": statistics.median(verified) * 1000,
        "consistency_ms": statistics.median(consistent) * 1000,
        "bytes_a_leaf": sum(map(len, stored.values())) / size,
    }


def ticks(count: int) -> float:
    """Seconds that a tick takes with so many events waiting."""
    with tempfile.TemporaryDirectory(prefix="lianfang-bench-") as name:
        log, writer = book(Path(name))
        for _ in range(count):
            entry = log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ANSWERED, PEER, random_id(), count=4)
            last = writer.submit(lambda connection, entry=entry: log.record(connection, entry))
        if count:
            last.result()
        started = time.perf_counter()
        log.tick(writer)
        elapsed = time.perf_counter() - started
        writer.close()
        return elapsed


def lookup_share(rounds: int) -> dict[str, float]:
    """Milliseconds that one question to one holder spends on the ledger, both sides together, by what it does."""
    with tempfile.TemporaryDirectory(prefix="lianfang-bench-") as name:
        log, writer = book(Path(name))
        verifier = NodeKeys.load(Path(name) / "keys").signing.public_key()
        spent = []
        for _ in range(rounds):
            started = time.perf_counter()
            for kind in (ledger_pb2.EVENT_TYPE_QUERY_ASKED, ledger_pb2.EVENT_TYPE_QUERY_ANSWERED):
                entry = log.prepare(
                    kind,
                    PEER,
                    random_id(),
                    resource="fraud",
                    count=4,
                    request_hash=bytes(32),
                    asker=bytes(16),
                )
                data = log.receipt(entry).SerializeToString()
                received = ledger_pb2.Receipt.FromString(data)
                events.verify_receipt(received, verifier, str(NAME))
            spent.append(time.perf_counter() - started)

        def rows(connection: object) -> float:
            started = time.perf_counter()
            for _ in range(rounds):
                entry = log.prepare(ledger_pb2.EVENT_TYPE_QUERY_ASKED, PEER, random_id(), count=4)
                log.record(connection, entry)  # type: ignore[arg-type]
                log.record_promise(connection, log.receipt(entry), entry.committed)  # type: ignore[arg-type]
            return (time.perf_counter() - started) / rounds

        written = writer.submit(rows).result()
        writer.close()
        return {"receipts_ms": statistics.median(spent) * 1000, "rows_ms": 2 * written * 1000}


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    sys.setswitchinterval(0.0005)
    seconds = 2.0 if quick else 6.0
    found: dict[str, object] = {}
    for writers in (1, 64):
        runs = [
            (_throughput(writers, seconds, event), _throughput(writers, seconds, bare_row))
            for _ in range(1 if quick else 3)
        ]
        found[f"appends_{writers}"] = {
            "events_a_second": statistics.median(each for each, _ in runs),
            "bare_rows_a_second": statistics.median(each for _, each in runs),
        }
    found["lookup"] = lookup_share(200 if quick else 1_000)
    found["ticks_seconds"] = {count: round(ticks(count), 3) for count in (0, 1_000, 10_000)}
    sizes = (1_000, 10_000, 100_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    found["proofs"] = [proofs(size, 200) for size in sizes]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
