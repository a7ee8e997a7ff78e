"""The made-up case, drawn from a seed: one believable story, and lists of three banks around it.

A pensioner is talked into twelve transfers on one night. The money goes to 7 first-level accounts and on, within
the hour, to 19 second-level accounts at three banks. The accounts share telephones and devices: a crew works
them. Each bank knows some of the pieces from cases of its own; none knows enough alone.

All identifiers are made up. Resident IDs lie in regions that GB/T 2260 does not assign.
"""

import csv
import datetime as dt
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protocols.identifiers import checksums

BANKS = ("bank-a", "bank-b", "bank-c")
_BINS = {"bank-a": "622202", "bank-b": "621700", "bank-c": "622848"}
_REGION = "77"  # no province has it
_MOBILE = ("134", "135", "136", "137", "138", "139", "150", "151", "152", "157", "158", "159", "182", "187")
_MAIL = ("qq.com", "163.com", "126.com", "foxmail.com", "sina.com")
HEADER = (
    "kind",
    "value",
    "category",
    "severity",
    "confidence",
    "basis",
    "observed_on",
    "valid_until",
    "reason",
)
QUESTION = 1_000
_DIRTY = 0.005


@dataclass(frozen=True)
class Account:
    """A mule account: who holds it, how it is worked, and what went through it."""

    level: int
    bank: str
    card: str
    resident_id: str
    phone: str
    device: str
    amount: int
    at: dt.datetime
    source: int  # index of the first-level account it was fed from, or -1


@dataclass
class Story:
    """Everything the demonstration needs, and the truth it is checked against."""

    today: dt.date
    accounts: list[Account]
    rows: dict[str, list[list[str]]]  # a bank's list, in the order of its file
    dirty: dict[str, int]
    question: list[tuple[str, str]]  # kind and value
    expected: dict[tuple[str, str], str]  # (value as asked, bank) → category
    withdrawn: tuple[str, str] = ("", "")  # bank and value withdrawn before the question
    expired: tuple[str, str] = ("", "")
    reissued: tuple[str, str] = ("", "")
    lone: list[str] = field(default_factory=list)  # values for the bank that runs into its budget


class _Maker:
    """Draws identifiers; never the same one twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def _fresh(self, make: Callable[[], object]) -> str:
        while True:
            value = str(make())
            if value not in self._used:
                self._used.add(value)
                return value

    def _digits(self, count: int) -> str:
        return "".join(self._rng.choices("0123456789", k=count))

    def phone(self) -> str:
        return self._fresh(lambda: self._rng.choice(_MOBILE) + self._digits(8))

    def card(self, bank: str) -> str:
        def make() -> str:
            body = _BINS[bank] + self._digits(12)
            return body + checksums.luhn_digit(body)

        return self._fresh(make)

    def resident_id(self) -> str:
        def make() -> str:
            born = dt.date(1950, 1, 1) + dt.timedelta(days=self._rng.randrange(20_000))
            body = f"{_REGION}{self._digits(4)}{born:%Y%m%d}{self._digits(3)}"
            return body + checksums.resident_digit(body)

        return self._fresh(make)

    def device(self) -> str:
        return self._fresh(lambda: uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def email(self) -> str:
        letters = "abcdefghijklmnopqrstuvwxyz"

        def make() -> str:
            name = "".join(self._rng.choices(letters, k=self._rng.randint(5, 10)))
            return f"{name}{self._rng.randrange(10_000)}@{self._rng.choice(_MAIL)}"

        return self._fresh(make)

    def account(self, bank: str) -> str:
        return self._fresh(lambda: f"{_BINS[bank]}{self._digits(10)}")


def make(seed: int, entries: int, today: dt.date) -> Story:
    """The whole story; the same for the same arguments."""
    rng = random.Random(seed)
    maker = _Maker(rng)
    accounts = _accounts(rng, maker, today)
    story = Story(today, accounts, {bank: [] for bank in BANKS}, {}, [], {})
    _plant(rng, maker, story)
    for bank in BANKS:
        _fill(rng, maker, story, bank, entries)
    _ask(rng, maker, story)
    return story


def _accounts(rng: random.Random, maker: _Maker, today: dt.date) -> list[Account]:
    night = dt.datetime.combine(today - dt.timedelta(days=1), dt.time(1, 40))
    phones = [maker.phone() for _ in range(9)]  # 26 accounts, 9 telephones
    devices = [maker.device() for _ in range(6)]
    accounts = []
    for i in range(7):
        amount = rng.randrange(18_000, 50_000, 100)
        at = night + dt.timedelta(minutes=i * 4 + rng.randrange(3))
        accounts.append(_account(maker, 1, BANKS[i % 3], phones[i % 4], devices[i % 3], amount, at, -1))
    for i in range(19):
        source = i % 7
        fed = accounts[source]
        amount = max(1_000, fed.amount * rng.randrange(25, 45) // 100)
        at = fed.at + dt.timedelta(minutes=rng.randrange(3, 40))
        phone, device = phones[4 + i % 5], devices[3 + i % 3]
        accounts.append(_account(maker, 2, rng.choice(BANKS), phone, device, amount, at, source))
    return accounts


def _account(
    maker: _Maker, level: int, bank: str, phone: str, device: str, amount: int, at: dt.datetime, source: int
) -> Account:
    return Account(level, bank, maker.card(bank), maker.resident_id(), phone, device, amount, at, source)


def _row(story: Story, kind: str, value: str, category: str, reason: str, age: int, basis: str) -> list[str]:
    seen = story.today - dt.timedelta(days=age)
    severity = "5" if basis == "police-certified" else "4"
    return [kind, value, category, severity, "80", basis, seen.isoformat(), "", reason]


def _plant(rng: random.Random, maker: _Maker, story: Story) -> None:
    """What each bank already knows of the case, by the bank's own earlier cases: 40 hits."""

    def plant(bank: str, kind: str, value: str, category: str, reason: str, age: int) -> None:
        basis = rng.choice(("police-certified", "own-investigation", "report"))
        story.rows[bank].append(_row(story, kind, value, category, reason, age, basis))
        story.expected[(value, bank)] = category

    first = [account for account in story.accounts if account.level == 1]
    second = [account for account in story.accounts if account.level == 2]
    for account in first[:5]:  # 5: another bank than the account's own has met the card
        other = BANKS[(BANKS.index(account.bank) + 1) % 3]
        plant(other, "card", account.card, "mule-account", "first-level-recipient", rng.randint(5, 60))
    for account in second[:11]:  # 11
        plant(
            account.bank, "card", account.card, "mule-account", "second-level-recipient", rng.randint(1, 90)
        )
    for i, phone in enumerate(sorted({account.phone for account in story.accounts})):  # 9, and 3 at two banks
        plant(BANKS[i % 3], "phone", phone, "telecom-fraud", "shared-phone", rng.randint(10, 120))
        if i < 3:
            plant(BANKS[(i + 1) % 3], "phone", phone, "telecom-fraud", "victim-report", rng.randint(10, 120))
    for i, device in enumerate(sorted({account.device for account in story.accounts})):  # 6
        plant(BANKS[(i + 2) % 3], "device", device, "suspicious-device", "shared-device", rng.randint(3, 100))
    for account in second[12:17]:  # 5
        plant(account.bank, "resident-id", account.resident_id, "money-laundering", "night-burst", 33)
    # A number the carrier has reissued: still on the list, and the age shows how little it means.
    reissued = maker.phone()
    plant("bank-b", "phone", reissued, "telecom-fraud", "victim-report", 171)
    story.reissued = ("bank-b", reissued)
    # An entry that has expired, and one that is withdrawn before the question: neither may hit.
    expired = maker.phone()
    row = _row(story, "phone", expired, "telecom-fraud", "victim-report", 200, "report")
    row[7] = (story.today - dt.timedelta(days=20)).isoformat()
    story.rows["bank-a"].append(row)
    story.expired = ("bank-a", expired)
    withdrawn = maker.card("bank-c")
    story.rows["bank-c"].append(
        _row(story, "card", withdrawn, "mule-account", "second-level-recipient", 40, "report")
    )
    story.withdrawn = ("bank-c", withdrawn)


def _fill(rng: random.Random, maker: _Maker, story: Story, bank: str, entries: int) -> None:
    """The rest of a bank's list, and its dirty rows."""
    rows = story.rows[bank]
    dirty = round(entries * _DIRTY)
    kinds = ("phone", "card", "resident-id", "device", "email", "account")
    while len(rows) < entries - dirty:
        kind = rng.choices(kinds, (38, 30, 14, 8, 6, 4))[0]
        value = getattr(maker, kind.replace("-", "_"))(*((bank,) if kind in ("card", "account") else ()))
        category = rng.choice(("telecom-fraud", "mule-account", "gambling", "money-laundering", "phishing"))
        basis = rng.choice(("police-certified", "own-investigation", "report", "court"))
        rows.append(_row(story, kind, value, category, "none", rng.randint(0, 150), basis))
    spoilt = (
        lambda: ("phone", "1.38E+10"),
        lambda: ("card", maker.card(bank)[:6] + "******" + "1234"),
        lambda: ("resident-id", maker.resident_id()[:17] + "*"),
        lambda: ("phone", "4008" + str(rng.randrange(10**6)).zfill(6)),
        lambda: ("email", "nobody.example.com"),
        lambda: ("card", f"{rng.randrange(10**6, 10**8)}.0"),
    )
    for i in range(dirty):
        kind, value = spoilt[i % len(spoilt)]()
        rows.append(_row(story, kind, value, "telecom-fraud", "none", 1, "report"))
    story.dirty[bank] = dirty
    rng.shuffle(rows)


def _ask(rng: random.Random, maker: _Maker, story: Story) -> None:
    """The centre's question: all that the case's papers name, and customers who have nothing to do with it."""
    named = {("phone", value) for value in (story.reissued[1], story.expired[1])}
    named.add(("card", story.withdrawn[1]))
    for account in story.accounts:
        named |= {("card", account.card), ("phone", account.phone), ("device", account.device)}
        named.add(("resident-id", account.resident_id))
    question = sorted(named)
    while len(question) < QUESTION:
        kind = rng.choices(("phone", "card", "resident-id", "email"), (40, 35, 20, 5))[0]
        value = maker.card(rng.choice(BANKS)) if kind == "card" else getattr(maker, kind.replace("-", "_"))()
        question.append((kind, value))
    rng.shuffle(question)
    story.question = question
    story.lone = [maker.phone() for _ in range(120)]


def write(story: Story, folder: Path) -> dict[str, Path]:
    """Each bank's list as its own CSV file (with a bank code where a row is an account); returns the paths."""
    paths = {}
    for bank, rows in story.rows.items():
        path = folder / f"{bank}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*HEADER, "institution"])
            writer.writerows(
                [*row, bank.replace("-", "").upper() if row[0] == "account" else ""] for row in rows
            )
        paths[bank] = path
    paths["question"] = folder / "question.csv"
    with paths["question"].open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("kind", "value"), *story.question])
    return paths
