"""The network's directory of institutions, from the CA's table to a question under another code of the same bank."""

import shutil
import time

import pytest

from nodes.demo.network import program
from tests.system.conftest import import_list, write_list

TABLE = """institution,name,cnaps,clearing
ICBKCNBJ,中国工商银行;工行,102*,102100099996
BKCHCNBJ,中国银行,104*,
"""


def _put(network, tmp_path, table, member="bank-a"):
    """The CA puts a directory in force and hands it to one member, as the command says."""
    import subprocess

    path = tmp_path / f"banks-{time.monotonic_ns()}.csv"
    path.write_text(table, "utf-8")
    ca = network.folder / "ca"
    made = subprocess.run(
        program(["lianfang", "ca", "directory", str(path), "--ca", str(ca)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    certs = network.node(member) / "certs"
    for name in ("institutions.tsv", "members.bin"):
        shutil.copy(ca / name, certs / name)


def _directory(network, bank):
    found = network.json(bank, "doctor", check=False)
    return next(
        (
            each["found"]
            for each in found["findings"]
            if each["what"] == "institutions" and each["state"] == "ok"
        ),
        "",
    )


def _all_have(network, words):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if all(words in _directory(network, bank) for bank in ("bank-a", "bank-b", "bank-c")):
            return
        time.sleep(1)
    pytest.fail("a member did not take the directory up")


def _ask(network, institution, check=True, case="K-1"):
    path = network.folder / f"ask-{time.monotonic_ns()}.csv"
    path.write_text(f"kind,value,institution\naccount,6222021234567,{institution}\n", "utf-8")
    return network.json(
        "bank-b",
        "query",
        str(path),
        "-p",
        "payment",
        "--case",
        case,
        "-b",
        "customer-consent",
        "--to",
        "bank-a",
        "--list",
        "fraud",
        check=check,
    )


def _hits(result):
    return [each["outcome"] for each in result["rows"][0]["answers"]]


def test_an_account_is_found_under_another_code_of_its_bank(own_network, tmp_path):
    network = own_network
    rows = write_list(
        tmp_path / "accounts.csv",
        [("account", "6222021234567", "102100099996", "mule-account")],
        header="kind,value,institution,category",
    )
    import_list(network, "bank-a", rows, "fraud")
    # Before the members have a directory: another code is another account, and the answer says so.
    missed = _ask(network, "ICBKCNBJ", case="K-0")
    assert _hits(missed) == ["miss"]
    assert "no directory of institutions" in missed["rows"][0]["note"]

    _put(network, tmp_path, TABLE)
    _all_have(network, "2")
    end = time.monotonic() + 60
    while _hits(_ask(network, "工行", check=False, case="K-2")) != ["hit"]:  # once the list has its new epoch
        assert time.monotonic() < end
        time.sleep(2)
    for code in ("ICBKCNBJSHA", "102100099996", "102290013334"):
        found = _ask(network, code, case="K-3")
        assert _hits(found) == ["hit"]
        assert found["rows"][0]["normal_form"] == "ICBKCNBJ/6222021234567"
        assert "note" not in found["rows"][0]
    refused = _ask(network, "103100000026", check=False, case="K-4")
    assert "directory of 2 institutions" in refused["problems"][0]["reason"]
    # A file with an unknown code is refused, with the row and the column.
    bad = write_list(
        tmp_path / "unknown.csv",
        [("account", "6222029999999", "103100000026", "mule-account")],
        header="kind,value,institution,category",
    )
    result = network.json("bank-a", "list", "import", str(bad), "--list", "fraud", check=False)
    assert [(each["row"], each["column"]) for each in result["bad_rows"]] == [(2, "institution")]
    # Entries are found at home under any code as well.
    own = network.json(
        "bank-a", "list", "find", "6222021234567", "--kind", "account", "--institution", "工行"
    )
    assert [each["value"] for each in own] == ["6222021234567"]

    # A directory that lacks the bank: the entry stays, nobody can ask for it, and the doctor says so.
    _put(network, tmp_path, "institution,name\nBKCHCNBJ,中国银行\n")
    _all_have(network, "1")
    end = time.monotonic() + 60
    while not any(
        "ICBKCNBJ (1)" in each["found"] for each in network.json("bank-a", "doctor", check=False)["findings"]
    ):
        assert time.monotonic() < end
        time.sleep(2)
    assert network.json("bank-a", "list", "stats", "fraud")["counts"]["status"] == {"active": 1}
