"""This institution's seat at a vertical job, in its learning process: as label holder, or as a partner."""

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from lianfang.v1 import vertical_pb2 as pb
from lianfang.v1 import vertical_pb2_grpc

from federation import metrics
from federation.apps.client import Seat
from federation.data import Block
from federation.errors import JobError, LearningError, TrainingEnded
from federation.job import JobDescriptor
from federation.models.base import Part
from federation.rooms import Cost
from federation.vertical import links, registry
from federation.vertical.holder import new_key
from protocols.errors import PeerError

from ..config import Home
from ..identity.keys import NodeKeys
from ..services import wire
from ..workers import Workers
from . import parts
from .rows import Aligned, Rows, split

_log = logging.getLogger("lianfang.vertical")
_AHEAD = 4  # frames waiting to be sent
_TEST_SHARE = 0.2
_LATER = 30.0  # seconds for a partner to have stored its part

Channel = Callable[[str], grpc.Channel]
Report = Callable[[str], None]  # says what is being done; raises where the run may not go on


class Stream:
    """A call in both directions, for a thread: frames wait for room, and an end is heard of."""

    def __init__(self, method: Any, job: bytes, who: str) -> None:
        self.name = who
        self._outgoing: queue.Queue[pb.VerticalFrame | None] = queue.Queue(_AHEAD)
        self._call = method(self._requests())
        self._frames = self._incoming()
        self.send(pb.VerticalFrame(enter=pb.VerticalEnter(job=job)))

    def _requests(self) -> Iterator[pb.VerticalFrame]:
        while (frame := self._outgoing.get()) is not None:
            yield frame

    def send(self, frame: pb.VerticalFrame | None) -> None:
        """Wait for room; `None` says that nothing follows. Raises `TrainingEnded` where the call has ended."""
        while True:
            with contextlib.suppress(queue.Full):
                self._outgoing.put(frame, timeout=0.5)
                return
            if not self._call.is_active():
                next(self._frames, None)  # raises why
                raise TrainingEnded(f"{self.name} ended the run")

    def incoming(self) -> Iterator[pb.VerticalFrame]:
        """Frames as they come. Raises `TrainingEnded` where the call fails."""
        return self._frames

    def _incoming(self) -> Iterator[pb.VerticalFrame]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise TrainingEnded(f"{self.name}: {wire.plain(error.details() or error.code().name)}") from error

    def close(self) -> None:
        """What was sent goes out first, where somebody reads it."""
        with contextlib.suppress(LearningError):
            self.send(None)
            for _ in self._frames:
                pass
        self._call.cancel()


class VerticalSeats:
    """What a node's seats at vertical jobs are made of."""

    def __init__(
        self, home: Home, keys: NodeKeys, node: vertical_pb2_grpc.VerticalAdminStub, channel: Channel
    ) -> None:
        self._home, self._keys, self._node, self._channel = home, keys, node, channel
        self._own = str(home.name)

    def seat(
        self,
        job: JobDescriptor,
        go_on: Report,
        finish: Callable[[Any, Cost], None],
        failed: Callable[[str], None],
    ) -> Seat:
        """As label holder or as a partner. Raises `LearningError` where this node cannot take part."""
        home = Home(self._home.file)  # datasets need no restart
        aligned = self._aligned(job)
        if job.holder == self._own:
            return Seat(self._own, lambda: self._hold(home, job, aligned, go_on), finish, failed)
        return Seat(self._own, lambda: self._attend(home, job, aligned[0], go_on), finish, failed)

    def _aligned(self, job: JobDescriptor) -> list[Aligned]:
        try:
            return Aligned.read(self._node.Aligned(pb.AlignedRequest(job=job.hash()), timeout=300))
        except grpc.RpcError as error:
            raise JobError(error.details() or error.code().name, "its alignment cannot be read") from error

    # -- with the label --------------------------------------------------------------------------------------

    def _hold(
        self, home: Home, job: JobDescriptor, aligned: list[Aligned], go_on: Report
    ) -> tuple[parts.Trained, Cost]:
        cost, key_of = Cost(), {each.partner: each for each in aligned}
        sides = [key_of[partner] for partner in job.partners]
        rows = Rows(home, self._keys.vault, sides[0], job.label)
        assert rows.y is not None
        identifiers, ids = common(sides)
        places = rows.places(identifiers)
        if (places < 0).any():
            raise JobError(
                f"{int((places < 0).sum())} of {len(places)} aligned customers are not in the dataset {sides[0].dataset} any "
                "more: align again",
                "its dataset has changed since it was aligned",
            )
        learnt, tested = self._divided(job, len(places))
        block = Block(self._own, rows.x[places[learnt]], rows.y[places[learnt]])
        names = [partner.rpartition("/")[2] for partner in job.partners]
        kept: list[Part] = []

        def tell(what: str) -> None:
            cost.sums += 1
            go_on(what)

        workers = Workers()
        streams: list[Stream] = []
        try:
            started = time.perf_counter()
            go_on("key")
            key = new_key(job.hash(), workers.stream, workers.count)
            cost.cryptography = time.perf_counter() - started
            holder = registry.holder(
                job.model_settings(),
                rows.features,
                names,
                job.seed,
                key,
                lambda part: kept.__setitem__(slice(None), [part]),
                tell,
                [b"".join(of[i] for i in learnt) for of in ids],
            )
            for partner in job.partners:
                stub = vertical_pb2_grpc.VerticalStub(self._channel(partner))
                streams.append(Stream(stub.Work, job.hash(), partner.rpartition("/")[2]))
            part: Part = links.drive(holder.learn(block), streams)
        except PeerError as error:
            raise self._ended(
                job, kept, f"a partner sent what the protocol does not allow: {error}"
            ) from error
        except LearningError as error:
            raise self._ended(job, kept, str(error)) from error
        finally:
            for stream in streams:
                stream.close()
            workers.close()
        quality = None
        if len(tested):
            go_on("test")
            scores = self._scores(job, part, rows.x[places[tested]], [[of[i] for i in tested] for of in ids])
            quality = metrics.measure(rows.y[places[tested]], scores)
        return parts.Trained(part, part.hash(), len(learnt), int(block.y.sum()), quality, len(tested)), cost

    def _ended(self, job: JobDescriptor, kept: list[Part], why: str) -> TrainingEnded:
        if kept:
            where = parts.save(
                self._home.data / "models", job, parts.Trained(kept[0], kept[0].hash(), 0, 0, None, 0), why
            )
            why = f"{why}; finished trees are in {where.relative_to(self._home.data)}"
        return TrainingEnded(why)

    @staticmethod
    def _divided(job: JobDescriptor, count: int) -> tuple[list[int], list[int]]:
        """Rows to learn from, and to test on: drawn from the job's seed."""
        if job.evaluate == "none":
            return list(range(count)), []
        order = np.random.default_rng([job.seed, count]).permutation(count)
        cut = round(count * (1 - _TEST_SHARE))
        return sorted(order[:cut].tolist()), sorted(order[cut:].tolist())

    def _scores(self, job: JobDescriptor, part: Any, x: Any, ids: list[list[bytes]]) -> Any:
        said, step = [], parts.rows_at_once(part)
        for partner, of in zip(job.partners, ids, strict=True):
            channel = self._channel(partner)
            stub = vertical_pb2_grpc.VerticalStub(channel)
            end = time.monotonic() + _LATER
            pieces = []
            for i in range(0, len(of), step):
                request = pb.VerticalScoreRequest(job=job.hash(), ids=b"".join(of[i : i + step]))
                while True:
                    try:
                        pieces.append(
                            parts.read_said(stub.Score(request, timeout=60), part, len(request.ids) // 16)
                        )
                        break
                    except grpc.RpcError as error:
                        # The partner stores its part when it hears that the run has ended.
                        if wire.reason_of(error) != "NO_MODEL" or time.monotonic() > end:
                            raise TrainingEnded(error.details() or error.code().name) from error
                        time.sleep(0.3)
            said.append(np.concatenate(pieces))
            channel.close()
        return parts.probability(part, x, said)

    # -- without -----------------------------------------------------------------------------------------------

    def _attend(
        self, home: Home, job: JobDescriptor, aligned: Aligned, go_on: Report
    ) -> tuple[parts.Trained, Cost]:
        workers, cost = Workers(), Cost()
        stream = Stream(self._node.Attend, job.hash(), "this node")
        partner = _Seated(home, self._keys, job, aligned, workers)
        try:
            go_on("waiting for the label holder")
            for frame in links.serve(_Watched(partner, go_on, cost), stream.incoming()):
                stream.send(frame)
        except (LearningError, PeerError) as error:
            with contextlib.suppress(LearningError):
                public = error.public if isinstance(error, LearningError) else str(error)
                stream.send(pb.VerticalFrame(error=public))
            raise (
                error
                if isinstance(error, LearningError)
                else TrainingEnded(f"the label holder sent what the protocol does not allow: {error}")
            ) from error
        finally:
            stream.close()
            workers.close()
        if partner.inner is None or not partner.inner.digest:
            raise TrainingEnded("the label holder ended before the model was complete")
        inner = partner.inner
        return parts.Trained(inner.model, inner.digest.hex(), partner.rows, 0, None, 0), cost


class _Watched:
    """Says which tree or step is under way, once each."""

    def __init__(self, inner: "_Seated", go_on: Report, cost: Cost) -> None:
        self._inner, self._go_on, self._cost = inner, go_on, cost

    def answer(self, request: pb.VerticalRequest) -> pb.VerticalReply:
        """See `partner.py`."""
        if request.WhichOneof("part") == "gradients":
            self._cost.sums += 1
            self._go_on(f"{self._inner.unit} {request.gradients.step}")
        return self._inner.answer(request)


class _Seated:
    """Takes the rows that the label holder names, then answers."""

    def __init__(
        self, home: Home, keys: NodeKeys, job: JobDescriptor, aligned: Aligned, workers: Workers
    ) -> None:
        self._home, self._keys, self._job, self._aligned, self._workers = home, keys, job, aligned, workers
        self.inner: Any = None
        self.rows = 0
        self.unit = "tree" if job.model == "trees" else "step"

    def answer(self, request: pb.VerticalRequest) -> pb.VerticalReply:
        """Raise `PeerError` or `LearningError`."""
        if request.WhichOneof("part") == "start" and self.inner is None:
            self.inner = self._start(split(request.start.ids, 16))
        if self.inner is None:
            raise TrainingEnded("a run starts with its rows")
        reply: pb.VerticalReply = self.inner.answer(request)
        return reply

    def _start(self, ids: list[bytes]) -> Any:
        known = self._aligned.identifiers
        if len(set(ids)) != len(ids) or not set(ids) <= set(known):
            raise JobError("the label holder names rows that were not aligned, or one twice")
        # Few rows would show what single ones are.
        if len(ids) < max(self._aligned.minimum, parts.LEAST_ROWS):
            raise JobError(f"{len(ids)} rows are too few")
        rows = Rows(self._home, self._keys.vault, self._aligned)
        places = rows.places([known[each] for each in ids])
        if (places < 0).any():
            raise JobError(
                f"{int((places < 0).sum())} of {len(places)} aligned customers are not in the dataset "
                f"{self._aligned.dataset} any more: align again",
                "its dataset has changed since it was aligned",
            )
        self.rows = len(ids)
        return registry.partner(
            self._job.model_settings(),
            rows.x[places],
            rows.features,
            self._job.hash(),
            self._workers.stream,
            self._workers.count,
        )


def common(sides: list[Aligned]) -> tuple[list[bytes], list[list[bytes]]]:
    """Identifiers that were aligned with every partner, and each partner's ids of them, in one order."""
    first, *others = sides
    by_identifier = [{index: each for each, index in side.identifiers.items()} for side in others]
    identifiers, ids = [], []
    for each, index in first.identifiers.items():
        if all(index in of for of in by_identifier):
            identifiers.append(index)
            ids.append([each, *(of[index] for of in by_identifier)])
    return identifiers, [[row[number] for row in ids] for number in range(len(sides))]


def folder_of(home: Home) -> Path:
    """Where parts of models lie."""
    return home.data / "models"
