"""What to simulate: command-line options or a TOML file with the same names."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import JobError
from ..job import explain
from ..models import registry


class SimulationConfig(BaseModel):
    """One simulation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    banks: int = Field(5, ge=3, le=80)
    data: str = Field("generated", description="`generated`, `amlsim`, or a CSV or Parquet file")
    path: Path | None = Field(None, description="of the file, or of AMLSim's folder or archive")
    test_path: Path | None = Field(None, description="rows to test on; otherwise a part of each bank's")
    label: str = "y"
    features: list[str] = Field([], description="default: all columns but label, id, bank and time")
    drop: list[str] = ["id", "ID"]
    rows: int = Field(5_000, ge=10, le=5_000_000, description="of generated data, per bank on average")
    fraud_rate: float = Field(0.01, gt=0, lt=0.5, description="of generated data")
    split: Literal["iid", "label", "quantity", "column", "time"] = "iid"
    column: str = Field("", description="that names the bank, for the split by column")
    time: str = Field("", description="column of days, for the split by time")
    delay_days: float = Field(30.0, ge=0, description="until a label is known, for the split by time")
    dirichlet: float = Field(0.5, gt=0, description="of the label and quantity skews; smaller is more uneven")
    test_share: float = Field(0.3, gt=0, lt=1)
    model: Literal["trees", "linear", "mlp"] = "trees"
    settings: dict[str, float | int | str] = Field({}, description="default: those of the model")
    encryption: Literal["full", "masks", "none"] = "full"
    engine: Literal["inline", "ray"] = "inline"
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field([0], min_length=1, max_length=100)
    out: Path = Path("simulation")

    @property
    def minimum(self) -> int:
        """Secure sums need three banks."""
        return 3

    def check(self) -> "SimulationConfig":
        """Raise `JobError` for what does not fit together."""
        registry.settings_for(self.model, dict(self.settings))
        if self.data in ("amlsim", "file") and self.path is None:
            raise JobError(f"data = {self.data!r} needs a path")
        if self.data not in ("generated", "amlsim", "file"):
            raise JobError(f"data: {self.data!r} is not one of generated, amlsim, file")
        if self.split == "column" and not self.column:
            raise JobError("the split by column needs the name of the column")
        if self.split == "column" and "banks" in self.model_fields_set:
            raise JobError("banks: the split by column has as many as the column names")
        if self.split == "column" and self.data != "file":
            raise JobError("the split by column is for data from a file")
        if self.split == "time" and self.data == "file" and not self.time:
            raise JobError("the split by time needs the name of the time column")
        if self.encryption == "none" and self.engine == "ray":
            raise JobError("the ray engine runs the deployed protocol: encryption is full or masks")
        if len(set(self.seeds)) != len(self.seeds):
            raise JobError("seeds repeat")
        return self


def load(path: Path | None, overrides: dict[str, Any]) -> SimulationConfig:
    """A file's values with the command line's on top. Raises `JobError` naming file and field."""
    values: dict[str, Any] = {}
    where = "options"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise JobError(f"{path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise JobError(f"{path}: {error}") from error
        for key in ("path", "test_path", "data"):  # beside the file that names them
            if values.get(key) and values[key] not in ("generated", "amlsim", "file"):
                values[key] = path.parent / str(values[key])
    given = values.get("settings", {})
    if not isinstance(given, dict):
        raise JobError(f"{where}: settings: a table is needed")
    settings = {**given, **overrides.pop("settings", {})}
    values |= {key: value for key, value in overrides.items() if value is not None}
    if settings:
        values["settings"] = settings
    if values.get("data") not in (None, "generated", "amlsim", "file"):
        values["path"], values["data"] = values.get("path") or Path(str(values["data"])), "file"
    try:
        return SimulationConfig(**values).check()
    except ValidationError as error:
        raise JobError(f"{where}: {explain(error)}") from error
