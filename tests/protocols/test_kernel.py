"""The kernel's C by itself: bounds, sanitizers, secrets as undefined memory, the assembly, and lanes that this processor lacks."""

import hashlib
import itertools
import platform
import re
import secrets
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocols import group, sodium
from protocols.sodium import Sodium

HERE = Path(__file__).parent / "kernel"
KERNEL = Path(sodium.__file__).parent / "_kernel"
P = 2**255 - 19
LIMB_MOST = 2**51 + 2**16  # field.h, M
REFERENCE = Sodium()
_ristretto = pytest.importorskip("protocols._ristretto", reason="the extension was not built: no compiler")

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")

SANITIZE = ["-O1", "-DKERNEL_SMALL", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BUILDS = {
    "scalar, bounds checked": ("scalar.c", ["-O2", "-DKERNEL_SMALL", "-DKERNEL_CHECK"], None),
    "scalar, sanitized, bounds checked": ("scalar.c", [*SANITIZE, "-DKERNEL_CHECK"], None),
    "avx512, sanitized": ("fma.c", SANITIZE, "avx512dq"),
    "ifma, emulated": (
        "ifma.c",
        ["-O2", "-DKERNEL_SMALL", "-include", str(HERE / "emulated_ifma.h")],
        "avx512dq",
    ),
    "ifma, sanitized": ("ifma.c", SANITIZE, "avx512ifma"),
}


def build(source: str, options: list[str], target: Path) -> Path:
    command = ["gcc", "-Wall", "-Wextra", "-Werror", *options, f'-DKERNEL_SOURCE="{KERNEL / source}"']
    subprocess.run([*command, str(HERE / "driver.c"), "-o", str(target)], check=True)
    return target


def require_processor(flag: str | None) -> None:
    if flag and not re.search(rf"\b{flag}\b", Path("/proc/cpuinfo").read_text()):
        pytest.skip(f"this processor has no {flag}")


@dataclass
class Driver:
    """One build, asked in one go."""

    command: list[str]

    def ask(self, requests: list[tuple[str, int, bytes, bytes]]) -> bytes:
        said = b"".join(
            operation.encode() + struct.pack("<II", count, len(scalars)) + scalars + source
            for operation, count, scalars, source in requests
        )
        done = subprocess.run(self.command, input=said, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-4_000:]
        return done.stdout


@pytest.fixture(scope="module", params=BUILDS)
def driver(request, tmp_path_factory) -> Driver:
    source, options, flag = BUILDS[request.param]
    require_processor(flag)
    return Driver([str(build(source, options, tmp_path_factory.mktemp("kernel") / "driver"))])


def answer(good: int, outcome: bytes) -> bytes:
    return struct.pack("<Q", good) + outcome


def hashes(data: bytes, count: int) -> bytes:
    starts = [32 * i * i // count for i in range(count + 1)] if count else []
    return b"".join(hashlib.sha512(data[a:b]).digest() for a, b in itertools.pairwise(starts))


def test_batches_agree_with_libsodium(driver):
    requests, wanted = [], b""
    for count in (0, 1, 7, 8, 9, 17, 41):
        uniform, each = (
            secrets.token_bytes(64 * count),
            sodium.reduce_scalars(secrets.token_bytes(64 * count)),
        )
        base, one = REFERENCE.hash_to_points(uniform), sodium.reduce_scalars(secrets.token_bytes(64))
        requests += [
            ("V", count, b"", base),
            ("H", count, b"", uniform),
            ("M", count, each, base),
            ("M", count, one, base),
            ("X", count, each, uniform),
            ("X", count, one, uniform),
            ("S", count, each, base),
            ("D", count, b"", base),
        ]
        for outcome in (
            b"",
            base,
            REFERENCE.multiply(each or one, base)[0],
            REFERENCE.multiply(one, base)[0],
            REFERENCE.hash_and_multiply(each or one, uniform),
            REFERENCE.hash_and_multiply(one, uniform),
            REFERENCE.weighted_sum(each, base)[0],
            hashes(base, count),
        ):
            wanted += answer(count, outcome or b"")
        for place in {0, 7, 8, 15, 16, 31, count - 1} & set(range(count)):
            bad = base[: 32 * place] + bytes(31) + b"\x80" + base[32 * place + 32 :]
            requests += [("V", count, b"", bad), ("M", count, one, bad), ("S", count, each, bad)]
            wanted += answer(place, b"") * 3
    assert driver.ask(requests) == wanted


def test_a_block_and_more(driver):
    count = 300
    uniform, one = secrets.token_bytes(64 * count), sodium.reduce_scalars(secrets.token_bytes(64))
    base = REFERENCE.hash_to_points(uniform)
    each = sodium.reduce_scalars(secrets.token_bytes(64 * count))
    said = driver.ask([("X", count, one, uniform), ("S", count, each, base)])
    wanted = answer(count, REFERENCE.hash_and_multiply(one, uniform))
    assert said == wanted + answer(count, REFERENCE.weighted_sum(each, base)[0] or b"")


def value(limbs: tuple[int, ...]) -> int:
    return sum(limb << (51 * i) for i, limb in enumerate(limbs)) % P


def test_the_field_at_its_bounds(driver):
    """Limbs up to the most that carrying leaves, which random elements never reach."""
    least = 2**51 - 19, *[2**51 - 1] * 4  # p
    shapes = [
        (0,) * 5,
        (1, 0, 0, 0, 0),
        least,
        (2**51 - 20, *[2**51 - 1] * 4),  # p - 1
        (2**51 - 18, *[2**51 - 1] * 4),  # p + 1
        (LIMB_MOST,) * 5,
        (LIMB_MOST, 0, 0, 0, LIMB_MOST),
        (0, LIMB_MOST, LIMB_MOST, 0, 0),
        *(tuple(secrets.randbelow(LIMB_MOST + 1) for _ in range(5)) for _ in range(40)),
    ]
    pairs = list(itertools.product(shapes, shapes))
    source = b"".join(struct.pack("<10Q", *a, *b) for a, b in pairs)
    said = driver.ask([("F", len(pairs), b"", source)])
    found = [int.from_bytes(said[i : i + 32], "little") for i in range(0, len(said) - 8, 32)]
    for i, (a, b) in enumerate((value(a), value(b)) for a, b in pairs):
        wanted = [a * b % P, a * a % P, (a + b) % P, (a - b) % P, pow(a, P - 2, P)]
        assert found[5 * i : 5 * i + 5] == wanted, pairs[i]


def test_no_branch_and_no_address_depends_on_a_secret(tmp_path):
    """ctgrind: valgrind reports each jump and each address that depends on undefined memory. Scalar lanes: it knows no AVX-512."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind is not installed")
    options = ["-O3", "-DKERNEL_SMALL", "-DCTGRIND", "-g"]
    program = build("scalar.c", options, tmp_path / "driver")
    count = 3
    uniform, each = secrets.token_bytes(64 * count), sodium.reduce_scalars(secrets.token_bytes(64 * count))
    base = REFERENCE.hash_to_points(uniform)
    requests = [("H", count, b"", uniform), ("M", count, each, base), ("X", count, each, uniform)]
    requests.append(("D", count, b"", base))
    watched = Driver(["valgrind", "-q", "--error-exitcode=9", "--track-origins=no", str(program)])
    wanted = answer(count, base)
    wanted += answer(count, REFERENCE.multiply(each, base)[0] or b"") * 2
    wanted += answer(count, hashes(base, count))
    assert watched.ask(requests) == wanted


def test_the_watch_for_secrets_sees_a_leak(tmp_path):
    """The test above can fail: a table read at a secret's index is reported."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind is not installed")
    leaky = tmp_path / "_kernel"
    shutil.copytree(KERNEL, leaky)
    curve = leaky / "curve.h"
    text = curve.read_text()
    assert "	addend r = {small(1)" in text
    curve.write_text(
        text.replace(
            "	addend r = {small(1)",
            "	if (size)\n		return table[size - 1];\n	addend r = {small(1)",
        )
    )
    program = tmp_path / "driver"
    command = ["gcc", "-O3", "-DKERNEL_SMALL", "-DCTGRIND", f'-DKERNEL_SOURCE="{leaky / "scalar.c"}"']
    subprocess.run([*command, str(HERE / "driver.c"), "-o", str(program)], check=True)
    base, scalar = (
        REFERENCE.hash_to_points(secrets.token_bytes(64)),
        sodium.reduce_scalars(secrets.token_bytes(64)),
    )
    said = b"M" + struct.pack("<II", 1, 32) + scalar + base
    done = subprocess.run(
        ["valgrind", "-q", "--error-exitcode=9", str(program)], input=said, capture_output=True
    )
    assert done.returncode == 9


def test_the_assembly_has_no_gather_and_no_division():
    """What would make time depend on values: gathers, divisions and roots, integer or of doubles. In what was built and runs."""
    assert _ristretto.__file__ is not None
    command = ["objdump", "-d", "--no-show-raw-insn", _ristretto.__file__]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    python = re.compile(r"[0-9a-f]+ <(run|over|each|running)(\.[\w.]+)?>:")  # module.c divides lengths
    kernels = "\n".join(part for part in re.split(r"\n(?=[0-9a-f]+ <)", assembly) if not python.match(part))
    instructions = set(re.findall(r"^ +[0-9a-f]+:\t([a-z][a-z0-9]*)", kernels, re.MULTILINE))
    if platform.machine() == "x86_64":
        assert {"vpmadd52luq", "vpmadd52huq", "vfmadd231pd"} <= instructions
    assert not {each for each in instructions if re.search(r"gather|scatter|^i?div|^v?div|sqrt|^v?rcp", each)}
    # A branch on a lane's truth would go through one of these.
    assert not {each for each in instructions if re.match(r"k(or)?test", each)}
    # Loops count in general registers, and nothing comes there from a vector or a mask; of a point that is decoded, which is public, masks do.
    # Compilers that guard the stack (%fs:0x28) compare their own word at a function's end.
    counted = re.compile(
        r"(cmp|test|dec|inc|add|sub) +(\$0x[0-9a-f]+,|%[er]\w+,|)%[er]\w+|sub +%fs:0x28,%r\w+"
    )
    moved = re.compile(r"kmov[bwdq] +%k\d,%[er]|vmov[dq] +%xmm\d+,%[er]|vpextr|vpmovmsk|v?ptest |vu?comis")
    functions = "square_roots_of_ratios raised map_halves encode encode_doubled decode fill_table double_four_times add_digit"
    for function in functions.split():
        bodies = re.findall(rf"<{function}>:\n((?:.+\n?)+)", kernels)
        assert bodies or platform.machine() != "x86_64"
        for body in bodies:
            lines = [line.split("\t")[1] for line in body.splitlines()]
            if "zmm" not in body:
                continue
            for before, line in itertools.pairwise(lines):
                assert counted.fullmatch(before) or not re.match(r"j(?!mp)", line), (function, before, line)
            assert function == "decode" or not any(map(moved.match, lines)), function


def test_constants_are_what_the_rfc_defines():
    """RFC 9496 §4.1."""
    d = -121665 * pow(121666, -1, P) % P
    root = pow(2, (P - 1) // 4, P)
    text = (KERNEL / "constants.h").read_text()
    found = {
        name: value(tuple(int(limb.strip().removesuffix("ULL"), 16) for limb in limbs.split(",")))
        for name, limbs in re.findall(r"uint64_t (\w+)\[5\] = \{(.*)\};", text)
    }
    assert found["D"] == d
    assert found["D2"] == 2 * d % P
    assert found["SQRT_M1"] == root
    assert found["SQRT_M1"] ** 2 % P == P - 1
    assert found["INVSQRT_A_MINUS_D"] ** 2 * (-1 - d) % P == 1
    assert found["INVSQRT_A_MINUS_D"] % 2 == 0
    assert found["SQRT_AD_MINUS_ONE"] ** 2 % P == (-d - 1) % P
    assert found["ONE_MINUS_D_SQ"] == (1 - d * d) % P
    assert found["D_MINUS_ONE_SQ"] == (d - 1) ** 2 % P
    assert len(found) == 7
    order = re.search(r"ORDER\[4\] = \{(.*)\}", (KERNEL / "curve.h").read_text())
    assert order
    limbs = [int(limb.strip().removesuffix("ULL"), 0) for limb in order[1].split(",")]
    assert sum(limb << (64 * i) for i, limb in enumerate(limbs)) == group.ORDER
