"""The roles of a lookup in memory: what each sees, and states that serve once."""

import secrets
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import group, lookup, padding, voprf
from protocols.errors import DecodeError, MisuseError, ProofError, StateUsedError
from protocols.lookup import Question

KEY = voprf.generate_key_pair()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=40))
def test_outputs_are_those_of_the_function_itself(inputs):
    question = Question(KEY.public, inputs)
    assert question.finish(*lookup.answer(KEY, question.request())) == voprf.evaluate_inputs(
        KEY.secret, inputs
    )


def test_questions_that_are_blinded_together_are_as_each_would_be():
    keys = [KEY, *(voprf.generate_key_pair() for _ in range(3))]
    inputs = [[b"a"], [b"a"], [b"b", b"c"], [b"d"]]
    seeds = [secrets.token_bytes(32) for _ in keys]
    together = [Question(*each) for each in zip((k.public for k in keys), inputs, seeds, strict=True)]
    apart = [Question(*each) for each in zip((k.public for k in keys), inputs, seeds, strict=True)]
    Question.blind_together(together)
    Question.blind_together(together)  # changes nothing
    for key, question, other, asked in zip(keys, together, apart, inputs, strict=True):
        request = question.request()
        assert request == other.request()
        answer = lookup.answer(key, request)
        assert question.finish(*answer) == other.finish(*answer) == voprf.evaluate_inputs(key.secret, asked)
    Question.blind_together(together)  # they are finished: nothing to blind
    Question.blind_together([])
    with pytest.raises(StateUsedError):
        together[0].request()


def test_a_question_serves_once_and_in_order():
    question = Question(KEY.public, [b"a"])
    with pytest.raises(MisuseError, match="request comes first"):
        question.finish(b"", b"")
    answer = lookup.answer(KEY, question.request())
    question.finish(*answer)
    for again in (question.request, lambda: question.finish(*answer)):
        with pytest.raises(StateUsedError):
            again()


def test_a_bad_answer_does_not_use_the_question_up():
    question = Question(KEY.public, [b"a", b"b", b"c"])
    request = question.request()
    evaluated, proof = lookup.answer(KEY, request)
    with pytest.raises(ProofError):
        question.finish(*lookup.answer(voprf.generate_key_pair(), request))
    assert len(question.finish(evaluated, proof)) == 3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_unrelated_ones():
    seed, inputs = secrets.token_bytes(32), [b"a", b"b", b"c"]
    first = Question(KEY.public, inputs, seed).request()
    assert Question(KEY.public, inputs, seed).request() == first
    other = Question(KEY.public, inputs).request()
    assert not set(group.split(first)) & set(group.split(other))


def test_requests_are_padded_to_a_bucket_with_points_like_the_others():
    for count in (1, 2, 3, 5, 17, 33):
        request = Question(KEY.public, [b"%d" % i for i in range(count)]).request()
        assert len(request) == 32 * padding.bucket(count)
        points = group.split(request)
        assert len(set(points)) == len(points)
        group.check_points(request)


def test_points_look_uniform_whatever_is_asked():
    # A statistical smoke test: the bits of blinded points of one value are balanced, as of random points.
    request = b"".join(Question(KEY.public, [b"phone\x1f+8613800138000"]).request() for _ in range(400))
    bits = Counter(bit for byte in request for bit in f"{byte:08b}")
    assert abs(bits["1"] / (bits["0"] + bits["1"]) - 0.5) < 0.02


@pytest.mark.parametrize("request_bytes", [b"", b"\x00" * 32, b"\x01" * 31, b"\xff" * 64])
def test_the_holder_refuses_bad_requests(request_bytes):
    with pytest.raises(DecodeError):
        lookup.answer(KEY, request_bytes)


def test_bad_public_keys_and_empty_questions():
    with pytest.raises(DecodeError):
        Question(bytes(32), [b"a"])
    with pytest.raises(DecodeError):
        Question(KEY.public[:31], [b"a"])
    with pytest.raises(MisuseError):
        Question(KEY.public, [])
    with pytest.raises(MisuseError):
        Question(KEY.public, [b"a"], b"short")
