"""A party's stream to the aggregation service, over gRPC."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from lianfang.v1 import sums_pb2 as pb
from lianfang.v1 import sums_pb2_grpc

from .errors import TrainingEnded
from .rooms import LinkBroken

_AHEAD = 16  # messages waiting to be sent
_CLOSING = 5.0  # seconds for what was sent to arrive
Stub = sums_pb2_grpc.SecureSumStub


class GrpcLink:
    """`connect` makes a channel; it is called again after a broken one. Blocking; for one thread."""

    def __init__(
        self,
        connect: Callable[[], grpc.Channel],
        job: bytes,
        metadata: tuple[tuple[str, str], ...] = (),
        *,
        timeout: float = 86_400.0,
    ) -> None:
        self._connect, self._job, self._metadata, self._timeout = connect, job, metadata, timeout
        self._channel: grpc.Channel | None = None
        self._call: Any = None
        self._outgoing: queue.Queue[pb.SumFromMember | None] = queue.Queue(_AHEAD)
        self._incoming: Iterator[pb.SumToMember] = iter(())
        self._broken = threading.Event()

    def open(self, opened: int) -> None:
        """A new stream on a new channel."""
        self._close_channel()
        self._outgoing, self._broken = queue.Queue(_AHEAD), threading.Event()
        self._outgoing.put(pb.SumFromMember(enter=pb.SumEnter(job=self._job, opened=opened)))
        self._channel = self._connect()
        self._call = Stub(self._channel).Join(
            self._requests(self._outgoing, self._broken), metadata=self._metadata, timeout=self._timeout
        )
        # A stream that ended takes no more messages: whoever waits to send must hear of it.
        self._call.add_callback(self._broken.set)
        self._incoming = iter(self._call)

    @staticmethod
    def _requests(
        outgoing: "queue.Queue[pb.SumFromMember | None]", broken: threading.Event
    ) -> Iterator[pb.SumFromMember]:
        while not broken.is_set():
            with contextlib.suppress(queue.Empty):
                message = outgoing.get(timeout=0.5)
                if message is None:
                    return
                yield message

    def send(self, message: pb.SumFromMember) -> None:
        """Wait for room; raises `LinkBroken` where the stream has ended."""
        while not self._broken.is_set():
            with contextlib.suppress(queue.Full):
                self._outgoing.put(message, timeout=0.5)
                return
        raise LinkBroken("the stream to the coordinator broke")

    def receive(self) -> pb.SumToMember:
        """The next message; raises `LinkBroken` for what may pass, `TrainingEnded` for what will not."""
        try:
            return next(self._incoming)
        except StopIteration:
            self._broken.set()
            raise LinkBroken("the coordinator ended the stream") from None
        except grpc.RpcError as error:
            self._broken.set()
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED):
                raise LinkBroken(f"the coordinator cannot be reached ({code.name})") from error
            raise TrainingEnded(f"the coordinator refuses: {error.details()}") from error

    def close(self) -> None:
        """Let what was sent go out, then close."""
        if self._call is not None and not self._broken.is_set():
            with contextlib.suppress(queue.Full):
                self._outgoing.put(None, timeout=1.0)
            # The coordinator closes its side once it has read what was sent.
            giving_up = threading.Timer(_CLOSING, self._call.cancel)
            giving_up.start()
            with contextlib.suppress(StopIteration, grpc.RpcError):
                while True:
                    next(self._incoming)
            giving_up.cancel()
        self._close_channel()

    def _close_channel(self) -> None:
        self._broken.set()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
