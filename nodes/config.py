"""A node's configuration: `node.toml`, each field also as an environment variable (`LIANFANG_NODE__LISTEN`)."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import ConfigError
from .identity.names import MemberName, Role


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSection(_Section):
    """Who and where."""

    name: str
    role: Role
    network: str
    listen: str = "127.0.0.1:7443"
    advertise: str = ""
    data: Path = Path("data")
    keys: Path = Path("keys")
    epoch_keys: Path = Field(Path("epoch-keys"), description="not to be backed up: a lost key is a new epoch")
    certs: Path = Path("certs")
    policy: Path = Path("policy.toml")
    admin_socket: Path = Path("data/admin.sock")
    time_zone: str = Field(
        "Asia/Shanghai", description="of the network: at its midnight a new day's budget begins"
    )
    admin_group: str = Field(
        "", description="Unix group that may reach the socket too; empty: its owner alone"
    )
    workers: int = Field(0, ge=0, le=256, description="processes for bulk work; 0 means one a core")
    cluster: str = Field(
        "", description="host:port of a running Ray cluster that seals; empty: this machine's workers do"
    )

    owner_invites: bool = Field(
        False,
        description="whoever can read data/owner.token may invite people although there are administrators",
    )


class ListsSection(_Section):
    """The holder's side."""

    default_region: str = Field("CN", pattern="^([A-Z]{2})?$")
    phone_valid_days: int = Field(180, ge=1, le=3650)
    epoch_days: float = Field(30, gt=0, le=366)
    overlap_hours: float = Field(24, ge=0, le=24 * 14, description="both epochs answer after a rotation")


class AskSection(_Section):
    """The querier's side."""

    deadline_seconds: float = Field(10, gt=0, le=600)
    sync_deadline_seconds: float = Field(3600, gt=0)
    max_table_age_hours: float = Field(
        24, gt=0, description="an older copy of a list is synced before it is used"
    )
    keep_answers_hours: float = Field(24, ge=0, le=168, description="for a rerun of the same question")
    follow: bool = Field(
        True, description="keep copies up to date: each holder says when there is something new"
    )
    screening_share: float = Field(
        0.5, gt=0, le=1, description="of each budget, for screenings; the rest is for other questions"
    )
    sync_every_minutes: float = Field(0, ge=0, description="also at a fixed interval; 0: not")


class DatasetSection(_Section):
    """Rows of this institution that jobs may be trained on. Paths are relative to node.toml."""

    path: Path
    test: Path | None = Field(None, description="rows that no model is trained on")
    features: list[str] = Field(
        [], description="of vertical jobs; empty: all columns but identifier and label"
    )


class LearnSection(_Section):
    """Learning together; needs the `learn` extra."""

    coordinator: str = Field("", description="name of the member that coordinates; empty: no learning")
    superlink: str = Field("", description="coordinator: host:port on which its SuperLink listens")
    superlink_advertise: str = Field("", description="coordinator: where the others reach it")
    datasets: dict[str, DatasetSection] = {}
    entry_seconds: float = Field(
        180,
        gt=0,
        description="coordinator: wait so long for all parties of a job; in a vertical one, for the other side",
    )
    lost_seconds: float = Field(30, gt=0, description="coordinator: for a broken stream to be taken up again")
    answer_seconds: float = Field(120, gt=0, description="coordinator: for an answer that needs no computing")
    compute_seconds: float = Field(
        1800, gt=0, description="coordinator: for a contribution; in a vertical job, for an answer"
    )


class LedgerSection(_Section):
    """This node's transparency log, and its part as a witness of the others'."""

    listen: str = "127.0.0.1:7444"
    advertise: str = Field("", description="where others reach it; empty: as listen")
    tick_seconds: float = Field(60, ge=0.2, le=3600, description="a new head at each")
    leaves_a_tick: int = Field(
        64, ge=1, le=65_536, description="a head grows by this, or by 4, 16, … times it"
    )
    quorum: int = Field(0, ge=0, le=1000, description="witnesses of a published head; 0: what the size needs")
    urgent: tuple[Literal["account-opening", "payment", "case-investigation", "screening"], ...] = Field(
        ("payment", "case-investigation"), description="purposes that go on without a quorum"
    )
    unpublished_hours: float = Field(24, ge=0, le=24 * 30, description="and for how long")
    keep_openings_days: int = Field(1826, ge=1, description="then an event's salt is destroyed")


class LogSection(_Section):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class DebugSection(_Section):
    """For demonstrations and tests; `doctor` warns while any of it is on."""

    capture: Path | None = Field(None, description="append every wire message, as sent, to this file")


class NodeConfig(BaseSettings):
    """All of `node.toml`. Paths are relative to the file's folder."""

    model_config = SettingsConfigDict(
        env_prefix="LIANFANG_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    node: NodeSection
    lists: ListsSection = ListsSection()
    ask: AskSection = AskSection()
    learn: LearnSection = LearnSection()
    ledger: LedgerSection = LedgerSection()
    log: LogSection = LogSection()
    debug: DebugSection = DebugSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the file."""
        return env_settings, init_settings

    @property
    def name(self) -> MemberName:
        """Who this node is."""
        return MemberName(self.node.network, self.node.role, self.node.name)


def explain(path: Path, error: ValidationError) -> ConfigError:
    """A validation error as one line a field."""
    lines = [f"{path}: {'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()]
    return ConfigError("\n".join(lines))


def read_toml(path: Path) -> dict[str, Any]:
    """Raise `ConfigError` naming the file and the place."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


class Home:
    """A node's folder: its configuration and the absolute paths of what it keeps."""

    def __init__(self, path: Path) -> None:
        """Read `path`, a `node.toml` or a folder that holds one; raises `ConfigError`."""
        self.file = (path / "node.toml" if path.is_dir() else path).absolute()
        document = read_toml(self.file)
        try:
            self.config = NodeConfig(**document)
            self.name = self.config.name
        except ValidationError as error:
            raise explain(self.file, error) from error
        folder = self.file.parent
        node = self.config.node
        self.data = folder / node.data
        self.keys = folder / node.keys
        self.epoch_keys = folder / node.epoch_keys
        self.certs = folder / node.certs
        self.policy = folder / node.policy
        self.socket = folder / node.admin_socket
        # For whoever can read the node's files: the socket may be open to a group.
        self.owner_token = self.data / "owner.token"
        self.process_token = self.data / "process.token"
        capture = self.config.debug.capture
        self.capture = folder / capture if capture else None
        if len(str(self.socket).encode()) > 100:
            raise ConfigError(
                f"{self.file}: node.admin_socket: a socket's path has at most 100 bytes; give a shorter one"
            )

    def datasets(self) -> dict[str, DatasetSection]:
        """`learn.datasets`, read anew: a dataset needs no restart. Raises `ConfigError`."""
        return Home(self.file).config.learn.datasets


TEMPLATE = """\
# Lianfang node. Paths are relative to this file. Each field can be overridden from the environment,
# for instance LIANFANG_NODE__LISTEN=0.0.0.0:7443.

[node]
name = "{name}"
role = "{role}"
network = "{network}"
listen = "{listen}"        # where this node answers
advertise = "{advertise}"  # where others reach it

[lists]
default_region = "CN"      # phone numbers without a country code
phone_valid_days = 180     # carriers reissue numbers
epoch_days = 30            # then a list gets a new key

[ask]
deadline_seconds = 10
max_table_age_hours = 24

[ledger]
listen = "{ledger_listen}"        # where this node's log is read and its witness asked
advertise = "{ledger_advertise}"  # where others reach that
tick_seconds = {tick_seconds}

# [learn]
# coordinator = "coordinator"          # who coordinates training; `lianfang learn serve` then joins it
# [learn.datasets.credit]              # rows that approved jobs may use; they never leave this node
# path = "rows/credit.csv"
# test = "rows/credit-test.csv"
"""
