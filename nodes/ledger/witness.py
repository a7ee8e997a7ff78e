"""This node's part as a witness: it cosigns a head only after a proof from the last one that it cosigned.

The new state is compared and stored in one transaction, and in the mark, before the signature leaves.
"""

import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from protocols.errors import DecodeError
from protocols.ledger import checkpoints, notes, witnessing
from protocols.ledger.notes import Signature
from protocols.ledger.witnessing import AddCheckpoint, Refusal, Seen

from ..errors import NodeError
from ..identity.keys import NodeKeys
from ..identity.members import MemberBook, origin
from ..identity.names import MemberName
from ..store import engine as db
from ..store import schema
from ..store.writer import GroupWriter
from .mark import Mark


class _Conflict(NodeError):
    """Carries a protocol refusal through the writer, which commits what others wrote."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal), "WITNESS")
        self.refusal = refusal


class Witness:
    """One per node; it witnesses every member's log but its own."""

    def __init__(
        self,
        database: sa.Engine,
        writer: GroupWriter,
        keys: NodeKeys,
        name: MemberName,
        book: MemberBook,
        mark: Mark,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._writer, self._keys, self._book = database, writer, keys, book
        self._own, self._mark, self._clock = str(name), mark, clock
        self.name = f"{origin(name)}/witness"

    def add(self, body: bytes) -> Signature:
        """The cosignature of an add-checkpoint request, once it may leave. Not for the event loop.

        Raises `Refusal` with the protocol's status, or `StorageError`.
        """
        try:
            request = AddCheckpoint.parse(body)
            name = request.origin()
        except DecodeError as error:
            raise Refusal(400, str(error)) from error
        try:
            signature = self._writer.submit(lambda connection: self._add(connection, request)).result()
        except _Conflict as error:
            raise error.refusal from error
        head = notes.Note.parse(request.head)
        new = checkpoints.Checkpoint.parse(head.text)
        self._mark.note_witnessed(name, Seen(new.size, new.root))
        return signature

    def _log_key(self, name: str) -> notes.VerifierKey | None:
        for member in self._book.current:
            if member.log.name == name and member.id != self._own:
                return member.log
        return None

    def _add(self, connection: sa.Connection, request: AddCheckpoint) -> Signature:
        name = request.origin()
        seen = self._seen(connection, name)
        try:
            head = witnessing.consider(request, self._log_key(name), seen)
        except Refusal as refusal:
            raise _Conflict(refusal) from refusal
        new = head.checkpoint
        signature = checkpoints.cosign(head.note.text, self.name, self._keys.witness, int(self._clock()))
        values = {
            "size": new.size,
            "root": new.root,
            "note": bytes(head.note.with_signatures([signature])),
        }
        connection.execute(
            insert(schema.witnessed)
            .values(origin=name, **values)
            .on_conflict_do_update(index_elements=["origin"], set_=values)
        )
        return signature

    def _seen(self, connection: sa.Connection, name: str) -> Seen:
        table = schema.witnessed
        row = connection.execute(sa.select(table.c.size, table.c.root).where(table.c.origin == name)).first()
        stored = Seen(row.size, row.root) if row else witnessing.NOTHING
        marked = self._mark.witnessed(name)  # further on where the database was restored from a backup
        return marked if marked.size > stored.size else stored

    def newest(self, origin_hash: str) -> bytes | None:
        """The newest head cosigned here, by SHA-256 of its log's origin in lower-case hexadecimal."""
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(schema.witnessed.c.origin, schema.witnessed.c.note)).all()
        for row in rows:
            if checkpoints.origin_hash(row.origin) == origin_hash:
                return bytes(row.note)
        return None
