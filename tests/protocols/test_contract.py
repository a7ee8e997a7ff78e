"""Contracts as bytes and as sets of acts."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from lianfang.v1 import contract_pb2 as pb

from protocols import contract
from protocols.contract import APPROVE, REJECT, REVOKE, State
from protocols.errors import DecodeError, SignatureError

A, B, R = (f"spiffe://x.example/{name}" for name in ("bank/a", "bank/b", "regulator/r"))
KEYS = {name: Ed25519PrivateKey.generate() for name in (A, B, R)}
PROPOSED, EXPIRES = 1_800_000_000, 1_800_864_000


def lookup(**changes):
    values = {
        "network": "x.example",
        "id": bytes(16),
        "title": "lookups",
        "proposer": A,
        "parties": [A, B],
        "signers": [A, B, R],
        "proposed_at": PROPOSED,
        "expires_at": EXPIRES,
        "retention_days": 30,
        "lookup": pb.LookupTerms(grants=[grant()]),
    }
    return pb.Contract(**values | changes)


def grant(**changes):
    budget = pb.Allowance(epoch=100, day=50, burst=20, burst_seconds=60)
    values = {"holder": A, "asker": B, "lists": ["fraud"], "purposes": [1, 2], "bases": [3], "budget": budget}
    return pb.Grant(**values | changes)


def psi(**changes):
    inputs = [
        pb.PsiTerms.Input(party=party, dataset="customers", column="phone", max_elements=1000)
        for party in (A, B)
    ]
    return pb.PsiTerms(
        **{"variant": 1, "inputs": inputs, "output_to": [A], "kind": "phone", "sessions_a_day": 1} | changes
    )


def with_psi(**changes):
    made = lookup()
    made.psi.CopyFrom(psi(**changes))
    return made


def with_grants(*grants):
    return lookup(lookup=pb.LookupTerms(grants=grants))


@pytest.mark.parametrize("made", [lookup(), with_psi(), with_grants(grant(), grant(holder=B, asker=A))])
def test_what_serialises_parses_to_the_same_bytes(made):
    data = contract.serialise(made)
    assert contract.parse(data) == made
    assert len(contract.hash_of(data)) == 32


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lookup(network=""), "network"),
        (lookup(id=b"x"), "id: 16 bytes"),
        (lookup(title=""), "title"),
        (lookup(title="a\x1b[2J"), "title"),
        (lookup(parties=[A]), "parties: 2"),
        (lookup(parties=[B, A]), "ascending"),
        (lookup(parties=[A, A]), "ascending"),
        (lookup(signers=[A]), "every party signs"),
        (lookup(proposer=R), "a party proposes"),
        (lookup(expires_at=PROPOSED), "ends before it begins"),
        (lookup(expires_at=PROPOSED + 1_101 * 86_400), "within 1100 days"),
        (lookup(retention_days=0), "retention_days"),
        (lookup(lookup=None), "terms"),
        (lookup(parties=[A, B, R]), "exactly those whom the terms name"),
        (with_grants(), "grants: 1"),
        (with_grants(grant(), grant()), "grants: ascending"),
        (with_grants(grant(lists=["a", "b"]), grant(lists=["b"])), "granted to one asker once"),
        (with_grants(grant(asker=A)), "does not ask itself"),
        (with_grants(grant(lists=[])), "lists"),
        (with_grants(grant(lists=["*"])), "not a list name"),
        (with_grants(grant(lists=["b", "a"])), "lists: ascending"),
        (with_grants(grant(purposes=[])), "purposes: at least one"),
        (with_grants(grant(purposes=[0])), "purposes"),
        (with_grants(grant(purposes=[99])), "purposes"),
        (with_grants(grant(bases=[99])), "bases"),
        (with_grants(grant(budget=pb.Allowance(epoch=1, day=1, burst_seconds=1))), "budget"),
        (with_grants(grant(budget=pb.Allowance(epoch=1, day=1, burst=1))), "burst_seconds"),
        (with_psi(variant=0), "variant"),
        (with_psi(variant=9), "variant"),
        (with_psi(output_to=[]), "output_to"),
        (with_psi(output_to=[R]), "output_to"),
        (with_psi(inputs=psi().inputs[:1]), "two"),
        (with_psi(inputs=list(psi().inputs)[::-1]), "ascending by party"),
        (with_psi(sum_bits=8), "sum_bits"),
        (with_psi(variant=3, sum_bits=8), "values: one party's"),
        (lookup(lookup=None, job=pb.JobTerms(schema_hash=bytes(32))), "descriptor"),
        (lookup(lookup=None, job=pb.JobTerms(descriptor=b"{}")), "schema_hash"),
    ],
)
def test_what_no_signer_would_accept_names_the_field(made, message):
    with pytest.raises(DecodeError, match=message):
        contract.serialise(made)


def test_a_sum_below_two_elements_is_no_contract():
    inputs = list(psi().inputs)
    inputs[0].values = "amount"
    with pytest.raises(DecodeError, match="minimum_cardinality"):
        contract.serialise(with_psi(variant=3, sum_bits=8, inputs=inputs, minimum_cardinality=1))
    contract.serialise(with_psi(variant=3, sum_bits=8, inputs=inputs, minimum_cardinality=2))


@given(st.binary(max_size=300))
def test_rubbish_is_refused_as_such(data):
    with pytest.raises(DecodeError):
        contract.parse(data)


@given(st.data())
def test_every_altered_byte_is_noticed(data):
    whole = contract.serialise(lookup())
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    try:
        contract.parse(bytes(flipped))
    except DecodeError:
        return
    act = contract.sign(KEYS[A], contract.hash_of(whole), A, APPROVE, PROPOSED)
    with pytest.raises(SignatureError):
        contract.verify(contract.hash_of(bytes(flipped)), lookup(), act, KEYS[A].public_key())


KEY = contract.hash_of(contract.serialise(lookup()))


def act(party, action, at=PROPOSED):
    return contract.sign(KEYS[party], KEY, party, action, at)


def test_an_act_is_of_a_signer_on_this_contract_in_its_time():
    contract.verify(KEY, lookup(), act(B, APPROVE), KEYS[B].public_key())
    stranger = contract.sign(KEYS[B], KEY, "spiffe://x.example/bank/c", APPROVE, PROPOSED)
    other = contract.sign(KEYS[B], bytes(32), B, APPROVE, PROPOSED)
    moved = act(B, APPROVE)
    moved.action = REVOKE
    for bad, message in (
        (stranger, "not one of its signers"),
        (other, "not signed by"),
        (moved, "not signed by"),
        (act(B, APPROVE, PROPOSED - 1), "older than the proposal"),
        (act(B, APPROVE, EXPIRES), "after its expiry"),
        (contract.sign(KEYS[A], KEY, B, APPROVE, PROPOSED), "not signed by"),
        (pb.ContractAct(party=B, action=9, at=PROPOSED), "no known kind"),  # type: ignore[arg-type]
    ):
        with pytest.raises((DecodeError, SignatureError), match=message):
            contract.verify(KEY, lookup(), bad, KEYS[B].public_key())


def test_states():
    def stands(*acts, now=PROPOSED):
        return contract.state(lookup(), acts, now)

    everybody = [act(party, APPROVE) for party in (A, B, R)]
    assert stands(*everybody[:2]) is State.PROPOSED
    assert contract.waiting_for(lookup(), everybody[:2]) == [R]
    assert stands(*everybody) is State.ACTIVE
    assert stands(*everybody, now=EXPIRES - 1) is State.ACTIVE
    assert stands(*everybody, now=EXPIRES) is State.EXPIRED
    assert stands(*everybody[:2], now=EXPIRES) is State.EXPIRED
    assert stands(everybody[0], act(B, REJECT)) is State.REJECTED
    assert stands(*everybody, act(B, REVOKE)) is State.REVOKED
    assert stands(*everybody, act(B, REVOKE), now=EXPIRES) is State.REVOKED
    # At the same moment one approves and another rejects: ended, whoever was first.
    assert stands(*everybody, act(R, REJECT)) is State.REVOKED


ACTS = st.lists(
    st.builds(act, st.sampled_from([A, B, R]), st.sampled_from([APPROVE, REJECT, REVOKE]), st.just(PROPOSED)),
    max_size=9,
)


@given(ACTS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_state_is_the_same_in_whatever_order_and_portions_acts_arrive(acts, shuffle, portions):
    expected = contract.merge(acts)
    shuffled = list(acts) + shuffle.sample(acts, len(acts) // 2)
    shuffle.shuffle(shuffled)
    held = []
    for i in range(0, len(shuffled), portions):
        held = contract.merge(held, shuffled[i : i + portions])
    assert held == expected
    assert contract.state(lookup(), held, PROPOSED) is contract.state(lookup(), expected, PROPOSED)


@given(ACTS, ACTS)
def test_what_has_ended_stays_ended(before, after):
    ended = (State.REJECTED, State.REVOKED)
    if contract.state(lookup(), before, PROPOSED) in ended:
        assert contract.state(lookup(), contract.merge(before, after), PROPOSED) in ended
