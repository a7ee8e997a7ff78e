"""A durable commit of what an answered question writes, with zeros ready in the write-ahead log and without (decision 19).

python benchmarks/commits.py [FOLDER] [COMMITS]: on the file system of FOLDER, by turns.
"""

import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from nodes.store import engine as db
from nodes.store import schema

ROUNDS = 4


def row(table: sa.Table) -> dict[str, object]:
    """Of the columns' kinds, random where they are bytes."""
    kinds = {sa.LargeBinary: secrets.token_bytes(32), sa.Text: "spiffe://network/bank/bank-a"}
    values = {each.name: kinds.get(type(each.type), secrets.randbelow(1 << 40)) for each in table.columns}
    empty = {"id", "position"} & values.keys()
    return {name: value for name, value in values.items() if name not in empty}


def commits(database: sa.Engine, count: int) -> list[float]:
    """Milliseconds of each."""
    times = []
    for _ in range(count):
        with database.connect() as connection, connection.begin():
            for table in (schema.decision, schema.promise, schema.ledger_entry):
                connection.execute(table.insert(), row(table))
            started = time.perf_counter()
        times.append((time.perf_counter() - started) * 1000)
    return times


def main(folder: str | None, count: int) -> None:
    """Both by turns on one database; the log is emptied before each."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "node.db"
        database = db.connect(path, "node")
        held = database.raw_connection()  # whoever closes it last empties the log
        commits(database, count)
        found: dict[str, list[float]] = {"longer": [], "ready": []}
        pages = 0
        for _ in range(ROUNDS):
            for name, room in (("longer", 0), ("ready", db.LOG_BYTES)):
                db.settle(database)
                db.settle(database, room)
                found[name] += commits(database, count)
            pages = db.settle(database) // 4_096
        held.close()
    for name, what in (("longer", "that makes the log longer"), ("ready", "over zeros that lie ready")):
        times = sorted(found[name])
        print(
            f"a commit {what:28} {statistics.median(times):6.3f} ms, p95 {times[len(times) * 95 // 100]:6.3f}"
        )
    print(
        f"ratio of the medians {statistics.median(found['ready']) / statistics.median(found['longer']):.2f}; ",
        end="",
    )
    print(f"{pages / count:.0f} pages a commit")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 300)
