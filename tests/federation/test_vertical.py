"""Vertical models: the same as on the joined columns, what each side sees, and what a peer may send."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lianfang.v1 import vertical_pb2 as pb
from sklearn.linear_model import LogisticRegression

from federation.data import Block
from federation.errors import DataError, JobError
from federation.models.growing import TreeSettings
from federation.models.trees import Grower
from federation.simulate import vertical
from federation.steps import one_by_one
from federation.vertical import drive, registry, slots
from federation.vertical.holder import Holder, HolderModel, Key, new_key
from federation.vertical.linear import (
    LinearHolder,
    LinearHolderModel,
    LinearPartner,
    LinearPartnerModel,
)
from federation.vertical.partner import PartnerModel, TreePartner, pack_rows, unpack_rows
from federation.vertical.settings import LinearSettings
from protocols.errors import DecodeError, PeerError, ProofError

LEAST = 512
CONTEXT = b"job"


@pytest.fixture(scope="module")
def key() -> Key:
    return new_key(CONTEXT, slots.inline, 1, LEAST, LEAST)


def columns(rng, rows, count, missing=0.0):
    x = rng.normal(size=(rows, count)).astype(np.float32)
    x[:, 0] = np.round(x[:, 0])  # few values
    x[rng.random(x.shape) < missing] = np.nan
    return x


def label(rng, *parts):
    score = sum(
        np.nan_to_num(x[:, i]) * w for x in parts for i, w in enumerate((1.5, -1.0, 0.7)[: x.shape[1]])
    )
    return (score + rng.logistic(size=len(score)) > 1).astype(np.uint8)


def partner(x, names, trees, **changes):
    return TreePartner(x, names, trees, CONTEXT, least=LEAST, **{"pieces": 2} | changes)


def reference(block, parts, names, trees, seed=1):
    joined = Block(block.name, np.concatenate([block.x, *parts], axis=1), block.y)
    own = range(block.x.shape[1])
    (model,) = one_by_one([Grower(trees, names, seed, 1, first=own).learn([joined])])
    return model, joined


def same(model, mine, pooled, names_of):
    """Node by node: a partner's record stands for the joined model's feature and threshold."""
    for tree, whole in zip(model.trees, pooled.trees, strict=True):
        for name in ("left", "right", "value", "gain", "cover", "missing_left"):
            assert getattr(tree, name) == getattr(whole, name)
        for node, feature in enumerate(whole.feature):
            mine_ = tree.feature[node]
            if mine_ >= len(model.features):
                record = mine[mine_ - len(model.features)].model.records[tree.edge[node]]
                assert record.feature == names_of[feature]
                assert record.threshold == whole.threshold[node]
                assert record.missing_left == whole.missing_left[node]
            else:
                assert (mine_, tree.threshold[node]) == (feature, whole.threshold[node])


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**16),
    missing=st.sampled_from([0.0, 0.2]),
    others=st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
def test_bit_for_bit_the_joined_engine(key, seed, missing, others):
    rng = np.random.default_rng(seed)
    x, parts = columns(rng, 300, 2, missing), [columns(rng, 300, count, missing) for count in others]
    parts[0][:, -1] = x[:, -1]  # a tie between own and a partner's column, always
    block = Block("holder", x, label(rng, x, *parts))
    trees = TreeSettings(trees=4, depth=3, bins=8, min_child_weight=0.5)
    names = [["a", "b"], *([f"p{n}.{i}" for i in range(count)] for n, count in enumerate(others))]
    mine = [partner(part, own, trees) for part, own in zip(parts, names[1:], strict=True)]
    model = drive.together(
        Holder(trees, names[0], [f"p{n}" for n in range(len(others))], 1, key).learn(block), mine
    )
    flat = [each for own in names for each in own]
    pooled, joined = reference(block, parts, flat, trees)
    same(model, mine, pooled, flat)
    left = [each.model.left(part) for each, part in zip(mine, parts, strict=True)]
    assert (model.margin(x, left) == pooled.margin(joined.x)).all()
    assert {each.digest.hex() for each in mine} == {model.hash()}
    assert all(feature < 2 for feature in model.trees[0].feature)  # the first tree is the holder's alone
    # Parts survive being written.
    again = HolderModel.from_document(model.to_document())
    assert again.to_bytes() == model.to_bytes()
    for each, part, bits in zip(mine, parts, left, strict=True):
        stored = PartnerModel.from_document(each.model.to_document())
        assert (stored.left(part) == bits).all()


def test_wide_slots_where_rows_weigh_much(key):
    rng = np.random.default_rng(4)
    x, other = columns(rng, 200, 2), columns(rng, 200, 2)
    block = Block("holder", x, label(rng, x, other))
    trees = TreeSettings(trees=3, depth=2, bins=8, positive_weight=1e6, min_child_weight=0.0)
    mine = partner(other, ["c", "d"], trees)
    wide = []
    answer = mine.answer
    mine.answer = lambda request: (wide.append(request.start.width), answer(request))[1]
    model = drive.together(Holder(trees, ["a", "b"], ["p"], 1, key).learn(block), [mine])
    assert wide[0] == 128
    pooled, _ = reference(block, [other], ["a", "b", "c", "d"], trees)
    same(model, [mine], pooled, ["a", "b", "c", "d"])


def test_constant_and_missing_columns(key):
    rng = np.random.default_rng(5)
    x, other = columns(rng, 300, 2), columns(rng, 300, 3)
    other[:, 0], other[:, 1] = 7.0, np.nan
    block = Block("holder", x, label(rng, x, other[:, 2:]))
    trees = TreeSettings(trees=3, depth=2, bins=8)
    mine = partner(other, ["c", "d", "e"], trees)
    model = drive.together(Holder(trees, ["a", "b"], ["p"], 1, key).learn(block), [mine])
    assert {record.feature for record in mine.model.records} <= {"e"}
    pooled, joined = reference(block, [other], ["a", "b", "c", "d", "e"], trees)
    assert (model.margin(x, [mine.model.left(other)]) == pooled.margin(joined.x)).all()
    with pytest.raises(JobError, match="no column here has two values"):
        partner(other[:, :2], ["c", "d"], trees)
    with pytest.raises(JobError, match="no column here has two values"):
        LinearPartner(other[:, :2], ["c", "d"], LinearSettings(), CONTEXT, least=LEAST)
    one = Block("holder", x, np.zeros(300, dtype=np.uint8))
    with pytest.raises(JobError, match="both classes"):
        drive.together(Holder(trees, ["a", "b"], ["p"], 1, key).learn(one), [mine])
    for name, value in (("rows", 0.5), ("columns", 0.5), ("validation", 0.2)):
        with pytest.raises(JobError, match=f"no setting {name}"):
            Holder(TreeSettings(**{name: value}), ["a"], ["p"], 1, key)


# -- what each side sees ----------------------------------------------------------------------------------------------


class Recorder:
    """A partner with a record of everything that passes."""

    def __init__(self, inner) -> None:
        self.inner, self.log = inner, []

    def answer(self, request):
        reply = self.inner.answer(request)
        self.log.append((request, reply))
        return reply


PARTNERS = [
    "monthly income",
    "open debts",
    "years as a customer",
]  # long: two bytes are found by chance among ciphertexts


def trained(key, seed=0, rows=240):
    rng = np.random.default_rng(seed)
    x, other = columns(rng, rows, 2), columns(rng, rows, 3, missing=0.1)
    block = Block("holder", x, label(rng, x, other))
    trees = TreeSettings(trees=3, depth=2, bins=8, min_child_weight=0.5)
    recorder = Recorder(partner(other, PARTNERS, trees))
    model = drive.together(Holder(trees, ["a", "b"], ["p"], 1, key).learn(block), [recorder])
    return block, other, recorder, model


def test_the_partners_view_is_the_stated_list(key):
    """Key, number of rows, ciphertexts, memberships of nodes that may be divided further, which candidates were best."""
    block, _, recorder, model = trained(key)
    seen = {request.WhichOneof("part") for request, _ in recorder.log}
    assert seen <= {"start", "gradients", "nodes", "choice", "division", "end"}
    for request, _ in recorder.log:
        part = request.WhichOneof("part")
        fields = {field.name for field, _ in getattr(request, part).ListFields()}
        assert (
            fields
            <= {
                "start": {"modulus", "proof", "rows", "width"},
                "gradients": {"ciphertexts", "step"},
                "nodes": {"nodes"},
                "choice": {"node", "left", "right", "candidates"},
                "division": {"node", "left", "right", "left_rows"},
                "end": {"digest"},
            }[part]
        )
    # The ciphertexts say nothing: equal gradients have unlike ciphertexts, and none is twice the same.
    size = key.private.public.size
    sent = [r.gradients.ciphertexts for r, _ in recorder.log if r.WhichOneof("part") == "gradients"]
    each = [data[i : i + size] for data in sent for i in range(0, len(data), size)]
    assert len(each) == len(set(each)) == 2 * len(block.y)  # of all trees but the first
    # Of the last level, which would be memberships of leaves, it hears nothing but its own splits.
    told = [r.division for r, _ in recorder.log if r.WhichOneof("part") == "division"]
    assert all(division.node == 0 for division in told)


def test_the_holders_view_is_the_stated_list(key):
    """Numbers of candidates, sums left of each in a secret order, memberships at partners' splits; no name, no threshold."""
    _, other, recorder, model = trained(key)
    seen = b"".join(reply.SerializeToString() for _, reply in recorder.log)
    assert not any(name.encode() in seen for name in (*PARTNERS, "feature", "threshold"))
    for record in recorder.inner.model.records:
        assert np.float32(record.threshold).tobytes() not in seen
        assert np.float64(record.threshold).tobytes() not in seen
    for request, reply in recorder.log:
        fields = {field.name for field, _ in getattr(reply, reply.WhichOneof("part")).ListFields()}
        assert fields <= {"splits", "splits_missing", "packed", "record", "left_rows"}, request
    # Opened, a reply to `nodes` is exactly the sums left of each candidate and nothing else.
    inner = recorder.inner
    ready = next(reply.ready for _, reply in recorder.log if reply.WhichOneof("part") == "ready")
    count = ready.splits + ready.splits_missing
    packed = next(reply.sums.packed for _, reply in recorder.log if reply.WhichOneof("part") == "sums")
    assert count == len(inner._places)
    (values,) = key.open(packed, 64, count)
    assert len(values) == count
    plaintexts = list(key.private.decrypt(key.private.public.read(packed[0])))
    used = 64 * slots.slots(key.private.public.bits, 64)
    assert all(0 <= each < key.private.public.n for each in plaintexts)
    last = count % slots.slots(key.private.public.bits, 64)
    if last:  # above the slots in use there is noise, not what was in the ciphertexts
        assert plaintexts[-1] >> (64 * last) > 0
    assert used < key.private.public.bits


def test_the_secret_order_changes_with_every_tree(key):
    rng = np.random.default_rng(8)
    mine = partner(columns(rng, 60, 3), ["c", "d", "e"], TreeSettings(trees=7, depth=2, bins=8))
    start = pb.VerticalStart(modulus=key.private.public.encode(), proof=key.proof, rows=60, width=64)
    mine.answer(pb.VerticalRequest(start=start))
    orders = set()
    for step in range(2, 8):
        mine.answer(gradients(key, rows=60, step=step))
        orders.add(tuple(mine._order))
    assert len(orders) == 6
    with pytest.raises(DecodeError, match="tree 8 of 7"):
        mine.answer(gradients(key, rows=60, step=8))


def test_values_too_large_for_their_slot_bring_nothing_back(key):
    """A holder that hides marks of rows above the slots finds noise there."""
    rng = np.random.default_rng(2)
    other = columns(rng, 64, 1)
    trees = TreeSettings(trees=2, depth=2, bins=4)
    mine = partner(other, ["c"], trees)
    public = key.private.public
    mine.answer(
        pb.VerticalRequest(
            start=pb.VerticalStart(modulus=public.encode(), proof=key.proof, rows=64, width=64)
        )
    )
    marked = key.encrypt([1 << (64 * 3 + row) for row in range(64)])
    mine.answer(pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=marked, step=2)))
    opened = []
    for nodes in ([0],):
        reply = mine.answer(pb.VerticalRequest(nodes=pb.VerticalNodes(nodes=nodes)))
        count = len(mine._places)
        used = 64 * min(count, slots.slots(public.bits, 64))
        opened += [each >> used for each in key.private.decrypt(public.read(reply.sums.packed[0]))]
    assert all(each.bit_length() > public.bits - used - 40 for each in opened)


# -- what a peer may send ---------------------------------------------------------------------------------------------


@pytest.fixture
def begun(key):
    rng = np.random.default_rng(3)
    mine = partner(columns(rng, 40, 2), ["c", "d"], TreeSettings(trees=3, depth=2, bins=4))
    start = pb.VerticalStart(modulus=key.private.public.encode(), proof=key.proof, rows=40, width=64)
    return mine, pb.VerticalRequest(start=start)


def gradients(key, rows=40, step=2):
    return pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=key.encrypt([1] * rows), step=step))


def nodes(*numbers):
    return pb.VerticalRequest(nodes=pb.VerticalNodes(nodes=numbers))


def division(node=0, left=1, right=2, rows=40, bits=None):
    mask = pack_rows(np.arange(rows) % 2 == 0) if bits is None else bits
    return pb.VerticalRequest(division=pb.VerticalDivision(node=node, left=left, right=right, left_rows=mask))


def choice(node=0, left=1, right=2, candidates=(0,)):
    return pb.VerticalRequest(
        choice=pb.VerticalChoice(node=node, left=left, right=right, candidates=candidates)
    )


def test_a_start_that_is_refused(key, begun):
    mine, start = begun
    public = key.private.public
    for change, error in (
        ({"rows": 41}, JobError),
        ({"width": 32}, DecodeError),
        ({"width": 128}, DecodeError),  # for heavy rows only
        ({"modulus": public.encode()[:-8]}, PeerError),
        ({"modulus": bytes(LEAST // 8)}, DecodeError),
        ({"proof": key.proof[:-1]}, ProofError),
        ({"proof": bytes(len(key.proof))}, ProofError),
    ):
        wrong = pb.VerticalRequest()
        wrong.CopyFrom(start)
        for name, value in change.items():
            setattr(wrong.start, name, value)
        with pytest.raises(error):
            mine.answer(wrong)
    other = new_key(b"another job", slots.inline, 1, LEAST, LEAST)
    with pytest.raises(ProofError):
        mine.answer(
            pb.VerticalRequest(
                start=pb.VerticalStart(
                    modulus=other.private.public.encode(), proof=other.proof, rows=40, width=64
                )
            )
        )
    mine.answer(start)
    with pytest.raises(DecodeError, match="starts once"):
        mine.answer(start)


def test_requests_out_of_order_or_out_of_range(key, begun):
    mine, start = begun
    for request in (nodes(0), choice(), division(), pb.VerticalRequest(), gradients(key)):
        with pytest.raises(DecodeError):
            mine.answer(request)
    mine.answer(start)
    good = key.encrypt([1] * 40)
    size = key.private.public.size
    zero, n = bytes(size), int(key.private.public.n)
    square = int(key.private.public.square)
    for data in (
        good[:-size],
        good + good[:size],
        zero + good[size:],
        good[:-size] + n.to_bytes(size, "big"),
        good[:-size] + square.to_bytes(size, "big"),
        b"",
    ):
        with pytest.raises(DecodeError):
            mine.answer(pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=data, step=2)))
    mine.answer(gradients(key))
    with pytest.raises(DecodeError, match="tree 2 of 3 after tree 2"):
        mine.answer(gradients(key))
    for request in (
        nodes(),
        nodes(0, 0),
        nodes(5),
        choice(candidates=()),
        choice(candidates=(10_000,)),
        choice(node=3),
        division(rows=39, bits=pack_rows(np.ones(32, dtype=bool))),
        division(bits=b"\xff" * 6),
        division(left=1, right=1),
        division(left=1, right=0),
        pb.VerticalRequest(gradients=pb.VerticalGradients(ciphertexts=good, step=4)),
        nodes(*range(1000)),
        choice(candidates=[0] * 10_000),
    ):
        with pytest.raises(DecodeError):
            begun_again(mine).answer(request)
    mine = begun_again(mine)
    mine.answer(nodes(0))
    with pytest.raises(DecodeError, match="twice"):
        mine.answer(nodes(0))
    mine.answer(division())
    with pytest.raises(DecodeError, match="divided already"):
        mine.answer(division(left=3, right=4))
    mine.answer(division(node=1, left=3, right=4, rows=20))
    with pytest.raises(DecodeError, match="depth 3"):  # of leaves nothing is divided
        mine.answer(division(node=3, left=5, right=6, rows=10))
    with pytest.raises(DecodeError, match="other nodes' numbers"):  # nor is a number used twice
        mine.answer(division(node=2, left=1, right=7, rows=20))
    with pytest.raises(DecodeError):
        mine.answer(pb.VerticalRequest(end=pb.VerticalEnd(digest=b"short")))
    mine.answer(pb.VerticalRequest(end=pb.VerticalEnd(digest=bytes(32))))
    for request in (
        nodes(1),
        gradients(key, step=3),
        pb.VerticalRequest(end=pb.VerticalEnd(digest=bytes(32))),
    ):
        with pytest.raises(DecodeError, match="not what is due"):
            mine.answer(request)


def begun_again(mine):
    """At the root of its tree."""
    mine._rows, mine._depths, mine._summed = {0: np.arange(40)}, {0: 0}, set()
    return mine


class Lying(Recorder):
    """Changes one kind of reply."""

    def __init__(self, inner, part, change) -> None:
        super().__init__(inner)
        self.part, self.change = part, change

    def answer(self, request):
        reply = self.inner.answer(request)
        if reply.WhichOneof("part") == self.part:
            self.change(reply)
        return reply


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("ready", lambda r: setattr(r.ready, "splits", 0)),
        ("ready", lambda r: setattr(r.ready, "splits", 1 << 31)),
        ("ready", lambda r: setattr(r.ready, "splits_missing", 1 << 20)),
        ("sums", lambda r: r.sums.packed.append(b"")),
        ("sums", lambda r: r.sums.packed.__setitem__(0, r.sums.packed[0][:-1])),
        ("sums", lambda r: r.sums.packed.__setitem__(0, bytes(len(r.sums.packed[0])))),
        ("record", lambda r: setattr(r.record, "left_rows", b"")),
        (
            "record",
            lambda r: setattr(
                r.record, "left_rows", bytes([r.record.left_rows[0] ^ 128]) + r.record.left_rows[1:]
            ),
        ),
        ("record", lambda r: setattr(r.record, "left_rows", bytes(len(r.record.left_rows)))),
        ("done", lambda r: r.ready.SetInParent()),
    ],
)
def test_a_partner_that_answers_something_else(key, part, change):
    rng = np.random.default_rng(7)
    x, other = columns(rng, 200, 1), columns(rng, 200, 3)
    block = Block("holder", x, label(rng, other))
    trees = TreeSettings(trees=3, depth=2, bins=8)
    liar = Lying(partner(other, ["c", "d", "e"], trees), part, change)
    with pytest.raises(DecodeError):
        drive.together(Holder(trees, ["a"], ["p"], 1, key).learn(block), [liar])


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=8), count=st.integers(0, 64))
def test_masks_are_read_strictly(data, count):
    try:
        mask = unpack_rows(data, count)
    except DecodeError:
        return
    assert pack_rows(mask) == data
    assert len(mask) == count


# -- linear -----------------------------------------------------------------------------------------------------------


def test_linear_goes_to_what_sklearn_finds_on_the_joined_columns(key):
    rng = np.random.default_rng(9)
    x, other = columns(rng, 600, 3, 0.05), columns(rng, 600, 3, 0.05)
    block = Block("holder", x, label(rng, x, other))
    found = {}
    for steps in (2, 5):
        recorder = Recorder(
            LinearPartner(other, ["c", "d", "e"], LinearSettings(steps=steps), CONTEXT, least=LEAST)
        )
        model = drive.together(
            LinearHolder(LinearSettings(steps=steps), ["a", "b", "x"], ["p"], key).learn(block), [recorder]
        )
        mine = recorder.inner.model
        theirs = other[:, [["c", "d", "e"].index(name) for name in mine.features]]
        levels = np.column_stack(
            [np.array(c.levels)[c.numbers(theirs[:, i])] / 1023 for i, c in enumerate(mine.columns)]
        )
        joined = np.column_stack([model.scale.apply(x), levels])
        pooled = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(joined, block.y)
        ours = np.concatenate([model.coefficients, [c.coefficient for c in mine.columns]])
        found[steps] = np.abs(ours - pooled.coef_[0]).max()
        margin = model.margin(x, [mine.scores(theirs)])
        assert np.allclose(margin, model.bias + joined @ ours, atol=2**-12)  # scores are rounded
        assert LinearHolderModel.from_document(model.to_document()).to_bytes() == model.to_bytes()
        again = LinearPartnerModel.from_document(mine.to_document())
        assert (again.scores(theirs) == mine.scores(theirs)).all()
        # What the holder sees of rows: one score a row and step, none with the last.
        scores = [reply for _, reply in recorder.log if reply.WhichOneof("part") == "scores"]
        assert len(scores) == steps - 1
        with pytest.raises(DecodeError):
            recorder.inner.answer(pb.VerticalRequest(nodes=pb.VerticalNodes(nodes=[0])))
        with pytest.raises(DecodeError):
            recorder.inner.answer(pb.VerticalRequest(step=pb.VerticalStep(coefficients=[0, 0, 0])))
        with pytest.raises(DecodeError):
            recorder.inner.answer(gradients(key, rows=600, step=steps + 1))
    assert found[5] < 1e-4
    assert found[2] < 0.1


def test_a_linear_partner_gives_one_score_a_row_and_step(key):
    """Neither unit vectors, one after the other, nor columns written side by side into one number."""
    rng = np.random.default_rng(13)
    other = columns(rng, 80, 3)
    mine = LinearPartner(other, ["c", "d", "e"], LinearSettings(steps=2, bins=4), CONTEXT, least=LEAST)
    start = pb.VerticalStart(modulus=key.private.public.encode(), proof=key.proof, rows=80, width=64)
    mine.answer(pb.VerticalRequest(start=start))

    def step(*coefficients, last=False):
        return pb.VerticalRequest(step=pb.VerticalStep(coefficients=coefficients, last=last))

    with pytest.raises(DecodeError, match="not what is due"):
        mine.answer(step(1, 0, 0))
    mine.answer(gradients(key, rows=80, step=1))
    with pytest.raises(DecodeError, match="not what is due"):
        mine.answer(step(1, 0, 0))
    mine.answer(nodes(0))
    for wrong in (step(1023.0, 1.0, 1.0), step(1, 0), step(float("nan"), 0, 0)):
        with pytest.raises(DecodeError, match="coefficients"):
            mine.answer(wrong)
    with pytest.raises(DecodeError, match="not the job's last"):
        mine.answer(step(1, 0, 0, last=True))
    scores = np.array(mine.answer(step(1, 0, 0)).scores.values)
    assert (scores * 4096 == np.rint(scores * 4096)).all()
    for again in (step(0, 1, 0), nodes(0), gradients(key, rows=80, step=1)):
        with pytest.raises(DecodeError):
            mine.answer(again)


def test_linear_sums_that_would_not_fit_are_refused(key):
    rng = np.random.default_rng(14)
    x = columns(rng, 400, 1)
    y = (np.arange(400) % 2).astype(np.uint8)
    heavy = LinearSettings(positive_weight=1e6)
    mine = LinearPartner(columns(rng, 400, 1), ["c"], heavy, CONTEXT, least=LEAST)
    asking = LinearHolder(heavy, ["a"], ["p"], key)
    own = np.column_stack([np.ones(400), x[:, 0]])
    with pytest.raises(JobError, match="too many for a linear model"):
        next(asking._step(own, y * 1.0, np.where(y, 1e6, 1.0), np.zeros(400), np.zeros(3), 1, 1))
    assert mine.model.features == ("c",)


def test_many_own_columns_take_several_plaintexts(key):
    rng = np.random.default_rng(10)
    x, other = columns(rng, 300, 12), columns(rng, 300, 2)
    block = Block("holder", x, label(rng, x, other))
    mine = LinearPartner(other, ["c", "d"], LinearSettings(steps=4), CONTEXT, least=LEAST)
    names = [f"a{i}" for i in range(12)]
    model = drive.together(LinearHolder(LinearSettings(steps=4), names, ["p"], key).learn(block), [mine])
    order = [["c", "d"].index(name) for name in mine.model.features]
    levels = np.column_stack(
        [np.array(c.levels)[c.numbers(other[:, order[i]])] / 1023 for i, c in enumerate(mine.model.columns)]
    )
    joined = np.column_stack([model.scale.apply(x), levels])
    pooled = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(joined, block.y)
    assert np.abs(model.coefficients - pooled.coef_[0][:12]).max() < 1e-3


def test_products_of_two_columns_show_the_hessian_alone(key):
    """What lies above the first slot is random, though own columns and residuals were there."""
    rng = np.random.default_rng(11)
    x, other = columns(rng, 200, 2), columns(rng, 200, 2)
    block = Block("holder", x, label(rng, x, other))
    recorder = Recorder(LinearPartner(other, ["c", "d"], LinearSettings(steps=1), CONTEXT, least=LEAST))
    drive.together(LinearHolder(LinearSettings(steps=1), ["a", "b"], ["p"], key).learn(block), [recorder])
    packed = next(reply.sums.packed for _, reply in recorder.log if reply.WhichOneof("part") == "sums")
    for plaintext in key.private.decrypt(key.private.public.read(packed[1])):
        assert (plaintext >> 64).bit_length() > LEAST - 64 - 40


def test_two_partners_are_too_many_for_a_linear_model(key):
    with pytest.raises(JobError, match="one partner"):
        LinearHolder(LinearSettings(), ["a"], ["p", "q"], key)


# -- simulation -------------------------------------------------------------------------------------------------------


def files(tmp_path, rows=160):
    """A label holder and a partner who have `rows` customers in common, in other orders, and others besides."""
    rng = np.random.default_rng(12)
    x, other = columns(rng, rows, 2), columns(rng, rows, 2)
    y = label(rng, x, other)
    holder, theirs = tmp_path / "bank.csv", tmp_path / "telecom.csv"
    lines = [f"c{i},{a},{b},{t}" for i, ((a, b), t) in enumerate(zip(x, y, strict=True))]
    holder.write_text("\n".join(["id,a,b,y", *lines, "only-here,1,2,0"]) + "\n")
    lines = [f"c{i},{a},{b}" for i, (a, b) in enumerate(other)]
    rng.shuffle(lines)
    theirs.write_text("\n".join(["id,c,d", "only-there,1,2", *lines]) + "\n")
    return holder, theirs


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_simulated_from_files_with_the_joined_columns_quality(tmp_path, model):
    holder, theirs = files(tmp_path)
    chosen = vertical.configure(
        {
            "data": holder,
            "partners": [theirs],
            "model": model,
            "out": tmp_path / "out",
            "settings": {"trees": 3, "depth": 2, "bins": 8} if model == "trees" else {"bins": 8},
        }
    )
    results = vertical.run(chosen, lambda *_: None, slots.inline, 1)
    assert results.rows == 160
    summary = results.summary()
    assert set(summary) == {"local", "vertical", "joined"}
    if model == "trees":
        assert summary["vertical"] == summary["joined"]
    written = vertical.save(chosen, results)
    kinds = [registry.read(path.read_bytes()).kind for path in written[1:]]
    assert kinds == [f"vertical-{model}-holder", f"vertical-{model}-partner"]
    with pytest.raises(JobError, match="not a part"):
        registry.read(written[0].read_bytes())


def test_rubbish_is_named(tmp_path):
    holder, theirs = files(tmp_path)
    for values, error, said in (
        ({"data": holder}, JobError, "go together"),
        ({"model": "mlp"}, JobError, "model"),
        ({"settings": {"trees": 0}}, JobError, "trees"),
        ({"settings": {"rows": 0.5}}, JobError, "no setting rows"),
        ({"data": holder, "partners": [theirs], "id": "customer"}, DataError, "bank.csv: no column customer"),
    ):
        with pytest.raises(error, match=said):
            vertical.world(vertical.configure(values), 0)
    apart = tmp_path / "apart.csv"
    apart.write_text("id,c\nx,1\n")
    with pytest.raises(DataError, match="no id in common"):
        vertical.world(vertical.configure({"data": holder, "partners": [apart]}), 0)


def test_ids_are_text_and_a_repeated_one_is_refused_with_its_rows(tmp_path):
    """Ids like `000` and `0`, or `1e0001` and `10`, were one; repetitions were dropped unsaid."""
    holder, theirs = tmp_path / "bank.csv", tmp_path / "telecom.csv"
    ids = ["000", "0", "1e0001", "10", "0102", "102"]
    holder.write_text("id,a,y\n" + "".join(f"{each},{i},{i % 2}\n" for i, each in enumerate(ids)))
    theirs.write_text("id,b\n" + "".join(f"{each},{i}\n" for i, each in enumerate(reversed(ids))))
    chosen = vertical.configure({"data": holder, "partners": [theirs]})
    found = vertical.world(chosen, 0)
    assert len(found.block.y) == len(ids)
    assert (found.block.x[:, 0] == len(ids) - 1 - found.theirs[0][:, 0]).all()
    theirs.write_text("id,b\n7,1\n0,2\n7,3\n")
    with pytest.raises(DataError, match=r"telecom\.csv: rows 2 and 4 have the same id"):
        vertical.world(chosen, 0)
    theirs.write_text("id,b,c\n" + "".join(f"{each},7,\n" for each in ids))
    with pytest.raises(DataError, match=r"telecom\.csv: no column has two different values"):
        vertical.world(chosen, 0)
