"""The same for Lianfang's protocol library on one core, labels and proofs included; prints JSON."""

import datetime as dt
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from nodes.querier.tables import Tables
from protocols import group, lookup, sealed, voprf
from protocols.label import Basis, Category, Label, Reason, Status
from protocols.lookup import Question
from protocols.sealed import ListEpoch

WHERE = ListEpoch("bench.example", "spiffe://bench.example/bank/a", "fraud", 1)
LABEL = Label(
    Category.MULE_ACCOUNT,
    4,
    90,
    Basis.COURT,
    Status.ACTIVE,
    Reason.NONE,
    dt.date(2026, 1, 1),
    None,
    bytes(16),
).encode()
STEP = 256


def cpu(work):
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def seal(key, values):
    """As a node does it: pieces, each sorted, from normalised input to records."""
    out = []
    for start in range(0, len(values), STEP):
        entries = [(value, LABEL) for value in values[start : start + STEP]]
        out.append(sealed.seal_chunk(key.secret, WHERE.context, 1, entries, os.urandom(16 * len(entries))))
    records = [record for piece in out for record in group.split(piece, sealed.RECORD)]
    records.sort()
    return records


def setup(count: int) -> dict:
    """CPU of sealing `count` entries."""
    values = [f"phone\x1f+86139{i:08d}".encode() for i in range(count)]
    records, seconds = cpu(lambda: seal(voprf.generate_key_pair(), values))
    return {
        "entries": count,
        "cpu_per_entry": seconds / count,
        "bytes_per_entry": len(b"".join(records)) / count,
    }


def batches(count: int, sizes: list[int]) -> dict:
    """CPU of questions against a list of `count`; every seventh value asked is listed, as with the peer."""
    key = voprf.generate_key_pair()
    listed = [f"phone\x1f+86139{i:08d}".encode() for i in range(min(count, 7 * max(sizes)))]
    records = seal(key, listed) + [os.urandom(sealed.RECORD) for _ in range(count - len(listed))]
    records.sort()
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        path.write_bytes(b"".join(records))
        del records
        tables = Tables(Path(folder) / "tables")
        table = tables.get(WHERE.holder, "fraud", 1)
        table.apply(path, 1, (count, 0))
        for size in sizes:
            values = [f"phone\x1f+86139{i * 7:08d}".encode() for i in range(size)]
            question, a = cpu(lambda values=values: _asked(key.public, values))
            answer, b = cpu(lambda question=question: lookup.answer(key, question.request()))
            hits, c = cpu(lambda question=question, answer=answer: _finish(question, answer, table))
            assert hits == len(values)
            out[size] = {"request": a, "answer": b, "finish": c, "total": a + b + c}
        stored = (Path(folder) / "tables").rglob("table.lmdb")
        stored_bytes = sum(each.stat().st_blocks * 512 for each in stored)
        tables.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"entries": count, "batches": out, "peak_mb": peak, "copy_bytes_per_entry": stored_bytes / count}


def _asked(public, values):
    question = Question(public, values)
    question.request()
    return question


def _finish(question, answer, table):
    outputs = question.finish(*answer)
    found = table.get(sealed.tags_of(outputs))
    listed = [(o, *record) for o, record in zip(outputs, found, strict=True) if record]
    return sum(isinstance(label, Label) for label in sealed.open_each(WHERE.context, listed))


if __name__ == "__main__":
    what, count, *sizes = sys.argv[1:]
    result = setup(int(count)) if what == "setup" else batches(int(count), [int(each) for each in sizes])
    print(json.dumps(result))
