"""Sessions on the wire, and for the node's own people: held one at a time with each member, on the record."""

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.struct_pb2 import Struct
from lianfang.v1 import contract_pb2, ledger_pb2, psi_pb2_grpc
from lianfang.v1 import psi_pb2 as pb

from protocols import psi
from protocols.encoding import frame
from protocols.errors import PeerError
from protocols.identifiers import form, form_text

from .. import limits
from ..contracts import draft as drafts
from ..contracts.book import PSI, Held
from ..errors import ConfigError, NodeError, NotFound, Refused, invalid
from ..files import remove, write_atomic
from ..gate import MEET, Ask
from ..identity.members import Member
from ..people.actions import Action
from ..querier.peers import PeerFailed, failed
from ..report import iso
from ..services import wire
from . import rows as datasets
from .meeting import Line, Meeting, Outcome, Plan, Tell

if TYPE_CHECKING:
    from ..node import Node
    from .workspace import Workspace

_log = logging.getLogger("lianfang.psi")
_OUTCOME = b"psi outcome"
_ALIGNED = b"psi alignment"
_ROWS = b"psi rows"
_ROWS_A_MESSAGE = 4_096
_VARIANTS = {number: name for name, number in drafts.VARIANTS.items()}


class Sessions:
    """Holds sessions for both faces, and keeps what they gave: encrypted, in `data/psi`."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._folder = node.home.data / "psi"
        self._with: dict[str, bytes] = {}  # the session that is being exchanged with each member
        self._under_way: set[asyncio.Task[Any]] = set()

    def plan(self, held: Held, session: bytes, member: Member, calls: bool) -> Plan:
        """Raises `Refused` for what this node cannot do."""
        node, terms = self._node, held.terms.psi
        check_terms(held.terms)
        own = next(each for each in terms.inputs if each.party == str(node.home.name))
        peer = next(each for each in terms.inputs if each.party == member.id)
        configured = node.home.datasets()
        if own.dataset not in configured:
            raise Refused(
                f"learn.datasets.{own.dataset} is not configured at {node.home.name.name}", "DATASET"
            )
        return Plan(
            held.hash,
            session,
            terms,
            own,
            peer,
            datasets.Column(
                node.home.file.parent / configured[own.dataset].path,
                own.column,
                terms.kind,
                node.home.config.lists.default_region,
                own.values,
                terms.decimals,
            ),
            calls,
            lambda: node.gate.check_meeting(member, held.hash),
        )

    async def hold(
        self,
        held: Held,
        session: bytes,
        member: Member,
        calls: bool,
        read: Callable[[], Awaitable[pb.PsiMessage | None]],
        write: Callable[[pb.PsiMessage], Awaitable[None]],
        finish: Callable[[], Awaitable[None]],
        tell: Tell,
    ) -> dict[str, Any]:
        """Admit, exchange, `finish` with the other side, and then compare and keep; the outcome in words."""
        node = self._node
        if member.id in self._with:
            raise Refused(
                f"a session with {member.name.name} is under way", "BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED
            )
        plan = self.plan(held, session, member, calls)
        self._watch(asyncio.current_task())
        self._with[member.id] = session
        line = Line(read, write)
        work: asyncio.Future[Any] | None = None
        begun = False
        try:
            await node.gate.decide(_ask(member, held.hash, session))
            begun = True
            hello = pb.PsiMessage(hello=pb.PsiHello(contract=held.hash, session=session, form=form()))
            await write(hello)
            if calls and await asyncio.wait_for(read(), limits.HELLO_SECONDS) != hello:
                raise PeerError(f"{member.name.name} did not answer hello")
            self._folder.mkdir(mode=0o700, exist_ok=True)
            place = self._folder / f"{_place(member, held.hash, session)}.work"
            making = asyncio.ensure_future(asyncio.to_thread(_workspace, place, plan))
            try:
                space = await asyncio.shield(making)
                meeting = Meeting(plan, line, space, node.workers, node.keys.vault, tell)
                before = await asyncio.to_thread(_state, plan)
                work = asyncio.ensure_future(asyncio.to_thread(meeting.exchange))
                exchanged = await asyncio.shield(work)
                await finish()
                self._ended(held, session, member, "ended")
                begun = False
                self._leave(member, session)  # what follows is this side's own business

                def settle() -> dict[str, Any]:
                    return self._keep(plan, member, meeting.compare(exchanged), before)

                # Also where nobody waits for it any more: the session is on record, and its outcome is to be found.
                work = asyncio.ensure_future(asyncio.to_thread(settle))
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    work.add_done_callback(_unheard)
                    raise
            finally:
                line.close()
                clearing = asyncio.create_task(self._clear_up(making, work))
                self._watch(clearing)
                await asyncio.shield(clearing)  # which goes on whoever else is cancelled
        except BaseException:
            if begun:
                self._ended(held, session, member, "broke off")
            raise
        finally:
            line.close()
            self._leave(member, session)

    @staticmethod
    async def _clear_up(making: "asyncio.Future[Workspace]", work: "asyncio.Future[Any] | None") -> None:
        """Once no thread uses it any more: one that exchanges hears that it is over at its next step, one that compares comes to its end."""
        await asyncio.wait({making, work} if work is not None else {making})
        if not making.cancelled() and making.exception() is None:
            await asyncio.to_thread(making.result().close)

    def _watch(self, task: "asyncio.Task[Any] | None") -> None:
        assert task is not None  # where sessions are held there is a loop
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def stop(self) -> None:
        """Wait for what is under way; nothing new comes any more, and workers have stopped."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _leave(self, member: Member, session: bytes) -> None:
        if self._with.get(member.id) == session:
            del self._with[member.id]

    def _ended(self, held: Held, session: bytes, member: Member, how: str) -> None:
        node = self._node
        entry = node.log.prepare(
            ledger_pb2.EVENT_TYPE_MEETING,
            member.id,
            session,
            number=1,
            resource=held.hash.hex(),
            reason=how,
            contract=held.hash,
        )
        node.writer.submit(lambda connection: node.log.record(connection, entry))

    def _keep(self, plan: Plan, member: Member, outcome: Outcome, before: tuple[int, ...]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "session": plan.session.hex(),
            "contract": plan.contract.hex(),
            "with": member.name.name,
            "opened_here": plan.calls,
            "variant": _VARIANTS[plan.terms.variant],
            "at": iso(time.time()),
            "rows": outcome.counts.rows,
            "empty": outcome.counts.empty,
            "bad": outcome.counts.bad,
            "repeated": outcome.counts.repeated,
            "elements": outcome.counts.elements,
            "their_elements_at_most": outcome.theirs,
            "learns": plan.learns,
            "below_minimum": plan.learns and outcome.common is None,
        }
        if outcome.common is not None:
            document["common"] = outcome.common
        if outcome.total is not None:
            document["sum"] = f"{Decimal(outcome.total).scaleb(-plan.terms.decimals):f}"
        # An aligned row is known by its identifier's keyed hash: rows may move in the file, and their columns change.
        aligned = {row: (each, identifier) for each, identifier, row in outcome.aligned}
        numbers = set(outcome.rows) or set(aligned)
        found, cells = plan.column.written(numbers) if numbers else ([], [])
        if len(found) != len(numbers) or _state(plan) != before:
            raise NodeError(
                f"{plan.column.path} has changed during the session: nobody knows whose rows were in common"
            )
        ids = [aligned[row][0] for row in found] if aligned else []
        if ids:  # an alignment's rows go by id, others as they stand
            order = sorted(range(len(ids)), key=ids.__getitem__)
            found, cells, ids = [found[i] for i in order], [cells[i] for i in order], [ids[i] for i in order]
        messages = [each.SerializeToString() for each in _messages(found, cells, ids)]
        pairs = b"".join(each + identifier for each, identifier, _ in outcome.aligned)
        name = _place(member, plan.contract, plan.session)
        try:
            if aligned:
                self._write(name, "aligned", _ALIGNED, pairs)
            sized = b"".join(len(each).to_bytes(4, "big") + each for each in messages)
            self._write(name, "rows", _ROWS, sized)
            # Last: with it the session is listed.
            listed = json.dumps({"outcome": document}, ensure_ascii=False).encode()
            self._write(name, "outcome", _OUTCOME, listed)
        except BaseException:
            self._forget(name)
            raise
        return document

    def _forget(self, name: str) -> None:
        for ending in ("outcome", "rows", "aligned"):
            (self._folder / f"{name}.{ending}").unlink(missing_ok=True)

    def _write(self, name: str, ending: str, what: bytes, content: bytes) -> None:
        sealed = self._node.keys.vault.encrypt(content, what + name.encode())
        write_atomic(self._folder / f"{name}.{ending}", sealed, 0o600)

    def _read(self, name: str, ending: str, what: bytes) -> bytes:
        return self._node.keys.vault.decrypt(
            (self._folder / f"{name}.{ending}").read_bytes(), what + name.encode()
        )

    def all(self) -> list[dict[str, Any]]:
        """What was held, newest first."""
        found = [each["outcome"] for _, each in self._stored()]
        return sorted(found, key=lambda each: str(each["at"]), reverse=True)

    def _stored(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self._folder.glob("*.outcome"):
            yield path.stem, json.loads(self._read(path.stem, "outcome", _OUTCOME))

    def rows(self, text: str) -> Iterator[pb.PsiOutcome]:
        """One session's own rows in common, in messages; raises `NotFound`."""
        found = [each for each in self._stored() if each[1]["outcome"]["session"].startswith(text)]
        if len(text) < 4 or len(found) != 1:
            raise NotFound(f"{text!r} names {len(found)} sessions that were held here")
        ((name, kept),) = found
        if "rows" in kept:  # as earlier versions kept them
            numbers, cells, ids = map(list, zip(*kept["rows"], strict=True)) if kept["rows"] else ([], [], [])
            return _messages(numbers, cells, [bytes.fromhex(each) for each in ids if each])
        return _parsed(self._read(name, "rows", _ROWS))

    def aligned(self, member: Member, contract: bytes, session: bytes) -> bytes:
        """Ids (16 bytes) each followed by the own identifier's keyed hash (16 bytes), ascending; raises `NotFound`."""
        name = _place(member, contract, session)
        try:
            return self._read(name, "aligned", _ALIGNED)
        except FileNotFoundError:
            raise NotFound(
                f"no alignment {session.hex()[:12]} with {member.name.name} was held here"
            ) from None

    def clear(self) -> None:
        """What a session left that a crash ended: points that mean nothing without its exponent."""
        for path in self._folder.glob("*.work"):
            remove(path)
        for path in (*self._folder.glob("*.rows"), *self._folder.glob("*.aligned")):
            if not path.with_suffix(".outcome").exists():
                path.unlink()
        for path in self._folder.glob(".*.tmp"):  # of files that were being written
            path.unlink()


class PsiService(psi_pb2_grpc.PsiServicer):
    """On the peer port."""

    def __init__(self, authenticator: wire.Authenticator, node: "Node", sessions: Sessions) -> None:
        self._authenticator, self._node, self._sessions = authenticator, node, sessions
        self._going: set[asyncio.Task[None]] = set()

    @wire.streaming
    async def Meet(
        self, request_iterator: AsyncIterator[pb.PsiMessage], context: Any
    ) -> AsyncIterator[pb.PsiMessage]:
        """See psi.proto."""
        member = self._authenticator.member(context)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "hello":
            raise invalid("a session begins with hello")
        key, session = bytes(first.hello.contract), bytes(first.hello.session)
        if len(key) != 32 or len(session) != psi.SESSION:
            raise invalid(f"hello names a contract by 32 bytes and a session by {psi.SESSION}")
        if first.hello.form != form():
            raise Refused(
                f"identifiers are normalised in another form there ({form_text(first.hello.form)}) than here "
                f"({form_text(form())}), so that people in common would be missed: install the same release",
                "FORM",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        try:
            held = self._node.rules.meet(member, key)
        except Refused:
            await self._node.gate.decide(_ask(member, key, session))  # refuses, on record
            raise
        out: asyncio.Queue[pb.PsiMessage | None] = asyncio.Queue(maxsize=4)

        exchanged = gone = False

        async def read() -> pb.PsiMessage | None:
            return await anext(aiter(request_iterator), None)

        async def write(message: pb.PsiMessage | None) -> None:
            if gone:
                raise NodeError("the session was broken off", "BROKEN")
            await out.put(message)

        async def finish() -> None:
            nonlocal exchanged
            exchanged = True
            with contextlib.suppress(NodeError):  # the caller has all that it wanted, or does not want it
                await write(None)

        async def hold() -> None:
            try:
                await self._sessions.hold(held, session, member, False, read, write, finish, lambda *_: None)
            finally:
                if not exchanged:  # the caller may be gone, with nobody to empty the queue
                    while out.full():
                        out.get_nowait()
                    out.put_nowait(None)

        task = asyncio.create_task(hold())
        self._going.add(task)
        task.add_done_callback(self._gone)
        try:
            while (message := await out.get()) is not None:
                yield message
            if not exchanged:
                await task  # raises what went wrong
        except (PeerError, Refused):
            raise
        except NodeError as error:  # about this side's own rows: the other is told no more than that
            raise Refused(
                "the other side could not hold the session", "FAILED", grpc.StatusCode.FAILED_PRECONDITION
            ) from error
        finally:
            gone = True
            while not out.empty():  # whoever waits to write goes on
                out.get_nowait()
            if not exchanged:
                task.cancel()

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._going.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a session of sets ended: %s", error)


class PsiAdminService(psi_pb2_grpc.PsiAdminServicer):
    """On the node's socket."""

    def __init__(self, node: "Node", sessions: Sessions) -> None:
        self._node, self._sessions = node, sessions

    @wire.streaming
    async def Run(self, request: pb.PsiRunRequest, context: Any) -> AsyncIterator[pb.PsiProgress]:
        """Progress, then the outcome."""
        node = self._node
        held = node.contracts.find(request.contract)
        if held.kind != PSI:
            raise invalid(f"{held.name} is not about sets")
        variant = _VARIANTS[held.terms.psi.variant]
        if request.variant not in ("", variant):
            raise invalid(f"{held.name} is about {variant}, not {request.variant}")
        own = str(node.home.name)
        member = node.peers.find(next(each for each in held.terms.parties if each != own), own)
        node.rules.meet(member, held.hash)
        session = secrets.token_bytes(16)
        asked = request.SerializeToString(deterministic=True)
        action = Action("PsiAdmin/Run", asked, f"compare sets under {held.name}", {})
        begun = await asyncio.to_thread(node.actions.begin, action)
        steps: asyncio.Queue[pb.PsiProgress | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        last = [0.0]

        def tell(phase: str, done: int, total: int) -> None:
            now = time.monotonic()
            if done == total or now - last[0] > 0.1:
                last[0] = now
                loop.call_soon_threadsafe(
                    steps.put_nowait, pb.PsiProgress(phase=phase, done=done, total=total)
                )

        ended = asyncio.Event()
        task = asyncio.create_task(self._meet(held, session, member, tell, ended))
        task.add_done_callback(lambda _task: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
            yield pb.PsiProgress(phase="done", outcome=wire.struct(await task))
        except BaseException:
            if not ended.is_set():  # else it is on record, and its outcome is kept
                node.actions.break_off(begun)
            raise
        finally:
            task.cancel()

    async def _meet(
        self, held: Held, session: bytes, member: Member, tell: Tell, ended: asyncio.Event
    ) -> dict[str, Any]:
        """`ended` is set once both sides have everything."""
        call = self._node.peers.get(member).psi.Meet(timeout=limits.MEETING_SECONDS)

        async def read() -> pb.PsiMessage | None:
            message = await call.read()
            return message if isinstance(message, pb.PsiMessage) else None

        async def finish() -> None:
            """The other side has everything once it has ended the call well."""
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            if await call.code() is not grpc.StatusCode.OK:
                raise failed(member, await _error(call))
            ended.set()

        try:
            return await self._sessions.hold(held, session, member, True, read, call.write, finish, tell)
        except grpc.aio.AioRpcError as error:
            raise failed(member, error) from error
        except (PeerError, NodeError, asyncio.InvalidStateError) as error:
            if isinstance(error, PeerFailed):
                raise
            if call.done() and await call.code() is not grpc.StatusCode.OK:
                raise failed(member, await _error(call)) from error
            raise
        finally:
            call.cancel()

    @wire.unary
    async def Sessions(self, request: pb.PsiSessionsRequest, context: Any) -> Struct:
        """Newest first."""
        return wire.struct({"sessions": await asyncio.to_thread(self._sessions.all)})

    @wire.streaming
    async def Outcome(self, request: pb.PsiOutcomeRequest, context: Any) -> AsyncIterator[pb.PsiOutcome]:
        """Rows of this institution's own file."""
        asked = request.SerializeToString(deterministic=True)
        action = Action("PsiAdmin/Outcome", asked, "read the outcome of a session", {})
        found = await asyncio.to_thread(self._sessions.rows, request.session)
        await asyncio.to_thread(self._node.actions.begin, action)
        for message in found:
            yield message


def check_terms(terms: contract_pb2.Contract) -> None:
    """Raise `Refused` for a session that this node could not hold."""
    adds = terms.psi.variant == contract_pb2.PsiTerms.VARIANT_SUM
    if adds and importlib.util.find_spec("phe") is None:
        raise Refused("sums need the extra `vertical`, which is not installed here", "EXTRA")


def _workspace(place: Path, plan: Plan) -> "Workspace":
    # With numpy, which nothing else of a node needs: it is loaded by the first session.
    from .workspace import Workspace

    return Workspace(place, values=bool(plan.own.values), names=plan.aligns)


def _unheard(work: "asyncio.Future[Any]") -> None:
    """Of an outcome that nobody waits for any more."""
    if not work.cancelled() and (error := work.exception()) is not None:
        _log.error("the outcome of a session could not be kept: %s", error)


def _messages(rows: list[int], cells: list[str], ids: list[bytes]) -> Iterator[pb.PsiOutcome]:
    """Of columns; `ids` may be empty."""
    for i in range(0, len(rows), _ROWS_A_MESSAGE):
        part = slice(i, i + _ROWS_A_MESSAGE)
        yield pb.PsiOutcome(number=rows[part], value=cells[part], id=ids[part])


def _parsed(content: bytes) -> Iterator[pb.PsiOutcome]:
    """Messages as they were kept: each after its length in four bytes."""
    start = 0
    while start < len(content):
        end = start + 4 + int.from_bytes(content[start : start + 4], "big")
        yield pb.PsiOutcome.FromString(content[start + 4 : end])
        start = end


def _place(member: Member, contract: bytes, session: bytes) -> str:
    """A file's name: sessions are told apart by both parties and the contract, not by what one of them has chosen."""
    return hashlib.sha256(frame(member.id, contract, session)).hexdigest()[:32]


def _state(plan: Plan) -> tuple[int, ...]:
    """To see that a file is still the one that was read."""
    try:
        found = plan.column.path.stat()
    except OSError as error:
        raise ConfigError(f"{plan.column.path}: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _ask(member: Member, contract: bytes, session: bytes) -> Ask:
    return Ask(member, MEET, contract.hex(), 0, 0, session, contract)


async def _error(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
