"""The directory of institutions: one account is one identifier, under whichever of its bank's codes it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import DecodeError, IdentifierError, MisuseError
from protocols.identifiers import Directory, form, normalise, recognise
from protocols.identifiers.institutions import hash_of

BANKS = {
    "ICBKCNBJ": ["102*", "102100099996", "中国工商银行", "工行", "Industrial and Commercial Bank of China"],
    "RCCBCN22": ["402391000001", "402391*", "某农村信用社"],
    "RCCXCN33": ["402*"],
}


@pytest.fixture
def directory():
    return Directory(BANKS)


@pytest.mark.parametrize(
    "written",
    [
        "ICBKCNBJ",
        "icbkcnbjsha",
        "102100099996",
        "1021 0009 9996",
        "102290013334",
        "中国工商银行",
        " 工行 ",
        "102",
    ],
)
def test_all_codes_of_a_bank_are_one_identifier(directory, written):
    found = normalise("account", "6222 0212-34", "", written, "CN", directory)
    assert found.canonical == b"account\x1fICBKCNBJ/6222021234"
    assert not found.note


def test_the_longest_prefix_counts(directory):
    assert directory.resolve("402391000055") == "RCCBCN22"
    assert directory.resolve("402392000055") == "RCCXCN33"


@pytest.mark.parametrize("unknown", ["10", "103100000026", "BKCHCNBJ", "不存在的银行", "102工行"])
def test_an_unknown_code_is_refused_with_a_hint(directory, unknown):
    with pytest.raises(IdentifierError, match="directory of 3 institutions") as caught:
        normalise("account", "6222021234", "", unknown, "CN", directory)
    assert caught.value.code == "institution"
    assert "6222021234" not in str(caught.value)


def test_a_near_code_is_shown(directory):
    with pytest.raises(IdentifierError, match=r"it has ICBKCNBJ"):
        directory.resolve("ICBKCN22")


def test_without_a_directory_a_code_is_noted(directory):
    assert "no directory" in normalise("account", "6222021234", "", "102100099996").note
    assert not normalise("account", "DE89370400440532013000").note


def test_a_value_is_recognised_with_a_name_that_only_the_directory_knows(directory):
    assert "account" in recognise("6222021234", "", "工行", "CN", directory)
    assert "account" not in recognise("6222021234", "", "工行")


def test_the_form_names_the_directory(directory):
    assert form(directory.hash) != form()
    assert form(directory.hash) != form(Directory({"ICBKCNBJ": ["102*"]}).hash)
    assert len(form(directory.hash)) == len(form())


@pytest.mark.parametrize(
    "banks",
    [
        {},
        {"A": []},
        {"ICBKCNBJ": ["102*"], "BKCHCNBJ": ["102*"]},
        {"ICBKCNBJ": ["工行"], "BKCHCNBJ": [" 工行"]},
        {"ICBKCNBJ": ["BKCHCNBJ"], "BKCHCNBJ": []},
        {"ICBKCNBJ": [], "ICBKCNBJSHA": []},
        {"ICBKCNBJ": ["1*"]},
        {"ICBKCNBJ": ["工行*"]},
        {"ICBKCNBJ": ["1*2"]},
        {"ICBKCNBJ": ["a\nb"]},
        {"ICBKCNBJ": ["a\tb"]},
    ],
)
def test_what_is_no_directory(banks):
    with pytest.raises(MisuseError):
        Directory(banks)


codes = st.text("ABCDEFGHIJ0123456789", min_size=2, max_size=12)


@given(st.dictionaries(codes, st.lists(codes, max_size=4), min_size=1, max_size=6))
def test_a_file_is_read_back_and_has_one_form(banks):
    try:
        directory = Directory(banks)
    except MisuseError:
        return  # two institutions share a code
    data = directory.encode()
    again = Directory.decode(data)
    assert again.encode() == data
    assert again.hash == directory.hash == hash_of(data)
    for main, others in banks.items():
        assert {again.resolve(other) for other in others} <= {again.resolve(main)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.replace(b"v1", b"v2"),
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: data.replace(b"ICBKCNBJ", b"icbkcnbj"),
        lambda data: data.replace(b"\t102*", b""),
        lambda data: b"\n".join(reversed(data.split(b"\n"))),
        lambda data: data + b"\xff",
        lambda data: b"",
    ],
)
def test_a_file_that_was_touched_is_refused(directory, spoil):
    data = spoil(directory.encode())
    try:
        assert Directory.decode(data).hash != directory.hash  # another directory, by its hash
    except DecodeError:
        pass
    assert hash_of(data) != directory.hash
