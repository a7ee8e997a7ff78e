"""Two ways to run one federation: in this process, or on Flower's simulation engine. Equal results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols.sums.job import Job, Party
from protocols.sums.members import Member

from .. import job as job_descriptors
from .. import steps
from ..data import Block
from ..errors import TrainingEnded
from ..job import JobDescriptor
from ..models import registry
from ..models.base import Model
from ..rooms import Cost, LocalRoom
from ..version import code_hash
from .config import SimulationConfig
from .worlds import World

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
        from . import flower  # Ray and Flower take seconds to import, and this engine needs neither

        return flower.run(config, world, job, progress)
    return _inline(config, world, job, progress)


def learner(job: JobDescriptor, block: Block) -> Any:
    return registry.learner(
        job.model, job.model_settings(), [block], job.features, job.seed, len(job.parties)
    )


def same(models: list[Model]) -> Model:
    if len({model.hash() for model in models}) != 1:
        raise TrainingEnded("the banks hold different models")
    return models[0]


# -- one process ------------------------------------------------------------------------------------------------------


def _inline(
    config: SimulationConfig, world: World, job: JobDescriptor, progress: Progress
) -> tuple[Model, dict[str, Cost]]:
    learners = {block.name: learner(job, block) for block in world.train}
    if config.encryption == "none":
        models = steps.one_by_one(list(learners.values()))
        return same(models), {name: Cost() for name in learners}
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
    return same(list(found.values())), {name: costs[party_id(name)] for name in learners}
