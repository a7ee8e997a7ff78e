"""The sum of one party's values over the elements that both have, without I/O; needs the `vertical` extra.

    owner of the values, key of this session                     who adds up
    n, proof; (b·H(y), Enc(value)) each            →             checks all of them
    a·b·H(x), ascending                            →             finds which b·a·H(y) are among them, whoever they are
                                                   ←             Enc(Σ + offset + 2^w·ρ)
    opens it, modulo 2^w                           →             takes the offset off, where it is to learn the sum

Ion et al., "On deploying secure computing: private intersection-sum-with-cardinality" (EuroS&P 2020). ρ is random below n/2^w: what
an owner hides above w bits of its values does not come back. The offset is random where the owner is not to learn the sum.
Secure against semi-honest parties; who adds up learns how many elements are in common.
"""

import functools
import secrets
from collections.abc import Sequence

from .encoding import frame
from .errors import DecodeError, MisuseError
from .paillier import PrivateKey, PublicKey, Randomiser, generate, verify

Secret = tuple[int, int]


@functools.lru_cache(maxsize=1)
def _own(secret: Secret) -> PrivateKey:
    return PrivateKey(*secret)


@functools.lru_cache(maxsize=1)
def _theirs(modulus: bytes) -> PublicKey:
    return PublicKey.decode(modulus)


def new_key(contract: bytes, session: bytes) -> tuple[Secret, bytes, bytes]:
    """A key for one session: its secret, modulus and proof. Takes some seconds."""
    key = generate()
    return key.secret, key.public.encode(), key.prove(_context(contract, session))


def check_key(modulus: bytes, proof: bytes, contract: bytes, session: bytes) -> int:
    """Bytes of a ciphertext; raises `DecodeError` or `ProofError` unless this is a key of this session."""
    key = _theirs(modulus)
    verify(key, proof, _context(contract, session))
    return key.size


def encrypt_chunk(secret: Secret, values: Sequence[int]) -> bytes:
    """Ciphertexts, in order; `secret` is `PrivateKey.secret`."""
    key = _own(secret)
    return key.public.write(key.encrypt(values))


def check_chunk(modulus: bytes, ciphertexts: bytes) -> None:
    """Raise `DecodeError` unless all of them are ciphertexts."""
    _theirs(modulus).read(ciphertexts)


def add_chunk(modulus: bytes, ciphertexts: bytes) -> bytes:
    """A ciphertext of their sum. They were checked."""
    key = _theirs(modulus)
    return key.write([key.add(key.read(ciphertexts))])


def add_some_chunk(modulus: bytes, ciphertexts: bytes, chosen: Sequence[bool]) -> bytes:
    """The same of those that are chosen; the others are added up, too, and thrown away."""
    key = _theirs(modulus)
    totals = [key.shown(0), key.shown(0)]
    for each, which in zip(key.read(ciphertexts), chosen, strict=True):
        totals[which] = key.add((totals[which], each))
    return key.write([totals[True]])


def blind(modulus: bytes, ciphertext: bytes, bits: int, hide: bool) -> tuple[bytes, int]:
    """The sum as its owner may see it, and the offset by which it is off modulo 2^bits: 0, or random to `hide` it."""
    key = _theirs(modulus)
    (total,) = key.read(ciphertext)
    offset = secrets.randbits(bits) if hide else 0
    rho = secrets.randbelow(int(key.n) >> bits)
    mask = Randomiser(key).encrypt(offset + (rho << bits))
    return key.write([key.add([total, mask])]), offset


def open_sum(secret: Secret, ciphertext: bytes, bits: int) -> int:
    """What the other side sent, modulo 2^bits. Raises `DecodeError`."""
    key = _own(secret)
    if len(ciphertext) != key.public.size:
        raise DecodeError("one ciphertext was due")
    (opened,) = key.decrypt(key.public.read(ciphertext))
    return opened % (1 << bits)


def unblind(opened: int, offset: int, bits: int) -> int:
    """The sum. Raises `DecodeError` for what no opened sum can be."""
    if not 0 <= opened < 1 << bits:
        raise DecodeError("the opened sum is out of range")
    return (opened - offset) % (1 << bits)


def _context(contract: bytes, session: bytes) -> bytes:
    if len(contract) != 32 or len(session) != 16:
        raise MisuseError("a contract's hash has 32 bytes and a session 16")
    return frame("lianfang/v1/psi-sum", contract, session)
