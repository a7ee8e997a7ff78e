"""What a question costs that nobody works at: the same processes, channels and sizes of messages, and no work.

Three servers under mutual TLS answer an asker, who answers a program on a socket: bare gRPC, as the nodes of a network use it.
"""

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop
from cryptography import x509

from nodes.demo.network import Network, free_port
from nodes.identity.keys import NodeKeys
from nodes.identity.members import MemberBook
from nodes.services import wire

METHOD = "/floor.Floor/Ask"
QUESTION, REPLY = 200, 500  # bytes, about what `Admin.Ask` takes and gives
EVALUATE, EVALUATED = 780, 690  # and `Lookup.Evaluate`
SECONDS = 60.0


def identity(folder: Path) -> tuple[NodeKeys, bytes, bytes]:
    """Keys, certificate and CA of a member of a network."""
    certificate, ca = ((folder / "certs" / name).read_bytes() for name in ("node.crt", "ca.crt"))
    return NodeKeys.load(folder / "keys"), certificate, ca


async def serve(
    handler: Callable[[bytes, Any], Awaitable[bytes]], address: str, credentials: grpc.ServerCredentials
) -> None:
    server = grpc.aio.server(options=wire.SERVER_OPTIONS)
    service, _, method = METHOD[1:].partition("/")
    methods = {method: grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
    server.add_secure_port(address, credentials)
    await server.start()
    await server.wait_for_termination()


async def holder(folder: Path, port: str) -> None:
    keys, certificate, ca = identity(folder)
    answer = secrets.token_bytes(EVALUATED)

    async def evaluate(request: bytes, context: Any) -> bytes:
        return answer

    pairs = [(keys.tls_pem(), certificate)]
    credentials = grpc.ssl_server_credentials(pairs, ca, require_client_auth=True)
    await serve(evaluate, f"127.0.0.1:{port}", credentials)


async def asker(folder: Path, socket: str, *holders: str) -> None:
    """`holders`: name and port of each."""
    keys, certificate, ca = identity(folder)
    members = MemberBook(folder / "certs" / "members.bin", x509.load_pem_x509_certificate(ca)).current
    calls = []
    for each in holders:
        name, _, port = each.partition(":")
        _, credentials, options = wire.secured(members.find(name), keys, certificate)
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)
        calls.append(channel.unary_unary(METHOD))
    request, reply = secrets.token_bytes(EVALUATE), secrets.token_bytes(REPLY)

    async def ask(question: bytes, context: Any) -> bytes:
        count = question[0]
        await asyncio.gather(*(call(request, timeout=SECONDS) for call in calls[:count]))
        return reply

    await serve(ask, f"unix:{socket}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))


class Transport:
    """The four processes, with the keys of a network's members."""

    def __init__(self, network: Network, asking: str, holders: Sequence[str]) -> None:
        socket = network.folder / "floor.sock"
        ports = {name: free_port() for name in holders}
        here = [sys.executable, __file__]
        self._processes = [
            subprocess.Popen([*here, "holder", str(network.node(name)), str(port)])
            for name, port in ports.items()
        ]
        places = [f"{name}:{port}" for name, port in ports.items()]
        self._processes.append(
            subprocess.Popen([*here, "asker", str(network.node(asking)), str(socket), *places])
        )
        self._channel = wire.admin_channel(socket)
        self._call = self._channel.unary_unary(METHOD)
        end = time.monotonic() + SECONDS
        while True:
            try:
                self.ask(len(holders))
                return
            except grpc.RpcError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def ask(self, holders: int) -> float:
        """Seconds until so many have answered."""
        question = bytes([holders]) + secrets.token_bytes(QUESTION - 1)
        started = time.perf_counter()
        self._call(question, timeout=SECONDS)
        return time.perf_counter() - started

    def close(self) -> None:
        self._channel.close()
        for process in self._processes:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    role, place, *others = sys.argv[1:]
    uvloop.run({"holder": holder, "asker": asker}[role](Path(place), *others))
