"""Paillier encryption of integers, in batches: keys and opening by `phe`, arithmetic by gmpy2 (the `vertical` extra).

Integers only. A caller who has fractions scales them itself: `phe`'s encoding of floats sends an exponent in clear, which
shows how large a number is, and of a gradient that is the label.

Paillier, EUROCRYPT 1999. The key's owner draws n-th residues modulo p² and q² apart: of a safe prime p the n-th residues
mod p² are the subgroup of order p-1, so a fixed generator of it to a uniform exponent is one, exactly uniform. Others
randomise by rⁿ of a uniform r, which hides from the owner as well. That n is a Paillier-Blum
modulus its owner proves as in Canetti, Gennaro, Goldfeder, Makriyannis, Peled (CCS 2020, figure 16).

Long products go by halves (`split`): a unit modulo m² is a·(1+m)^e with a < m, and (1+m)^e = 1 + m·e, so that of a product
the a are multiplied, which are half as long, and the e added.

GMP's arithmetic is not constant-time: whoever can time single operations inside the process has the key anyway.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import gmpy2
import numpy as np
from gmpy2 import mpz
from phe import paillier as phe

from .encoding import frame
from .errors import DecodeError, MisuseError, ProofError

BITS = 2048  # of a modulus, by default and at least
MOST_BITS = 4096
ROUNDS = 128  # of the proof about the modulus: a false one passes with 2^-128
_PROOF_DOMAIN = "lianfang/v1/paillier-blum"
_WINDOW = 10  # bits of an exponent for which powers are kept
_TOGETHER = 64  # exponents drawn and taken apart at once
_SIEVE, _SPAN = 1 << 16, 1 << 17

Halves = tuple[list[mpz], list[mpz]]  # all a and all e


def split(units: Iterable[mpz], modulus: mpz) -> Halves:
    """Units modulo m², each as a·(1 + m·e): all a and all e, both below m. Raises `ZeroDivisionError` for what is no unit."""
    lows, highs, before = [], [], [mpz(1)]
    for each in units:
        high, low = gmpy2.f_divmod(each, modulus)
        lows.append(low)
        highs.append(high)
        before.append(before[-1] * low % modulus)
    inverse = gmpy2.invert(before[-1], modulus)  # of all at once, as Montgomery does
    for i in range(len(lows) - 1, -1, -1):
        highs[i] = highs[i] * (inverse * before[i] % modulus) % modulus
        inverse = inverse * lows[i] % modulus
    return lows, highs


def multiply(lows: Iterable[mpz], highs: Iterable[mpz], square: mpz) -> tuple[mpz, mpz]:
    """A product of units as two numbers of which `join` makes it; products of such multiply and add the same way."""
    total = mpz(1)
    for low in lows:
        total = total * low % square
    return total, sum(highs, start=mpz(0))


def join(low: mpz, high: mpz, modulus: mpz, square: mpz) -> mpz:
    """low·(1 + m·high) modulo m²."""
    return low * (1 + modulus * high) % square


class PublicKey:
    """A modulus n, checked for its size and form; that it is a product of two primes a `Blum` proof shows."""

    def __init__(self, n: int, least: int = BITS) -> None:
        """Raise `DecodeError` for a modulus that nobody should use."""
        bits = n.bit_length() if n > 0 else 0
        if not least <= bits <= MOST_BITS or bits % 16:
            raise DecodeError(
                f"a modulus of {bits} bits; {least} to {MOST_BITS}, a multiple of 16, are needed"
            )
        if n % 4 != 1 or gmpy2.is_prime(n) or gmpy2.is_square(n):
            raise DecodeError("the modulus is not a product of two primes that are 3 modulo 4")
        self.n, self.square = mpz(n), mpz(n) ** 2
        self.bits = bits

    def __repr__(self) -> str:
        return f"PublicKey({self.bits} bits)"

    @property
    def size(self) -> int:
        """Bytes of a ciphertext."""
        return self.bits // 4

    def encode(self) -> bytes:
        """bits/8 bytes, big-endian."""
        return int(self.n).to_bytes(self.bits // 8, "big")

    @classmethod
    def decode(cls, data: bytes, least: int = BITS) -> "PublicKey":
        """Raise `DecodeError` for what is not the encoding of a modulus."""
        key = cls(int.from_bytes(data, "big"), least)
        if key.bits != 8 * len(data):
            raise DecodeError("a modulus with leading zeros")
        return key

    def write(self, ciphertexts: Iterable[mpz]) -> bytes:
        """`size` bytes each, big-endian."""
        size = self.size
        return b"".join(each.to_bytes(size, "big") for each in ciphertexts)

    def read(self, data: bytes) -> list[mpz]:
        """Raise `DecodeError` unless these are ciphertexts: 0 < c < n² and no factor in common with n."""
        found, product = self._in_range(data), mpz(1)
        for each in found:
            product = product * each % self.n
        if gmpy2.gcd(product, self.n) != 1:  # of all at once
            raise self._not_invertible(found)
        return found

    def _in_range(self, data: bytes) -> list[mpz]:
        if len(data) % self.size:
            raise DecodeError(f"{len(data)} bytes are no whole ciphertexts of {self.size}")
        found = [mpz.from_bytes(data[i : i + self.size], "big") for i in range(0, len(data), self.size)]
        for number, each in enumerate(found, 1):
            if not 0 < each < self.square:
                raise DecodeError(f"ciphertext {number} is out of range")
        return found

    def _not_invertible(self, found: Sequence[mpz]) -> DecodeError:
        wrong = next(i for i, each in enumerate(found, 1) if gmpy2.gcd(each, self.n) != 1)
        return DecodeError(f"ciphertext {wrong} is not invertible")

    def split(self, data: bytes) -> bytes:
        """Ciphertexts, checked as `read` does, and as `halves` takes them: as long, but cheaper to add many times."""
        found = self._in_range(data)
        try:
            lows, highs = split(found, self.n)
        except ZeroDivisionError:
            raise self._not_invertible(found) from None
        half = self.size // 2
        pairs = zip(lows, highs, strict=True)
        return b"".join(low.to_bytes(half, "big") + high.to_bytes(half, "big") for low, high in pairs)

    def halves(self, data: bytes) -> Halves:
        """What `split` has written."""
        half = self.size // 2
        found = [mpz.from_bytes(data[i : i + half], "big") for i in range(0, len(data), half)]
        return found[::2], found[1::2]

    def shown(self, plaintext: int) -> mpz:
        """A ciphertext that hides nothing, to be added to one that does."""
        return (1 + plaintext % self.n * self.n) % self.square

    def add(self, ciphertexts: Iterable[mpz]) -> mpz:
        """A ciphertext of the sum; of none, one of 0 that hides nothing."""
        total, square = mpz(1), self.square
        for each in ciphertexts:
            total = total * each % square
        return total

    def subtract(self, left: mpz, right: mpz) -> mpz:
        """A ciphertext of left's plaintext less right's."""
        return left * gmpy2.invert(right, self.square) % self.square

    def pack(self, ciphertexts: Sequence[mpz], width: int) -> mpz:
        """A ciphertext of Σ plaintext_i·2^(i·width): of non-negative plaintexts below 2^width, side by side."""
        if len(ciphertexts) * width >= self.bits:
            raise MisuseError(f"{len(ciphertexts)} slots of {width} bits do not fit {self.bits}")
        total, shift = mpz(1), mpz(1) << width
        for each in reversed(ciphertexts):
            total = gmpy2.powmod(total, shift, self.square) * each % self.square
        return total


def unpack(plaintext: int, count: int, width: int) -> list[int]:
    """The slots of a packed plaintext. Raises `DecodeError` where more is there than they hold."""
    if plaintext >> (count * width):
        raise DecodeError("a sum is larger than its slot")
    mask = (1 << width) - 1
    return [plaintext >> (i * width) & mask for i in range(count)]


class _Powers:
    """A fixed base modulo m² to many exponents: one multiplication a window.

    The powers lie side by side as bytes: of objects all over the memory, waiting for them takes as long as the arithmetic.
    """

    def __init__(self, base: mpz, modulus: mpz, bits: int, window: int) -> None:
        self._modulus, self._square, self._window = modulus, modulus**2, window
        self._count, self._size = -(-bits // window), -(-modulus.bit_length() // 32) * 4
        tables = bytearray(), bytearray()
        for _ in range(self._count):
            row = [mpz(1)]
            for _ in range((1 << window) - 1):
                row.append(row[-1] * base % self._square)
            base = row[-1] * base % self._square
            for table, halves in zip(tables, split(row, modulus), strict=True):
                table.extend(b"".join(each.to_bytes(self._size, "little") for each in halves))
        self._lows = np.frombuffer(tables[0], dtype=np.uint8).reshape(-1, self._size)
        self._highs = np.frombuffer(tables[1], dtype="<u4").reshape(-1, self._size // 4)

    def powers(self, exponents: Sequence[int]) -> Iterator[mpz]:
        """base^exponent, of each."""
        size = -(-self._count * self._window // 8)
        data = b"".join(exponent.to_bytes(size, "little") for exponent in exponents)
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").reshape(-1, size * 8)
        windows = bits[:, : self._count * self._window].reshape(-1, self._count, self._window)
        chosen = windows @ (1 << np.arange(self._window)) + (np.arange(self._count) << self._window)
        sums = self._highs[chosen].sum(axis=1, dtype=np.uint64)  # word by word, without carries
        words = (sums & np.uint64(0xFFFFFFFF)).astype("<u4"), (sums >> np.uint64(32)).astype("<u4")
        for lows, *parts in zip(self._lows[chosen], *words, strict=True):
            total, carried = (mpz.from_bytes(each.tobytes(), "little") for each in parts)
            factors = gmpy2.unpack(mpz.from_bytes(lows.tobytes(), "little"), self._size * 8)
            low, high = multiply(factors, [total, carried << 32], self._square)
            yield join(low, high, self._modulus, self._square)

    def power(self, exponent: int) -> mpz:
        """base^exponent."""
        return next(self.powers([exponent]))


class PrivateKey:
    """Two safe primes. Never shown; written by `secret` for its owner's own processes alone."""

    def __init__(self, p: int, q: int, least: int = BITS) -> None:
        """Raise `MisuseError` for anything but safe primes: only of those the residues are drawn uniformly."""
        p, q = min(p, q), max(p, q)
        for prime in (p, q):
            if not (gmpy2.is_prime(prime, 40) and gmpy2.is_prime(prime // 2, 40)):
                raise MisuseError("a key is made of two safe primes")
        if p == q:
            raise MisuseError("a key is made of two different primes")
        self.public = PublicKey(p * q, least)
        self._p, self._q = mpz(p), mpz(q)
        self._phe = phe.PaillierPrivateKey(phe.PaillierPublicKey(p * q), p, q)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.bits} bits)"

    @property
    def secret(self) -> tuple[int, int]:
        """The primes, for this node's own workers."""
        return int(self._p), int(self._q)

    @cached_property
    def _residues(self) -> "tuple[_Powers, _Powers, mpz, mpz]":
        tables = []
        for prime in (self._p, self._q):
            generator = mpz(2)
            while gmpy2.powmod(generator, prime // 2, prime) == 1 or generator**2 % prime == 1:
                generator += 1
            square = prime**2
            # To the power of the prime: of order prime-1, the generator of the n-th residues modulo its square.
            base = gmpy2.powmod(generator, prime, square)
            tables.append(_Powers(base, prime, prime.bit_length(), _WINDOW))
        square = self._p**2
        return tables[0], tables[1], square, gmpy2.invert(square, self._q**2)

    def _uniform(self, count: int) -> Iterator[mpz]:
        """Uniform n-th residues modulo n²."""
        left, right, square, inverse = self._residues
        p, q, other = int(self._p), int(self._q), self._q**2
        xs = left.powers([secrets.randbelow(p - 1) for _ in range(count)])
        ys = right.powers([secrets.randbelow(q - 1) for _ in range(count)])
        for x, y in zip(xs, ys, strict=True):
            yield x + square * ((y - x) * inverse % other)

    def encrypt(self, plaintexts: Sequence[int]) -> Iterator[mpz]:
        """Ciphertexts of integers in [0, n). Raises `MisuseError` for others."""
        n, square = self.public.n, self.public.square
        if not all(0 <= each < n for each in plaintexts):
            raise MisuseError("a plaintext is not in [0, n)")
        for i in range(0, len(plaintexts), _TOGETHER):
            part = plaintexts[i : i + _TOGETHER]
            for each, residue in zip(part, self._uniform(len(part)), strict=True):
                yield (1 + each * n) * residue % square

    def decrypt(self, ciphertexts: Iterable[mpz]) -> Iterator[int]:
        """Integers in [0, n). The ciphertexts were read by this key's `public.read`."""
        for each in ciphertexts:
            yield int(self._phe.raw_decrypt(int(each)))

    def prove(self, context: bytes) -> bytes:
        """That n is a Paillier-Blum modulus; `context` is what the proof is bound to. See `verify`."""
        n, p, q = self.public.n, self._p, self._q
        while gmpy2.jacobi(w := mpz(secrets.randbelow(int(n))), n) != -1:
            pass
        half = self.public.bits // 8
        out = [int(w).to_bytes(half, "big")]
        totient = (p - 1) * (q - 1)
        root = gmpy2.invert(n, totient)
        inverse = gmpy2.invert(p, q)
        for y in _challenges(self.public, w, context):
            for sign, factor in ((0, 0), (0, 1), (1, 0), (1, 1)):
                value = (-1) ** sign * (w if factor else 1) * y % n
                if gmpy2.jacobi(value, p) == 1 and gmpy2.jacobi(value, q) == 1:
                    break
            # p = 3 mod 4: the fourth root that is a square has the exponent ((p+1)/4)².
            x_p = gmpy2.powmod(value, ((p + 1) // 4) ** 2 % (p - 1), p)
            x_q = gmpy2.powmod(value, ((q + 1) // 4) ** 2 % (q - 1), q)
            x = x_p + p * ((x_q - x_p) * inverse % q)
            z = gmpy2.powmod(y, root, n)
            out += [bytes([2 * sign + factor]), *(int(each).to_bytes(half, "big") for each in (x, z))]
        return b"".join(out)


def verify(key: PublicKey, proof: bytes, context: bytes) -> None:
    """Raise `ProofError` unless the modulus is p·q with p = q = 3 mod 4 and gcd(n, φ(n)) = 1, as far as `ROUNDS` show."""
    size = key.bits // 8
    if len(proof) != size + ROUNDS * (1 + 2 * size):
        raise ProofError(f"the proof of a modulus has {len(proof)} bytes")
    n = key.n
    w = mpz(int.from_bytes(proof[:size], "big"))
    if not 0 < w < n or gmpy2.jacobi(w, n) != -1:
        raise ProofError("the proof of a modulus does not hold")
    at = size
    for y in _challenges(key, w, context):
        flags = proof[at]
        x = mpz(int.from_bytes(proof[at + 1 : at + 1 + size], "big"))
        z = mpz(int.from_bytes(proof[at + 1 + size : at + 1 + 2 * size], "big"))
        at += 1 + 2 * size
        value = (-1) ** (flags >> 1) * (w if flags & 1 else 1) * y % n
        if flags > 3 or not (0 < x < n and 0 < z < n):
            raise ProofError("the proof of a modulus does not hold")
        if gmpy2.powmod(x, 4, n) != value or gmpy2.powmod(z, n, n) != y:
            raise ProofError("the proof of a modulus does not hold")


def _challenges(key: PublicKey, w: mpz, context: bytes) -> Iterator[mpz]:
    """Uniform in [0, n) up to 2^-128, by hashing."""
    size = key.bits // 8
    seed = frame(_PROOF_DOMAIN, context, key.encode(), int(w).to_bytes(size, "big"))
    for i in range(ROUNDS):
        yield mpz(
            int.from_bytes(hashlib.shake_256(frame(_PROOF_DOMAIN, seed, i)).digest(size + 16), "big") % key.n
        )


class Randomiser:
    """Makes a ciphertext of another's key unlike the one it came from, for the key's owner too.

    By rⁿ of a uniform unit r: of a modulus that is proven to have gcd(n, φ(n)) = 1 that is any n-th residue alike, so that nothing
    of the factor that was there is left. Powers of one base, as in Damgård, Jurik, Nielsen (IJIS 2010), would do against
    those who lack the factors; the owner would still see, say, the Jacobi symbol.
    """

    def __init__(self, key: PublicKey) -> None:
        self._key = key

    def randomise(self, ciphertext: mpz) -> mpz:
        """Another ciphertext of the same plaintext."""
        while gmpy2.gcd(r := mpz(secrets.randbelow(int(self._key.n))), self._key.n) != 1:
            pass
        return ciphertext * gmpy2.powmod(r, self._key.n, self._key.square) % self._key.square

    def encrypt(self, plaintext: int) -> mpz:
        """A ciphertext of an integer modulo n."""
        return self.randomise(self._key.shown(plaintext))


def generate(bits: int = BITS, least: int = BITS) -> PrivateKey:
    """A fresh key of exactly so many bits; takes some seconds."""
    while True:
        p, q = _safe_prime(bits // 2), _safe_prime(bits // 2)
        if p != q and (p * q).bit_length() == bits:
            return PrivateKey(p, q, least)


def _safe_prime(bits: int) -> int:
    """p and (p-1)/2 are prime and the two highest bits of p are set: the first from a random point on."""
    while True:
        # Candidates are start + 2k for the smaller prime; the two highest bits of p are those of it.
        start = secrets.randbits(bits - 1) | 3 << bits - 3 | 1
        found = bytearray(_SPAN)
        for small in _small_primes():
            for residue in (0, (small - 1) // 2):  # where it divides the smaller prime, or the larger
                first = (residue - start) * ((small + 1) // 2) % small
                found[first::small] = b"\1" * len(range(first, _SPAN, small))
        for k, composite in enumerate(found):
            half = start + 2 * k
            if composite or gmpy2.powmod(2, half - 1, half) != 1:
                continue
            if gmpy2.is_prime(half, 40) and gmpy2.is_prime(2 * half + 1, 40):
                if (2 * half + 1).bit_length() == bits:
                    return 2 * half + 1
                break


def _small_primes() -> Iterator[int]:
    sieve = bytearray(b"\1") * _SIEVE
    for number in range(3, _SIEVE, 2):
        if sieve[number]:
            yield number
            sieve[number * number :: 2 * number] = bytes(len(range(number * number, _SIEVE, 2 * number)))
