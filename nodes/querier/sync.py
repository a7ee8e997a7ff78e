"""Keeping copies of others' sealed lists: verify what the holder says, pin it, pull what is new, apply it."""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from lianfang.v1 import common_pb2 as common
from lianfang.v1 import node_pb2, sync_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols import sealed, statement
from protocols.errors import PeerError, TableError
from protocols.identifiers import institutions
from protocols.ledger import events
from protocols.sealed import BatchHash, ListEpoch

from .. import limits
from ..config import AskSection
from ..errors import ConfigError, NodeError, Refused, StorageError
from ..identity.institutions import Institutions
from ..identity.members import Member, MemberBook
from ..identity.names import MemberName
from ..ledger.mirrors import Mirrors
from ..services import wire
from ..store import engine as db
from ..store import schema
from .peers import PeerFailed, Peers, failed
from .pins import Pins
from .tables import Tables


@dataclass(frozen=True)
class SyncStep:
    """One report of a sync, for a person who watches."""

    member: str
    list: str = ""
    epoch: int = 0
    batch: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    state: str = "pulling"  # pulling, applying, current, failed
    detail: str = ""
    additions: int = 0
    removals: int = 0


Watch = Callable[[SyncStep], None]


@dataclass(frozen=True)
class Synced:
    """A copy that can be asked."""

    holder: str
    list: str
    epoch: int
    public_key: bytes
    batch: int
    checked_at: float
    form: bytes  # under which its entries were normalised


_log = logging.getLogger("lianfang.sync")
_LOG_TRIES = 3
_OVERDUE = 15 * 86_400  # seconds past an epoch's announced end: the longest overlap, and a day


@dataclass(frozen=True)
class _Known:
    copies: dict[tuple[str, str, int], Synced]  # by epoch, ascending
    offers: dict[tuple[str, str], common.Budget]
    contacts: dict[str, float]


class Syncer:
    """One per node. Syncs of one member take turns."""

    def __init__(
        self,
        database: sa.Engine,
        tables: Tables,
        peers: Peers,
        book: MemberBook,
        name: MemberName,
        settings: AskSection,
        capture: wire.Capture,
        pins: Pins,
        mirrors: Mirrors,
        own_institutions: Institutions,
    ) -> None:
        self._institutions, self._fetching = own_institutions, asyncio.Lock()
        self.pins, self._mirrors = pins, mirrors
        self._database, self._tables, self._peers, self._book = database, tables, peers, book
        self._name, self._settings, self._capture = name, settings, capture
        self._locks: dict[str, asyncio.Lock] = {}
        self._memory: _Known | None = None

    # -- what is known, kept in memory: only this object writes it --------------------------------------------

    def _known(self) -> "_Known":
        if self._memory is None:
            with db.reading(self._database) as connection:
                synced = connection.execute(
                    sa.select(schema.synced).where(schema.synced.c.closed == 0, schema.synced.c.batch > 0)
                ).all()
                offers = connection.execute(sa.select(schema.offer)).all()
                contacts = connection.execute(sa.select(schema.contact)).all()
            self._memory = _Known(
                {
                    (row.holder, row.list, row.epoch): Synced(
                        row.holder,
                        row.list,
                        row.epoch,
                        row.public_key,
                        row.batch,
                        row.checked_at,
                        row.form or b"",
                    )
                    for row in sorted(synced, key=lambda row: row.epoch)
                },
                {(row.holder, row.list): common.Budget.FromString(row.budget) for row in offers},
                {row.holder: row.at for row in contacts},
            )
        return self._memory

    def _writing(self) -> "contextlib.AbstractContextManager[sa.Connection]":
        """A write transaction behind which memory is read anew."""

        @contextlib.contextmanager
        def write() -> Iterator[sa.Connection]:
            try:
                with db.writing(self._database) as connection:
                    yield connection
            finally:
                self._memory = None

        return write()

    def copies(self, holder: str | None = None) -> list[Synced]:
        """Copies that can be asked: the newest epoch of each list that is not closed."""
        newest = {
            (copy.holder, copy.list): copy
            for copy in self._known().copies.values()
            if holder is None or copy.holder == holder
        }
        return [newest[key] for key in sorted(newest)]

    def copy(self, holder: str, list_name: str, epoch: int) -> Synced | None:
        """The copy of one epoch, or None."""
        return self._known().copies.get((holder, list_name, epoch))

    def contact(self, holder: str) -> float:
        """When the holder last told us all its lists; 0 for never."""
        return self._known().contacts.get(holder, 0.0)

    def offer(self, holder: str, list_name: str) -> common.Budget | None:
        """What the holder last said is left, or None."""
        return self._known().offers.get((holder, list_name))

    def note_budget(self, holder: str, list_name: str, budget: common.Budget) -> None:
        """Remember what an answer said is left."""
        self._known().offers[(holder, list_name)] = budget

    # -- offers ------------------------------------------------------------------------------------------------

    def _write_offer(self, holder: str, list_name: str, budget: common.Budget, purposes: bytes) -> None:
        values = {"budget": budget.SerializeToString(), "at": time.time(), "purposes": purposes}
        with self._writing() as connection:
            connection.execute(
                insert(schema.offer)
                .values(holder=holder, list=list_name, **values)
                .on_conflict_do_update(index_elements=["holder", "list"], set_=values)
            )

    # -- one member ----------------------------------------------------------------------------------------------

    async def info(self, member: Member, timeout: float) -> node_pb2.GetInfoResponse:
        """Ask a member for its node information; raises `PeerFailed` or `Refused`."""
        request = node_pb2.GetInfoRequest(member_list_version=self._book.current.version)
        self._capture.record("out", "GetInfo", member.id, request)
        response = await self._peers.introducing(
            member, lambda peer: peer.info.GetInfo(request, timeout=timeout), timeout
        )
        self._capture.record("in", "GetInfo", member.id, response)
        if response.member != member.id:
            raise Refused(f"{member.endpoint} says it is {response.member}, not {member.id}", "WRONG_MEMBER")
        if common.SUITE_RISTRETTO255_SHA512 not in response.suites:
            raise Refused(f"{member.name.name} does not speak suite 1", "SUITE")
        if response.member_list:
            self._book.offer(response.member_list)
        if self._institutions.missing:
            async with self._fetching:
                if wanted := self._institutions.missing:
                    await self._fetch_institutions(member, wanted, timeout)
        return response

    async def _fetch_institutions(self, member: Member, wanted: bytes, timeout: float) -> None:
        """Take the directory of institutions from a member that has it; one that has it not is no failure of a sync."""
        try:
            data = bytearray()
            request = node_pb2.GetInstitutionsRequest(hash=wanted)
            async for piece in self._peers.get(member).info.GetInstitutions(request, timeout=timeout):
                data += piece.content
                if len(data) > institutions.MAX_BYTES:
                    raise ConfigError("larger than a directory of institutions may be")
            await asyncio.to_thread(self._institutions.put, bytes(data), wanted)
        except (grpc.aio.AioRpcError, ConfigError) as error:
            said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            _log.info("%s: directory of institutions: %s", member.name.name, said)

    async def sync(self, member: Member, watch: Watch = lambda _step: None) -> list[Synced]:
        """Bring all copies of this member's lists up to date.

        Raises `PeerFailed`, `Refused` (misbehaviour) or `StorageError`. What was pulled before a failure is
        kept and the next sync goes on from there. Where one list fails the others are still brought up to date.
        """
        async with self._locks.setdefault(member.id, asyncio.Lock()):
            info = await self.info(
                member, self._settings.deadline_seconds
            )  # first: it may have to hear of us
            await self._published(member)
            newest = await asyncio.to_thread(self.pins.newest, member.id)
            if any(_shown(head) < newest.get(head.list, (0, 0)) for head in info.lists):
                info = await self.info(member, self._settings.deadline_seconds)  # published meanwhile
            if len(info.lists) > limits.LISTS_A_HOLDER:
                raise Refused(f"{member.name.name} offers {len(info.lists)} lists", "INVALID")
            for head in info.lists:
                if len(head.epochs) > limits.EPOCHS_A_LIST:
                    raise Refused(
                        f"{member.name.name} offers {len(head.epochs)} epochs of one list", "INVALID"
                    )
                if not statement.LIST_NAME.fullmatch(head.list):
                    raise Refused(f"{member.name.name} offers a list with a malformed name", "INVALID")
            failure: NodeError | None = None
            for head in info.lists:
                purposes = bytes(sorted(purpose for purpose in head.purposes if 0 <= purpose < 256))
                await asyncio.to_thread(self._write_offer, member.id, head.list, head.budget, purposes)
                try:
                    for epoch in head.epochs:
                        await self._sync_epoch(member, head.list, epoch, watch)
                    self._check_newest(member, head, newest.get(head.list, (0, 0)))
                except (PeerFailed, Refused) as error:
                    if isinstance(error, PeerFailed) and error.outcome != "refused":
                        raise
                    failure = failure or error  # one bad list does not keep the others old
            await asyncio.to_thread(self._note_contact, member)
            await asyncio.to_thread(self._drop_unoffered, member, {head.list for head in info.lists})
            await asyncio.to_thread(self._drop_closed)
            if failure is not None:
                raise failure
            return await asyncio.to_thread(self.copies, member.id)

    async def _sync_epoch(
        self, member: Member, list_name: str, head: node_pb2.EpochHead, watch: Watch
    ) -> None:
        number = 0
        try:
            number = statement.parse(head.opened.statement).epoch
            where = ListEpoch(self._name.network, member.id, list_name, number)
            opened = await self._logged(member, where, head.opened, "epoch_opened")
            public_key = opened.epoch_opened.public_key
            if head.HasField("closed"):
                closed = await self._logged(member, where, head.closed, "epoch_closed")
                if closed.epoch_closed.public_key != public_key:
                    raise Refused(
                        f"{member.name.name} closed epoch {number} under another key", "MISBEHAVIOUR"
                    )
                await asyncio.to_thread(self._note_closed, where)
                return
            if await asyncio.to_thread(self.pins.logged, member.id, where, "epoch-closed"):
                await asyncio.to_thread(self._note_closed, where)  # to everybody else it has said so
                return
            if not head.HasField("head"):
                return
            if time.time() > opened.epoch_opened.closes_at + _OVERDUE:
                raise Refused(
                    f"{member.name.name} keeps epoch {number} of {list_name} past its end", "OVERDUE"
                )
            newest = await self._logged(member, where, head.head, "batch")
        except PeerError as error:
            raise Refused(f"{member.name.name}: {list_name}, epoch {number}: {error}", "INVALID") from error
        table = await asyncio.to_thread(self._tables.get, *(member.id, list_name, number))
        have, target = table.watermark, newest.batch.number
        if have > target:
            raise Refused(
                f"{member.name.name} went back from batch {have} of {list_name} to {target}", "MISBEHAVIOUR"
            )
        if have < target:
            await self._pull(member, where, (have, target), watch)
        form = opened.epoch_opened.form
        await asyncio.to_thread(self._note_current, where, public_key, target, form)
        watch(SyncStep(member.name.name, list_name, number, target, state="current"))

    async def _published(self, member: Member) -> None:
        """Bring the copy of its log up; a head that gets its quorum just now is waited for."""
        for left in reversed(range(_LOG_TRIES)):
            try:
                await self._mirrors.refresh(member)
                return
            except (PeerFailed, Refused) as error:
                if not left or error.reason not in ("UNPUBLISHED", "UNREACHABLE"):
                    raise
                await asyncio.sleep(1.5)

    async def _logged(
        self, member: Member, where: ListEpoch, signed: common.SignedStatement, kind: str
    ) -> Any:
        """A statement that the holder shows us, once it is found in the log that it shows everybody.

        Raises `Refused` for one that is not there: a key or a table for one asker alone.
        """
        said = await asyncio.to_thread(self.pins.pin, member, where, signed, kind)
        slot = statement.slot(said)
        if not await asyncio.to_thread(self.pins.logged, member.id, where, slot):
            await self._mirrors.refresh(member)  # published since we looked
        if not await asyncio.to_thread(self.pins.logged, member.id, where, slot):
            leaf = events.statement_leaf(signed)
            position = await asyncio.to_thread(self._mirrors.find_leaf, member, leaf)
            if position is not None:  # copied before this node's other database was restored
                return await asyncio.to_thread(self.pins.pin, member, where, signed, kind, position)
            what = f"unlogged statement for epoch {where.epoch}, {slot}"
            state = await asyncio.to_thread(self._mirrors.state, member)
            head = bytes(state.head.note) if state is not None else b""
            data = signed.SerializeToString(deterministic=True)
            await asyncio.to_thread(self.pins.alarm, member.id, where.list, what, data, head)
            self.pins.check(member.id, where.list)
        return said

    @staticmethod
    def _check_newest(member: Member, head: node_pb2.ListHead, logged: tuple[int, int]) -> None:
        """What is offered must be as new as what the holder's log had announced, to everybody, before."""
        number, batch = logged
        if _shown(head) < logged:
            raise Refused(
                f"{member.name.name} shows {head.list} older than its log: epoch {number} has batch {batch}",
                "STALE",
            )

    def _note_current(self, where: ListEpoch, public_key: bytes, batch: int, form: bytes) -> None:
        values = {"batch": batch, "checked_at": time.time(), "closed": 0, "form": form}
        with self._writing() as connection:
            connection.execute(
                insert(schema.synced)
                .values(
                    holder=where.holder,
                    list=where.list,
                    epoch=where.epoch,
                    public_key=public_key,
                    **values,
                )
                .on_conflict_do_update(index_elements=["holder", "list", "epoch"], set_=values)
            )

    def _note_closed(self, where: ListEpoch) -> None:
        table = schema.synced
        with self._writing() as connection:
            connection.execute(
                table.update()
                .where(
                    table.c.holder == where.holder, table.c.list == where.list, table.c.epoch == where.epoch
                )
                .values(closed=1)
            )

    def _note_contact(self, member: Member) -> None:
        values = {"at": time.time()}
        with self._writing() as connection:
            connection.execute(
                insert(schema.contact)
                .values(holder=member.id, **values)
                .on_conflict_do_update(index_elements=["holder"], set_=values)
            )

    def _drop_unoffered(self, member: Member, offered: set[str]) -> None:
        """A list that its holder no longer offers is not asked from the old copy."""
        table = schema.synced
        with self._writing() as connection:
            connection.execute(
                table.update()
                .where(table.c.holder == member.id, table.c.list.not_in(offered or {""}))
                .values(closed=1)
            )

    def _drop_closed(self) -> None:
        """Remove the files of tables whose key is gone, and what was kept of their hits."""
        table, hit = schema.synced, schema.hit
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(table).where(table.c.closed == 1)).all()
        for row in rows:
            self._tables.drop(row.holder, row.list, row.epoch)
            with self._writing() as connection:
                where = (hit.c.holder == row.holder) & (hit.c.list == row.list) & (hit.c.epoch == row.epoch)
                connection.execute(hit.delete().where(where))
                connection.execute(
                    table.delete().where(
                        table.c.holder == row.holder, table.c.list == row.list, table.c.epoch == row.epoch
                    )
                )

    # -- pulling ---------------------------------------------------------------------------------------------

    async def _pull(self, member: Member, where: ListEpoch, span: tuple[int, int], watch: Watch) -> None:
        have, target = span
        for attempt in range(limits.SYNC_TRIES):
            try:
                async for number in self._pull_once(member, where, have, watch):
                    have = number
                    if have >= target:
                        return
                if have >= target:
                    return
                raise PeerFailed(
                    "failed", f"{member.name.name} ended the stream at batch {have}", "TRUNCATED"
                )
            except PeerFailed as error:
                if attempt + 1 == limits.SYNC_TRIES or error.outcome == "refused":
                    raise
                await asyncio.sleep(0.2 * 2**attempt)

    async def _pull_once(
        self, member: Member, where: ListEpoch, have: int, watch: Watch
    ) -> AsyncIterator[int]:
        """Pull batches after `have`; yields the number of each that is applied."""
        folder = self._tables.folder(where.holder, where.list, where.epoch)
        part = folder / f"incoming-{have + 1:06d}.part"
        request = sync_pb2.PullRequest(
            suite=common.SUITE_RISTRETTO255_SHA512,
            list=where.list,
            epoch=where.epoch,
            from_batch=have + 1,
            from_offset=part.stat().st_size if part.exists() else 0,
            pull_id=secrets.token_bytes(16),
        )
        self._capture.record("out", "Pull", member.id, request)
        call = self._peers.get(member).sync.Pull(request, timeout=self._settings.sync_deadline_seconds)
        incoming: _Incoming | None = None
        try:
            async for response in call:
                self._capture.record("in", "Pull", member.id, response)
                if response.WhichOneof("part") == "descriptor":
                    if incoming is not None:
                        raise TableError("a new batch begins before the last one is whole")
                    said = await self._logged(member, where, response.descriptor, "batch")
                    if said.batch.number != have + 1:
                        raise TableError(f"batch {said.batch.number} came instead of {have + 1}")
                    incoming = _Incoming(folder, said.batch)
                    _check_space(folder, incoming.expected)
                elif incoming is None:
                    raise TableError("content came before a descriptor")
                else:
                    incoming.write(response.content)
                body = incoming.body
                watch(_step(member, where, body, incoming.size, incoming.expected))
                if incoming.size == incoming.expected:
                    incoming.close()
                    await asyncio.to_thread(self._apply, where, incoming)
                    have, incoming = body.number, None
                    yield have
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error
        except PeerError as error:
            if incoming is not None:
                incoming.discard()
            raise Refused(f"{member.name.name}: {where.list}: {error}", "INVALID") from error
        except OSError as error:
            raise StorageError(f"{error.filename or folder}: {error.strerror}") from error
        finally:
            call.cancel()
            if incoming is not None:
                incoming.close()

    def _apply(self, where: ListEpoch, incoming: "_Incoming") -> None:
        body = incoming.body
        if body.previous != self._previous_hash(where, body.number):
            raise TableError(f"batch {body.number} does not follow the one before it")
        hasher = BatchHash(where, body.number, body.previous, body.additions, body.removals)
        with incoming.path.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
        if hasher.digest() != body.table_hash:
            raise TableError(f"batch {body.number} is not what its descriptor says")
        table = self._tables.get(where.holder, where.list, where.epoch)
        table.apply(incoming.path, body.number, (body.additions, body.removals))
        incoming.path.unlink(missing_ok=True)

    def _previous_hash(self, where: ListEpoch, number: int) -> bytes:
        if number == 1:
            return bytes(32)
        signed = self.pins.signed(where, f"batch-{number - 1}")
        if signed is None:
            raise TableError(f"batch {number - 1} was never announced")
        return statement.parse(signed.statement).batch.table_hash


def _shown(head: node_pb2.ListHead) -> tuple[int, int]:
    """(epoch, batch) of the newest table that a holder offers of a list; (0, 0) where its statements are malformed."""
    found = (0, 0)
    for epoch in head.epochs:
        if epoch.HasField("closed") or not epoch.HasField("head"):
            continue
        try:
            said = statement.parse(epoch.head.statement)
        except PeerError:
            continue  # told when the epoch is synced
        found = max(found, (said.epoch, said.batch.number))
    return found


def _check_space(folder: Path, size: int) -> None:
    """The content, its table and a reserve for the databases must fit."""
    free = shutil.disk_usage(folder).free
    if free < 3 * size + limits.DISK_RESERVE:
        raise StorageError(
            f"{folder}: {free:,} bytes free, a batch of {size:,} needs about three times its size"
        )


class _Incoming:
    """A batch on its way: bytes go to a file that a later sync can continue."""

    def __init__(self, folder: Path, body: common.BatchDescriptor) -> None:
        self.body = body
        self.expected = sealed.content_length(body.additions, body.removals)
        if self.expected > limits.LIST_BYTES:
            raise TableError(f"batch {body.number} claims {self.expected} bytes")
        self.path = folder / f"incoming-{body.number:06d}.part"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "ab")
        self.size = os.fstat(descriptor).st_size

    def write(self, content: bytes) -> None:
        """Append; raises `TableError` for more than the descriptor announced."""
        if not content or self.size + len(content) > self.expected:
            raise TableError(f"batch {self.body.number} is longer than its descriptor says")
        self._file.write(content)
        self.size += len(content)

    def close(self) -> None:
        """Flush; the file stays."""
        self._file.close()

    def discard(self) -> None:
        """What came is not the batch: start afresh next time."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _step(member: Member, where: ListEpoch, body: common.BatchDescriptor, done: int, total: int) -> SyncStep:
    return SyncStep(
        member.name.name,
        where.list,
        where.epoch,
        body.number,
        done,
        total,
        additions=body.additions,
        removals=body.removals,
    )
