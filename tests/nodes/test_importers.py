"""Reading people's files, and rubbish."""

import csv
import datetime as dt
import re
import zipfile

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.files import Reading
from nodes import limits
from nodes.importers import csv_file, ofac, table
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
    table.write_bad(path, bad, {3: "not a phone number", 4: "2 cells"})
    assert bad.stat().st_mode & 0o777 == 0o600
    with bad.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "value", "note", table.REASON_COLUMN]
    assert rows[1] == ["phone", "1,38", "b", "not a phone number"]
    assert [row.fields["value"] for row in read(bad)] == ["1,38", "x"]
    again = tmp_path / "again.csv"
    table.write_bad(bad, again, {2: "still not"})
    assert list(csv.reader(again.open(encoding="utf-8-sig", newline="")))[0] == rows[0]


def test_bad_rows_of_a_workbook_become_csv(tmp_path):
    path = workbook(tmp_path, ("kind", "value"), ("phone", 13800138000), ("card", 6222021234567890128))
    table.write_bad(path, tmp_path / "bad.csv", {3: "past 15 digits"})
    assert "6.22202123456789" in (tmp_path / "bad.csv").read_text("utf-8-sig")
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


# -- files that lie, or that programs have changed ------------------------------------------------------------------


def altered(path, change, part="xl/worksheets/sheet1.xml"):
    """The workbook with one part of it changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


TEN = [("kind", "value", "category"), *(("phone", f"1390000000{i}", "mule-account") for i in range(10))]


@pytest.mark.parametrize("said", ["A1", "A1:C4", "A1:B11", "A1:XFD1048576", None])
def test_a_sheets_dimension_is_not_believed(tmp_path, said):
    """Three of ten rows were read, and `--replace` withdrew the other seven."""
    new = b"" if said is None else f'<dimension ref="{said}"/>'.encode()
    path = altered(workbook(tmp_path, *TEN), lambda xml: re.sub(rb"<dimension [^>]*/>", new, xml))
    rows = read(path)
    assert [row.fields["value"] for row in rows] == [f"1390000000{i}" for i in range(10)]
    assert all(row.fields["category"] == "mule-account" for row in rows)


def second_sheet(tmp_path, hidden=()):
    book = openpyxl.Workbook()
    for sheet, phone in ((book.active, "13900000001"), (book.create_sheet("二"), "13900000002")):
        sheet.append(("kind", "value"))
        sheet.append(("phone", phone))
    for name in hidden:
        book[name].sheet_state = "hidden"
    path = tmp_path / "two.xlsx"
    book.save(path)
    return path


@pytest.mark.parametrize("hidden", [(), ("Sheet",), ("二",)])
def test_a_sheet_is_never_chosen_in_silence(tmp_path, hidden):
    path = second_sheet(tmp_path, hidden)
    with pytest.raises(FileError, match=r"Sheet.*二.*--sheet"):
        read(path)
    for name, phone in (("Sheet", "13900000001"), ("二", "13900000002")):
        rows = read(path, Mapping(reading=Reading(sheet=name)))
        assert [row.fields["value"] for row in rows] == [phone]
    with pytest.raises(FileError, match=r"no sheet '三'.*二"):
        read(path, Mapping(reading=Reading(sheet="三")))


def test_data_behind_empty_sheets_is_found_and_a_hidden_sheet_has_to_be_named(tmp_path):
    book = openpyxl.Workbook()
    book.create_sheet("data").append(("kind", "value"))
    book["data"].append(("phone", "13900000001"))
    book.save(tmp_path / "second.xlsx")
    assert len(read(tmp_path / "second.xlsx")) == 1
    book["data"].sheet_state = "hidden"
    book.save(tmp_path / "hidden.xlsx")
    with pytest.raises(FileError, match="hidden.*--sheet"):
        read(tmp_path / "hidden.xlsx")


def formatted(tmp_path, value, form, column="value"):
    book = openpyxl.Workbook()
    book.active.append(("kind", column, "institution"))
    book.active.append(("account", value, "ICBKCNBJ"))
    book.active["B2"].number_format = form
    path = tmp_path / "formatted.xlsx"
    book.save(path)
    return read(path)[0]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (123456, "00000000", "00123456"),
        (123456, "General", "123456"),
        (123456, "#,##0", "123456"),
        (123456, "0", "123456"),
        (123456, "0.00", "123456"),
    ],
)
def test_numbers_are_taken_as_the_sheet_shows_them(tmp_path, value, form, text):
    assert formatted(tmp_path, value, form).fields["value"] == text


@pytest.mark.parametrize("form", ['"A"000000', "0000-0000", "000 000 000", "0%", "0.00E+00", "000000.00"])
def test_numbers_shown_in_a_mask_are_refused(tmp_path, form):
    bad = formatted(tmp_path, 123456, form)
    assert isinstance(bad, BadCell)
    assert "re-export" in bad.reason


def test_a_date_where_an_account_number_was_is_refused(tmp_path):
    bad = formatted(tmp_path, dt.date(2026, 1, 2), "yyyy-mm-dd")
    assert isinstance(bad, BadCell)
    assert "a date" in bad.reason


def test_dates_with_times_are_iso_dates(tmp_path):
    path = workbook(
        tmp_path, ("kind", "value", "observed on"), ("phone", "1", dt.datetime(2026, 8, 1, 13, 30))
    )
    assert read(path)[0].fields["observed_on"] == "2026-08-01"


def test_damaged_workbooks_end_in_one_line_that_names_them(tmp_path):
    whole = workbook(tmp_path, *TEN).read_bytes()
    for name, content in (("cut", whole[:-200]), ("zip", b"PK\x03\x04" + whole[50:])):
        path = write(tmp_path, content, f"{name}.xlsx")
        with pytest.raises(FileError, match=re.escape(str(path))):
            read(path)
    changes = {
        "empty fill": ("xl/styles.xml", lambda xml: re.sub(rb"<fill>.*?</fill>", b"<fill/>", xml)),
        "cut sheet": ("xl/worksheets/sheet1.xml", lambda xml: xml[: len(xml) // 2]),
        "strict": (
            "xl/workbook.xml",
            lambda xml: xml.replace(
                b"http://schemas.openxmlformats.org/spreadsheetml/2006/main",
                b"http://purl.oclc.org/ooxml/spreadsheetml/main",
            ),
        ),
        "no result": (
            "xl/worksheets/sheet1.xml",
            lambda xml: re.sub(rb"(?s)<c r=\"B2\".*?</c>", b'<c r="B2"><f>1+1</f><v/></c>', xml, count=1),
        ),
    }
    for part, change in changes.values():
        path = altered(workbook(tmp_path, *TEN), change, part)
        with pytest.raises(FileError, match=re.escape(str(path))) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_value_beyond_the_headers_columns_is_reported(tmp_path):
    (bad,) = read(workbook(tmp_path, ("kind", "value"), ("phone", "1", "x")))
    assert isinstance(bad, BadCell)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\nkind;value\r\nphone;13900000001\r\n",
        b"\n\nkind\tvalue\nphone\t13900000001\n",
        b"sep=;\r\nkind;value\r\nphone;13900000001\r\n",
        b"sep=,\r\nkind,value\r\nphone,13900000001\r\n",
        b"SEP=|\nkind|value\nphone|13900000001\n",
        b"\xef\xbb\xbf\xef\xbb\xbfkind,value\nphone,13900000001\n",
        b'\xef\xbb\xbf\xef\xbb\xbf"kind","value"\n"phone","13900000001"\n',
        "kind\u00a0,value\u200b\nphone,13900000001\n".encode(),
        b'kind,value\nphone,="13900000001"\n',
        b'kind,value\nphone,"=""13900000001"""\n',
    ],
)
def test_what_programs_put_around_a_csv(tmp_path, data):
    (row,) = read(write(tmp_path, data))
    assert row.fields == {"kind": "phone", "value": "13900000001"}


@pytest.mark.parametrize("mark", ["'", "`", "\t", '="'])
def test_marks_that_keep_digits_as_text_are_no_part_of_them(mark):
    value = f"{mark}6222021234567890128" + ('"' if mark == '="' else "")
    assert normalise("card", value).value == "6222021234567890128"


NAMES = {
    "big5": "王小明",
    "shift_jis": "山田太郎",
    "euc_kr": "김철수",
    "euc_jp": "山田太郎",
    "cp1251": "Иванов Иван",
    "koi8_r": "Иванов Иван",
    "cp1252": "Müller Jörg",
}


@pytest.mark.parametrize("encoding", NAMES)
def test_other_encodings_have_to_be_named(tmp_path, encoding):
    path = write(tmp_path, f"kind,value\nname-birth,{NAMES[encoding]} 1980-01-01\n".encode(encoding))
    with pytest.raises(FileError, match="line 2.*--encoding"):
        read(path)
    (row,) = read(path, Mapping(reading=Reading(encoding=encoding)))
    assert row.fields["value"] == f"{NAMES[encoding]} 1980-01-01"


@pytest.mark.parametrize("names", [["王小明"], ["李四", "王五"], ["张伟", "欧阳娜娜", "陈奕迅", "赵丽颖"]])
def test_gb18030_is_taken_by_itself_also_below_an_ascii_header(tmp_path, names):
    text = "kind,value\n" + "".join(f"name-birth,{name} 1980-01-01\n" for name in names)
    rows = read(write(tmp_path, text.encode("gb18030")))
    assert [row.fields["value"] for row in rows] == [f"{name} 1980-01-01" for name in names]


def test_utf8_with_one_bad_byte_is_refused_with_its_line(tmp_path):
    """It was read as GB18030, and all names became others."""
    data = "kind,value,reference\nname-birth,李四 1981-01-01,\nname-birth,王五 1982-01-01,\n".encode()
    with pytest.raises(FileError, match="line 4 is not UTF-8"):
        read(write(tmp_path, data + b"phone,13900000001,x\xa0\xa0\n"))


def test_the_programs_own_words_are_known_as_headers_and_unknown_ones_are_told(tmp_path):
    mapping = Mapping()
    path = write(tmp_path, "种类,值,程度,有效至,备注,姓名\nphone,13900000001,4,2027-01-01,x,y\n")
    (row,) = read(path, mapping)
    assert row.fields["severity"] == "4"
    assert row.fields["valid_until"] == "2027-01-01"
    assert mapping.unread == ["备注", "姓名"]
    (row,) = read(path, Mapping(keep_further=True))
    assert row.further == {"备注": "x", "姓名": "y"}


def test_parquet_is_read_as_csv_is(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table_ = pa.table(
        {"类型": ["phone", "phone"], "号码": ["13900000001", "013800138000"], "note": [1, None]}
    )
    pyarrow.parquet.write_table(table_, tmp_path / "list.parquet")
    rows = read(tmp_path / "list.parquet")
    assert rows[1] == ReadRow(3, {"kind": "phone", "value": "013800138000"})
