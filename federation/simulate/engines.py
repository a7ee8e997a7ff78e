"""Two ways to run one federation: in this process, or on Flower's simulation engine. Equal results."""

import asyncio
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Context
from lianfang.v1 import sums_pb2_grpc

from protocols.sums.job import Job, Party
from protocols.sums.members import Member

from .. import job as job_descriptors
from .. import steps
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
from ..rooms import Cost, LocalRoom
from ..steps import Ask
from ..version import code_hash
from .config import SimulationConfig
from .worlds import World

_PARTY = "lianfang-party"
_NETWORK = "simulation"
Progress = Callable[[str], None]


def party_id(bank: str) -> str:
    """A simulated bank's name in the network's form."""
    return f"spiffe://{_NETWORK}/bank/{bank}"


def descriptor(config: SimulationConfig, world: World, seed: int) -> JobDescriptor:
    """The job that the simulated banks approve."""
    return job_descriptors.make(
        name="simulation",
        kind="train",
        network=_NETWORK,
        coordinator=f"spiffe://{_NETWORK}/coordinator/simulation",
        parties=sorted(party_id(name) for name in world.names),
        dataset="simulation",
        code=code_hash(),
        bundle="0" * 64,
        seed=seed,
        features=list(world.features),
        label="label" if "y" in world.features else "y",
        model=config.model,
        settings=config.settings,
    )


@dataclass(frozen=True)
class Keys:
    """A simulated bank's."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    @classmethod
    def generate(cls) -> "Keys":
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    def party(self, name: str) -> Party:
        return Party(
            party_id(name),
            self.signing.public_key().public_bytes_raw(),
            self.sealing.public_key().public_bytes_raw(),
        )

    def raw(self) -> tuple[str, str]:
        return self.signing.private_bytes_raw().hex(), self.sealing.private_bytes_raw().hex()

    @classmethod
    def from_raw(cls, raw: tuple[str, str]) -> "Keys":
        return cls(
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw[0])),
            X25519PrivateKey.from_private_bytes(bytes.fromhex(raw[1])),
        )


def secure_job(hash_: bytes, keys: dict[str, Keys], encryption: str) -> Job:
    """The sums of banks by name, `full` with BFV or `masks` without."""
    parties = tuple(keys[name].party(name) for name in sorted(keys, key=party_id))
    return Job(hash_, parties, bfv=encryption == "full")


def run(
    config: SimulationConfig, world: World, seed: int, progress: Progress
) -> tuple[Model, dict[str, Cost]]:
    """The federated model of one seed and what each bank spent. Raises `LearningError`."""
    job = descriptor(config, world, seed)
    if config.engine == "ray":
        return _ray(config, world, job, progress)
    return _inline(config, world, job, progress)


def _learner(job: JobDescriptor, block: Block) -> Any:
    return registry.learner(
        job.model, job.model_settings(), [block], job.features, job.seed, len(job.parties)
    )


def _same(models: list[Model]) -> Model:
    if len({model.hash() for model in models}) != 1:
        raise TrainingEnded("the banks hold different models")
    return models[0]


# -- one process ------------------------------------------------------------------------------------------------------


def _inline(
    config: SimulationConfig, world: World, job: JobDescriptor, progress: Progress
) -> tuple[Model, dict[str, Cost]]:
    learners = {block.name: _learner(job, block) for block in world.train}
    if config.encryption == "none":
        models = steps.one_by_one(list(learners.values()))
        return _same(models), {name: Cost() for name in learners}
    keys = {name: Keys.generate() for name in world.names}
    secure = secure_job(job.hash(), keys, config.encryption)
    members = {
        party_id(name): Member(secure, party_id(name), key.signing, key.sealing) for name, key in keys.items()
    }
    room = LocalRoom(secure, members)
    found, costs = room.run(
        {party_id(name): learner for name, learner in learners.items()},
        lambda ask, _number: progress(ask.label),
    )
    return _same(list(found.values())), {name: costs[party_id(name)] for name in learners}


# -- Flower's simulation engine ---------------------------------------------------------------------------------------


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
        return Seat(party_id(name), member, _learner(job, block), link, watch, finish, failed)


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


def _ray(
    config: SimulationConfig, world: World, job: JobDescriptor, progress: Progress
) -> tuple[Model, dict[str, Cost]]:
    os.environ |= {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    from flwr.simulation import run_simulation

    keys = {name: Keys.generate() for name in world.names}
    secure = secure_job(job.hash(), keys, config.encryption)
    cores = os.cpu_count() or 1
    # Clients that wait for each other's sums must all run at once.
    clients = min(len(world.names), cores)
    with tempfile.TemporaryDirectory(prefix="lianfang-simulation-") as name:
        folder = Path(name)
        address = f"unix:{folder}/{secrets.token_hex(4)}.sock"
        for block in world.train:
            np.savez(folder / f"{block.name}.npz", x=block.x, y=block.y)
        plan = {
            "banks": world.names,
            "keys": {bank: key.raw() for bank, key in keys.items()},
            "encryption": config.encryption,
            "address": address,
        }
        descriptor_file = os.open(folder / "plan.json", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor_file, "w") as file:
            json.dump(plan, file)
        failures: list[str] = []

        def launch(context: Context) -> bytes:
            return job.to_bytes()

        app = server_app.make(launch, lambda _job: clients)
        watching = threading.Event()
        thread = threading.Thread(target=_follow, args=(folder / "progress", progress, watching), daemon=True)
        thread.start()
        try:
            with _service(address, secure):
                run_simulation(
                    app,
                    client_app.make(_Seats(name)),
                    clients,
                    backend_config={
                        "client_resources": {"num_cpus": 1},
                        "init_args": {
                            "num_cpus": clients,
                            "include_dashboard": False,
                            "log_to_driver": False,
                        },
                    },
                )
        except Exception as error:
            failures.append(str(error))
        finally:
            watching.set()
            thread.join()
        failures = [
            f"{file.stem}: {file.read_text()}" for file in sorted(folder.glob("*.failed"))
        ] or failures
        missing = [bank for bank in world.names if not (folder / f"{bank}.model.json").exists()]
        if failures or missing:
            raise TrainingEnded("; ".join(failures) or f"no model from {', '.join(missing)}")
        models = [registry.read((folder / f"{bank}.model.json").read_bytes()) for bank in world.names]
        costs = {}
        for bank in world.names:
            document = json.loads((folder / f"{bank}.cost.json").read_text())
            costs[bank] = Cost(**document)
        return _same(models), costs


def _follow(path: Path, progress: Progress, done: threading.Event) -> None:
    last = ""
    while not done.wait(0.3):
        if path.exists() and (now := path.read_text()) and now != last:
            progress(now)
            last = now
