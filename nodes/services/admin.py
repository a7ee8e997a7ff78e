"""Admin: what the node's own people ask of it, over the 0600 socket."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import MessageToDict as as_fields
from google.protobuf.struct_pb2 import Struct
from lianfang.v1 import admin_pb2 as pb
from lianfang.v1 import admin_pb2_grpc, ledger_pb2

from protocols import statement
from protocols.encoding import frame
from protocols.identifiers import normalise, recognise
from protocols.label import Basis, Category, Reason, Status, slug
from protocols.ledger import events

from .. import limits, report, words
from ..errors import NodeError, Refused, invalid
from ..holder.epochs import SealedBatch
from ..holder.lists import ImportOutcome, StoredEntry, today
from ..holder.rows import Prepared, RowOptions, prepare_message
from ..ledger.book import random_id
from ..people.actions import Action, Begun
from ..querier.sync import SyncStep
from . import wire
from .feed import Feed, threaded

if TYPE_CHECKING:
    from ..node import Node

_log = logging.getLogger("lianfang.admin")

_ROWS_A_MESSAGE = 1_000


def _identifiers(node: "Node", list_name: str, rows: Iterable[pb.Row], several: bool = False) -> list[bytes]:
    """Canonical bytes in the form of a list; a row without a kind may be `several`. Raises `Refused` or an `IdentifierError`."""
    region = node.home.config.lists.default_region
    file = node.institutions.of(node.lists.form(list_name))
    if file is None:
        raise Refused(f"the entries of {list_name} wait to be normalised anew: try again in a minute", "FORM")
    directory, found = file.load(), []
    for row in rows:
        given = (row.value, row.country, row.institution, region, directory)
        kinds = [words.kind_of(row.kind) or row.kind] if row.kind else recognise(*given)
        if not kinds:
            raise invalid("a value is not recognised: give its kind")
        if len(kinds) > 1 and not several:
            raise invalid(f"a value may be {' or '.join(kinds)}: give its kind")
        found += [normalise(kind, *given).canonical for kind in kinds]
    return found


class AdminService(admin_pb2_grpc.AdminServicer):
    """Thin: reads the request, calls the node's parts, writes the answer."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._asking, self._screenings = node.asking, node.screenings

    # -- reports ---------------------------------------------------------------------------------------------

    @wire.unary
    async def Status(self, request: pb.StatusRequest, context: Any) -> Struct:
        """Who this node is, its lists, epochs and copies."""
        return wire.struct(await asyncio.to_thread(report.status, self._node))

    @wire.unary
    async def Peers(self, request: pb.PeersRequest, context: Any) -> Struct:
        """Members, and with `probe` whether each answers."""
        return wire.struct(await report.peers(self._node, request.probe))

    @wire.unary
    async def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> Struct:
        """What only the running node knows for `doctor`."""
        return wire.struct(await report.diagnose(self._node))

    @wire.unary
    async def ListStats(self, request: pb.ListRequest, context: Any) -> Struct:
        """Counts of a list and its sealing."""
        return wire.struct(await asyncio.to_thread(report.list_statistics, self._node, request.list))

    # -- own lists -------------------------------------------------------------------------------------------

    @wire.streaming
    async def Import(
        self, request_iterator: AsyncIterator[pb.ImportRequest], context: Any
    ) -> AsyncIterator[pb.ImportProgress]:
        """Rows in, progress out. Nothing is stored unless the file arrives whole."""
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "start":
            raise invalid("an import begins with its start")
        start = first.start
        await asyncio.to_thread(self._node.lists.create, start.list)
        feed = Feed()
        reader = asyncio.create_task(feed.read(request_iterator))
        try:
            async for progress in threaded(lambda tell: self._import(start, feed, tell)):
                yield progress
        finally:
            await asyncio.to_thread(self._node.lists.forget_empty, start.list)  # where nothing came of it
            feed.abort()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    def _import(
        self, start: pb.ImportStart, feed: "Feed", tell: Callable[[pb.ImportProgress], None]
    ) -> pb.ImportProgress:
        node = self._node
        settings = node.home.config.lists
        options = RowOptions(
            start.default_region or settings.default_region,
            settings.phone_valid_days,
            start.official,
            today(),
            node.institutions.current,
        )
        root = node.keys.list_vault.root

        def prepared() -> Iterator[Prepared]:
            done = 0
            work = ((root, rows, options) for rows in feed.chunks())
            for chunk in node.workers.stream(prepare_message, work):
                done += len(chunk[0]) + len(chunk[1])
                tell(pb.ImportProgress(phase="check", done=done, total=feed.total))
                yield chunk

        begun: Begun | None = None

        def check(outcome: ImportOutcome) -> None:
            nonlocal begun
            leaving = outcome.leaving if node.lists.is_active(start.list) else 0
            content: dict[str, Any] = {
                name: getattr(outcome, name) for name in ("rows", "added", "changed", "withdrawn")
            }
            content |= as_fields(start)
            if leaving:
                refs = outcome.leaving_refs[: limits.ACTION_SHOWN]
                content["leaving"] = node.lists.described(start.list, refs)
            title = f"import {outcome.rows:,} rows into {start.list}; {leaving:,} entries leave it"
            # What it does depends on what the list holds: that is approved with it.
            state = node.lists.seq(start.list)
            asked = frame(start.SerializeToString(deterministic=True), feed.digest(), state, leaving)
            begun = node.actions.begin(Action("Admin/Import", asked, title, content, leaving))

        with contextlib.ExitStack() as held:

            def store() -> None:
                tell(pb.ImportProgress(phase="store", total=feed.total))
                held.enter_context(node.lists.lock(start.list))  # only once all rows have arrived
                node.lists.renormalise(start.list)
                if node.lists.form(start.list) != options.directory.form:
                    raise Refused(
                        "the network's directory of institutions changed meanwhile: import again",
                        "FORM",
                        grpc.StatusCode.ABORTED,
                    )

            try:
                outcome = node.lists.import_rows(
                    start.list,
                    prepared(),
                    start.replace,
                    start.skip_bad,
                    lambda: feed.refused,
                    store,
                    check,
                )
            except BaseException:
                node.actions.break_off(begun)
                raise
            batches = [] if outcome.refused else self._seal(start.list, tell)
            active = node.lists.is_active(start.list)
        outcome.rows += feed.refused
        published = self._published(batches, tell)
        rows = [pb.BadRow(number=bad.number, column=bad.column, reason=bad.reason) for bad in outcome.bad]
        for i in range(0, len(rows), _ROWS_A_MESSAGE):
            tell(pb.ImportProgress(phase="bad", bad=rows[i : i + _ROWS_A_MESSAGE]))
        return pb.ImportProgress(
            phase="done",
            done=outcome.rows,
            total=outcome.rows,
            result=_result(outcome, batches, published, active, feed.refused),
        )

    def _seal(self, name: str, tell: Callable[[pb.ImportProgress], None]) -> list[SealedBatch]:
        return self._node.epochs.seal_changes(
            name,
            lambda phase, done, total: tell(pb.ImportProgress(phase=phase, done=done, total=total)),
        )

    def _published(self, batches: list[SealedBatch], tell: Callable[[pb.ImportProgress], None]) -> bool:
        """Wait until what was sealed stands in the log's published head, where others find it."""
        leaves = [events.statement_leaf(batch.descriptor) for batch in batches]
        if leaves:
            tell(pb.ImportProgress(phase="publish"))
        return all(self._node.log.wait_for(leaf) for leaf in leaves)

    @wire.streaming
    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> AsyncIterator[pb.Entry]:
        """Entries with their identifiers in clear, for the node's own people."""
        node = self._node
        asked = request.SerializeToString(deterministic=True)
        await asyncio.to_thread(
            node.actions.begin, Action("Admin/ListEntries", asked, f"read entries of {request.list}", {})
        )
        only = await asyncio.to_thread(_identifiers, node, request.list, request.only, True)
        entries = node.lists.entries(request.list, only, request.limit)
        while chunk := await asyncio.to_thread(_take, entries, 500):
            for entry in chunk:
                yield _entry(entry)

    @wire.streaming
    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> AsyncIterator[pb.ImportProgress]:
        """Change the status of entries; what leaves, leaves with the batch that is sealed at once."""
        status = words.STATUSES.get(words.key(request.status or "withdrawn"))
        reason = words.REASONS.get(words.key(request.reason or "operator-decision"))
        if status is None or reason is None:
            raise invalid("status or reason is not one of the known words")
        if not request.only and not request.entry_refs:
            raise invalid("no entry is named")

        def work(tell: Callable[[pb.ImportProgress], None]) -> pb.ImportProgress:
            node, count = self._node, len(request.only) + len(request.entry_refs)
            title = f"{slug(status)}: {count:,} entries of {request.list} ({slug(reason)})"
            asked = request.SerializeToString(deterministic=True)
            named = [f"{row.kind} {row.value}"[: limits.ACTION_CHARACTERS] for row in request.only]
            named += node.lists.described(request.list, list(request.entry_refs)[: limits.ACTION_SHOWN])
            content = {"entries": named[: limits.ACTION_SHOWN]}
            with node.lists.lock(request.list):
                counted = count if node.lists.is_active(request.list) else 0
                with node.actions.doing(Action("Admin/Withdraw", asked, title, content, counted)):
                    only = _identifiers(node, request.list, request.only)
                    changed = node.lists.set_status(
                        request.list, only, list(request.entry_refs), status, reason
                    )
                batches = self._seal(request.list, tell) if changed else []
            if changed:
                _record_appeal(node, request.list, (status, reason), changed)
            published = self._published(batches, tell)
            result = _result(ImportOutcome(changed=changed), batches, published)
            return pb.ImportProgress(phase="done", result=result)

        async for progress in threaded(work):
            yield progress

    @wire.streaming
    async def Rotate(self, request: pb.RotateRequest, context: Any) -> AsyncIterator[pb.ImportProgress]:
        """Open the next key epoch and seal the list anew."""

        def work(tell: Callable[[pb.ImportProgress], None]) -> pb.ImportProgress:
            asked = request.SerializeToString(deterministic=True)
            with self._node.actions.doing(Action("Admin/Rotate", asked, f"rotate {request.list}", {})):
                batch = self._node.epochs.rotate(
                    request.list,
                    request.close_now,
                    lambda phase, done, total: tell(pb.ImportProgress(phase=phase, done=done, total=total)),
                )
            published = self._published([batch], tell)
            return pb.ImportProgress(phase="done", result=_result(ImportOutcome(), [batch], published))

        async for progress in threaded(work):
            yield progress

    @wire.streaming
    async def Activate(self, request: pb.ListRequest, context: Any) -> AsyncIterator[pb.ImportProgress]:
        """Offer a new list to others, with what it holds now. Takes two people."""

        def work(tell: Callable[[pb.ImportProgress], None]) -> pb.ImportProgress:
            node = self._node
            with node.lists.lock(request.list):
                if node.lists.is_active(request.list):
                    raise Refused(
                        f"the list {request.list} is active already",
                        "ACTIVE",
                        grpc.StatusCode.FAILED_PRECONDITION,
                    )
                live, state = node.lists.count_live(request.list), node.lists.seq(request.list)
                action = Action(
                    "Admin/Activate",
                    frame(request.list, state),  # what was imported since was not approved
                    f"activate the list {request.list} with {live:,} entries",
                    report.list_statistics(node, request.list),
                )
                with node.actions.doing(action, second=True):
                    node.lists.activate(request.list)
                batches = self._seal(request.list, tell)
            published = self._published(batches, tell)
            return pb.ImportProgress(phase="done", result=_result(ImportOutcome(), batches, published))

        async for progress in threaded(work):
            yield progress

    # -- others' lists -----------------------------------------------------------------------------------------

    @wire.streaming
    async def Sync(self, request: pb.SyncRequest, context: Any) -> AsyncIterator[pb.SyncProgress]:
        """Sync named members, or all; each failure is reported by itself."""
        node = self._node
        own = str(node.home.name)
        named = [node.peers.find(text, own) for text in request.members]
        members = named or node.peers.others(own)
        steps: asyncio.Queue[SyncStep | None] = asyncio.Queue()

        async def one(member: Any) -> None:
            try:
                copies = await node.syncer.sync(member, steps.put_nowait)
                if not copies:
                    detail = "offers no list to this node"
                    steps.put_nowait(SyncStep(member.name.name, state="none", detail=detail))
            except Exception as error:
                if not isinstance(error, NodeError):
                    _log.exception("sync of %s failed", member.name.name)
                steps.put_nowait(SyncStep(member.name.name, state="failed", detail=str(error)))
            finally:
                steps.put_nowait(None)

        tasks = [asyncio.create_task(one(member)) for member in members]
        try:
            remaining = len(tasks)
            while remaining:
                step = await steps.get()
                if step is None:
                    remaining -= 1
                    continue
                yield pb.SyncProgress(
                    member=step.member,
                    list=step.list,
                    epoch=step.epoch,
                    batch=step.batch,
                    bytes_done=step.bytes_done,
                    bytes_total=step.bytes_total,
                    state=step.state,
                    detail=step.detail,
                    additions=step.additions,
                    removals=step.removals,
                )
        finally:
            for task in tasks:
                task.cancel()

    @wire.streaming
    async def Query(self, request: pb.QueryRequest, context: Any) -> AsyncIterator[pb.QueryEvent]:
        """Plan first, then answers as they come, then one end for each holder."""
        async for event in self._asking.events(request):
            yield event

    @wire.unary
    async def Ask(self, request: pb.QueryRequest, context: Any) -> pb.QueryReply:
        """A small question's events in one message: a stream costs a caller that waits for its end more than it tells."""
        if len(request.items) > limits.BATCH_INLINE:
            raise invalid(f"at most {limits.BATCH_INLINE} values are asked so; more of them by Query")
        return pb.QueryReply(events=await self._asking.collected(request, context.time_remaining()))

    @wire.unary
    async def StartScreening(self, request: pb.ScreeningRequest, context: Any) -> pb.ScreeningStarted:
        """A bulk question that goes on by itself; takes two people."""
        return await self._screenings.start(request)

    @wire.unary
    async def Screenings(self, request: pb.ScreeningsRequest, context: Any) -> pb.ScreeningsReply:
        """All screenings and how far they are."""
        return await asyncio.to_thread(self._screenings.shown)

    @wire.unary
    async def StopScreening(self, request: pb.ScreeningResultsRequest, context: Any) -> pb.ScreeningsReply:
        """End a screening; its results stay."""
        return await self._screenings.stop(request.id)

    @wire.streaming
    async def ScreeningResults(
        self, request: pb.ScreeningResultsRequest, context: Any
    ) -> AsyncIterator[pb.ScreeningResult]:
        """What a screening has so far, to who asked."""
        async for each in self._screenings.results(request.id):
            yield each


# -- entries and imports ---------------------------------------------------------------------------------------


def _take(entries: Iterator[StoredEntry], count: int) -> list[StoredEntry]:
    return [entry for _, entry in zip(range(count), entries, strict=False)]


def _entry(entry: StoredEntry) -> pb.Entry:
    return pb.Entry(
        kind=entry.identifier.kind.value,
        value=entry.identifier.value,
        category=slug(Category(entry.category)),
        severity=entry.severity,
        confidence=entry.confidence,
        basis=slug(Basis(entry.basis)),
        status=slug(Status(entry.status)),
        observed_on=report.date_text(entry.observed_on),
        valid_until=report.date_text(entry.valid_until),
        reason=slug(Reason(entry.reason)),
        reference=entry.own_reference,
        entry_ref=entry.ref,
    )


def _record_appeal(node: "Node", list_name: str, now: tuple[Status, Reason], changed: int) -> None:
    """Entries that became contested, and what came of it, are events of the log."""
    status, reason = now
    kind = ledger_pb2.EVENT_TYPE_APPEAL_OUTCOME
    if status is Status.CONTESTED:
        kind = ledger_pb2.EVENT_TYPE_APPEAL
    elif reason is not Reason.APPEAL_UPHELD and status is not Status.ACTIVE:
        return
    said = f"{slug(status)}, {slug(reason)}"
    entry = node.log.prepare(kind, "", random_id(), resource=list_name, count=changed, reason=said)
    node.writer.submit(lambda connection: node.log.record(connection, entry)).result()


def _result(
    outcome: ImportOutcome,
    batches: list[SealedBatch],
    published: bool,
    active: bool = True,
    unread: int = 0,  # bad rows that the reader refused before the node saw them
) -> pb.ImportResult:
    return pb.ImportResult(
        inactive=not active,
        unpublished=not published,
        rows=outcome.rows,
        added=outcome.added,
        changed=outcome.changed,
        unchanged=outcome.unchanged,
        withdrawn=outcome.withdrawn,
        duplicates=outcome.duplicates,
        merged=outcome.merged,
        held=outcome.held,
        bad=len(outcome.bad) + unread,
        refused=outcome.refused,
        epoch=statement.parse(batches[-1].descriptor.statement).epoch if batches else 0,
        batch=batches[-1].number if batches else 0,
        sealed=sum(batch.sealed for batch in batches),
        tombstones=sum(batch.tombstones for batch in batches),
    )
