"""What each side has learnt, computed from the messages that were captured on the wire."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message
from lianfang.v1 import lookup_pb2, node_pb2, sync_pb2

_START = 8

_TYPES: dict[str, type[Message]] = {
    each.DESCRIPTOR.name: each
    for each in (
        lookup_pb2.EvaluateRequest,
        lookup_pb2.EvaluateResponse,
        node_pb2.GetInfoRequest,
        node_pb2.GetInfoResponse,
        sync_pb2.PullRequest,
        sync_pb2.PullResponse,
        sync_pb2.FollowResponse,
    )
}


@dataclass(frozen=True)
class Captured:
    """One message as it was sent."""

    at: float
    side: str
    method: str
    peer: str
    data: bytes
    message: Message


def read(path: Path) -> list[Captured]:
    """All messages of a capture file."""
    out = []
    for line in path.read_text("ascii").splitlines():
        record = json.loads(line)
        data = base64.b64decode(record["bytes"])
        message = _TYPES[record["message"]].FromString(data)
        out.append(Captured(record["at"], record["side"], record["method"], record["peer"], data, message))
    return out


def traces(values: Iterable[str], canonical: Iterable[bytes]) -> list[bytes]:
    """Byte strings that would give an identifier away: raw, canonical, and common hashes of both."""
    plain = {value.encode() for value in values} | set(canonical)
    found = set(plain)
    for each in plain:
        for name in ("md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256"):
            digest = hashlib.new(name, each).digest()
            found |= {digest, digest.hex().encode()}
        found.add(base64.b64encode(each))
    return sorted(found)


@dataclass
class HolderView:
    """What a holder has seen of one member's questions."""

    member: str
    questions: int = 0
    points: int = 0
    purposes: Counter[int] = field(default_factory=Counter)
    repeated_points: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


def holder_view(messages: list[Captured]) -> list[HolderView]:
    """By asking member: how many points, for what purpose, and whether any point came twice."""
    views: dict[str, HolderView] = {}
    seen: set[bytes] = set()
    for each in messages:
        if each.method != "Evaluate":
            continue
        view = views.setdefault(each.peer, HolderView(each.peer))
        if each.side == "in":
            request = lookup_pb2.EvaluateRequest.FromString(each.data)
            points = [request.blinded[i : i + 32] for i in range(0, len(request.blinded), 32)]
            view.questions += 1
            view.points += len(points)
            view.purposes[request.purpose] += 1
            view.repeated_points += sum(point in seen for point in points)
            view.bytes_in += len(each.data)
            seen.update(points)
        else:
            view.bytes_out += len(each.data)
    return list(views.values())


def search(messages: list[Captured], needles: list[bytes]) -> int:
    """How many of the byte strings (of 8 bytes or more) occur in any message."""
    return len(occurring(b"\x00".join(each.data for each in messages), needles))


def occurring(haystack: bytes, needles: Iterable[bytes]) -> set[bytes]:
    """Those needles that occur; one pass over the haystack for all of them."""
    by_start: dict[bytes, list[bytes]] = {}
    for needle in needles:
        if len(needle) < _START:
            raise ValueError(f"a needle has at least {_START} bytes")
        by_start.setdefault(needle[:_START], []).append(needle)
    found = set()
    for i in range(len(haystack) - _START + 1):
        for needle in by_start.get(haystack[i : i + _START], ()):
            if haystack.startswith(needle, i):
                found.add(needle)
    return found


def synced_bytes(messages: list[Captured]) -> int:
    """Bytes of sealed lists that a querier received."""
    return sum(len(each.data) for each in messages if each.method == "Pull" and each.side == "in")


def contents(*places: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file at or below the places, and what it holds. Nodes may be running: a file that is being written
    anew is seen under its own name.
    """
    for place in places:
        for path in [place, *place.rglob("*")]:
            try:
                if path.is_file():
                    yield path, path.read_bytes()
            except FileNotFoundError:
                if path.suffix != ".tmp":
                    raise
