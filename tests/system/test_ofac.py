"""Real input: OFAC's list of 2022 as a bank's list, the one of 2024 as its update."""

import csv
import json
import re

import pytest

from nodes.importers import ofac
from nodes.importers.table import ReadRow
from protocols.errors import IdentifierError
from protocols.identifiers import normalise
from tests.system.conftest import outcomes, wait_until

OLD, NEW = "ofac_sdn_2022-01.csv", "ofac_sdn_2024-05-03.csv"


def identifiers(path):
    """Canonical identifiers of a version with one row each that states them, as an analyst would have them."""
    found = {}
    for row in ofac.rows(path):
        assert isinstance(row, ReadRow) or "cells" in row.reason or "may be cut" in row.reason
        if isinstance(row, ReadRow):
            fields = row.fields
            try:
                identifier = normalise(fields["kind"], fields["value"], fields["country"], default_region="")
            except IdentifierError:
                continue
            found[identifier.canonical] = (fields["kind"], fields["value"], fields["country"])
    return found


def ask(network, tmp_path, rows, case):
    path = tmp_path / f"{case}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("kind", "value", "country"), *rows])
    result = tmp_path / f"{case}.json"
    network.run(
        "centre",
        *(
            "query",
            str(path),
            "--purpose",
            "payment",
            "--case",
            case,
            "--basis",
            "sanctions",
            "--to",
            "bank-a",
        ),
        *("--list", "sdn", "--output", str(result)),
    )
    return json.loads(result.read_text())


def hits(document):
    return [any(a["outcome"] == "hit" for a in row["answers"]) for row in document["rows"]]


@pytest.fixture(scope="module")
def versions(shared):
    return identifiers(shared / "data" / OLD), identifiers(shared / "data" / NEW)


def import_sdn(network, shared, name, *options):
    bad = network.folder / f"{name}.bad.csv"
    options = ("--format", "ofac-sdn", "--skip-bad", "--replace", "--bad-file", str(bad))
    return network.json("bank-a", "list", "import", str(shared / "data" / name), "--list", "sdn", *options)


def batch_of(network):
    """Newest batch of the list that the centre has copied by itself."""
    copies = network.json("centre", "status")["copies"]
    return next((each["batch"] for each in copies if each["list"] == "sdn"), 0)


def test_the_2022_list_then_the_update_of_2024(network, shared, versions, tmp_path):
    old, new = versions
    result = import_sdn(network, shared, OLD)
    assert (result["added"], result["sealed"], result["inactive"]) == (len(old), 0, True)
    assert len(old) > 5_000
    assert result["bad"] > 100  # documents without a country: reported, not guessed
    assert network.json("bank-a", "list", "activate", "sdn")["sealed"] == len(old)
    wait_until(lambda: batch_of(network) == 1)

    # Every identifier of the list is found, and identifiers that only the later version has are not.
    later = sorted(set(new) - set(old))[:1_000]
    document = ask(network, tmp_path, [*old.values(), *(new[each] for each in later)], "sdn-2022")
    assert document["complete"]
    assert hits(document) == [True] * len(old) + [False] * len(later)

    result = import_sdn(network, shared, NEW)
    removed = set(old) - set(new)
    assert result["withdrawn"] == result["tombstones"] == len(removed) > 400
    assert result["added"] == len(set(new) - set(old))
    assert (
        result["sealed"] == result["added"] + result["changed"]
    )  # an entry that has another reference now is one
    wait_until(lambda: batch_of(network) == 2)
    first, both = (
        sum(each.stat().st_size for each in network.node("bank-a").glob(f"data/lists/sdn/1/{name}.batch"))
        for name in ("000001", "*")
    )
    # Only the changes travel: 96 bytes an addition and 16 a removal, padded by at most 7 %.
    changes = 96 * len(set(new) - set(old)) + 16 * len(removed)
    assert changes <= both - first <= 1.07 * changes + 4_000

    everything = [*new.values(), *(old[each] for each in sorted(removed))]
    document = ask(network, tmp_path, everything, "sdn-2024")
    assert hits(document) == [True] * len(new) + [False] * len(removed)

    # The same file again: nothing to seal, nothing to send.
    result = import_sdn(network, shared, NEW)
    assert (result["added"], result["changed"], result["withdrawn"], result["sealed"]) == (0, 0, 0, 0)


def test_a_hit_says_it_is_official_and_stands_until_it_is_removed(network, shared, versions, tmp_path):
    text = (shared / "data" / NEW).read_text("utf-8")
    address = re.search(r"Digital Currency Address - ETH (0x[0-9a-fA-F]{40})", text)[1]
    document = ask(network, tmp_path, [("crypto", address.upper().replace("0X", "0x"), "")], "one")
    answer = document["rows"][0]["answers"][0]
    assert (answer["outcome"], answer["category"], answer["basis"]) == ("hit", "sanctions", "official-list")
    assert answer["valid_until"] == ""
    assert outcomes(document, "bank-a", "sdn")


def test_the_bad_rows_can_be_mended_and_imported(network, shared):
    path = network.folder / f"{NEW}.bad.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    row = next(each for each in rows if each["kind"] == "passport" and not each["country"])
    assert row["lianfang_reason"] == "the issuing country is missing"
    row["country"] = "IQ"
    mended = network.folder / "mended.csv"
    with mended.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    result = network.json("bank-a", "list", "import", str(mended), "--list", "sdn", "--official")
    assert (result["added"], result["bad"]) == (1, 0)
