"""Files that are small and become large, spin, or name what they have no business with: bounded, with one line that says why."""

import os
import resource
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from federation import data
from federation.errors import DataError
from federation.files import guarded
from nodes.importers import table
from nodes.importers.table import FileError, Mapping

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
SHEET_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
FIXED = {
    "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{SHEET_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{SHEET_TYPE}.worksheet+xml"/>'
    f'<Override PartName="/xl/sharedStrings.xml" ContentType="{SHEET_TYPE}.sharedStrings+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{OFFICE}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="r1" Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
    f'<Relationship Id="r2" Type="{OFFICE}/sharedStrings" Target="sharedStrings.xml"/></Relationships>',
}
HEAD = '<row r="1"><c r="A1" t="inlineStr"><is><t>kind</t></is></c><c r="B1" t="inlineStr"><is><t>value</t></is></c></row>'
ROW = (
    '<row r="2"><c r="A2" t="inlineStr"><is><t>phone</t></is></c>'
    '<c r="B2" t="inlineStr"><is><t>13912345678</t></is></c></row>'
)


def sheet(*rows):
    return [f"<worksheet {MAIN}><sheetData>", *rows, "</sheetData></worksheet>"]


def book(path, parts, shared=(f"<sst {MAIN}/>",), prolog='<?xml version="1.0"?>'):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, text in FIXED.items():
            archive.writestr(name, text)
        for name, content in (("xl/worksheets/sheet1.xml", parts), ("xl/sharedStrings.xml", shared)):
            with archive.open(name, "w", force_zip64=True) as file:
                for part in (prolog, *content):
                    file.write(part.encode())
    return path


def many(unit, megabytes):
    block = unit * ((1 << 20) // len(unit))
    return [block] * megabytes


def read(path):
    return [row.fields["value"] for row in table.rows(path, Mapping())]


@pytest.fixture
def small(monkeypatch):
    """Bounds that a test reaches soon."""
    monkeypatch.setattr(guarded, "MEMORY", 400 << 20)
    monkeypatch.setattr(guarded, "SECONDS", 3)


def test_an_honest_workbook_is_read(tmp_path, small):
    assert read(book(tmp_path / "good.xlsx", sheet(HEAD, ROW))) == ["13912345678"]


def bombs():
    yield (
        "shared strings",
        sheet(HEAD, ROW),
        [f"<sst {MAIN}>", *many("<si><t>aaaaaaaa</t></si>", 100), "</sst>"],
        None,
    )
    cell = many("a" * 100, 150)
    yield (
        "one cell",
        sheet(HEAD, '<row r="2"><c r="A2" t="inlineStr"><is><t>', *cell, "</t></is></c></row>"),
        None,
        None,
    )
    yield "empty rows", sheet(HEAD, *many("<row/>", 60)), None, None
    far = '<row r="1000000000"><c r="A1000000000"><v>1</v></c></row>'
    yield "a far row", sheet(HEAD, far), None, None
    yield "a far first row", sheet(far), None, None
    entities = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 32}">' for i in range(6))
    laughs = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "{"a" * 32}">{entities}]>'
    named = '<row r="2"><c r="A2" t="inlineStr"><is><t>&g;</t></is></c></row>'
    yield "entities", sheet(HEAD, named), None, laughs


@pytest.mark.parametrize(
    ("parts", "shared", "prolog"), [each[1:] for each in bombs()], ids=[each[0] for each in bombs()]
)
def test_a_workbook_that_unpacks_to_gigabytes_or_spins_is_refused(tmp_path, small, parts, shared, prolog):
    path = book(
        tmp_path / "bomb.xlsx",
        parts,
        shared or (f"<sst {MAIN}/>",),
        prolog or '<?xml version="1.0"?>',
    )
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(FileError, match=r"bomb\.xlsx: "):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB, in this process
    assert time.monotonic() - began < 60
    with pytest.raises(DataError, match=r"bomb\.xlsx: "):
        data.read_table(path)


def test_a_workbook_that_says_it_unpacks_to_more_than_is_allowed_is_not_unpacked(tmp_path):
    path = book(tmp_path / "large.xlsx", sheet(HEAD, ROW))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/media/picture.bin", b"")
        archive.filelist[-1].file_size = 3_400_000_000
    with pytest.raises(FileError, match=r"unpacks to 3\.4 GB"):
        read(path)


def test_an_external_entity_is_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("13900001111")
    prolog = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]>'
    named = '<row r="2"><c r="A2" t="inlineStr"><is><t>phone</t></is></c><c r="B2" t="inlineStr"><is><t>&e;</t></is></c></row>'
    path = book(tmp_path / "outside.xlsx", sheet(HEAD, named), prolog=prolog)
    try:
        assert "13900001111" not in read(path)
    except FileError as error:
        assert "13900001111" not in str(error)


def test_what_reads_a_workbook_has_none_of_this_processs_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("LIANFANG_TOKEN", "a token")
    seen = {}
    popen = guarded.subprocess.Popen

    def watched(*args, env, **kwargs):
        seen.update(env)
        return popen(*args, env=env, **kwargs)

    monkeypatch.setattr(guarded.subprocess, "Popen", watched)
    assert read(book(tmp_path / "good.xlsx", sheet(HEAD, ROW))) == ["13912345678"]
    assert "PYTHONPATH" in seen
    assert not any(name.startswith("LIANFANG") for name in seen)


def test_whoever_stops_reading_leaves_no_process(tmp_path):
    rows = [
        ROW.replace('"2"', f'"{i}"').replace("A2", f"A{i}").replace("B2", f"B{i}") for i in range(2, 40_000)
    ]
    path = book(tmp_path / "long.xlsx", sheet(HEAD, *rows))
    reading = table.rows(path, Mapping())
    next(reading)
    reading.close()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                assert str(path).encode() not in file.read()
        except OSError:
            continue


def test_a_parquet_file_of_very_many_equal_rows_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "ROWS", 100_000)
    path = tmp_path / "many.parquet"
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int8()), pa.array(["13912345678"]))
    pyarrow.parquet.write_table(pa.table({"value": value}), path)
    assert path.stat().st_size < 5_000
    with pytest.raises(FileError, match="more than 100,000 rows"):
        read(path)
    with pytest.raises(DataError, match="300,000 rows; at most 100,000"):
        data.read_table(path)


def test_a_line_without_an_end_is_not_put_together(tmp_path):
    path = tmp_path / "line.csv"
    path.write_text("kind,value\nphone,13912345678\n" + "a," * 600_000 + "\n")
    with pytest.raises(FileError, match=r"line 3: longer than 1,000,000 characters"):
        read(path)
    path.write_text("a," * 600_000)
    with pytest.raises(DataError, match="longer than"):
        data.read_table(path)
