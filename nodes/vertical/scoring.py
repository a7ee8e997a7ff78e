"""One person's question to a joint model: own rows here, what the partners say of theirs, and the scores."""

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from lianfang.v1 import vertical_pb2 as pb

from federation.errors import LearningError
from federation.job import JobDescriptor
from protocols.errors import IdentifierError
from protocols.identifiers import Kind, normalise

from ..config import Home
from ..errors import Refused
from ..querier.peers import failed
from . import parts
from .rows import Rows

if TYPE_CHECKING:
    from .service import Vertical


class Scoring:
    """One person's question to the joint model."""

    def __init__(self, vertical: "Vertical", job: JobDescriptor) -> None:
        self._vertical, self._job = vertical, job
        self._part: Any = parts.load(vertical.node.home.data / "models", job)
        self.step = parts.rows_at_once(self._part)
        self._sides = sides = vertical.aligned(job)
        self._kind = Kind(sides[0].kind)
        home = Home(vertical.node.home.file)
        self._region = home.config.lists.default_region
        try:
            self._rows = Rows(home, vertical.node.keys.vault, sides[0], features=self._part.features)
        except LearningError as error:
            raise Refused(str(error), "DATASET", grpc.StatusCode.FAILED_PRECONDITION) from error

    async def score(self, values: list[str]) -> pb.PredictReply:
        """Rows in the order of the values; why there is no score where there is none."""
        rows, found = await asyncio.to_thread(self._find, values)
        if found:
            identifiers = [index for _, index in found]
            replies = await asyncio.gather(
                *(
                    self._ask(partner, [side.ids[index] for index in identifiers])
                    for partner, side in zip(self._job.partners, self._sides, strict=True)
                )
            )
            await asyncio.to_thread(self._complete, rows, found, replies)
        return pb.PredictReply(rows=rows)

    def _find(self, values: list[str]) -> tuple[list[pb.PredictReply.Row], list[tuple[int, bytes]]]:
        rows = [pb.PredictReply.Row(value=value) for value in values]
        found: list[tuple[int, bytes]] = []
        vault = self._vertical.node.keys.vault
        for number, value in enumerate(values):
            try:
                index = vault.index(normalise(self._kind, value, "", "", self._region).canonical)
            except IdentifierError as error:
                rows[number].trouble = str(error)
                continue
            if not all(index in side.ids for side in self._sides):
                rows[number].trouble = "not aligned"
            elif self._rows.places([index])[0] < 0:
                rows[number].trouble = "not in the dataset any more"
            else:
                found.append((number, index))
        return rows, found

    async def _ask(self, partner: str, ids: list[bytes]) -> pb.VerticalReply:
        node = self._vertical.node
        member = node.book.current.get(partner)
        request = pb.VerticalScoreRequest(
            job=self._job.hash(),
            ids=b"".join(ids),
            model=bytes.fromhex(self._part.hash()),
        )
        try:
            reply: pb.VerticalReply = await node.peers.get(member).vertical.Score(
                request, timeout=node.home.config.ask.deadline_seconds + 10
            )
            return reply
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error

    def _complete(
        self,
        rows: list[pb.PredictReply.Row],
        found: list[tuple[int, bytes]],
        replies: list[pb.VerticalReply],
    ) -> None:
        said = [parts.read_said(reply, self._part, len(found)) for reply in replies]
        absent = [parts.read_absent(reply, len(found)) for reply in replies]
        x = self._rows.x[self._rows.places([index for _, index in found])]
        scores = parts.probability(self._part, x, said)
        for place, (number, _) in enumerate(found):
            gone = [
                name.rpartition("/")[2]
                for name, of in zip(self._job.partners, absent, strict=True)
                if of[place]
            ]
            if gone:
                rows[number].trouble = f"{', '.join(gone)} has no row of this customer any more"
            else:
                rows[number].score = float(scores[place])
        self._vertical.record_own(self._job.hash(), len(found))
