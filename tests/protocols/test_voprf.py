"""RFC 9497 against its vectors, against an independent implementation, and against those who cheat."""

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voprf import ristretto as independent

from protocols import group, voprf
from protocols.errors import DecodeError, MisuseError, PeerError, ProofError
from tests.protocols import ristretto_vectors

# RFC 9497, Appendix A.1.2 (VOPRF, ristretto255-SHA512), test vector 3: a batch of two.
RFC_SECRET = "e6f73f344b79b379f1a0dd37e07ff62e38d9f71345ce62ae3a9bc60b04ccd909"
RFC_PUBLIC = "c803e2cc6b05fc15064549b5920659ca4a77b2cca6f04f6b357009335476ad4e"
RFC_SEED = "a3" * 32
RFC_INPUTS = ["00", "5a" * 17]
RFC_BLINDS = [
    "64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706",
    "222a5e897cf59db8145db8d16e597e8facb80ae7d4e26d9881aa6f61d645fc0e",
]
RFC_R = "419c4f4f5052c53c45f3da494d2b67b220d02118e0857cdbcf037f9ea84bbe0c"
RFC_PROOF = (
    "cc203910175d786927eeb44ea847328047892ddf8590e723c37205cb74600b0a"
    "5ab5337c8eb4ceae0494c2cf89529dcf94572ed267473d567aeed6ab873dee08"
)
RFC_OUTPUTS = [
    "b58cfbe118e0cb94d79b5fd6a6dafb98764dff49c14e1770b566e42402da1a7d"
    "a4d8527693914139caee5bd03903af43a491351d23b430948dd50cde10d32b3c",
    "8a9a2f3c7f085b65933594309041fc1898d42d0858e59f90814ae90571a6df60"
    "356f4610bf816f27afdd84f47719e480906d27ecd994985890e5f539e7ea74b6",
]
KEY = voprf.generate_key_pair()


def batch(*inputs: bytes, blinds: bytes | None = None) -> tuple[bytes, bytes]:
    blinds = blinds or b"".join(group.random_scalar() for _ in inputs)
    return blinds, voprf.blind(list(inputs), blinds)


def test_the_rfc_vector_in_this_file():
    key = voprf.derive_key_pair(bytes.fromhex(RFC_SEED), b"test key")
    assert (key.secret.hex(), key.public.hex()) == (RFC_SECRET, RFC_PUBLIC)
    inputs = [bytes.fromhex(each) for each in RFC_INPUTS]
    blinds = bytes.fromhex("".join(RFC_BLINDS))
    blinded = voprf.blind(inputs, blinds)
    evaluated, proof = voprf.evaluate_with_proof(key, blinded, random=bytes.fromhex(RFC_R))
    assert proof.hex() == RFC_PROOF
    voprf.verify_proof(key.public, blinded, evaluated, proof)
    assert [each.hex() for each in voprf.finalize(inputs, blinds, evaluated)] == RFC_OUTPUTS


def test_every_ristretto_vector_of_modes_0_and_1(rfc9497):
    tried = 0
    for suite in rfc9497:
        if suite["identifier"] != "ristretto255-SHA512" or suite["mode"] > 1:
            continue
        mode = suite["mode"]
        seed, info = bytes.fromhex(suite["seed"]), bytes.fromhex(suite["keyInfo"])
        key = voprf.derive_key_pair(seed, info, mode)
        assert key.secret.hex() == suite["skSm"]
        if mode == 1:
            assert key.public.hex() == suite["pkSm"]
        for vector in suite["vectors"]:
            inputs = [bytes.fromhex(each) for each in vector["Input"].split(",")]
            blinds = bytes.fromhex(vector["Blind"].replace(",", ""))
            blinded = voprf.blind(inputs, blinds, mode)
            assert blinded.hex() == vector["BlindedElement"].replace(",", "")
            if mode == 1:
                nonce = bytes.fromhex(vector["Proof"]["r"])
                evaluated, proof = voprf.evaluate_with_proof(key, blinded, random=nonce)
                assert proof.hex() == vector["Proof"]["proof"]
                voprf.verify_proof(key.public, blinded, evaluated, proof)
            else:
                evaluated = voprf.evaluate(key.secret, blinded)
            assert evaluated.hex() == vector["EvaluationElement"].replace(",", "")
            outputs = voprf.finalize(inputs, blinds, evaluated)
            assert [each.hex() for each in outputs] == vector["Output"].split(",")
            assert outputs == voprf.evaluate_inputs(key.secret, inputs, mode)
            tried += 1
    assert tried == 5


@settings(max_examples=25, deadline=None)
@given(
    st.binary(min_size=32, max_size=32), st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=9)
)
def test_our_client_with_the_independent_server_and_the_other_way_round(seed, inputs):
    theirs = independent.Evaluator.from_seed(seed, b"lianfang")
    ours = voprf.derive_key_pair(seed, b"lianfang")
    assert theirs.public_key.serialize() == ours.public
    # Our client, their server.
    blinds, blinded = batch(*inputs)
    elements = [independent.BlindedInput.deserialize(each) for each in group.split(blinded)]
    answer = theirs.evaluate_batch(elements).serialize()  # proof, then the elements
    proof, evaluated = answer[:64], answer[64:]
    voprf.verify_proof(ours.public, blinded, evaluated, proof)
    outputs = voprf.finalize(inputs, blinds, evaluated)
    assert outputs == [theirs.evaluate_known_input(each) for each in inputs]
    # Their client, our server.
    pairs = [independent.Client.blind(each) for each in inputs]
    request = b"".join(blinded_input.serialize() for _, blinded_input in pairs)
    evaluated, proof = voprf.evaluate_with_proof(ours, request)
    reply = independent.VerifiableBatchOutput.deserialize(proof + evaluated)
    finalised = independent.Client.finalize_batch([client for client, _ in pairs], reply, theirs.public_key)
    assert list(finalised) == outputs


@pytest.mark.parametrize("count", [1, 2, voprf.CHUNK - 1, voprf.CHUNK, voprf.CHUNK + 1, 3 * voprf.CHUNK])
def test_chunks_give_the_same_proof_as_one_piece(count, monkeypatch):
    blinds, blinded = batch(*(b"%d" % i for i in range(count)))
    nonce = group.random_scalar()
    in_chunks = voprf.evaluate_with_proof(KEY, blinded, random=nonce)
    monkeypatch.setattr(voprf, "CHUNK", 10_000)
    assert voprf.evaluate_with_proof(KEY, blinded, random=nonce) == in_chunks


NON_CANONICAL = [encoding for kind in ristretto_vectors.REFUSED.values() for encoding in kind]


@pytest.mark.parametrize("encoding", [*NON_CANONICAL, "00" * 32])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_points_that_are_not_canonical_not_in_the_group_or_the_identity(encoding, position):
    _, good = batch(b"a", b"b", b"c")
    bad = good[: 32 * position] + bytes.fromhex(encoding) + good[32 * (position + 1) :]
    with pytest.raises(DecodeError, match=rf"\b{position}\b"):
        group.check_points(bad)
    with pytest.raises(DecodeError, match=rf"\b{position}\b"):
        voprf.evaluate_with_proof(KEY, bad)
    with pytest.raises(PeerError):
        voprf.verify_proof(KEY.public, good, bad, bytes(31) + b"\x01" + bytes(31) + b"\x01")
    with pytest.raises(DecodeError):
        voprf.check_public_key(bytes.fromhex(encoding))


@pytest.mark.parametrize("scalar", [group.ORDER, group.ORDER + 1, 2**256 - 1, 0])
def test_scalars_out_of_range(scalar):
    blinds, blinded = batch(b"a")
    evaluated, proof = voprf.evaluate_with_proof(KEY, blinded)
    encoded = scalar.to_bytes(32, "little")
    for forged in (encoded + proof[32:], proof[:32] + encoded):
        with pytest.raises(PeerError):
            voprf.verify_proof(KEY.public, blinded, evaluated, forged)
    with pytest.raises(DecodeError):
        group.invert_scalars(encoded)


@pytest.mark.parametrize("inputs", [(b"a",), (b"a", b"b")])
def test_a_proof_with_each_byte_flipped(inputs):
    _, blinded = batch(*inputs)
    evaluated, proof = voprf.evaluate_with_proof(KEY, blinded)
    voprf.verify_proof(KEY.public, blinded, evaluated, proof)
    for position in range(len(proof)):
        forged = bytearray(proof)
        forged[position] ^= 1 << secrets.randbelow(8)
        with pytest.raises(PeerError):
            voprf.verify_proof(KEY.public, blinded, evaluated, bytes(forged))


def test_a_key_other_than_the_announced_one():
    _, blinded = batch(b"a", b"b", b"c")
    other = voprf.generate_key_pair()
    evaluated, proof = voprf.evaluate_with_proof(other, blinded)
    with pytest.raises(ProofError):
        voprf.verify_proof(KEY.public, blinded, evaluated, proof)
    # One element under another key, the proof made over the announced one.
    honest, proof = voprf.evaluate_with_proof(KEY, blinded)
    with pytest.raises(ProofError):
        voprf.verify_proof(KEY.public, blinded, evaluated[:32] + honest[32:], proof)


@pytest.mark.parametrize("encoding", [*NON_CANONICAL, "00" * 32])
def test_a_single_element_that_is_no_point_is_named(encoding):
    bad, (_, good) = bytes.fromhex(encoding), batch(b"a")
    evaluated, proof = voprf.evaluate_with_proof(KEY, good)
    with pytest.raises(DecodeError, match="element 0"):
        voprf.evaluate_with_proof(KEY, bad)
    with pytest.raises(DecodeError, match="blinded element 0"):
        voprf.verify_proof(KEY.public, bad, evaluated, proof)
    with pytest.raises(DecodeError, match="evaluated element 0"):
        voprf.verify_proof(KEY.public, good, bad, proof)


def test_a_single_element_of_another_key_or_question():
    inverse = group.invert_scalars(blinds := group.random_scalar())
    _, blinded = batch(b"a", blinds=blinds)
    evaluated, proof = voprf.evaluate_with_proof(KEY, blinded)
    (output,) = voprf.finalize([b"a"], blinds, evaluated)
    assert (
        voprf.verify_and_finalize_one(KEY.public, b"a", inverse, blinded, evaluated, proof)
        == output
        == voprf.evaluate_inputs(KEY.secret, [b"a"])[0]
    )
    _, unrelated = batch(b"b")
    other = voprf.generate_key_pair()
    for public, asked, given_ in (
        (other.public, blinded, evaluated),
        (KEY.public, unrelated, evaluated),
        (KEY.public, blinded, unrelated),
        (KEY.public, blinded, blinded),
        (KEY.public, blinded, voprf.evaluate(other.secret, blinded)),
    ):
        with pytest.raises(ProofError):
            voprf.verify_and_finalize_one(public, b"a", inverse, asked, given_, proof)
    for forged in (bytes(32) + proof[32:], proof[:32] + bytes(32)):
        with pytest.raises(ProofError, match="degenerate"):
            voprf.verify_proof(KEY.public, blinded, evaluated, forged)
    with pytest.raises(MisuseError):
        voprf.verify_and_finalize_one(KEY.public, b"a", inverse, blinded * 2, evaluated * 2, proof)


def test_a_proof_of_one_is_the_proof_of_a_batch_that_holds_one():
    """The formulas of a single element and those of a batch give the same bytes, and accept each other's."""
    _, blinded = batch(b"a")
    nonce = group.random_scalar()
    evaluated, proof = voprf.evaluate_with_proof(KEY, blinded, random=nonce)
    seed = voprf.composite_seed(KEY.public)
    same, m = voprf.evaluate_chunk(KEY.secret, seed, 0, blinded)
    assert (same, voprf._prove(KEY, m, nonce)) == (evaluated, proof)
    assert voprf.composite_chunk(seed, 0, blinded, evaluated) == (m, group.multiply_all(KEY.secret, m))


def test_swapped_answers_do_not_verify():
    _, blinded = batch(b"a", b"b")
    evaluated, proof = voprf.evaluate_with_proof(KEY, blinded)
    with pytest.raises(ProofError):
        voprf.verify_proof(KEY.public, blinded, evaluated[32:] + evaluated[:32], proof)


def test_empty_oversized_and_ragged_batches():
    _, point = batch(b"a")
    for bad in (b"", point[:-1], point + b"\x00", point * (voprf.MAX_BATCH + 1)):
        with pytest.raises(DecodeError):
            voprf.evaluate_with_proof(KEY, bad)
        with pytest.raises(DecodeError):
            voprf.verify_proof(KEY.public, bad, bad, bytes(64))
    with pytest.raises(DecodeError, match="differ in length"):
        voprf.verify_proof(KEY.public, point, point * 2, bytes(64))
    with pytest.raises(MisuseError):
        voprf.hash_to_group([bytes(65_536)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, group.ORDER - 1), min_size=1, max_size=12))
def test_batch_inversion_is_inversion(values):
    scalars = b"".join(value.to_bytes(32, "little") for value in values)
    inverted = group.split(group.invert_scalars(scalars))
    assert [int.from_bytes(each, "little") for each in inverted] == [
        pow(value, -1, group.ORDER) for value in values
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 2**64), min_size=1, max_size=6))
def test_weighted_sum_is_the_sum_of_multiples_of_the_base(values):
    base = group.multiply_base((1).to_bytes(32, "little"))
    scalars = b"".join(value.to_bytes(32, "little") for value in values)
    assert group.weighted_sum(scalars, base * len(values)) == group.multiply_base(
        sum(values).to_bytes(32, "little")
    )


def test_keys_do_not_show_in_their_representation():
    assert KEY.secret.hex() not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)
