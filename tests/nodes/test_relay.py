"""The relay between a label holder and a learning process: whoever goes, the other one hears of it."""

import asyncio

import grpc
import pytest
from lianfang.v1 import vertical_pb2 as pb

from nodes.errors import Refused
from nodes.vertical.relay import Relay

JOB = bytes(32)


def frames(*texts):
    return [pb.VerticalFrame(data=text) for text in texts]


async def say(*messages, then=None):
    for message in messages:
        await asyncio.sleep(0)
        yield message
    if then is not None:
        await then.wait()


async def gather(stream):
    return [frame.data async for frame in stream]


def allowed():
    pass


def run(work):
    return asyncio.run(asyncio.wait_for(work, 10))


def test_each_side_gets_what_the_other_said_and_its_end():
    async def work():
        relay = Relay(5, 5)
        process = asyncio.create_task(gather(relay.attend(JOB, say(*frames(b"r1", b"r2", b"r3")))))
        holder = asyncio.create_task(gather(relay.work(JOB, say(*frames(b"a1", b"a2")), allowed)))
        return await holder, await process

    answered, asked = run(work())
    assert (answered, asked) == ([b"r1", b"r2", b"r3"], [b"a1", b"a2"])


def test_many_frames_wait_for_room():
    async def work():
        relay = Relay(5, 5)
        sent = frames(*(b"%d" % i for i in range(200)))
        over = asyncio.Event()
        process = asyncio.create_task(gather(relay.attend(JOB, say(then=over))))
        holder = asyncio.create_task(gather(relay.work(JOB, say(*sent), allowed)))
        asked = await process
        over.set()
        await holder
        return asked

    assert len(run(work())) == 200


@pytest.mark.parametrize("first", ["process", "holder"])
def test_nobody_waits_for_ever_for_the_other(first):
    async def work():
        relay = Relay(0.1, 5)
        never = asyncio.Event()
        stream = relay.attend(JOB, say(then=never)) if first == "process" else relay.work(JOB, say(), allowed)
        with pytest.raises(Refused) as caught:
            await gather(stream)
        assert not relay._waiting
        return caught.value.reason

    assert run(work()) == ("SILENT" if first == "process" else "NO_SEAT")


def test_silence_ends_a_run():
    """Who notices first refuses; the other one does, too, or sees it end."""

    async def work():
        relay, never = Relay(5, 0.1), asyncio.Event()
        return await asyncio.gather(
            gather(relay.attend(JOB, say(then=never))),
            gather(relay.work(JOB, say(then=never), allowed)),
            return_exceptions=True,
        )

    outcomes = run(work())
    refused = [each for each in outcomes if isinstance(each, Refused)]
    assert refused
    assert all("silent" in str(each) for each in refused)
    assert all(each == [] for each in outcomes if each not in refused)


def test_whoever_dies_the_other_ends():
    async def work():
        relay, never = Relay(5, 5), asyncio.Event()
        process = asyncio.create_task(gather(relay.attend(JOB, say(*frames(b"r1"), then=never))))
        holder = asyncio.create_task(gather(relay.work(JOB, say(*frames(b"a1"), then=never), allowed)))
        await asyncio.sleep(0.05)
        holder.cancel()
        assert await process == [b"a1"]
        process = asyncio.create_task(gather(relay.attend(JOB, say(*frames(b"r2"), then=never))))
        holder = asyncio.create_task(gather(relay.work(JOB, say(*frames(b"a2"), then=never), allowed)))
        await asyncio.sleep(0.05)
        process.cancel()
        assert await holder == [b"r2"]
        assert not relay._waiting

    run(work())


def test_a_contract_that_ends_ends_the_run_and_a_second_process_is_refused():
    async def work():
        relay, never = Relay(5, 5), asyncio.Event()
        process = asyncio.create_task(gather(relay.attend(JOB, say(then=never))))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="attended already"):
            await gather(relay.attend(JOB, say()))

        def ended():
            raise Refused("revoked", "CONTRACT")

        with pytest.raises(Refused, match="revoked"):
            await gather(relay.work(JOB, say(*frames(b"a1"), then=never), ended))
        await process

    run(work())


def test_a_stopping_node_ends_its_runs():
    async def work():
        relay, never = Relay(5, 5), asyncio.Event()
        process = asyncio.create_task(gather(relay.attend(JOB, say(then=never))))
        holder = asyncio.create_task(gather(relay.work(JOB, say(then=never), allowed)))
        await asyncio.sleep(0.05)
        relay.close()
        assert await process == await holder == []
        with pytest.raises(Refused) as caught:
            await gather(relay.attend(JOB, say()))
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE

    run(work())
