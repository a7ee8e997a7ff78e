"""Reading people's files, and rubbish."""

import csv
import re

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes import limits
from nodes.importers import csv_file, ofac, table, xlsx_file
from nodes.importers.table import BadCell, FileError, Mapping, ReadRow
from protocols.identifiers import normalise


def read(path, mapping=None):
    return list(table.rows(path, mapping or Mapping()))


def write(tmp_path, data, name="list.csv"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path, "号码,类型,风险类别\n13800138000,手机号,涉案账户\n".encode(encoding))
    assert read(path) == [ReadRow(2, {"value": "13800138000", "kind": "手机号", "category": "涉案账户"})]


def test_columns_in_any_order_unknown_ones_ignored(tmp_path):
    path = write(tmp_path, "Note;Category;VALUE;Kind\nx;gambling;a@b.example;E-mail\n")
    assert read(path) == [ReadRow(2, {"value": "a@b.example", "kind": "E-mail", "category": "gambling"})]


def test_a_column_named_like_a_kind_holds_values_of_it(tmp_path):
    assert read(write(tmp_path, "姓名,手机号\n张三,13800138000\n")) == [
        ReadRow(2, {"kind": "phone", "value": "13800138000"})
    ]


def test_a_mapping_names_unknown_columns_and_constants(tmp_path):
    path = write(tmp_path, "A,B\n13800138000,x\n")
    with pytest.raises(FileError, match="--mapping"):
        read(path)
    mapping = write(tmp_path, '[columns]\nvalue = "A"\n[constants]\nkind = "phone"\nseverity = 4\n', "m.toml")
    assert read(path, Mapping.load(mapping)) == [
        ReadRow(2, {"kind": "phone", "severity": "4", "value": "13800138000"})
    ]
    for bad in ('[columns]\nphone = "A"\n', "[other]\n", "not toml ["):
        with pytest.raises(FileError):
            Mapping.load(write(tmp_path, bad, "bad.toml"))


def test_broken_rows_are_numbered(tmp_path):
    rows = read(write(tmp_path, "kind,value\nphone,1\nphone\nphone,2,3\nphone,4\n"))
    assert [type(row) for row in rows] == [ReadRow, BadCell, BadCell, ReadRow]
    assert [(row.number, row.reason) for row in rows if isinstance(row, BadCell)] == [
        (3, "1 cells, the header has 2"),
        (4, "3 cells, the header has 2"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"13800138000\n13900139000\n", "header row"),
        (b'kind,value\nphone,"unclosed\n', "not CSV"),
        (b"kind,value\nphone,\x81\n", "neither UTF-8 nor GB18030"),
        (",".join(f"c{i}" for i in range(10_000)).encode() + b"\n", "10000 columns"),
        (b"kind,value,value\nphone,1,2\n", "two columns"),
        (b"PK\x03\x04rubbish\xff\xfe", "neither|header"),
    ],
)
def test_files_that_are_none(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(FileError, match=message) as caught:
        read(path)
    assert "13800138000" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_one_broken_record_is_one_bad_row(tmp_path):
    rows = read(write(tmp_path, 'kind,value\n,,\n\nphone,"1"2\nphone,' + "9" * 5_000 + "\nphone,3\n"))
    assert [(row.number, isinstance(row, BadCell)) for row in rows] == [(4, True), (5, True), (6, False)]


def test_empty_cells_take_the_constant(tmp_path):
    path = write(tmp_path, "kind,value\n,1\nphone,2\n")
    rows = list(table.rows(path, Mapping(constants={"kind": "card"})))
    assert [row.fields["kind"] for row in rows] == ["card", "phone"]


def by_column(path, mapping, fields):
    """What `columns` gives, as `rows` does."""
    found = []
    for numbers, texts, bad in table.columns(path, mapping, fields):
        for number, *cells in zip(numbers, *texts, strict=True):
            found.append((number, *cells))
        found += bad
    return sorted(found, key=lambda each: each.number if isinstance(each, BadCell) else each[0])


def by_row(path, mapping, fields):
    return [
        each if isinstance(each, BadCell) else (each.number, *(each.fields.get(name, "") for name in fields))
        for each in table.rows(path, mapping)
    ]


LINES = st.lists(
    st.sampled_from(
        [
            "a,b,c",
            "a,,c",
            ",b,",
            ",,",
            "",
            " ",
            " , , ",
            "a,b",
            "a,b,c,d",
            '"a\nb",b,c',
            '"a"x,b,c',
            "数,b,c",
            "x" * 4_001,
        ]
    )
    | st.text('ab, "', max_size=8)
)


@settings(max_examples=60, deadline=None)
@given(
    LINES,
    st.sampled_from([1, 3, 1_024]),
    st.sampled_from(["", "\n", ",,\n", '"x"y\n']),
    st.sampled_from(["", ",four", f",{table.REASON_COLUMN}"]),
)
def test_columns_are_those_of_the_rows(tmp_path_factory, lines, at_once, before, more):
    path = tmp_path_factory.mktemp("columns") / "list.csv"
    path.write_text(before + f"one,two,three{more}\n" + "".join(line + "\n" for line in lines), "utf-8")
    mapping = Mapping(columns={"three": "amount", "one": "value"}, needed=("value", "amount"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_file, "_ROWS", at_once)
        try:
            wanted = by_row(path, mapping, ["value", "amount"])
        except FileError as error:
            with pytest.raises(FileError, match=re.escape(str(error))):
                by_column(path, mapping, ["value", "amount"])
        else:
            assert by_column(path, mapping, ["value", "amount"]) == wanted


def test_columns_of_a_workbook(tmp_path):
    path = workbook(tmp_path, ("one", "two"), ("a", "b"), (None, None), ("c", 10**16), (None, "d"))
    mapping = Mapping(columns={"two": "amount", "one": "value"}, needed=("value", "amount"))
    found = by_column(path, mapping, ["amount", "value"])
    assert found == by_row(path, mapping, ["amount", "value"])
    assert found[0] == (2, "b", "a")
    assert isinstance(found[1], BadCell)
    assert found[2] == (5, "d", "")


def test_blank_rows_above_a_workbooks_header(tmp_path):
    rows = read(workbook(tmp_path, (None, None), ("kind", "value"), ("phone", "1")))
    assert rows == [ReadRow(3, {"kind": "phone", "value": "1"})]


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(FileError, match="old .xls"):
        read(write(tmp_path, b"x", "old.xls"))
    with pytest.raises(FileError, match="not an XLSX"):
        read(write(tmp_path, b"x", "bad.xlsx"))


def workbook(tmp_path, *rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    path = tmp_path / "list.xlsx"
    book.save(path)
    return path


def test_a_workbook_with_floats_where_card_numbers_were(tmp_path):
    path = workbook(
        tmp_path,
        ("类型", "号码", "严重程度"),
        ("银行卡", "6222021234567890128", 4),
        ("银行卡", 6222021234567890128, 4),
        ("银行卡", 6.22202123456789e18, 4),
        ("手机号", 13800138000, 4.0),
        ("手机号", 13800138000.5, 4),
        (None, None, None),
        ("手机号", "13900139000", None),
    )
    rows = read(path)
    good = [row for row in rows if isinstance(row, ReadRow)]
    bad = [row for row in rows if isinstance(row, BadCell)]
    assert [row.fields["value"] for row in good] == ["6222021234567890128", "13800138000", "13900139000"]
    assert [row.number for row in bad] == [3, 4, 6]
    assert all(row.column == "value" and "re-export" in row.reason for row in bad)


def test_dates_of_a_workbook(tmp_path):
    import datetime as dt

    rows = read(
        workbook(
            tmp_path,
            ("kind", "value", "date"),
            ("phone", "1", dt.datetime(2026, 1, 2)),
            ("phone", "2", dt.date(2026, 1, 3)),
        )
    )
    assert [row.fields["observed_on"] for row in rows] == ["2026-01-02", "2026-01-03"]


def test_bad_rows_are_written_mended_and_read_again(tmp_path):
    path = write(tmp_path, 'kind,value,note\nphone,13800138000,a\nphone,"1,38",b\nphone,x\n')
    bad = tmp_path / "bad.csv"
    csv_file.write_bad(path, bad, {3: "not a phone number", 4: "2 cells"})
    assert bad.stat().st_mode & 0o777 == 0o600
    with bad.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "value", "note", table.REASON_COLUMN]
    assert rows[1] == ["phone", "1,38", "b", "not a phone number"]
    assert [row.fields["value"] for row in read(bad)] == ["1,38", "x"]
    again = tmp_path / "again.csv"
    csv_file.write_bad(bad, again, {2: "still not"})
    assert list(csv.reader(again.open(encoding="utf-8-sig", newline="")))[0] == rows[0]


def test_bad_rows_of_a_workbook_become_csv(tmp_path):
    path = workbook(tmp_path, ("kind", "value"), ("phone", 13800138000), ("card", 6222021234567890128))
    xlsx_file.write_bad(path, tmp_path / "bad.csv", {3: "past 15 digits"})
    assert "past 15 digits" in (tmp_path / "bad.csv").read_text("utf-8-sig")


def test_a_workbook_with_too_many_columns(tmp_path):
    with pytest.raises(FileError, match="columns"):
        read(workbook(tmp_path, [f"c{i}" for i in range(limits.IMPORT_COLUMNS + 5)]))


# -- OFAC --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remark", "found"),
    [
        ("Passport 1084010 (Egypt)", ("passport", "1084010", "EG")),
        ("alt. Passport A 1084010 (Egypt) issued 1999 expires 2004", ("passport", "A 1084010", "EG")),
        ("Diplomatic Passport 008827 (Iran) issued 1999", ("passport", "008827", "IR")),
        ("Passport 19820215", ("passport", "19820215", "")),
        ("National ID No. 216040 (Yemen)", ("foreign-id", "216040", "YE")),
        ("Cedula No. 6068015 (Colombia)", ("foreign-id", "6068015", "CO")),
        ("C.U.R.P. AIMM67125HCHRRG06 (Mexico) issued 1968", ("foreign-id", "AIMM67125HCHRRG06", "MX")),
        ("Citizen's Card Number 11010519491231002X (China)", ("resident-id", "11010519491231002X", "")),
        ("Tax ID No. 100036386 (Serbia)", ("tax-id", "100036386", "RS")),
        ("NIT # 890115794-3 (Colombia)", ("tax-id", "890115794-3", "CO")),
        ("Italian Fiscal Code DAOMMD74T11Z352Z", ("tax-id", "DAOMMD74T11Z352Z", "IT")),
        (
            "Unified Social Credit Code (USCC) 9113100033607322XK (China)",
            ("uscc", "9113100033607322XK", "CN"),
        ),
        ("Passport N007 (Region: Gaza) (Palestinian)", ("passport", "N007", "PS")),
        ("Passport X3469 (The Gambia)", ("passport", "X3469", "GM")),
        ("Passport X3466 (Yugoslavia)", ("passport", "X3466", "")),
        ("Identification Number A123456(7) (Hong Kong)", ("foreign-id", "A123456(7)", "HK")),
        ("Hong Kong ID A123456(7) (Hong Kong)", ("foreign-id", "A123456(7)", "HK")),
        ("Website evil-shop.com (archived)", ("domain", "evil-shop.com", "")),
        ("Phone Number (971) 4 3513 3255", ("phone", "+971435133255", "")),
        ("National ID No. 123456 (Korea, North)", ("foreign-id", "123456", "KP")),
        ("Email Address dam.d.free@net.sy", ("email", "dam.d.free@net.sy", "")),
        ("Website http://waatasemu.org.ly/page?x=1", ("domain", "waatasemu.org.ly", "")),
        ("Website:  www.alnakshabandia-army.org", ("domain", "www.alnakshabandia-army.org", "")),
        ("Telephone: 0097282851500", ("phone", "+97282851500", "")),
        ("Phone Number 982188526300", ("phone", "+982188526300", "")),
        (
            "Digital Currency Address - XBT 12QtD5BFwRsdNsAZY76UVE1xyCGNTojH9h",
            ("crypto", "12QtD5BFwRsdNsAZY76UVE1xyCGNTojH9h", ""),
        ),
    ],
)
def test_remarks(remark, found):
    assert ofac.parse_remark(remark) == [found]


@pytest.mark.parametrize(
    "remark",
    [
        "DOB 10 Dec 1948",
        "Linked To: HIZBALLAH",
        "Vessel Registration Identification IMO 7406784",
        "Identification Number IMO 5342883",
        "Fax: 0097282858208",
        "Aircraft Tail Number N200VR",
        "Registration Number 02696754 (United Kingdom)",
        "Gender Male",
        "-0-",
        "",
    ],
)
def test_remarks_that_hold_no_identifier_of_ours(remark):
    assert ofac.parse_remark(remark) == []


def test_the_real_lists_are_read(shared):
    """Counted here by a regular expression that knows nothing of the importer."""
    import re

    for name in ("ofac_sdn_2022-01.csv", "ofac_sdn_2024-05-03.csv"):
        path = shared / "data" / name
        text = path.read_text("utf-8")
        rows = [row for row in ofac.rows(path) if isinstance(row, ReadRow)]
        crypto = {row.fields["value"] for row in rows if row.fields["kind"] == "crypto"}
        # A column that is full may end in the middle of a value: its last part is reported instead.
        full = [
            cells[11]
            for cells in csv.reader(text.splitlines())
            if len(cells) == 12 and len(cells[11]) >= 1000
        ]
        cut = " ".join(each.rpartition(";")[2] for each in full)
        pattern = r"Digital Currency Address - [A-Z]+ ([A-Za-z0-9]+)"
        assert crypto == set(re.findall(pattern, text)) - set(re.findall(pattern, cut))
        assert sum(isinstance(row, table.BadCell) for row in ofac.rows(path)) >= len(full) > 0
        mails = {row.fields["value"] for row in rows if row.fields["kind"] == "email"}
        assert mails == {
            each.rstrip(".")
            for each in re.findall(r"(?:Email|EMAIL)(?: Address)?:? ([^\s;\"]+@[^\s;\"]+)", text)
        }
        passports = [
            row for row in rows if row.fields["kind"] == "passport" and row.fields["country"] == "IR"
        ]
        assert len(passports) == len(re.findall(r"Passport(?: Booklet)?:? [^;()]* \(Iran\)", text))
        for row in rows:
            if row.fields["kind"] in ("crypto", "email") and len(row.fields["value"]) > 20:
                normalise(row.fields["kind"], row.fields["value"])


def test_several_values_in_one_part_are_all_read():
    values = [each.value for each in ofac.parse_remark("Email Address a@evil-shop.com, b@evil-shop.com")]
    assert values == ["a@evil-shop.com", "b@evil-shop.com"]
    phones = ofac.parse_remark("Phone Number +86-13800138002 / +86-13800138003")
    assert [each.value for each in phones] == ["+8613800138002", "+8613800138003"]


def sdn(remarks):
    return f'7,"X","individual","IRAN",{"-0- ," * 7}"{remarks}"\n'.encode()


def test_the_last_part_of_a_full_column_is_reported_and_read_with_the_overflow_file(tmp_path):
    """`evil-shop.com` stood in the list for `evil-shop.com.cn`."""
    start = "Email Address a@evil-shop.com; "
    remarks = start + "a.k.a. " + "Z" * (1000 - len(start) - 30) + "; Website evil-shop.com"
    assert len(remarks) == 1000
    path = write(tmp_path, sdn(remarks))
    *good, bad = list(ofac.rows(path))
    assert [row.fields["value"] for row in good] == ["a@evil-shop.com"]
    assert bad.place == "record 1"
    assert "cut" in bad.reason
    overflow = tmp_path / "SDN_COMMENTS.CSV"
    overflow.write_bytes(b'7,".cn; Passport A1084010 (Iran)."\n')
    values = [row.fields["value"] for row in ofac.rows(path, overflow)]
    assert values == ["a@evil-shop.com", "evil-shop.com.cn", "A1084010"]
    overflow.write_bytes(b"no number,x\n")
    with pytest.raises(FileError, match="line 1"):
        list(ofac.rows(path, overflow))


def test_another_format_is_not_taken_for_the_sdn_list(tmp_path):
    for data in ("kind,value\nphone,1\n", "", "1,2,3\n"):
        with pytest.raises(FileError):
            list(ofac.rows(write(tmp_path, data)))
