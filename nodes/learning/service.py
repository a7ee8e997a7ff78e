"""The desk's two faces: Flower enrolment for the network's members, and the node's own learning process."""

import asyncio
from datetime import date
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.struct_pb2 import Struct
from lianfang.v1 import learning_pb2 as pb
from lianfang.v1 import learning_pb2_grpc

from protocols.sums.job import Job

from ..config import Home
from ..errors import Refused, invalid
from ..people.actions import Action, Actions
from ..querier.peers import Peers, failed
from ..services import wire
from .desk import Desk

if TYPE_CHECKING:
    from ..holder.lists import ListStore

SUPERLINK_CERTIFICATE = "learn/superlink.crt"  # in the node's data folder


class LearningService(learning_pb2_grpc.LearningServicer):
    """On the coordinator's peer port."""

    def __init__(self, authenticator: wire.Authenticator, desk: Desk, home: Home) -> None:
        self._authenticator, self._desk, self._home = authenticator, desk, home

    @wire.unary
    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        """Bind the caller's Flower key to its name, and say where the SuperLink is."""
        member = self._authenticator.member(context)
        settings = self._home.config.learn
        path = self._home.data / SUPERLINK_CERTIFICATE
        if not settings.superlink or not path.exists():
            raise Refused(
                "the coordinator's SuperLink does not run yet", "NOT_READY", grpc.StatusCode.UNAVAILABLE
            )
        registered = await asyncio.to_thread(self._desk.enrol, member, request.flower_key)
        return pb.EnrolResponse(
            superlink=settings.superlink_advertise or settings.superlink,
            certificate=path.read_bytes(),
            registered=registered,
        )

    async def find(self, job_hash: bytes, party: str) -> Job:
        """For the aggregation service."""
        return await asyncio.to_thread(self._desk.secure_job, job_hash, party)


class LearningAdminService(learning_pb2_grpc.LearningAdminServicer):
    """On the node's socket."""

    def __init__(
        self, desk: Desk, peers: Peers, lists: "ListStore", home: Home, actions: Actions, rooms: Any
    ) -> None:
        self._actions = actions
        self._desk, self._peers, self._lists, self._home, self._rooms = desk, peers, lists, home, rooms

    @wire.unary
    async def Launch(self, request: pb.JobFile, context: Any) -> Struct:
        """See learning.proto."""

        def work() -> dict[str, Any]:
            asked = request.SerializeToString(deterministic=True)
            with self._actions.doing(Action("LearningAdmin/Launch", asked, "launch a job", {})):
                return self._desk.launch(request.descriptor)

        return wire.struct(await asyncio.to_thread(work))

    @wire.unary
    async def Jobs(self, request: pb.JobsRequest, context: Any) -> Struct:
        """Jobs and how they stand; at the coordinator also its rooms."""
        rooms = self._rooms.status() if self._rooms is not None else {}
        jobs = await asyncio.to_thread(self._desk.jobs, request.hash)
        for job in jobs:
            if job["job"] in rooms:
                job["room"] = rooms[job["job"]]
        return wire.struct({"jobs": jobs})

    @wire.unary
    async def Enter(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        """Enrol this node's SuperNode with the coordinator."""
        settings = self._home.config.learn
        member = self._peers.find(settings.coordinator, str(self._home.name))
        try:
            return await self._peers.get(member).learning.Enrol(
                request, timeout=self._home.config.ask.deadline_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error

    @wire.unary
    async def SuperNodes(self, request: pb.SuperNodesRequest, context: Any) -> pb.SuperNodesResponse:
        """Keys to register with the SuperLink."""
        found = await asyncio.to_thread(self._desk.supernodes, list(request.registered))
        return pb.SuperNodesResponse(
            nodes=[pb.SuperNode(member=member, key=key) for member, key in found.items()]
        )

    @wire.unary
    async def TakeSeat(self, request: pb.SeatRequest, context: Any) -> pb.Seat:
        """Admit a task, or refuse it on the record."""
        job, earlier = await asyncio.to_thread(self._desk.take_seat, request.job, request.bundle)
        return pb.Seat(
            descriptor=job.to_bytes(), earlier=[pb.Cohort(members=sorted(each)) for each in earlier]
        )

    @wire.unary
    async def RecordCohort(self, request: pb.CohortRecord, context: Any) -> pb.CohortRecorded:
        """Durable when it returns."""
        await asyncio.to_thread(
            self._desk.record_cohort, request.job, list(request.cohort.members), dict(request.releases)
        )
        return pb.CohortRecorded()

    @wire.unary
    async def Report(self, request: pb.JobReport, context: Any) -> pb.JobReported:
        """How a job stands."""
        stop = await asyncio.to_thread(
            self._desk.report,
            request.job,
            request.state,
            request.detail,
            request.sums,
            request.round,
            request.result,
        )
        if self._rooms is not None and request.state == "failed":
            await self._rooms.call_off(request.job, request.detail)  # nobody waits for who does not come
        elif self._rooms is not None and request.state == "running":
            self._rooms.launch(request.job)
        return pb.JobReported(stop=stop)

    @wire.unary
    async def Started(self, request: pb.LearningStarted, context: Any) -> pb.JobReported:
        """The node's learning process has started."""
        await asyncio.to_thread(self._desk.interrupted)
        return pb.JobReported()

    @wire.unary
    async def Counts(self, request: pb.CountsRequest, context: Any) -> pb.CountsResponse:
        """This institution's live entries by category."""
        try:
            since, until = (
                (date.fromisoformat(each) - date(1970, 1, 1)).days if each else None
                for each in (request.since, request.until)
            )
        except ValueError as error:
            raise invalid(f"{error}; dates are YYYY-MM-DD") from error
        found = await asyncio.to_thread(self._lists.count_by_category, since, until)
        await asyncio.to_thread(self._desk.counted, request.job, found)
        return pb.CountsResponse(counts={name: found.get(name, 0) for name in request.categories})
