"""Ticks of this node's log: append, sign, collect cosignatures; a head is published when a quorum has cosigned it."""

import asyncio
import logging

from protocols.errors import PeerError
from protocols.ledger import checkpoints, notes, witnessing
from protocols.ledger.checkpoints import Head
from protocols.ledger.notes import Signature
from protocols.ledger.witnessing import AddCheckpoint, Seen

from .. import limits
from ..errors import NodeError, Refused, StorageError
from ..identity.members import Member, MemberBook
from ..querier.peers import PeerFailed
from ..store.writer import GroupWriter
from .book import LogBook
from .changes import Changes
from .client import LedgerClient

_log = logging.getLogger("lianfang.ledger")
_RETRY_SECONDS = 3.0
_LOOK_SECONDS = 0.2  # after which a new member list, or a leaf in clear, is noticed
CLEAR_SECONDS = 5.0  # between two heads of leaves in clear
_GRACE = 0.3  # seconds that the others have once a quorum is there


class Publisher:
    """One per node."""

    def __init__(
        self, log: LogBook, writer: GroupWriter, book: MemberBook, client: LedgerClient, changes: Changes
    ) -> None:
        self._changes = changes
        self._log, self._writer, self._book, self._client = log, writer, book, client
        self._sizes: dict[str, int] = {}  # what each witness cosigned last
        self._members = book.current
        self._retry_at: float | None = None  # where the newest head lacks a quorum
        self._safe = False
        self.trouble = ""  # why there is no head at all
        self.refusing: dict[str, str] = {}  # witness → why it did not cosign the newest head

    async def run(self) -> None:
        """Tick for ever."""
        loop = asyncio.get_running_loop()
        every = self._log.settings.tick_seconds
        due = clear_from = loop.time()
        while True:
            try:
                await self.tick()
                self.trouble = ""
            except NodeError as error:
                self.trouble = str(error)
                _log.warning("no tick: %s", error)
                if not self._safe:  # others may be starting too
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
            except Exception:
                _log.exception("a tick of the log failed")
            due = max(due + every, loop.time())
            while (left := due - loop.time()) > 0:
                await asyncio.sleep(min(left, _LOOK_SECONDS))
                if self._log.clear_waits and loop.time() >= clear_from:
                    clear_from = loop.time() + CLEAR_SECONDS
                    await self._publish_clear()
                late = self._retry_at is not None and loop.time() >= self._retry_at
                if late or self._book.current is not self._members:  # or other witnesses: the same head, anew
                    await self._publish_again()

    async def _publish_clear(self) -> None:
        """A head of leaves in clear alone: others follow a list within seconds, not within a tick."""
        try:
            if self._safe and (head := await asyncio.to_thread(self._log.tick_clear, self._writer)):
                await self.publish(head)
        except Exception:
            _log.exception("a head of leaves in clear failed")

    async def _publish_again(self) -> None:
        self._members = self._book.current
        if self._safe and self._log.signed is not None:
            try:
                await self.publish(self._log.signed)
            except Exception:
                _log.exception("publishing to new witnesses failed")

    async def tick(self) -> Head:
        """One head. Raises `Refused` while it is unknown how far this log has signed."""
        if not self._safe:
            await self._check_backup()
        await asyncio.to_thread(self._changes.record)
        head = await asyncio.to_thread(self._log.tick, self._writer)
        await self.publish(head)
        return head

    async def _check_backup(self) -> None:
        """After a start: bring back what a restored database lacks, before anything is signed.

        The mark tells of a database that is older than it. Witnesses tell where the mark is lost too: any published
        head is known to one of any n − quorum + 1 of them.
        """
        own, found = await asyncio.to_thread(lambda: self._log.size), 0
        others = self._book.current.witnesses(self._log.owner)
        needed = len(others) - self._book.current.quorum(self._log.owner, self._log.settings.quorum) + 1
        for answers, seen in await asyncio.gather(*(self._known(member) for member in others)):
            found += answers
            if seen.size > max(own, self._log.lost.size if self._log.lost else 0):
                self._log.lost = seen  # the mark is lost too, but a witness has our own signature
        await self._restore()
        if others and own and found < min(needed, len(others)):
            raise Refused(
                f"{found} of {len(others)} witnesses answer; before it signs again this log asks {needed} of them "
                "how far it had come",
                "WITNESSES",
            )
        self._safe = self._log.ready = True

    async def _known(self, member: Member) -> tuple[bool, Seen]:
        """(whether a witness answers, the head of this log that it has cosigned last)."""
        try:
            data = await self._client.cosigned(member, self._log.origin)
            if data is None:
                return True, witnessing.NOTHING
            head = checkpoints.open_head(data, self._log.key, ()).checkpoint
            return True, Seen(head.size, head.root)
        except (NodeError, PeerError):
            return False, witnessing.NOTHING

    async def _restore(self) -> None:
        lost = self._log.lost
        if lost is None:
            return
        size = await asyncio.to_thread(lambda: self._log.size)
        for member in self._book.current.witnesses(self._log.owner):
            try:
                leaves = await self._client.mirrored(member, self._log.origin, size, lost.size)
                await asyncio.to_thread(self._log.adopt, leaves)
            except (NodeError, PeerError) as error:
                _log.warning("own entries from %s: %s", member.name.name, error)
                continue
            _log.warning("%d own entries came back from %s", len(leaves), member.name.name)
            return
        raise StorageError("this log's own entries were found with no member; it signs nothing without them")

    # -- cosignatures ----------------------------------------------------------------------------------------

    async def publish(self, head: Head) -> None:
        """Collect cosignatures and publish where they are enough."""
        others = self._book.current.witnesses(self._log.owner)
        needed = self._book.current.quorum(self._log.owner, self._log.settings.quorum)
        collected: list[Signature] = []
        self.refusing = {}
        tasks = {asyncio.create_task(self._ask(member, head)): member for member in others}
        waiting = set(tasks)
        timeout = None
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                try:
                    collected.append(task.result())
                except (NodeError, PeerError) as error:
                    self.refusing[tasks[task].id] = str(error)
            timeout = _GRACE if len(collected) >= needed else None
        for task in waiting:
            task.cancel()
        self._retry_at = None
        if len(collected) < needed:
            self._retry_at = asyncio.get_running_loop().time() + _RETRY_SECONDS
            _log.warning(
                "%d of %d witnesses cosigned, %d are needed: %s",
                len(collected),
                len(others),
                needed,
                "; ".join(self.refusing.values()) or "the member list has too few",
            )
            return
        note = head.note.with_signatures(collected)
        cosigned = checkpoints.open_head(bytes(note), self._log.key, [member.witness for member in others])
        await self._writer.write(lambda connection: self._log.publish(connection, cosigned))
        self._log.announce(cosigned)

    async def _ask(self, member: Member, head: Head) -> Signature:
        """One witness's cosignature; raises `PeerFailed` or a `PeerError`."""
        new = head.checkpoint.size
        old = self._sizes.get(member.id, 0)
        for _ in range(2):
            proof = () if old in (0, new) else await asyncio.to_thread(self._log.consistency, old, new)
            body = bytes(AddCheckpoint(old, proof, bytes(head.note)))
            status, kind, content = await self._client.add_checkpoint(member, body)
            text = content.decode("utf-8", "replace")
            if status == 409 and kind.partition(";")[0] == witnessing.SIZE_TYPE and text.endswith("\n"):
                old = notes.decode_decimal(text[:-1], "the witness's size")
                if old > new:
                    raise PeerFailed(
                        "failed",
                        f"{member.name.name} has cosigned {old} leaves of this log, which has {new}",
                        "RESTORED",
                    )
                continue
            if status != 200:
                raise PeerFailed(
                    "refused", f"{member.name.name} does not cosign: {status} {text.strip()[:200]}", "WITNESS"
                )
            for line in text.splitlines():
                signature = Signature.parse(line)
                if signature.by(member.witness):
                    at = checkpoints.cosigned_at(head.note, signature, member.witness)
                    if abs(at - self._log.now()) > limits.CLOCK_SKEW.total_seconds():
                        raise PeerFailed("failed", f"{member.name.name}'s clock differs too much", "CLOCK")
                    self._sizes[member.id] = new
                    return signature
            break
        raise PeerFailed("failed", f"{member.name.name} answers without a cosignature of its own", "WITNESS")
