"""This institution's seat at a job: its rows, keys and channel, which no message can name or change."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from flwr.app import Context
from lianfang.v1 import learning_pb2 as pb
from lianfang.v1 import learning_pb2_grpc, vertical_pb2_grpc

from federation import data
from federation.apps.client import Seat
from federation.errors import LearningError
from federation.job import JobDescriptor
from federation.links import GrpcLink
from federation.rooms import Cost, drive
from federation.steps import Ask, Learner
from protocols.sums.errors import SumAborted
from protocols.sums.members import Member

from ..config import Home
from ..identity.keys import NodeKeys
from ..identity.members import MemberBook
from ..services import wire
from . import pipeline
from .desk import secure_job
from .releases import Releases

_log = logging.getLogger("lianfang.learn")
_REPORT_SECONDS = 1.0
_SAID = ("COHORT", "RELEASE", "ROWS")  # reasons that the other members may hear
_SILENT_SECONDS = 60.0  # a run goes on without its node, which alone knows whether it may


class SeatRefused(LearningError):
    """This node does not take part: the gate's reason."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class AdmittedSeats:
    """For the client application: this node's seat at the one job that the gate has admitted, or none."""

    def __init__(self, seats: "NodeSeats", admitted: pb.Seat | None) -> None:
        self.name = seats.own
        self._seats, self._admitted = seats, admitted

    def seats(self, job: JobDescriptor, context: Context) -> list[Seat]:
        """One seat, or none for who is no party."""
        return [] if self._admitted is None else [self._seats.seat(job, self._admitted)]


class NodeSeats:
    """What this node's seats are made of. `bundle` is the SHA-256 of what a task came with."""

    def __init__(
        self,
        home: Home,
        keys: NodeKeys,
        desk: learning_pb2_grpc.LearningAdminStub,
        vertical: vertical_pb2_grpc.VerticalAdminStub,
    ) -> None:
        self._home, self._keys, self._desk, self._vertical = home, keys, desk, vertical
        self.own = str(home.name)
        certs = home.certs
        self._certificate = (certs / "node.crt").read_bytes()
        ca = x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes())
        self._book = MemberBook(certs / "members.bin", ca)

    def admit(self, job_hash: bytes, bundle: bytes) -> pb.Seat:
        """Ask the node's gate. Raises `SeatRefused` with its reason."""
        try:
            return self._desk.TakeSeat(pb.SeatRequest(job=job_hash, bundle=bundle), timeout=30)
        except grpc.RpcError as error:
            raise SeatRefused(error.details() or error.code().name, wire.reason_of(error)) from error

    def report(
        self,
        job_hash: bytes,
        state: str,
        detail: str = "",
        sums: int = 0,
        round_: str = "",
        result: bytes = b"",
    ) -> str | None:
        """Tell the node how the job stands. What a node that is down misses, only a later report tells it.

        Says why the run may not go on; empty where it may, `None` where the node did not take the report.
        """
        try:
            report = pb.JobReport(
                job=job_hash, state=state, detail=detail, sums=sums, round=round_, result=result
            )
            return self._desk.Report(report, timeout=30).stop
        except grpc.RpcError as error:
            _log.warning("the node did not take a report: %s", error.details())
            return None

    def seat(self, job: JobDescriptor, admitted: pb.Seat) -> Seat:
        """Rows loaded, keys at hand, stream not yet opened. Raises `LearningError`."""
        if job.kind == "vertical":
            return self._vertical_seat(job)
        job_hash, own = job.hash(), self.own

        def record(cohort: frozenset[str]) -> None:
            request = pb.CohortRecord(
                job=job_hash, cohort=pb.Cohort(members=sorted(cohort)), releases=releases
            )
            try:
                self._desk.RecordCohort(request, timeout=30)
            except grpc.RpcError as error:
                why = (
                    error.details()
                    if wire.reason_of(error) in _SAID
                    else "this node could not record the cohort"
                )
                raise SumAborted("commit", own, str(why)) from error

        member = Member(
            secure_job(job, self._book),
            own,
            self._keys.signing,
            self._keys.sealing,
            earlier=[frozenset(each.members) for each in admitted.earlier],
            record=record,
        )
        told, current, go_on = 0.0, "", self._standing(job_hash)

        def watch(ask: Ask, number: int) -> None:
            nonlocal told, current
            round_ = ask.label.partition(" level ")[0]  # a tree is a round of several sums
            begun = round_ if round_ != current else ""
            if begun or time.monotonic() - told > _REPORT_SECONDS:
                told, current = time.monotonic(), round_
                go_on(ask.label, number, begun)

        def finish(result: Any, cost: Cost) -> None:
            go_on("saving", cost.sums, "")
            where = self._save(job, result, member.cohort)
            _log.info(
                "job %s: %s, %d sums; computing %.2f s, cryptography %.2f s, waiting %.2f s",
                *(job_hash.hex()[:12], where, cost.sums, cost.compute, cost.cryptography, cost.waiting),
            )
            saved = str(where.relative_to(self._home.data))
            if rows is not None and isinstance(result, pipeline.Trained):
                go_on("comparing with this bank alone", cost.sums, "")
                saved = "; ".join(filter(None, (saved, self._compare(job, rows, result, where))))
            self.report(job_hash, "done", saved, cost.sums, result=pipeline.digest(result))

        kept = pipeline.Kept()

        def failed(reason: str) -> None:
            _log.warning("job %s ended: %s", job_hash.hex()[:12], reason)
            try:
                where = pipeline.save_kept(self._home.data / "models", job, kept, member.cohort, reason)
            except OSError as error:
                where, reason = None, f"{reason}; its trees could not be saved: {error.strerror}"
            if where is not None:
                reason = f"{reason}; finished trees are in {where.relative_to(self._home.data)}"
            self.report(job_hash, "failed", reason)

        rows: tuple[data.Block, data.Block | None] | None = None
        releases: dict[str, bytes] = {}
        try:
            if job.kind == "stats":
                learner: Learner[Any] = self._statistics(job)
            else:
                rows = self._rows(job, releases)
                learner = pipeline.training(job, rows[0], rows[1] if job.evaluate == "test" else None, kept)
        except LearningError as error:
            failed(str(error))
            raise
        link = GrpcLink(lambda: self._channel(job.coordinator), job_hash)
        return Seat(own, lambda: drive(member, learner, link, watch), finish, failed)

    def _standing(self, job_hash: bytes) -> Callable[[str, int, str], None]:
        """Reports what is being done; raises `SeatRefused` where the node says no, or has said nothing for too long."""
        heard = time.monotonic()

        def go_on(label: str, number: int, begun: str) -> None:
            nonlocal heard
            stop = self.report(job_hash, "running", label, number, begun)
            if stop is None and time.monotonic() - heard > _SILENT_SECONDS:
                stop = "its node does not answer"
            elif stop is not None:
                heard = time.monotonic()
            if stop:
                raise SeatRefused(f"{self.own} stops: {stop}", "CONTRACT")

        return go_on

    def _vertical_seat(self, job: JobDescriptor) -> Seat:
        from ..vertical import parts, seat

        job_hash = job.hash()

        standing = self._standing(job_hash)

        def go_on(what: str) -> None:
            standing(what, 0, what)

        def finish(result: Any, cost: Cost) -> None:
            go_on("saving")
            where = parts.save(self._home.data / "models", job, result)
            saved = str(where.relative_to(self._home.data))
            self.report(job_hash, "done", saved, cost.sums, result=bytes.fromhex(result.model))

        def failed(reason: str) -> None:
            _log.warning("job %s ended: %s", job_hash.hex()[:12], reason)
            self.report(job_hash, "failed", reason)

        seats = seat.VerticalSeats(self._home, self._keys, self._vertical, self._channel)
        try:
            return seats.seat(job, go_on, finish, failed)
        except LearningError as error:
            failed(str(error))
            raise

    def _channel(self, to: str) -> grpc.Channel:
        member = self._book.current.get(to)
        return wire.sync_channel(member, self._keys, self._certificate)

    def _statistics(self, job: JobDescriptor) -> Learner[Any]:
        own: dict[str, int] = {}
        if self.own not in job.observers:
            request = pb.CountsRequest(
                categories=job.categories, since=job.since, until=job.until, job=job.hash()
            )
            try:
                own = dict(self._desk.Counts(request, timeout=600).counts)
            except grpc.RpcError as error:
                raise SeatRefused(error.details() or error.code().name, wire.reason_of(error)) from error
        return pipeline.statistics(job, own)

    def _rows(self, job: JobDescriptor, releases: dict[str, bytes]) -> tuple[data.Block, data.Block | None]:
        """Rows to train on, and test rows where this bank has some; notes what they are in `releases`. Raises `LearningError`."""
        section = self._home.datasets().get(job.dataset)
        if section is None:
            raise SeatRefused(f"the dataset {job.dataset} is not configured here")
        own_id = self.own
        known = Releases(self._home.data / "releases", self._keys.vault)

        def load(path: Path, part: str) -> data.Block:
            table = data.read_table(path)
            if part:
                releases[part] = known.of_table(table).id
            return data.to_block(path, table, job.features, job.label, own_id)

        block = load(self._file(section.path), "train")
        if section.test is None:
            if job.evaluate == "test":
                raise SeatRefused(f"the dataset {job.dataset} has no test rows here")
            return block, None
        try:
            return block, load(self._file(section.test), "test" if job.evaluate == "test" else "")
        except LearningError as error:
            if job.evaluate == "test":
                raise
            _log.warning("job %s: not compared with this bank alone: %s", job.hash().hex()[:12], error)
            return block, None

    @staticmethod
    def _compare(
        job: JobDescriptor,
        rows: tuple[data.Block, data.Block | None],
        result: pipeline.Trained,
        where: Path,
    ) -> str:
        """What this bank is told of itself alone; a comparison that fails does not cost it the model."""
        try:
            found = pipeline.compare_alone(job, *rows, result)
            pipeline.save_alone(where, found)
        except Exception as error:
            _log.exception("comparing with this bank alone failed")
            return f"not compared with this bank alone ({type(error).__name__})"
        if found.said():
            _log.warning("job %s: %s", job.hash().hex()[:12], found.said())
        return found.said()

    def _file(self, path: Path) -> Path:
        return self._home.file.parent / path

    def _save(self, job: JobDescriptor, result: Any, cohort: tuple[str, ...]) -> Path:
        if isinstance(result, pipeline.Trained):
            return pipeline.save_model(self._home.data / "models", job, result, cohort)
        return pipeline.save_counts(self._home.data / "statistics", job, result, cohort)
