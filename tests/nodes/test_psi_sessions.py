"""Sessions over sets without a network: two sides in one process, and what goes wrong between them."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from lianfang.v1 import contract_pb2
from lianfang.v1 import psi_pb2 as pb

from nodes.errors import NodeError
from nodes.identity.keys import Vault
from nodes.psi import meeting, service, workspace
from nodes.psi.service import PsiService, Sessions
from protocols.identifiers import form

_TERMS = contract_pb2.PsiTerms
_SESSION = bytes(range(16))


class Inline:
    """Workers that work at once."""

    def stream(self, function, arguments, ahead=2):
        return (function(*each) for each in arguments)


class Side:
    """What a node gives its sessions."""

    def __init__(self, folder: Path, name: str, numbers) -> None:
        folder.mkdir()
        path = folder / "column.csv"
        path.write_text("mobile\n" + "".join(f"139{i:08d}\n" for i in numbers))
        self.recorded: list[str] = []
        self.name, self.folder = name, folder / "psi"
        learn = SimpleNamespace(datasets={"mine": SimpleNamespace(path=str(path))})
        config = SimpleNamespace(learn=learn, lists=SimpleNamespace(default_region="CN"))
        self.node = SimpleNamespace(
            home=SimpleNamespace(
                name=name,
                data=folder,
                file=folder / "node.toml",
                config=config,
                datasets=lambda: config.learn.datasets,
            ),
            gate=SimpleNamespace(decide=self._decide, check_meeting=lambda *_: None),
            rules=SimpleNamespace(meet=lambda *_: held()),
            log=SimpleNamespace(prepare=lambda *_, **fields: fields["reason"], record=lambda *_: None),
            writer=SimpleNamespace(
                submit=lambda work: self.recorded.append(work.__closure__[0].cell_contents)
            ),
            workers=Inline(),
            keys=SimpleNamespace(vault=Vault(os.urandom(32))),
        )
        self.sessions = Sessions(self.node)

    async def _decide(self, _ask) -> None:
        return None

    def left(self) -> list[str]:
        return sorted(path.suffix for path in self.folder.iterdir())


def held() -> SimpleNamespace:
    inputs = [_TERMS.Input(party=each, dataset="mine", column="mobile", max_elements=500) for each in "ab"]
    terms = _TERMS(variant=_TERMS.VARIANT_INTERSECTION, kind="phone", inputs=inputs, output_to=["a", "b"])
    contract = contract_pb2.Contract(parties=["a", "b"], psi=terms)
    return SimpleNamespace(hash=bytes(32), terms=contract, name="c", kind="psi")


def member(name: str) -> SimpleNamespace:
    return SimpleNamespace(id=name, name=SimpleNamespace(name=name))


@pytest.fixture
def sides(tmp_path) -> tuple[Side, Side]:
    return Side(tmp_path / "a", "a", range(40)), Side(tmp_path / "b", "b", range(25, 90))


def begin(sides, session=_SESSION) -> list[asyncio.Task]:
    """Both sides' sessions; each finishes for itself."""
    lines: list[asyncio.Queue] = [asyncio.Queue(), asyncio.Queue()]
    lines[1].put_nowait(None)  # hello came with the call

    async def finish() -> None:
        return None

    tasks = []
    for place, side in enumerate(sides):

        async def read(place=place):
            while (message := await lines[place].get()) is None or message.WhichOneof("part") == "hello":
                if message is not None:
                    return message
            return message

        async def write(message, place=place):
            if place == 1 or message.WhichOneof("part") != "hello":
                lines[1 - place].put_nowait(message)

        holding = side.sessions.hold(
            held(), session, member("ba"[place]), place == 0, read, write, finish, lambda *_: None
        )
        tasks.append(asyncio.create_task(holding))
    return tasks


def numbers(side: Side) -> list[str]:
    return [value for part in side.sessions.rows(_SESSION.hex()) for value in part.value]


def test_both_learn_what_they_have_in_common_and_keep_nothing_else(sides):
    async def work():
        return await asyncio.gather(*begin(sides))

    for side, outcome in zip(sides, asyncio.run(work()), strict=True):
        assert (outcome["common"], outcome["repeated"]) == (15, 0)
        assert numbers(side) == [f"139{i:08d}" for i in range(25, 40)]
        assert side.left() == [".outcome", ".rows"]
        assert side.recorded == ["ended"]
        side.sessions.clear()  # as at the next start
        assert side.left() == [".outcome", ".rows"]


def test_an_outcome_is_kept_although_nobody_waits_for_it_any_more(sides, monkeypatch):
    reached, released, compare = threading.Event(), threading.Event(), meeting.Meeting.compare

    def slow(self, outcome):
        reached.set()
        assert released.wait(20)
        return compare(self, outcome)

    monkeypatch.setattr(meeting.Meeting, "compare", slow)

    async def work():
        tasks = begin(sides)
        await asyncio.to_thread(reached.wait, 20)
        await asyncio.sleep(0.2)  # until both are there
        assert not any(side.sessions._with for side in sides)  # free for the next session
        tasks[0].cancel()
        asyncio.get_running_loop().call_later(0.2, released.set)
        stopped = asyncio.gather(*(side.sessions.stop() for side in sides))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError)
        await stopped

    asyncio.run(work())
    for side in sides:
        assert len(numbers(side)) == 15
        assert side.left() == [".outcome", ".rows"]
        assert side.recorded == ["ended"]


def test_an_outcome_that_cannot_be_written_leaves_nothing(sides, monkeypatch):
    write = service.write_atomic

    def full(path, *rest):
        if path.suffix == ".outcome" and path.parent == sides[0].folder:
            raise OSError(28, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(service, "write_atomic", full)

    async def work():
        return await asyncio.gather(*begin(sides), return_exceptions=True)

    ended = asyncio.run(work())
    assert isinstance(ended[0], OSError)
    assert sides[0].left() == []
    assert sides[1].left() == [".outcome", ".rows"]


def test_what_a_crash_has_left_goes_at_the_next_start(sides):
    side = sides[0]
    side.folder.mkdir()
    for name in ("x.rows", "x.aligned", ".x.outcome.ab12.tmp", "y.rows", "y.outcome"):
        (side.folder / name).write_bytes(b"")
    workspace.Workspace(side.folder / "z.work")
    side.sessions.clear()
    assert sorted(path.name for path in side.folder.iterdir()) == ["y.outcome", "y.rows"]


def test_a_disk_without_room_for_the_points_ends_it_on_both_sides(sides, monkeypatch):
    made = workspace.Records

    def full(path, width):
        if path.name == "common" and sides[0].folder in path.parents:
            raise OSError(28, "No space left on device")
        return made(path, width)

    monkeypatch.setattr(workspace, "Records", full)

    async def work():
        tasks = begin(sides)
        with pytest.raises(OSError, match="No space"):
            await tasks[0]
        tasks[1].cancel()  # as the stream does when the other has gone
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(work())
    for side in sides:
        assert side.left() == []
        assert side.recorded == ["broke off"]
        assert not side.sessions._with


@pytest.mark.parametrize("taken", [0, 2, 6])
def test_a_caller_that_goes_holds_nobody_up(sides, taken):
    """The callee gives more messages than are waited for, and finishes."""
    ended = asyncio.Event()

    async def hold(held, session, member, calls, read, write, finish, tell):
        try:
            for _ in range(6):
                await write(pb.PsiMessage(points=bytes(32)))
            await finish()
        except NodeError:
            pass
        finally:
            ended.set()

    async def calls():
        yield pb.PsiMessage(hello=pb.PsiHello(contract=bytes(32), session=_SESSION, form=form()))
        await asyncio.sleep(60)

    async def work():
        node, sessions = sides[0].node, SimpleNamespace(hold=hold)
        offered = PsiService(SimpleNamespace(member=lambda _: member("b")), node, sessions)
        messages = offered.Meet(calls(), SimpleNamespace())
        for _ in range(taken):
            await anext(messages)
        if taken == 0:
            reading = asyncio.create_task(anext(messages))
            await asyncio.sleep(0.1)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await asyncio.sleep(0.1)
        await messages.aclose()
        await asyncio.wait_for(ended.wait(), 5)
        await asyncio.sleep(0.1)
        assert not offered._going

    asyncio.run(work())
