"""A coordinator process that cheats: run with a socket, a file of keys and the cheat's name."""

import asyncio
import json
import sys
from pathlib import Path

import grpc
from lianfang.v1 import sums_pb2 as pb
from lianfang.v1 import sums_pb2_grpc

from federation import aggregation
from federation.aggregation import Patience, SecureSumService
from protocols.sums import cipher, modular
from protocols.sums.coordinator import Coordinator
from protocols.sums.job import Job, Party


class Cheat(Coordinator):
    how = ""

    def _doctored(self, party, message):
        """What this party gets instead."""
        step = message.WhichOneof("step")
        first = party == self._cohort[0] if self._cohort else False
        if step == "chunk" and message.chunk.index == 0:
            if self.how == "shift":
                values = cipher.unpack(message.chunk.content)
                message.chunk.content = cipher.pack(modular.residues(values + 1))
            elif self.how == "split" and first:
                values = cipher.unpack(message.chunk.content)
                message.chunk.content = cipher.pack(modular.residues(values + 5))
        elif step == "cohort" and self.how == "cohorts" and party == message.cohort.members[0].party:
            del message.cohort.members[-1]
        elif step == "uploads" and self.how == "swap" and first:
            message.uploads.uploads[1].previous = bytes(32)
        return message

    def receive(self, party, message):
        if self.how == "double" and message.WhichOneof("step") == "upload" and self._sum is not None:
            self._sum.adder.add(0, self._sum.adder.total(0))
        sending = []
        for to, answer in super().receive(party, message):
            copy = pb.SumToMember()
            copy.CopyFrom(answer)
            sending.append((to, self._doctored(to, copy)))
            if self.how == "repeat" and answer.WhichOneof("step") == "commits":
                sending.append((to, pb.SumToMember(retry=pb.SumRetry(number=1, attempt=2))))
        return sending


async def main() -> None:
    socket, keys, how = sys.argv[1:]
    document = json.loads(Path(keys).read_text())
    parties = tuple(
        Party(name, *(bytes.fromhex(each) for each in raw)) for name, raw in document["parties"].items()
    )
    job = Job(bytes.fromhex(document["job"]), parties, bfv=False)
    Cheat.how = how
    aggregation.Coordinator = Cheat

    async def find(_job, _party):
        return job

    def identify(context):
        return dict(context.invocation_metadata())["lianfang-party"]

    server = grpc.aio.server()
    patience = Patience(entry=8, lost=1, answer=5, compute=600 if how == "patient" else 20)
    service = SecureSumService(identify, find, patience)
    sums_pb2_grpc.add_SecureSumServicer_to_server(service, server)
    server.add_insecure_port(socket)
    await server.start()
    if how == "called off":
        await service.call_off(job.hash, "a bank takes no part")
    print("ready", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
