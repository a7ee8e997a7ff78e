"""AMLSim's transactions as features of accounts.

Reads IBM AMLSim's sample layout: `nodes.csv` (nodeid, isFraud, init_balance, ...) and `transactions.csv`
(sourceNodeId, targetNodeId, value, time), in a folder or a .tgz, at any depth. `isFraud` marks accounts in planted rings.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from .data import Block
from .errors import DataError

FEATURES = (
    "balance",
    "sent",
    "received",
    "sent_count",
    "received_count",
    "payees",
    "payers",
    "largest_sent",
    "largest_received",
    "mean_sent",
    "mean_received",
    "spread_received",
    "first_time",
    "last_time",
    "active_times",
    "kept_share",
    "mutual",
    "payers_of_payers",
    "payees_of_payees",
)
_MEMBER_BYTES = 1 << 30


def _open(path: Path, name: str) -> pa.Table:
    try:
        if path.is_dir():
            found = sorted(path.rglob(name))
            if not found:
                raise DataError(f"{path}: no {name}")
            return pyarrow.csv.read_csv(found[0])
        with tarfile.open(path) as archive:
            for member in archive:
                if Path(member.name).name == name and member.isfile() and member.size <= _MEMBER_BYTES:
                    file = archive.extractfile(member)
                    if file is not None:
                        return pyarrow.csv.read_csv(io.BytesIO(file.read()))
        raise DataError(f"{path}: no {name}")
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}") from error


def _column(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    if name not in table.column_names:
        raise DataError(f"{path}: no column {name}; there are {', '.join(table.column_names)}")
    try:
        return np.asarray(table.column(name).cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name} does not hold numbers") from error


def load(path: Path, name: str = "amlsim") -> Block:
    """Accounts with `FEATURES`; raises `DataError` naming file and column. `time` is the account's first payment."""
    nodes, payments = _open(path, "nodes.csv"), _open(path, "transactions.csv")
    ids = _column(path, nodes, "nodeid").astype(np.int64)
    order = np.argsort(ids)
    ends = []
    for column in ("sourceNodeId", "targetNodeId"):
        found = _column(path, payments, column).astype(np.int64)
        unknown = np.flatnonzero(~np.isin(found, ids))
        if unknown.size:
            raise DataError(
                f"{path}: transactions.csv row {unknown[0] + 2}: {column} is no node of nodes.csv"
            )
        ends.append(order[np.searchsorted(ids[order], found)])
    source, target = ends
    value, time = _column(path, payments, "value"), _column(path, payments, "time")
    count = len(ids)

    def total(
        index: npt.NDArray[np.int64], weights: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float64]:
        return np.bincount(index, weights, count).astype(np.float64)

    def largest(index: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        out = np.zeros(count)
        np.maximum.at(out, index, values)
        return out

    pairs = np.unique(source * count + target)
    payer, payee = pairs // count, pairs % count
    sent, received = total(source, value), total(target, value)
    times = np.concatenate([time, time])
    both = np.concatenate([source, target])
    first = np.full(count, np.nan)
    np.fmin.at(first, both, times)
    payers, payees = total(payee), total(payer)
    received_count, sent_count = total(target), total(source)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_received = received / received_count
        columns = {
            "balance": _column(path, nodes, "init_balance"),
            "sent": sent,
            "received": received,
            "sent_count": sent_count,
            "received_count": received_count,
            "payees": payees,
            "payers": payers,
            "largest_sent": largest(source, value),
            "largest_received": largest(target, value),
            "mean_sent": sent / sent_count,
            "mean_received": mean_received,
            "spread_received": np.sqrt(
                np.maximum(total(target, value**2) / received_count - mean_received**2, 0)
            ),
            "first_time": first,
            "last_time": largest(both, times),
            "active_times": np.bincount(
                np.unique(np.stack([both, times.astype(np.int64)]), axis=1)[0], minlength=count
            ).astype(np.float64),
            "kept_share": (received - sent) / received,
            "mutual": total(payer[np.isin(pairs, payee * count + payer)]),
            "payers_of_payers": total(payee, payers[payer]),
            "payees_of_payees": total(payer, payees[payee]),
        }
    x = np.stack([columns[each] for each in FEATURES], axis=1).astype(np.float32)
    x[~np.isfinite(x)] = np.nan
    y = _column(path, nodes, "isFraud")
    return Block(name, x, (y > 0).astype(np.uint8), np.nan_to_num(first))
