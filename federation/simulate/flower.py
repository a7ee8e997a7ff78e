"""The federation on Flower's simulation engine, in a process of its own.

The aggregation service runs here, the engine in a child process with its own session: Ray starts processes by forking,
which must not happen beside gRPC's threads, and whatever an engine that failed leaves behind ends with its group.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from flwr.app import Context
from lianfang.v1 import sums_pb2_grpc

from protocols.sums.job import Job
from protocols.sums.members import Member

from ..aggregation import Patience, SecureSumService
from ..apps import client as client_app
from ..apps import server as server_app
from ..apps.client import Seat
from ..data import Block
from ..errors import TrainingEnded
from ..job import JobDescriptor
from ..links import GrpcLink
from ..models import registry
from ..models.base import Model
from ..rooms import Cost, drive
from ..steps import Ask
from .config import SimulationConfig
from .engines import Keys, Progress, learner, party_id, same, secure_job
from .worlds import World

_PARTY = "lianfang-party"
_STARTS = 3  # Ray waits 30 s for its own processes and then gives up, which a busy machine can take
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def run(
    config: SimulationConfig, world: World, job: JobDescriptor, progress: Progress
) -> tuple[Model, dict[str, Cost]]:
    """The federated model and what each bank spent. Raises `TrainingEnded` with what the engine last said."""
    keys = {name: Keys.generate() for name in world.names}
    secure = secure_job(job.hash(), keys, config.encryption)
    with tempfile.TemporaryDirectory(prefix="lianfang-simulation-") as name:
        folder = Path(name)
        address = f"unix:{folder}/{secrets.token_hex(4)}.sock"
        for block in world.train:
            np.savez(folder / f"{block.name}.npz", x=block.x, y=block.y)
        (folder / "job.json").write_bytes(job.to_bytes())
        plan = {
            "banks": world.names,
            "keys": {bank: key.raw() for bank, key in keys.items()},
            "encryption": config.encryption,
            "address": address,
            # Clients that wait for each other's sums must all run at once.
            "clients": min(len(world.names), os.cpu_count() or 1),
        }
        with os.fdopen(os.open(folder / "plan.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(plan, file)
        with _service(address, secure):
            status = _engine(folder, progress)
        failures = [f"{file.stem}: {file.read_text()}" for file in sorted(folder.glob("*.failed"))]
        missing = [bank for bank in world.names if not (folder / f"{bank}.model.json").exists()]
        if failures:
            raise TrainingEnded("; ".join(failures))
        if missing:
            said = (folder / "engine.log").read_text(errors="replace").strip().splitlines()[-5:]
            raise TrainingEnded(
                f"no model from {', '.join(missing)}; the engine ended with status {status}: "
                + " | ".join(said)
            )
        models = [registry.read((folder / f"{bank}.model.json").read_bytes()) for bank in world.names]
        costs = {}
        for bank in world.names:
            document = json.loads((folder / f"{bank}.cost.json").read_text())
            costs[bank] = Cost(**document)
        return same(models), costs


def _engine(folder: Path, progress: Progress) -> int:
    """Runs the child to its end, however this process leaves, and returns its exit status."""
    environment = (
        os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    )
    with (folder / "engine.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    last = ""
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return child.wait(0.3)
            path = folder / "progress"
            if path.exists() and (now := path.read_text()) and now != last:
                progress(now)
                last = now
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextmanager
def _service(socket: str, secure: Job) -> Iterator[None]:
    """The aggregation service in a thread of its own, on a socket in a private folder."""

    async def find(_job_hash: bytes, _party: str) -> Job:
        return secure

    def identify(context: Any) -> str:
        return str(dict(context.invocation_metadata()).get(_PARTY, ""))

    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = grpc.aio.server()
        service = SecureSumService(identify, find, Patience(entry=300.0))
        sums_pb2_grpc.add_SecureSumServicer_to_server(service, server)
        server.add_insecure_port(socket)
        await server.start()
        started.set()
        await stop.wait()
        await service.close()
        await server.stop(2.0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        if not started.wait(30):
            raise TrainingEnded("the aggregation service did not start")
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


# -- the child --------------------------------------------------------------------------------------------------------


class _Seats:
    """Finds a simulated client's banks in the simulation's folder. Crosses to Ray's workers by its path alone."""

    name = "a simulated client"

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def seats(self, job: JobDescriptor, context: Context) -> list[Seat]:
        """The banks of this client: every so-many-th of the list."""
        folder = Path(self._folder)
        plan = json.loads((folder / "plan.json").read_text())
        clients, own = int(context.node_config["num-partitions"]), int(context.node_config["partition-id"])
        keys = {name: Keys.from_raw(raw) for name, raw in plan["keys"].items()}
        secure = secure_job(job.hash(), keys, plan["encryption"])
        return [
            self._seat(folder, plan, job, secure, name, keys[name]) for name in plan["banks"][own::clients]
        ]

    @staticmethod
    def _seat(
        folder: Path, plan: dict[str, Any], job: JobDescriptor, secure: Job, name: str, key: Keys
    ) -> Seat:
        with np.load(folder / f"{name}.npz") as rows:
            block = Block(name, rows["x"], rows["y"])

        def finish(model: Model, cost: Cost) -> None:
            (folder / f"{name}.cost.json").write_text(json.dumps(cost.as_dict()))
            (folder / f"{name}.model.json").write_bytes(model.to_bytes())

        def failed(reason: str) -> None:
            (folder / f"{name}.failed").write_text(reason)

        def watch(ask: Ask, _number: int) -> None:
            if name == plan["banks"][0]:
                (folder / "progress").write_text(ask.label)

        address = plan["address"]
        link = GrpcLink(lambda: grpc.insecure_channel(address), job.hash(), ((_PARTY, party_id(name)),))
        member = Member(secure, party_id(name), key.signing, key.sealing)
        learning = learner(job, block)
        return Seat(party_id(name), lambda: drive(member, learning, link, watch), finish, failed)


def _start_ray(clients: int) -> None:
    """A Ray of this process's own, never one that the machine runs or that a failed start has left an address of."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init("local", num_cpus=clients, include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise
            print(f"Ray did not start ({error}), trying again", file=sys.stderr, flush=True)


def main(folder: Path) -> None:
    """The engine over the banks whose rows, keys and job lie in `folder`; their models and costs are left there."""
    from flwr.simulation import run_simulation

    clients = json.loads((folder / "plan.json").read_text())["clients"]
    job = (folder / "job.json").read_bytes()

    def launch(_context: Context) -> bytes:
        return job

    _start_ray(clients)
    run_simulation(
        server_app.make(launch, lambda _job: clients),
        client_app.make(_Seats(str(folder))),
        clients,
        backend_config={"client_resources": {"num_cpus": 1}},
    )


if __name__ == "__main__":
    # By its own name, so that Ray's workers import what crosses to them instead of receiving this file's code.
    from federation.simulate.flower import main as named

    named(Path(sys.argv[1]))
    # Neither Ray nor Flower is waited for any longer: what they were to leave lies in the folder.
    os._exit(0)
