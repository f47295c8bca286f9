"""The files of a channel become one table, or an error that names file, line and cell."""

import gzip
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.data import read_table
from trainbox.errors import DataError


def channel(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root / "train"


def test_files_are_read_in_the_order_of_their_paths_through_nested_folders(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"b.csv": "3,1\n", "a/z.csv": "2,1\n", "a.csv": "1,1\n", "c/1/2/x": "4,1"})
    table = read_table(directory)
    assert table.labels.tolist() == [1, 2, 3, 4]
    assert [path.relative_to(directory).as_posix() for path in table.files] == ["a.csv", "a/z.csv", "b.csv", "c/1/2/x"]


def test_the_table_is_float32_in_c_order_with_default_names(tmp_path: Path) -> None:
    table = read_table(channel(tmp_path, {"a.csv": "1,2,3\n4,5,6\n"}))
    assert table.labels.dtype == table.features.dtype == np.float32
    assert table.features.flags.c_contiguous
    assert table.features.tolist() == [[2, 3], [5, 6]]
    assert table.feature_names == ("f0", "f1")


def test_what_is_no_data_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "a.csv": "1,2\n",
        ".hidden": "x",
        ".dir/b.csv": "x",
        "part-manifest": "{}",
        "_SUCCESS": "",
        "empty.csv": "",
    }
    table = read_table(channel(tmp_path, files))
    assert len(table.labels) == 1
    said = capsys.readouterr().err
    assert "ignored .dir/b.csv, .hidden, _SUCCESS, part-manifest" in said
    assert "skipped empty files: train/empty.csv" in said


def test_missing_values_are_empty_cells_na_and_nan(tmp_path: Path) -> None:
    table = read_table(channel(tmp_path, {"a.csv": '1,,NA,NaN,nan,"",2\n'}))
    assert np.isnan(table.features[0, :5]).all()
    assert table.features[0, 5] == 2


def test_a_header_is_detected_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_table(channel(tmp_path, {"a.csv": "y,age,pay\n1,2,3\n", "b.csv": "y,age,pay\n4,5,6\n"}))
    assert table.feature_names == ("age", "pay")
    assert table.labels.tolist() == [1, 4]
    assert "trainbox: train: 2 of 2 files have a header (y, age, pay)\n" in capsys.readouterr().err


def test_a_header_in_one_of_two_files_is_no_row_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_table(channel(tmp_path, {"a.csv": "1,2\n", "b.csv": "y,age\n4,5\n"}))
    assert table.labels.tolist() == [1, 4]
    assert "1 of 2 files have a header (y, age), train/a.csv not" in capsys.readouterr().err


@pytest.mark.parametrize(("delimiter", "spoken"), [(";", "semicolon"), ("\t", "tab"), ("|", "vertical bar")])
def test_another_delimiter_than_a_comma_is_detected_and_said(
    tmp_path: Path, delimiter: str, spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "y,a,b\n1,,3\n".replace(",", delimiter)
    table = read_table(channel(tmp_path, {"a.csv": text}))
    assert table.feature_names == ("a", "b")
    assert table.features[0, 1] == 3
    assert f"separated by a {spoken} in train/a.csv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["1,2\r\n3,4\r\n", "\ufeff1,2\n3,4", "\n1,2\n\n3,4\n\n", ' 1 ,"2"\n3,4.0e0\n', "1,2\n3,+4"]
)
def test_ways_to_write_the_same_numbers(tmp_path: Path, text: str) -> None:
    table = read_table(channel(tmp_path, {"a.csv": text}))
    assert table.labels.tolist() == [1, 3]
    assert table.features.tolist() == [[2], [4]]


def test_a_compressed_file_is_read_and_its_faults_have_lines(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"a.csv.gz": gzip.compress(b"1,2\n3,4\n")})
    assert read_table(directory).labels.tolist() == [1, 3]
    (directory / "b.csv.gz").write_bytes(gzip.compress(b"1,2\n3,x\n"))
    with pytest.raises(DataError, match=r"train/b\.csv\.gz:2: column 2: 'x' is not a number"):
        read_table(directory)


def test_parquet_files_are_read_beside_csv(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"b.csv": "5,6,7\n"})
    columns = {"y": pa.array([1, 2]), "a": pa.array([1.5, None]), "b": pa.array([True, False])}
    pa.parquet.write_table(pa.table(columns), directory / "a.parquet")
    table = read_table(directory)
    assert table.labels.tolist() == [1, 2, 5]
    assert table.feature_names == ("a", "b")
    assert table.features[0].tolist() == [1.5, 1.0]
    assert math.isnan(table.features[1, 0])


BAD: dict[str, tuple[dict[str, str | bytes], str]] = {
    "text in a number": (
        {"a.csv": "1,2\n3,4\n", "b.csv": "1,2\n3,abc\n"},
        r"train/b\.csv:2: column 2: 'abc' is not a number",
    ),
    "text far down": ({"a.csv": "1,2\n" * 70_000 + "1,x\n"}, r"train/a\.csv:70001: column 2: 'x' is not a number"),
    "text after blank lines": ({"a.csv": "y,a\n\n\n1,2\n1,?\n"}, r"train/a\.csv:5: column 2 \('a'\): '\?'"),
    "half a boolean": ({"a.csv": "1,2\n1,tru\n"}, r"train/a\.csv:2: column 2: 'tru'"),
    "digits of another script": ({"a.csv": "1,2\n1,\u0661\n"}, r"train/a\.csv:2: column 2"),
    "a short row": ({"a.csv": "1,2,3\n1,2\n"}, r"train/a\.csv:2: 2 columns, the first row has 3: '1,2'"),
    "a long row": ({"a.csv": "1,2\n1,2,3\n"}, r"train/a\.csv:2: 3 columns, the first row has 2"),
    "a header wider than its rows": ({"a.csv": "y,a,b\n1,2\n"}, r"train/a\.csv:2: 2 columns, the first row has 3"),
    "a wider file": ({"a.csv": "1,2\n", "b.csv": "1,2,3\n"}, r"train/b\.csv has 3 columns, train/a\.csv has 2"),
    "a missing label": ({"a.csv": "1,2\n,2\n"}, r"train/a\.csv:2: column 1: the label is missing"),
    "labels of text": ({"a.csv": "yes,2\nno,3\n"}, r"train/a\.csv:1: column 1: 'yes' is not a number"),
    "an infinite cell": ({"a.csv": "1,2\n1,-inf\n"}, r"train/a\.csv:2: column 2: '-inf' is infinite"),
    "more than float32 holds": ({"a.csv": "1,2\n1,1e300\n"}, r"train/a\.csv:2: column 2: '1e300' is infinite"),
    "decimal commas": ({"a.csv": "1;2,5\n0;3,5\n"}, r"train/a\.csv has decimal commas"),
    "one column": ({"a.csv": "1\n2\n"}, r"train/a\.csv has one column only"),
    "headers that differ": (
        {"a.csv": "y,a,b\n1,2,3\n", "b.csv": "y,b,a\n1,2,3\n"},
        r"train/b\.csv calls a column 'b' where train/a\.csv calls it 'a'",
    ),
    "a data frame's index": ({"a.csv": ",y,a\n0,1,2\n"}, r"train/a\.csv:1: .*looks like a data frame's index"),
    "names and numbers in one line": ({"a.csv": "y,7,3\n1,2,3\n"}, r"train/a\.csv:1: column 1: 'y' is not a number"),
    "headers alone": ({"a.csv": "y,a\n"}, "no rows in .*only headers"),
    "empty files alone": ({"a.csv": "", "b.csv": "\n\n"}, r"nothing but empty files \(train/a\.csv, train/b\.csv\)"),
    "markers alone": ({"_SUCCESS": "", ".x": "1,2"}, "holds no file"),
    "not UTF-8": ({"a.csv": b"\xff\xfe1\x00,\x002\x00"}, r"train/a\.csv is not UTF-8 text"),
    "no Parquet": ({"a.parquet": "1,2\n"}, r"train/a\.parquet cannot be read as Parquet"),
    "a torn gzip": ({"a.csv.gz": gzip.compress(b"1,2\n" * 1000)[:-30]}, r"train/a\.csv\.gz"),
}


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_errors_that_say_where(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(channel(tmp_path, files))


@pytest.mark.parametrize(
    "column", [pa.array(["a"]), pa.array([{"x": 1}]), pa.array([[1.0]])], ids=["text", "struct", "list"]
)
def test_parquet_columns_that_are_no_numbers_are_refused(tmp_path: Path, column: pa.Array) -> None:
    directory = channel(tmp_path, {"a.csv": "1,2\n"})
    pa.parquet.write_table(pa.table({"y": pa.array([1]), "bad": column}), directory / "z.parquet")
    with pytest.raises(DataError, match=r"train/z\.parquet: column 'bad' is of type"):
        read_table(directory)


def test_a_missing_label_in_parquet_is_found_by_its_row(tmp_path: Path) -> None:
    directory = channel(tmp_path, {})
    directory.mkdir()
    pa.parquet.write_table(pa.table({"y": pa.array([1.0, None]), "a": pa.array([1, 2])}), directory / "a.parquet")
    with pytest.raises(DataError, match=r"train/a\.parquet, row 2: the label is missing"):
        read_table(directory)


def test_a_channel_that_is_not_there_and_one_in_pipe_mode(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a directory"):
        read_table(tmp_path / "train")
    (tmp_path / "train_0").touch()
    with pytest.raises(DataError, match="Pipe mode"):
        read_table(tmp_path / "train")


def test_two_channels_must_have_the_same_columns(tmp_path: Path) -> None:
    train = read_table(channel(tmp_path, {"a.csv": "y,a,b\n1,2,3\n"}))
    narrow = channel(tmp_path / "narrow", {"a.csv": "1,2\n"})
    with pytest.raises(DataError, match=r"train/a\.csv has 1 features, train/a\.csv has 2"):
        read_table(narrow, like=train)
    swapped = channel(tmp_path / "swapped", {"a.csv": "y,b,a\n1,2,3\n"})
    with pytest.raises(DataError, match=r"calls a column 'b' where .* calls it 'a'"):
        read_table(swapped, like=train)
    bare = channel(tmp_path / "bare", {"a.csv": "1,2,3\n"})
    assert read_table(bare, like=train).feature_names == ("f0", "f1")


def test_a_linked_folder_is_read_and_a_loop_is_an_error(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"a.csv": "1,2\n"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.csv").write_text("2,3\n")
    (directory / "linked").symlink_to(tmp_path / "elsewhere")
    assert read_table(directory).labels.tolist() == [1, 2]
    (directory / "loop").symlink_to(directory)
    with pytest.raises(DataError, match="links back"):
        read_table(directory)


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"a.csv": "1,2\n"})
    (directory / "gone.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.csv is not a file"):
        read_table(directory)


def test_numbers_that_look_like_a_data_frames_header_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_table(channel(tmp_path, {"a.csv": "0,1,2,3,4\n1,1,1,1,1\n"}))
    assert "train/a.csv:1: 0,1,2,… is taken for a row" in capsys.readouterr().err


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    rows=st.integers(2, 5).flatmap(lambda width: st.lists(st.lists(floats, min_size=width, max_size=width), min_size=1))
)
def test_what_is_written_is_read_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]
) -> None:
    text = "".join(",".join(map(repr, row)) + "\n" for row in rows)
    table = read_table(channel(tmp_path_factory.mktemp("data"), {"a.csv": text}))
    expected = np.array(rows, np.float32)
    assert table.labels.tobytes() == expected[:, 0].tobytes()
    assert table.features.tobytes() == np.ascontiguousarray(expected[:, 1:]).tobytes()
