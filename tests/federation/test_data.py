"""Bad rows get an error that names file, row and column."""

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from federation import data
from federation.errors import DataError


def write(tmp_path, text, name="rows.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_csv_and_parquet_give_the_same_block(tmp_path):
    path = write(tmp_path, "id,a,y,b\n1,0.5,1,\n2,,0,7\n")
    block = data.load(path, ["a", "b"], "y", "bank")
    assert block.x.tolist()[0][0] == 0.5
    assert str(block.x.tolist()) == "[[0.5, nan], [nan, 7.0]]"
    assert block.y.tolist() == [1, 0]
    parquet = tmp_path / "rows.parquet"
    pa.parquet.write_table(data.read_table(path), parquet)
    assert str(data.load(parquet, ["a", "b"], "y", "bank").x) == str(block.x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,1\n", r"no column b; the file has a, y"),
        ("a,b,y\n", r"no rows"),
        ("a,b,y\n1,2,1\n1,2,2\n", r"row 3: column y is 2; a label is 0 or 1 \(1 rows differ\)"),
        ("a,b,y\n1,2,1\n1,2,\n", r"row 3: column y is nan"),
        ("a,b,y\n1,inf,1\n", r"row 2: column b is inf"),
        ("a,b,y\n1,1e300,1\n", r"row 2: column b is 1e\+300, beyond"),
        (
            "a,b,y\n1,red,1\n1,blue,0\n",
            r"row 2: column b is 'red', not a number \(2 different values\)",
        ),
        ("a,b,y\n1,12%,1\n", r"row 2: column b is '12%', not a number"),
        ('a,b,y\n1,"1,234.5",1\n', r"row 2: column b is '1,234.5', not a number"),
        ("a,b,y\n\n1,2,1\n1,None,1\n", r"row 4: column b is 'None', not a number"),
        ("a,b,y\n1,2,1\n1,2\n", r"row 3: 2 cells, the header has 3"),
        ("a,b,y\n1,2,1\n1,2,3,1\n", r"row 3: 4 cells, the header has 3"),
        ("a,b,y\n" + "".join(f"{i + 1},{i % 7},{i % 2}\n" for i in range(40)), "column a numbers the rows"),
        ("", r"rows.csv: "),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        data.load(write(tmp_path, text), ["a", "b"], "y", "bank")
    assert "rows.csv" in str(caught.value)


def test_a_category_of_ten_thousand_levels_is_refused_with_what_to_do(tmp_path):
    text = "a,b,y\n" + "".join(f"1,merchant-{i},{i % 2}\n" for i in range(10_000))
    with pytest.raises(DataError, match=r"column b .* \(10,000 different values\).*encode it"):
        data.load(write(tmp_path, text), ["a", "b"], "y", "bank")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"missing\.csv"):
        data.load(tmp_path / "missing.csv", ["a"], "y", "bank")


def test_text_is_text_in_csv_and_workbooks_and_what_aligns_also_trains(tmp_path):
    """Twenty digits became 8.98e+19, and 0102 became 102."""
    rows = [("id", "a", "y"), ("89860012345678900001", "-0.5", "1"), ("0102", "", "0")]
    path = write(tmp_path, "".join(",".join(row) + "\n" for row in rows))
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "rows.xlsx")
    for each in (path, tmp_path / "rows.xlsx"):
        table = data.read_table(each)
        assert table.column("id").to_pylist() == ["89860012345678900001", "0102"]
        block = data.to_block(each, table, ["a"], "y", "bank")
        assert block.x[0, 0] == -0.5
        assert np.isnan(block.x[1, 0])
        assert block.y.tolist() == [1, 0]


def test_a_separator_line_semicolons_and_gb18030_are_read_in_training_data_too(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("sep=;\r\n\u91d1\u989d;y\r\n1.5;1\r\n2;0\r\n".encode("gb18030"))
    assert data.load(path, ["\u91d1\u989d"], "y", "bank").x.ravel().tolist() == [1.5, 2.0]
