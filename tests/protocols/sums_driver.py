"""A job in memory: members, the coordinator, and one queue for each direction of each stream."""

import collections

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols.sums.coordinator import Coordinator
from protocols.sums.errors import SumAborted
from protocols.sums.job import Job, Party
from protocols.sums.members import Member


class World:
    """Keys of some parties, and jobs among them."""

    def __init__(self, count):
        self.names = [f"spiffe://test/bank/b{i:02d}" for i in range(count)]
        self.signing = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.sealing = {name: X25519PrivateKey.generate() for name in self.names}

    def job(self, **settings):
        parties = tuple(
            Party(
                name,
                self.signing[name].public_key().public_bytes_raw(),
                self.sealing[name].public_key().public_bytes_raw(),
            )
            for name in self.names
        )
        return Job(settings.pop("hash", b"\x07" * 32), parties, **settings)

    def member(self, job, name, **settings):
        return Member(job, name, self.signing[name], self.sealing[name], **settings)


class Room:
    """Delivers everything in order until nothing moves. `tamper(party, message)` may change what a member gets."""

    def __init__(self, world, job, tamper=None, **settings):
        self.world, self.job = world, job
        self.coordinator = Coordinator(job)
        self.members = {name: world.member(job, name, **settings) for name in world.names}
        self.up = {name: collections.deque() for name in world.names}
        self.down = {name: collections.deque() for name in world.names}
        self.tamper = tamper or (lambda _party, message: [message])
        self.errors = {}
        self.seen = []  # what the coordinator saw

    def send(self, sending):
        for party, message in sending:
            self.down[party].extend(self.tamper(party, message))

    def say(self, party, messages):
        self.up[party].extend(messages)

    def enter(self, *names):
        for name in names or self.world.names:
            self.send(self.coordinator.enter(name))
        self.run()

    def contribute(self, vectors, label="x"):
        for name, vector in vectors.items():
            self.say(name, self.members[name].contribute(np.asarray(vector, dtype=np.int64), label))

    def run(self):
        moved = True
        while moved:
            moved = False
            for name in self.world.names:
                while self.up[name]:
                    message = self.up[name].popleft()
                    self.seen.append(message)
                    self.send(self.coordinator.receive(name, message))
                    moved = True
                while self.down[name]:
                    message = self.down[name].popleft()
                    moved = True
                    try:
                        self.say(name, self.members[name].receive(message))
                    except SumAborted as error:
                        self.errors[name] = error
                        self.down[name].clear()

    def sum(self, vectors, label="x"):
        self.contribute(vectors, label)
        self.run()
        return {name: self.members[name].result() for name in vectors}
