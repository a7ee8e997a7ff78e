"""Normalisation against its vectors, and its properties."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import IdentifierError
from protocols.identifiers import (
    KINDS,
    VERSION,
    Identifier,
    Kind,
    canonical_each,
    checksums,
    forms,
    normalise,
    phones,
    recognise,
)

VECTORS = json.loads((Path(__file__).parent / "identifier_vectors.json").read_text("utf-8"))


def test_the_vectors_are_of_this_version_and_cover_all_kinds():
    assert VECTORS["version"] == VERSION
    assert {each[0] for each in VECTORS["good"]} == {kind.value for kind in KINDS}


@pytest.mark.parametrize(("kind", "value", "options", "canonical"), VECTORS["good"])
def test_good_vectors(kind, value, options, canonical):
    identifier = normalise(kind, value, **options)
    assert identifier.canonical == canonical.encode()
    assert Identifier.from_canonical(identifier.canonical).value == identifier.value


@pytest.mark.parametrize(("kind", "value", "options", "code"), VECTORS["bad"])
def test_bad_vectors(kind, value, options, code):
    with pytest.raises(IdentifierError) as caught:
        normalise(kind, value, **options)
    assert caught.value.code == code
    if len(value.strip()) > 3:
        assert value.strip() not in str(caught.value)


@settings(max_examples=500)
@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_whatever_comes_it_is_normalised_or_refused_and_normalising_again_changes_nothing(kind, text):
    try:
        identifier = normalise(kind, text, country="DE", institution="ABCD")
    except IdentifierError:
        return
    assert len(identifier.canonical) < 600
    assert identifier.canonical.decode().isprintable() or "\x1f" in identifier.canonical.decode()
    value = identifier.value
    if kind in (Kind.ACCOUNT, Kind.PASSPORT, Kind.FOREIGN_ID, Kind.TAX_ID):
        value = value.split("/", 1)[1]
    if kind is Kind.NAME_BIRTH:
        value = value.rpartition("/")[0] + " " + value.rpartition("/")[2]
    if kind is Kind.DEVICE:
        value = value.removeprefix("imei:").removeprefix("mac:")
    assert normalise(kind, value, country="DE", institution="ABCD").value == identifier.value


def test_the_fast_path_for_mainland_mobiles_agrees_with_the_library(pytestconfig):
    """On 20,000 samples; on 10^6 with `--thorough`."""
    rng = random.Random(1)

    def outcome(function, text, region):
        try:
            return function(text, region)
        except IdentifierError as error:
            return error.code

    column, wanted = [], []
    for _ in range(1_000_000 if pytestconfig.getoption("--thorough") else 20_000):
        number = f"1{rng.randrange(10**10):010d}"
        text, region = rng.choice(((number, "CN"), ("+86" + number, ""), (number, "US")))
        found = outcome(phones.by_library, text, region)
        assert outcome(phones.phone, text, region) == found
        if region == "CN" and found.startswith("+861"):
            column.append(text)
            wanted.append(f"phone\x1f{found}".encode())
    # A column of nothing else is looked at as a whole.
    assert phones.MOBILES_CN.fullmatch("\n".join(column))
    assert canonical_each(Kind.PHONE, column) == wanted


@pytest.mark.parametrize("region", ["CN", "US", ""])
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.sampled_from(["13900000000", "+8613900000000", "１３９００００００００"])
        | st.from_regex(r"1\d{10}\n?", fullmatch=True)
        | st.text()
    )
)
def test_a_column_is_normalised_as_its_cells_are(region, texts):
    def canonical(kind, text):
        try:
            return normalise(kind, text, "", "", region).canonical
        except IdentifierError:
            return None

    assert canonical_each(Kind.PHONE, texts, region) == [canonical(Kind.PHONE, each) for each in texts]
    texts += [value for _, value, _, _ in VECTORS["good"] + VECTORS["bad"]]
    for kind in KINDS:
        assert canonical_each(kind, texts, region) == [canonical(kind, each) for each in texts]


@given(st.text("0123456789", min_size=5, max_size=18))
def test_luhn_digits_check_out_and_single_errors_do_not(digits):
    whole = digits + checksums.luhn_digit(digits)
    assert checksums.luhn(whole)
    for i, digit in enumerate(whole):
        wrong = whole[:i] + str((int(digit) + 1) % 10) + whole[i + 1 :]
        assert not checksums.luhn(wrong)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("13800138000", [Kind.PHONE]),
        ("+44 20 7946 0958", [Kind.PHONE]),
        ("6222021234567890128", [Kind.CARD]),
        ("11010519491231002X", [Kind.RESIDENT_ID]),
        ("9113100033607322XK", [Kind.USCC]),
        ("490154203237518", [Kind.CARD, Kind.ACCOUNT, Kind.DEVICE]),
        # Digits that pass Luhn by chance: outside the issuers' ranges they may as well be an account, or a phone.
        ("0041213119757", [Kind.CARD, Kind.ACCOUNT, Kind.PHONE]),
        ("1234567890123452", [Kind.CARD, Kind.ACCOUNT]),
        ("01062771234", [Kind.PHONE]),
        ("GB82 WEST 1234 5698 7654 32", [Kind.ACCOUNT]),
        ("aabb.ccdd.ee0f", [Kind.DEVICE]),
        ("098B716B8Aaf21512996dC57EB0615e2383E2f96", [Kind.DEVICE, Kind.CRYPTO]),
        ("shop.no-such-suffix", []),
        ("someone@qq.com", [Kind.EMAIL]),
        ("example.org", [Kind.DOMAIN]),
        ("8.8.8.8", [Kind.IP]),
        ("2001:4860:4860::8888", [Kind.IP]),
        ("550e8400-e29b-41d4-a716-446655440000", [Kind.DEVICE]),
        ("0x098B716B8Aaf21512996dC57EB0615e2383E2f96", [Kind.CRYPTO]),
        ("12QtD5BFwRsdNsAZY76UVE1xyCGNTojH9h", [Kind.CRYPTO]),
        ("hello", []),
        ("A1084010", []),
        ("", []),
        ("138****8000", []),
    ],
)
def test_recognising(value, found):
    assert recognise(value) == found


@given(st.text(max_size=40))
def test_what_is_recognised_can_be_normalised(text):
    for kind in recognise(text):
        normalise(kind, text)


def test_what_stands_beside_a_value_may_make_it_a_second_kind():
    assert recognise("6222021234567890128", institution="ICBKCNBJ") == [Kind.CARD, Kind.ACCOUNT]
    assert Kind.PASSPORT in recognise("A1084010", country="EG")


def test_the_form_names_version_and_data_and_changes_with_either(monkeypatch):
    assert forms.form()[:2] == VERSION.to_bytes(2, "big")
    assert forms.form_text(forms.form()) == f"{VERSION}:{forms.data_hash()[:4].hex()}"
    before = forms.data_hash()
    monkeypatch.setattr(forms.shared, "SHARED_DOMAINS", forms.shared.SHARED_DOMAINS | {"new.example"})
    forms.data_hash.cache_clear()
    try:
        assert forms.data_hash() != before
    finally:
        forms.data_hash.cache_clear()
