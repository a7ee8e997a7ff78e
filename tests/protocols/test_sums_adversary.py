"""A malicious coordinator against honest members: whatever it delivers, a sum that a member gets is the right one."""

import collections

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from lianfang.v1 import sums_pb2 as pb

from protocols.sums import cipher, modular
from protocols.sums.coordinator import Coordinator
from protocols.sums.errors import SumAborted
from tests.protocols.sums_driver import World

FOUR = World(4)
INDEX = st.integers(0, 3)
PICK = st.integers(0, 10_000)


def contribution(party: int, number: int) -> np.ndarray:
    return np.array([10**party, number, -party], dtype=np.int64)


class MaliciousCoordinator(RuleBasedStateMachine):
    """Members are honest. The coordinator runs the real one and drops, repeats, swaps, shifts, doubles, delays and
    restarts as it likes, shows different members different cohorts, and keeps every message for later."""

    @initialize(bfv=st.booleans(), ahead=st.integers(0, 120))
    def start(self, bfv, ahead):
        self.job = FOUR.job(bfv=bfv)
        self.bfv = bfv
        self.members = {name: FOUR.member(self.job, name) for name in FOUR.names}
        self.coordinator = Coordinator(self.job)
        self.up = {name: collections.deque() for name in FOUR.names}
        self.down = {name: collections.deque() for name in FOUR.names}
        self.kept = []
        self.ended = set()
        self.commits = {}
        self.sums = dict.fromkeys(FOUR.names, 0)
        for name in FOUR.names:
            self.relay(lambda name=name: self.coordinator.enter(name))
        self.progress(ahead)

    def relay(self, action):
        try:
            for party, message in action():
                self.down[party].append(message)
                self.kept.append(message)
        except SumAborted:
            pass

    def deliver(self, name, message):
        if name in self.ended:
            return
        member = self.members[name]
        try:
            self.say(name, member.receive(message))
        except SumAborted as error:
            assert error.phase
            assert error.reason
            self.ended.add(name)
            return
        result = member.result()
        if result is not None:
            self.sums[name] += 1
            cohort = [FOUR.names.index(each) for each in member.cohort]
            assert len(cohort) >= 3
            expected = sum(contribution(each, self.sums[name]) for each in cohort)
            assert result.tolist() == expected.tolist()

    def contribute(self, name):
        member = self.members[name]
        if name not in self.ended and member.ready:
            values = contribution(FOUR.names.index(name), self.sums[name] + 1)
            self.say(name, member.contribute(values, f"sum {self.sums[name] + 1}"))

    def say(self, name, messages):
        """A member answers for one upload of a sum: once it has committed, it neither uploads again nor opens another."""
        for message in messages:
            self.up[name].append(message)
            step = message.WhichOneof("step")
            if step == "commit":
                known = self.commits.setdefault((name, message.commit.number), message.commit.agreed)
                assert known == message.commit.agreed
            elif step == "upload":
                assert (name, message.upload.number) not in self.commits

    @rule(steps=st.integers(1, 60))
    def progress(self, steps):
        """So many messages arrive, in turns."""
        for step in range(steps):
            self.step_up(step % 4)
            self.step_down(step % 4)

    @rule(which=INDEX)
    def step_up(self, which):
        name = FOUR.names[which]
        self.contribute(name)
        if self.up[name]:
            message = self.up[name].popleft()
            self.relay(lambda: self.coordinator.receive(name, message))

    @rule(which=INDEX)
    def step_down(self, which):
        name = FOUR.names[which]
        if self.down[name]:
            self.deliver(name, self.down[name].popleft())

    def _coming(self, *steps):
        return any(m.WhichOneof("step") in steps for queue in self.down.values() for m in queue)

    def ahead_of(self, which):
        """What is on its way, to this member first."""
        order = FOUR.names[which:] + FOUR.names[:which]
        return [message for name in order for message in self.down[name]]

    @precondition(lambda self: any(self.down.values()))
    @rule(which=INDEX)
    def drop(self, which):
        if self.down[FOUR.names[which]]:
            self.down[FOUR.names[which]].popleft()

    @precondition(lambda self: any(self.down.values()))
    @rule(which=INDEX)
    def delay(self, which):
        self.down[FOUR.names[which]].rotate(-1)

    @precondition(lambda self: self.kept)
    @rule(which=INDEX, pick=PICK)
    def repeat(self, which, pick):
        """Any message that was ever sent to anybody."""
        self.deliver(FOUR.names[which], self.kept[pick % len(self.kept)])

    @precondition(lambda self: any(self.down.values()))
    @rule(which=INDEX, other=INDEX)
    def swap(self, which, other):
        left, right = FOUR.names[which], FOUR.names[other]
        self.down[left], self.down[right] = self.down[right], self.down[left]

    @precondition(lambda self: self._coming("chunk"))
    @rule(which=INDEX, amount=st.integers(1, modular.MODULUS - 1))
    def shift(self, which, amount):
        """Change the total. With BFV it can add ciphertexts that it has seen, without it anything."""
        for message in self.ahead_of(which):
            if message.WhichOneof("step") == "chunk":
                if self.bfv:
                    adder = cipher.CiphertextAdder()
                    adder.add(0, message.chunk.content)
                    adder.add(0, message.chunk.content)
                    message.chunk.content = adder.total(0)
                else:
                    values = cipher.unpack(message.chunk.content)
                    message.chunk.content = cipher.pack(modular.residues(values + amount))
                return

    @precondition(lambda self: self.coordinator.phase == "upload")
    @rule(which=INDEX)
    def double_an_upload(self, which):
        """One member's upload counts twice."""
        for message in self.up[FOUR.names[which]]:
            if message.WhichOneof("step") == "chunk" and self.coordinator._sum is not None:
                try:
                    self.coordinator._sum.adder.add(0, message.chunk.content)
                except ValueError:
                    pass
                return

    @precondition(lambda self: not any(self.sums.values()) or self.coordinator.phase in ("upload", "commit"))
    @rule(generation=st.integers(1, 4), which=INDEX)
    def restart_one(self, generation, which):
        self.deliver(FOUR.names[which], pb.SumToMember(begin=pb.SumBegin(generation=generation)))

    @precondition(lambda self: not any(self.sums.values()) or self.coordinator.phase in ("upload", "commit"))
    @rule(number=st.integers(1, 3), attempt=st.integers(1, 9), which=INDEX)
    def retry_one(self, number, attempt, which):
        retry = pb.SumRetry(number=number, attempt=attempt)
        self.deliver(FOUR.names[which], pb.SumToMember(retry=retry))

    @precondition(lambda self: not any(self.sums.values()) or self.coordinator.phase in ("upload", "commit"))
    @rule()
    def restart_all(self):
        self.relay(self.coordinator.begin)

    @rule(which=INDEX)
    def lose_and_go_on(self, which):
        """A late upload of whom it left out may come at any time after."""
        self.coordinator.lost(FOUR.names[which])
        self.relay(self.coordinator.give_up)

    @rule(which=INDEX)
    def come_back(self, which):
        name = FOUR.names[which]
        self.relay(lambda: self.coordinator.enter(name, self.members[name].opened))

    @precondition(lambda self: self._coming("cohort"))
    @rule(left_out=INDEX, which=INDEX)
    def different_cohorts(self, left_out, which):
        """One member is shown a cohort without another."""
        for message in self.ahead_of(which):
            if message.WhichOneof("step") == "cohort":
                members = [each for each in message.cohort.members if each.party != FOUR.names[left_out]]
                message.CopyFrom(pb.SumToMember(cohort=pb.SumCohort(members=members)))
                return

    @precondition(lambda self: self._coming("openings"))
    @rule(which=INDEX, keep=st.integers(0, 4))
    def fewer_openings(self, which, keep):
        for message in self.ahead_of(which):
            if message.WhichOneof("step") == "openings":
                del message.openings.openings[keep:]
                return

    def teardown(self):
        """Whatever was tried: of two honest members nobody else holds the key of their masks."""
        if not hasattr(self, "members"):
            return
        for name, member in self.members.items():
            for other, key in member._pairs.items():
                for third, held in self.members.items():
                    assert third in (name, other) or key not in held._pairs.values()


TestMaliciousCoordinator = MaliciousCoordinator.TestCase
TestMaliciousCoordinator.settings = settings(
    max_examples=100, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
