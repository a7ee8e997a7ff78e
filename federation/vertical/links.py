"""Messages between label holder and partners in frames, on streams that somebody else has opened."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from lianfang.v1 import vertical_pb2 as pb

from protocols.errors import DecodeError

from ..errors import TrainingEnded
from .drive import Answering
from .holder import Asking, R

FRAME = 512 * 1024  # bytes
MOST = 1 << 30  # of one message
M = TypeVar("M", bound=Message)


def frames(message: Message) -> Iterator[pb.VerticalFrame]:
    """A message in pieces, the last one marked."""
    data = message.SerializeToString()
    for i in range(0, len(data), FRAME):
        yield pb.VerticalFrame(data=data[i : i + FRAME])
    yield pb.VerticalFrame(last=True)


def whole(incoming: Iterable[pb.VerticalFrame], kind: type[M]) -> M:
    """The next message.

    Raises `DecodeError` for frames that are none, or too many, `TrainingEnded` where the other side says why it ends,
    and `EOFError` at the end.
    """
    data = bytearray()
    for frame in incoming:
        part = frame.WhichOneof("part")
        if part == "error":
            raise TrainingEnded("".join(char if char.isprintable() else " " for char in frame.error[:300]))
        if part == "last":
            message = kind()
            try:
                message.ParseFromString(bytes(data))
            except ProtobufError as error:
                raise DecodeError("a message that cannot be parsed") from error
            return message
        if part != "data" or not frame.data:
            raise DecodeError("a frame that is no part of a message")
        data += frame.data
        if len(data) > MOST:
            raise DecodeError(f"a message of more than {MOST:,} bytes")
    raise EOFError("the stream ended")


class Line(Protocol):
    """A stream to one partner."""

    name: str

    def send(self, frame: pb.VerticalFrame) -> None:
        """Wait for room."""

    def incoming(self) -> Iterator[pb.VerticalFrame]:
        """Frames as they come; the same iterator each time."""


def drive(asking: Asking[R], lines: Sequence[Line]) -> R:
    """Run the label holder; partners work at the same time, each answers in its order."""
    with ThreadPoolExecutor(max(len(lines), 1)) as threads:
        try:
            asks = next(asking)
            while True:
                of: list[list[int]] = [[] for _ in lines]
                for place, (number, _) in enumerate(asks):
                    of[number].append(place)
                replies: list[pb.VerticalReply] = [pb.VerticalReply()] * len(asks)

                def ask(
                    number: int, places: list[int], requests: list[pb.VerticalRequest]
                ) -> list[pb.VerticalReply]:
                    line = lines[number]
                    found: list[pb.VerticalReply] = []
                    for place in places:
                        for frame in frames(requests[place]):
                            line.send(frame)
                        try:
                            found.append(whole(line.incoming(), pb.VerticalReply))
                        except EOFError as error:
                            raise TrainingEnded(f"{line.name} ended the run") from error
                    return found

                requests = [request for _, request in asks]
                work = [
                    threads.submit(ask, number, places, requests)
                    for number, places in enumerate(of)
                    if places
                ]
                busy = [places for places in of if places]
                for places, future in zip(busy, work, strict=True):
                    for place, reply in zip(places, future.result(), strict=True):
                        replies[place] = reply
                asks = asking.send(replies)
        except StopIteration as end:
            result: R = end.value
            return result


def serve(partner: Answering, incoming: Iterator[pb.VerticalFrame]) -> Iterator[pb.VerticalFrame]:
    """Answer until the other side ends the stream; frames to send. Raises what `answer` raises."""
    while True:
        try:
            request = whole(incoming, pb.VerticalRequest)
        except EOFError:
            return
        yield from frames(partner.answer(request))
