"""This institution's seat at a vertical job, in its learning process: as label holder, or as a partner."""

import contextlib
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from ..files import write_atomic
from ..identity.keys import NodeKeys
from ..services import wire
from ..workers import Workers
from . import parts
from .rows import Aligned, Rows, holder_rows, least_rows, split

_log = logging.getLogger("lianfang.vertical")
_AHEAD = 4  # frames waiting to be sent
_LONGEST = 7 * 86_400.0  # seconds of a run
_LATER = 30.0  # seconds for a partner to have stored its part

Channel = Callable[[str], grpc.Channel]
Report = Callable[[str], None]  # says what is being done; raises where the run may not go on


class Stream:
    """A call in both directions, for a thread: frames wait for room, and an end is heard of."""

    def __init__(self, method: Any, job: bytes, who: str, silence: float) -> None:
        """`silence` is for how many seconds the other side may say nothing."""
        self.name, self._silence = who, silence
        self._outgoing: queue.Queue[pb.VerticalFrame | None] = queue.Queue(_AHEAD)
        self._call = method(self._requests(), timeout=_LONGEST)
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
        silent = threading.Event()

        def give_up() -> None:
            silent.set()
            self._call.cancel()

        while True:
            timer = threading.Timer(self._silence, give_up)
            timer.daemon = True
            timer.start()
            try:
                frame = next(self._call)
            except StopIteration:
                return
            except grpc.RpcError as error:
                why = wire.plain(error.details() or error.code().name)
                if silent.is_set():
                    why = f"has said nothing for {self._silence:.0f} s"
                raise TrainingEnded(f"{self.name}: {why}") from error
            finally:
                timer.cancel()
            yield frame

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
        rows, split_ = holder_rows(home, self._keys.vault, job, [key_of[each] for each in job.partners])
        assert rows.y is not None
        learnt, tested = split_.learnt, split_.tested
        block = Block(self._own, rows.x[split_.places[learnt]], rows.y[split_.places[learnt]])
        names = [partner.rpartition("/")[2] for partner in job.partners]

        def tell(what: str) -> None:
            cost.sums += 1
            go_on(what)

        workers = Workers()
        streams: list[Stream] = []
        channels: list[grpc.Channel] = []
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
                tell=tell,
                ids=[b"".join(of[i] for i in learnt) for of in split_.ids],
            )
            silence = home.config.learn.compute_seconds
            for partner, name in zip(job.partners, names, strict=True):
                channels.append(self._channel(partner))
                stub = vertical_pb2_grpc.VerticalStub(channels[-1])
                streams.append(Stream(stub.Work, job.hash(), name, silence))
            part: Part = links.drive(holder.learn(block), streams)
        except PeerError as error:
            raise TrainingEnded(f"a partner sent what the protocol does not allow: {error}") from error
        finally:
            for stream in streams:
                stream.close()
            for channel in channels:
                channel.close()
            workers.close()
        trained = parts.Trained(part, part.hash(), len(learnt), int(block.y.sum()), None, len(tested))
        if len(tested):
            # The partners have stored their parts: whatever becomes of the test, the model is there.
            parts.save(self._home.data / "models", job, trained)
            go_on("test")
            try:
                ids = [[of[i] for i in tested] for of in split_.ids]
                scores = self._scores(job, part, rows.x[split_.places[tested]], ids)
                quality = metrics.measure(rows.y[split_.places[tested]], scores)
                trained = replace(trained, quality=quality)
            except (LearningError, PeerError) as error:
                _log.warning("job %s: not measured: %s", job.hash().hex()[:12], error)
                trained = replace(trained, note=f"not measured: {error}")
        return trained, cost

    def _scores(self, job: JobDescriptor, part: Any, x: Any, ids: list[list[bytes]]) -> Any:
        said, step = [], parts.rows_at_once(part)
        model = bytes.fromhex(part.hash())
        for partner, of in zip(job.partners, ids, strict=True):
            channel = self._channel(partner)
            stub = vertical_pb2_grpc.VerticalStub(channel)
            end = time.monotonic() + _LATER
            pieces = []
            for i in range(0, len(of), step):
                some = of[i : i + step]
                request = pb.VerticalScoreRequest(job=job.hash(), ids=b"".join(some), model=model)
                while True:
                    try:
                        pieces.append(parts.read_said(stub.Score(request, timeout=60), part, len(some)))
                        break
                    except grpc.RpcError as error:
                        # The partner stores its part when it hears that the run has ended.
                        if wire.reason_of(error) != "NO_MODEL" or time.monotonic() > end:
                            why = wire.plain(error.details() or error.code().name)
                            raise TrainingEnded(why) from error
                        time.sleep(0.3)
            said.append(np.concatenate(pieces))
            channel.close()
        return parts.probability(part, x, said)

    # -- without -----------------------------------------------------------------------------------------------

    def _attend(
        self, home: Home, job: JobDescriptor, aligned: Aligned, go_on: Report
    ) -> tuple[parts.Trained, Cost]:
        workers, cost = Workers(), Cost()
        stream = Stream(self._node.Attend, job.hash(), "this node", home.config.learn.compute_seconds)
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
        reply = self._inner.answer(request)
        if request.WhichOneof("part") == "gradients":
            self._cost.sums += 1
            self._go_on(f"{self._inner.unit} {request.gradients.step}")
        return reply


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

    def _pin(self, ids: list[bytes]) -> None:
        """A job's rows are those of its first run: two runs that differ in a row would show that row."""
        path = self._home.data / "vertical" / f"{self._job.hash().hex()}.rows"
        digest = hashlib.sha256(b"".join(ids)).hexdigest()
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, digest.encode(), 0o600)
        if path.read_text("ascii") != digest:
            raise JobError("the label holder names other rows than in the job's first run")

    def _start(self, ids: list[bytes]) -> Any:
        known = self._aligned.identifiers
        if len(set(ids)) != len(ids) or not set(ids) <= known.keys():
            raise JobError("the label holder names rows that were not aligned, or one twice")
        # Few rows would show what single ones are.
        if len(ids) < (least := least_rows(self._aligned)):
            raise JobError(f"{len(ids)} rows are fewer than the {least} that a job needs")
        self._pin(ids)
        rows = Rows(self._home, self._keys.vault, self._aligned)
        places = rows.all_places([known[each] for each in ids])
        self.rows = len(ids)
        return registry.partner(
            self._job.model_settings(),
            rows.x[places],
            rows.features,
            self._job.hash(),
            self._workers.stream,
            self._workers.count,
        )
