"""`True` and `False` in CSV are 1 and 0, as in Parquet: as cells, labels and weights, in any case."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.writers import write
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "1,0.5,True\n0,0.7,False\n",
        "y,a,is_red\n1,0.5,TRUE\n0,0.7,false\n",
        "True,0.5,true\nFalse,0.7,fAlSe\n",
        "true,0.5,1\nFALSE,0.7,0\n",
        '"True";0.5;"True"\n"False";0.7;"False"\n',
        "1,0.5, True\n0,0.7,False \n",
        "True,0.5,True\n\n\nFalse,0.7,False",
    ],
)
def test_truth_values_are_one_and_zero_as_parquet_has_them(tmp_path: Path, text: str) -> None:
    table = read_table(write(tmp_path, {"a.csv": text}))
    columns = {"y": pa.array([True, False]), "a": pa.array([0.5, 0.7]), "b": pa.array([True, False])}
    (tmp_path / "parquet").mkdir()
    pa.parquet.write_table(pa.table(columns), tmp_path / "parquet" / "a.parquet")
    parquet = read_table(tmp_path / "parquet")
    assert table.labels.tobytes() == parquet.labels.tobytes()
    assert table.features.tobytes() == parquet.features.tobytes()


def test_a_first_row_of_truth_values_alone_is_no_header(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.csv": "True,False,True\nFalse,True,True\n"}))
    assert table.labels.tolist() == [1, 0]
    assert table.features.tolist() == [[0, 1], [1, 1]]


def test_truth_values_far_down_beside_numbers_and_missing_values_are_read(tmp_path: Path) -> None:
    rows = [f"{i % 2},{i / 8},,{i}" for i in range(40_000)]
    rows[35_000] = "True,NA,True,7"
    rows[39_000] = "False,0.1,nan,FALSE"
    directory = write(tmp_path, {"a.csv": "\n".join(rows)})
    table = read_table(directory)
    assert table.labels[35_000] == 1
    assert np.isnan(table.features[35_000, 0])
    assert table.features[35_000, 1:].tolist() == [1, 7]
    assert table.features[39_000, [0, 2]].tolist() == [np.float32(0.1), 0]
    assert np.isnan(table.features[:35_000, 1]).all()
    blocks = list(read_blocks(directory, rows=777))
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), table.features)


def test_numbers_beside_truth_values_are_the_same_bits(tmp_path: Path) -> None:
    numbers = ["0.1", "16777217.000001", "1.00000017881393432617187499", "-5e-324", "3.4028235e38", "+.5", "5."]
    plain = read_table(write(tmp_path, {"a.csv": "".join(f"1,{number}\n" for number in numbers)}, "plain"))
    mixed = read_table(write(tmp_path, {"a.csv": "".join(f"1,{number}\n" for number in [*numbers, "True"])}, "mixed"))
    assert mixed.features[:-1].tobytes() == plain.features.tobytes()


def test_a_weight_may_be_a_truth_value_and_a_group_may_not(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,True,7\n0,False,8\n"})
    weights = read_table(directory, columns=ColumnSpec(weight=True)).weights
    assert weights is not None
    assert weights.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"a\.csv:1: column 2: 'True' is not an integer"):
        read_table(directory, columns=ColumnSpec(group="1"))


def test_what_is_no_truth_value_is_found_with_its_line(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,True\n0,False\n1,maybe\n"})
    with pytest.raises(DataError, match=r"train/a\.csv:3: column 2: 'maybe' is not a number"):
        read_table(directory)
    (directory / "a.csv").write_text("1,True\n0,inf\n")
    with pytest.raises(DataError, match=r"train/a\.csv:2: column 2: 'inf' is infinite"):
        read_table(directory)


def test_the_estimate_counts_truth_values_as_numbers(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,True,0.5\n" * 1000})
    assert estimate_bytes(directory) == 8000
