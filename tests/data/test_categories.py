"""Columns of texts: which they are, how they are coded, and what is refused; in CSV, in Parquet and in both."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers import write
from trainbox.contract.job import Channel
from trainbox.data import Coding, ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError, HyperparameterError

TEXTS = ColumnSpec(texts=True)
NAN = float("nan")


def put(directory: Path, name: str, columns: Mapping[str, object]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {key: value if isinstance(value, pa.Array) else pa.array(value) for key, value in columns.items()}
    pa.parquet.write_table(pa.table(arrays), directory / name)
    return directory


@pytest.mark.parametrize(
    "text",
    [
        "y,color,x\n1,red,0.5\n0,green,0.7\n1,,0.1\n0,blue,0.2\n1,red,3\n",
        "1,red,0.5\n0,green,0.7\n1,,0.1\n0,blue,0.2\n1,red,3\n",
        '1;"red";0.5\n0;"green";0.7\n1;"";0.1\n0;"blue";0.2\n1;"red";3\n',
        "1, red ,0.5\n0,green,0.7\n1,NA,0.1\n0,\tblue,0.2\n1,red,3\n",
    ],
    ids=["a header", "no header", "quotes", "blanks"],
)
def test_a_column_of_texts_becomes_codes_in_the_order_of_the_letters(tmp_path: Path, text: str) -> None:
    table = read_table(write(tmp_path, {"a.csv": text}), columns=TEXTS)
    assert table.coding == Coding({0: ("blue", "green", "red")})
    np.testing.assert_array_equal(table.features[:, 0], [2, 1, NAN, 0, 2])
    assert table.labels.tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_column_of_parquet_is_one_of_texts_by_its_type(tmp_path: Path, kind: pa.DataType) -> None:
    colors = pa.array(["red", "green", None, "blue", " red"]).cast(kind)
    numbers = pa.array([7, 8, None, 7, 9]).dictionary_encode()
    columns = {"y": [1, 0, 1, 0, 1], "color": colors, "size": numbers}
    table = read_table(put(tmp_path / "train", "a.parquet", columns), columns=TEXTS)
    assert table.coding == Coding({0: ("blue", "green", "red")})
    np.testing.assert_array_equal(table.features[:, 0], [2, 1, NAN, 0, 2])
    np.testing.assert_array_equal(table.features[:, 1], [7, 8, NAN, 7, 9])


def test_a_category_of_parquet_that_no_row_has_is_none(tmp_path: Path) -> None:
    colors = pa.DictionaryArray.from_arrays(pa.array([2, 0, 0]), pa.array(["red", "violet", "blue"]))
    table = read_table(put(tmp_path / "train", "a.parquet", {"y": [1, 0, 1], "color": colors}), columns=TEXTS)
    assert table.coding.features == {0: ("blue", "red")}
    assert table.features[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("header", ["species,x\n", ""])
def test_labels_of_texts_are_classes(tmp_path: Path, header: str) -> None:
    text = f"{header}setosa,1\nvirginica,2\nsetosa,3\nversicolor,4\n"
    table = read_table(write(tmp_path, {"a.csv": text}), columns=TEXTS)
    assert table.coding == Coding({}, ("setosa", "versicolor", "virginica"))
    assert table.labels.tolist() == [0, 2, 0, 1]
    with pytest.raises(DataError, match=r"a\.csv:3: column 1: the label is missing"):
        read_table(write(tmp_path, {"a.csv": "setosa,1\nvirginica,2\n,3\n"}, "other"), columns=TEXTS)


def test_csv_and_parquet_of_one_channel_have_the_same_codes(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,color\n1,red\n0,green\n", "c.csv": "0,violet\n1,red\n"})
    put(directory, "b.parquet", {"y": [1, 0], "color": ["blue", "red"]})
    table = read_table(directory, columns=TEXTS)
    assert table.coding.features == {0: ("blue", "green", "red", "violet")}
    assert table.features[:, 0].tolist() == [2, 1, 0, 2, 3, 2]


def test_a_column_that_begins_with_many_missing_cells_may_be_one_of_texts(tmp_path: Path) -> None:
    rows = [f"{i % 2},{i}.{'0' * 36},," for i in range(120_000)]  # more than a block
    rows[-2:] = ["1,5,red,", "0,6,blue,"]
    table = read_table(write(tmp_path, {"a.csv": "\n".join(rows)}), columns=TEXTS)
    assert table.coding.features == {1: ("blue", "red")}
    assert table.features[-2:, 1].tolist() == [1, 0]
    assert np.isnan(table.features[:-2, 1]).all()
    assert np.isnan(table.features[:, 2]).all()


MIXED = {
    "a number among texts": ("1,red\n0,blue\n1,3.5\n", r"a\.csv:3: column 2: '3\.5' is a number, and the rows before"),
    "a text among numbers": ("1,2\n0,3\n1,red\n", r"a\.csv:3: column 2: 'red' is not a number\n.*categorical"),
    "in one row": ("y,a\n1,\n1,red\n0,1\n", r"a\.csv:4: column 2 \('a'\): '1' is a number, .* such as 'red'"),
    "a truth value among texts": ("1,red\n0,True\n", r"a\.csv:2: column 2: 'True' is a "),
    "a text among truth values": ("1,True\n0,red\n", r"a\.csv:2: column 2: 'red' is not a number"),
    "far down": (
        ("1," + "red" * 20 + "\n") * 90_000 + "1,7\n",  # more than a block
        r"a\.csv:90001: column 2: '7' is a number, .* such as 'redred",
    ),
    "an infinite one": ("1,red\n0,inf\n", r"a\.csv:2: column 2: 'inf' is a number"),
    "a label": ("yes,1\nno,2\n1,3\n", r"a\.csv:3: column 1: '1' is a number, and the rows before"),
    "a label of text above numbers": (
        "abc,5,7\n1,2,3\n",
        r"a\.csv:1: column \d: 'abc' is not a number, and the label must be one",
    ),
    "a word for a missing value": (
        "1,?\n0,5\n",
        r"a\.csv:2: .*'5' is a number, and the rows before have '\?'\n.*missing=",
    ),
    "a weight": ("1,w,2\n", r"a\.csv:1"),
}


@pytest.mark.parametrize(("text", "message"), MIXED.values(), ids=MIXED.keys())
def test_a_mixed_column_is_an_error_with_file_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    columns = ColumnSpec(texts=True, weight=",w," in text)
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, {"a.csv": text}), columns=columns)


def test_files_that_differ_in_the_kind_of_a_column_are_an_error(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,a\n1,red\n", "b.csv": "1,5\n"})
    with pytest.raises(DataError, match=r"train/b\.csv:1: column 2 \('a'\): '5' is a number"):
        read_table(directory, columns=TEXTS)
    (directory / "b.csv").unlink()
    put(directory, "b.parquet", {"y": [1, 0], "a": [None, 5]})
    with pytest.raises(DataError, match=r"train/b\.parquet, row 2: column 2 \('a'\): '5' is a number"):
        read_table(directory, columns=TEXTS)
    (directory / "a.csv").write_text("y,a\n1,7\n")
    put(directory, "b.parquet", {"y": [1], "a": ["red"]})
    with pytest.raises(DataError, match=r"train/b\.parquet, row 1: column 2 \('a'\) is of type string, where numbers"):
        read_table(directory, columns=TEXTS)


def test_a_column_that_is_named_has_texts_whatever_they_look_like(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,zip,x,q\n1,01234,1,1\n0,94103,2,2\n1,?,3,3\n0,,4,True\n"})
    columns = ColumnSpec(texts=True, categorical=("zip", "2"))
    table = read_table(directory, columns=columns)
    assert table.coding.features == {0: ("01234", "94103", "?"), 2: ("1", "2", "3", "True")}
    np.testing.assert_array_equal(table.features[:, 0], [0, 1, 2, NAN])
    with pytest.raises(HyperparameterError, match=r"train/a\.csv there is no column 'zap'\n.*are zip, x, q, or pos"):
        read_table(directory, columns=ColumnSpec(texts=True, categorical=("zap",)))
    numbers = put(tmp_path / "numbers", "a.parquet", {"y": [1, 0], "zip": [94103, 1234], "q": [True, None]})
    table = read_table(numbers, columns=ColumnSpec(texts=True, categorical=("zip", "q")))
    assert table.coding.features == {0: ("1234", "94103"), 1: ("True",)}


def test_another_channel_follows_the_codes_and_what_it_has_more_is_an_error_or_missing(tmp_path: Path) -> None:
    train = read_table(write(tmp_path, {"a.csv": "y,color\nno,red\nyes,blue\n"}), columns=TEXTS)
    same = read_table(write(tmp_path, {"a.csv": "y,color\nno,red\n"}, "same"), like=train, columns=TEXTS)
    assert same.coding == train.coding
    assert same.features.tolist() == [[1]]
    more = write(tmp_path, {"a.csv": "y,color\nyes,red\nno,violet\n"}, "validation")
    message = r"validation/a\.csv:3: column 2 \('color'\): 'violet' is not among the texts of training: 'blue', 'red'"
    with pytest.raises(DataError, match=message):
        read_table(more, like=train, columns=TEXTS)
    lenient = ColumnSpec(texts=True, unseen="missing")
    np.testing.assert_array_equal(read_table(more, like=train, columns=lenient).features, [[1], [NAN]])
    parquet = put(tmp_path / "held_out", "a.parquet", {"y": ["no", "yes"], "color": ["red", "violet"]})
    with pytest.raises(DataError, match=r"a\.parquet, row 2: column 2 \('color'\): 'violet' is not among"):
        read_table(parquet, like=train, columns=TEXTS)
    labels = write(tmp_path, {"a.csv": "y,color\nmaybe,red\n"}, "labels")
    with pytest.raises(DataError, match=r"labels/a\.csv:2: column 1 \('y'\): 'maybe' is not among"):
        read_table(labels, like=train, columns=lenient)


def test_texts_where_train_has_numbers_are_an_error(tmp_path: Path) -> None:
    train = read_table(write(tmp_path, {"a.csv": "y,a\n1,2\n"}), columns=TEXTS)
    with pytest.raises(DataError, match=r"validation/a\.csv:2: column 2 \('a'\): 'red' is not a number"):
        read_table(write(tmp_path, {"a.csv": "y,a\n1,red\n"}, "validation"), like=train, columns=TEXTS)


def test_a_column_of_too_many_texts_is_an_error(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "".join(f"1,name {i}\n" for i in range(10_000))})
    assert len(read_table(directory, columns=TEXTS).coding.features[0]) == 10_000
    (directory / "b.csv").write_text("1,one more\n")
    with pytest.raises(DataError, match=r"column 2 has more than 10,000 different texts\n.*leave the column out"):
        read_table(directory, columns=TEXTS)
    with pytest.raises(DataError, match=r"column 2 has a text of 3,000 bytes"):
        read_table(write(tmp_path, {"a.csv": f"1,{'x' * 3000}\n"}, "long"), columns=TEXTS)


def test_a_pipe_has_texts_only_where_they_are_named(tmp_path: Path) -> None:
    def feed(text: str) -> Channel:
        path = tmp_path / f"train{len(list(tmp_path.iterdir()))}"
        os.mkfifo(f"{path}_0")
        threading.Thread(target=Path(f"{path}_0").write_text, args=(text,), daemon=True).start()
        return Channel("train", path, content_type="text/csv", input_mode="Pipe")

    with pytest.raises(
        DataError, match=r"column 2 holds texts such as 'blue', and a pipe cannot be searched.*\n.*categorical"
    ):
        read_table(feed("1,red\n0,blue\n"), columns=TEXTS)
    named = ColumnSpec(texts=True, categorical=("0",))
    assert read_table(feed("1,red\n0,blue\n"), columns=named).coding.features == {0: ("blue", "red")}


def test_blocks_number_texts_as_they_come(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,red\n0,blue\n1,red\n0,amber\n"})
    blocks = list(read_blocks(directory, columns=TEXTS, rows=2))
    assert [block.features[:, 0].tolist() for block in blocks] == [[0, 1], [0, 2]]
    assert blocks[-1].coding.features == {0: ("red", "blue", "amber")}
    coding = Coding({0: ("amber", "blue", "red")})
    followed = list(read_blocks(directory, columns=TEXTS, coding=coding, rows=2))
    assert [block.features[:, 0].tolist() for block in followed] == [[2, 1], [2, 0]]


def test_the_estimate_counts_a_text_as_its_code(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,color,x\n" + "1,a long name of a color,0.5\n" * 1000})
    assert estimate_bytes(directory, columns=TEXTS) == pytest.approx(8000, rel=0.01)
    parquet = put(tmp_path / "parquet", "a.parquet", {"y": [1] * 1000, "color": ["a long name"] * 1000})
    assert estimate_bytes(parquet, columns=TEXTS) == 4000


def test_without_leave_texts_are_an_error_as_before(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/a\.csv:1: column 2: 'red' is not a number"):
        read_table(write(tmp_path, {"a.csv": "1,red\n0,blue\n"}))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("target,0,1,2\n1,2,3,4\n", ("0", "1", "2")),
        ("species,0,1,2\nsetosa,2,3,4\n", ("0", "1", "2")),
        ("y,a\nsetosa,red\nvirginica,blue\n", ("a",)),
    ],
)
def test_a_first_line_of_names_is_a_header_beside_texts(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    assert read_table(write(tmp_path, {"a.csv": text}), columns=TEXTS).feature_names == names


words = st.one_of(
    st.text(
        st.characters(codec="utf-8", exclude_characters='\r\n",;\t| ', exclude_categories=["Cc", "Cs"]), max_size=5
    ),
    st.sampled_from(["", "NA", "red", "blue", "a b", "é", "Ω"]),
)


@settings(max_examples=80)
@given(cells=st.lists(words, min_size=1, max_size=12), size=st.integers(1, 40))
def test_any_cut_into_blocks_gives_the_same_codes(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], size: int
) -> None:
    text = "y,a,b\n" + "".join(f"1,t{cell.strip()},{number}\n" for number, cell in enumerate(cells))
    path = write(tmp_path_factory.mktemp("data"), {"a.csv": text}) / "a.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainbox.data.read.block_bytes", lambda: size)
        table = read_table(path, columns=TEXTS)
    texts = [f"t{cell.strip()}".strip() for cell in cells]
    assert table.coding.features[0] == tuple(sorted(set(texts)))
    assert [table.coding.features[0][int(code)] for code in table.features[:, 0]] == texts
