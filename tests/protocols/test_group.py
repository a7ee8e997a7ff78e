"""ristretto255 in batches: every backend that this machine runs, against the RFC's vectors, libsodium and each other's edges."""

import hashlib
import hmac
import secrets
import subprocess
import sys

import pytest

from protocols import backends, group, hashing, sodium
from protocols.encoding import expand
from protocols.errors import DecodeError, MisuseError
from protocols.sodium import Sodium
from tests.protocols import ristretto_vectors as vectors

BACKENDS = backends.available()
REFERENCE = Sodium()
ONE = (1).to_bytes(32, "little")
LAST = (group.ORDER - 1).to_bytes(32, "little")
HALF = ((group.ORDER + 1) // 2).to_bytes(32, "little")
EDGES = [
    ONE,
    LAST,
    HALF,
    (2).to_bytes(32, "little"),
    (8).to_bytes(32, "little"),
    (2**252).to_bytes(32, "little"),
    *(
        n.to_bytes(32, "little")
        for n in (group.ORDER + 1, 2 * group.ORDER + 1, 7 * group.ORDER, 15 * group.ORDER // 2)
    ),
    *(n.to_bytes(32, "little") for n in (2**253, 2**254 + 1, 2**255 - 1, 2**256 - 1)),
    int("8" * 63, 16).to_bytes(32, "little"),
    int("7" * 63, 16).to_bytes(32, "little"),
    int("f" * 63, 16).to_bytes(32, "little"),
]


def points(count: int) -> bytes:
    return REFERENCE.hash_to_points(secrets.token_bytes(64 * count))


def scalars(count: int) -> bytes:
    return sodium.reduce_scalars(secrets.token_bytes(64 * count))


def joined(outcome: tuple[bytes | None, int]) -> bytes:
    assert outcome[0] is not None
    return outcome[0]


@pytest.fixture(params=BACKENDS, ids=[each.name for each in BACKENDS])
def backend(request) -> backends.Backend:
    return request.param


class TestEveryBackend:
    def test_multiples_of_the_generator(self, backend):
        numbers = b"".join(k.to_bytes(32, "little") for k in vectors.MULTIPLES)
        base = bytes.fromhex(vectors.MULTIPLES[1]) * len(vectors.MULTIPLES)
        assert joined(backend.multiply(numbers, base)).hex() == "".join(vectors.MULTIPLES.values())
        assert backend.valid_points(joined(backend.multiply(numbers, base))) == len(vectors.MULTIPLES)

    @pytest.mark.parametrize("kind", vectors.REFUSED)
    def test_refused_encodings_in_every_lane(self, backend, kind):
        for bad in map(bytes.fromhex, vectors.REFUSED[kind]):
            for lane in range(9):
                batch = bytearray(points(10))
                batch[32 * lane : 32 * lane + 32] = bad
                assert backend.valid_points(bytes(batch)) == lane
                assert backend.multiply(scalars(1), bytes(batch)) == (None, lane)
                assert backend.multiply(scalars(10), bytes(batch)) == (None, lane)
                assert backend.weighted_sum(scalars(10), bytes(batch)) == (None, lane)

    def test_the_identity_is_refused_in_every_lane(self, backend):
        for lane in range(17):
            batch = bytearray(points(17))
            batch[32 * lane : 32 * lane + 32] = bytes(32)
            assert backend.valid_points(bytes(batch)) == lane
            assert backend.multiply(scalars(1), bytes(batch)) == (None, lane)

    def test_the_first_of_several_bad_ones_is_named(self, backend):
        batch = bytearray(points(30))
        for i in (29, 13, 21):
            batch[32 * i] ^= 1  # odd: negative
        assert backend.valid_points(bytes(batch)) == 13
        assert backend.multiply(scalars(1), bytes(batch)) == (None, 13)

    def test_uniform_bytes_to_points(self, backend):
        uniform = bytes.fromhex("".join(vectors.UNIFORM))
        assert backend.hash_to_points(uniform).hex() == "".join(vectors.UNIFORM.values())

    def test_uniform_bytes_at_the_edges(self, backend):
        p = 2**255 - 19
        halves = [0, 1, 2, 18, 19, p - 1, p, p + 1, 2**255 - 1, 2**255, 2**256 - 1, p // 2, p // 2 + 1]
        pairs = [(a, b) for a in halves for b in halves]
        uniform = b"".join(a.to_bytes(32, "little") + b.to_bytes(32, "little") for a, b in pairs)
        assert backend.hash_to_points(uniform) == REFERENCE.hash_to_points(uniform)
        sevens = (7).to_bytes(32, "little")
        assert backend.hash_and_multiply(sevens, uniform) == REFERENCE.hash_and_multiply(sevens, uniform)

    @pytest.mark.parametrize("count", range(18))
    def test_short_batches(self, backend, count):
        uniform, each, base = secrets.token_bytes(64 * count), scalars(count), points(count)
        assert backend.hash_to_points(uniform) == REFERENCE.hash_to_points(uniform)
        assert backend.multiply(each[:32] or ONE, base) == REFERENCE.multiply(each[:32] or ONE, base)
        assert backend.multiply(each or ONE, base) == REFERENCE.multiply(each or ONE, base)
        assert backend.weighted_sum(each, base) == REFERENCE.weighted_sum(each, base)
        assert backend.valid_points(base) == count

    @pytest.mark.parametrize("count", [255, 256, 257, 513])
    def test_batches_around_a_block(self, backend, count):
        each, base = scalars(count), points(count)
        assert backend.multiply(each, base) == REFERENCE.multiply(each, base)
        assert backend.weighted_sum(each, base) == REFERENCE.weighted_sum(each, base)

    @pytest.mark.parametrize("scalar", EDGES, ids=[each.hex()[:8] for each in EDGES])
    def test_scalars_at_the_edges_in_every_lane(self, backend, scalar):
        base = points(9)
        assert backend.multiply(scalar, base) == REFERENCE.multiply(scalar, base)
        for lane in range(9):
            each = bytearray(scalars(9))
            each[32 * lane : 32 * lane + 32] = scalar
            assert backend.multiply(bytes(each), base) == REFERENCE.multiply(bytes(each), base)

    def test_a_scalar_of_zero_gives_the_identity_in_its_lane_alone(self, backend):
        base, each = points(17), bytearray(scalars(17))
        each[32 * 3 : 32 * 4] = bytes(32)
        each[32 * 16 :] = bytes(32)
        outcome = joined(backend.multiply(bytes(each), base))
        assert outcome == joined(REFERENCE.multiply(bytes(each), base))
        assert group.split(outcome).count(bytes(32)) == 2
        assert outcome[96:128] == outcome[512:] == bytes(32)

    def test_equal_lanes(self, backend):
        base, scalar = points(1) * 16, scalars(1)
        assert len(set(group.split(joined(backend.multiply(scalar, base))))) == 1

    def test_sums_that_cancel(self, backend):
        base = points(1)
        minus = joined(REFERENCE.multiply(LAST, base))
        assert backend.weighted_sum(ONE * 2, base + minus) == (bytes(32), 2)
        seventeen = joined(REFERENCE.multiply((17).to_bytes(32, "little"), base))
        assert backend.weighted_sum(ONE * 17, base * 17) == (seventeen, 17)

    def test_weights_of_zero(self, backend):
        each, base = bytearray(scalars(9)), points(9)
        each[64:96] = bytes(32)
        rest = bytes(each[:64] + each[96:]), base[:64] + base[96:]
        assert backend.weighted_sum(bytes(each), base)[0] == backend.weighted_sum(*rest)[0]

    def test_random_batches_agree_with_libsodium(self, backend):
        uniform, each = secrets.token_bytes(64 * 600), scalars(600)
        base = backend.hash_to_points(uniform)
        assert base == REFERENCE.hash_to_points(uniform)
        assert backend.multiply(each, base) == REFERENCE.multiply(each, base)
        assert backend.hash_and_multiply(each, uniform) == joined(REFERENCE.multiply(each, base))
        assert backend.hash_and_multiply(each[:32], uniform) == joined(REFERENCE.multiply(each[:32], base))

    def test_large_batches_are_put_together_in_order(self, backend):
        if isinstance(backend, Sodium):
            pytest.skip("libsodium takes large batches as it takes small ones")
        count = 2 * backends._PIECE + 37
        uniform, scalar = secrets.token_bytes(64 * count), scalars(1)
        whole = backend.hash_to_points(uniform)
        assert whole == b"".join(
            backend.hash_to_points(uniform[i : i + 6400]) for i in range(0, len(uniform), 6400)
        )
        product = joined(backend.multiply(scalar, whole))
        assert product == backend.hash_and_multiply(scalar, uniform)
        sample = 32 * (backends._PIECE + 11)
        assert product[sample : sample + 32] == joined(
            REFERENCE.multiply(scalar, whole[sample : sample + 32])
        )
        total = joined(backend.weighted_sum(scalar * count, whole))
        assert total == sodium.add_all(product)
        broken = bytearray(whole)
        broken[32 * (count - 2)] ^= 1
        assert backend.multiply(scalar, bytes(broken)) == (None, count - 2)
        assert backend.weighted_sum(scalar * count, bytes(broken)) == (None, count - 2)

    def test_the_first_identity_is_found(self, backend):
        assert backend.first_identity(b"") == -1
        assert backend.first_identity(points(3)) == -1
        assert backend.first_identity(b"\x01" + bytes(62) + b"\x01") == -1  # zeros across two elements
        assert backend.first_identity(points(2) + bytes(32) + points(1) + bytes(32)) == 2

    def test_it_would_be_chosen(self, backend):
        assert backends.agrees(backend)
        chosen, reason = backends.choose(backend.name)
        assert (chosen.name, reason) == (backend.name, backends.Reason.ASKED_FOR)


class Broken:
    """Wrong in the last lane of what it hashes."""

    name = "broken"

    def __getattr__(self, name):
        return getattr(REFERENCE, name)

    def hash_to_points(self, uniform: bytes) -> bytes:
        return REFERENCE.hash_to_points(uniform)[:-32] + points(1)


def test_a_kernel_that_disagrees_does_not_serve(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda: [Broken(), Sodium()])
    chosen, reason = backends.choose()
    assert (chosen.name, reason) == ("libsodium", backends.Reason.DISAGREES)
    with pytest.raises(ValueError, match="broken"):
        backends.choose("broken")


@pytest.mark.parametrize(
    ("kernels", "name", "reason"),
    [
        ([], "libsodium", "not-built"),
        (["scalar"], "libsodium", "no-vectors"),
        ([], "libsodium", "not-loaded"),
    ],
)
def test_without_a_kernel_libsodium_serves(monkeypatch, kernels, name, reason):
    monkeypatch.setattr(backends, "_BROKEN", reason == "not-loaded")
    monkeypatch.setattr(backends, "_KERNELS", kernels)
    chosen, why = backends.choose()
    assert (chosen.name, why.value) == (name, reason)


def test_the_environment_names_the_backend():
    command = [sys.executable, "-c", "from protocols import group; print(group.BACKEND, group.REASON)"]
    done = subprocess.run(
        command, env={backends.VARIABLE: "libsodium"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["libsodium", "asked-for"]
    done = subprocess.run(command, env={backends.VARIABLE: "abacus"}, capture_output=True, text=True)
    assert done.returncode
    assert "LIANFANG_GROUP=abacus: this machine has" in done.stderr


class TestChecks:
    def test_what_multiplies_to_the_identity_is_refused(self):
        with pytest.raises(DecodeError, match="element 1: multiplies to the identity"):
            group.multiply_each(ONE + bytes(32), points(2))
        with pytest.raises(DecodeError, match="element 0: multiplies to the identity"):
            group.hash_and_multiply_all(bytes(32), secrets.token_bytes(64))

    def test_one_scalar_never_serves_several_by_mistake(self):
        with pytest.raises(MisuseError):
            group.multiply_each(ONE, points(2))
        with pytest.raises(MisuseError):
            group.hash_and_multiply_each(ONE, secrets.token_bytes(128))
        with pytest.raises(MisuseError):
            group.multiply_all(ONE + ONE, points(2))
        with pytest.raises(MisuseError):
            group.weighted_sum(ONE, points(2))

    def test_ragged_batches_are_refused(self):
        for call in (group.check_points, group.add_all, lambda p: group.multiply_all(ONE, p)):
            with pytest.raises(DecodeError, match="63 bytes is not a multiple of 32"):
                call(points(2)[:-1])
        with pytest.raises(DecodeError, match="100 bytes is not a multiple of 64"):
            group.hash_to_points(bytes(100))

    def test_bad_elements_are_named(self):
        with pytest.raises(DecodeError, match="blinded element 1: the identity"):
            group.check_points(points(1) + bytes(32), "blinded element")
        with pytest.raises(DecodeError, match="element 2: not a canonical ristretto255 encoding"):
            group.multiply_all(ONE, points(2) + b"\x01" * 32)
        with pytest.raises(DecodeError, match="element 1: not a canonical ristretto255 encoding"):
            group.add_all(points(1) + b"\x01" * 32)


@pytest.mark.parametrize("name", [each.name for each in BACKENDS if each.name.startswith("avx512")])
def test_a_million_random_inputs_agree_with_libsodium(name, pytestconfig):
    """Runs where asked for (`--thorough`): two minutes."""
    if not pytestconfig.getoption("--thorough"):
        pytest.skip("takes minutes: --thorough")
    backend = backends.Kernel(name)
    for _ in range(250):
        uniform, each = secrets.token_bytes(64 * 4_000), scalars(4_000)
        base = backend.hash_to_points(uniform)
        assert base == REFERENCE.hash_to_points(uniform)
        assert backend.multiply(each, base) == REFERENCE.multiply(each, base)


class TestScalars:
    @pytest.fixture(params=["extension", "python"], autouse=True)
    def loops(self, request, monkeypatch):
        if request.param == "python":
            monkeypatch.setattr(sodium, "_loops", None)

    @pytest.mark.parametrize("count", [0, 1, 2, 9])
    def test_batches_against_whole_numbers(self, count):
        uniform = secrets.token_bytes(64 * count)
        left = group.reduce_scalars(uniform)
        numbers = [int.from_bytes(each, "little") for each in group.split(left)]
        wide = [int.from_bytes(each, "little") for each in group.split(uniform, 64)]
        assert numbers == [each % group.ORDER for each in wide]
        products = [
            int.from_bytes(each, "little") for each in group.split(sodium.multiply_scalars(left, left))
        ]
        assert products == [each**2 % group.ORDER for each in numbers]
        inverses = [int.from_bytes(each, "little") for each in group.split(group.invert_scalars(left))]
        assert [a * b % group.ORDER for a, b in zip(inverses, numbers, strict=True)] == [1] * count
        total, running = 1, group.split(sodium.running_products(left))
        for number, product in zip(numbers, running, strict=True):
            total = total * number % group.ORDER
            assert int.from_bytes(product, "little") == total

    def test_what_has_no_inverse_is_named(self):
        with pytest.raises(DecodeError, match="scalar 2: zero"):
            group.invert_scalars(scalars(2) + bytes(32) + scalars(1))
        with pytest.raises(DecodeError, match="scalar 1: not below the group order"):
            group.invert_scalars(scalars(1) + group.ORDER.to_bytes(32, "little"))


class TestHashes:
    @pytest.fixture(params=BACKENDS, ids=[each.name for each in BACKENDS], autouse=True)
    def backend(self, request, monkeypatch):
        monkeypatch.setattr(hashing, "backend", request.param)

    def test_every_length(self):
        for length in range(260):
            message = secrets.token_bytes(length)
            assert hashing.sha512_each(1, message) == hashlib.sha512(message).digest()

    @pytest.mark.parametrize("count", range(18))
    def test_messages_of_different_lengths_side_by_side(self, count):
        each = [secrets.token_bytes(secrets.randbelow(300)) for _ in range(count)]
        fixed = secrets.token_bytes(7 * count)
        wanted = [hashlib.sha512(b"x" + m + fixed[7 * i : 7 * i + 7]).digest() for i, m in enumerate(each)]
        assert hashing.sha512_each(count, b"x", each, (fixed, 7)) == b"".join(wanted)

    def test_a_column_combined_with_a_byte(self):
        column = secrets.token_bytes(64 * 9)
        for pad in (0, 0x36, 0xFF):
            wanted = [
                hashlib.sha512(bytes(b ^ pad for b in column[i : i + 64]) + b"x").digest()
                for i in range(0, len(column), 64)
            ]
            assert hashing.sha512_each(9, (column, 64, pad), b"x") == b"".join(wanted)

    def test_hmac_and_hkdf(self):
        key, messages = secrets.token_bytes(32), [secrets.token_bytes(i) for i in range(40)]
        wanted = b"".join(hmac.digest(key, b"a" + m, "sha512") for m in messages)
        assert hashing.hmac_each(key, 40, b"a", messages) == wanted
        keys = secrets.token_bytes(64 * 9)
        for length in (16, 32, 64):
            found = hashing.hkdf_each(keys, b"info", (bytes(range(9)), 1))
            for i in range(9):
                info = b"info" + bytes([i])
                assert found[64 * i : 64 * i + length] == expand(keys[64 * i : 64 * i + 64], info, length)

    def test_columns_that_do_not_fit_are_refused(self):
        for part in ((b"abc", 2), [b"a"], (b"", 1)):
            with pytest.raises(ValueError, match="another length"):
                hashing.sha512_each(2, part)
        with pytest.raises(ValueError, match="column of 64-byte keys"):
            hashing.hkdf_each(bytes(65))
        with pytest.raises(MisuseError, match="at most 128 bytes"):
            hashing.hmac_each(bytes(129), 1, b"m")
        with pytest.raises(MisuseError, match="more than 65535"):
            hashing.lengths([bytes(65_536)])

    def test_counts_beyond_all_memory_are_refused(self):
        if isinstance(hashing.backend, Sodium):
            pytest.skip("counts are the extension's concern")
        for count in (-1, 2**57, 2**61 - 1, 2**63 - 1):
            with pytest.raises((ValueError, MemoryError)):
                hashing.sha512_each(count, b"x")
