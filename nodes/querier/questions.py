"""What the node remembers of its own questions: jobs, batches under way, answers for a rerun, hits.

Until its answer is in, a batch keeps its blinding seed and identifiers, encrypted, so that after a crash the same
bytes are sent again and charged once. With the answer they are erased: OPRF outputs are never stored.
"""

import hashlib
import json
import secrets
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from protocols import lookup
from protocols.encoding import frame

from ..identity.keys import Vault
from ..store import engine as db
from ..store import schema

_PURPOSE = b"asked"
_POSITION = struct.Struct(">II")  # epoch, batch
_FEW = 500  # identifiers that are looked for one by one


@dataclass(frozen=True)
class Job:
    """A question of a person: the same case, purpose and basis make the same job."""

    id: bytes
    case_commitment: bytes
    purpose: int
    basis: int
    asker: bytes


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


class Questions:
    """Tables job, asked, answer and hit of `node.db`."""

    def __init__(self, database: sa.Engine, vault: Vault, keep_hours: float) -> None:
        self._database, self._vault, self._keep = database, vault, keep_hours * 3600

    def job(self, case: str, purpose: int, basis: int, asker: str) -> Job:
        """Find or open the job; its commitment to the case number is salted and stays the same."""
        job_id = self._vault.index(frame("job", case, purpose, basis))
        table = schema.job
        with db.writing(self._database) as connection:
            commitment = connection.execute(
                sa.select(table.c.case_commitment).where(table.c.id == job_id)
            ).scalar()
            if commitment is None:
                salt = secrets.token_bytes(32)
                commitment = hashlib.sha256(frame("lianfang/v1/case", salt, case)).digest()
                secret = self._vault.encrypt(frame(salt, case), b"case")
                connection.execute(
                    table.insert().values(
                        id=job_id, case_secret=secret, case_commitment=commitment, at=time.time()
                    )
                )
        return Job(job_id, commitment, purpose, basis, self._vault.pseudonym(asker))

    # -- batches under way -----------------------------------------------------------------------------------

    def pending(self, job: Job, holder: str, list_name: str, wanted: set[bytes]) -> list[Batch]:
        """Batches that were asked, have no answer yet, and hold any of the wanted identifiers."""
        table = schema.asked
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table).where(
                    table.c.job == job.id,
                    table.c.outcome == "pending",
                    table.c.holder == holder,
                    table.c.list == list_name,
                )
            ).all()
        batches = []
        for row in rows:
            stored = json.loads(self._vault.decrypt(row.secret, _PURPOSE + row.query_id))
            inputs = [each.encode() for each in stored["inputs"]]
            if wanted.isdisjoint(inputs):
                continue
            batches.append(
                Batch(
                    row.query_id,
                    bytes.fromhex(stored["seed"]),
                    inputs,
                    holder,
                    list_name,
                    row.epoch,
                    row.asker,
                )
            )
        return batches

    def begin(self, job: Job, parts: Iterable[tuple[str, str, int, list[bytes], int]]) -> list[Batch]:
        """Record new batches, durably, before anything is sent.

        `parts` are (holder, list, epoch, inputs, padded size).
        """
        batches, rows = [], []
        for holder, list_name, epoch, inputs, count in parts:
            batch = Batch(
                secrets.token_bytes(16),
                secrets.token_bytes(lookup.SEED),
                inputs,
                holder,
                list_name,
                epoch,
                job.asker,
            )
            stored = json.dumps({"seed": batch.seed.hex(), "inputs": [each.decode() for each in inputs]})
            batches.append(batch)
            rows.append(
                {
                    "query_id": batch.query_id,
                    "job": job.id,
                    "holder": holder,
                    "list": list_name,
                    "epoch": epoch,
                    "count": count,
                    "purpose": job.purpose,
                    "basis": job.basis,
                    "case_commitment": job.case_commitment,
                    "asker": job.asker,
                    "at": time.time(),
                    "outcome": "pending",
                    "secret": self._vault.encrypt(stored.encode(), _PURPOSE + batch.query_id),
                }
            )
        if rows:
            with db.writing(self._database) as connection:
                connection.execute(schema.asked.insert(), rows)
        return batches

    def end(self, batch: Batch, outcome: str) -> None:
        """The batch will not be sent again (refused or void): its secrets are erased."""
        table = schema.asked
        with db.writing(self._database) as connection:
            connection.execute(
                table.update().where(table.c.query_id == batch.query_id).values(outcome=outcome, secret=None)
            )

    def answered(self, job: Job, batch: Batch, answers: Sequence[Answer], budget: bytes) -> None:
        """Record a batch's answers and what budget is left, and erase its secrets, in one transaction."""
        now = time.time()
        rows = [
            {
                "job": job.id,
                "identifier": (index := self._vault.index(each.identifier)),
                "holder": batch.holder,
                "list": batch.list,
                "outcome": self._vault.encrypt(
                    _POSITION.pack(each.epoch, each.batch) + each.tag + each.label, b"answer" + index
                ),
                "at": now,
            }
            for each in answers
            if not each.unreadable
        ]
        hits = [
            {
                "holder": batch.holder,
                "list": batch.list,
                "epoch": batch.epoch,
                "tag": each.tag,
                "job": job.id,
                "at": now,
            }
            for each in answers
            if each.label
        ]
        with db.writing(self._database) as connection:
            statement = insert(schema.answer)
            if self._keep > 0 and rows:
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["job", "identifier", "holder", "list"],
                        set_={"outcome": statement.excluded.outcome, "at": statement.excluded.at},
                    ),
                    rows,
                )
            if hits:
                connection.execute(insert(schema.hit).on_conflict_do_nothing(), hits)
            connection.execute(
                schema.asked.update()
                .where(schema.asked.c.query_id == batch.query_id)
                .values(outcome="answered", secret=None)
            )
            offer = schema.offer
            connection.execute(
                offer.update()
                .where(offer.c.holder == batch.holder, offer.c.list == batch.list)
                .values(budget=budget, at=now)
            )

    # -- answers of before -----------------------------------------------------------------------------------

    def known(self, job: Job, holder: str, list_name: str, inputs: Sequence[bytes]) -> dict[bytes, Answer]:
        """Answers kept for a rerun, by canonical identifier."""
        table = schema.answer
        wanted = {self._vault.index(each): each for each in inputs}
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table.c.identifier, table.c.outcome).where(
                    table.c.job == job.id,
                    table.c.holder == holder,
                    table.c.list == list_name,
                    table.c.at > time.time() - self._keep,
                    table.c.identifier.in_(list(wanted)) if len(wanted) <= _FEW else sa.true(),
                )
            ).all()
        found = {}
        for row in rows:
            canonical = wanted.get(row.identifier)
            if canonical is not None:
                plain = self._vault.decrypt(row.outcome, b"answer" + row.identifier)
                epoch, batch = _POSITION.unpack(plain[:8])
                found[canonical] = Answer(canonical, plain[24:], plain[8:24], epoch, batch)
        return found

    def purge(self) -> None:
        """Forget answers that are too old for a rerun, and the secrets of batches nobody came back for."""
        now = time.time()
        asked = schema.asked
        with db.writing(self._database) as connection:
            connection.execute(schema.answer.delete().where(schema.answer.c.at < now - self._keep))
            connection.execute(
                asked.update()
                .where(asked.c.outcome == "pending", asked.c.at < now - max(self._keep, 86_400))
                .values(outcome="void", secret=None)
            )
