"""Logs and witnesses under append, crash, restart, partition, lost answers, restored backups and forks.

Invariants: no witness ever signs two inconsistent heads; no acknowledged event is lost; every published head is
consistent with every later one.
"""

import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodes.errors import NodeError
from protocols import merkle
from protocols.ledger import checkpoints, events, tiles
from protocols.ledger.checkpoints import Checkpoint
from protocols.ledger.witnessing import AddCheckpoint, Refusal
from tests.nodes.cluster import Cluster, Template

LOGS = ("bank-a",)
ALL = ("bank-a", "bank-b", "bank-c", "centre")


class Crash(BaseException):
    """The process ends here."""


class Machine(RuleBasedStateMachine):
    template: Template

    @initialize()
    def start(self):
        self.folder = Path(tempfile.mkdtemp(prefix="lf-machine-"))
        self.cluster = Cluster(self.template, self.folder, leaves=2)
        self.acknowledged = {name: set() for name in LOGS}
        self.saved = {}  # log → what was acknowledged when its backup was made
        self.published = {name: [] for name in LOGS}
        self.trees = {}  # (origin, size, root) → leaves, of every head that anybody signed
        self.forks = 0

    def teardown(self):
        if hasattr(self, "cluster"):
            self.cluster.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def leaves(self, name):
        log = self.cluster.parties[name].log
        size, out = log.signed.checkpoint.size if log.signed else 0, []
        for number in range(-(-size // tiles.WIDTH)):
            out += tiles.unpack(log.tile(tiles.ENTRIES, number, tiles.width(tiles.ENTRIES, number, size)))
        return out

    def note(self, name):
        """Remember what the signed and published heads of a log stand for."""
        log = self.cluster.parties[name].log
        if log.signed is not None:
            head = log.signed.checkpoint
            leaves = self.leaves(name)
            self.trees[(log.origin, head.size, head.root)] = leaves
            if log.published is not None:
                published = log.published.head.checkpoint
                prefix = leaves[: published.size]
                self.trees.setdefault((log.origin, published.size, published.root), prefix)
                self.published[name].append(published)

    @rule(name=st.sampled_from(LOGS), count=st.integers(1, 4))
    def append(self, name, count):
        for _ in range(count):
            self.acknowledged[name].add(self.cluster.parties[name].append(count=count))

    @rule(name=st.sampled_from(LOGS), lose=st.booleans())
    def tick(self, name, lose):
        self.cluster.lose_answers = lose and self.cluster.parties[name].publisher._safe
        try:
            self.cluster.tick(name)
        except NodeError:
            pass  # it does not know how far it has signed
        finally:
            self.cluster.lose_answers = False
        self.note(name)

    @rule(name=st.sampled_from(LOGS), where=st.sampled_from(["mark", "publish", "append"]))
    def crash_within_a_tick(self, name, where):
        party = self.cluster.parties[name]

        def crash(*_arguments, **_names):
            raise Crash

        if where == "mark":
            party.mark.note_own = crash
        elif where == "publish":
            party.publisher.publish = crash
        else:
            party.log._sign = lambda _connection: (_ for _ in ()).throw(RuntimeError("crash"))
        try:
            self.cluster.tick(name)
        except (Crash, NodeError):
            pass
        self.cluster.restart(name)
        self.note(name)

    @rule(name=st.sampled_from(ALL))
    def restart(self, name):
        self.cluster.restart(name)

    @rule(pair=st.sets(st.sampled_from(ALL), min_size=2, max_size=2))
    def partition(self, pair):
        self.cluster.cut.append(pair)

    @rule()
    def heal(self):
        self.cluster.cut.clear()

    @rule(reader=st.sampled_from(ALL), name=st.sampled_from(LOGS))
    def mirror(self, reader, name):
        if reader != name:
            try:
                party = self.cluster.parties[reader]
                self.cluster.run(party.mirrors.refresh(self.cluster.parties[name].member))
                self.cluster.run(party.mirrors.compare(self.cluster.parties[name].member))
            except NodeError:
                pass

    @rule(name=st.sampled_from(ALL))
    def backup(self, name):
        self.cluster.backup(name, self.folder / f"backup-{name}")
        self.saved[name] = set(self.acknowledged.get(name, ()))

    def seen(self, name):
        """Leaves in heads that the mark knows, which is written before one leaves the node, or that a witness has signed."""
        party = self.cluster.parties[name]
        leaves, size = self.leaves(name), party.mark.own.size
        for _, note in self.cluster.signatures:
            head = Checkpoint.parse(note.decode().partition("\n\n")[0] + "\n")
            if self.trees.get((head.origin, head.size, head.root)) == leaves[: head.size]:
                size = max(size, head.size)
        return set(leaves[:size])

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def restore(self, data):
        name = data.draw(st.sampled_from(sorted(self.saved)))
        if name in LOGS:
            # What was recorded since and is in no head that has left the node is lost with the disk: no log can know of it.
            seen = self.seen(name)
            self.acknowledged[name] = {
                leaf for leaf in self.acknowledged[name] if leaf in self.saved[name] or leaf in seen
            }
        self.cluster.restore(name, self.folder / f"backup-{name}")

    @rule(name=st.sampled_from(LOGS), signer=st.sampled_from(ALL), data=st.data())
    def fork(self, name, signer, data):
        """The owner of a log's key shows a witness another history, with the best proof that it can make."""
        if name == signer or self.cluster.parties[name].log.signed is None:
            return
        party, witness = self.cluster.parties[name], self.cluster.parties[signer].witness
        leaves = self.leaves(name)
        keep = data.draw(st.integers(0, len(leaves)))
        self.forks += 1
        other = [*leaves[:keep], *(events.dummy_leaf() for _ in range(data.draw(st.integers(1, 4))))]
        tree = merkle.Tree([merkle.leaf_hash(leaf) for leaf in other])
        note = checkpoints.sign(Checkpoint(party.log.origin, len(tree), tree.root()), party.keys.log)
        self.trees[(party.log.origin, len(tree), tree.root())] = other
        old = 0
        for _ in range(2):  # a witness tells what it has seen
            proof = tuple(merkle.consistency(min(old, len(tree)), len(tree), tree.node))
            try:
                witness.add(bytes(AddCheckpoint(old, proof, bytes(note))))
            except Refusal as refusal:
                old = refusal.size or 0
                continue
            self.cluster.signatures.append((signer, bytes(note)))
            return

    # -- invariants --------------------------------------------------------------------------------------------

    @invariant()
    def no_witness_signs_two_inconsistent_heads(self):
        signed = {}
        for witness, note in (getattr(self, "cluster", None) and self.cluster.signatures) or ():
            head = Checkpoint.parse(note.decode().partition("\n\n")[0] + "\n")
            signed.setdefault((witness, head.origin), set()).add((head.size, head.root))
        for (_, origin), heads in signed.items():
            known = [self.trees[(origin, *head)] for head in sorted(heads) if (origin, *head) in self.trees]
            for smaller, larger in itertools.pairwise(known):
                assert larger[: len(smaller)] == smaller

    @invariant()
    def published_heads_are_consistent(self):
        for heads in getattr(self, "published", {}).values():
            for first, second in itertools.pairwise(heads):
                assert first.size <= second.size
                name = first.origin
                if (name, second.size, second.root) in self.trees:
                    leaves = self.trees[(name, second.size, second.root)][: first.size]
                    assert merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves]).root() == first.root

    @invariant()
    def no_acknowledged_event_is_lost(self):
        for name, leaves in getattr(self, "acknowledged", {}).items():
            log = self.cluster.parties[name].log
            if log.lost is not None:
                continue  # it signs nothing until it has its entries back
            waiting = {each.committed.leaf for each in log.find() if each.position is None}
            tree = set()
            size = log.size
            for number in range(-(-size // tiles.WIDTH)):
                with log._database.connect() as connection:
                    from nodes.ledger.book import read_tile

                    tree |= set(tiles.unpack(read_tile(connection, tiles.ENTRIES, number)))
            assert leaves <= waiting | tree


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Template(tmp_path_factory.mktemp("machine"), ALL)


def test_the_ledger_keeps_its_invariants(template):
    Machine.template = template
    chosen = settings(
        max_examples=30,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Machine, settings=chosen)
