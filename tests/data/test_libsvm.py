"""libsvm: what XGBoost's own loader makes of a clean file, and an error with the line for any other."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers import sparse_features, write
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError

CLEAN = {
    "counted from 1": "1 1:2 3:4.5\n0 2:1\n",
    "counted from 0": "1 0:2 3:4\n0 2:1\n",
    "weights": "1:0.5 1:2\n0:2 2:1e-3\n",
    "groups": "1 qid:1 1:2\n0 qid:1 2:1\n2 qid:3 1:1\n",
    "weights and groups": "1:2 qid:7 1:1 4:2\n0:3 qid:9\n",
    "rows without a value": "1\n0 1:1\n2\n",
    "zeros that are written": "1 1:0 2:0\n0 3:1\n",
    "signs and exponents": "+1 1:+2\n-1 1:.5e1 2:-3.\n",
    "blank lines": "\n1 1:2\n\n0 3:1",
}


def load(path: Path) -> xgboost.DMatrix:
    return xgboost.DMatrix(f"{path}?format=libsvm")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("text", CLEAN.values(), ids=CLEAN.keys())
def test_a_clean_file_is_what_xgboost_itself_reads(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, {"a.svm": text}) / "a.svm"
    table, matrix = read_table(path), load(path)
    ours, theirs = sparse_features(table), matrix.get_data()
    assert ours.shape == theirs.shape
    assert (ours.indptr.tolist(), ours.indices.tolist()) == (theirs.indptr.tolist(), theirs.indices.tolist())
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-6)
    np.testing.assert_array_equal(table.labels, matrix.get_label())
    np.testing.assert_allclose(matrix.get_weight(), [] if table.weights is None else table.weights, rtol=1e-6)
    if table.groups is not None:
        borders = [0, *(1 + np.flatnonzero(np.diff(table.groups))), len(table.groups)]
        assert matrix.get_uint_info("group_ptr").tolist() == borders


def test_ways_to_write_the_same_rows(tmp_path: Path) -> None:
    plain = read_table(write(tmp_path, {"a.svm": "1 1:2 3:4\n0 2:1\n"}))
    for text in (
        "1 1:2 3:4 # a comment 9:9\n# another\n0 2:1",
        "1\t1:2   3:4 \r\n  0 2:1\r\n",
        "1 3:4 1:2\n0 2:1\n",
        "\ufeff1 1:2 3:4\n0 2:1",
        "1 01:2 3:4e0\n0 2:1\n",
        "1 1:2 3:4\r0 2:1\r",
    ):
        table = read_table(write(tmp_path, {"a.svm": text}))
        assert (sparse_features(table) != sparse_features(plain)).nnz == 0, text
        assert table.labels.tolist() == [1, 0]


def test_the_width_is_that_of_the_widest_file_and_of_the_other_channel(tmp_path: Path) -> None:
    files = {"a.svm": "1 1:1\n", "b.svm": "0 7:1\n1 2:1\n"}
    train = read_table(write(tmp_path, files))
    assert sparse_features(train).shape == (3, 8)
    assert train.feature_names == tuple(f"f{i}" for i in range(8))
    narrow = read_table(write(tmp_path, {"a.svm": "1 1:1\n"}, "validation"), like=train)
    assert sparse_features(narrow).shape == (1, 8)
    wide = read_table(write(tmp_path, {"a.svm": "1 9:1\n"}, "test"), like=train)
    assert sparse_features(wide).shape == (1, 10)


def test_blocks_are_as_wide_as_the_widest_row_of_all(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.svm": "1 1:1\n0 1:2\n", "b.svm": "1 1:1\n0 7:1\n1 2:1\n"})
    blocks = list(read_blocks(directory, rows=2))
    assert [sparse_features(block).shape for block in blocks] == [(2, 8), (2, 8), (1, 8)]
    whole = sparse_features(read_table(directory))
    assert (scipy.sparse.vstack([block.features for block in blocks]) != whole).nnz == 0


def test_a_file_of_comments_has_no_rows(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.svm": "# nothing\n\n"})
    with pytest.raises(DataError, match=r"no rows in .*train"):
        read_table(directory)
    with pytest.raises(DataError, match=r"no rows in .*train"):
        list(read_blocks(directory))


def test_a_missing_value_may_be_written(tmp_path: Path) -> None:
    assert np.isnan(sparse_features(read_table(write(tmp_path, {"a.svm": "1 1:nan 2:1\n"}))).data[0])


def test_a_file_that_looks_like_libsvm_is_read_as_such_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_table(write(tmp_path, {"part-0": "1 1:2\n", "part-1": "# x\n0:1 1:2\n".replace("0:1", "0")}))
    assert sparse_features(table).shape == (2, 2)
    said = capsys.readouterr().err
    assert "train: no content type is given; train/part-0, train/part-1 read as libsvm" in said


BAD = {
    "a token without a value": ("1 1:2 3\n", r"a\.svm:1: '3' is not index:value"),
    "two colons": ("0 1:1\n1 1:2:3\n", r"a\.svm:2: '1:2:3': the value is not a number"),
    "no index": ("0 1:1\n1 :3\n", r"a\.svm:2: ':3' is not index:value"),
    "no value": ("0 1:1\n1 3:\n", r"a\.svm:2: '3:': the value is not a number"),
    "an index of text": ("0 1:1\n1 a:3\n", r"a\.svm:2: 'a:3' is not index:value"),
    "a fractional index": ("0 1:1\n1 1.5:3\n", r"a\.svm:2: '1.5:3' is not index:value"),
    "a negative index": ("0 1:1\n1 -1:3\n", r"a\.svm:2: '-1:3' is not index:value"),
    "an index beyond all": ("0 1:1\n1 4294967296:3\n", r"a\.svm:2: '4294967296:3': the index is larger than"),
    "a value of text": ("0 1:1\n1 1:x\n", r"a\.svm:2: '1:x': the value is not a number"),
    "a quoted value": ('0 1:1\n1 1:"2"\n', r"a\.svm:2: '1:\"2\"': the value is not a number"),
    "an infinite value": ("0 1:1\n\n1 1:2 2:inf\n", r"a\.svm:3: a value is infinite"),
    "a value too large": ("0 1:1\n1 1:1e300\n", r"a\.svm:2: a value is infinite"),
    "an index twice": ("0 1:1\n1 1:2 1:2\n", r"a\.svm:2: index 1 is repeated in one row"),
    "an index twice, not in order": ("0 1:1\n1 1:2 5:1 1:2\n", r"a\.svm:2: index 1 is repeated in one row"),
    "a label of text": ("0 1:1\nyes 1:2\n", r"a\.svm:2: the label 'yes' is not a number"),
    "a missing label": ("0 1:1\n1:2 2:2\n", r"a\.svm:2: the row has a weight, the rows before have none"),
    "a label that is NaN": ("0 1:1\nnan 1:2\n", r"a\.svm:2: the label is missing"),
    "weights in some rows": ("0:1 1:1\n1 1:2\n", r"a\.svm:2: the row has no weight, the rows before have one"),
    "a negative weight": ("0:1 1:1\n1:-1 1:2\n", r"a\.svm:2: the weight is negative"),
    "a weight of text": ("0:1 1:1\n1:w 1:2\n", r"a\.svm:2: the weight 'w' is not a number"),
    "a group in some rows": ("0 qid:1 1:1\n1 1:2\n", r"a\.svm:2: the row has no qid, the rows before have one"),
    "a group in later rows": ("0 1:1\n1 qid:1 1:2\n", r"a\.svm:2: the row has a qid, the rows before have none"),
    "a group of text": ("0 qid:1 1:1\n1 qid:x 1:2\n", r"a\.svm:2: 'qid:x' is not a group"),
    "a group behind a pair": ("0 qid:1 1:1\n1 1:2 qid:1\n", r"a\.svm:2: 'qid:1' follows a pair"),
    "a group that comes back": ("0 qid:1 1:1\n\n0 qid:2 1:1\n1 qid:1 1:2\n", r"a\.svm:4: rows of group 1 came before"),
    "CSV further down": ("0 1:1\n1,2,3\n", r"a\.svm:2: '1,2,3' is not a label: this looks like CSV"),
    "labels alone": ("0\n1\n", r"a\.svm: no row has a feature"),
    "a byte of zero": ("0 1:1\n1 1:\0\n", r"a\.svm:2: column 5 holds the control byte 0x00"),
    "a byte of zero between two pairs": ("0 1:1\n1 1:2\x002:3\n", r"a\.svm:2: column 6 holds the control byte 0x00"),
    "a hole at the end": ("0 1:1\n1 1:2" + "\0" * 4096, r"a\.svm:2: column 6 .* 0x00\n.*the file ends here, without"),
    "a vertical tab": ("0 1:1\n1 1:2\x0b2:3\n", r"a\.svm:2: column 6 holds the control byte 0x0b"),
    "a separator of units": ("0 1:1\n1 1:2\x1f2:3\n", r"a\.svm:2: column 6 holds the control byte 0x1f"),
    "a byte of zero for a line end": ("0 1:1\x001 1:2\n", r"a\.svm:1: column 6 holds the control byte 0x00"),
    "lines of zeros": ("0 1:1\n\0\0\n1 1:2\n", r"a\.svm:2: column 1 holds the control byte 0x00"),
    "a blank that is no ASCII": ("0 1:1\n1 1:2\u00a02:3\n", r"a\.svm:2: '1:2\\xa02:3': the value is not a number"),
    "a file that ends within an index": ("0 1:1\n1 1:2 3", r"a\.svm:2: '3' is not index:value\n.*the file ends here"),
    "a file that ends behind a colon": ("0 1:1\n1 1:2 3:", r"a\.svm:2: '3:': the value .*\n.*the file ends here"),
    "a file that ends within a number": ("0 1:1\n1 1:2 3:1e", r"a\.svm:2: '3:1e': the value .*\n.*the file ends here"),
    "a file that ends within a qid": (
        "0 qid:1 1:1\n1 qid:",
        r"a\.svm:2: 'qid:' is not a group.*\n.*the file ends here",
    ),
    "a fault far down": ("0 1:1 2:3.25\n" * 350_000 + "1 1:x\n", r"a\.svm:350001: '1:x'"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_are_errors_that_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, {"a.svm": text}))


def test_a_comment_may_hold_any_byte(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.svm": "1 1:2 # \0\x0b\x7f\n#\0\n0 2:1\n"}))
    assert table.labels.tolist() == [1, 0]


def test_files_with_and_without_weights_are_no_one_table(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.svm": "1:2 1:1\n", "b.svm": "1 1:1\n"})
    with pytest.raises(DataError, match=r"train/b\.svm:1 has 1 label\(s\), no weight.*have 1 label\(s\), a weight"):
        read_table(directory)


def test_a_content_type_that_the_rows_contradict_is_refused(tmp_path: Path) -> None:
    csv = write(tmp_path, {"a.csv": "\n1,2,3\n"}, "csv")
    svm = write(tmp_path, {"a.svm": "1 1:2\n"}, "svm")
    with pytest.raises(DataError, match=r"csv/a\.csv:2 is CSV, but the channel's content type is 'libsvm': '1,2,3'"):
        read_table(Channel("csv", csv, content_type="libsvm"))
    with pytest.raises(DataError, match=r"svm/a\.svm:1 is libsvm, but the channel's content type is 'text/csv'"):
        read_table(Channel("svm", svm, content_type="text/csv"))
    assert read_table(Channel("svm", svm, content_type="text/x-libsvm")).labels.tolist() == [1]


def test_columns_that_libsvm_does_not_have_are_said_not_to_be_heeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_table(write(tmp_path, {"a.svm": "1 1:2\n"}), columns=ColumnSpec(weight=True)).weights is None
    assert "libsvm has no columns of weights or groups" in capsys.readouterr().err


def test_two_formats_are_no_one_channel(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/b\.svm is libsvm, train/a\.csv is CSV"):
        read_table(write(tmp_path, {"a.csv": "1,2\n", "b.svm": "1 1:2\n"}))


def test_the_estimate_is_near_what_is_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        "1 " + " ".join(f"{column}:{rng.normal():.5f}" for column in range(1, 1 + rng.integers(1, 40)))
        for _ in range(20_000)
    ]
    directory = write(tmp_path, {"a.svm": "\n".join(lines[:15_000]), "b.svm": "\n".join(lines[15_000:])})
    stored = sparse_features(read_table(directory))
    assert estimate_bytes(directory) == pytest.approx(stored.data.nbytes + stored.indices.nbytes, rel=0.1)


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows_of_pairs = st.lists(
    st.tuples(numbers, st.dictionaries(st.integers(0, 300), numbers, max_size=5)), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(rows=rows_of_pairs, weighted=st.booleans(), grouped=st.booleans(), size=st.integers(1, 60))
def test_what_is_written_is_read_back_to_the_bit_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, dict[int, float]]],
    weighted: bool,
    grouped: bool,
    size: int,
) -> None:
    lines = []
    for number, (label, pairs) in enumerate(rows):
        head = f"{label!r}" + (f":{number}" if weighted else "") + (f" qid:{number // 2}" if grouped else "")
        lines.append(" ".join([head, *(f"{column}:{value!r}" for column, value in sorted(pairs.items()))]))
    path = write(tmp_path_factory.mktemp("data"), {"a.svm": "\n".join(lines)}) / "a.svm"
    if not any(pairs for _, pairs in rows):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainbox.data.read.block_bytes", lambda: size)
        table = read_table(path)
    found = sparse_features(table)
    assert table.labels.tobytes() == np.array([label for label, _ in rows], np.float32).tobytes()
    stored = [sorted(pairs.items()) for _, pairs in rows]
    assert np.diff(found.indptr).tolist() == [len(pairs) for pairs in stored]
    assert found.indices.tolist() == [column for pairs in stored for column, _ in pairs]
    assert found.data.tobytes() == np.array([value for pairs in stored for _, value in pairs], np.float32).tobytes()
    assert (table.weights is None) or table.weights.tolist() == list(range(len(rows)))
    assert (table.groups is None) or table.groups.tolist() == [number // 2 for number in range(len(rows))]
    assert ((table.weights is not None), (table.groups is not None)) == (weighted, grouped)
