"""Sealed batches on disk: one immutable file each, additions then removals, as `protocols.sealed` lays them out.

A batch is built from sorted runs, so memory does not grow with the list, and a crash resumes after the last
run that is complete.
"""

import heapq
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from protocols import sealed
from protocols.sealed import BatchHash

from ..files import sync_folder, write_atomic

_READ = 1_024  # records read at once from a run
_MERGE_AT_ONCE = 256  # runs


@dataclass
class Progress:
    """How far a batch has come; what is written here is on disk."""

    number: int
    after: int  # changes above this …
    until: int  # … up to this one are in the batch
    last: tuple[int, int]
    runs: int = 0
    sealed: int = 0
    tombstones: int = 0


class BatchBuilder:
    """The work folder of one batch under construction."""

    def __init__(self, folder: Path, number: int, after: int, until: int) -> None:
        """Resume what is there if it is the same batch, else start afresh."""
        self._folder = folder
        self.progress = Progress(number, after, until, (after, 0))
        state = folder / "progress.json"
        if state.exists():
            try:
                found = Progress(**json.loads(state.read_text()))
                found.last = (found.last[0], found.last[1])
            except (ValueError, TypeError):
                found = Progress(0, 0, 0, (0, 0))
            # `until` stays what it was: later changes go into the next batch.
            if (found.number, found.after) == (number, after) and found.until <= until:
                self.progress = found
                return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._save()

    def _save(self) -> None:
        write_atomic(self._folder / "progress.json", json.dumps(asdict(self.progress)).encode(), 0o600)

    def add_run(self, records: list[bytes], tags: list[bytes], last: tuple[int, int]) -> None:
        """Write sorted pieces as one run and remember how far it reaches."""
        progress = self.progress
        for pieces, unit, suffix in ((records, sealed.RECORD, "add"), (tags, sealed.TAG, "del")):
            path = self._folder / f"{progress.runs:06d}.{suffix}"
            elements = [element for piece in pieces for element in _split(piece, unit)]
            elements.sort()  # of pieces in order: merges them
            write_atomic(path, b"".join(elements), 0o600)
        progress.sealed += sum(map(len, records)) // sealed.RECORD
        progress.tombstones += sum(map(len, tags)) // sealed.TAG
        progress.runs += 1
        progress.last = last
        self._save()

    def _runs(self, unit: int, suffix: str, extra: Iterable[list[bytes]]) -> Iterator[bytes]:
        paths = [self._folder / f"{run:06d}.{suffix}" for run in range(self.progress.runs)]
        for number, elements in enumerate(extra):
            paths.append(path := self._folder / f"extra-{number:06d}.{suffix}")
            write_atomic(path, b"".join(sorted(elements)), 0o600)  # drawn anew after a crash
        level = 0
        while len(paths) > _MERGE_AT_ONCE:  # open files are few
            level += 1
            paths = [
                self._merge(paths[i : i + _MERGE_AT_ONCE], unit, f"merged-{level}-{i:06d}.{suffix}")
                for i in range(0, len(paths), _MERGE_AT_ONCE)
            ]
        return heapq.merge(*(_read(path, unit) for path in paths))

    def _merge(self, paths: list[Path], unit: int, name: str) -> Path:
        target = self._folder / name
        with target.open("wb") as file:
            for record in heapq.merge(*(_read(path, unit) for path in paths)):
                file.write(record)
        return target

    def finish(
        self,
        target: Path,
        hasher: BatchHash,
        dummies: tuple[Iterable[list[bytes]], Iterable[list[bytes]]],
        report: Callable[[int], None],
    ) -> None:
        """Merge all runs and the dummies (records, tags; in chunks) into `target`, durably; feeds the hash."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        done = 0
        with temporary.open("wb") as file:
            for unit, suffix, extra in ((sealed.RECORD, "add", dummies[0]), (sealed.TAG, "del", dummies[1])):
                block = bytearray()
                for record in self._runs(unit, suffix, extra):
                    block += record
                    if len(block) >= 1 << 18:
                        hasher.update(bytes(block))
                        file.write(block)
                        done += len(block) // unit
                        report(done)
                        block.clear()
                hasher.update(bytes(block))
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)

    def discard(self) -> None:
        """The batch is committed: the work folder is not needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _split(data: bytes, unit: int) -> Iterator[bytes]:
    return (data[i : i + unit] for i in range(0, len(data), unit))


def _read(path: Path, unit: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_READ * unit):
            yield from _split(block, unit)
