"""What every reader gives: rows as text by field, and rows that it had to refuse, with number, column and reason."""

import contextlib
import itertools
import secrets
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TextIO, TypeVar

from federation.files import NATURAL, Reading, UnreadableFile

from .. import limits, words
from ..errors import NodeError

FIELDS = (
    "kind",
    "value",
    "country",
    "category",
    "severity",
    "confidence",
    "basis",
    "observed_on",
    "valid_until",
    "status",
    "reason",
    "reference",
    "institution",
)
AMOUNT = "amount"  # a column of numbers that are added up, beside the fields
DATES = frozenset({"observed_on", "valid_until"})
REASON_COLUMN = "lianfang_reason"  # of a file of bad rows; ignored when the mended file comes back

_HEADERS = {
    "kind": (
        "kind", "type", "identifier type", "id type", "value type", "类型", "类别代码", "标识类型", "证件类型", "标识种类", "种类",
        "号码类型", "数据类型",
    ),
    "value": (
        "value", "identifier", "number", "id", "id number", "值", "标识", "号码", "标识值", "证件号码", "证件号", "账号或号码", "涉案标识",
    ),
    "country": ("country", "issuing country", "country code", "nationality", "国家", "签发国", "国家代码", "国籍", "签发国家", "国家地区"),
    "category": (
        "category", "risk", "risk category", "risk type", "fraud type", "风险类别", "类别", "风险类型", "涉案类型", "案件类型", "诈骗类型",
    ),
    "severity": ("severity", "level", "risk level", "严重程度", "风险等级", "等级", "程度", "风险级别", "级别"),
    "confidence": ("confidence", "score", "certainty", "置信度", "可信度", "可信程度"),
    "basis": ("basis", "source", "legal basis", "依据", "认定依据", "来源", "认定单位", "认定机关", ),
    "observed_on": (
        "observed on", "observed", "date", "observed date", "seen on", "valid from", "观察日期", "发现日期", "日期", "案发日期", "观察", "发现时间",
        "案发时间", "认定日期", "入库日期",
    ),
    "valid_until": (
        "valid until", "valid to", "expires", "expiry", "expiry date", "valid through", "有效期至", "失效日期", "到期日", "有效至", "到期日期",
        "有效期", "截止日期", "有效期限",
    ),
    "status": ("status", "state", "状态", "条目状态", "名单状态"),
    "reason": ("reason", "reason code", "原因", "原因代码", "列入原因"),
    "reference": (
        "reference", "case", "case number", "case id", "own reference", "案件编号", "参考号", "案号", "案件号", "文号",
    ),
    "institution": (
        "institution", "bank", "bank code", "bic", "swift", "institution code", "机构代码", "开户行", "银行代码", "联行号", "开户机构", "行号",
        "支付行号", "清算行号", "开户银行",
    ),
}  # fmt: skip
_BY_HEADER = {words.key(name): target for target, names in _HEADERS.items() for name in names}


class FileError(NodeError):
    """The file as a whole cannot be read; nothing of it was taken."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}", "FILE")


_Record = TypeVar("_Record")


def readable(records: Iterable[_Record]) -> Iterator[_Record]:
    """What a reader of `federation.files` gives; raises `FileError` where that says that the file cannot be read."""
    try:
        yield from records
    except UnreadableFile as error:
        raise FileError(error.path, error.message) from error


@dataclass(frozen=True)
class BadCell:
    """A row that the reader refuses."""

    number: int
    column: str
    reason: str
    place: str = ""  # where a person finds it, if not by the row's number


class ReadRow(NamedTuple):
    """A row as text by field; `number` is unique in the file."""

    number: int
    fields: dict[str, str]
    place: str = ""
    further: dict[str, str] = {}  # noqa: RUF012  # the file's own further columns, by header, where asked for


Parsed = ReadRow | BadCell


class Columns(NamedTuple):
    """Rows that follow each other, by column: `texts[k][i]` is field k of row `numbers[i]`; and rows between them that are refused."""

    numbers: Sequence[int]
    texts: list[list[str]]
    bad: list[BadCell]


@dataclass
class Mapping:
    """Which column is what: by header, and constants for what the file lacks."""

    columns: dict[str, str] = field(default_factory=dict)  # header → field
    constants: dict[str, str] = field(default_factory=dict)  # also where a cell is empty
    needed: tuple[str, ...] = ("value",)
    reading: Reading = NATURAL
    keep_further: bool = False  # hand on the columns that are no field
    unread: list[str] = field(default_factory=list)  # headers that stand for no field, once the file is open

    @classmethod
    def load(cls, path: Path) -> "Mapping":
        """Read a mapping file: `[columns] field = "header"` and `[constants] field = "text"`."""
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FileError(path, f"not a mapping file: {error}") from error
        columns, constants = document.get("columns", {}), document.get("constants", {})
        for name in (*columns, *constants):
            if name not in FIELDS:
                raise FileError(path, f"{name!r} is not one of {', '.join(FIELDS)}")
        if set(document) - {"columns", "constants"}:
            raise FileError(path, "only the tables [columns] and [constants] are known")
        return cls(
            {words.key(str(header)): name for name, header in columns.items()},
            {name: str(value) for name, value in constants.items()},
        )

    def resolve(self, path: Path, headers: list[str]) -> "list[str | None]":
        """For each column its field or None. Raises `FileError` where a needed field stays unknown."""
        if len(headers) > limits.IMPORT_COLUMNS:
            raise FileError(path, f"{len(headers)} columns; at most {limits.IMPORT_COLUMNS}")
        targets: list[str | None] = []
        for header in headers:
            key = words.key(header)
            targets.append(self.columns.get(key) or (None if self.columns else _BY_HEADER.get(key)))
        constants = dict(self.constants)
        if targets and headers[-1] == REASON_COLUMN:
            targets[-1] = None
        if "value" not in targets:
            # One column that is named like a kind ("手机号") holds values of that kind.
            named = [
                (i, kind)
                for i, header in enumerate(headers)
                if targets[i] in (None, "kind") and (kind := words.kind_of(header)) is not None
            ]
            if len(named) == 1 and "kind" not in targets and not self.columns:
                targets[named[0][0]] = "value"
                constants.setdefault("kind", named[0][1].value)
        for needed in self.needed:
            if needed not in targets and needed not in constants:
                raise FileError(
                    path,
                    f"the header row names no column for {needed}; give --mapping with [columns] "
                    f'{needed} = "…", or [constants] where all rows have the same',
                )
        twice = {each for each in targets if each is not None and targets.count(each) > 1}
        if twice:
            raise FileError(path, f"two columns for {', '.join(sorted(twice))}; give --mapping")
        self.constants = constants
        self.unread = [
            header
            for header, target in zip(headers, targets, strict=True)
            if target is None and header.strip() and header != REASON_COLUMN
        ]
        return targets


def mapped(targets: "list[str | None]") -> list[tuple[int, str]]:
    """(column's place, field) of the columns that are read at all."""
    return [(place, target) for place, target in enumerate(targets) if target is not None]


def further_of(targets: "list[str | None]", headers: Sequence[str]) -> list[tuple[int, str]]:
    """(column's place, header) of the columns that are no field."""
    return [
        (place, header)
        for place, (target, header) in enumerate(zip(targets, headers, strict=True))
        if target is None and header.strip() and header != REASON_COLUMN
    ]


def fields_of(columns: list[tuple[int, str]], cells: list[str], constants: dict[str, str]) -> dict[str, str]:
    """A row's fields from its cells, of which the last may be missing; `columns` as of `mapped`."""
    out = constants.copy()
    for place, target in columns:
        if place < len(cells) and (cells[place].strip() or target not in out):
            out[target] = cells[place]
    return out


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[TextIO]:
    """A CSV file to write, readable by its owner alone; it takes its name only once it is whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(mode=0o600)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write("\ufeff")  # as utf-8-sig would, whose encoder is called in Python for each row
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def rows(path: Path, mapping: Mapping) -> Iterator[Parsed]:
    """Read a CSV, XLSX or Parquet file by its ending; raises `FileError`."""
    return _reader(path).rows(path, mapping)


def columns(path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]:
    """Some of its fields by column, a thousand rows or so at a time; raises `FileError`. Cells are as written, also empty ones."""
    return _reader(path).columns(path, mapping, fields)


def by_column(parsed: Iterator[Parsed], fields: Sequence[str]) -> Iterator[Columns]:
    """`columns` from `rows`."""
    while some := list(itertools.islice(parsed, 1_024)):
        good = [each for each in some if isinstance(each, ReadRow)]
        yield Columns(
            [each.number for each in good],
            [[each.fields.get(name, "") for each in good] for name in fields],
            [each for each in some if isinstance(each, BadCell)],
        )


def write_bad(source: Path, target: Path, bad: dict[int, str], mapping: Mapping | None = None) -> None:
    """Write the bad rows of a file with their reasons as CSV, readable by its owner alone, to be mended."""
    _reader(source).write_bad(source, target, bad, mapping or Mapping())


class _Reader(Protocol):
    def rows(self, path: Path, mapping: Mapping) -> Iterator[Parsed]: ...
    def columns(self, path: Path, mapping: Mapping, fields: Sequence[str]) -> Iterator[Columns]: ...
    def write_bad(self, source: Path, target: Path, bad: dict[int, str], mapping: Mapping) -> None: ...


def _reader(path: Path) -> _Reader:
    if not path.exists():
        raise FileError(path, "there is no such file")
    if path.suffix.lower() == ".xls":
        raise FileError(path, "the old .xls format: save it as .xlsx or CSV")
    # The workbook library takes longer to import than most commands to run.
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        from . import xlsx_file

        return xlsx_file
    if path.suffix.lower() in (".parquet", ".pq"):
        from . import parquet_file

        return parquet_file
    from . import csv_file

    return csv_file
