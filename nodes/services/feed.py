"""An import's rows from the stream to the thread that stores them, and its progress back."""

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from lianfang.v1 import admin_pb2 as pb

from .. import limits
from ..errors import invalid


class Feed:
    """Rows from the stream to the importing thread, a few chunks ahead."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=8)
        self._aborted = threading.Event()
        self.total = 0
        self.refused = 0
        self._hash = hashlib.sha256()

    async def read(self, requests: AsyncIterator[pb.ImportRequest]) -> None:
        """Put chunks until the end; a stream that stops before it is an error."""
        ended = False
        async for request in requests:
            part = request.WhichOneof("part")
            if part == "end":
                ended = True
                self.refused = request.end.refused
                if request.end.rows != self.total:
                    await self._put(invalid("rows were lost on the way"))
                break
            if part != "rows" or len(request.rows.rows) > limits.IMPORT_CHUNK:
                await self._put(invalid("rows are expected, in small messages"))
                return
            self.total += len(request.rows.rows)
            if self.total > limits.IMPORT_ROWS:
                await self._put(invalid(f"a file has at most {limits.IMPORT_ROWS} rows"))
                return
            data = request.rows.SerializeToString(deterministic=True)
            self._hash.update(data)
            await self._put(data)
        await self._put(None if ended else invalid("the file did not arrive whole; nothing was stored"))

    async def _put(self, item: bytes | Exception | None) -> None:
        while not self._aborted.is_set():
            try:
                self._queue.put_nowait(item)
                return
            except queue.Full:
                await asyncio.sleep(0.002)

    def digest(self) -> bytes:
        """Over all rows, once they have been read."""
        return self._hash.digest()

    def abort(self) -> None:
        """The caller has gone: the importing thread must not wait for more."""
        self._aborted.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(invalid("the import was interrupted; nothing was stored"))

    def chunks(self) -> Iterator[bytes]:
        """Chunks in order; raises what went wrong with the stream."""
        while True:
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._aborted.is_set():
                    raise invalid("the import was interrupted; nothing was stored") from None
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item


async def threaded(
    work: Callable[[Callable[[pb.ImportProgress], None]], pb.ImportProgress],
) -> AsyncIterator[pb.ImportProgress]:
    """Run `work` in a thread and yield its progress, thinned out, then its result."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[pb.ImportProgress | None] = asyncio.Queue()
    last: tuple[float, str] = (0.0, "")

    def tell(progress: pb.ImportProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if (
            progress.bad
            or progress.phase != last[1]
            or now - last[0] > 0.1
            or progress.done == progress.total
        ):
            last = (now, progress.phase)
            loop.call_soon_threadsafe(events.put_nowait, progress)

    task = asyncio.create_task(asyncio.to_thread(work, tell))
    task.add_done_callback(lambda _task: events.put_nowait(None))
    while (event := await events.get()) is not None:
        yield event
    yield task.result()
