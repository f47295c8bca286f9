"""Parquet: numbers of any kind, by name or position, row group by row group; anything else is refused by its name."""

import datetime as dt
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.writers import write
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError


def put(directory: Path, name: str, columns: dict[str, pa.Array], *, row_group_size: int | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), directory / name, row_group_size=row_group_size)
    return directory


def test_numbers_of_every_kind_are_read(tmp_path: Path) -> None:
    columns = {
        "y": pa.array([1, 0], pa.int8()),
        "half": pa.array([1.5, None], pa.float16()),
        "whole": pa.array([2**40, 3], pa.uint64()),
        "yes": pa.array([True, False]),
        "exact": pa.array([decimal.Decimal("2.25"), None], pa.decimal128(6, 2)),
        "nothing": pa.nulls(2),
    }
    table = read_table(put(tmp_path / "train", "a.parquet", columns))
    assert table.feature_names == ("half", "whole", "yes", "exact", "nothing")
    np.testing.assert_array_equal(
        table.features, np.array([[1.5, 2**40, 1, 2.25, np.nan], [np.nan, 3, 0, np.nan, np.nan]], np.float32)
    )


def test_weight_group_and_labels_stand_where_they_are_said_to(tmp_path: Path) -> None:
    columns = {
        "y": pa.array([1.0, 2.0, 3.0]),
        "z": pa.array([4.0, 5.0, 6.0]),
        "w": pa.array([0.5, 1.0, 0.0]),
        "a": pa.array([7, 8, 9]),
        "query": pa.array([2**60 + 1, 2**60 + 1, 5]),
    }
    directory = put(tmp_path / "train", "a.parquet", columns)
    for group in ("query", "4"):
        table = read_table(directory, columns=ColumnSpec(labels=2, weight=True, group=group))
        assert table.labels.tolist() == [[1, 4], [2, 5], [3, 6]]
        assert table.weights is not None
        assert table.groups is not None
        assert table.weights.tolist() == [0.5, 1, 0]
        assert table.groups.tolist() == [2**60 + 1, 2**60 + 1, 5]
        assert table.feature_names == ("a",)


def test_row_groups_and_slices_of_arrays_do_not_shift_missing_values(tmp_path: Path) -> None:
    values = [None if i % 7 == 3 else float(i) for i in range(100_000)]
    columns = {"y": pa.array(np.arange(100_000, dtype=np.int32)), "a": pa.array(values)}
    directory = put(tmp_path / "train", "a.parquet", columns, row_group_size=33_333)
    table = read_table(directory)
    expected = np.array([np.nan if value is None else value for value in values], np.float32)
    np.testing.assert_array_equal(table.features[:, 0], expected)
    np.testing.assert_array_equal(table.labels, np.arange(100_000))
    blocks = list(read_blocks(directory, rows=9_999))
    np.testing.assert_array_equal(np.concatenate([block.features[:, 0] for block in blocks]), expected)
    assert estimate_bytes(directory) == 400_000


@pytest.mark.parametrize(
    ("column", "kind", "hint"),
    [
        (pa.array(["a"]), "string", "encode text"),
        (pa.array(["a"]).dictionary_encode(), "dictionary", "encode text"),
        (pa.array([dt.datetime(2025, 1, 1)]), "timestamp", "times as seconds"),  # noqa: DTZ001
        (pa.array([[1.0]]), "list", "each element a column"),
        (pa.array([{"x": 1}]), "struct", "each element a column"),
        (pa.array([b"1"]), "binary", "encode text"),
    ],
)
def test_what_is_no_number_is_refused_with_its_name_and_type(
    tmp_path: Path, column: pa.Array, kind: str, hint: str
) -> None:
    put(tmp_path / "train", "a.parquet", {"y": pa.array([1]), "a": pa.array([1])})
    put(tmp_path / "train" / "z", "a.parquet", {"y": pa.array([1]), "bad": column})
    with pytest.raises(DataError, match=rf"train/z/a\.parquet: column 'bad' is of type {kind}.*\n.*{hint}"):
        read_table(tmp_path / "train")


@pytest.mark.parametrize(
    ("place", "value", "columns", "what"),
    [
        ("a", np.inf, ColumnSpec(), "a value is infinite"),
        ("a", 1e300, ColumnSpec(), "a value is infinite"),
        ("y", np.nan, ColumnSpec(), "the label is missing"),
        ("y", -np.inf, ColumnSpec(), "the label is infinite"),
        ("w", -1.0, ColumnSpec(weight=True), "the weight is negative"),
        ("w", None, ColumnSpec(weight=True), "the weight is missing"),
        ("w", np.inf, ColumnSpec(weight=True), "the weight is infinite"),
        ("q", None, ColumnSpec(group="q"), "the group is missing"),
    ],
)
def test_a_bad_value_is_found_by_its_row(
    tmp_path: Path, place: str, value: float | None, columns: ColumnSpec, what: str
) -> None:
    rows = 50_000
    cells: dict[str, list[float | None]] = {name: [1] * rows for name in ("y", "w", "a", "q")}
    cells[place][40_000] = value
    directory = put(tmp_path / "train", "a.parquet", {name: pa.array(cell) for name, cell in cells.items()})
    with pytest.raises(DataError, match=rf"train/a\.parquet, row 40001: .*{what}"):
        read_table(directory, columns=columns)


def test_a_group_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    directory = put(tmp_path / "train", "a.parquet", {"y": pa.array([1]), "a": pa.array([1]), "q": pa.array([1.5])})
    with pytest.raises(DataError, match=r"column 3 \('q'\) has the groups of rows and is of type double"):
        read_table(directory, columns=ColumnSpec(group="q"))


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    directory = put(tmp_path / "train", "a.parquet", {"y": pa.array([1]), "a": pa.array([1])})
    put(directory, "b.parquet", {"y": pa.array([1]), "b": pa.array([1])})
    with pytest.raises(DataError, match=r"train/b\.parquet calls a column 'b' where train/a\.parquet calls it 'a'"):
        read_table(directory)


def test_a_content_type_of_parquet_reads_files_of_any_name_and_refuses_csv(tmp_path: Path) -> None:
    directory = put(tmp_path / "train", "part-0", {"y": pa.array([1]), "a": pa.array([2])})
    channel = Channel("train", directory, content_type="application/x-parquet")
    assert read_table(channel).features.tolist() == [[2]]
    assert read_table(directory).features.tolist() == [[2]]
    write(tmp_path, {"part-1": "1,2\n"})
    with pytest.raises(DataError, match=r"train/part-1 is CSV, but the channel's content type is 'application/x-par"):
        read_table(channel)
