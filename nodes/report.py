"""What `status`, `peers`, `list stats` and `doctor` tell: plain dictionaries that become JSON or tables."""

import asyncio
import datetime as dt
import shutil
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from cryptography import x509

from protocols import group
from protocols.contract import State, waiting_for
from protocols.label import Basis, Category, Status, date_of, slug

from .cluster import knock
from .errors import NodeError, Refused
from .holder.epochs import ANSWERING
from .identity import certificates
from .policy import PURPOSE_NAMES
from .store import engine as db
from .store import schema

if TYPE_CHECKING:
    from .node import Node

PHONE_SPACE = 10**7  # numbers of one carrier in one city: what somebody might want to enumerate
_KEEP_SHOWN = 100


def date_text(day: int) -> str:
    """Days since 1970 as 2026-09-01; empty for 0, which is none."""
    date = date_of(day)
    return date.isoformat() if date else ""


def iso(seconds: float) -> str:
    """UTC time for people and programs."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(node: "Node") -> dict[str, Any]:
    """Who this node is, its lists, its copies, what was asked and refused today."""
    today = node.gate.day()
    with db.reading(node.database) as connection:
        usage, refusal = schema.usage, schema.refusal
        used = connection.execute(
            sa.select(usage.c.peer, usage.c.resource, sa.func.sum(usage.c.evaluations))
            .where(usage.c.day == today, usage.c.resource.not_like("%|%"))
            .group_by(usage.c.peer, usage.c.resource)
        ).all()
        refused = connection.execute(
            sa.select(refusal.c.peer, refusal.c.resource, refusal.c.reason, sa.func.sum(refusal.c.times))
            .where(refusal.c.day == today)
            .group_by(refusal.c.peer, refusal.c.resource, refusal.c.reason)
            .limit(_KEEP_SHOWN)
        ).all()
    return {
        "member": str(node.home.name),
        "software": f"lianfang {metadata.version('lianfang')}",
        "listen": node.home.config.node.listen,
        "members": len(list(node.book.current)),
        "member_list_version": node.book.current.version,
        "lists": [list_summary(node, name) for name in node.lists.names()],
        "copies": [
            {
                "member": copy.holder,
                "list": copy.list,
                "epoch": copy.epoch,
                "batch": copy.batch,
                "entries": node.tables.get(copy.holder, copy.list, copy.epoch).entries,
                "checked_at": iso(copy.checked_at),
                "as_of": iso(node.follower.as_of(copy)),
                "newest": node.follower.confirms(copy),
            }
            for copy in node.syncer.copies()
        ],
        "asked_of_us_today": [{"member": p, "list": r, "evaluations": n} for p, r, n in used],
        "refused_today": [{"member": p, "list": r, "reason": why, "times": n} for p, r, why, n in refused],
        "contracts": contract_counts(node),
        "alarms": [{**each, "at": iso(each["at"])} for each in node.pins.alarms()],
        "ledger": ledger(node),
        "people": {
            "waiting_for_a_second": node.actions.waiting(),
            "locked": node.people.locked(),
            "open_to_owner": node.people.open_to_owner,
        },
        "policy_trouble": node.policy.trouble,
    }


def contract_counts(node: "Node") -> dict[str, int]:
    """How many are in force, how many wait, and for how many of those this node's own word is missing."""
    now, own = node.contracts.now(), str(node.home.name)
    held = node.contracts.all()
    open_ = [each for each in held if each.state(now) is State.PROPOSED]
    return {
        "active": sum(each.state(now) is State.ACTIVE and not node.contracts.gone(each) for each in held),
        "proposed": len(open_),
        "dead": sum(each.state(now) is State.ACTIVE and bool(node.contracts.gone(each)) for each in held),
        "to_decide_here": sum(own in waiting_for(each.terms, each.acts) for each in open_),
    }


def ledger(node: "Node") -> dict[str, Any]:
    """How this node's log stands."""
    owner, published = node.log.owner, node.log.published
    return {
        "origin": node.log.origin,
        "size": node.log.size,
        "waiting": node.log.waiting(),
        "published_size": node.log.published_size,
        "published_at": iso(published.at) if published else "",
        "cosigned_by": len(published.head.cosigned) if published else 0,
        "witnesses": len(node.book.current.witnesses(owner)),
        "quorum": node.book.current.quorum(owner, node.log.settings.quorum),
        "unpublished_seconds": round(node.log.unpublished_for()),
        "not_cosigning": dict(node.publisher.refusing),
        "trouble": node.publisher.trouble,
    }


def list_summary(node: "Node", name: str) -> dict[str, Any]:
    """One list in a line."""
    epochs = node.epochs.all(name)
    newest = [epoch for epoch in epochs if epoch.state in ANSWERING][-1:]
    summary: dict[str, Any] = {"list": name, "live": node.lists.count_live(name), "epoch": 0, "batch": 0}
    summary["active"] = node.lists.is_active(name)
    if newest:
        batches = node.epochs.batches(name, newest[0].number)
        summary |= {
            "epoch": newest[0].number,
            "batch": batches[-1].number if batches else 0,
            "closes_at": iso(newest[0].closes_at),
            "pending": node.lists.count_changes(
                name, batches[-1].to_seq if batches else 0, node.lists.seq(name)
            ),
        }
    return summary


def list_statistics(node: "Node", name: str) -> dict[str, Any]:
    """Counts by status, kind, category and basis, and what is sealed."""
    counts = node.lists.statistics(name)
    named = {
        "status": {slug(Status(int(k))): v for k, v in counts["status"].items()},
        "kind": counts["kind"],
        "category": {slug(Category(int(k))): v for k, v in counts["category"].items()},
        "basis": {slug(Basis(int(k))): v for k, v in counts["basis"].items()},
    }
    epochs = []
    for epoch in node.epochs.all(name):
        batches = node.epochs.batches(name, epoch.number)
        files = [node.epochs.batch_path(name, epoch.number, batch.number) for batch in batches]
        epochs.append(
            {
                "epoch": epoch.number,
                "state": epoch.state,
                "closes_at": iso(epoch.closes_at),
                "batches": len(batches),
                "sealed": sum(batch.sealed for batch in batches),
                "tombstones": sum(batch.tombstones for batch in batches),
                "records": sum(batch.additions for batch in batches),
                "bytes": sum(path.stat().st_size for path in files if path.exists()),
            }
        )
    return {**list_summary(node, name), "counts": named, "epochs": epochs}


async def peers(node: "Node", probe: bool) -> dict[str, Any]:
    """The member list, and with `probe` each member's answer, clock and lists."""

    async def one(member: Any) -> dict[str, Any]:
        out: dict[str, Any] = {
            "member": member.id,
            "name": member.name.name,
            "role": member.name.role.value,
            "endpoint": member.endpoint,
        }
        if not probe:
            return out
        started = time.time()
        try:
            info = await node.syncer.info(member, node.home.config.ask.deadline_seconds)
        except NodeError as error:
            return {**out, "answers": False, "detail": str(error), "reason": error.reason}
        ended = time.time()
        return {
            **out,
            "answers": True,
            "milliseconds": round((ended - started) * 1000, 1),
            "clock_difference_seconds": round(info.now - (started + ended) / 2, 1),
            "software": info.software,
            "lists": [
                {
                    "list": head.list,
                    "purposes": [PURPOSE_NAMES.get(purpose, "?") for purpose in head.purposes],
                    "epoch_left": head.budget.epoch_left,
                    "day_left": head.budget.day_left,
                }
                for head in info.lists
            ],
        }

    members = node.peers.others(str(node.home.name))
    return {
        "member_list_version": node.book.current.version,
        "peers": await asyncio.gather(*(one(member) for member in members)),
    }


def _budgets(node: "Node") -> list[dict[str, Any]]:
    out = []
    for name in node.lists.names():
        for member in node.peers.others(str(node.home.name)):
            try:
                terms = node.rules.use(member, name)
            except Refused:
                continue
            epoch_days = node.home.config.lists.epoch_days
            daily = min(terms.day, terms.epoch / epoch_days)
            out.append(
                {
                    "member": member.name.name,
                    "list": name,
                    "day": terms.day,
                    "epoch": terms.epoch,
                    "days_to_enumerate": round(PHONE_SPACE / daily) if daily else -1,
                }
            )
    return out


def _cluster(node: "Node") -> dict[str, str]:
    """Where lists are sealed, if not here, and why not."""
    if node.cluster is None:
        return {}
    try:
        knock(node.cluster.address)
    except NodeError as error:
        return {"address": node.cluster.address, "trouble": str(error)}
    return {"address": node.cluster.address, "trouble": ""}


def _institutions(node: "Node") -> dict[str, Any]:
    """The directory of institutions, and accounts that nobody can ask for since it has not their bank."""
    directory = node.institutions.current.load()
    accounts = {}
    for name in node.lists.names():
        if codes := node.lists.institutions(name):
            unknown = {
                code: count for code, count in codes.items() if directory and not directory.knows(code)
            }
            accounts[name] = {"accounts": sum(codes.values()), "unknown": unknown}
    return {
        "hash": node.institutions.current.hash.hex(),
        "missing": node.institutions.missing.hex(),
        "institutions": len(directory) if directory else 0,
        "lists": accounts,
    }


async def diagnose(node: "Node") -> dict[str, Any]:
    """What only the running node knows."""
    disk = shutil.disk_usage(node.home.data)
    troubles = []
    for name in node.lists.names():
        for epoch in node.epochs.answering(name):
            try:
                node.epochs.key(name, epoch.number)
            except NodeError as error:
                troubles.append(f"{name}: {error}")
    own = x509.load_pem_x509_certificate((node.home.certs / "node.crt").read_bytes())
    try:
        bound = node.book.current.authenticate(own)
        binding = "" if bound.id == str(node.home.name) else f"the member list binds it to {bound.id}"
    except Refused as error:
        binding = str(error)
    return {
        "disk_free_bytes": disk.free,
        "certificate_expires": own.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "certificate_fingerprint": certificates.fingerprint(own),
        "certificate_trouble": binding,
        "member_list_valid_until": iso(node.book.current.valid_until),
        "group_backend": group.BACKEND,
        "group_reason": group.REASON.value,
        "workers": node.workers.count,
        "cluster": await asyncio.to_thread(_cluster, node),
        "key_troubles": troubles,
        "policy_trouble": node.policy.trouble,
        "institutions": await asyncio.to_thread(_institutions, node),
        "contracts": contract_counts(node),
        "capture": bool(node.home.capture),
        "ledger": await asyncio.to_thread(ledger, node),
        "budgets": await asyncio.to_thread(_budgets, node),
        **await peers(node, probe=True),
    }
