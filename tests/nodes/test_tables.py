"""A copy of a sealed list: whole batches or none."""

import secrets
import threading

import pytest

from nodes.errors import StorageError
from nodes.querier.tables import Tables
from protocols import sealed
from protocols.errors import TableError

WHERE = ("spiffe://n.example/bank/a", "fraud", 1)


@pytest.fixture
def tables(tmp_path):
    made = Tables(tmp_path / "peers")
    yield made
    made.close()


def write(tmp_path, records, tags=()):
    path = tmp_path / f"{secrets.token_hex(4)}.part"
    path.write_bytes(b"".join(records) + b"".join(tags))
    return path, (len(records), len(tags))


def records(count):
    return sorted(secrets.token_bytes(sealed.RECORD) for _ in range(count))


def test_additions_changes_and_removals(tables, tmp_path):
    table = tables.get(*WHERE)
    first = records(100)
    table.apply(*write(tmp_path, first)[:1], 1, (100, 0))
    assert (table.watermark, table.entries) == (1, 100)
    changed = first[0][:16] + secrets.token_bytes(80)
    path, counts = write(tmp_path, sorted([changed, *records(3)]), sorted(each[:16] for each in first[1:4]))
    table.apply(path, 2, counts)
    assert (table.watermark, table.entries) == (2, 100)
    assert table.get([first[0][:16], first[1][:16], first[9][:16]]) == [
        (2, changed[16:]),
        None,
        (1, first[9][16:]),
    ]


@pytest.mark.parametrize("spoil", ["unsorted", "repeated", "short"])
def test_content_that_does_not_ascend_or_ends_early_leaves_the_watermark(tables, tmp_path, spoil):
    content = records(10)
    bad = {
        "unsorted": [content[1], content[0], *content[2:]],
        "repeated": [content[0], *content[:9]],
        "short": content[:9],
    }[spoil]
    path, _ = write(tmp_path, bad)
    table = tables.get(*WHERE)
    with pytest.raises(TableError):
        table.apply(path, 1, (10, 0))
    assert table.watermark == 0
    table.apply(write(tmp_path, content)[0], 1, (10, 0))
    assert [found is not None for found in table.get([each[:16] for each in content])] == [True] * 10


def test_two_threads_that_apply_the_same_batch_lose_nothing(tables, tmp_path):
    content = records(50_000)
    path, counts = write(tmp_path, content)
    table = tables.get(*WHERE)
    threads = [threading.Thread(target=table.apply, args=(path, 1, counts)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (table.watermark, table.entries) == (1, 50_000)


def test_a_broken_file_is_made_anew_and_a_dropped_table_is_not(tables, tmp_path):
    table = tables.get(*WHERE)
    table.apply(write(tmp_path, records(5))[0], 1, (5, 0))
    tables.close()
    path = tables.folder(*WHERE) / "table.lmdb"
    path.write_bytes(b"rubbish" * 1000)
    assert tables.get(*WHERE).watermark == 0
    with pytest.raises(StorageError, match="sync"):
        tables.existing(*WHERE, 1)
    tables.drop(*WHERE)
    assert not tables.folder(*WHERE).exists()
    left = tables.folder(*WHERE).with_name("dropped-00")  # by a crash
    left.mkdir(parents=True)
    Tables(tmp_path / "peers")
    assert not left.exists()
    with pytest.raises(StorageError):
        tables.existing(*WHERE, 0)
    assert not path.exists()
