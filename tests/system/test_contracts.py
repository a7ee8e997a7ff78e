"""Contracts between real nodes: nothing without one, killed nodes, revocation, the regulator, and every RPC's need."""

import importlib
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import grpc
import lianfang.v1
import pytest
from lianfang.v1 import contract_pb2, contract_pb2_grpc, sync_pb2

from nodes.contracts import draft as drafts
from nodes.demo.network import CONTRACT, Network, program
from nodes.people.roles import NEEDS
from nodes.services.intercept import OPEN_METHODS
from protocols import group
from tests.system.conftest import Wire, import_phones, make_network, outcomes, phones, query

POINT = group.multiply_base((5).to_bytes(32, "little"))
BANKS = ("bank-a", "bank-b", "bank-c")


@pytest.fixture(scope="module")
def strangers():
    """A network whose members have agreed on nothing yet."""
    made = make_network("strangers")
    try:
        made.start()
        import_phones(made, "bank-a", phones(0, 30))
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def terms(asker="centre", holder="bank-a"):
    draft = drafts.load(CONTRACT)
    grants = [each for each in draft.lookup.grants if (each.holder, each.asker) == (holder, asker)]
    del draft.lookup.grants[:]
    draft.lookup.grants.extend(grants)
    return draft


def reason(error: grpc.RpcError) -> str:
    return dict(error.trailing_metadata() or ()).get("lianfang-reason", "")


def evaluate(wire: Wire) -> str:
    """The reason of a refusal, empty for an answer."""
    request = wire.request(POINT, secrets.token_bytes(16))
    try:
        wire.lookup("bank-a").Evaluate(request, timeout=60)
    except grpc.RpcError as error:
        return reason(error)
    return ""


def pull(wire: Wire) -> str:
    request = sync_pb2.PullRequest(
        suite=1, list="fraud", epoch=1, from_batch=1, pull_id=secrets.token_bytes(16)
    )
    try:
        list(wire.sync("bank-a").Pull(request, timeout=60))
    except grpc.RpcError as error:
        return reason(error)
    return ""


def propose(network: Network, draft, proposer="bank-a") -> str:
    with network.contracts(proposer) as node:
        return network.together(proposer, lambda: node.Propose(draft)).document["contract"]


def decide(network: Network, member: str, name: str, action: str) -> None:
    network.run(member, "contract", action, name[:16])


def test_without_a_contract_nothing_but_node_information_passes(strangers):
    wire = Wire(strangers, "centre")
    assert not wire.info("bank-a").lists
    assert (evaluate(wire), pull(wire)) == ("CONTRACT", "CONTRACT")
    refused = {each["reason"] for each in strangers.json("bank-a", "status")["refused_today"]}
    assert "CONTRACT" in refused
    name = propose(strangers, terms())
    strangers.wait_for_contract("centre", name, "proposed")
    assert (evaluate(wire), pull(wire)) == ("CONTRACT", "CONTRACT")  # one signature is none
    decide(strangers, "centre", name, "reject")
    strangers.wait_for_contract("bank-a", name, "rejected")
    done = strangers.run("centre", "contract", "approve", name[:16], check=False)
    assert done.returncode == 1
    assert "was rejected by centre" in done.stderr
    wire.close()


def test_from_proposal_to_revocation(strangers):
    name = propose(strangers, terms())
    strangers.wait_for_contract("centre", name, "proposed")
    decide(strangers, "centre", name, "approve")
    for member in ("bank-a", "centre"):
        strangers.wait_for_contract(member, name, "active")
    strangers.run("centre", "sync", "bank-a")
    document = query(strangers, "centre", [*phones(0, 1), *phones(900, 1)], "--to", "bank-a")
    assert sorted(outcomes(document, "bank-a").values()) == ["hit", "miss"]
    # The answer's event, at both sides' request, names the contract.
    rows = strangers.json("bank-a", "ledger", "events", "--since", "1h")["events"]
    assert {row["contract"] for row in rows if row["type"] == "query-answered"} == {name}
    wire = Wire(strangers, "centre")
    assert [each.list for each in wire.info("bank-a").lists] == ["fraud"]
    decide(strangers, "bank-a", name, "revoke")
    assert (evaluate(wire), pull(wire)) == ("CONTRACT", "CONTRACT")
    assert not wire.info("bank-a").lists
    strangers.wait_for_contract("centre", name, "revoked")
    document = query(strangers, "centre", phones(0, 1), "--to", "bank-a", "--again", check=False)
    (holder,) = document["holders"]
    assert holder["outcome"] == "refused"
    assert "was revoked by bank-a" in holder["detail"]
    wire.close()


def test_killed_between_the_two_ledgers_both_sides_converge(strangers):
    """The approver dies as soon as its own ledger has the approval; or the proposer, before it hears of it."""
    for victim, other in (("centre", "bank-a"), ("bank-a", "centre")):
        name = propose(strangers, terms())
        strangers.wait_for_contract("centre", name, "proposed")
        if victim == "bank-a":
            strangers.kill("bank-a")
        decide(strangers, "centre", name, "approve")
        if victim == "centre":
            strangers.kill("centre")
        time.sleep(0.5)
        strangers.start_member(strangers.member(victim))
        strangers.wait(victim)
        for member in (victim, other):
            strangers.wait_for_contract(member, name, "active")
        decide(strangers, other, name, "revoke")
        strangers.wait_for_contract(victim, name, "revoked")


def test_where_the_network_asks_for_it_the_regulator_signs(strangers):
    subprocess.run(
        program(["lianfang", "ca", "reissue", "--ca", str(strangers.folder / "ca"), "--regulator-signs"]),
        check=True,
        capture_output=True,
        timeout=180,
    )
    members = (strangers.folder / "ca" / "members.bin").read_bytes()
    for member in strangers.members:
        (strangers.node(member.name) / "certs" / "members.bin").write_bytes(members)
    time.sleep(1.5)  # a node looks at the file once a second
    name = propose(strangers, terms())
    strangers.wait_for_contract("centre", name, "proposed")
    decide(strangers, "centre", name, "approve")
    wire = Wire(strangers, "centre")
    strangers.wait_for_contract("regulator", name, "proposed")
    assert evaluate(wire) == "CONTRACT"
    decide(strangers, "regulator", name, "approve")
    strangers.wait_for_contract("bank-a", name, "active")
    assert evaluate(wire) == ""
    wire.close()


def test_a_title_with_markup_is_shown_as_it_is(strangers):
    draft = terms()
    draft.title = "x [/a][conceal]hidden[/conceal]"
    name = propose(strangers, draft)
    strangers.wait_for_contract("centre", name, "proposed")
    for command in (["contract", "list"], ["contract", "show", name]):
        assert "[/a][conceal]hidden" in strangers.run("centre", *command).stdout


def test_a_contract_tells_nothing_to_who_does_not_sign_it(strangers):
    """Not its terms: a stranger to it gets no answer, whatever it sends."""
    name = propose(strangers, terms())
    with strangers.contracts("bank-a") as node:
        assert node.List(contract_pb2.ListContractsRequest(contract=name)).document["title"]
    assert not [each for each in strangers.json("bank-b", "contract", "list") if each["contract"] == name]
    wire = Wire(strangers, "bank-b")
    stub = contract_pb2_grpc.ContractsStub(wire.channel("bank-a"))
    for request in (contract_pb2.SignedContract(), contract_pb2.SignedContract(contract=bytes.fromhex(name))):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Tell(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wire.close()


# What every method of the wire needs. `contract`: which kind has to be in force; the gate refuses without.
PEERS = {
    "NodeInfo/GetInfo": "none: node information; lists only under a contract",
    "NodeInfo/GetInstitutions": "none: every member's directory of institutions is the CA's and the same",
    "NodeInfo/Introduce": "none: open to every certificate of the CA",
    "ListSync/Pull": "contract: lookup",
    "ListSync/Follow": "none: lists only under a contract",
    "Lookup/Evaluate": "contract: lookup",
    "Ledger/Events": "none: the caller's own events, of what contracts allowed",
    "Contracts/Tell": "none: signers of the contract that is told",
    "Learning/Enrol": "none: binds the caller's Flower key; roles that learn",
    "SecureSum/Join": "contract: job",
    "Psi/Meet": "contract: psi",
    "Vertical/Work": "contract: job",
    "Vertical/Score": "contract: job",
}


def test_every_method_says_which_contract_or_which_role_it_needs():
    """From the descriptors of every proto file: a new method, service or file cannot be forgotten."""
    found = set()
    for path in (Path(lianfang.v1.__path__[0])).glob("*_pb2.py"):
        module = importlib.import_module(f"lianfang.v1.{path.stem}")
        for service in module.DESCRIPTOR.services_by_name.values():
            found |= {f"{service.name}/{method.name}" for method in service.methods}
    assert not set(PEERS) & set(NEEDS)
    assert found == set(PEERS) | set(NEEDS)
    assert {f"lianfang.v1.{name}" for name in PEERS if "open to every" in PEERS[name]} == {
        each.removeprefix("/") for each in OPEN_METHODS
    }
