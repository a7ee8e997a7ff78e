"""What openmined.psi costs, run by its own interpreter; prints JSON. It has no labels and no proof."""

import json
import resource
import sys
import time

import private_set_intersection.python as psi


def cpu(work):
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def setup(count: int) -> dict:
    """CPU of sealing `count` entries."""
    server = psi.server.CreateWithNewKey(True)
    items = [f"phone\x1f+86139{i:08d}" for i in range(count)]
    message, seconds = cpu(lambda: server.CreateSetupMessage(1e-9, 10_000, items, psi.DataStructure.RAW))
    return {
        "entries": count,
        "cpu_per_entry": seconds / count,
        "bytes_per_entry": len(message.SerializeToString()) / count,
    }


def batches(count: int, sizes: list[int]) -> dict:
    """CPU of questions against a list of `count`."""
    server, client = psi.server.CreateWithNewKey(True), psi.client.CreateWithNewKey(True)
    message = server.CreateSetupMessage(
        1e-9, max(sizes), [f"phone\x1f+86139{i:08d}" for i in range(count)], psi.DataStructure.RAW
    )
    out = {}
    for size in sizes:
        values = [f"phone\x1f+86139{i * 7:08d}" for i in range(size)]
        request, a = cpu(lambda values=values: client.CreateRequest(values))
        response, b = cpu(lambda request=request: server.ProcessRequest(request))
        _, c = cpu(lambda response=response: client.GetIntersection(message, response))
        out[size] = {"request": a, "answer": b, "finish": c, "total": a + b + c}
    return {
        "entries": count,
        "batches": out,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    what, count, *sizes = sys.argv[1:]
    result = setup(int(count)) if what == "setup" else batches(int(count), [int(each) for each in sizes])
    print(json.dumps(result))
