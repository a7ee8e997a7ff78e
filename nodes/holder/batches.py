"""Sealed batches on disk: one immutable file each, additions then removals, as `protocols.sealed` lays them out.

A batch is built from sorted runs, which follow each other in one file. Tags are uniform, so the runs are merged by cutting them all at the
same tags: what lies between two cuts fits into memory. A crash resumes after the last run that is complete.
"""

import bisect
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from protocols import group, sealed
from protocols.sealed import BatchHash

from ..errors import StorageError
from ..files import sync_folder, write_atomic

_CUT = 8  # bytes of a tag that say where it is cut
_AT_ONCE = 1 << 13  # elements between two cuts
_OF_EACH = 16  # at least, of each run
_UNITS = (sealed.RECORD, sealed.TAG)  # of additions, of removals


@dataclass
class Progress:
    """How far a batch has come; what is written here is on disk."""

    number: int
    after: int  # changes above this …
    until: int  # … up to this one are in the batch
    last: tuple[int, int]
    runs: list[tuple[int, int]] = field(default_factory=list)  # entries sealed and tombstones in each

    @property
    def sealed(self) -> int:
        """Entries in all runs."""
        return sum(count for count, _ in self.runs)

    @property
    def tombstones(self) -> int:
        """Removals in all runs."""
        return sum(count for _, count in self.runs)


class BatchBuilder:
    """The work folder of one batch under construction."""

    def __init__(self, folder: Path, number: int, after: int, until: int) -> None:
        """Resume what is there if it is the same batch, else start afresh."""
        self._folder = folder
        self._paths = folder / "additions", folder / "removals"
        self.progress = Progress(number, after, until, (after, 0))
        found = self._found()
        # `until` stays what it was: later changes go into the next batch.
        if found and (found.number, found.after) == (number, after) and found.until <= until:
            self.progress = found
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in self._paths:
            path.touch(0o600)
        self._save()

    def _found(self) -> Progress | None:
        """What an earlier process has left, without what it had not finished."""
        try:
            found = Progress(**json.loads((self._folder / "progress.json").read_text()))
            found.last = (found.last[0], found.last[1])
            found.runs = [(additions, removals) for additions, removals in found.runs]
            for path, count, unit in zip(self._paths, (found.sealed, found.tombstones), _UNITS, strict=True):
                if path.stat().st_size < count * unit:
                    return None
                os.truncate(path, count * unit)
        except (OSError, ValueError, TypeError, LookupError):  # none, or of an earlier version
            return None
        return found

    def _save(self) -> None:
        write_atomic(self._folder / "progress.json", json.dumps(asdict(self.progress)).encode(), 0o600)

    def add_run(self, records: list[bytes], tags: list[bytes], last: tuple[int, int]) -> None:
        """Write sorted pieces as one run and remember how far it reaches."""
        counts = [self._append(kind, pieces) for kind, pieces in enumerate((records, tags))]
        self.progress.runs.append((counts[0], counts[1]))
        self.progress.last = last
        self._save()

    def _append(self, kind: int, pieces: Iterable[bytes]) -> int:
        """One run, durably; returns how many elements it has."""
        elements = [element for piece in pieces for element in group.split(piece, _UNITS[kind])]
        elements.sort()  # of pieces in order: merges them
        if elements:
            with self._paths[kind].open("ab") as file:
                file.write(b"".join(elements))
                file.flush()
                os.fsync(file.fileno())
        return len(elements)

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
            for kind, extra in enumerate(dummies):
                runs = [counts[kind] for counts in self.progress.runs]
                runs += [self._append(kind, elements) for elements in extra]  # drawn anew after a crash
                for merged in _merged(self._paths[kind], _UNITS[kind], runs):
                    content = b"".join(merged)
                    hasher.update(content)
                    file.write(content)
                    done += len(merged)
                    report(done)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)

    def discard(self) -> None:
        """The batch is committed: the work folder is not needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Run:
    """One run, read on as far as it is needed."""

    def __init__(self, descriptor: int, unit: int, start: int, end: int) -> None:
        self._descriptor, self._unit = descriptor, unit
        self._next, self._end = start * unit, end * unit
        self._held = b""  # read, and not taken yet

    def below(self, cut: bytes | None, about: int) -> list[bytes]:
        """What comes before a cut, or all that is left; `about` says how many elements that may be."""
        unit = self._unit
        while self._next < self._end and (cut is None or self._held[-unit:] < cut):
            piece = os.pread(self._descriptor, min(about * unit, self._end - self._next), self._next)
            if not piece or len(piece) % unit:
                raise StorageError("a work file of sealing is shorter than it was: seal again")
            self._held += piece
            self._next += len(piece)
        elements = group.split(self._held, unit)
        stop = len(elements) if cut is None else bisect.bisect_left(elements, cut)
        self._held = self._held[stop * unit :]
        return elements[:stop]


def _merged(path: Path, unit: int, runs: Sequence[int]) -> Iterator[list[bytes]]:
    """All elements in ascending order, some at a time; `runs` says how many each run has."""
    total = sum(runs)
    # Sorting keeps others from their turn: few at once, but of many runs enough that each is not read in crumbs.
    parts = -(-total // max(_AT_ONCE, _OF_EACH * len(runs)))
    ends = list(itertools.accumulate(runs))
    with path.open("rb") as file:
        each = [_Run(file.fileno(), unit, start, end) for start, end in zip([0, *ends], ends, strict=False)]
        for part in range(1, parts + 1):
            cut = None if part == parts else ((part << 8 * _CUT) // parts).to_bytes(_CUT, "big")
            elements = [
                element
                for run, count in zip(each, runs, strict=True)
                for element in run.below(cut, count // parts + _OF_EACH)
            ]
            elements.sort()
            yield elements
