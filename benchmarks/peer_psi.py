"""What the peers' PSI costs, run by their own interpreters; prints JSON. CPU seconds and bytes sent of [who learns, the other]."""

import functools
import json
import multiprocessing
import resource
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path


def values(count: int, start: int) -> list[str]:
    return [f"phone\x1f+86139{i + start:08d}" for i in range(count)]


def openmined(bits: int) -> dict:
    """ECDH, semi-honest, in one process: the client learns."""
    import private_set_intersection.python as psi

    count = 1 << bits
    mine, theirs = values(count, 0), values(count, count // 2)
    server, client = psi.server.CreateWithNewKey(True), psi.client.CreateWithNewKey(True)
    seconds = [0.0, 0.0]

    def clocked(side, work):
        started = time.process_time()
        result = work()
        seconds[side] += time.process_time() - started
        return result

    setup = clocked(1, lambda: server.CreateSetupMessage(1e-9, count, theirs, psi.DataStructure.RAW))
    request = clocked(0, lambda: client.CreateRequest(mine))
    response = clocked(1, lambda: server.ProcessRequest(request))
    found = clocked(0, lambda: client.GetIntersection(setup, response))
    assert len(found) == count - count // 2
    sizes = [len(each.SerializeToString()) for each in (request, setup, response)]
    return {"seconds": seconds, "bytes": [sizes[0], sizes[1] + sizes[2]]}


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["id", *(line.replace("\x1f", "") for line in lines)]) + "\n")


def _link(rank: int, ports: list[int]):
    from spu.libspu import link

    description = link.Desc()
    for number, port in enumerate(ports):
        description.add_party(f"p{number}", f"127.0.0.1:{port}")
    return link.create_brpc(description, rank)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _party(rank: int, ports: list[int], folder: str, out, protocol: str, bits: int) -> None:
    from spu import psi

    place = Path(folder) / str(rank)
    place.mkdir()
    count = 1 << bits
    _write(place / "in.csv", values(count, 0 if rank == 0 else count // 2))
    context = _link(rank, ports)
    kinds = {"ecdh": psi.PsiProtocol.PROTOCOL_ECDH, "rr22": psi.PsiProtocol.PROTOCOL_RR22}
    config = psi.PsiExecuteConfig(
        protocol_conf=psi.PsiProtocolConfig(
            protocol=kinds[protocol],
            receiver_rank=0,
            broadcast_result=False,
            ecdh_params=psi.EcdhParams(curve=psi.EllipticCurveType.CURVE_25519),
        ),
        input_params=psi.InputParams(
            type=psi.SourceType.SOURCE_TYPE_FILE_CSV, path=str(place / "in.csv"), selected_keys=["id"]
        ),
        output_params=psi.OutputParams(type=psi.SourceType.SOURCE_TYPE_FILE_CSV, path=str(place / "out.csv")),
    )
    before, started = _cpu(), time.monotonic()
    psi.psi_execute(config, context)
    wall = time.monotonic() - started
    statistics = context.get_statistics() if hasattr(context, "get_statistics") else None
    out.put((rank, _cpu() - before, getattr(statistics, "sent_bytes", 0), wall))


def _unbalanced_party(rank: int, ports: list[int], folder: str, out, entries: int, asked: int) -> None:
    """Of the client (0) a file of `asked`, of the server (1) one of `entries`; half of the client's are listed."""
    from spu import psi

    place = Path(folder) / str(rank)
    place.mkdir()
    _write(place / "in.csv", values(asked, entries - asked // 2) if rank == 0 else values(entries, 0))
    (place / "key").write_bytes(secrets.token_bytes(32))
    context = _link(rank, ports)

    def run(mode) -> list[float]:
        config = psi.UbPsiExecuteConfig(
            mode=mode,
            role=psi.UbPsiRole.ROLE_SERVER if rank else psi.UbPsiRole.ROLE_CLIENT,
            client_receive_result=True,
            cache_path=str(place / "cache"),
            input_params=psi.InputParams(
                type=psi.SourceType.SOURCE_TYPE_FILE_CSV, path=str(place / "in.csv"), selected_keys=["id"]
            ),
            output_params=psi.OutputParams(
                type=psi.SourceType.SOURCE_TYPE_FILE_CSV, path=str(place / "out.csv")
            ),
            server_params=psi.UbPsiServerParams(secret_key_path=str(place / "key")),
        )
        cpu, wall = _cpu(), time.monotonic()
        report = psi.ub_psi_execute(config, context)
        if rank == 0 and mode == psi.UbPsiMode.MODE_ONLINE:
            assert report.intersection_count == asked // 2, report.intersection_count
        return [_cpu() - cpu, time.monotonic() - wall]

    out.put((rank, run(psi.UbPsiMode.MODE_OFFLINE), run(psi.UbPsiMode.MODE_ONLINE)))


def unbalanced(entries: int, asked: int) -> dict:
    """The SPU wheel's PSI of few against many: semi-honest, no labels. [CPU, wall] seconds of [client, server]."""
    found = _two(_unbalanced_party, entries, asked)
    return {"offline": [each[1] for each in found], "online": [each[2] for each in found]}


def spu(protocol: str, bits: int) -> dict:
    """The SPU wheel's, two processes on loopback, from CSV to CSV."""
    found = _two(_party, protocol, bits)
    seconds, sent, wall = zip(*(each[1:] for each in found), strict=True)
    return {"seconds": seconds, "bytes": sent, "wall": max(wall)}


def _two(party, *arguments) -> list[tuple]:
    """What both parties put out, the first one's first."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        parties = [
            context.Process(target=party, args=(rank, ports, folder, out, *arguments)) for rank in (0, 1)
        ]
        for each in parties:
            each.start()
        found = sorted(out.get(timeout=1200) for _ in parties)
        for each in parties:
            each.join()
    return found


if __name__ == "__main__":
    what, *sizes = sys.argv[1], *map(int, sys.argv[2:])
    work = {"openmined": openmined, "unbalanced": unbalanced}.get(what) or functools.partial(spu, what)
    print(json.dumps(work(*sizes)))
