"""Contracts at two nodes: telling, deciding, refusing, and what the gate makes of them."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from lianfang.v1 import contract_pb2 as pb

from nodes import gate as gates
from nodes.contracts import draft as drafts
from nodes.contracts.book import ContractBook
from nodes.contracts.courier import Courier
from nodes.errors import ConfigError, NotFound, Refused
from nodes.identity.names import Role
from nodes.store import engine as db
from nodes.store.writer import GroupWriter
from protocols import contract
from protocols.contract import APPROVE, REJECT, REVOKE, State
from protocols.ledger import events, tiles
from tests.nodes.conftest import Institutions, everybody_signs, lookups, make_log, publish
from tests.nodes.test_gate import Clock, ask, refused

A, B, C = "holder", "bank-b", "bank-c"


class Party:
    """One member's contracts over a real database; may be killed and started again."""

    def __init__(self, folder: Path, institutions: Institutions, name: str, clock, template: Path) -> None:
        self.folder, self.institutions, self.name, self.clock = folder / name, institutions, name, clock
        self.folder.mkdir()
        shutil.copy(template, self.folder / "node.db")
        self.member = institutions.ca.members.find(name)
        self.start()

    def start(self) -> None:
        self.database = db.connect(self.folder / "node.db", "node")
        keys = self.institutions.keys[self.member.id]
        self.log = make_log(self.database, keys, self.member.name, self.folder)
        self.book: ContractBook = self.institutions.contracts(self.database, self.log, self.name, self.clock)

    def leaves(self) -> set[tuple[bytes, str, int]]:
        """(contract, party, action) of all acts in the log, as a reader of its tiles finds them."""
        writer = GroupWriter(self.database)
        size = publish(self.log, writer).checkpoint.size
        writer.close()
        found = set()
        for number in range(-(-size // tiles.WIDTH)):
            width = min(tiles.WIDTH, size - number * tiles.WIDTH)
            for data in tiles.unpack(self.log.tile(tiles.ENTRIES, number, width)):
                leaf = events.parse_leaf(data)
                if leaf.WhichOneof("body") == "contract":
                    found.add((leaf.contract.contract, leaf.contract.act.party, leaf.contract.act.action))
        return found


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("template") / "node.db"
    db.connect(path, "node").dispose()
    return path


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pair(tmp_path, institutions, clock, template):
    return [Party(tmp_path, institutions, name, clock, template) for name in (A, B)]


def draft(now, **budget):
    return lookups(A, [B], now, **budget)


def tell(source: Party, target: Party, key: bytes) -> None:
    """A delivery and its answer."""
    held = source.book.find(key.hex())
    answer = target.book.told(source.member.id, held.signed())
    source.book.told(target.member.id, answer.signed())


def test_one_proposes_the_other_approves_and_both_logs_hold_both_acts(pair, clock):
    a, b = pair
    held = a.book.propose(draft(clock()))
    assert held.state(clock()) is State.PROPOSED
    tell(a, b, held.hash)
    with pytest.raises(Refused, match="waits for bank-b"):
        a.book.grants(a.member.id, b.member.id, "fraud")
    b.book.decide(held.hash.hex()[:12], APPROVE)
    tell(b, a, held.hash)
    for each in pair:
        assert each.book.find(held.hash.hex()).state(clock()) is State.ACTIVE
        (granted,) = each.book.grants(a.member.id, b.member.id, "fraud")
        assert granted.budget.epoch == 10**9
        expected = {(held.hash, party.member.id, APPROVE) for party in pair}
        assert each.leaves() == expected
    # The other way round nothing was agreed, nor over a list of another name.
    with pytest.raises(Refused, match="none was proposed"):
        a.book.grants(b.member.id, a.member.id, "fraud")
    with pytest.raises(Refused, match="no contract lets bank-b use the list renamed of holder"):
        a.book.grants(a.member.id, b.member.id, "renamed")


def test_a_restart_changes_nothing(pair, clock):
    a, b = pair
    held = a.book.propose(draft(clock()))
    tell(a, b, held.hash)
    b.book.decide(held.hash.hex(), APPROVE)
    b.start()
    tell(b, a, held.hash)
    a.start()
    assert [each.book.all() for each in pair] == [[a.book.find(held.hash.hex())]] * 2
    assert a.book.find(held.hash.hex()).state(clock()) is State.ACTIVE


def test_killed_between_the_two_ledgers_it_is_not_in_force_until_both_have_it(pair, clock):
    a, b = pair
    held = a.book.propose(draft(clock()))
    tell(a, b, held.hash)
    b.book.decide(held.hash.hex(), APPROVE)  # stored and logged here; then the process is gone
    b.start()
    with pytest.raises(Refused, match="waits for bank-b"):  # the holder does not know yet
        a.book.grants(a.member.id, b.member.id, "fraud")
    tell(b, a, held.hash)
    assert a.book.grants(a.member.id, b.member.id, "fraud")
    assert a.leaves() == b.leaves()


@pytest.mark.parametrize("first", [0, 1])
def test_an_approval_and_a_revocation_at_the_same_moment_end_it_at_both(pair, clock, first, institutions):
    a, b = pair
    held = a.book.propose(draft(clock()))
    tell(a, b, held.hash)
    b.book.decide(held.hash.hex(), APPROVE)
    a.book.decide(held.hash.hex(), REJECT)  # both before either hears of the other
    order = (a, b) if first == 0 else (b, a)
    tell(*order, held.hash)
    for each in pair:
        assert each.book.find(held.hash.hex()).state(clock()) is State.REVOKED
    assert a.leaves() == b.leaves()


class Road:
    """Takes what `source` tells to `target`; `meanwhile` happens before the answer is back."""

    def __init__(self, source: Party, target: Party, meanwhile) -> None:
        self.source, self.target, self.meanwhile, self.contracts = source, target, meanwhile, self

    def others(self, own: str):
        return [self.target.member]

    async def introducing(self, member, call, timeout: float):
        return await call(self)

    async def Tell(self, signed, timeout: float):
        answer = self.target.book.told(self.source.member.id, signed).signed()
        self.meanwhile()
        return answer


def test_what_is_decided_while_the_other_is_told_is_told_too(pair, clock):
    """The answer to an earlier telling says nothing about an act that is younger than it."""
    a, b = pair
    held = a.book.propose(draft(clock()))
    tell(a, b, held.hash)

    def approve_once() -> None:
        if not b.book.find(held.hash.hex()).approved_by(b.member.id):
            b.book.decide(held.hash.hex(), APPROVE)

    async def until_in_force() -> None:
        courier = asyncio.create_task(Courier(b.book, Road(b, a, approve_once), b.member.id).run())
        while a.book.find(held.hash.hex()).state(clock()) is not State.ACTIVE:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        courier.cancel()

    asyncio.run(asyncio.wait_for(until_in_force(), 20))


def test_either_side_revokes_at_once(pair, clock):
    for who in (0, 1):
        a, b = pair
        held = a.book.propose(draft(clock()))
        tell(a, b, held.hash)
        b.book.decide(held.hash.hex(), APPROVE)
        tell(b, a, held.hash)
        pair[who].book.decide(held.hash.hex(), REVOKE)
        with pytest.raises(Refused, match=f"was revoked by {pair[who].name}"):
            pair[who].book.grants(a.member.id, b.member.id, "fraud")
        tell(pair[who], pair[1 - who], held.hash)
        with pytest.raises(Refused, match=f"was revoked by {pair[who].name}"):
            pair[1 - who].book.grants(a.member.id, b.member.id, "fraud")
        # What came before the revocation, told again, brings nothing back.
        replayed = pb.SignedContract(contract=held.data, acts=[x for x in held.acts if x.action == APPROVE])
        pair[1 - who].book.told(pair[who].member.id, replayed)
        assert pair[1 - who].book.find(held.hash.hex()).state(clock()) is State.REVOKED


def test_what_is_decided_is_decided(pair, clock):
    a, b = pair
    key = a.book.propose(draft(clock())).hash.hex()
    tell(a, b, bytes.fromhex(key))
    with pytest.raises(Refused, match="has approved .* already"):
        a.book.decide(key, APPROVE)  # its proposer's own approval counts once, and for itself alone
    with pytest.raises(Refused, match="is not in force: reject it"):
        b.book.decide(key, REVOKE)
    b.book.decide(key, APPROVE)
    with pytest.raises(Refused, match="is in force: revoke it"):
        b.book.decide(key, REJECT)
    b.book.decide(key, REVOKE)
    for action in (APPROVE, REJECT, REVOKE):
        with pytest.raises(Refused, match="was revoked by bank-b.*propose a new one"):
            b.book.decide(key, action)
    with pytest.raises(NotFound):
        b.book.decide("00" * 32, APPROVE)


def test_it_expires_by_the_holders_clock(pair, clock):
    a, b = pair
    held = everybody_signs(a.book, a.book.propose(draft(clock())), a.institutions.keys)
    clock.now = held.terms.expires_at - 1
    assert a.book.grants(a.member.id, b.member.id, "fraud")
    clock.now += 1
    with pytest.raises(Refused, match=r"expired 20\d\d-\d\d-\d\d"):
        a.book.grants(a.member.id, b.member.id, "fraud")
    with pytest.raises(Refused, match="expired"):
        b.book.told(a.member.id, held.signed())  # too late to hear of it for the first time


def signed_by(institutions, terms, *acts):
    data = contract.serialise(terms)
    key = contract.hash_of(data)
    made = [
        contract.sign(
            institutions.keys[institutions.ca.members.find(name).id].signing, key, party, action, at
        )
        for name, party, action, at in acts
    ]
    return pb.SignedContract(contract=data, acts=made)


def proposal(pair, clock, **changes):
    """The bytes of a good proposal of A, and how it is changed."""
    held = pair[0].book.propose(draft(clock()))
    terms = pb.Contract()
    terms.CopyFrom(held.terms)
    for field, value in changes.items():
        if isinstance(value, list):
            getattr(terms, field)[:] = value
        else:
            setattr(terms, field, value)
    return terms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "other.example"}, "of the network other.example"),
        ({"proposed_at": int(Clock().now) + 301}, r"proposed 301 s in this node's future: the clocks differ"),
        ({"expires_at": int(Clock().now) - 1, "proposed_at": int(Clock().now) - 2}, "expired"),
        ({"title": "other"}, None),
    ],
)
def test_a_proposal_that_does_not_fit_is_named(pair, clock, institutions, changes, message):
    a, b = pair
    terms = proposal(pair, clock, **changes)
    told = signed_by(institutions, terms, (A, a.member.id, APPROVE, terms.proposed_at))
    if message is None:
        b.book.told(a.member.id, told)
        return
    with pytest.raises(Refused, match=message):
        b.book.told(a.member.id, told)
    assert b.book.all() == []
    assert b.leaves() == set()


def test_five_minutes_of_clock_skew_are_tolerated(pair, clock, institutions):
    a, b = pair
    terms = proposal(pair, clock, proposed_at=int(clock()) + 300)
    held = b.book.told(
        a.member.id, signed_by(institutions, terms, (A, a.member.id, APPROVE, terms.proposed_at))
    )
    # Our own act is no older than the proposal, though our clock says so.
    held = b.book.decide(held.hash.hex(), APPROVE)
    assert held.state(clock()) is State.ACTIVE
    assert {act.at for act in held.acts} == {terms.proposed_at}


def test_acts_that_are_not_what_they_say_are_refused_and_nothing_is_kept(pair, clock, institutions):
    a, b = pair
    c = institutions.ca.members.find(C)
    terms = proposal(pair, clock)
    good = (A, a.member.id, APPROVE, terms.proposed_at)
    for acts, message in (
        ([], "not signed by its proposer"),
        ([(B, b.member.id, APPROVE, terms.proposed_at)], "not signed by its proposer"),
        ([(C, a.member.id, APPROVE, terms.proposed_at)], "not signed by"),  # a wrong key
        ([good, (C, c.id, APPROVE, terms.proposed_at)], "not a signer"),
        ([good, (A, b.member.id, APPROVE, terms.proposed_at)], "not signed by"),  # signs for the other
        ([(A, a.member.id, APPROVE, terms.proposed_at + 301)], "301 s in this node's future"),
        ([good, (A, a.member.id, REVOKE, terms.proposed_at - 1)], "older than the proposal"),
    ):
        with pytest.raises(Refused, match=message):
            b.book.told(a.member.id, signed_by(institutions, terms, *acts))
    told = signed_by(institutions, terms, good)
    with pytest.raises(Refused, match="the caller is not a signer"):
        b.book.told(c.id, told)
    altered = bytearray(told.contract)
    altered[altered.index(b"fraud")] ^= 1
    with pytest.raises(Refused, match="not signed by"):
        b.book.told(a.member.id, pb.SignedContract(contract=bytes(altered), acts=told.acts))
    with pytest.raises(Refused, match="contract"):
        b.book.told(a.member.id, pb.SignedContract(contract=told.contract + b"\x00", acts=told.acts))
    assert b.book.all() == []
    b.book.told(a.member.id, told)
    terms.title = "the same id"
    with pytest.raises(Refused, match="another contract has this id"):
        b.book.told(a.member.id, signed_by(institutions, terms, good))


def test_open_proposals_of_one_member_are_bounded(pair, clock, institutions, monkeypatch):
    monkeypatch.setattr("nodes.limits.OPEN_PROPOSALS", 3)
    a, b = pair
    for _ in range(3):
        b.book.told(a.member.id, a.book.propose(draft(clock())).signed())
    with pytest.raises(Refused, match="3 proposals of .* are open"):
        b.book.told(a.member.id, a.book.propose(draft(clock())).signed())
    # Nor by ending each at once.
    monkeypatch.setattr("nodes.limits.PROPOSALS_A_DAY", 5)
    for held in b.book.all():
        b.book.decide(held.hash.hex(), REJECT)
    for _ in range(2):
        held = a.book.propose(draft(clock()))
        b.book.told(a.member.id, a.book.decide(held.hash.hex(), REJECT).signed())
    with pytest.raises(Refused, match="enough for a day"):
        b.book.told(a.member.id, a.book.propose(draft(clock())).signed())
    clock.now += 86_400
    b.book.told(a.member.id, a.book.propose(draft(clock())).signed())


def test_only_what_ended_without_our_approval_is_forgotten(pair, clock):
    a, b = pair
    rejected, revoked, open_ = (a.book.propose(draft(clock())) for _ in range(3))
    for held in (rejected, revoked, open_):
        tell(a, b, held.hash)
    b.book.decide(rejected.hash.hex(), REJECT)
    b.book.decide(revoked.hash.hex(), APPROVE)
    b.book.decide(revoked.hash.hex(), REVOKE)
    assert b.book.purge() == 0
    clock.now += 31 * 86_400
    assert b.book.purge() == 1
    b.start()
    assert {held.hash for held in b.book.all()} == {revoked.hash, open_.hash}
    # Told again it is a proposal, and what was revoked stays so.
    b.book.told(a.member.id, rejected.signed())
    assert b.book.find(rejected.hash.hex()).state(clock()) is State.PROPOSED
    b.book.told(a.member.id, pb.SignedContract(contract=revoked.data, acts=revoked.acts))
    assert b.book.find(revoked.hash.hex()).state(clock()) is State.REVOKED


def test_where_the_network_asks_for_it_the_regulator_signs_too(tmp_path, clock, template):
    roles = {A: Role.BANK, B: Role.BANK, "regulator": Role.REGULATOR}
    network = Institutions(tmp_path / "network", roles)
    network.ca.reissue(regulator_signs=True)
    a, b, regulator = (Party(tmp_path, network, name, clock, template) for name in roles)
    held = a.book.propose(draft(clock()))
    assert regulator.member.id in held.terms.signers
    tell(a, b, held.hash)
    b.book.decide(held.hash.hex(), APPROVE)
    tell(b, a, held.hash)
    with pytest.raises(Refused, match="waits for regulator"):
        a.book.grants(a.member.id, b.member.id, "fraud")
    tell(a, regulator, held.hash)
    regulator.book.decide(held.hash.hex(), APPROVE)
    tell(regulator, a, held.hash)
    assert a.book.grants(a.member.id, b.member.id, "fraud")
    # One that was made for fewer signers is not taken.
    terms = pb.Contract()
    terms.CopyFrom(held.terms)
    terms.id, terms.signers[:] = b"\x01" * 16, sorted([a.member.id, b.member.id])
    short = signed_by(network, terms, (A, a.member.id, APPROVE, terms.proposed_at))
    with pytest.raises(Refused, match="lacks a signer that this network asks for"):
        b.book.told(a.member.id, short)


def test_what_a_signature_does_not_cover_goes_no_further(pair, clock):
    """Unknown fields on an act would make a leaf that nobody parses, or that no tick can hold."""
    a, b = pair
    held = a.book.propose(draft(clock()))
    for size in (10, 5_000, 70_000):
        padding = b"\xfa\x01" + _varint(size) + bytes(size)  # field 31
        act = pb.ContractAct.FromString(held.acts[0].SerializeToString() + padding)
        after = b.book.told(a.member.id, pb.SignedContract(contract=held.data, acts=[act]))
        assert after.acts == held.acts
    assert b.leaves() == a.leaves()
    with pytest.raises(Refused, match="not in its one encoding"):
        b.book.told(a.member.id, pb.SignedContract(contract=held.data + b"\xfa\x01\x01x", acts=held.acts))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def test_an_end_counts_whatever_its_authors_clock_says_and_beside_what_is_wrong(pair, clock, institutions):
    a, b = pair
    held = a.book.propose(draft(clock()))
    tell(a, b, held.hash)
    b.book.decide(held.hash.hex(), APPROVE)
    tell(b, a, held.hash)
    ahead = signed_by(
        institutions,
        held.terms,
        (A, a.member.id, REVOKE, int(clock()) + 10_000),
        (A, b.member.id, REJECT, int(clock())),
    )
    with pytest.raises(Refused, match="not signed by"):  # the second act is forged; the first stands
        b.book.told(a.member.id, ahead)
    assert b.book.find(held.hash.hex()).state(clock()) is State.REVOKED


def test_a_regulator_signs_a_job_that_it_takes_no_part_in_and_old_proposals_need_it(
    tmp_path, clock, template
):
    network = Institutions(
        tmp_path / "network", {A: Role.BANK, B: Role.BANK, C: Role.BANK, "regulator": Role.REGULATOR}
    )
    a, b, regulator = (Party(tmp_path, network, name, clock, template) for name in (A, B, "regulator"))
    old = a.book.propose(draft(clock()))
    tell(a, b, old.hash)
    network.ca.reissue(regulator_signs=True)
    time.sleep(1.1)  # the list is looked at once a second
    with pytest.raises(Refused, match="lacks a signer that this network asks for"):
        b.book.decide(old.hash.hex(), APPROVE)
    job = pb.Contract(title="job", expires_at=int(clock()) + 86_400, retention_days=1, parties=[A, B])
    job.job.CopyFrom(pb.JobTerms(descriptor=b"{}", schema_hash=bytes(32)))
    with pytest.raises(Refused, match="does not learn"):
        a.book.propose(job)
    a.book.check_before_signing("job", lambda _terms: None)
    held = a.book.propose(job)
    tell(a, regulator, held.hash)
    regulator.book.decide(held.hash.hex(), APPROVE)
    tell(a, b, held.hash)
    with pytest.raises(Refused, match="does not learn"):
        b.book.decide(held.hash.hex(), APPROVE)


# -- the gate ---------------------------------------------------------------------------------------------------------

NARROW = """
[[allow]]
members = ["role:bank"]
purposes = ["payment"]
budget = { epoch = 60, day = 1000, burst = 30, burst_seconds = 10 }
"""


@pytest.fixture
def make(make_gate, policy_file, clock, holder):
    holder.load({"kind": "phone", "value": "13800138000"})
    holder.epochs.seal_changes("fraud")

    def made(text: str, **budget):
        return make_gate(policy_file(text), lookups(A, [B], clock(), **budget), clock=clock)

    return made


def test_without_rules_in_the_file_the_contract_alone_decides(make, members, clock):
    gate = make("", epoch=100, day=80, burst=50, burst_seconds=60)
    decision = gate.admit(ask(members[B], 10))
    (held,) = gate.contracts.all()
    assert decision.entry.committed.event.contract == held.hash
    left = decision.budget
    assert (left.epoch_left, left.day_left, left.burst_left) == (90, 70, 40)
    assert refused(gate, ask(members["centre"])).reason == "CONTRACT"
    assert refused(gate, ask(members[B], purpose=0)).reason == "PURPOSE"
    assert refused(gate, ask(members[B], resource="renamed")).reason == "CONTRACT"
    gate.contracts.decide(held.hash.hex(), REVOKE)
    error = refused(gate, ask(members[B]))
    assert (error.reason, "was revoked by holder" in str(error)) == ("CONTRACT", True)
    assert gate.purposes(members[B], "fraud") == []
    assert gate.budget(members[B], "fraud").epoch_limit == 0


def test_the_file_only_narrows(make, members, clock):
    gate = make(NARROW, epoch=100, day=80, burst=50, burst_seconds=60)
    left = gate.admit(ask(members[B], 10)).budget
    assert (left.epoch_limit, left.day_limit, left.burst_limit) == (60, 80, 30)
    assert gate.purposes(members[B], "fraud") == [2]
    assert refused(gate, ask(members[B], purpose=1)).reason == "PURPOSE"
    # Each burst holds by itself: 30 in 10 s by the file, 50 in 60 s by the contract.
    gate.admit(ask(members[B], 20))
    assert "30" not in str(refused(gate, ask(members[B], 1)))
    clock.now += 11
    gate.admit(ask(members[B], 20))
    clock.now += 11
    assert "within 60 s" in str(refused(gate, ask(members[B], 1)))


def test_a_wider_file_widens_nothing(make, members):
    wide = NARROW.replace("60, day", "1000000, day").replace(
        "30, burst_seconds = 10", "9999, burst_seconds = 10"
    )
    gate = make(wide, epoch=100, day=80, burst=50, burst_seconds=60)
    assert gate.budget(members[B], "fraud").epoch_limit == 100
    assert "burst" in str(refused(gate, ask(members[B], 51)))


def test_a_pull_needs_a_contract_too(make, members):
    gate = make("")
    pull = {"action": gates.SYNC, "count": 0}
    gate.admit(ask(members[B], **pull))
    assert refused(gate, ask(members["centre"], **pull)).reason == "CONTRACT"


# -- two nodes, whatever happens --------------------------------------------------------------------------------------


class TwoNodes(RuleBasedStateMachine):
    """Proposals, decisions, messages that are lost, late or repeated, kills, time: both sides end up the same."""

    institutions: Institutions
    template: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lf-two-"))
        self.clock = Clock()
        self.parties = [
            Party(self.folder, self.institutions, name, self.clock, self.template) for name in (A, B)
        ]
        self.keys: list[bytes] = []
        self.post: list[tuple[int, pb.SignedContract]] = []
        self.ended: set[tuple[int, bytes]] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(who=st.integers(0, 1), days=st.integers(1, 3))
    def propose(self, who, days):
        holder, asker = (A, B) if who else (B, A)
        made = lookups(holder, [asker], self.clock())
        made.expires_at = int(self.clock()) + days * 86_400
        self.keys.append(self.parties[who].book.propose(made).hash)

    @precondition(lambda self: self.keys)
    @rule(who=st.integers(0, 1), which=st.integers(0, 9), action=st.sampled_from(contract.ACTIONS))
    def decide(self, who, which, action):
        key = self.keys[which % len(self.keys)]
        try:
            self.parties[who].book.decide(key.hex(), action)
        except (Refused, NotFound):
            pass

    @precondition(lambda self: self.keys)
    @rule(who=st.integers(0, 1), which=st.integers(0, 9))
    def send(self, who, which):
        """It may arrive at any time, more than once, or never."""
        try:
            held = self.parties[who].book.find(self.keys[which % len(self.keys)].hex())
        except NotFound:
            return
        self.post.append((1 - who, held.signed()))

    @precondition(lambda self: self.post)
    @rule(which=st.integers(0, 99))
    def arrive(self, which):
        to, signed = self.post[which % len(self.post)]
        self._told(to, signed)

    def _told(self, to, signed):
        try:
            self.parties[to].book.told(self.parties[1 - to].member.id, signed)
        except Refused as error:
            assert error.reason == "EXPIRED"

    @rule(who=st.integers(0, 1))
    def kill(self, who):
        self.parties[who].start()

    @rule(hours=st.integers(1, 30))
    def later(self, hours):
        self.clock.now += hours * 3_600

    @invariant()
    def in_force_only_with_both_signatures_and_never_again_after_an_end(self):
        for number, party in enumerate(getattr(self, "parties", ())):
            for held in party.book.all():
                stands = held.state(self.clock())
                signed = {act.party for act in held.acts if act.action == APPROVE}
                assert stands is not State.ACTIVE or signed == set(held.terms.signers)
                assert (number, held.hash) not in self.ended or stands in (State.REVOKED, State.REJECTED)
                if stands in (State.REVOKED, State.REJECTED):
                    self.ended.add((number, held.hash))

    @rule()
    def they_tell_each_other_everything(self):
        for who in (0, 1, 0):
            for held in self.parties[who].book.all():
                self._told(1 - who, held.signed())
        books = [{held.hash: held for held in party.book.all()} for party in self.parties]
        for key in books[0].keys() & books[1].keys():
            left, right = (book[key] for book in books)
            assert left.state(self.clock()) is right.state(self.clock())
            assert left.acts == right.acts
        # Who has not heard of a contract by its expiry never will; it was in force nowhere.
        for mine, other in (books, books[::-1]):
            for key in mine.keys() - other.keys():
                assert contract.waiting_for(mine[key].terms, mine[key].acts)
        logs = [party.leaves() for party in self.parties]
        for book, log in zip(books, logs, strict=True):
            assert log == {(held.hash, act.party, act.action) for held in book.values() for act in held.acts}


def test_two_nodes_whatever_happens_agree(institutions, template):
    TwoNodes.institutions, TwoNodes.template = institutions, template
    run_machine(
        TwoNodes,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# -- what a person writes ---------------------------------------------------------------------------------------------


def test_the_template_is_a_contract(tmp_path, pair, clock):
    path = tmp_path / "terms.toml"
    text = drafts.TEMPLATE.replace('["bank-a", "bank-b"]', '"holder"').replace('["centre"]', '["bank-b"]')
    path.write_text(text)
    held = pair[0].book.propose(drafts.load(path, clock()))
    (grant,) = held.terms.lookup.grants
    assert (grant.holder, grant.asker) == (pair[0].member.id, pair[1].member.id)
    assert held.terms.expires_at == int(clock()) + 365 * 86_400


GRANT = """
[[grant]]
holder = "holder"
asker = "bank-b"
lists = ["fraud"]
purposes = ["payment"]
budget = { epoch = 10, day = 10, burst = 10 }
"""
PSI = """
[psi]
variant = "cardinality"
kind = "phone"
output_to = ["holder"]
[[psi.input]]
party = "holder"
dataset = "customers"
column = "phone"
max_elements = 1000
[[psi.input]]
party = "bank-b"
dataset = "customers"
column = "mobile"
max_elements = 1000
"""


def test_a_psi_contract_is_proposed_and_signed_like_any_other(tmp_path, pair, clock):
    a, b = pair
    path = tmp_path / "psi.toml"
    path.write_text('title = "customers in common"\n' + PSI)
    held = a.book.propose(drafts.load(path, clock()))
    tell(a, b, held.hash)
    after = b.book.decide(held.hash.hex(), APPROVE)
    assert after.state(clock()) is State.ACTIVE
    assert list(after.terms.psi.output_to) == [a.member.id]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "title"),
        ('title = "x"', r"either \[\[grant\]\] or \[psi\]"),
        ('title = "x"\n' + GRANT + PSI, r"either \[\[grant\]\] or \[psi\]"),
        ('title = "x"\n' + GRANT.replace('"payment"', '"marketing"'), "purpose 'marketing' is not one of"),
        ('title = "x"\n' + GRANT + 'bases = ["hunch"]', "basis 'hunch' is not one of"),
        ('title = "x"\n' + GRANT + 'colour = "red"', "colour"),
        ('title = "x"\ndays = 2000\n' + GRANT, "days"),
        ('title = "x"\n' + GRANT.replace("burst = 10", "burst = 0"), "burst"),
        ('title = "x"\n' + PSI.replace("cardinality", "union"), "variant 'union' is not one of"),
        ('title = "x\n', "terms.toml"),
    ],
)
def test_terms_that_are_none_name_the_file_and_the_field(tmp_path, text, message):
    path = tmp_path / "terms.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        drafts.load(path)
    assert "terms.toml" in str(caught.value)


def test_names_that_are_no_members_are_named(tmp_path, pair, clock):
    path = tmp_path / "terms.toml"
    path.write_text('title = "x"\n' + GRANT.replace("bank-b", "bank-z"))
    with pytest.raises(NotFound, match="bank-z.*known: "):
        pair[0].book.propose(drafts.load(path, clock()))
    assert pair[0].book.all() == []
