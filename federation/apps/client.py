"""The client application: takes its seats at a job and runs each to its end."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ..errors import JobError, LearningError
from ..job import MAX_BYTES, JobDescriptor
from ..rooms import Cost
from .server import ABSENT

_log = logging.getLogger("lianfang.client")


@dataclass(frozen=True)
class Seat:
    """One party's part in a job. In deployment a client has one; simulated ones share a client in lock-step."""

    party: str
    take_part: Callable[[], tuple[Any, Cost]]  # until the job ends; raises `LearningError`
    finish: Callable[[Any, Cost], None]  # what the party does with its result
    failed: Callable[[str], None]


class Provider(Protocol):
    """Where a client's seats come from: keys, rows and channels are local and never part of a message."""

    name: str  # of this client, as the others know it

    def seats(self, job: JobDescriptor, context: Context) -> list[Seat]:
        """Empty for who is no party of the job. Raises `LearningError` where a party does not take part."""


def make(provider: Provider) -> ClientApp:
    """The application, with its provider."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(content=_outcome(*_take_part(provider, message, context)), reply_to=message)

    return app


def descriptor_of(message: Message) -> bytes:
    """The bytes of the job that a message names. Raises `JobError`: nothing in a message is trusted."""
    try:
        value = message.content["job"]["descriptor"]
    except (KeyError, TypeError, ValueError) as error:
        raise JobError("the message does not hold a job") from error
    if not isinstance(value, bytes) or len(value) > MAX_BYTES:
        raise JobError("the message does not hold a job")
    return value


def _take_part(provider: Provider, message: Message, context: Context) -> tuple[str, str]:
    try:
        job = JobDescriptor.read(descriptor_of(message))
        seats = provider.seats(job, context)
    except LearningError as error:
        _log.warning("refused: %s", error)
        return "refused", f"{provider.name}: {error.public}"
    if not seats:
        return ABSENT, ""
    with ThreadPoolExecutor(len(seats)) as threads:
        outcomes = list(threads.map(_sit, seats))
    reasons = [reason for reason in outcomes if reason]
    return ("failed", reasons[0]) if reasons else ("done", "")


def _sit(seat: Seat) -> str:
    try:
        result, cost = seat.take_part()
        seat.finish(result, cost)
    except LearningError as error:
        seat.failed(str(error))
        return error.public
    except OSError as error:
        _log.error("%s: %s: %s", seat.party, error.filename, error.strerror)
        seat.failed(f"its result could not be saved: {error.filename}: {error.strerror}")
        return f"{seat.party}: its result could not be saved: {error.strerror}"
    except Exception:
        _log.exception("%s failed", seat.party)
        seat.failed("this party failed; see its log")
        return "this party failed; see its log"
    return ""


def _outcome(state: str, reason: str) -> RecordDict:
    return RecordDict({"outcome": ConfigRecord({"state": state, "reason": reason[:500]})})
