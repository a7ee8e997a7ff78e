"""What the node remembers of its own questions: jobs, batches under way, answers for a rerun, hits.

Until its answer is in, a batch keeps its blinding seed and identifiers, encrypted, so that after a crash the same
bytes are sent again and charged once; one of a single identifier is found by its keyed index. With the answer all of
that is erased: OPRF outputs are never stored.
"""

import asyncio
import functools
import json
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from protocols import lookup
from protocols.encoding import frame

from ..errors import NotFound
from ..gate import Promised
from ..identity.keys import Vault
from ..ledger.book import Entry, LogBook
from ..ledger.bundle import Case, case_commitment
from ..people.tally import EVALUATIONS, Tally
from ..store import engine as db
from ..store import schema
from ..store.prepared import Prepared
from ..store.writer import GroupWriter

_PURPOSE = b"asked"
_POSITION = struct.Struct(">II")  # epoch, batch
_SMALL = 16  # elements that are recorded in a fraction of a millisecond
_TOGETHER = 200  # identifiers that one statement looks for
_CACHED = 1_000
_SALT_AT = 5  # bytes: behind the frame's tag and length

# Built once: at each question, building a statement costs more than running it.
# Written out, not bound: the index of these serves no other statement.
_OPEN = schema.asked.c.outcome == sa.literal_column("'pending'")
_PENDING = sa.select(
    *(schema.asked.c[name] for name in ("query_id", "holder", "list", "epoch", "asker", "secret"))
).where(schema.asked.c.job == sa.bindparam("in_job"), _OPEN)
_PENDING_SEVERAL = Prepared(_PENDING.where(schema.asked.c.sole.is_(None)))
_BEGIN = Prepared(
    insert(schema.asked).on_conflict_do_nothing(), [column.name for column in schema.asked.columns]
)
_END = Prepared(
    schema.asked.update()
    .where(schema.asked.c.query_id == sa.bindparam("in_query_id"))
    .values(outcome=sa.bindparam("in_outcome"), secret=None, sole=None)
)
_new = insert(schema.answer)
_ANSWERS = Prepared(
    _new.on_conflict_do_update(
        index_elements=["job", "identifier", "holder", "list"],
        set_={"outcome": _new.excluded.outcome, "at": _new.excluded.at},
    ),
    [column.name for column in schema.answer.columns],
)
_HITS = Prepared(insert(schema.hit).on_conflict_do_nothing(), [column.name for column in schema.hit.columns])
_BUDGET = Prepared(
    schema.offer.update()
    .where(schema.offer.c.holder == sa.bindparam("in_holder"), schema.offer.c.list == sa.bindparam("in_list"))
    .values(budget=sa.bindparam("in_budget"), at=sa.bindparam("in_at"))
)
_KNOWN = sa.select(
    schema.answer.c.identifier,
    schema.answer.c.outcome,
    schema.answer.c.holder,
    schema.answer.c.list,
    schema.answer.c.at,
).where(schema.answer.c.job == sa.bindparam("in_job"), schema.answer.c.at > sa.bindparam("in_since"))


def _one_of(column: "sa.Column[Any]", count: int) -> sa.ColumnElement[bool]:
    names: list[sa.BindParameter[bytes]] = [sa.bindparam(f"in_{i}") for i in range(count)]
    return column.in_(names)


@functools.lru_cache(maxsize=_TOGETHER)
def _known_of(count: int) -> Prepared:
    return Prepared(_KNOWN.where(_one_of(schema.answer.c.identifier, count)))


@functools.lru_cache(maxsize=_TOGETHER)
def _pending_of(count: int) -> Prepared:
    return Prepared(_PENDING.where(_one_of(schema.asked.c.sole, count)))


def _rows_of(
    statement: Callable[[int], Prepared],
    connection: sa.Connection,
    indices: Sequence[bytes],
    values: dict[str, object],
) -> Iterator[tuple[Any, ...]]:
    """What a statement finds for any of the identifiers, in pieces."""
    for start in range(0, len(indices), _TOGETHER):
        piece = indices[start : start + _TOGETHER]
        named = {f"in_{i}": index for i, index in enumerate(piece)}
        yield from statement(len(piece)).run(connection, values | named)


def _end(connection: sa.Connection, query_id: bytes, outcome: str) -> None:
    _END.run(connection, {"in_query_id": query_id, "in_outcome": outcome})


@dataclass(frozen=True)
class Job:
    """A question of a person: the same person, case, purpose and basis make the same job."""

    id: bytes
    case_commitment: bytes
    purpose: int
    basis: int
    asker: bytes
    alone: bool = False  # no second person has approved it: it counts for what this one does within a day


@dataclass(frozen=True)
class Batch:
    """One request to one holder."""

    query_id: bytes
    seed: bytes
    inputs: list[bytes]
    holder: str
    list: str
    epoch: int
    asker: bytes


@dataclass(frozen=True)
class Answer:
    """What a holder's list says about one identifier.

    `label` is 48 bytes for a hit, else empty. `batch` is the hit's record's, or the table's that has none.
    """

    identifier: bytes
    label: bytes
    tag: bytes
    epoch: int
    batch: int
    unreadable: bool = False  # the list has a record that does not open
    # Seconds since 1970 of an answer of before; 0 for one of this question.
    kept_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a holder's response to a batch comes to, verified, and the rows that are kept of it."""

    batch: Batch
    answers: list[Answer]
    budget: bytes  # what is left, as the holder says
    promised: Promised  # its receipt
    kept: list[dict[str, object]]
    hits: list[dict[str, object]]
    at: float


class Questions:
    """Tables job, asked, answer and hit of `node.db`."""

    def __init__(
        self,
        database: sa.Engine,
        writer: GroupWriter,
        vault: Vault,
        keep_hours: float,
        log: LogBook,
        tally: Tally,
    ) -> None:
        self._tally = tally
        self._database, self._writer, self._vault, self._keep = database, writer, vault, keep_hours * 3600
        self._log = log
        self._commitments: dict[bytes, bytes] = {}
        self._reader = db.Reader(database)

    def close(self) -> None:
        """Give back what reads."""
        self._reader.close()

    async def job(self, case: str, purpose: int, basis: int, asker: bytes) -> Job:
        """Find or open the job; its commitment to the case number is salted and stays the same.

        `asker` is the person's pseudonym.
        """
        # Each person's own: another's answers come with that person's own record, and limits.
        job_id = self._vault.index(frame("job", case, purpose, basis, asker))
        commitment = self._commitments.get(job_id)
        if commitment is None:
            commitment = await self._writer.write(lambda connection: self._open(connection, job_id, case))
            if len(self._commitments) > _CACHED:
                self._commitments.clear()
            self._commitments[job_id] = commitment
        return Job(job_id, commitment, purpose, basis, asker)

    def case(self, number: str) -> Case:
        """The salts under which a case's commitments were made; raises `NotFound` for a case never asked about."""
        table = schema.job
        with db.reading(self._database) as connection:
            secrets_ = connection.execute(sa.select(table.c.case_secret).order_by(table.c.at)).scalars().all()
        salts = []
        for secret in secrets_:
            plain = self._vault.decrypt(secret, b"case")
            salt = plain[_SALT_AT : _SALT_AT + 32]
            if plain == frame(salt, number):
                salts.append(salt)
        if not salts:
            raise NotFound("nothing was asked here under that case number")
        return Case(number, tuple(salts))

    def _open(self, connection: sa.Connection, job_id: bytes, case: str) -> bytes:
        table = schema.job
        known = connection.execute(sa.select(table.c.case_commitment).where(table.c.id == job_id)).scalar()
        if known is not None:
            return bytes(known)
        salt = secrets.token_bytes(32)
        commitment = case_commitment(salt, case)
        secret = self._vault.encrypt(frame(salt, case), b"case")
        connection.execute(
            table.insert().values(id=job_id, case_secret=secret, case_commitment=commitment, at=time.time())
        )
        return commitment

    # -- batches under way -----------------------------------------------------------------------------------

    def _pending(self, connection: sa.Connection, job: Job, wanted: Mapping[bytes, bytes]) -> list[Batch]:
        """Batches that hold any of the wanted identifiers, which go by their keyed index."""
        values: dict[str, object] = {"in_job": job.id}
        rows = _PENDING_SEVERAL.run(connection, values).fetchall()
        rows += _rows_of(_pending_of, connection, list(wanted), values)
        batches, identifiers = [], set(wanted.values())
        for query_id, holder, list_name, epoch, asker, secret in rows:
            stored = json.loads(self._vault.decrypt(secret, _PURPOSE + query_id))
            inputs = [each.encode() for each in stored["inputs"]]
            if identifiers.isdisjoint(inputs):
                continue
            batches.append(
                Batch(
                    query_id,
                    bytes.fromhex(stored["seed"]),
                    inputs,
                    holder,
                    list_name,
                    epoch,
                    asker,
                )
            )
        return batches

    @staticmethod
    def prepare(job: Job, holder: str, list_name: str, epoch: int, inputs: list[bytes]) -> Batch:
        """A new batch, in memory only: nothing of it is sent before `begin`."""
        seed = secrets.token_bytes(lookup.SEED)
        return Batch(secrets.token_bytes(16), seed, inputs, holder, list_name, epoch, job.asker)

    def begin(self, job: Job, batches: Sequence[tuple[Batch, int, Entry]]) -> "asyncio.Future[list[Entry]]":
        """Record batches, each with its elements after padding and the log's event of it, in one transaction.

        Once the future is set all are durable; it holds the events, which for a batch that was begun before is the
        one of then.
        """
        rows = [self._row(job, batch, count) for batch, count, _ in batches]
        cost = sum(count for _, count, _ in batches)

        def write(connection: sa.Connection) -> list[Entry]:
            _BEGIN.run_many(connection, rows)
            if job.alone:
                self._tally.write(connection, job.asker, EVALUATIONS, cost)
            return [self._log.record(connection, entry) for _, _, entry in batches]

        return self._writer.write(write, small=cost <= _SMALL)

    def _row(self, job: Job, batch: Batch, count: int) -> dict[str, object]:
        stored = json.dumps({"seed": batch.seed.hex(), "inputs": [each.decode() for each in batch.inputs]})
        return {
            "query_id": batch.query_id,
            "job": job.id,
            "holder": batch.holder,
            "list": batch.list,
            "epoch": batch.epoch,
            "count": count,
            "purpose": job.purpose,
            "basis": job.basis,
            "case_commitment": job.case_commitment,
            "asker": batch.asker,
            "at": time.time(),
            "outcome": "pending",
            "secret": self._vault.encrypt(stored.encode(), _PURPOSE + batch.query_id),
            "sole": self._vault.index(batch.inputs[0]) if len(batch.inputs) == 1 else None,
        }

    def end(self, batch: Batch, outcome: str) -> "Future[None]":
        """The batch will not be sent again (refused or void): its secrets are erased."""
        return self._writer.submit(lambda connection: _end(connection, batch.query_id, outcome))

    def outcome(
        self, job: Job, batch: Batch, answers: list[Answer], budget: bytes, promised: Promised
    ) -> Outcome:
        """What `answered` records. Takes as long as the batch is large: not for the event loop then."""
        now, where = time.time(), {"job": job.id, "holder": batch.holder, "list": batch.list}
        readable = [each for each in answers if not each.unreadable] if self._keep > 0 else []
        indices = self._vault.index_each([each.identifier for each in readable])
        kept: list[dict[str, object]] = [
            where
            | {
                "identifier": index,
                "outcome": self._vault.encrypt(
                    _POSITION.pack(each.epoch, each.batch) + each.tag + each.label, b"answer" + index
                ),
                "at": now,
            }
            for each, index in zip(readable, indices, strict=True)
        ]
        hits: list[dict[str, object]] = [
            where | {"epoch": batch.epoch, "tag": each.tag, "at": now} for each in answers if each.label
        ]
        return Outcome(batch, answers, budget, promised, kept, hits, now)

    def answered(self, outcomes: Sequence[Outcome]) -> "asyncio.Future[None]":
        """Record what batches brought, and erase their secrets, in one transaction."""

        def write(connection: sa.Connection) -> None:
            if kept := [row for outcome in outcomes for row in outcome.kept]:
                _ANSWERS.run_many(connection, kept)
            if hits := [row for outcome in outcomes for row in outcome.hits]:
                _HITS.run_many(connection, hits)
            for outcome in outcomes:
                batch = outcome.batch
                _end(connection, batch.query_id, "answered")
                self._log.record_promise(connection, *outcome.promised)
                told = {"in_budget": outcome.budget, "in_at": outcome.at}
                _BUDGET.run(connection, {"in_holder": batch.holder, "in_list": batch.list} | told)

        return self._writer.write(write, small=sum(len(each.answers) for each in outcomes) <= _SMALL)

    # -- answers of before -----------------------------------------------------------------------------------

    def recall(
        self, job: Job, inputs: Sequence[bytes], again: bool
    ) -> tuple[dict[tuple[str, str], dict[bytes, Answer]], list[Batch]]:
        """(answers kept for a rerun, by (holder, list) and identifier; batches without an answer yet)."""
        wanted = dict(zip(self._vault.index_each(inputs), inputs, strict=True))
        with self._reader.reading() as connection:
            kept = {} if again else self._known(connection, job, wanted)
            return kept, self._pending(connection, job, wanted)

    def _known(
        self, connection: sa.Connection, job: Job, wanted: Mapping[bytes, bytes]
    ) -> dict[tuple[str, str], dict[bytes, Answer]]:
        values: dict[str, object] = {"in_job": job.id, "in_since": time.time() - self._keep}
        found: dict[tuple[str, str], dict[bytes, Answer]] = {}
        for index, outcome, holder, list_name, at in _rows_of(_known_of, connection, list(wanted), values):
            plain = self._vault.decrypt(outcome, b"answer" + index)
            epoch, batch = _POSITION.unpack(plain[:8])
            answer = Answer(wanted[index], plain[24:], plain[8:24], epoch, batch, kept_at=at)
            found.setdefault((holder, list_name), {})[answer.identifier] = answer
        return found

    def purge(self) -> None:
        """Forget answers that are too old for a rerun, and the secrets of batches nobody came back for."""
        now = time.time()
        asked = schema.asked
        with db.writing(self._database) as connection:
            connection.execute(schema.answer.delete().where(schema.answer.c.at < now - self._keep))
            connection.execute(
                asked.update()
                .where(_OPEN, asked.c.at < now - max(self._keep, 86_400))
                .values(outcome="void", secret=None, sole=None)
            )
