"""Bad rows get an error that names file, row and column."""

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
            r"column b holds string such as 'red' \(2 different values\), not numbers",
        ),
        ("a,b,y\n1,2\n", r"rows.csv: "),
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
