"""Reading other members' logs and asking their witnesses, over HTTPS that trusts one member at a time."""

import asyncio

import httpx

from protocols.errors import DecodeError
from protocols.ledger import checkpoints, events, notes, tiles

from ..config import Home
from ..identity.members import Member
from ..querier.peers import PeerFailed
from . import tls

_KEPT_SECONDS = 150.0  # beyond a tick of the default length
_AGAIN_SECONDS = 0.2
_SECONDS, _WHOLE_SECONDS = 5.0, 20.0
_MAX_TILE = tiles.WIDTH * (events.MAX_LEAF + 2)
_MAX_HEAD = notes.MAX_NOTE


class LedgerClient:
    """One per node; keeps a connection to each member warm."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._open: dict[str, tuple[tuple[str, bytes], httpx.AsyncClient]] = {}
        self._replaced: list[httpx.AsyncClient] = []

    def _client(self, member: Member) -> httpx.AsyncClient:
        pin = (member.ledger_endpoint, member.trusted_pem())
        known = self._open.get(member.id)
        if known is not None and known[0] == pin:
            return known[1]
        if known is not None:
            self._replaced.append(known[1])
        client = httpx.AsyncClient(
            base_url=f"https://{member.ledger_endpoint}/",
            verify=tls.for_member(member, self._home),
            timeout=_SECONDS,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(
                max_connections=8, max_keepalive_connections=4, keepalive_expiry=_KEPT_SECONDS
            ),
        )
        self._open[member.id] = (pin, client)
        return client

    async def _call(
        self, member: Member, method: str, path: str, limit: int, body: bytes | None = None
    ) -> tuple[int, str, bytes]:
        """`_once`, and once more where the other side asks to shake hands anew: its member list has changed."""
        answer = await self._once(member, method, path, limit, body)
        if answer[0] == 503:
            await asyncio.sleep(_AGAIN_SECONDS)
            answer = await self._once(member, method, path, limit, body)
        return answer

    async def _once(
        self, member: Member, method: str, path: str, limit: int, body: bytes | None = None
    ) -> tuple[int, str, bytes]:
        """(status, type, content); raises `PeerFailed` where there is no answer, or one that is too long."""
        name = member.name.name
        try:
            async with (
                asyncio.timeout(
                    _WHOLE_SECONDS
                ),  # a timeout of its own: the other one begins anew with each byte
                self._client(member).stream(
                    method,
                    path,
                    content=body,
                    headers={"Accept-Encoding": "identity"},
                    extensions={"sni_hostname": member.name.dns},
                ) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > limit:
                        raise PeerFailed(
                            "failed", f"{name}: its ledger answers too much at {path}", "INVALID"
                        )
                return response.status_code, response.headers.get("content-type", ""), bytes(content)
        except (httpx.TimeoutException, TimeoutError) as error:
            raise PeerFailed("timeout", f"{name}: its ledger did not answer in time", "TIMEOUT") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise PeerFailed(
                "unreachable",
                f"{name}: its ledger cannot be reached ({member.ledger_endpoint})",
                "UNREACHABLE",
            ) from error

    async def _read(self, member: Member, path: str, limit: int) -> bytes | None:
        status, _, content = await self._call(member, "GET", path, limit)
        if status == 404:
            return None
        if status != 200:
            raise PeerFailed("failed", f"{member.name.name}: its ledger answers {status} at {path}", "LEDGER")
        return content

    async def head(self, member: Member) -> bytes | None:
        """The newest head that the member has published, unverified; `None` before the first."""
        return await self._read(member, "checkpoint", _MAX_HEAD)

    async def cosigned(self, member: Member, origin: str) -> bytes | None:
        """The newest head of a log that the member has cosigned, unverified; `None` for never."""
        path = f"witness/{checkpoints.origin_hash(origin)}/checkpoint"
        return await self._read(member, path, _MAX_HEAD)

    async def entries(self, member: Member, number: int, width: int, prefix: str = "") -> list[bytes]:
        """The first `width` entries of a bundle. Raises `PeerFailed` where they are not there or malformed."""
        path = prefix + tiles.path(tiles.ENTRIES, number, width)
        content = await self._read(member, path, _MAX_TILE)
        try:
            found = tiles.unpack(content or b"")
        except DecodeError as error:
            raise PeerFailed("failed", f"{member.name.name}: {path}: {error}", "INVALID") from error
        if len(found) != width:
            raise PeerFailed(
                "failed", f"{member.name.name}: {path} holds {len(found)} entries, not {width}", "INVALID"
            )
        return found

    async def mirrored(self, member: Member, origin: str, start: int, end: int) -> list[bytes]:
        """Leaves [start, end) of a log out of the member's copy of it."""
        prefix = f"mirror/{checkpoints.origin_hash(origin)}/"
        leaves: list[bytes] = []
        for number in range(start // tiles.WIDTH, -(-end // tiles.WIDTH)):
            leaves += await self.entries(member, number, tiles.width(tiles.ENTRIES, number, end), prefix)
        return leaves[start % tiles.WIDTH :]

    async def add_checkpoint(self, member: Member, body: bytes) -> tuple[int, str, bytes]:
        """Ask the member's witness: (status, type, content)."""
        return await self._call(member, "POST", "add-checkpoint", _MAX_HEAD, body)

    async def close(self) -> None:
        """Close every connection."""
        for client in [*self._replaced, *(client for _, client in self._open.values())]:
            await client.aclose()
        self._replaced.clear()
        self._open.clear()
