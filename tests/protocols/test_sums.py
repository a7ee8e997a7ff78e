"""SecureSum in memory: the sum is right, or the job has ended and says where, at whose fault and why."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lianfang.v1 import sums_pb2 as pb

from protocols import group
from protocols.errors import DecodeError, MisuseError
from protocols.sums import cipher, cohorts, members, modular, shares
from protocols.sums.coordinator import Coordinator
from protocols.sums.errors import SumAborted
from protocols.sums.members import Phase
from tests.protocols.sums_driver import Room, World

THREE = World(3)


def vectors(world, length=5, low=-1000, high=1000, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(low, high, length) for name in world.names}


def check(room, given_vectors, results):
    total = np.sum(list(given_vectors.values()), axis=0)
    for name, result in results.items():
        assert np.array_equal(result, total), name


# -- arithmetic --------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, modular.MODULUS - 1), st.integers(0, modular.MODULUS - 1)),
        min_size=1,
        max_size=50,
    )
)
def test_inner_product_is_that_of_python_integers(pairs):
    left, right = (np.array(each, dtype=np.int64) for each in zip(*pairs, strict=True))
    assert modular.inner(left, right) == sum(a * b for a, b in pairs) % modular.MODULUS


def test_inner_product_of_the_largest_values_does_not_overflow():
    size = 1 << 16
    top = np.full(size, modular.MODULUS - 1, dtype=np.int64)
    assert modular.inner(top, top) == size * pow(modular.MODULUS - 1, 2, modular.MODULUS) % modular.MODULUS


def test_masks_are_residues_differ_by_key_and_repeat_by_key():
    first = modular.expand(b"\x01" * 32, 100_000)
    assert first.min() >= 0
    assert first.max() < modular.MODULUS
    assert abs(first.mean() / modular.MODULUS - 0.5) < 0.01
    assert np.array_equal(first, modular.expand(b"\x01" * 32, 100_000))
    assert not np.array_equal(first, modular.expand(b"\x02" * 32, 100_000))


@given(st.integers(0, group.ORDER - 1), st.integers(3, 12), st.data())
@settings(max_examples=50)
def test_any_n_minus_one_shares_restore_the_seed_and_fewer_do_not(secret, count, data):
    seed = secret.to_bytes(32, "little")
    dealt = shares.split(seed, count - 1, count)
    chosen = data.draw(st.permutations(range(count)))[: count - 1]
    assert shares.join({i: dealt[i] for i in chosen}) == seed
    assert shares.join({i: dealt[i] for i in chosen[:-1]}) != seed


def test_shares_agree_with_an_independent_evaluation_of_the_polynomial():
    """Shares of a known polynomial, by Python's integers: 3 + 5x + 7x^2."""
    known = {i: (3 + 5 * x + 7 * x * x).to_bytes(32, "little") for i, x in ((0, 1), (4, 5), (8, 9))}
    assert shares.join(known) == (3).to_bytes(32, "little")
    with pytest.raises(DecodeError, match="share 4"):
        shares.join(known | {4: group.ORDER.to_bytes(32, "little")})


def test_a_range_that_could_overflow_is_refused_before_anything_is_sent():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    name = THREE.names[0]
    limit = (modular.HALF - 1) // 3
    with pytest.raises(MisuseError, match="could exceed half the modulus"):
        room.members[name].contribute(np.array([limit + 1]), "x")
    result = room.sum({name: np.array([limit, -limit]) for name in THREE.names})
    assert result[name].tolist() == [3 * limit, -3 * limit]


# -- the honest run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "bfv"), [(3, True), (4, False), (10, True), (30, False)])
def test_all_members_get_the_sum(count, bfv):
    world = World(count)
    room = Room(world, world.job(bfv=bfv))
    room.enter()
    for seed in range(3):
        given_vectors = vectors(world, seed=seed)
        check(room, given_vectors, room.sum(given_vectors, f"sum {seed}"))
    assert room.errors == {}


def test_vectors_longer_than_one_ciphertext():
    room = Room(THREE, THREE.job())
    room.enter()
    for length in (8191, 8192, 20_000):
        given_vectors = vectors(THREE, length, -(1 << 50), 1 << 50)
        check(room, given_vectors, room.sum(given_vectors))


def test_an_observer_gets_the_sum_adds_zeros_and_counts_for_no_minimum():
    world = World(4)
    observer = world.names[0]
    room = Room(world, world.job(observers=frozenset([observer]), bfv=False))
    room.enter()
    given_vectors = {name: np.array([i]) for i, name in enumerate(world.names)}
    check(room, given_vectors, room.sum(given_vectors))
    with pytest.raises(MisuseError, match="observer adds zeros"):
        room.members[observer].contribute(np.array([1]), "x")
    room = Room(THREE, THREE.job(observers=frozenset([THREE.names[0]])))
    with pytest.raises(SumAborted, match="2 contribute, at least 3"):
        room.enter()


def test_sums_do_not_start_twice_or_before_the_keys():
    room = Room(THREE, THREE.job(bfv=False))
    name = THREE.names[0]
    with pytest.raises(MisuseError, match="does not belong here"):
        room.members[name].contribute(np.array([1]), "x")
    room.enter()
    room.say(name, room.members[name].contribute(np.array([1]), "x"))
    with pytest.raises(MisuseError):
        room.members[name].contribute(np.array([1]), "x")


# -- what is sent hides what is summed -------------------------------------------------------------------------------


def test_equal_contributions_give_unrelated_uploads_and_no_value_shows():
    seen = []
    for _ in range(2):
        room = Room(THREE, THREE.job(bfv=False))
        room.enter()
        room.sum({name: np.zeros(4000, dtype=np.int64) for name in THREE.names})
        seen += [cipher.unpack(m.chunk.content) for m in room.seen if m.WhichOneof("step") == "chunk"]
    assert len(seen) == 6
    for i, values in enumerate(seen):
        assert 0.45 < values.mean() / modular.MODULUS < 0.55  # zeros look uniform
        assert all(not np.intersect1d(values, other).size for other in seen[i + 1 :])


def test_all_views_short_of_two_honest_members_do_not_determine_a_contribution():
    """The coordinator and bank 0 pool all they hold: with 1 added to bank 1 and taken off bank 2 every value they can
    compute (bank 1's upload less its self-mask and their own pairwise mask) keeps its distribution, as the honest
    pair's mask covers it; the sum stays the same."""
    views = []
    for shift in (0, 1):
        room = Room(THREE, THREE.job(bfv=False))
        room.enter()
        evil, one, two = THREE.names
        room.contribute({evil: [5], one: [10 + shift], two: [20 - shift]})
        member, victim = room.members[evil], room.members[one]
        seed, pair = victim._round.seed, member._pairs[one]
        upload = next(m.chunk for m in room.up[one] if m.WhichOneof("step") == "chunk")
        values = cipher.unpack(upload.content)
        mine = modular.expand(members.expand(pair, member._info("mask"), 32), 2)
        residual = modular.add(modular.subtract(values, modular.expand(victim._self_key(seed), 2)), mine)
        honest = modular.expand(members.expand(victim._pairs[two], victim._info("mask"), 32), 2)
        # What hides the value is exactly the honest pair's mask, of which neither the root nor `evil`'s keys give anything.
        assert modular.subtract(residual, honest)[0] == 10 + shift
        assert victim._pairs[two] not in (member._pairs[one], member._pairs[two])
        views.append(residual[0])
        room.run()
        assert room.members[evil].result().tolist() == [35]
    assert views[0] != views[1]


@pytest.mark.parametrize("count", [3, 4, 6])
def test_no_coalition_short_of_all_but_one_determines_a_contribution(count):
    """What the coordinator and some members hold, as linear equations: uploads of an attempt that was given up and of the one
    that was opened, every opened self-mask, the masks of the coalition's pairs, their own values and the sum. An honest
    member's value is in their span if, and only if, it is the only honest one."""
    world = World(count)
    room = Room(world, world.job(bfv=False))
    room.enter()
    given_vectors = {name: np.array([i + 1]) for i, name in enumerate(world.names)}
    room.contribute(given_vectors)
    given_up = {name: [*room.up[name]] for name in world.names}
    first = {name: room.members[name]._round.seed for name in world.names}
    room.send(room.coordinator.enter(world.names[0], 0))  # begins anew: all upload again under fresh keys
    room.run()
    check(room, given_vectors, {name: room.members[name].result() for name in world.names})
    assert all(given_up.values())
    pairs = list(itertools.combinations(range(count), 2))
    held = {
        (i, j): [k for k, name in enumerate(world.names) if key in room.members[name]._pairs.values()]
        for i, j in pairs
        for key in [room.members[world.names[i]]._pairs[world.names[j]]]
    }
    assert all(holders == [i, j] for (i, j), holders in held.items())  # nobody else has a pair's key
    assert not set(first.values()) & {
        m.opening.sealed for m in room.seen if m.WhichOneof("step") == "opening"
    }
    # Columns: values, then for each attempt self-masks and pairwise masks.
    width = count + len(pairs)
    column = {("x", i): i for i in range(count)}
    for attempt in range(2):
        column |= {("s", attempt, i): count + attempt * width + i for i in range(count)}
        column |= {("m", attempt, p): 2 * count + attempt * width + k for k, p in enumerate(pairs)}

    def row():
        return np.zeros(count + 2 * width)

    def upload(attempt, i):
        equation = row()
        equation[column["x", i]] = equation[column["s", attempt, i]] = 1
        for pair in pairs:
            if i in pair:
                equation[column["m", attempt, pair]] = 1 if i == pair[0] else -1
        return equation

    def unit(*key):
        equation = row()
        equation[column[key]] = 1
        return equation

    for size in range(count):
        for coalition in itertools.combinations(range(count), size):
            view = [upload(attempt, i) for attempt in range(2) for i in range(count)]
            view += [unit("s", 1, i) for i in range(count)]  # opened; those of the first attempt never are
            view += [unit("m", a, p) for a in range(2) for p in pairs if set(p) & set(coalition)]
            view += [unit("s", 0, i) for i in coalition] + [unit("x", i) for i in coalition]
            view.append(sum(unit("x", i) for i in range(count)))
            rank = np.linalg.matrix_rank(np.array(view))
            for victim in set(range(count)) - set(coalition):
                more = np.linalg.matrix_rank(np.array([*view, unit("x", victim)]))
                assert bool(more == rank) == (size == count - 1)


def test_keys_and_seeds_never_travel_in_clear():
    room = Room(THREE, THREE.job())
    room.enter()
    room.contribute(vectors(THREE))
    roots = {member._root for member in room.members.values()}
    secrets = [*roots, *(member._round.seed for member in room.members.values())]
    secrets += [pair for member in room.members.values() for pair in member._pairs.values()]
    secrets += [share for member in room.members.values() for share in member._round.shares.values()]
    room.run()
    wire = b"".join(message.SerializeToString() for message in room.seen)
    assert len(roots) == 1
    assert len(secrets) > 8
    assert not any(secret in wire for secret in secrets)


# -- members that go and come -----------------------------------------------------------------------------------------


def test_a_member_that_never_comes_is_left_out_where_enough_remain():
    world = World(4)
    room = Room(world, world.job(bfv=False))
    present = world.names[:3]
    room.enter(*present)
    assert room.coordinator.phase == "entry"
    room.send(room.coordinator.give_up())
    room.run()
    given_vectors = {name: np.array([i]) for i, name in enumerate(present)}
    check(room, given_vectors, room.sum(given_vectors))
    # Who comes late is told so, and stops nobody.
    room.enter(world.names[3])
    assert "after the cohort" in str(room.errors.pop(world.names[3]))
    check(room, given_vectors, room.sum(given_vectors, "next"))
    assert room.errors == {}


def test_too_few_members_end_the_job_and_the_missing_are_named():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter(*THREE.names[:2])
    with pytest.raises(SumAborted, match=f"2 contribute.*missing: {THREE.names[2]}"):
        room.coordinator.give_up()


def test_a_drop_before_the_first_opening_begins_anew_without_it():
    world = World(4)
    room = Room(world, world.job(bfv=False))
    room.enter()
    gone, rest = world.names[2], [name for i, name in enumerate(world.names) if i != 2]
    given_vectors = {name: np.array([7, i]) for i, name in enumerate(rest)}
    room.contribute(given_vectors)
    room.run()
    room.coordinator.lost(gone)
    assert room.coordinator.waiting_for() == [gone]
    room.send(room.coordinator.give_up())
    room.run()
    check(room, given_vectors, {name: room.members[name].result() for name in rest})
    assert room.members[rest[0]].cohort == tuple(rest)
    # Its late words stop nobody.
    room.say(gone, room.members[gone].contribute(np.array([1, 1]), "x"))
    room.run()
    assert "goes on without it" in str(room.errors[gone])
    check(room, given_vectors, room.sum(given_vectors, "next"))


def test_a_drop_after_the_first_opening_ends_the_job():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    room.sum(vectors(THREE))
    room.coordinator.lost(THREE.names[1])
    room.contribute({name: [1] for name in (THREE.names[0], THREE.names[2])})
    room.run()
    with pytest.raises(SumAborted, match=rf"upload: {THREE.names[1]}: did not answer"):
        room.coordinator.give_up()
    with pytest.raises(SumAborted):
        room.coordinator.enter(THREE.names[1], 1)


def test_losing_one_after_all_committed_does_not_matter():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    lost = THREE.names[0]
    given_vectors = vectors(THREE)
    room.tamper = lambda party, message: (
        [] if party == lost and message.WhichOneof("step") == "commits" else [message]
    )
    room.contribute(given_vectors)
    room.tamper = lambda party, message: (
        [] if party == lost and message.WhichOneof("step") in ("commits", "chunk") else [message]
    )
    room.run()
    assert room.coordinator.phase == "opening"
    assert room.coordinator.waiting_for() == [lost]
    room.coordinator.lost(lost)
    room.send(room.coordinator.give_up())
    room.run()
    rest = THREE.names[1:]
    check(room, given_vectors, {name: room.members[name].result() for name in rest})
    # It comes back, catches up, and the job goes on.
    room.tamper = lambda _party, message: [message]
    room.send(room.coordinator.enter(lost, room.members[lost].opened))
    room.run()
    check(room, given_vectors, {lost: room.members[lost].result()})
    check(room, given_vectors, room.sum(given_vectors, "next"))


def test_losing_two_after_all_committed_ends_the_job():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    lost = THREE.names[:2]
    room.tamper = lambda party, message: (
        [] if party in lost and message.WhichOneof("step") in ("commits", "chunk") else [message]
    )
    room.contribute(vectors(THREE))
    room.run()
    with pytest.raises(SumAborted, match=r"opening: .*b00, .*b01"):
        room.coordinator.give_up()


@pytest.mark.parametrize("step", ["uploads", "commits", "chunk", "openings", "upload", "commit", "opening"])
def test_a_broken_stream_is_taken_up_again_in_every_phase(step):
    """What is under way in either direction is lost; the member comes back and the sum is right."""
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    lost, broken = THREE.names[1], []
    given_vectors = vectors(THREE, 9000)
    check(room, given_vectors, room.sum(given_vectors, "before"))
    room.contribute(given_vectors, "now")

    def breaks(message):
        if message.WhichOneof("step") == step and not broken:
            broken.append(step)
            room.coordinator.lost(lost)
            room.up[lost].clear()
            room.down[lost].clear()
        return bool(broken) and lost not in room.coordinator._present

    if step in ("upload", "commit", "opening"):
        receive = room.coordinator.receive
        room.coordinator.receive = lambda party, message: (
            [] if party == lost and breaks(message) else receive(party, message)
        )
    else:
        room.tamper = lambda party, message: [] if party == lost and breaks(message) else [message]
    room.run()
    assert broken
    room.send(room.coordinator.enter(lost, room.members[lost].opened))
    room.run()
    check(room, given_vectors, {name: room.members[name].result() for name in THREE.names})
    check(room, given_vectors, room.sum(given_vectors, "after"))
    assert room.errors == {}


def test_a_member_that_missed_the_end_of_the_last_sum_gets_it_while_the_others_go_on():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    lost = THREE.names[2]
    room.tamper = lambda party, message: (
        [] if party == lost and message.WhichOneof("step") == "openings" else [message]
    )
    first = vectors(THREE)
    results = room.sum(first)
    assert results[lost] is None
    room.coordinator.lost(lost)
    room.tamper = lambda _party, message: [message]
    second = vectors(THREE, seed=2)
    room.contribute({name: second[name] for name in THREE.names[:2]}, "second")
    room.run()
    room.send(room.coordinator.enter(lost, room.members[lost].opened))
    room.run()
    check(room, first, {lost: room.members[lost].result()})
    room.contribute({lost: second[lost]}, "second")
    room.run()
    check(room, second, {name: room.members[name].result() for name in THREE.names})


# -- cohorts over the same rows -----------------------------------------------------------------------------------------


def test_cohorts_over_the_same_rows_have_the_same_members():
    earlier = [frozenset("abcd")]
    cohorts.check_history("abcd", earlier)
    for now in ("abc", "abcde", "abce", "abcdef", "abcdefg", "aefg", "efgh"):
        with pytest.raises(SumAborted, match="differs from an earlier cohort"):
            cohorts.check_history(now, earlier)
    room = Room(THREE, THREE.job(), earlier=[frozenset(THREE.names[:2])])
    room.enter()
    assert all("differs from an earlier cohort" in str(error) for error in room.errors.values())
    assert len(room.errors) == 3


def test_colluders_do_not_get_a_second_sum_with_other_members():
    """Six banks, of which two collude with the coordinator; it says who is missing. Cohorts that differ by three gave them a vector."""
    world = World(6)
    a, b, c, d, m1, m2 = world.names
    secret = {
        name: np.random.default_rng(i).integers(0, 10**6, size=12) for i, name in enumerate(world.names)
    }
    history = {name: [] for name in world.names}

    def run(number, present):
        room = Room(world, job := world.job(minimum=4, hash=bytes([number]) * 32))
        for name in world.names:
            known = [] if name in (m1, m2) else list(history[name])  # liars look at no history
            room.members[name] = world.member(job, name, earlier=known, record=history[name].append)
        room.enter(*present)
        room.send(room.coordinator.give_up())
        room.run()
        if any(not room.members[name].ready for name in present):
            return {}, room.errors
        room.contribute({name: secret[name] for name in present}, "grad")
        room.run()
        return {name: room.members[name].result() for name in present}, room.errors

    first, errors = run(1, [a, b, c, m1])
    assert not errors
    assert np.array_equal(first[m1], sum(secret[name] for name in (a, b, c, m1)))
    second, errors = run(2, [a, b, c, d, m2])
    assert second == {}
    assert all("differs from an earlier cohort" in str(errors[name]) for name in (a, b, c))
    again, errors = run(3, [a, b, c, m1])  # the same members show the same sum
    assert not errors
    assert np.array_equal(again[m1], first[m1])


def test_the_cohort_is_durable_before_the_first_commitment():
    recorded = []
    room = Room(THREE, THREE.job(bfv=False), record=recorded.append)
    room.enter()
    room.contribute(vectors(THREE))
    assert recorded == []
    room.run()
    assert recorded == [frozenset(THREE.names)] * 3
    assert all(member.result() is not None for member in room.members.values())
    room.sum(vectors(THREE))
    assert len(recorded) == 3

    def full(_cohort):
        raise OSError("No space left on device")

    room = Room(THREE, THREE.job(bfv=False), record=full)
    room.enter()
    room.contribute(vectors(THREE))
    with pytest.raises(OSError, match="No space"):
        room.run()
    assert not any(message.WhichOneof("step") == "commit" for message in room.seen)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.SumToMember(begin=pb.SumBegin(generation=2)), "begins anew after a commitment"),
        (pb.SumToMember(retry=pb.SumRetry(number=1, attempt=2)), "another upload after a commitment"),
    ],
)
def test_after_its_commitment_a_member_answers_for_one_upload_only(message, reason):
    room = Room(THREE, THREE.job(bfv=False))
    name = THREE.names[0]
    room.tamper = lambda _party, message: [] if message.WhichOneof("step") == "commits" else [message]
    room.enter()
    room.contribute(vectors(THREE))
    for _ in range(3):
        while room.up[name] or any(room.up.values()):
            for each in THREE.names:
                while room.up[each]:
                    room.send(room.coordinator.receive(each, room.up[each].popleft()))
        for each in THREE.names:
            while room.down[each] and room.members[each].phase is not Phase.COMMITTED:
                room.say(each, room.members[each].receive(room.down[each].popleft()))
    assert room.members[name].phase is Phase.COMMITTED
    with pytest.raises(SumAborted, match=reason):
        list(room.members[name].receive(message))
    assert room.members[name].phase is Phase.ENDED


# -- members that lie ------------------------------------------------------------------------------------------------


def flip(data, at=-1):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def lies():
    """(what, step, how the message is changed, what the coordinator or another member then says)."""

    def field(step, name, change):
        def apply(message):
            part = getattr(message, step)
            setattr(part, name, change(getattr(part, name)))

        return apply

    other = THREE.names[2]
    return [
        ("another's name in hello", "hello", field("hello", "party", lambda _: other)),
        ("a hello with a bad signature", "hello", field("hello", "signature", flip)),
        ("a hello of another generation", "hello", field("hello", "generation", lambda n: n + 5)),
        ("a job key with a bad signature", "key", field("key", "signature", flip)),
        ("a job key that does not open", "key", field("key", "sealed", flip)),
        ("a job key for a stranger", "key", field("key", "party", lambda _: "spiffe://test/bank/x")),
        ("a part out of order", "chunk", field("chunk", "index", lambda n: n + 1)),
        ("a part of a later sum", "chunk", field("chunk", "number", lambda n: n + 1)),
        ("a part of a later attempt", "chunk", field("chunk", "attempt", lambda n: n + 1)),
        ("a truncated ciphertext", "chunk", field("chunk", "content", lambda c: c[:1000])),
        ("an empty ciphertext", "chunk", field("chunk", "content", lambda _: b"")),
        ("an oversized ciphertext", "chunk", field("chunk", "content", lambda c: c * 2)),
        ("a changed ciphertext", "chunk", field("chunk", "content", lambda c: flip(c, 100_000))),
        ("another's name in the upload", "upload", field("upload", "party", lambda _: other)),
        ("a wrong length", "upload", field("upload", "length", lambda n: n + 1)),
        ("a wrong label", "upload", field("upload", "label", lambda _: "y")),
        ("another sum before", "upload", field("upload", "previous", flip)),
        ("an upload with a bad signature", "upload", field("upload", "signature", flip)),
        ("a share too many", "upload", lambda m: m.upload.shares.add(party=other, sealed=b"")),
        ("an oversized share", "upload", lambda m: setattr(m.upload.shares[0], "sealed", bytes(1000))),
        ("a commitment to another sum", "commit", field("commit", "number", lambda n: n + 1)),
        ("a commitment to another cohort", "commit", field("commit", "agreed", flip)),
        ("another's commitment", "commit", field("commit", "party", lambda _: other)),
        ("an opening that does not open", "opening", field("opening", "sealed", flip)),
        ("another's opening", "opening", field("opening", "party", lambda _: other)),
        ("nothing", "upload", lambda m: m.Clear()),
    ]


@pytest.mark.parametrize(("step", "change"), [pytest.param(s, c, id=w) for w, s, c in lies()])
def test_a_lying_member_is_named_and_no_sum_is_given(step, change):
    liar = THREE.names[0]  # it makes the job key too
    room = Room(THREE, THREE.job())
    done = []
    receive = room.coordinator.receive

    def corrupting(party, message):
        if party == liar and message.WhichOneof("step") == step and not done:
            done.append(step)
            change(message)
        return receive(party, message)

    room.coordinator.receive = corrupting
    failure = None
    try:
        room.enter()
        room.contribute(vectors(THREE))
        room.run()
    except SumAborted as error:
        failure = error
    except MisuseError:  # a member whose job ended before it could contribute
        assert room.errors
    assert done
    honest = [name for name in THREE.names[1:] if name not in room.errors]
    assert failure is not None or len(honest) < 2
    said = [failure] if failure is not None else [room.errors[n] for n in THREE.names[1:] if n in room.errors]
    assert any(error.party == liar and error.phase and error.reason for error in said), said
    assert all(room.members[name].result() is None for name in THREE.names[1:])


def test_a_ciphertext_of_other_parameters_is_refused_and_named():
    import tenseal as ts

    context = ts.context(
        ts.SCHEME_TYPE.BFV,
        poly_modulus_degree=4096,
        plain_modulus=1032193,
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )
    content = ts.bfv_vector(context, [1] * 4096).serialize()
    room = Room(THREE, THREE.job())
    room.enter()
    chunk = pb.SumChunk(generation=1, number=1, attempt=1, index=0, content=content)
    with pytest.raises(
        SumAborted, match=rf"{THREE.names[0]}: ciphertext: .*not one ciphertext of 8,192 values"
    ):
        room.coordinator.receive(THREE.names[0], pb.SumFromMember(chunk=chunk))
    with pytest.raises(DecodeError, match="BFV key"):
        cipher.BfvKey.from_bytes(context.serialize(save_secret_key=True))
    with pytest.raises(DecodeError, match="no secret key"):
        key = cipher.BfvKey.generate()
        cipher.BfvKey.from_bytes(key._context.serialize(save_secret_key=False, **cipher._PARTS))


def test_a_small_message_of_many_ciphertexts_is_refused_before_it_is_inflated():
    """Zeros compress to nearly nothing: TenSEAL would inflate such a message to gigabytes."""
    key = cipher.BfvKey.generate()
    one = next(key.encrypt(np.zeros(8192, dtype=np.int64)))
    ciphertext = one[len(cipher._FRAME) + 3 :]
    size = len(ciphertext).to_bytes(3, "little")
    assert one.startswith(cipher._FRAME)
    varint = bytes([size[0] & 0x7F | 0x80, (len(ciphertext) >> 7) & 0x7F | 0x80, len(ciphertext) >> 14])
    assert one == cipher._FRAME + varint + ciphertext
    adder = cipher.CiphertextAdder()
    adder.add(0, one)
    bombs = [
        cipher._FRAME + varint + ciphertext + b"\x12" + varint + ciphertext,
        one[:-1],
        one + b"\x00",
        one.replace(cipher._SEAL, cipher._SEAL[:-1] + b"\x00", 1),
        bytes.fromhex("0a0480408040") + one[4:],
    ]
    for bomb in bombs:
        with pytest.raises(DecodeError, match="ciphertext"):
            adder.add(0, bomb)


def test_a_job_key_to_nobody_or_twice_is_refused():
    """The first of the cohort cannot shut a member out by withholding its key in favour of its own."""
    room = Room(THREE, THREE.job(bfv=False))
    receive = room.coordinator.receive

    def to_itself(party, message):
        if message.WhichOneof("step") == "key":
            message.key.party = party
        return receive(party, message)

    room.coordinator.receive = to_itself
    with pytest.raises(SumAborted, match=rf"job key: {THREE.names[0]}: sent a job key out of order"):
        room.enter()


def test_members_that_sum_different_things_are_named():
    room = Room(THREE, THREE.job())
    room.enter()
    for i, name in enumerate(THREE.names):
        room.say(name, room.members[name].contribute(np.zeros(5 + (i == 2), dtype=np.int64), "age"))
    with pytest.raises(SumAborted, match=rf"{THREE.names[2]}: it sums 6 values of 'age', .* 5 of 'age'"):
        room.run()


def test_a_stranger_cannot_enter():
    coordinator = Coordinator(THREE.job())
    with pytest.raises(SumAborted, match="is not a party of this job"):
        coordinator.enter("spiffe://test/bank/stranger")


def test_an_abort_reaches_everyone_with_its_cause():
    room = Room(THREE, THREE.job(bfv=False))
    room.enter()
    room.sum(vectors(THREE))
    abort = pb.SumAbort(phase="upload", party="", reason="column age has other values")
    with pytest.raises(SumAborted) as caught:
        room.coordinator.receive(THREE.names[1], pb.SumFromMember(abort=abort))
    room.send(room.coordinator.farewell(caught.value))
    room.run()
    assert len(room.errors) == 3
    for error in room.errors.values():
        assert error.party == THREE.names[1]
        assert "column age has other values" in error.reason
    assert all(member.phase is Phase.ENDED and not member._root for member in room.members.values())
