"""Generated accounts of several banks: fraud is rare, of a few kinds, and not alike at every bank.

The numbers are drawn to be believable, not measured: amounts are log-normal, most accounts are old, and a mule account
is young, receives from many, keeps nothing and lives at night; a taken-over account changes device and pays a new payee;
a scam victim pays one unusually large amount. Three in ten frauds look ordinary, some ordinary rows look like fraud, and
some features are missing at some banks more than at others.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .data import Block

FEATURES = (
    "account_age_days",
    "balance",
    "amount_in_30d",
    "amount_out_30d",
    "largest_out_30d",
    "payments_in_30d",
    "payments_out_30d",
    "counterparties_in",
    "counterparties_out",
    "new_payees_30d",
    "night_share",
    "minutes_in_to_out",
    "share_kept",
    "devices_90d",
    "device_accounts",
    "phone_accounts",
    "logins_30d",
    "failed_logins_30d",
    "password_changes_90d",
    "remote_control_minutes",
    "calls_before_payment",
    "distance_km",
    "age_years",
    "salary_months",
    "card_present_share",
    "round_amounts_share",
    "foreign_share",
    "cash_out_share",
    "complaints_365d",
    "risk_score_old",
)
KINDS = 3


def accounts(
    rows: int, fraud_rate: float, seed: int, name: str, kinds: npt.NDArray[np.float64] | None = None
) -> Block:
    """One bank's accounts; `kinds` are the shares of mules, take-overs and scams among its frauds, shape (3,)."""
    rng = np.random.default_rng([seed, *name.encode()])
    shares = rng.dirichlet(np.full(KINDS, 2.0)) if kinds is None else kinds
    fraud = rng.random(rows) < fraud_rate
    if fraud.sum() < 2:
        fraud[rng.choice(rows, min(2, rows), replace=False)] = True
    kind = np.where(fraud, rng.choice(KINDS, rows, p=shares), -1)
    ordinary_looking = rng.random(rows) < 0.3
    suspicious = (rng.random(rows) < 0.004) & ~fraud
    kind = np.where(fraud & ordinary_looking, -1, np.where(suspicious, rng.integers(0, KINDS, rows), kind))
    level = rng.normal(0, 0.25)  # each bank has its own customers

    def some(which: int, share: float = 0.85) -> npt.NDArray[np.bool_]:
        return np.asarray((kind == which) & (rng.random(rows) < share))

    mule, taken, scam = some(0), some(1), some(2)
    x: dict[str, npt.NDArray[Any]] = {}
    x["account_age_days"] = np.where(mule, rng.exponential(90, rows), rng.gamma(2.0, 900, rows))
    income = np.exp(rng.normal(8.8 + level, 0.8, rows))
    x["amount_in_30d"] = income * np.where(mule, rng.gamma(3, 2.5, rows), rng.gamma(4, 0.25, rows))
    kept = np.where(mule, rng.beta(1, 20, rows), rng.beta(3, 6, rows))
    x["share_kept"] = kept
    x["amount_out_30d"] = x["amount_in_30d"] * (1 - kept) * np.where(scam, rng.gamma(4, 1.2, rows), 1.0)
    x["largest_out_30d"] = x["amount_out_30d"] * np.where(
        scam | taken, rng.beta(8, 2, rows), rng.beta(2, 5, rows)
    )
    x["balance"] = income * np.where(mule, rng.gamma(0.5, 0.1, rows), rng.gamma(1.2, 3, rows))
    x["payments_in_30d"] = rng.poisson(np.where(mule, 25, 6), rows)
    x["payments_out_30d"] = rng.poisson(np.where(mule, 30, 22), rows)
    x["counterparties_in"] = rng.poisson(np.where(mule, 16, 3), rows)
    x["counterparties_out"] = rng.poisson(np.where(mule, 5, 9), rows)
    x["new_payees_30d"] = rng.poisson(np.where(mule, 4, np.where(taken | scam, 2.2, 0.7)), rows)
    x["night_share"] = np.where(mule | taken, rng.beta(3, 4, rows), rng.beta(1.2, 12, rows))
    x["minutes_in_to_out"] = np.exp(rng.normal(np.where(mule, 2.5, 7.5), 1.2, rows))
    x["devices_90d"] = 1 + rng.poisson(np.where(taken, 1.6, 0.35), rows)
    x["device_accounts"] = 1 + rng.poisson(np.where(mule, 2.4, 0.12), rows)
    x["phone_accounts"] = 1 + rng.poisson(np.where(mule, 1.5, 0.1), rows)
    x["logins_30d"] = rng.poisson(np.where(mule, 60, 26), rows)
    x["failed_logins_30d"] = rng.poisson(np.where(taken, 2.5, 0.4), rows)
    x["password_changes_90d"] = rng.poisson(np.where(taken, 1.1, 0.08), rows)
    x["remote_control_minutes"] = np.where(scam, rng.exponential(18, rows), rng.exponential(0.4, rows))
    x["calls_before_payment"] = rng.poisson(np.where(scam, 2.5, 0.15), rows)
    x["distance_km"] = np.exp(rng.normal(np.where(taken, 5.0, 2.0), 1.3, rows))
    x["age_years"] = np.clip(rng.normal(np.where(scam, 58, 41), 13, rows), 16, 99).round()
    x["salary_months"] = np.where(mule, rng.poisson(0.5, rows), rng.poisson(7, rows))
    x["card_present_share"] = np.where(mule | scam, rng.beta(1, 8, rows), rng.beta(3, 3, rows))
    x["round_amounts_share"] = np.where(mule | scam, rng.beta(5, 3, rows), rng.beta(2, 6, rows))
    x["foreign_share"] = rng.beta(0.5, 12, rows)
    x["cash_out_share"] = np.where(mule, rng.beta(3, 3, rows), rng.beta(1.5, 9, rows))
    x["complaints_365d"] = rng.poisson(np.where(mule, 0.3, 0.03), rows)
    x["risk_score_old"] = rng.normal(np.where(mule | taken | scam, 0.6, 0.0), 1.0, rows)
    matrix = np.stack([x[each] for each in FEATURES], axis=1).astype(np.float32)
    for index, share in ((13, 0.1), (19, 0.25), (20, 0.4), (21, 0.15), (28, 0.05)):
        matrix[rng.random(rows) < share * rng.uniform(0.5, 1.5), index] = np.nan
    return Block(name, matrix, fraud.astype(np.uint8), rng.uniform(0, 365, rows))


def banks(count: int, rows: int, fraud_rate: float, seed: int) -> list[Block]:
    """Banks of different sizes (`rows` on average) with different mixes of fraud."""
    rng = np.random.default_rng([seed, count, rows])
    sizes = np.maximum(50, rng.dirichlet(np.full(count, 4.0)) * rows * count).astype(int)
    rates = fraud_rate * rng.uniform(0.5, 1.5, count)
    return [
        accounts(int(size), float(rate), seed, f"bank-{index + 1}")
        for index, (size, rate) in enumerate(zip(sizes, rates, strict=True))
    ]
