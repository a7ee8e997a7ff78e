"""What the peers' PSI costs, run by their own interpreters; prints JSON. CPU seconds and bytes sent of [who learns, the other]."""

import json
import multiprocessing
import resource
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


def _party(rank: int, protocol: str, bits: int, folder: str, ports: list[int], out) -> None:
    from spu import psi
    from spu.libspu import link

    place = Path(folder) / str(rank)
    place.mkdir()
    count = 1 << bits
    lines = values(count, 0 if rank == 0 else count // 2)
    (place / "in.csv").write_text("\n".join(["id", *(line.replace("\x1f", "") for line in lines)]) + "\n")
    description = link.Desc()
    for number, port in enumerate(ports):
        description.add_party(f"p{number}", f"127.0.0.1:{port}")
    context = link.create_brpc(description, rank)
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
    before = resource.getrusage(resource.RUSAGE_SELF)
    psi.psi_execute(config, context)
    used = resource.getrusage(resource.RUSAGE_SELF)
    statistics = context.get_statistics() if hasattr(context, "get_statistics") else None
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    out.put((rank, seconds, getattr(statistics, "sent_bytes", 0)))


def spu(protocol: str, bits: int) -> dict:
    """The SPU wheel's, two processes on loopback, from CSV to CSV."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        parties = [
            context.Process(target=_party, args=(rank, protocol, bits, folder, ports, out)) for rank in (0, 1)
        ]
        for party in parties:
            party.start()
        found = sorted(out.get(timeout=1200) for _ in parties)
        for party in parties:
            party.join()
    return {"seconds": [each[1] for each in found], "bytes": [each[2] for each in found]}


if __name__ == "__main__":
    what, size = sys.argv[1], int(sys.argv[2])
    print(json.dumps(openmined(size) if what == "openmined" else spu(what, size)))
