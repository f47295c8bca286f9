"""Formats: the bytes of a request become the rows that a channel has of them, without labels; a fault has its cell."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from tests.support.writers import dense, entry, frame, sparse, tensor, write
from trainbox.data import Coding, ColumnSpec, read_table
from trainbox.data.formats import (
    BodyRows,
    ByteStream,
    Format,
    RowError,
    open_body,
    parse_body,
    read_content_type,
    stream_from,
)
from trainbox.errors import DataError

NAN = float("nan")


def parquet(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def plain(body: BodyRows) -> list[list[float]]:
    features = body.features
    return (features.toarray() if scipy.sparse.issparse(features) else features).tolist()  # type: ignore[no-any-return, union-attr]


# ---- the same bytes in a channel ----

#: Labels and features in the channel, columns alike in the request.
TABLES: dict[str, tuple[Format, bytes]] = {
    "CSV": ("CSV", b"1,2.5,3\n0,,5\n1,1e-3,NaN\n"),
    "CSV with a header": ("CSV", b"y,age,pay\n1,2.5,3\n0,,5\n"),
    "CSV with semicolons, quotes and comments": ("CSV", b'# of May\n1;"2.5";3\n0;;5\n'),
    "CSV with blanks": ("CSV", b"1 2.5   3\n0 7 5"),
    "CSV with booleans": ("CSV", b"1,True,3\n0,False,5\n"),
    "Parquet": ("Parquet", parquet(y=[1, 0, 1], age=[2.5, None, 1e-3], is_new=[True, False, True])),
}


@pytest.mark.parametrize(("format_", "content"), TABLES.values(), ids=TABLES)
def test_a_body_has_the_rows_that_a_channel_has_of_the_same_bytes(
    tmp_path: Path, format_: Format, content: bytes
) -> None:
    table = read_table(write(tmp_path, {f"a.{format_.lower()}": content}))
    body = parse_body(content, format_)
    assert isinstance(body.features, np.ndarray)
    assert body.features.dtype == np.float32
    assert body.features.flags.c_contiguous
    assert body.features[:, 0].tobytes() == table.labels.tobytes()
    assert np.ascontiguousarray(body.features[:, 1:]).tobytes() == np.asarray(table.features).tobytes()
    assert body.names is None or body.names[1:] == table.feature_names


RECORDS = [[1, 2.5, 3.0], [0, -1.0, 5.0], [1, 4.0, 1e-3]]
SPARSE = [(1.0, {0: 2.5, 3: 1.0}), (0.0, {}), (1.0, {7: -1.0})]
LIBSVM = b"1 0:2.5 3:1\n0\n1 7:-1 # the last\n"
#: With labels, without them, and with different ones.
LABELLED: dict[str, tuple[Format, bytes, bytes]] = {
    "libsvm": ("libsvm", LIBSVM, b"0:2.5 3:1\n5\n7:-1"),
    "libsvm with groups": ("libsvm", b"1 qid:1 1:2\n0 qid:1 3:4\n", b"qid:1 1:2\nqid:2 3:4\n"),
    "dense records": (
        "recordio-protobuf",
        dense(RECORDS),
        b"".join(frame(entry(1, tensor(row[1:]))) for row in RECORDS),
    ),
    "dense records of other types": (
        "recordio-protobuf",
        dense(RECORDS, kind="float64"),
        b"".join(frame(entry(1, tensor(row[1:], kind="float64"))) for row in RECORDS),
    ),
    "sparse records": (
        "recordio-protobuf",
        sparse(SPARSE, 9),
        b"".join(frame(entry(1, tensor(list(row.values()), keys=list(row), shape=[9]))) for _, row in SPARSE),
    ),
}


@pytest.mark.parametrize(("format_", "labelled", "bare"), LABELLED.values(), ids=LABELLED)
def test_a_body_with_or_without_labels_has_the_features_of_the_channel(
    tmp_path: Path, format_: Format, labelled: bytes, bare: bytes
) -> None:
    suffix = "svm" if format_ == "libsvm" else "pbr"
    table = read_table(write(tmp_path, {f"a.{suffix}": labelled}))
    for content in (labelled, bare):
        body = parse_body(content, format_)
        assert body.names is None
        assert scipy.sparse.issparse(body.features) == scipy.sparse.issparse(table.features)
        assert body.features.shape == table.features.shape
        expected = table.features.toarray() if scipy.sparse.issparse(table.features) else table.features  # type: ignore[union-attr]
        np.testing.assert_array_equal(plain(body), expected)


floats = st.floats(width=32, allow_infinity=False)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(floats, min_size=width, max_size=width), min_size=1)
    ),
    size=st.integers(1, 200),
)
def test_a_body_that_is_read_in_pieces_has_the_same_rows(rows: list[list[float]], size: int) -> None:
    content = "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    whole = parse_body(content, "CSV", ColumnSpec(labels=0, delimiter=","))
    assert isinstance(whole.features, np.ndarray)
    np.testing.assert_array_equal(whole.features, np.array(rows, np.float32))
    reader = open_body(ByteStream(io.BytesIO(content), "body"), "CSV", ColumnSpec(labels=0, delimiter=","), size=size)
    pieces = [piece.features for piece in reader.blocks]
    assert reader.width == len(rows[0])
    assert np.concatenate(pieces).tobytes() == whole.features.tobytes()  # type: ignore[arg-type]


# ---- what a request says ----


def test_one_row_one_column_and_no_row_are_bodies() -> None:
    assert plain(parse_body(b"1,2", "CSV")) == [[1, 2]]
    assert plain(parse_body(b"7\n8\n", "CSV")) == [[7], [8]]
    assert parse_body(b"", "CSV").features.shape == (0, 0)
    alone = parse_body(b"age,pay\n", "CSV")
    assert (alone.names, alone.features.shape) == (("age", "pay"), (0, 2))
    assert parse_body(parquet(a=pa.array([], pa.float32())), "Parquet").features.shape[0] == 0


def test_a_header_is_found_or_declared() -> None:
    assert parse_body(b"age,pay\n1,2\n", "CSV").names == ("age", "pay")
    assert parse_body(b"2010,2011,2012\n1,2,3\n", "CSV", ColumnSpec(labels=0, header=True)).names == (
        "2010",
        "2011",
        "2012",
    )
    texts = ColumnSpec(labels=0, texts=True, header=False)
    coding = Coding({0: ("blue", "red"), 1: ("l", "s")})
    assert plain(parse_body(b"red,s\n", "CSV", texts, coding=coding)) == [[1, 1]]
    assert read_content_type("text/csv; header=absent").header is False
    assert read_content_type("text/csv; header=present; label_size=0").labels == 0


@pytest.mark.parametrize(
    ("format_", "content"),
    [("CSV", b"size,color\n1,red\n2,blue\n3,\n"), ("Parquet", parquet(size=[1, 2, 3], color=["red", "blue", None]))],
)
def test_texts_have_the_codes_of_training(format_: Format, content: bytes) -> None:
    coding = Coding({1: ("blue", "green", "red")}, ("no", "yes"))
    body = parse_body(content, format_, ColumnSpec(labels=0, texts=True), coding=coding)
    np.testing.assert_array_equal(body.features, [[1, 2], [2, 0], [3, NAN]])


def test_codes_follow_the_names_of_the_body() -> None:
    coding = Coding({1: ("blue", "green", "red")})
    columns = ColumnSpec(labels=0, texts=True)
    body = parse_body(b"color,age,size\nred,1,2\nblue,3,4\n", "CSV", columns, names=("size", "color"), coding=coding)
    assert body.names == ("color", "age", "size")
    assert plain(body) == [[2, 1, 2], [0, 3, 4]]
    with pytest.raises(ValueError, match="texts of a request need the codes of training"):
        parse_body(b"color\nred\n", "CSV", columns)


# ---- what cannot be used ----

FAULTS: dict[str, tuple[Format, bytes, str, tuple[int, int | None, str, str | None]]] = {
    "CSV": ("CSV", b"1,2\n3,abc\n", r"^body:2: column 2 \('pay'\): 'abc' is not a number$", (2, 2, "pay", "abc")),
    "CSV with names of its own": (
        "CSV",
        b"a,b\n\n1,2\n3,1e999\n",
        r"^body:4: column 2 \('b'\): '1e999' is infinite as a 32-bit float$",
        (4, 2, "b", "1e999"),
    ),
    "the first row": ("CSV", b"1,abc\n", r"^body:1: column 2: 'abc' is not a number$", (1, 2, "", "abc")),
    "a short row": ("CSV", b"1,2\n3\n", r"^body:2: 1 columns, the first row has 2", (2, None, "", None)),
    "Parquet": (
        "Parquet",
        parquet(a=[1.0, 2.0], b=[0.0, float("inf")]),
        r"^body, row 2: a value is infinite as a 32-bit float: column 2 \('b'\)$",
        (2, 2, "b", None),
    ),
    "libsvm": ("libsvm", b"1:2\n2:x\n", r"^body:2: '2:x': the value is not a number$", (2, 3, "", "x")),
    "libsvm, infinite": (
        "libsvm",
        b"1:2\n2:inf\n",
        r"^body:2: a value is infinite as a 32-bit float: feature f2$",
        (2, 3, "", None),
    ),
    "records": (
        "recordio-protobuf",
        b"".join(frame(entry(1, tensor([value]))) for value in (1.0, float("inf"))),
        r"^body, record 2 at byte 28: a value is infinite as a 32-bit float: feature f0$",
        (2, 1, "", None),
    ),
}


@pytest.mark.parametrize(("format_", "content", "message", "place"), FAULTS.values(), ids=FAULTS)
def test_a_fault_has_row_column_name_and_value(
    format_: Format, content: bytes, message: str, place: tuple[int, int | None, str, str | None]
) -> None:
    with pytest.raises(RowError) as caught:
        parse_body(content, format_, names=("age", "pay") if format_ == "CSV" else None)
    error = caught.value
    assert isinstance(error, DataError)
    assert (error.row, error.column, error.name, error.value) == place
    with pytest.raises(RowError, match=message):
        raise RowError(error.message)


def test_a_text_that_training_did_not_have_is_a_fault_or_missing() -> None:
    coding = Coding({0: ("blue", "red")})
    columns = ColumnSpec(labels=0, texts=True, header=False)
    for format_, content in (("CSV", b"red,1\ngreen,2\n"), ("Parquet", parquet(c=["red", "green"], n=[1, 2]))):
        with pytest.raises(RowError, match="'green' is not among the texts of training: 'blue', 'red'") as caught:
            parse_body(content, format_, columns, names=("c", "n"), coding=coding)  # type: ignore[arg-type]
        assert (caught.value.row, caught.value.column, caught.value.value) == (2, 1, "green")
    lenient = ColumnSpec(labels=0, texts=True, header=False, unseen="missing")
    np.testing.assert_array_equal(
        parse_body(b"red,1\ngreen,2\n", "CSV", lenient, coding=coding).features, [[1, 1], [NAN, 2]]
    )


@pytest.mark.parametrize(
    ("format_", "content", "message"),
    [
        ("Parquet", b"PAR1 and no more", "body cannot be read as Parquet"),
        ("Parquet", parquet(a=["x"]), "body: column 'a' is of type string"),
        ("recordio-protobuf", dense(RECORDS)[:-3], "body, record 3 at byte .* is cut off after"),
        ("recordio-protobuf", b"1,2,3,4,5\n", "does not begin with RecordIO's magic number"),
        ("CSV", b"\xff\xfe1\x00", "body is not UTF-8 text"),
        ("CSV", b",a,b\n0,1,2\n", "looks like a data frame's index"),
        ("libsvm", b"1:2 1:3\n", "index 1 is repeated in one row"),
    ],
)
def test_a_body_that_is_not_of_its_format_is_a_data_error(format_: Format, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_body(content, format_)


def test_a_body_without_names_must_have_as_many_columns_as_training() -> None:
    with pytest.raises(DataError, match="body has 3 features, 2 are expected"):
        parse_body(b"1,2,3\n", "CSV", names=("age", "pay"), coding=Coding({5: ("a",)}))
    with pytest.raises(DataError, match="body has 2 features, 3 are expected"):
        parse_body(dense(RECORDS), "recordio-protobuf", names=("a", "b", "c"))


def test_parquet_needs_all_of_its_bytes() -> None:
    content = parquet(a=[1, 2])
    assert [len(rows) for rows in open_body(stream_from(content, "body"), "Parquet").blocks] == [2]
    with pytest.raises(TypeError, match="body: Parquet needs random access"):
        open_body(ByteStream(io.BytesIO(content), "body"), "Parquet")


def test_a_channel_needs_labels(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,2\n"})
    with pytest.raises(ValueError, match="training needs at least one"):
        read_table(directory, columns=ColumnSpec(labels=0))
    with pytest.raises(DataError, match="label_size is '0', expected a number of columns, 1 or more"):
        read_table(directory, content_type="text/csv;label_size=0")
