"""The aggregation service on the wire: a process of its own, real streams; honest, broken and malicious."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from federation.errors import DataError, TrainingEnded
from federation.links import GrpcLink
from federation.rooms import drive
from federation.steps import Ask
from tests.protocols.sums_driver import World

ROOT = Path(__file__).resolve().parents[2]
JOB = b"\x05" * 32


class Service:
    def __init__(self, folder, world, how):
        self.world, self.job = world, world.job(hash=JOB, bfv=False)
        self.address = f"unix:{folder}/s"
        keys = folder / "keys.json"
        parties = {p.id: (p.signing_key.hex(), p.sealing_key.hex()) for p in self.job.parties}
        keys.write_text(json.dumps({"job": JOB.hex(), "parties": parties}))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.federation.evil_coordinator", self.address, str(keys), how],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def link(self, name):
        metadata = (("lianfang-party", name),)
        return GrpcLink(lambda: grpc.insecure_channel(self.address), JOB, metadata, timeout=60)

    def run(self, learners, links=None):
        """Every party's result, or the error it ended with."""

        def one(name):
            member = self.world.member(self.job, name)
            try:
                return drive(member, learners[name](name), (links or {}).get(name) or self.link(name))[0]
            except (TrainingEnded, DataError) as error:
                return error

        with ThreadPoolExecutor(len(learners)) as threads:
            return dict(zip(learners, threads.map(one, learners), strict=True))

    def close(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def service(request, tmp_path):
    made = Service(tmp_path, World(3), getattr(request, "param", "honest"))
    yield made
    made.close()


def adder(index, sums=3, length=4):
    def learn(_name):
        totals = []
        for number in range(sums):
            vector = np.arange(length, dtype=np.int64) * (index + 1) + number
            totals.append((yield Ask(vector, f"sum {number}")))
        return np.array(totals)

    return learn


def expected(count=3, sums=3, length=4):
    return [
        sum(np.arange(length) * (index + 1) + number for index in range(count)).tolist()
        for number in range(sums)
    ]


def learners(service, **settings):
    return {name: adder(i, **settings) for i, name in enumerate(service.world.names)}


def test_every_party_gets_every_sum(service):
    results = service.run(learners(service, length=20_000))
    for result in results.values():
        assert result.tolist() == expected(length=20_000)
    # The same job again: a new room, fresh keys.
    for result in service.run(learners(service)).values():
        assert result.tolist() == expected()


class Breaking(GrpcLink):
    """Loses its channel after so many messages, once."""

    after = 0

    def send(self, message):
        self.after -= 1
        if self.after == 0:
            self._channel.close()
        super().send(message)


@pytest.mark.parametrize("after", [2, 3, 4, 5, 6, 9, 14])
def test_a_stream_that_breaks_is_taken_up_again(service, after):
    name = service.world.names[1]
    link = Breaking(
        lambda: grpc.insecure_channel(service.address), JOB, (("lianfang-party", name),), timeout=60
    )
    link.after = after
    results = service.run(learners(service), {name: link})
    for result in results.values():
        assert not isinstance(result, Exception), result
        assert result.tolist() == expected()
    assert link.after <= 0


def test_a_link_whose_call_has_ended_does_not_wait_for_ever_to_send(service):
    link = service.link(service.world.names[0])
    link.open(0)
    link._call.cancel()
    from lianfang.v1 import sums_pb2 as pb

    from federation.rooms import LinkBroken

    chunk = pb.SumFromMember(chunk=pb.SumChunk(content=bytes(1000)))
    started = time.monotonic()
    with pytest.raises(LinkBroken):
        for _ in range(100):
            link.send(chunk)
    assert time.monotonic() - started < 20
    link.close()


class Leaving(GrpcLink):
    """Goes for good where it should open the second sum."""

    def send(self, message):
        if message.opening.number == 2:
            self._channel.close()
            raise TrainingEnded("gone")
        super().send(message)


@pytest.mark.parametrize("service", ["patient"], indirect=True)
def test_who_is_lost_when_a_sum_opens_is_not_waited_for_as_if_it_computed(service):
    name = service.world.names[1]
    link = Leaving(
        lambda: grpc.insecure_channel(service.address), JOB, (("lianfang-party", name),), timeout=60
    )
    results = service.run(learners(service, sums=9), {name: link})
    for other in (service.world.names[0], service.world.names[2]):
        assert f"{name}: did not answer in time" in str(results[other])


class Late(GrpcLink):
    """Loses its channel where it should open the closing sum, and comes back when the others have finished without."""

    late = False

    def send(self, message):
        if message.opening.number == 3 and not self.late:
            self.late = True
            self._channel.close()
            time.sleep(4)
        super().send(message)


def test_who_is_lost_when_the_last_sum_opens_may_still_fetch_it(service):
    name = service.world.names[1]
    link = Late(lambda: grpc.insecure_channel(service.address), JOB, (("lianfang-party", name),), timeout=60)
    results = service.run(learners(service, sums=2), {name: link})
    assert [result.tolist() for result in results.values()] == [expected(sums=2)] * 3
    assert link.late


@pytest.mark.parametrize("service", ["double", "shift", "split", "swap", "cohorts", "repeat"], indirect=True)
def test_a_malicious_coordinator_process_never_makes_a_member_accept_a_wrong_sum(service):
    results = service.run(learners(service))
    errors = [result for result in results.values() if isinstance(result, Exception)]
    assert errors
    assert all(isinstance(error, TrainingEnded) and len(str(error)) > 20 for error in errors)
    for result in results.values():
        if not isinstance(result, Exception):
            assert result.tolist() == expected()


def test_the_error_of_one_bank_reaches_the_others_without_its_rows(service):
    def broken(_name):
        yield Ask(np.zeros(4, dtype=np.int64), "sum 0")
        raise DataError(
            "rows.csv: row 7: column income is 1234.5", "its column income holds an infinite value"
        )

    chosen = learners(service)
    liar = service.world.names[2]
    chosen[liar] = broken
    results = service.run(chosen)
    for name in service.world.names[:2]:
        assert liar in str(results[name])
        assert "column income holds an infinite value" in str(results[name])
        assert "1234.5" not in str(results[name])


@pytest.mark.parametrize("service", ["called off"], indirect=True)
def test_who_comes_after_the_launch_was_called_off_does_not_wait_for_the_others(service):
    (name, learn), *_ = learners(service).items()
    assert "entry: a bank takes no part" in str(service.run({name: learn})[name])


def test_a_party_that_never_comes_ends_the_job_and_is_named(tmp_path):
    service = Service(tmp_path, World(3), "honest")
    try:
        chosen = dict(list(learners(service).items())[:2])
        threads = threading.active_count()
        results = service.run(chosen)
        assert all(f"missing: {service.world.names[2]}" in str(error) for error in results.values())
        assert threading.active_count() <= threads + 2
    finally:
        service.close()
