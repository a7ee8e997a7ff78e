"""The rows of a simulation: banks with training rows, and test rows, from a seed."""

from dataclasses import dataclass

from .. import amlsim, data, generate, split
from ..data import Block
from ..errors import DataError, JobError
from .config import SimulationConfig


@dataclass(frozen=True)
class World:
    """One seed's rows. `test` has every bank's test rows."""

    features: tuple[str, ...]
    train: list[Block]
    test: Block

    @property
    def names(self) -> list[str]:
        """Banks."""
        return [block.name for block in self.train]


def make(config: SimulationConfig, seed: int) -> World:
    """Raise `DataError` or `JobError` naming what does not fit."""
    features, blocks, test = _blocks(config, seed)
    if len(blocks) < config.minimum:
        raise JobError(f"a federation needs at least {config.minimum} banks, there are {len(blocks)}")
    if test is not None:
        return World(features, blocks, test)
    parts = [
        split.train_and_test(block, config.test_share, seed, config.split == "time", config.delay_days)
        for block in blocks
    ]
    return World(features, [train for train, _ in parts], data.pool([part for _, part in parts], "test"))


def _blocks(config: SimulationConfig, seed: int) -> tuple[tuple[str, ...], list[Block], Block | None]:
    if config.data == "generated" and config.split in ("iid", "time"):
        # Generated banks differ as banks do: in size, in how much fraud they see and of what kinds.
        return generate.FEATURES, generate.banks(config.banks, config.rows, config.fraud_rate, seed), None
    if config.data == "generated":
        whole = generate.accounts(config.rows * config.banks, config.fraud_rate, seed, "generated")
        return (
            generate.FEATURES,
            split.divide(whole, config.banks, config.split, seed, config.dirichlet),
            None,
        )
    assert config.path is not None
    if config.data == "amlsim":
        whole, features = amlsim.load(config.path), amlsim.FEATURES
        kind = "iid" if config.split == "time" else config.split
        return features, split.divide(whole, config.banks, kind, seed, config.dirichlet), None
    table = data.read_table(config.path, config.column)
    skipped = [*config.drop, *(each for each in (config.column, config.time) if each)]
    names = config.features or data.feature_names(table, config.label, skipped)
    whole = data.to_block(config.path, table, names, config.label, "file", config.time)
    test = None
    if config.test_path is not None:
        test = data.load(config.test_path, names, config.label, "test")
    if config.split == "column":
        if config.column not in table.column_names:
            raise DataError(f"{config.path}: no column {config.column}")
        owners = [(each or "").strip() for each in table.column(config.column).to_pylist()]
        if "" in owners:
            row = data.row_of(config.path, owners.index(""))
            raise DataError(f"{config.path}: row {row}: column {config.column} names no bank")
        return tuple(names), split.by_column(whole, owners), test
    kind = "iid" if config.split == "time" else config.split
    return tuple(names), split.divide(whole, config.banks, kind, seed, config.dirichlet), test
