"""Copies of others' logs: followed head by head, recomputed leaf by leaf, compared with what witnesses have seen.

What they prove is used (statements of holders, promises that were kept); what contradicts them is kept as an alarm
and written to a file with both signed heads.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from lianfang.v1 import common_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols import merkle, statement
from protocols.errors import DecodeError, PeerError
from protocols.ledger import checkpoints, events, tiles
from protocols.ledger.checkpoints import Head
from protocols.ledger.notes import VerifierKey
from protocols.ledger.proofs import LogProof
from protocols.sealed import ListEpoch

from .. import limits
from ..config import LedgerSection
from ..errors import NodeError, NotFound, Refused
from ..files import write_atomic
from ..identity.keys import Vault
from ..identity.members import Member, MemberBook
from ..querier.peers import PeerFailed
from ..querier.pins import Pins
from ..store import engine as db
from ..store import schema
from . import book as logs
from .client import LedgerClient

_log = logging.getLogger("lianfang.ledger")
_BUNDLES_AT_ONCE = 4
_TICKS_OF_GRACE = 3
_FOLLOW_TICKS = 4  # who needs a log's newest head at once refreshes its copy by itself
_COMPARE_TURNS = 3
PIECE = 65_536  # leaves read and kept at once
MAX_BYTES = 256_000_000  # of them
MAX_ACCUSED = 4_000_000  # leaves of a log that is read whole to tell a lie from rubbish


@dataclass(frozen=True)
class Mirrored:
    """How far a copy reaches."""

    head: Head
    seen_at: float


class Mirrors:
    """One per node."""

    def __init__(
        self,
        database: sa.Engine,
        node_database: sa.Engine,
        members: MemberBook,
        owner: str,
        client: LedgerClient,
        pins: Pins,
        vault: Vault,
        settings: LedgerSection,
        evidence: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._node, self._members, self._owner = database, node_database, members, owner
        self._client, self._pins, self._vault, self._settings = client, pins, vault, settings
        self._evidence, self._clock = evidence, clock
        self._locks: dict[str, asyncio.Lock] = {}
        self._ahead: dict[
            tuple[str, str], tuple[Member, Head]
        ] = {}  # cosigned heads that the copy has not reached
        self._troubles: dict[str, str] = {}
        self._gaps: dict[str, str] = {}
        self._accused: set[tuple[str, int, bytes]] = set()
        self._following: dict[str, asyncio.Task[None]] = {}

    # -- reading ---------------------------------------------------------------------------------------------

    def state(self, member: Member) -> Mirrored | None:
        """How far the copy of a member's log reaches."""
        with db.reading(self._database) as connection:
            row = connection.execute(sa.select(schema.mirror).filter_by(origin=member.log.name)).first()
        if row is None:
            return None
        try:  # verified when it came; the witnesses may have changed since
            return Mirrored(
                checkpoints.open_head(row.note, member.log, self._witness_keys(member)), row.seen_at
            )
        except PeerError as error:
            raise Refused(
                f"{member.name.name}: the copy of its log is under another key", "INVALID"
            ) from error

    def _read(self, origin: str) -> tiles.Reader:
        table = schema.mirror_tile

        def read(level: int, number: int) -> bytes:
            with db.reading(self._database) as connection:
                content = connection.execute(
                    sa.select(table.c.content).filter_by(origin=origin, level=level, number=number)
                ).scalar()
            return bytes(content or b"")

        return read

    def tile(self, origin_hash: str, level: int, number: int, width: int) -> bytes:
        """A tile of the copy of a log, by SHA-256 of its origin; raises `NotFound` beyond its end."""
        with db.reading(self._database) as connection:
            rows = connection.execute(sa.select(schema.mirror.c.origin, schema.mirror.c.size)).all()
        for row in rows:
            if checkpoints.origin_hash(row.origin) == origin_hash:
                if not 0 < width <= tiles.width(level, number, row.size):
                    break
                content = self._read(row.origin)(level, number)
                return tiles.cut(level, content, width)
        raise NotFound("no such tile in a copy of that log")

    def prove(self, member: Member, position: int) -> LogProof:
        """An entry of a member's log in the newest head that was copied. Raises `NotFound`."""
        known = self.state(member)
        if known is None or position >= known.head.checkpoint.size:
            raise NotFound(f"the copy of {member.name.name}'s log does not hold entry {position} yet")
        size = known.head.checkpoint.size
        path = tuple(merkle.inclusion(position, size, tiles.nodes(self._read(member.log.name))))
        return LogProof(position, path, bytes(known.head.note))

    def root(self, member: Member, size: int) -> bytes:
        """The root of the copy's first `size` leaves."""
        return merkle.root(size, tiles.nodes(self._read(member.log.name)))

    def leaf(self, member: Member, position: int) -> bytes:
        """The data of a leaf; raises `NotFound`."""
        number, place = divmod(position, tiles.WIDTH)
        entries = tiles.unpack(self._read(member.log.name)(tiles.ENTRIES, number))
        if place >= len(entries):
            raise NotFound(f"the copy of {member.name.name}'s log does not hold entry {position} yet")
        return entries[place]

    def find_leaf(self, member: Member, leaf: bytes) -> int | None:
        """Where the copy holds a leaf, or `None`: for what became of interest only after it was copied."""
        table = schema.mirror_tile
        with db.reading(self._database) as connection:
            rows = connection.execute(
                sa.select(table.c.number, table.c.content)
                .where(
                    table.c.origin == member.log.name,
                    table.c.level == tiles.ENTRIES,
                    sa.func.instr(table.c.content, leaf) > 0,
                )
                .order_by(table.c.number)
            ).all()
        for row in rows:
            for place, entry in enumerate(tiles.unpack(row.content)):
                if entry == leaf:
                    return int(row.number) * tiles.WIDTH + place
        return None

    # -- following -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow everybody for ever, each log every so many ticks and not all members at the same one, so that somebody
        has a copy of every head; every third time also compare with what witnesses have seen.
        """
        turn = 0
        while True:
            await asyncio.sleep(self._settings.tick_seconds)
            turn += 1
            ids = sorted(member.id for member in self._members.current)
            own = ids.index(self._owner) if self._owner in ids else 0
            for member in self.followed():
                if (turn + own) % _FOLLOW_TICKS:
                    continue
                under_way = self._following.get(member.id)
                if under_way is None or under_way.done():  # a slow member holds up its own log alone
                    compare = (turn + own) // _FOLLOW_TICKS % _COMPARE_TURNS == 0
                    self._following[member.id] = asyncio.create_task(self._follow(member, compare))

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)

    def followed(self) -> list[Member]:
        """Every other member."""
        return [member for member in self._members.current if member.id != self._owner]

    async def _follow(self, member: Member, compare: bool) -> None:
        try:
            await self.refresh(member)
            if compare:
                await self.compare(member)
        except NodeError as error:
            _log.info("log of %s: %s", member.name.name, error)
        except Exception:
            _log.exception("following the log of %s failed", member.name.name)

    async def refresh(self, member: Member) -> Mirrored:
        """Bring the copy up to the newest published head. Raises `PeerFailed` or `Refused`."""
        # Whoever gives up waiting leaves the work to its end, under its lock.
        return await asyncio.shield(asyncio.ensure_future(self._in_turn(member)))

    async def _in_turn(self, member: Member) -> Mirrored:
        async with self._locks.setdefault(member.id, asyncio.Lock()):
            try:
                found = await self._refresh(member)
            except NodeError as error:
                self._troubles[member.id] = str(error)
                raise
            self._troubles.pop(member.id, None)
            return found

    def _witness_keys(self, member: Member) -> list[VerifierKey]:
        return [each.witness for each in self._members.current.witnesses(member.id)]

    async def _refresh(self, member: Member) -> Mirrored:
        name = member.name.name
        data = await self._client.head(member)
        if data is None:
            raise PeerFailed("failed", f"{name} has published no head of its log yet", "UNPUBLISHED")
        try:
            head = checkpoints.open_head(data, member.log, self._witness_keys(member))
        except PeerError as error:
            raise Refused(f"{name}: the head of its log: {error}", "INVALID") from error
        known = await asyncio.to_thread(self.state, member)
        new, old = head.checkpoint, known.head.checkpoint if known else None
        if known is not None and new.size <= known.head.checkpoint.size:
            await asyncio.to_thread(self._check_seen, member, head, "the log itself")
            if new.size < known.head.checkpoint.size:
                what = "rewind: it serves an older head again"
                await asyncio.to_thread(self._contradiction, member, what, known.head, head)
                return known
        needed = self._members.current.quorum(member.id, self._settings.quorum)
        if len(head.cosigned) < needed:
            raise Refused(
                f"{name}: {len(head.cosigned)} witnesses have cosigned its head, {needed} are needed",
                "UNPUBLISHED",
            )
        clear = 0
        if old is None or new.size > old.size:
            start = old.size if old else 0
            for place in range(start, new.size, PIECE):
                leaves = await self._entries(member, place, min(place + PIECE, new.size))
                clear += sum(map(events.in_clear, leaves))
                await asyncio.to_thread(self._keep, member, place, leaves)
            if not await asyncio.to_thread(self._take, member, start, head):
                # Either it serves rubbish, or it has signed a head that does not contain the one before.
                accusing = (member.id, new.size, new.root)
                leaves = []
                if known is not None and new.size <= MAX_ACCUSED and accusing not in self._accused:
                    self._accused.add(accusing)  # it is read whole once, not at each look
                    leaves = await self._entries(member, 0, new.size)
                await asyncio.to_thread(self._accuse, member, known, head, leaves)
        found = Mirrored(head, self._clock())
        await asyncio.to_thread(self._store, member, found)
        if known is not None:
            self._check_ticks(member, known.head, head, clear)
        await asyncio.to_thread(self._check_promises, member, found)
        return found

    async def _entries(self, member: Member, start: int, end: int) -> list[bytes]:
        """Leaves [start, end) as the log serves them."""
        numbers = range(start // tiles.WIDTH, -(-end // tiles.WIDTH))
        leaves: list[bytes] = []
        size = 0
        for i in range(0, len(numbers), _BUNDLES_AT_ONCE):
            bundles = await asyncio.gather(
                *(
                    self._client.entries(member, number, tiles.width(tiles.ENTRIES, number, end))
                    for number in numbers[i : i + _BUNDLES_AT_ONCE]
                )
            )
            for bundle in bundles:
                leaves += bundle
                size += sum(map(len, bundle))
            if size > MAX_BYTES:
                raise Refused(
                    f"{member.name.name}: {PIECE:,} leaves of its log are more than {MAX_BYTES:,} bytes",
                    "INVALID",
                )
        return leaves[start - numbers[0] * tiles.WIDTH :] if leaves else []

    def _keep(self, member: Member, start: int, leaves: Sequence[bytes]) -> None:
        """Store leaves behind those that are there. They count once a head is recomputed from them.

        A tile only grows, so what a wrong piece leaves behind the copy's end is never read and is written over.
        """
        origin = member.log.name
        stored = self._read(origin)
        changed = tiles.grow(start, [merkle.leaf_hash(leaf) for leaf in leaves], stored)
        changed |= logs.grow_bundles(start, list(leaves), stored)
        with db.writing(self._database) as connection:
            logs.write_tiles(connection, schema.mirror_tile, changed, {"origin": origin})

    def _take(self, member: Member, start: int, head: Head) -> bool:
        """Recompute the head from what is kept, and learn from its leaves; whether they lead there."""
        size = head.checkpoint.size
        if self.root(member, size) != head.checkpoint.root:
            return False
        read = self._read(member.log.name)
        for number in range(start // tiles.WIDTH, -(-size // tiles.WIDTH)):
            first = number * tiles.WIDTH
            entries = tiles.unpack(read(tiles.ENTRIES, number))[: size - first]
            skipped = max(0, start - first)
            # Before the head is stored, and twice where a crash comes between: it changes nothing.
            self._learn(member, first + skipped, entries[skipped:])
        return True

    def _accuse(self, member: Member, known: Mirrored | None, head: Head, leaves: Sequence[bytes]) -> None:
        """`leaves` are all that the log now says it holds. Raises `Refused`."""
        if known is not None and merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves]).root() == (
            head.checkpoint.root
        ):
            what = "split view: its new head does not contain the one before"
            self._contradiction(member, what, known.head, head)
        raise Refused(f"{member.name.name}: the entries of its log do not lead to its head", "MISBEHAVIOUR")

    def _store(self, member: Member, found: Mirrored) -> None:
        values = {
            "size": found.head.checkpoint.size,
            "note": bytes(found.head.note),
            "head_time": found.head.time,
            "seen_at": found.seen_at,
        }
        with db.writing(self._database) as connection:
            connection.execute(
                insert(schema.mirror)
                .values(origin=member.log.name, **values)
                .on_conflict_do_update(index_elements=["origin"], set_=values)
            )

    def _check_ticks(self, member: Member, before: Head, now: Head, clear: int) -> None:
        """A log grows at each tick, so its growth bounds how many it can have had; `clear` leaves are of no tick."""
        due = (now.time - before.time) / self._settings.tick_seconds
        grown = now.checkpoint.size - before.checkpoint.size - clear
        had = grown // self._settings.leaves_a_tick
        missing = int(due - had)
        self._gaps.pop(member.id, None)
        if missing > max(_TICKS_OF_GRACE, due / 4):
            self._gaps[member.id] = (
                f"{missing} ticks are missing in the {now.time - before.time} s before {now.time}"
            )

    # -- what leaves say -------------------------------------------------------------------------------------

    def _learn(self, member: Member, start: int, leaves: Sequence[bytes]) -> None:
        table = schema.promise
        with db.reading(self._node) as connection:
            promised = set(
                connection.execute(
                    sa.select(table.c.commitment).where(table.c.peer == member.id, table.c.position.is_(None))
                ).scalars()
            )
        kept = []
        for position, data in enumerate(leaves, start):
            try:
                leaf = events.parse_leaf(data)
            except DecodeError as error:
                _log.warning("log of %s, entry %d: %s", member.name.name, position, error)
                continue
            kind = leaf.WhichOneof("body")
            if kind == "commitment" and leaf.commitment in promised:
                kept.append({"in_commitment": leaf.commitment, "in_position": position})
            elif kind == "statement":
                self._learn_statement(member, leaf.statement, position)
        if kept:
            with db.writing(self._node) as connection:
                connection.execute(
                    table.update()
                    .where(table.c.commitment == sa.bindparam("in_commitment"))
                    .values(position=sa.bindparam("in_position")),
                    kept,
                )

    def _learn_statement(self, member: Member, data: bytes, position: int) -> None:
        signed = common_pb2.SignedStatement.FromString(data)
        try:
            said = statement.parse(signed.statement)
            where = ListEpoch(said.network, said.holder, said.list, said.epoch)
            if said.holder != member.id:
                raise DecodeError(f"a statement of {said.holder}")
            self._pins.pin(member, where, signed, str(said.WhichOneof("body")), position)
        except (PeerError, Refused) as error:
            _log.warning("log of %s, entry %d: %s", member.name.name, position, error)

    def _check_promises(self, member: Member, found: Mirrored) -> None:
        """A receipt whose leaf the log does not hold in time is a broken promise."""
        table = schema.promise
        due = found.head.time - limits.CLOCK_SKEW.total_seconds()
        with db.reading(self._node) as connection:
            rows = connection.execute(
                sa.select(table).where(
                    table.c.peer == member.id,
                    table.c.position.is_(None),
                    table.c.include_by < found.head.time,
                )
            ).all()
        for row in rows:
            # A receipt may reach us after we have copied its leaf.
            position = self.find_leaf(member, events.commitment_leaf(row.commitment))
            if position is not None:
                with db.writing(self._node) as connection:
                    connection.execute(
                        table.update().where(table.c.commitment == row.commitment).values(position=position)
                    )
                continue
            if row.include_by >= due:
                continue
            receipt = self._vault.decrypt(row.receipt, b"promise" + row.commitment)
            what = f"broken promise: its log does not hold the event {row.event_id.hex()}"
            number = self._pins.alarm(member.id, "", what, receipt, bytes(found.head.note))
            if number is not None:
                self._write_evidence(number, what, [bytes(found.head.note)])

    # -- contradictions --------------------------------------------------------------------------------------

    async def compare(self, member: Member) -> None:
        """Hold what each witness says of a member's log against the copy."""
        others = [each for each in self._members.current.witnesses(member.id) if each.id != self._owner]
        heads = await asyncio.gather(*(self._cosigned(each, member) for each in others))
        for witness, head in zip(others, heads, strict=True):
            if head is not None:
                self._ahead.setdefault(
                    (member.id, witness.id), (witness, head)
                )  # the oldest is settled first
        for key, (witness, head) in list(self._ahead.items()):
            if key[0] != member.id:
                continue
            known = await asyncio.to_thread(self.state, member)
            if known is not None and head.checkpoint.size <= known.head.checkpoint.size:
                del self._ahead[key]
                await asyncio.to_thread(self._check_seen, member, head, witness.name.name, witness)

    async def _cosigned(self, witness: Member, member: Member) -> Head | None:
        try:
            data = await self._client.cosigned(witness, member.log.name)
            return checkpoints.open_head(data, member.log, [witness.witness]) if data else None
        except (NodeError, PeerError) as error:
            _log.info("what %s has seen of %s: %s", witness.name.name, member.name.name, error)
            return None

    def _check_seen(self, member: Member, head: Head, source: str, witness: Member | None = None) -> None:
        """A head no larger than the copy must be the copy's root at that size."""
        known = self.state(member)
        if known is None or self.root(member, head.checkpoint.size) == head.checkpoint.root:
            return
        self._contradiction(member, f"split view: {source} has another head", known.head, head)
        name = witness.witness.name if witness is not None else ""
        if witness is not None and name in head.cosigned and name in known.head.cosigned:
            what = f"two-faced witness of the log of {member.name.name}"
            self._contradiction(witness, what, known.head, head)
        raise Refused(
            f"{member.name.name} shows different logs to different members; both heads are kept",
            "MISBEHAVIOUR",
        )

    def _contradiction(self, member: Member, what: str, first: Head, second: Head) -> None:
        number = self._pins.alarm(member.id, "", what, bytes(first.note), bytes(second.note))
        if number is not None:
            self._write_evidence(number, f"{member.id}\n{what}", [bytes(first.note), bytes(second.note)])

    def _write_evidence(self, number: int, what: str, heads: list[bytes]) -> None:
        self._evidence.mkdir(mode=0o700, exist_ok=True)
        path = self._evidence / f"alarm-{number}.txt"
        text = what.encode() + b"\n"
        for head in heads:
            text += b"\n----\n" + head
        write_atomic(path, text, 0o600)
        _log.error("ALARM %s (%s)", what.replace("\n", ": "), path)

    # -- for people ------------------------------------------------------------------------------------------

    def overview(self) -> list[dict[str, object]]:
        """One row for each member's log: how far it is known, how old its head is, what is wrong."""
        now = self._clock()
        out: list[dict[str, object]] = []
        for member in self.followed():
            try:
                known = self.state(member)
            except Refused as error:
                known, self._troubles[member.id] = None, str(error)
            age = now - known.head.time if known else None
            trouble = self._troubles.get(member.id, "")
            state = "current"
            if known is None:
                state = "unknown"
            elif age is not None and age > max(3 * _FOLLOW_TICKS * self._settings.tick_seconds, 30.0):
                state = "stale"
            elif member.id in self._gaps:
                state = "missed-tick"
                trouble = trouble or self._gaps[member.id]
            alarms = [
                str(each["what"])
                for each in self._pins.alarms()
                if each["holder"] == member.id and not each["list"]
            ]
            out.append(
                {
                    "member": member.name.name,
                    "size": known.head.checkpoint.size if known else 0,
                    "head_seconds_old": round(age) if age is not None else -1,
                    "witnesses": len(known.head.cosigned) if known else 0,
                    "state": "alarm" if alarms else state,
                    "detail": "; ".join(alarms) or trouble,
                }
            )
        return out
