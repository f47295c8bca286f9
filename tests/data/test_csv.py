"""CSV: columns by position and name, what is found out and said, and every fault with its line and column."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers import write
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, read_table
from trainbox.errors import DataError

WEIGHTED = ColumnSpec(weight=True)


def test_the_weight_is_the_column_behind_the_label(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.csv": "1,0.5,7\n0,2,8\n"}), columns=WEIGHTED)
    assert table.weights is not None
    assert table.weights.tolist() == [0.5, 2]
    assert table.features.tolist() == [[7], [8]]


def test_several_labels_make_a_matrix(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.csv": "y,z,a\n1,2,3\n4,5,6\n"}), columns=ColumnSpec(labels=2))
    assert table.labels.tolist() == [[1, 2], [4, 5]]
    assert table.labels.shape == (2, 2)
    assert table.feature_names == ("a",)


@pytest.mark.parametrize("group", ["query", "2"])
def test_the_group_is_found_by_name_and_by_position(tmp_path: Path, group: str) -> None:
    text = "y,a,query,b\n1,2,77,3\n0,4,77,5\n1,6,9007199254740993,7\n"
    table = read_table(write(tmp_path, {"a.csv": text}), columns=ColumnSpec(group=group))
    assert table.groups is not None
    assert table.groups.tolist() == [77, 77, 9007199254740993]
    assert table.groups.dtype == np.int64
    assert table.feature_names == ("a", "b")
    assert table.features.tolist() == [[2, 3], [4, 5], [6, 7]]


def test_a_group_before_the_weight_leaves_the_weight_behind_the_label(tmp_path: Path) -> None:
    columns = ColumnSpec(weight=True, group="1")
    table = read_table(write(tmp_path, {"a.csv": "1,5,0.5,7\n0,5,2,8\n"}), columns=columns)
    assert table.weights is not None
    assert table.groups is not None
    assert (table.weights.tolist(), table.groups.tolist()) == ([0.5, 2], [5, 5])
    assert table.features.tolist() == [[7], [8]]


def test_quoted_numbers_are_numbers_and_quoted_names_names(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.csv": '"y","a b","c,d"\n"1","2.5",""\n'}))
    assert table.feature_names == ("a b", "c,d")
    assert table.features[0, 0] == 2.5
    assert np.isnan(table.features[0, 1])


def test_missing_values_are_those_declared_and_no_others(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,?,-999,3\n0,1,2,3\n"})
    table = read_table(directory, columns=ColumnSpec(missing=("?", "-999")))
    assert np.isnan(table.features[0, :2]).all()
    (directory / "b.csv").write_text("1,2,3,4\n1,,2,3\n")
    with pytest.raises(DataError, match=r"b\.csv:2: column 2: '' is not a number\n.*a missing value is \?, -999"):
        read_table(directory, columns=ColumnSpec(missing=("?", "-999")))


def test_a_delimiter_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.csv": "1 2 3\n4 5 6\n"}), columns=ColumnSpec(delimiter=" "))
    assert table.features.tolist() == [[2, 3], [5, 6]]


@pytest.mark.parametrize("given", [{"labels": -1}, {"delimiter": ""}, {"delimiter": "::"}, {"delimiter": "\n"}])
def test_columns_that_cannot_be_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"labels|delimiter"):
        ColumnSpec(**given)  # type: ignore[arg-type]


def test_a_header_in_one_of_many_files_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{i:02}.csv": "1,2\n" for i in range(20)} | {"13.csv": "y,age\n5,6\n"}
    table = read_table(write(tmp_path, files))
    assert len(table.labels) == 20
    assert table.labels[13] == 5
    assert table.feature_names == ("age",)
    assert "1 of 20 files have a header (y, age), train/00.csv" in capsys.readouterr().err


def test_files_of_one_name_in_several_folders_are_all_read(tmp_path: Path) -> None:
    files = {"b/part.csv": "2,1\n", "a/part.csv": "1,1\n", "a/c/part.csv": "3,1\n"}
    assert read_table(write(tmp_path, files)).labels.tolist() == [3, 1, 2]


def test_what_spark_and_delta_leave_beside_the_data_is_no_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"a.csv": "1,2\n", "_delta_log/0.json": "{}", "_temporary/a.csv": "1,2,3\n", "_started_1": ""}
    assert len(read_table(write(tmp_path, files)).labels) == 1
    assert "ignored _delta_log/0.json, _started_1, _temporary/a.csv" in capsys.readouterr().err


def test_a_row_longer_than_what_is_parsed_at_a_time_is_read(tmp_path: Path) -> None:
    width = 10_000
    row = ",".join(["12.5" + "0" * 120] * width)  # 1.2 MB
    table = read_table(write(tmp_path, {"a.csv": f"1,{row}\n0,{row}\n"}))
    assert table.features.shape == (2, width)
    assert (table.features == 12.5).all()


def test_lines_that_end_with_carriage_returns_alone_are_lines(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,a\r1,2\r3,4\r"})
    assert read_table(directory).labels.tolist() == [1, 3]
    (directory / "a.csv").write_text("y,a\r1,2\r3,x\r")
    with pytest.raises(DataError, match=r"a\.csv:3: column 2"):
        read_table(directory)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_larger_than_a_block_are_read(tmp_path: Path, suffix: str, pack: object) -> None:
    text = "".join(f"{i},{i}.5,0.123456789\n" for i in range(200_000)).encode()
    table = read_table(write(tmp_path, {f"a.csv{suffix}": pack(text)}))  # type: ignore[operator]
    assert table.labels.tolist() == list(range(200_000))
    assert (table.features[:, 0] == table.labels + 0.5).all()


BAD: dict[str, tuple[ColumnSpec, dict[str, str | bytes], str]] = {
    "a quoted text": (ColumnSpec(), {"a.csv": '1,2\n0,"x"\n'}, r"train/a\.csv:2: column 2: 'x' is not a number"),
    "labels of strings under a header": (
        ColumnSpec(),
        {"a.csv": "y,a\nyes,2\n"},
        r"train/a\.csv:2: column 1 \('y'\): 'yes' is not a number, and the label must be one\n.*encode the labels",
    ),
    "labels of strings without a header": (
        ColumnSpec(),
        {"a.csv": "yes,2\nno,3\n"},
        r"train/a\.csv:1: column 1: 'yes' is not a number, and the label must be one\n.*encode the labels",
    ),
    "a label that is NaN": (ColumnSpec(), {"a.csv": "1,2\nnan,3\n"}, r"a\.csv:2: column 1: the label is missing"),
    "an infinite label": (ColumnSpec(), {"a.csv": "1,2\ninf,3\n"}, r"a\.csv:2: column 1: 'inf' is infinite"),
    "the second label missing": (ColumnSpec(labels=2), {"a.csv": "1,2,3\n1,,3\n"}, r"a\.csv:2: column 2: the label is"),
    "a negative weight": (WEIGHTED, {"a.csv": "1,1,3\n1,-0.5,3\n"}, r"a\.csv:2: column 2: the weight '-0.5' is neg"),
    "a missing weight": (WEIGHTED, {"a.csv": "y,w,a\n1,,3\n"}, r"a\.csv:2: column 2 \('w'\): the weight is missing"),
    "a weight of text": (WEIGHTED, {"a.csv": "1,1,3\n1,w,3\n"}, r"a\.csv:2: column 2: 'w' is not a number"),
    "no room for a weight": (WEIGHTED, {"a.csv": "1,1\n"}, r"2 columns only; a label, a weight and at least one feat"),
    "no room for labels": (ColumnSpec(labels=3), {"a.csv": "1,1,2\n"}, "3 labels and at least one feature"),
    "an unknown group": (
        ColumnSpec(group="q"),
        {"a.csv": "y,a\n1,2\n"},
        r"train/a\.csv has no column 'q' for the groups of rows: its columns are y, a",
    ),
    "a group beyond the last column": (ColumnSpec(group="3"), {"a.csv": "1,2,3\n"}, "no column '3'.*no header"),
    "a group's name that comes twice": (ColumnSpec(group="q"), {"a.csv": "y,q,q\n1,2,3\n"}, "has 2 columns called 'q'"),
    "a group of text": (ColumnSpec(group="1"), {"a.csv": "1,2,3\n1,q7,3\n"}, r"a\.csv:2: column 2: 'q7' is not an int"),
    "a missing group": (ColumnSpec(group="1"), {"a.csv": "1,2,3\n1,,3\n"}, r"a\.csv:2: column 2: the group is missing"),
    "a group that comes back": (
        ColumnSpec(group="q"),
        {"a.csv": "y,q,a\n1,7,1\n1,8,1\n", "b.csv": "\ny,q,a\n\n1,8,1\n1,7,1\n"},
        r"train/b\.csv:5: rows of group 7 came before",
    ),
    "an open quote": (ColumnSpec(), {"a.csv": '1,2\n1,"2\n1,2\n'}, r"train/a\.csv:2: column 2: '2\\n1,2\\n' is not"),
    "a cell without end": (ColumnSpec(), {"a.csv": "1,2\n1," + "9" * 200_000 + "\n"}, r"train/a\.csv"),
    "no line end at all": (
        ColumnSpec(),
        {"a.csv": b"1" * (65 * 1024**2)},
        r"train/a\.csv:1: no end of the line within",
    ),
    "bytes of zero": (ColumnSpec(), {"a.csv": b"1,2\n1,\0\n"}, r"train/a\.csv:2: column 2: '\\x00' is not a number"),
}


@pytest.mark.parametrize(("columns", "files", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_errors_that_say_where(
    tmp_path: Path, columns: ColumnSpec, files: dict[str, str | bytes], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, files), columns=columns)


def test_label_size_in_the_content_type_is_honoured_unless_the_caller_knows_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write(tmp_path, {"a.csv": "1,2,3,4\n5,6,7,8\n"})
    channel = Channel("train", directory, content_type="text/csv; label_size=2; charset=UTF-8")
    assert read_table(channel).labels.tolist() == [[1, 2], [5, 6]]
    assert "the first 2 columns are labels" in capsys.readouterr().err
    assert read_table(channel, columns=ColumnSpec(labels=3)).labels.shape == (2, 3)
    assert "is ignored" in capsys.readouterr().err
    assert read_table(channel, content_type="csv").labels.tolist() == [1, 5]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_clean_files_are_what_xgboost_itself_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.integers(0, 2, 500), rng.uniform(0.1, 2, 500), rng.normal(size=(500, 6))])
    text = "".join(",".join(f"{value:.4f}" for value in row) + "\n" for row in rows)
    path = write(tmp_path, {"a.csv": text}) / "a.csv"
    table = read_table(path, columns=WEIGHTED)
    matrix = xgboost.DMatrix(f"{path}?format=csv&label_column=0&weight_column=1")
    assert table.weights is not None
    np.testing.assert_array_equal(matrix.get_label(), table.labels)
    np.testing.assert_allclose(matrix.get_weight(), table.weights, rtol=1e-6)
    np.testing.assert_allclose(matrix.get_data().toarray(), table.features, rtol=1e-6)


cells = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**9), 10**9).map(str),
    st.sampled_from(["", "NA", "nan", "1e3", "+.5", "5.", '"7"']),
)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8), size=st.integers(1, 40))
def test_any_cut_into_blocks_gives_the_same_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], size: int
) -> None:
    path = write(tmp_path_factory.mktemp("data"), {"a.csv": "\n".join(f"1,{','.join(row)}" for row in rows)}) / "a.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainbox.data.read.block_bytes", lambda: size)
        table = read_table(path)
    expected = [[np.float32(cell.strip('"') if cell not in {"", "NA"} else "nan") for cell in row] for row in rows]
    assert table.features.tobytes() == np.array(expected, np.float32).tobytes()
