"""Paillier: against phe, against its algebra, and what a peer may send."""

import secrets

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phe import paillier as phe

from protocols import paillier, psi_sum
from protocols.errors import DecodeError, MisuseError, ProofError
from protocols.paillier import PrivateKey, PublicKey, Randomiser

SMALL = 512


@pytest.fixture(scope="module")
def key():
    return paillier.generate(SMALL, least=SMALL)


@pytest.fixture(scope="module")
def large():
    return paillier.generate()


def opened(key, *ciphertexts):
    return list(key.decrypt(ciphertexts))


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.integers(0, 2**200), min_size=1, max_size=8))
def test_sums_are_exact_and_phe_agrees(key, values):
    ciphertexts = list(key.encrypt(values))
    assert opened(key, *ciphertexts) == values
    total = key.public.add(ciphertexts)
    assert opened(key, total) == [sum(values)]
    other = phe.PaillierPublicKey(int(key.public.n))
    theirs = other.raw_encrypt(values[0], secrets.randbelow(other.n - 2) + 1)
    assert opened(key, key.public.add([ciphertexts[0], gmpy2.mpz(theirs)])) == [2 * values[0]]
    assert opened(key, key.public.subtract(total, ciphertexts[0])) == [sum(values[1:])]


@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=8))
def test_packed_side_by_side(key, values):
    packed = key.public.pack(list(key.encrypt(values)), 40)
    assert paillier.unpack(opened(key, packed)[0], len(values), 40) == values


def test_slots_that_do_not_fit(key):
    with pytest.raises(MisuseError, match="do not fit"):
        key.public.pack(list(key.encrypt([1, 2])), SMALL // 2)
    with pytest.raises(DecodeError, match="larger than its slot"):
        paillier.unpack(1 << 80, 2, 40)


def test_every_ciphertext_is_new_and_randomising_keeps_the_plaintext(key):
    first, second = key.encrypt([7, 7])
    assert first != second
    randomiser = Randomiser(key.public)
    third, fourth = randomiser.randomise(first), randomiser.randomise(first)
    assert len({first, third, fourth}) == 3
    assert opened(key, third, fourth, randomiser.encrypt(5)) == [7, 7, 5]


def test_randomising_leaves_no_symbol_for_the_owner(key):
    """Whoever has the factors sees nothing of the factor that it chose: neither its Jacobi symbol nor its residue class."""
    n = key.public.n
    p, _ = key.secret
    chosen = next(x for x in map(gmpy2.mpz, range(2, 1000)) if gmpy2.jacobi(x, n) == -1)
    marked = key.public.shown(5) * gmpy2.powmod(chosen, n, key.public.square) % key.public.square
    randomiser = Randomiser(key.public)
    found = [randomiser.randomise(marked) for _ in range(60)]
    assert opened(key, *found[:3]) == [5, 5, 5]
    jacobi = sum(gmpy2.jacobi(each, n) == 1 for each in found)
    legendre = sum(gmpy2.jacobi(each, p) == 1 for each in found)
    assert 8 < jacobi < 52
    assert 8 < legendre < 52
    # Also of a sum of nothing, which is what comes back below a minimum.
    nothing = [randomiser.encrypt(0) for _ in range(60)]
    assert 8 < sum(gmpy2.jacobi(each, n) == 1 for each in nothing) < 52


def test_residues_are_drawn_from_all_of_their_group(key):
    """The base generates all of it: no power by a factor of the order gives 1."""
    p, _ = key.secret
    base = key._residues[0].power(1)
    assert gmpy2.powmod(base, p - 1, p**2) == 1
    assert gmpy2.powmod(base, 2, p**2) != 1
    assert gmpy2.powmod(base, (p - 1) // 2, p**2) != 1


def test_what_is_no_ciphertext(key):
    public = key.public
    p, _ = key.secret
    good = next(key.encrypt([1]))
    for value, said in (
        (0, "2 is out of range"),
        (int(public.n), "2 is not invertible"),
        (p, "2 is not invertible"),
        (int(public.square) - 1 + 1, "2 is out of range"),
        (int(public.square) + 5, "2 is out of range"),
    ):
        for decode in (public.read, public.split):
            with pytest.raises(DecodeError, match=said):
                decode(public.write([good, gmpy2.mpz(value)]))
    for decode in (public.read, public.split):
        with pytest.raises(DecodeError, match="no whole"):
            decode(public.write([good])[:-1])
    assert public.read(b"") == []
    assert public.halves(public.split(b"")) == ([], [])


EDGES = (1, -1, "m+1", "1-m", "m-1")


@settings(deadline=None, max_examples=60)
@given(chosen=st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0)), max_size=12))
def test_products_by_halves_are_the_products(key, chosen):
    """Modulo the square of a prime, as for the owner's residues, and of n, as for a partner's sums."""
    p, _ = key.secret
    for modulus in (gmpy2.mpz(p), key.public.n):
        square = modulus**2
        special = dict(zip(EDGES, (1, -1, modulus + 1, 1 - modulus, modulus - 1), strict=True))
        values = [special[each] if each in special else pow(3, each, square) for each in chosen]
        units = [gmpy2.mpz(value % square) for value in values]
        lows, highs = paillier.split(units, modulus)
        assert all(0 < low < modulus for low in lows)
        assert all(0 <= high < modulus for high in highs)
        for i, unit in enumerate(units):
            assert paillier.join(lows[i], highs[i], modulus, square) == unit
        product = gmpy2.mpz(1)
        for unit in units:
            product = product * unit % square
        assert paillier.join(*paillier.multiply(lows, highs, square), modulus, square) == product
        with pytest.raises(ZeroDivisionError):
            paillier.split([*units, modulus * 5], modulus)


@settings(deadline=None, max_examples=30)
@given(exponents=st.lists(st.integers(0, 2**256 - 1), min_size=1, max_size=70))
def test_powers_of_a_fixed_base(key, exponents):
    p, _ = key.secret
    table = key._residues[0]
    base = table.power(1)
    chosen = [0, 1, p - 2, *exponents]
    assert list(table.powers(chosen)) == [gmpy2.powmod(base, each, p**2) for each in chosen]


def test_ciphertexts_by_halves_are_the_same_ones(key):
    public = key.public
    ciphertexts = list(key.encrypt(range(20)))
    lows, highs = public.halves(public.split(public.write(ciphertexts)))
    joined = [
        paillier.join(low, high, public.n, public.square) for low, high in zip(lows, highs, strict=True)
    ]
    assert joined == ciphertexts


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_ciphertexts_or_refused(key, data):
    try:
        found = key.public.read(data)
    except DecodeError:
        return
    assert key.public.write(found) == data


def test_moduli_that_nobody_should_use(key, large):
    with pytest.raises(DecodeError, match="512 bits"):
        PublicKey.decode(key.public.encode())
    prime = next(x for x in iter(lambda: secrets.randbits(2046) | 3 << 2046 | 1, 0) if gmpy2.is_prime(x))
    for n in (prime, large.public.n - 1, large.public.n + 2, large.secret[0] ** 2, 0, -5):
        with pytest.raises(DecodeError):
            PublicKey(int(n))
    with pytest.raises(DecodeError, match="leading zeros|bits"):
        PublicKey.decode(b"\0\0" + large.public.encode())
    with pytest.raises(DecodeError, match="bits"):
        PublicKey.decode(b"\xff" * 4096)
    with pytest.raises(MisuseError, match="safe primes"):
        PrivateKey(65537, 257, least=16)
    assert repr(large) == "PrivateKey(2048 bits)"


def test_the_proof_about_the_modulus(large):
    proof = large.prove(b"job")
    paillier.verify(large.public, proof, b"job")
    with pytest.raises(ProofError):
        paillier.verify(large.public, proof, b"another job")
    for at, change in ((0, 1), (300, 1), (256, 1), (256, 4), (256 + 1 + 100, 1), (len(proof) - 1, 1)):
        wrong = bytearray(proof)
        wrong[at] ^= change
        with pytest.raises(ProofError):
            paillier.verify(large.public, bytes(wrong), b"job")
    with pytest.raises(ProofError, match="bytes"):
        paillier.verify(large.public, proof[:-1], b"job")


def test_three_primes_or_a_prime_of_the_wrong_form_cannot_be_proven(large):
    """Whoever knows the factors of another modulus finds no roots for most challenges."""
    p = paillier._safe_prime(688)
    q = paillier._safe_prime(680)
    r = paillier._safe_prime(680)
    n = p * q * r
    while n.bit_length() != 2048 or n % 4 != 1:
        r = next(x for x in iter(lambda: secrets.randbits(680) | 1 << 679 | 1, 0) if gmpy2.is_prime(x))
        n = p * q * r
    key = PublicKey(n)
    w = next(x for x in iter(lambda: gmpy2.mpz(secrets.randbelow(n)), 0) if gmpy2.jacobi(x, n) == -1)
    # A proof with whatever roots there are does not pass.
    forged = [int(w).to_bytes(256, "big")]
    for y in paillier._challenges(key, w, b""):
        root = gmpy2.powmod(y, gmpy2.invert(n, (p - 1) * (q - 1) * (r - 1)), n)
        forged += [b"\0", int(y).to_bytes(256, "big"), int(root).to_bytes(256, "big")]
    with pytest.raises(ProofError, match="does not hold"):
        paillier.verify(key, b"".join(forged), b"")
    rooted = 0
    for y in paillier._challenges(key, w, b""):
        values = [sign * (w if factor else 1) * y % n for sign in (1, -1) for factor in (0, 1)]
        rooted += any(all(gmpy2.jacobi(v, prime) == 1 for prime in (p, q, r)) for v in values)
    assert rooted < paillier.ROUNDS * 0.8  # half of them, were it tried


@settings(deadline=None, max_examples=10)
@given(
    values=st.lists(st.integers(0, 2**30), min_size=2, max_size=6), hide=st.booleans(), marked=st.booleans()
)
def test_the_blinded_sum_is_the_sum_and_says_no_more(large, values, hide, marked):
    """`marked`: the owner hides a mark above the contract's width in each value; it does not come back."""
    public, bits = large.public.encode(), 40
    sent = [value + (marked << (60 + i)) for i, value in enumerate(values)]
    chunk = psi_sum.encrypt_chunk(large.secret, sent)
    psi_sum.check_chunk(public, chunk)
    blinded, offset = psi_sum.blind(public, psi_sum.add_chunk(public, chunk), bits, hide)
    whole = opened(large, *large.public.read(blinded))[0]
    assert whole >> bits != sum(sent) >> bits
    result = psi_sum.unblind(psi_sum.open_sum(large.secret, blinded, bits), offset, bits)
    assert result == sum(values) % 2**bits
    assert (offset == 0) == (not hide) or offset == 0
    with pytest.raises(DecodeError):
        psi_sum.unblind(1 << bits, offset, bits)
    with pytest.raises(DecodeError):
        psi_sum.open_sum(large.secret, blinded + blinded, bits)
