"""People of an institution: signing in, roles, tokens, and what takes two of them. Real stores, a clock of our own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import argon2
import pyotp
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from lianfang.v1 import ledger_pb2

from nodes import limits, policy
from nodes.errors import NodeError, NotFound, Refused
from nodes.identity import keys as node_keys
from nodes.identity.keys import NodeKeys
from nodes.identity.names import MemberName
from nodes.identity.names import Role as MemberRole
from nodes.people import book, roles
from nodes.people.actions import Action, Actions
from nodes.people.book import CALLER, Caller, PeopleBook
from nodes.people.roles import NEEDS, Need, Role
from nodes.people.tally import EVALUATIONS
from nodes.store import engine as db
from nodes.store import schema
from nodes.store.writer import GroupWriter
from tests.nodes.conftest import make_log

IN_SERVICE = book.HASHING
PASSWORD = "correct horse 42"
STATUS = NEEDS["Admin/Status"]
QUERY = NEEDS["Admin/Query"]


@pytest.fixture(autouse=True, scope="module")
def _quick_hashes():
    """As strong as they are in service, hashes take most of these tests' time; one test looks at a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "HASHING", argon2.profiles.CHEAPEST)
        yield


class Institution:
    """The people of one node, over real stores."""

    def __init__(self, folder, keys: NodeKeys, name: str = "bank-a") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.keys, self.now = folder, keys, 1_800_000_000.0
        self.member = MemberName("test.example", MemberRole.BANK, name)
        self.database = db.connect(folder / "node.db", "node")
        self.writer = GroupWriter(self.database)
        self.log = make_log(self.database, keys, self.member, folder)
        rules = folder / "policy.toml"
        if not rules.exists():
            rules.write_text("[second_person]\nwithdraw_entries = 5\nhours = 2\n")
        self.policy = policy.PolicyFile(rules)
        self.secrets: dict[str, str] = {}
        self.owner_invites = False
        self.open()

    def open(self) -> None:
        clock = lambda: self.now  # noqa: E731
        self.process, self.owner = self.folder / "process.token", self.folder / "owner.token"
        self.people = PeopleBook(
            self.database,
            self.writer,
            self.log,
            self.keys.vault,
            self.member,
            self.process,
            self.owner,
            self.owner_invites,
            clock,
        )
        self.actions = Actions(
            self.database, self.writer, self.log, self.keys.vault, self.people, self.policy, clock
        )

    def code(self, name: str, later: int = 0) -> str:
        return pyotp.TOTP(self.secrets[name]).at(int(self.now) + 30 * later)

    def enrol(self, name: str, *wanted: str, by: Caller = Caller()) -> Caller:
        invitation, _ = self.people.invite(by, name, list(wanted))
        _, self.secrets[name] = self.people.begin_enrolment(name, invitation)
        token, _, _ = self.people.finish_enrolment(name, invitation, PASSWORD, self.code(name))
        self.now += 60  # the code is spent
        return self.shown(token)

    def shown(self, token: str, need: Need = STATUS) -> Caller:
        return self.people.find_caller(token, "Admin/Status", need)

    def login(self, name: str, password: str = PASSWORD, code: str | None = None) -> str:
        return self.people.login(name, password, self.code(name) if code is None else code)[0]

    def as_(self, who: Caller):
        CALLER.set(who)
        return self

    def events(self, kind=ledger_pb2.EVENT_TYPE_PERSON) -> list[ledger_pb2.Event]:
        return [each.committed.event for each in self.log.find(since=0) if each.committed.event.type == kind]

    def close(self) -> None:
        self.writer.close()
        self.database.dispose()


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> NodeKeys:
    folder = tmp_path_factory.mktemp("keys")
    node_keys.create(folder / "keys")
    return NodeKeys.load(folder / "keys")


@pytest.fixture
def house(tmp_path, keys):
    made = Institution(tmp_path / "house", keys)
    yield made
    made.close()


@pytest.fixture
def staffed(house):
    house.admin = house.enrol("ada", "administrator")
    house.second_admin = house.enrol("bo", "administrator")
    house.operator = house.enrol("olga", "operator", by=house.admin)
    house.analyst = house.enrol("ana", "analyst", by=house.admin)
    house.approver = house.enrol("pia", "approver", by=house.admin)
    return house


def refused(reason: str):
    class _Context:
        def __enter__(self):
            self.raises = pytest.raises(Refused)
            self.caught = self.raises.__enter__()
            return self.caught

        def __exit__(self, *error):
            done = self.raises.__exit__(*error)
            assert self.caught.value.reason == reason, self.caught.value
            return done

    return _Context()


# -- signing in --------------------------------------------------------------------------------------------------------


def test_passwords_are_hashed_with_argon2id_as_rfc_9106_recommends(tmp_path, keys, monkeypatch):
    monkeypatch.setattr(book, "HASHING", IN_SERVICE)
    house = Institution(tmp_path / "house", keys)
    try:
        olga = house.enrol("olga", "operator")
        stored = house.people.get(olga.person.id).password
        assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # RFC 9106 §4, second choice
    finally:
        house.close()


def test_invited_enrolled_signed_in(house):
    olga = house.enrol("olga", "operator")
    assert olga.person.name == "olga"
    token = house.login("olga")
    assert house.shown(token).person.id == olga.person.id
    assert [event.reason for event in house.events()] == ["invited: operator", "enrolled"]
    assert {event.resource for event in house.events()} == {olga.person.pseudonym.hex()}


def test_nothing_that_signs_somebody_in_is_stored_in_clear(staffed):
    token, _ = staffed.people.make_token(staffed.analyst, "scripts", ["ask"], 30)
    invitation, _ = staffed.people.invite(staffed.admin, "zoe", ["auditor"])
    session = staffed.login("ana")
    with db.writing(staffed.database) as connection:
        connection.exec_driver_sql("SELECT 1")
    data = b"".join(
        path.read_bytes()
        for path in staffed.folder.rglob("*")
        if path not in (staffed.process, staffed.owner)
    )
    for secret in (token, invitation, session, PASSWORD, *staffed.secrets.values()):
        assert secret.encode() not in data
        assert secret.rpartition(".")[2].encode() not in data
    for file in (staffed.process, staffed.owner):
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_code_is_good_once_and_no_older_one_after_it(house):
    house.enrol("olga", "operator")
    code, before = house.code("olga"), house.code("olga", -1)
    house.login("olga", code=code)
    for replayed in (code, before):
        with refused("SIGN_IN"):
            house.login("olga", code=replayed)
    house.now += 30
    house.login("olga")


def test_one_code_shown_by_many_at_once_signs_one_in(house):
    house.enrol("olga", "operator")
    code, barrier = house.code("olga"), threading.Barrier(4)

    def attempt(_):
        barrier.wait()
        try:
            return house.login("olga", code=code)
        except Refused:
            return ""

    with ThreadPoolExecutor(4) as pool:
        assert sum(bool(token) for token in pool.map(attempt, range(4))) == 1


def test_codes_of_the_step_before_and_after_are_taken_and_no_others(house):
    house.enrol("olga", "operator")
    house.now += 600
    house.login("olga", code=house.code("olga", -1))
    house.login("olga", code=house.code("olga", 1))
    house.now += 600
    for far in (-2, 2):
        with refused("SIGN_IN"):
            house.login("olga", code=house.code("olga", far))


def test_brute_force_locks_the_name_and_says_so(house):
    house.enrol("olga", "operator")
    for _ in range(limits.FAILED_LOGINS):
        with refused("SIGN_IN"):
            house.login("olga", "wrong password 1")
    with refused("LOCKED"):
        house.login("olga")  # the right one, too
    assert house.people.locked() == ["olga"]
    assert [event.reason for event in house.events()][-1] == "locked"
    house.open()  # a restart unlocks nobody
    with refused("LOCKED"):
        house.login("olga")
    house.now += limits.LOCK_SECONDS + 60
    with refused("SIGN_IN"):
        house.login("olga", "wrong password 2")
    with refused("LOCKED"):  # one more failure, twice as long
        house.login("olga")
    house.now += limits.LOCK_SECONDS + 60
    with refused("LOCKED"):
        house.login("olga")
    house.now += limits.LOCK_SECONDS
    token, _, failures = house.people.login("olga", PASSWORD, house.code("olga"))
    assert failures == limits.FAILED_LOGINS + 1
    assert house.shown(token)
    assert house.people.locked() == []


def test_guesses_at_the_same_moment_count_too(house):
    house.enrol("olga", "operator")
    barrier = threading.Barrier(12)

    def attempt(i):
        barrier.wait()
        try:
            house.login("olga", f"wrong password {i}")
        except Refused as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(attempt, range(12)))
    assert found.count("SIGN_IN") == limits.FAILED_LOGINS
    assert found.count("LOCKED") == 12 - limits.FAILED_LOGINS


def test_all_names_together_have_a_rate(house):
    house.enrol("olga", "operator")
    for i in range(limits.FAILED_LOGINS_A_MINUTE):
        with refused("SIGN_IN"):
            house.people.login(f"nobody-{i}", "x", "000000")
    with refused("RATE"):
        house.login("olga")
    house.now += 61
    house.login("olga")


def test_who_is_not_known_is_refused_in_the_same_words(house):
    house.enrol("olga", "operator")
    said = set()
    for name, password, code in (
        ("nobody", PASSWORD, "123456"),
        ("olga", "wrong password", house.code("olga")),
        ("olga", PASSWORD, "12345"),
    ):
        with refused("SIGN_IN") as caught:
            house.people.login(name, password, code)
        said.add(str(caught.value))
    assert len(said) == 1


def test_an_invitation_is_for_one_person_once_and_not_for_ever(house):
    first, _ = house.people.invite(Caller(), "olga", ["operator"])
    house.people.invite(Caller(), "pia", ["approver"])
    with refused("SIGN_IN"):
        house.people.begin_enrolment("pia", first)
    _, secret = house.people.begin_enrolment("olga", first)
    house.secrets["olga"] = secret
    with refused("SIGN_IN"):
        house.people.finish_enrolment("olga", first, PASSWORD, "000000")
    for weak in ("short", "olga-is-my-name", "aaaaaaaaaaaaaaaa"):
        with refused("INVALID"):
            house.people.finish_enrolment("olga", first, weak, house.code("olga"))
    house.people.finish_enrolment("olga", first, PASSWORD, house.code("olga"))
    with refused("SIGN_IN"):
        house.people.begin_enrolment("olga", first)
    late, _ = house.people.invite(Caller(), "zoe", ["auditor"])
    house.now += limits.INVITATION_SECONDS
    with refused("SIGN_IN"):
        house.people.begin_enrolment("zoe", late)


def test_a_session_ends(house):
    house.enrol("olga", "operator")
    token = house.login("olga")
    house.now += limits.SESSION_SECONDS
    with refused("SIGN_IN"):
        house.shown(token)
    house.people.purge()
    token = house.login("olga")
    house.people.logout(house.shown(token))
    with refused("SIGN_IN"):
        house.shown(token)


def test_a_new_password_ends_every_other_session_and_token(house):
    olga = house.enrol("olga", "operator")
    token, _ = house.people.make_token(olga, "x", ["lists"], 1)
    with refused("SIGN_IN"):
        house.people.change_password(olga, "wrong password", house.code("olga"), "another horse 43")
    house.people.change_password(olga, PASSWORD, house.code("olga"), "another horse 43")
    with refused("SIGN_IN"):
        house.shown(token)
    house.now += 60
    with refused("SIGN_IN"):
        house.login("olga")
    house.login("olga", "another horse 43")


# -- roles and tokens --------------------------------------------------------------------------------------------------


def test_the_table_of_roles_contradicts_itself_nowhere():
    for name, need in NEEDS.items():
        assert bool(need.roles) + need.open + need.process == 1, name
        assert bool(need.second) == bool(need.when), name
        assert need.scope in ("", *roles.SCOPES), name
        assert not need.second & need.roles or need.roles == {Role.ADMINISTRATOR}, name


@pytest.mark.parametrize("method", sorted(NEEDS))
def test_a_method_is_for_its_roles_alone(staffed, method):
    need = NEEDS[method]
    auditor = staffed.enrol("ute", "auditor", by=staffed.admin)
    callers = [staffed.admin, staffed.operator, staffed.analyst, staffed.approver, auditor]
    assert {role for who in callers for role in who.person.roles} == set(Role)
    for who in callers:
        token = staffed.login(who.person.name)
        if need.open or who.person.roles & need.roles:
            staffed.people.find_caller(token, method, need)
        else:
            with refused("SIGN_IN" if need.process else "ROLE"):
                staffed.people.find_caller(token, method, need)
    for nobody in ("", "rubbish", "bank-a.session-000000000000." + "A" * 43):
        if not need.open:
            with refused("SIGN_IN"):
                staffed.people.find_caller(nobody, method, need)
    process = staffed.process.read_text()
    if need.process:
        staffed.people.find_caller(process, method, need)
    elif not need.open:
        with refused("SIGN_IN"):
            staffed.people.find_caller(process, method, need)


def test_a_token_does_what_its_scopes_say_and_its_person_may(staffed):
    token, expires = staffed.people.make_token(staffed.analyst, "case system", ["ask", "lists"], 30)
    staffed.people.find_caller(token, "Admin/Query", QUERY)
    with refused("SCOPE"):
        staffed.people.find_caller(token, "Admin/Status", STATUS)
    with refused("ROLE"):  # the scope is there, the role is not
        staffed.people.find_caller(token, "Admin/Import", NEEDS["Admin/Import"])
    for method in ("People/MakeToken", "People/DecideAction", "People/Invite"):
        with refused("SCOPE"):
            staffed.people.find_caller(token, method, NEEDS[method])
    staffed.now = expires
    with refused("SIGN_IN"):
        staffed.people.find_caller(token, "Admin/Query", QUERY)


@pytest.mark.parametrize(
    ("label", "scopes", "days"),
    [("x", [], 1), ("x", ["everything"], 1), ("x", ["ask"], 0), ("x", ["ask"], 91), ("", ["ask"], 1)],
)
def test_tokens_that_are_not_made(staffed, label, scopes, days):
    with refused("INVALID"):
        staffed.people.make_token(staffed.analyst, label, scopes, days)


def test_a_token_of_another_node_is_refused_by_name(staffed, tmp_path):
    node_keys.create(tmp_path / "other-keys")
    other = Institution(tmp_path / "other", NodeKeys.load(tmp_path / "other-keys"), "bank-b")
    try:
        other.enrol("olga", "operator")
        token = other.login("olga")
        with refused("SIGN_IN") as caught:
            staffed.shown(token)
        assert "a token of bank-b, and this node is bank-a" in str(caught.value)
        with refused("SIGN_IN"):  # with the name changed, too
            staffed.shown(token.replace("bank-b", "bank-a"))
    finally:
        other.close()


def test_a_database_of_another_node_signs_nobody_in(staffed, tmp_path):
    """Hashes are keyed by the node's own storage key."""
    token = staffed.login("ana")
    staffed.close()
    node_keys.create(tmp_path / "thief")
    thief = Institution(staffed.folder, NodeKeys.load(tmp_path / "thief"))
    try:
        with refused("SIGN_IN"):
            thief.shown(token)
    finally:
        thief.close()
    staffed.__init__(staffed.folder, staffed.keys)


def test_roles_change_from_the_next_call_on(staffed):
    token = staffed.login("ana")
    staffed.people.find_caller(token, "Admin/Query", QUERY)
    staffed.people.set_roles(staffed.admin, "ana", ["auditor"])
    with refused("ROLE"):
        staffed.people.find_caller(token, "Admin/Query", QUERY)
    staffed.people.remove(staffed.admin, "ana")
    with refused("SIGN_IN"):
        staffed.shown(token)
    with refused("SIGN_IN"):
        staffed.login("ana")
    with refused("INVALID") as caught:
        staffed.people.invite(staffed.admin, "ana", ["analyst"])
    assert "names are not used again" in str(caught.value)


def test_two_administrators_stay(staffed):
    for change in (
        lambda: staffed.people.remove(staffed.admin, "bo"),
        lambda: staffed.people.set_roles(staffed.admin, "ada", ["operator"]),
    ):
        with refused("ADMINISTRATORS"):
            change()
    staffed.enrol("cy", "administrator", by=staffed.admin)
    staffed.people.remove(staffed.admin, "bo")


def test_the_owner_of_the_socket_decides_until_there_are_two_administrators(house):
    invite, owner = NEEDS["People/Invite"], house.owner.read_text()
    with refused("SIGN_IN"):  # who only reaches the socket
        house.people.find_caller("", "People/Invite", invite)
    assert house.people.find_caller(owner, "People/Invite", invite).person is None
    house.enrol("ada", "administrator")
    assert house.people.find_caller(owner, "People/Invite", invite).person is None
    house.enrol("bo", "administrator")
    with refused("SIGN_IN"):
        house.people.find_caller(owner, "People/Invite", invite)
    house.people.invite(Caller(), "bo", [])  # invited again: no password, but still one of two
    with refused("SIGN_IN"):
        house.people.find_caller(owner, "People/Invite", invite)
    with refused("SIGN_IN"):
        house.login("bo")
    house.owner_invites = True
    house.open()
    assert house.people.find_caller(owner, "People/Invite", invite).person is None
    with refused("SIGN_IN"):
        house.people.find_caller(owner, "People/Remove", NEEDS["People/Remove"])


def test_another_institutions_pseudonyms_say_nothing(staffed, tmp_path):
    assert staffed.people.name_of(staffed.analyst.person.pseudonym) == "ana"
    assert staffed.people.name_of(bytes(16)) == ""
    assert len({each.pseudonym for each in staffed.people.all()}) == len(staffed.people.all())


@pytest.mark.parametrize("name", ["", "A", "a", "olga smith", "x" * 41, "../etc", "ana\n"])
def test_names_that_are_none(house, name):
    with refused("INVALID"):
        house.people.invite(Caller(), name, ["operator"])


# -- the second person -------------------------------------------------------------------------------------------------


def asking(data: bytes = b"question") -> Action:
    return Action("Admin/Query", data, "ask about many", {"values": ["phone 13900000000"]})


def propose(house, who: Caller, action: Action) -> str:
    with refused("PENDING"):
        house.as_(who).actions.begin(action, second=True)
    (found,) = [each for each in house.actions.list(who) if each["own"] and each["state"] == "waiting"]
    return found["id"]


def test_proposed_approved_done_once(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    with refused("PENDING"):  # it still waits, and is not proposed twice
        staffed.as_(staffed.analyst).actions.begin(asking(), second=True)
    assert staffed.actions.waiting() == 1
    shown = staffed.actions.show(staffed.approver, identity)
    assert (shown["by"], shown["content"]["values"]) == ("ana", ["phone 13900000000"])
    staffed.actions.decide(staffed.approver, identity, approve=True)
    assert staffed.as_(staffed.analyst).actions.begin(asking(), second=True)
    with refused("PENDING"):  # once
        staffed.actions.begin(asking(), second=True)
    events = staffed.events(ledger_pb2.EVENT_TYPE_ACTION)
    told = [(event.reason, staffed.people.name_of(event.asker)) for event in events]
    assert told == [("proposed", "ana"), ("approved", "pia"), ("done", "ana"), ("proposed", "ana")]
    assert len({event.id for event in events[:3]}) == 1
    assert len({event.digest for event in events}) == 1


def test_other_bytes_another_method_and_another_person_are_not_approved(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    staffed.actions.decide(staffed.approver, identity, approve=True)
    second = staffed.enrol("axel", "analyst", by=staffed.admin)
    for who, action in (
        (staffed.analyst, asking(b"Question")),
        (staffed.analyst, Action("LedgerAdmin/Bundle", b"question", "export", {})),
        (second, asking()),
    ):
        with refused("PENDING"):
            staffed.as_(who).actions.begin(action, second=True)


def test_nobody_approves_what_is_their_own(staffed):
    both = staffed.enrol("dora", "analyst", "approver", by=staffed.admin)
    identity = propose(staffed, both, asking())
    with refused("OWN"):
        staffed.actions.decide(both, identity, approve=True)
    staffed.actions.decide(both, identity, approve=False)
    with refused("ENDED"):
        staffed.actions.decide(staffed.approver, identity, approve=True)


def test_who_has_no_part_in_an_action_does_not_see_it(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    for who in (staffed.operator, staffed.admin):
        assert staffed.actions.list(who) == []
        for call in (staffed.actions.show, lambda who, text: staffed.actions.decide(who, text, True)):
            with pytest.raises(NotFound):
                call(who, identity)
    change = Action("People/Remove", b"ana", "remove ana", {})
    waiting = propose(staffed, staffed.admin, change)
    with pytest.raises(NotFound):  # an approver is not who decides about people
        staffed.actions.decide(staffed.approver, waiting, approve=True)
    staffed.actions.decide(staffed.second_admin, waiting, approve=True)


def test_two_decisions_at_the_same_moment_are_one(staffed):
    other = staffed.enrol("paul", "approver", by=staffed.admin)
    for i in range(6):
        identity = propose(staffed, staffed.analyst, asking(b"%d" % i))
        barrier = threading.Barrier(2)

        def decide(who, approve, identity=identity, barrier=barrier):
            barrier.wait()
            try:
                staffed.actions.decide(who, identity, approve)
            except Refused as error:
                return error.reason
            return "approved" if approve else "rejected"

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(decide, staffed.approver, True)
            second = pool.submit(decide, other, i % 2 == 0)
            found = [first.result(), second.result()]
        stands = staffed.actions.show(staffed.analyst, identity)["state"]
        if i % 2 == 0:
            assert sorted(found) == ["ENDED", "approved"]
            assert stands == "approved"
        else:  # a rejection counts, also after an approval
            assert found[1] == "rejected"
            assert found[0] in ("approved", "ENDED")
            assert stands == "rejected"


def test_an_approval_can_be_taken_back_while_nothing_was_done(staffed):
    for who in (staffed.approver, staffed.analyst):
        identity = propose(staffed, staffed.analyst, asking())
        staffed.actions.decide(staffed.approver, identity, approve=True)
        staffed.actions.decide(who, identity, approve=False)
        with refused("PENDING"):
            staffed.as_(staffed.analyst).actions.begin(asking(), second=True)
        staffed.actions.decide(staffed.approver, staffed.actions.list(staffed.approver)[0]["id"], False)


def test_an_approval_by_somebody_invited_anew_since_counts_no_more(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    staffed.actions.decide(staffed.approver, identity, approve=True)
    staffed.now += 1
    invitation, _ = staffed.people.invite(staffed.admin, "pia", [])  # the telephone was stolen
    _, staffed.secrets["pia"] = staffed.people.begin_enrolment("pia", invitation)
    staffed.people.finish_enrolment("pia", invitation, PASSWORD, staffed.code("pia"))
    with refused("PENDING"):
        staffed.as_(staffed.analyst).actions.begin(asking(), second=True)


def test_what_changes_while_a_call_is_under_way_counts(staffed):
    """The call began before; what it does, it does after."""
    identity = propose(staffed, staffed.analyst, asking())
    staffed.actions.decide(staffed.approver, identity, approve=True)
    staffed.as_(staffed.analyst)
    staffed.people.set_roles(staffed.admin, "ana", ["auditor"])
    with refused("ROLE"):
        staffed.actions.begin(asking(), second=True)
    with refused("ROLE"):
        staffed.actions.begin(asking())
    staffed.people.set_roles(staffed.admin, "ana", ["analyst"])
    staffed.people.remove(staffed.admin, "ana")
    with refused("SIGN_IN"):
        staffed.actions.begin(asking())
    approver = staffed.as_(staffed.approver) and staffed.approver
    waiting = propose(staffed, staffed.operator, Action("Admin/Activate", b"x", "activate", {}))
    staffed.people.revoke(staffed.admin, approver.credential.id)
    with refused("SIGN_IN"):
        staffed.actions.decide(approver, waiting, approve=True)


@pytest.mark.parametrize("how", ["login", "change", "enrol"])
def test_a_reset_is_not_undone_by_an_attempt_that_was_under_way(staffed, how, monkeypatch):
    """Between the look at the password and the record of the success, the person is invited anew."""
    code, real = staffed.code("ana"), PeopleBook._spend_code

    def reset_first(self, connection, person, step):
        table = schema.person
        connection.execute(
            table.update().where(table.c.id == person.id).values(password="", authenticator=b"new")
        )
        real(self, connection, person, step)

    monkeypatch.setattr(PeopleBook, "_spend_code", reset_first)
    with refused("SIGN_IN"):
        if how == "login":
            staffed.login("ana", code=code)
        elif how == "change":
            staffed.people.change_password(staffed.analyst, PASSWORD, code, "another horse 43")
        else:
            invitation, _ = staffed.people.invite(staffed.admin, "zoe", ["auditor"])
            _, staffed.secrets["zoe"] = staffed.people.begin_enrolment("zoe", invitation)
            staffed.people.finish_enrolment("zoe", invitation, PASSWORD, staffed.code("zoe"))


def test_two_removals_at_the_same_moment_leave_two_administrators(staffed):
    staffed.enrol("cy", "administrator", by=staffed.admin)
    barrier = threading.Barrier(2)

    def remove(name):
        barrier.wait()
        try:
            staffed.people.remove(staffed.admin, name)
        except Refused as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(remove, ["bo", "cy"])) == ["", "ADMINISTRATORS"]
    assert not staffed.people.open_to_owner


def test_one_name_invited_twice_at_the_same_moment_is_one_person(staffed):
    barrier = threading.Barrier(4)

    def invite(_):
        barrier.wait()
        try:
            staffed.people.invite(staffed.admin, "zoe", ["auditor"])
        except NodeError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(invite, range(4))) == ["", "INVALID", "INVALID", "INVALID"]


def test_revoking_takes_the_whole_token_and_repeats_none(staffed):
    token, _ = staffed.people.make_token(staffed.analyst, "x", ["ask"], 1)
    with pytest.raises(NotFound) as caught:
        staffed.people.revoke(staffed.analyst, token + "x")
    assert token not in str(caught.value)
    for text in (token, "not hex", ""):
        with refused("INVALID") as refusal:
            staffed.actions.show(staffed.analyst, text)
        assert token not in str(refusal.value)
    assert staffed.people.revoke(staffed.analyst, token) == "ana"
    with refused("SIGN_IN"):
        staffed.people.find_caller(token, "Admin/Query", QUERY)


def test_what_failed_is_not_on_record_as_done_nor_counted(staffed):
    action = Action("Admin/Withdraw", b"w", "withdraw", {}, count=5)
    staffed.as_(staffed.operator)
    with pytest.raises(ZeroDivisionError), staffed.actions.doing(action):
        raise ZeroDivisionError
    with staffed.actions.doing(action):  # the day's allowance is whole again
        pass
    told = staffed.events(ledger_pb2.EVENT_TYPE_ACTION)
    assert [event.reason for event in told] == ["did", "broke off", "did"]
    assert told[0].id == told[1].id != told[2].id
    staffed.open()
    with refused("PENDING"):
        staffed.as_(staffed.operator).actions.begin(action)


def test_the_rate_counts_attempts_that_are_still_looked_at(house):
    barrier = threading.Barrier(48)

    def attempt(i):
        barrier.wait()
        try:
            house.people.login(f"nobody-{i}", "x", "000000")
        except Refused as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(attempt, range(48)))
    assert found.count("SIGN_IN") == limits.FAILED_LOGINS_A_MINUTE
    assert found.count("RATE") == 48 - limits.FAILED_LOGINS_A_MINUTE


def test_a_weak_new_password_is_no_failed_attempt(house):
    olga = house.enrol("olga", "operator")
    for _ in range(limits.FAILED_LOGINS + 1):
        with refused("INVALID"):
            house.people.change_password(olga, PASSWORD, house.code("olga"), "short")
    house.login("olga")


def test_an_action_expires_waiting_or_approved(staffed):
    first = propose(staffed, staffed.analyst, asking(b"1"))
    staffed.now += 2 * 3600
    with refused("ENDED"):
        staffed.actions.decide(staffed.approver, first, approve=True)
    assert staffed.actions.waiting() == 0
    again = propose(staffed, staffed.analyst, asking(b"1"))
    assert again != first
    staffed.actions.decide(staffed.approver, again, approve=True)
    staffed.now += 2 * 3600
    with refused("PENDING"):
        staffed.as_(staffed.analyst).actions.begin(asking(b"1"), second=True)
    staffed.actions.purge()
    assert staffed.actions.show(staffed.analyst, again)["state"] == "expired"
    with db.reading(staffed.database) as connection:
        table = schema.pending_action
        kept = (
            connection.execute(sa.select(table.c.content).where(table.c.state == "expired")).scalars().all()
        )
    assert kept == [None, None]  # what was asked for is not kept


@pytest.mark.parametrize("whose", ["approver's role", "approver", "analyst's role"])
def test_a_role_that_goes_while_an_action_is_pending_counts_no_more(staffed, whose):
    identity = propose(staffed, staffed.analyst, asking())
    staffed.actions.decide(staffed.approver, identity, approve=True)
    if whose == "analyst's role":
        token = staffed.login("ana")
        staffed.people.set_roles(staffed.admin, "ana", ["auditor"])
        with refused("ROLE"):  # the interceptor asks before anything is begun
            staffed.people.find_caller(token, "Admin/Query", QUERY)
        return
    if whose == "approver":
        staffed.people.remove(staffed.admin, "pia")
    else:
        staffed.people.set_roles(staffed.admin, "pia", ["auditor"])
    with refused("PENDING") as caught:
        staffed.as_(staffed.analyst).actions.begin(asking(), second=True)
    assert "pia" in str(caught.value)
    other = staffed.enrol("paul", "approver", by=staffed.admin)
    staffed.actions.decide(other, identity, approve=True)
    assert staffed.as_(staffed.analyst).actions.begin(asking(), second=True)


def test_an_approver_who_lost_the_role_cannot_approve(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    token = staffed.login("pia")
    staffed.people.set_roles(staffed.admin, "pia", ["auditor"])
    who = staffed.people.find_caller(token, "People/DecideAction", NEEDS["People/DecideAction"])
    with pytest.raises(NotFound):
        staffed.actions.decide(who, identity, approve=True)


def test_what_breaks_off_may_be_done_again(staffed):
    identity = propose(staffed, staffed.analyst, asking())
    staffed.actions.decide(staffed.approver, identity, approve=True)
    with pytest.raises(ZeroDivisionError), staffed.as_(staffed.analyst).actions.doing(asking(), second=True):
        raise ZeroDivisionError
    with staffed.actions.doing(asking(), second=True):
        pass
    assert staffed.actions.show(staffed.analyst, identity)["state"] == "done"
    told = [event.reason for event in staffed.events(ledger_pb2.EVENT_TYPE_ACTION)]
    assert told == ["proposed", "approved", "done", "broke off", "done"]


def test_small_steps_add_up(staffed):
    def withdraw(count: int) -> None:
        data = b"%d" % staffed.actions.tally._now()
        action = Action("Admin/Withdraw", data + bytes([count]), "withdraw", {}, count=count)
        staffed.as_(staffed.operator).actions.begin(action)

    withdraw(3)
    withdraw(2)
    with refused("PENDING"):
        withdraw(1)
    staffed.open()  # a restart forgets nothing
    with refused("PENDING"):
        withdraw(1)
    staffed.now += 25 * 3600
    withdraw(5)
    with refused("PENDING"):
        withdraw(6)


def test_joint_scores_and_questions_add_up_and_what_was_told_is_not_given_back(staffed):
    def score(count: int, end: type[Exception] | None = None) -> None:
        data = b"%d %d" % (staffed.actions.tally._now(), count)
        action = Action("VerticalAdmin/Predict", data, "score", {}, count, EVALUATIONS)
        begun = staffed.as_(staffed.analyst).actions.begin(action)
        if end:
            staffed.actions.break_off(begun)

    limit = staffed.policy.current.second_person.evaluations_a_day
    assert staffed.actions.tally.take(staffed.analyst.pseudonym, EVALUATIONS, limit - 5, limit)  # questions
    score(3, end=ZeroDivisionError)
    score(2)
    with refused("PENDING"):
        score(1)


def test_steps_at_the_same_moment_add_up_too(staffed):
    tally, barrier = staffed.actions.tally, threading.Barrier(8)

    def take(_):
        barrier.wait()
        return tally.take(b"x" * 16, EVALUATIONS, 10, 35)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 3


def test_one_person_does_not_fill_the_store_with_actions(staffed, monkeypatch):
    monkeypatch.setattr(limits, "ACTIONS_A_PERSON", 3)
    for i in range(3):
        with refused("PENDING"):
            staffed.as_(staffed.analyst).actions.begin(asking(b"%d" % i), second=True)
    with refused("ACTIONS"):
        staffed.actions.begin(asking(b"more"), second=True)


# -- a state machine ---------------------------------------------------------------------------------------------------


class PendingActions(RuleBasedStateMachine):
    """Two analysts, two approvers, one thing each wants to do; against a model of what has to be true."""

    template = None  # set by the test: a folder and keys

    def __init__(self) -> None:
        super().__init__()
        type(self).runs = getattr(type(self), "runs", 0) + 1
        self.house = Institution(self.template[0] / f"run-{self.runs}", self.template[1])
        self.model: dict[tuple[str, bytes], tuple[str, str, float]] = {}  # state, approver, expires

    @initialize()
    def staff(self) -> None:
        admin = self.house.enrol("ada", "administrator")
        self.who = {
            name: self.house.enrol(name, role, by=admin)
            for name, role in (
                ("ana", "analyst"),
                ("axel", "analyst"),
                ("pia", "approver"),
                ("paul", "approver"),
            )
        }
        self.admin = admin
        self.lost: set[str] = set()

    def _stands(self, key) -> tuple[str, str]:
        state, approver, expires = self.model.get(key, ("none", "", 0.0))
        if state in ("waiting", "approved") and self.house.now >= expires:
            return "expired", ""
        return state, approver

    @rule(name=st.sampled_from(["ana", "axel"]), data=st.sampled_from([b"a", b"b"]))
    def do(self, name, data) -> None:
        key = (name, data)
        state, approver = self._stands(key)
        try:
            self.house.as_(self.who[name]).actions.begin(asking(data), second=True)
            assert state == "approved"
            assert approver not in self.lost
            self.model[key] = ("done", approver, 0.0)
        except Refused as error:
            assert error.reason == "PENDING"
            if state == "approved":
                assert approver in self.lost
                self.model[key] = ("waiting", "", self.model[key][2])
            elif state != "waiting":
                self.model[key] = ("waiting", "", self.house.now + 2 * 3600)

    @rule(
        name=st.sampled_from(["ana", "axel"]),
        data=st.sampled_from([b"a", b"b"]),
        by=st.sampled_from(["ana", "axel", "pia", "paul"]),
        approve=st.booleans(),
    )
    def decide(self, name, data, by, approve) -> None:
        key = (name, data)
        state, _ = self._stands(key)
        digest = asking(data).digest(self.house.keys.vault)
        table = schema.pending_action
        with db.reading(self.house.database) as connection:
            row = connection.execute(
                sa.select(table)
                .where(table.c.digest == digest, table.c.person == self.who[name].person.id)
                .order_by(table.c.at.desc(), sa.text("rowid DESC"))  # the clock may stand still between two
            ).first()
        if row is None:
            return
        person = self.house.people.get(self.who[by].person.id)
        try:
            self.house.actions.decide(Caller(person), row.id.hex(), approve)
            assert state == "waiting" or (state == "approved" and not approve)
            assert by in ("pia", "paul") or (by == name and not approve)
            assert by not in self.lost
            self.model[key] = ("approved" if approve else "rejected", by, self.model[key][2])
        except NodeError:
            may = (by in ("pia", "paul") and by not in self.lost) or (by == name and not approve)
            assert state not in ("waiting", *(() if approve else ("approved",))) or not may

    @rule(name=st.sampled_from(["pia", "paul"]))
    def role_goes(self, name) -> None:
        self.house.people.set_roles(self.admin, name, ["auditor"])
        self.lost.add(name)

    @rule(name=st.sampled_from(["pia", "paul"]))
    def role_comes_back(self, name) -> None:
        self.house.people.set_roles(self.admin, name, ["approver"])
        self.lost.discard(name)

    @rule(seconds=st.sampled_from([60, 3_600, 7_200]))
    def time_passes(self, seconds) -> None:
        self.house.now += seconds

    @rule()
    def restart(self) -> None:
        self.house.actions.purge()
        self.house.open()

    @invariant()
    def every_deed_was_approved_by_another(self) -> None:
        """As the ledger tells it, action by action."""
        if not hasattr(self, "who"):
            return
        steps: dict[bytes, list[ledger_pb2.Event]] = {}
        for event in self.house.events(ledger_pb2.EVENT_TYPE_ACTION):
            steps.setdefault(event.id, []).append(event)
        for told in steps.values():
            told.sort(key=lambda event: event.number)
            assert [event.number for event in told] == list(range(1, len(told) + 1))
            assert told[0].reason == "proposed"
            approved = b""
            for event in told[1:]:
                if event.reason == "approved":
                    approved = event.asker
                    assert approved != told[0].asker
                elif event.reason == "approval lapsed":
                    approved = b""
                elif event.reason == "done":
                    assert approved
                    assert event.asker == told[0].asker

    def teardown(self) -> None:
        self.house.close()


def test_pending_actions_as_a_state_machine(tmp_path, keys):
    PendingActions.template = (tmp_path, keys)
    PendingActions.TestCase.settings = settings(
        max_examples=15,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    case = PendingActions.TestCase()
    case.runTest()


def test_passwords_and_codes_are_taken_however_they_were_typed(house):
    """RFC 8265: a password enrolled as NFC and typed as NFD was refused, and counted towards the lock."""
    composed = "P\u00e4ssw\u00f6rter l\u00e4nger 9"
    decomposed = "Pa\u0308sswo\u0308rter\u00a0la\u0308nger\u30009"
    invitation, _ = house.people.invite(Caller(), "ida", ["administrator"])
    _, house.secrets["ida"] = house.people.begin_enrolment("ida", invitation)
    house.people.finish_enrolment("ida", invitation, composed, house.code("ida"))
    for typed in ("{0} {1}", "{0}-{1}", " {0}\u2013{1}\n"):
        house.now += 60
        code = house.code("ida")
        house.login("ida", decomposed, typed.format(code[:3], code[3:]))
    house.now += 60
    wide = house.code("ida").translate({ord(str(i)): 0xFF10 + i for i in range(10)})
    house.login("ida", composed, wide)
    house.now += 60
    with pytest.raises(Refused):
        house.login("ida", composed.replace("9", "8"), house.code("ida"))


def test_who_tries_again_has_not_to_scan_the_secret_again(house):
    invitation, _ = house.people.invite(Caller(), "eva", ["administrator"])
    _, secret = house.people.begin_enrolment("eva", invitation)
    house.secrets["eva"] = secret
    with pytest.raises(Refused):
        house.people.finish_enrolment("eva", invitation, "short", house.code("eva"))
    with pytest.raises(Refused):
        house.people.finish_enrolment("eva", invitation, PASSWORD, "000000")
    assert house.people.begin_enrolment("eva", invitation)[1] == secret
    house.people.finish_enrolment("eva", invitation, PASSWORD, house.code("eva"))
    other, _ = house.people.invite(Caller(), "pia", ["administrator"])
    assert house.people.begin_enrolment("pia", other)[1] != secret
