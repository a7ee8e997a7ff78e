"""The server application: starts a job at every node and gathers how it ended. It sees no sum, model or metric."""

import itertools
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from ..errors import JobError, TrainingEnded
from ..job import JobDescriptor

_log = logging.getLogger("lianfang.server")
NODES_SECONDS = 120.0  # for the nodes to come
_POLL = 0.2
ABSENT = "absent"  # said by a node that is no party of the job


def make(descriptor_of: Callable[[Context], bytes], nodes_of: Callable[[JobDescriptor], int]) -> ServerApp:
    """`descriptor_of` finds the job in a run's context; `nodes_of` says how many nodes it needs."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        job = JobDescriptor.read(descriptor_of(context))
        launch(grid, job, nodes_of(job))

    return app


def launch(
    grid: Grid,
    job: JobDescriptor,
    nodes: int,
    naming: AbstractContextManager[None] | None = None,
    trouble: Callable[[str], object] = lambda _why: None,
    name_of: Callable[[int], str] = str,
    timeout: float = 86_400.0,
) -> dict[int, str]:
    """Run a job of `nodes` nodes: all that are connected are asked, and who is no party says so.

    `naming` is held while messages are made; `trouble` hears of the first node that does not take part, so that
    the others need not wait for it; `name_of` says whose a node is. Returns outcomes by node id. Raises `TrainingEnded` with every node's reason.
    """
    ids = _wait_for(grid, nodes)
    record = RecordDict({"job": ConfigRecord({"descriptor": job.to_bytes()})})
    with naming or nullcontext():
        messages = [Message(content=record, dst_node_id=each, message_type=MessageType.TRAIN) for each in ids]
    pushed = [*grid.push_messages(messages)]
    if refused := [node for node, message in itertools.zip_longest(ids, pushed) if not message]:
        raise JobError(f"Flower did not take the task of {', '.join(map(name_of, refused))}")
    asked = dict(zip(pushed, ids, strict=True))
    waiting = set(asked)
    _log.info("job %s: asked %d nodes", job.hash().hex()[:12], len(messages))
    outcomes: dict[int, str] = {}
    told, end = False, time.monotonic() + timeout
    while waiting and time.monotonic() < end:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            node = asked[reply.metadata.reply_to_message_id]
            text = outcomes[node] = _outcome(reply, node, name_of)
            _log.info("node %d: %s", node, text)
            if text not in ("done", ABSENT) and not told:
                told = True
                trouble(text)
        time.sleep(_POLL)
    silent = [name_of(each) for each in ids if each not in outcomes]
    outcomes = {node: text for node, text in outcomes.items() if text != ABSENT}
    bad = sorted({text for text in outcomes.values() if text != "done"})
    if silent:
        bad.append(f"no answer from {', '.join(silent)}")
    if not bad and len(outcomes) < nodes:
        bad.append(f"{len(outcomes)} of {nodes} nodes are parties of this job")
    if bad:
        raise TrainingEnded("; ".join(bad))
    return outcomes


def _outcome(reply: Message, node: int, name_of: Callable[[int], str]) -> str:
    if reply.has_error():
        if reply.metadata.src_node_id == node:
            return f"failed: {reply.error.reason}"
        # Flower answers for a node whose heartbeat or reply is overdue.
        return f"failed: {name_of(node)}: did not answer in time ({reply.error.reason})"
    record = reply.content["outcome"]
    state, reason = str(record["state"]), str(record["reason"])
    return f"{state}: {reason}" if reason else state


def _wait_for(grid: Grid, nodes: int) -> list[int]:
    end = time.monotonic() + NODES_SECONDS
    while len(ids := sorted(grid.get_node_ids())) < nodes:
        if time.monotonic() > end:
            raise JobError(f"{len(ids)} of {nodes} nodes are connected")
        time.sleep(_POLL)
    return ids
