"""The batch kernel beside libsodium on one core: each operation's best of interleaved runs. Ratios count.

python benchmarks/kernel.py [--rounds 15] [--elements 2048]
"""

import argparse
import os
import secrets
import time
from collections.abc import Callable

from lookup import processor

from protocols import backends, sodium

PER_MULTIPLICATION = 252 * (4 + 3) + 64 * 8 + 63 * 4 + 7 * 9  # field multiplications and squarings (curve.h)


def best(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--elements", type=int, default=1_024)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    count = arguments.elements
    found = [each for each in backends.available() if each.name != "scalar"]
    uniform = secrets.token_bytes(64 * count)
    scalars = sodium.reduce_scalars(secrets.token_bytes(64 * count))
    points = found[0].hash_to_points(uniform)
    operations = {
        "hash + multiply + encode (sealing)": lambda b: b.hash_and_multiply(scalars[:32], uniform),
        "decode + multiply + encode (answering)": lambda b: b.multiply(scalars[:32], points),
        "hash to group + encode": lambda b: b.hash_to_points(uniform),
        "decode and check": lambda b: b.valid_points(points),
        "decode + weighted sum (proofs)": lambda b: b.weighted_sum(scalars, points),
    }
    print(f"{processor()}, one core, {count} elements, best of {arguments.rounds}; µs an element")
    print(f"{'':42}" + "".join(f"{each.name:>14}" for each in found) + f"{'ratio':>10}  to reach")
    for name, operation in operations.items():
        times = best({b.name: lambda b=b, o=operation: o(b) for b in found}, arguments.rounds)
        ratio = times["libsodium"] / times[found[0].name]
        row = "".join(f"{times[each.name] / count * 1e6:14.2f}" for each in found)
        target = "≥ 8 (with IFMA)" if "sealing" in name else ""
        print(f"{name:42}{row}{ratio:10.1f}  {target}", flush=True)
    message = [secrets.token_bytes(60) for _ in range(count)]
    times = best({b.name: lambda b=b: b.sha512(count, (message,)) for b in found}, arguments.rounds)
    row = "".join(f"{times[each.name] / count * 1e6:14.2f}" for each in found)
    print(
        f"{'SHA-512, one block (libsodium: hashlib)':42}{row}{times['libsodium'] / times[found[0].name]:10.1f}"
    )
    print(f"one multiplication: about {PER_MULTIPLICATION} products of field elements a lane")


if __name__ == "__main__":
    main()
