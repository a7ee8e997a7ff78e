"""Carries requests to partners in one process: simulation, and the reference of the deployed run."""

from collections.abc import Sequence
from typing import Protocol

from lianfang.v1 import vertical_pb2 as pb

from .holder import Asking, R


class Answering(Protocol):
    """A partner."""

    def answer(self, request: pb.VerticalRequest) -> pb.VerticalReply:
        """See `partner.py`."""


def together(asking: Asking[R], partners: Sequence[Answering]) -> R:
    """Run the label holder and its partners to the end."""
    try:
        asks = next(asking)
        while True:
            asks = asking.send([partners[number].answer(request) for number, request in asks])
    except StopIteration as end:
        result: R = end.value
        return result
