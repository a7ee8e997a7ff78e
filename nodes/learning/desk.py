"""The desk: which jobs this node takes part in, how they stand, and which cohorts summed over the same rows.

A job is let in by its contract, which holds the descriptor and is signed by all parties.
"""

import contextlib
import functools
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from lianfang.v1 import contract_pb2, ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from federation import data
from federation.apps import bundle
from federation.errors import LearningError
from federation.job import JobDescriptor
from federation.version import code_hash
from protocols.contract import State
from protocols.encoding import frame
from protocols.sums import cohorts
from protocols.sums.errors import SumAborted
from protocols.sums.job import Job, Party

from ..config import DatasetSection, Home
from ..contracts.book import JOB, ContractBook
from ..errors import NotFound, Refused, invalid
from ..gate import TRAIN, Ask, Gate
from ..identity.members import Member, MemberBook
from ..identity.names import Role
from ..ledger.book import LogBook, derived_id
from ..store import engine as db
from ..store import schema
from .releases import Release, Releases

RUNNING = "RUNNING"  # the reason of a refusal that ends nothing
LEARNERS = (Role.BANK, Role.PAYMENT, Role.TELECOM, Role.CENTRE)


class Desk:
    """One per node."""

    def __init__(
        self,
        database: sa.Engine,
        gate: Gate,
        contracts_: ContractBook,
        book: MemberBook,
        home: Home,
        log: LogBook,
        releases: Releases,
    ) -> None:
        self._log = log
        self._releases = releases
        self._runs: dict[bytes, bytes] = {}  # job → the query id under which its run was admitted
        self._database, self._gate, self._contracts = database, gate, contracts_
        self._book, self._home = book, home
        self._own = str(home.name)
        self._registered: dict[str, bytes] = {}
        self._check_vertical: Callable[[JobDescriptor], None] | None = None

    def check_vertical(self, check: Callable[[JobDescriptor], None]) -> None:
        """What is asked before this node signs a contract over a vertical job; raises what does not fit."""
        self._check_vertical = check

    # -- jobs ------------------------------------------------------------------------------------------------

    def check_terms(self, terms: contract_pb2.Contract) -> None:
        """Before this node signs a contract over a job: does it fit this node, its rows and its code?

        Raises `Refused` saying what does not.
        """
        try:
            job = JobDescriptor.read(terms.job.descriptor)
            if terms.job.descriptor != job.to_bytes():
                raise Refused("the descriptor is not in its one encoding", "JOB")
            if terms.job.schema_hash != job.schema_hash():
                raise Refused("the contract's schema hash is not the descriptor's", "JOB")
            if list(terms.parties) != sorted({*job.parties, job.coordinator}):
                raise Refused("the contract's parties are not the job's parties and coordinator", "JOB")
            self._check(job)
        except LearningError as error:
            raise Refused(str(error), "JOB") from error

    def launch(self, descriptor: bytes) -> dict[str, Any]:
        """A run of a job is about to be started here. Raises `Refused` where no contract over it is in force."""
        try:
            job = JobDescriptor.read(descriptor)
        except LearningError as error:
            raise Refused(str(error), "JOB") from error
        if job.coordinator != self._own:
            raise Refused(f"{job.name} is coordinated by {job.coordinator}", "COORDINATOR")
        self._contracts.job(job.hash())
        with db.writing(self._database) as connection:
            self._remember(connection, job, "launched")
        return {"job": job.hash().hex(), "name": job.name}

    @staticmethod
    def _remember(connection: sa.Connection, job: JobDescriptor, state: str) -> bool:
        """A job's row; whether it was not running."""
        table = schema.learning_job
        values = {"state": state, "detail": "", "sums": 0, "at": time.time()}
        done = connection.execute(
            insert(table)
            .values(hash=job.hash(), descriptor=job.to_bytes(), **values)
            .on_conflict_do_update(index_elements=["hash"], set_=values, where=table.c.state != "running")
        )
        return bool(done.rowcount)

    def _check(self, job: JobDescriptor) -> None:
        network = self._home.name.network
        if job.network != network:
            raise Refused(
                f"the job is of the network {job.network}, this node of {network}", "FOREIGN_NETWORK"
            )
        for party in (*job.parties, job.coordinator):
            self._book.current.get(party)
        _check_code(job)
        if job.bundle != bundle_hash():
            raise Refused(
                f"the job names the bundle {job.bundle[:12]}, this code launches with {bundle_hash()[:12]}",
                "BUNDLE",
            )
        if job.coordinator == self._own:
            return
        if self._own not in job.parties:
            raise Refused(f"{self._own} is no party of this job", "NOT_A_PARTY")
        coordinator = self._book.current.get(job.coordinator).name
        if self._home.config.learn.coordinator not in (coordinator.name, str(coordinator)):
            raise Refused(f"learn.coordinator is not {coordinator.name}", "COORDINATOR")
        if job.kind == "vertical":
            if self._check_vertical is None:
                raise Refused("vertical jobs need the extra `vertical`, which is not installed here", "EXTRA")
            self._check_vertical(job)
        if job.kind == "train":
            self._pin(job, self._rows(job))

    def _rows(self, job: JobDescriptor) -> dict[str, Release]:
        """The rows that a training would use now, by part. Raises `LearningError` or `Refused` where they do not fit it."""
        section = self.dataset(job.dataset)
        files = {"train": section.path}
        if job.evaluate == "test":
            if section.test is None:
                raise Refused(f"the dataset {job.dataset} has no test rows here", "DATASET")
            files["test"] = section.test
        found = {}
        for part, file in files.items():
            path = self._path(file)
            table = data.read_table(path)
            data.to_block(path, table, job.features, job.label, self._own)
            found[part] = self._releases.of_table(table)
        return found

    def _pin(self, job: JobDescriptor, rows: dict[str, Release]) -> None:
        """These are the job's rows from now on. Raises `Refused` where they were in other sums in another version."""
        for each in rows.values():
            self._releases.keep(each)
        with db.writing(self._database) as connection:
            self._write_pins(connection, job, rows)
            self._earlier(connection, job)

    @staticmethod
    def _write_pins(connection: sa.Connection, job: JobDescriptor, rows: dict[str, Release]) -> None:
        for part, each in rows.items():
            values = {"release": each.id, "rows": len(each.rows), "at": time.time()}
            connection.execute(
                insert(schema.release)
                .values(job=job.hash(), part=part, **values)
                .on_conflict_do_update(index_elements=["job", "part"], set_=values)
            )

    def dataset(self, name: str) -> DatasetSection:
        """Raise `NotFound` for rows that this node does not offer."""
        datasets = self._home.datasets()
        section = datasets.get(name)
        if section is None:
            known = ", ".join(datasets) or "none"
            raise NotFound(f"learn.datasets.{name} is not configured here (configured: {known})")
        return section

    def _path(self, path: Path) -> Path:
        return self._home.file.parent / path

    def find(self, job_hash: bytes) -> JobDescriptor:
        """A job that a contract here is over, in force or not; raises `NotFound`."""
        for held in self._contracts.over_job(job_hash):
            with contextlib.suppress(LearningError):  # of another version, or nonsense
                return JobDescriptor.read(held.terms.job.descriptor)
        raise NotFound(f"the job {job_hash.hex()[:12] or '(none)'} is not known here")

    def named(self, text: str) -> bytes:
        """The hash of the one job here whose name is `text`, or whose hash begins so; raises `NotFound`."""
        jobs = self.jobs()
        found = [
            each for each in jobs if each["name"] == text or (len(text) >= 4 and each["job"].startswith(text))
        ]
        if len(found) != 1:
            raise NotFound(f"{text!r} names {len(found)} jobs here")
        return bytes.fromhex(found[0]["job"])

    def jobs(self, job_hash: bytes = b"") -> list[dict[str, Any]]:
        """All jobs that contracts are over, newest change first; those without a run stand as their contract does."""
        with db.reading(self._database) as connection:
            rows = {row.hash: row for row in connection.execute(sa.select(schema.learning_job)).all()}
        out: dict[bytes, dict[str, Any]] = {}
        now = self._contracts.now()
        held_ = self._contracts.over_job(job_hash) if job_hash else self._contracts.all()
        for held in sorted(
            held_, key=lambda each: each.state(now) is not State.ACTIVE
        ):  # what is in force first
            if held.kind != JOB or held.job_hash in out:
                continue
            key = held.job_hash
            try:
                job = JobDescriptor.read(held.terms.job.descriptor)
            except LearningError:  # of another version, or nonsense: it cannot be approved here
                continue
            row, stands = rows.get(key), str(held.state(now))
            at = row.at if row is not None else held.terms.proposed_at
            out[key] = {
                "job": key.hex(),
                "name": job.name,
                "kind": job.kind,
                "state": row.state if row is not None else stands,
                "detail": row.detail if row is not None else "",
                "sums": row.sums if row is not None else 0,
                "contract": held.hash.hex(),
                "contract_state": stands,
                "parties": [name.rpartition("/")[2] for name in job.parties],
                "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
            }
        return sorted(out.values(), key=lambda each: str(each["at"]), reverse=True)

    def report(
        self,
        job_hash: bytes,
        state: str,
        detail: str,
        sums: int,
        round_: str = "",
        result: bytes = b"",
    ) -> str:
        """How a job stands, from this node's learning process. Rounds and the end are events of the log.

        Says why the run may not go on where its contract has ended meanwhile; empty where it may.
        """
        if state not in ("running", "done", "failed"):
            raise invalid(f"{state!r} is no state of a job")
        with db.writing(self._database) as connection:
            connection.execute(
                schema.learning_job.update()
                .where(schema.learning_job.c.hash == job_hash)
                .values(state=state, detail=detail[:1000], sums=sums, at=time.time())
            )
            if state != "running":
                ended = ledger_pb2.EVENT_TYPE_JOB_ENDED
                self._event(connection, ended, job_hash, state, number=sums, reason=state, digest=result)
            elif round_:
                begun = ledger_pb2.EVENT_TYPE_JOB_ROUND
                self._event(connection, begun, job_hash, round_, number=sums, reason=round_[:100])
        if state == "running":
            try:
                self._contracts.job(job_hash)
            except Refused as error:
                return str(error)
        return ""

    def _event(
        self,
        connection: sa.Connection,
        kind: "ledger_pb2.EventType.ValueType",
        job_hash: bytes,
        what: str,
        **fields: Any,
    ) -> None:
        """One event of a job's run, recorded once."""
        event_id = derived_id("job", kind, job_hash, self._runs.get(job_hash, b""), what)
        entry = self._log.prepare(kind, "", event_id, resource=job_hash.hex(), **fields)
        self._log.record(connection, entry)

    def interrupted(self) -> None:
        """A learning process has started: what was running at this node has ended with the one before."""
        with db.writing(self._database) as connection:
            table = schema.learning_job
            for job_hash in (
                connection.execute(sa.select(table.c.hash).filter_by(state="running")).scalars().all()
            ):
                ended = ledger_pb2.EVENT_TYPE_JOB_ENDED
                self._event(connection, ended, job_hash, "failed", reason="failed")
            connection.execute(
                schema.learning_job.update()
                .where(schema.learning_job.c.state == "running")
                .values(state="failed", detail="this node's learning process ended", at=time.time())
            )

    # -- seats -----------------------------------------------------------------------------------------------

    def take_seat(self, job_hash: bytes, bundle_hash: bytes) -> tuple[JobDescriptor, list[frozenset[str]]]:
        """Admit a task that came through Flower: by the gate, and by the bundle it came with.

        Returns the job and the earlier cohorts over the same rows; the job counts as running from now on. Raises
        `Refused`, which is recorded; with the reason RUNNING where it runs already.
        """
        job: JobDescriptor | None = None
        with contextlib.suppress(NotFound):  # the gate refuses it then, and records that
            job = self.find(job_hash)
        coordinator = self._coordinator(job)

        def check() -> None:
            if job is None or bundle_hash.hex() != job.bundle:
                raise Refused(
                    f"the task comes with the bundle {bundle_hash.hex()[:12]}, which this job does not name",
                    "BUNDLE",
                )

        query_id = secrets.token_bytes(16)
        self._gate.admit(
            Ask(
                coordinator,
                TRAIN,
                job_hash.hex() if job is not None else f"bundle:{bundle_hash.hex()[:16]}",
                0,
                0,
                query_id,
                job_hash or bytes(32),
                check=check,
            )
        )
        if job is None:
            raise Refused("this node does not know the job", "JOB")
        _check_code(job)
        with db.writing(self._database) as connection:
            if not self._remember(connection, job, "running"):
                raise Refused("the job is under way here already", RUNNING)
            self._runs[job_hash] = query_id
            return job, self._earlier(connection, job)

    def _coordinator(self, job: JobDescriptor | None) -> Member:
        if job is not None:
            return self._book.current.get(job.coordinator)
        return self._book.current.find(self._home.config.learn.coordinator or self._own)

    @staticmethod
    def _rows_of(job: JobDescriptor) -> str:
        """A dataset, or entries observed in a window of time."""
        return f"stats:{job.since}:{job.until}" if job.kind == "stats" else job.dataset

    def _pinned(self, connection: sa.Connection, job_hash: bytes) -> dict[str, bytes]:
        table = schema.release
        rows = connection.execute(
            sa.select(table.c.part, table.c.release).where(table.c.job == job_hash)
        ).all()
        return {row.part: row.release for row in rows}

    def _earlier(self, connection: sa.Connection, job: JobDescriptor) -> list[frozenset[str]]:
        """Cohorts of other sums over the same rows.

        Raises `Refused` where some of the job's rows were summed in another version of them. Neither matters where all
        parties have accepted what that exposes.
        """
        if job.exposure == "accepted":
            return []
        own, rows_of = self._pinned(connection, job.hash()), self._rows_of(job)
        table, found = schema.cohort, []
        for row in connection.execute(sa.select(table.c.releases, table.c.members, table.c.dataset)):
            other = _releases(row.releases)
            if not other:  # of a version that did not know rows by content
                same = _overlap(row.dataset, rows_of)
            elif job.kind == "stats":
                same = _overlap(row.dataset, rows_of)
                if same and (row.dataset != rows_of or own != other):
                    raise self._other_release(row.dataset)
            else:
                same = not set(own.values()).isdisjoint(other.values())
                if any(self._overlap(one, two) for one in own.values() for two in other.values()):
                    raise self._other_release(row.dataset)
            if same:
                found.append(frozenset(row.members.split("\n")))
        return list(dict.fromkeys(found))

    def _overlap(self, one: bytes, two: bytes) -> bool:
        first, second = self._releases.find(one), self._releases.find(two)
        return first is not None and second is not None and first.overlaps(second)

    @staticmethod
    def _other_release(dataset: str) -> Refused:
        return Refused(
            f"some of these rows were summed before in another version ({dataset}): from the difference of the two sums every "
            "member could compute the rows between them. All parties may accept that: a job made with --accept-exposure",
            "RELEASE",
        )

    def counted(self, job_hash: bytes, counts: Mapping[str, int]) -> None:
        """What a statistics job sums of this node's lists, all categories of its window. Raises `Refused`, as `_earlier` does."""
        job = self.find(job_hash)
        release = self._releases.of_counts(self._rows_of(job), counts.items())
        with db.writing(self._database) as connection:
            self._write_pins(connection, job, {"stats": release})
            self._earlier(connection, job)

    def record_cohort(self, job_hash: bytes, members: list[str], releases: Mapping[str, bytes]) -> None:
        """Durable when it returns. Raises `Refused` for a cohort that an earlier one over the same rows forbids.

        Also where the rows (`releases`, by part) are not those that the contract was approved with. Checked in the
        transaction that records it, so that of two jobs side by side only one gets through.
        """
        job = self.find(job_hash)
        cohort = frozenset(members)
        with db.writing(self._database) as connection:
            pinned = self._pinned(connection, job_hash)
            if job.kind == "train" and pinned and pinned != dict(releases):
                raise Refused(
                    f"the rows of {job.dataset} are not those that the contract was approved with here: a changed file needs a "
                    "new job",
                    "ROWS",
                )
            try:
                cohorts.check_history(cohort, self._earlier(connection, job))
            except SumAborted as error:
                raise Refused(str(error), "COHORT") from error
            text = "\n".join(sorted(cohort))
            of = "\n".join(f"{part}:{each.hex()}" for part, each in sorted(pinned.items()))
            connection.execute(
                insert(schema.cohort)
                .values(dataset=self._rows_of(job), members=text, releases=of, job=job_hash, at=time.time())
                .on_conflict_do_nothing()
            )
            digest = hashlib.sha256(frame("lianfang/v1/cohort", *sorted(cohort))).digest()
            fixed = ledger_pb2.EVENT_TYPE_JOB_ROUND
            self._event(
                connection, fixed, job_hash, "cohort", count=len(cohort), reason="cohort", digest=digest
            )

    def secure_job(self, job_hash: bytes, party: str) -> Job:
        """For the coordinator's room: a job that is approved here, of which `party` is one."""
        job = self.find(job_hash)
        if job.coordinator != self._own:
            raise Refused(f"{job.name} is coordinated by {job.coordinator}", "COORDINATOR")
        self._contracts.job(job_hash)
        if party not in job.parties:
            raise Refused(f"{party} is no party of this job", "NOT_A_PARTY")
        return secure_job(job, self._book)

    # -- SuperNodes --------------------------------------------------------------------------------------------

    def enrol(self, member: Member, key: bytes) -> bool:
        """Bind a member's Flower key: the newest one counts. Whether the SuperLink lets it in by now.

        Raises `Refused` for roles that do not learn.
        """
        if member.name.role not in LEARNERS:
            raise Refused(f"a {member.name.role.value} does not learn", "ROLE")
        try:
            public = ser.load_ssh_public_key(key[:1_000])
        except (ValueError, UnsupportedAlgorithm) as error:
            raise invalid("flower_key is not an OpenSSH public key") from error
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
            raise invalid("flower_key is not an ECDSA P-384 key")
        values = {"key": key, "at": time.time()}
        with db.writing(self._database) as connection:
            connection.execute(
                insert(schema.supernode)
                .values(member=member.id, **values)
                .on_conflict_do_update(index_elements=["member"], set_=values)
            )
        return self._registered.get(member.id) == key

    def supernodes(self, registered: list[str]) -> dict[str, bytes]:
        """Flower keys of members, without those who are members no more; `registered` are let in already."""
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(schema.supernode)).all()
        current = {member.id for member in self._book.current}
        keys = {row.member: row.key for row in rows if row.member in current}
        self._registered = {member: keys[member] for member in registered if member in keys}
        return keys


def _releases(text: str) -> dict[str, bytes]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {part: bytes.fromhex(identity) for part, _, identity in pairs}


def _check_code(job: JobDescriptor) -> None:
    if job.code != code_hash():
        raise Refused(
            f"the job is for learning code {job.code[:12]}, installed is {code_hash()[:12]}", "CODE"
        )


def _overlap(left: str, right: str) -> bool:
    """Whether two names of rows stand for rows in common."""
    if not (left.startswith("stats:") and right.startswith("stats:")):
        return left == right
    (since, until), (other_since, other_until) = left.split(":")[1:], right.split(":")[1:]
    # Days as text sort by time; no first day is before all.
    return (not until or other_since <= until) and (not other_until or since <= other_until)


def secure_job(job: JobDescriptor, book: MemberBook) -> Job:
    """The job's sums, with the keys that the member list binds. Raises `Refused` for who is no member."""
    parties = []
    for party in job.parties:
        member = book.current.get(party)
        parties.append(Party(member.id, member.signing_key, member.sealing_key))
    return Job(job.hash(), tuple(parties), frozenset(job.observers), job.minimum)


@functools.cache
def bundle_hash() -> str:
    """SHA-256 of the launching bundle, in hexadecimal."""
    return hashlib.sha256(bundle.build()).hexdigest()
