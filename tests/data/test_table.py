"""Tables: parts for ranks, digests, blocks that are the same rows, channels without rows, and how much is to come."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import trainbox.data
from tests.support.writers import dense, sparse_features, write
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, Table, digest, estimate_bytes, read_blocks, read_table, take_part
from trainbox.data.table import GroupOrder
from trainbox.errors import DataError


def make(rows: int, *, groups: list[int] | None = None, is_sparse: bool = False, weighted: bool = False) -> Table:
    features = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    return Table(
        np.arange(rows, dtype=np.float32),
        scipy.sparse.csr_matrix(features) if is_sparse else features,
        ("a", "b"),
        (Path("train/a.csv"),),
        np.ones(rows, np.float32) if weighted else None,
        None if groups is None else np.array(groups, np.int64),
    )


def test_the_public_names_are_sorted_and_there() -> None:
    names = trainbox.data.__all__
    assert list(names) == sorted(names)
    assert all(hasattr(trainbox.data, name) for name in names)


# ---- parts ----


@given(
    lengths=st.lists(st.integers(1, 6), max_size=12),
    count=st.integers(1, 7),
    grouped=st.booleans(),
    is_sparse=st.booleans(),
)
def test_parts_hold_every_row_once_in_order_and_cut_no_group(
    lengths: list[int], count: int, grouped: bool, is_sparse: bool
) -> None:
    groups = [number for number, length in enumerate(lengths) for _ in range(length)]
    table = make(len(groups), groups=groups if grouped else None, is_sparse=is_sparse, weighted=True)
    parts = [take_part(table, index, count) for index in range(count)]
    assert np.concatenate([part.labels for part in parts]).tolist() == table.labels.tolist()
    assert all(part.features.shape == (len(part.labels), 2) for part in parts)
    assert all(part.weights is not None and len(part.weights) == len(part.labels) for part in parts)
    if not grouped:
        assert {len(part.labels) for part in parts} <= {len(groups) // count, len(groups) // count + 1}
        return
    found = [set() if part.groups is None else set(part.groups.tolist()) for part in parts]
    assert sum(map(len, found)) == len(lengths)


def test_a_part_beyond_the_last_is_an_error() -> None:
    with pytest.raises(ValueError, match="part 2 of 2"):
        take_part(make(4), 2, 2)


# ---- digests ----


def test_the_digest_is_of_the_numbers_alone(tmp_path: Path) -> None:
    first = read_table(write(tmp_path, {"a.csv": "1,2,3\n4,5,6\n"}, "one"))
    again = read_table(write(tmp_path, {"b.csv": "y,a,b\n1,2,3\n", "c.csv": "4,5,6.0\n"}, "two"))
    assert digest(first) == digest(again)
    assert len(digest(first)) == 64


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_digest_changes_with_anything_of_a_row(is_sparse: bool) -> None:
    tables = [
        make(6, is_sparse=is_sparse),
        make(7, is_sparse=is_sparse),
        make(6, is_sparse=is_sparse, weighted=True),
        make(6, is_sparse=is_sparse, groups=[0, 0, 0, 1, 1, 1]),
        make(6, is_sparse=is_sparse, groups=[0, 0, 1, 1, 1, 1]),
        make(6, is_sparse=not is_sparse),
    ]
    assert len({digest(table) for table in tables}) == len(tables)


def test_the_digest_changes_with_any_piece_and_with_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainbox.data.table._PIECE_BYTES", 64)
    tables = [make(64) for _ in range(5)]
    features = [np.asarray(table.features) for table in tables]
    features[1][0, 0] += 1
    features[2][40, 1] += 1
    features[3][63, 1] += 1
    features[4][[0, 8]] = features[4][[8, 0]]
    swapped = np.concatenate([features[0][8:16], features[0][:8], features[0][16:]])  # the first two pieces
    tables.append(Table(tables[0].labels, swapped, ("a", "b"), ()))
    assert len({digest(table) for table in tables}) == len(tables)
    assert digest(make(64)) == digest(tables[0])


def test_the_digest_does_not_depend_on_scipys_choice_of_integers() -> None:
    table = make(6, is_sparse=True)
    wide = sparse_features(table).copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert digest(Table(table.labels, wide, table.feature_names, table.files)) == digest(table)


# ---- blocks ----


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_blocks_are_the_same_rows_in_the_same_order(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(1)
    lines = [f"{rng.normal():.4f},{rng.uniform():.2f},{row // 5},{row}\n" for row in range(120)]
    directory = write(tmp_path, {f"{name}.csv": "".join(lines[40 * i : 40 * i + 40]) for i, name in enumerate("abc")})
    columns = ColumnSpec(weight=True, group="2")
    table = read_table(directory, columns=columns)
    blocks = list(read_blocks(directory, columns=columns, rows=rows))
    assert {len(block.labels) for block in blocks[:-1]} <= {rows}
    whole = Table(
        np.concatenate([block.labels for block in blocks]),
        np.concatenate([block.features for block in blocks]),
        blocks[0].feature_names,
        blocks[0].files,
        np.concatenate([block.weights for block in blocks if block.weights is not None]),
        np.concatenate([block.groups for block in blocks if block.groups is not None]),
    )
    assert digest(whole) == digest(table)


def test_blocks_are_checked_as_tables_are(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "y,a\n" + "1,2\n" * 20, "b.csv": "y,a\n1,x\n"})
    blocks = read_blocks(directory, rows=5)
    assert len(next(blocks).labels) == 5
    with pytest.raises(DataError, match=r"train/b\.csv:2: column 2"):
        list(blocks)
    with pytest.raises(DataError, match=r"train/a\.csv calls a column 'a' where the other channel calls it 'b'"):
        next(read_blocks(directory, like=("b",)))
    empty = write(tmp_path, {"a.csv": "y,a\n"}, "empty")
    with pytest.raises(DataError, match="only headers"):
        list(read_blocks(empty))
    assert list(read_blocks(empty, allow_empty=True)) == []
    assert list(read_blocks(tmp_path / "gone", allow_empty=True)) == []


@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=12), ascending=st.booleans(), rows=st.integers(1, 12))
def test_a_group_in_two_runs_is_found_wherever_the_blocks_end(groups: list[int], ascending: bool, rows: int) -> None:
    ids = np.array(sorted(groups) if ascending else groups, np.int64)
    runs = [group for row, group in enumerate(ids.tolist()) if row == 0 or ids[row - 1] != group]
    seen = GroupOrder()
    try:
        for start in range(0, len(ids), rows):
            seen.check(ids[start : start + rows], lambda row, start=start: f"row {start + row}")  # type: ignore[misc]
    except DataError as error:
        row = int(error.message.split(":")[0].removeprefix("row "))
        assert ids[row] in ids[: row - 1].tolist()
        assert len(set(runs)) < len(runs)
    else:
        assert len(set(runs)) == len(runs)


# ---- channels without rows ----


def test_a_channel_without_rows_has_the_columns_of_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ColumnSpec(weight=True)
    train = read_table(write(tmp_path, {"a.csv": "y,w,a,b\n1,2,3,4\n"}), columns=columns)
    (tmp_path / "nothing").mkdir()
    cases = {
        "nothing": "holds no file",
        "blank": "holds nothing but empty files",
        "headers": "only headers",
        "gone": "there is no",
    }
    write(tmp_path, {"a.csv": "\n"}, "blank")
    write(tmp_path, {"a.csv": "y,w,a,b\n"}, "headers")
    for name, why in cases.items():
        channel = Channel(name, tmp_path / name)
        with pytest.raises(DataError):
            read_table(channel, like=train, columns=columns)
        table = read_table(channel, like=train, columns=columns, allow_empty=True)
        assert (table.labels.shape, table.features.shape, table.feature_names) == ((0,), (0, 2), ("a", "b"))
        assert table.weights is not None
        assert table.weights.shape == (0,)
        assert digest(table) == digest(take_part(train, 0, 2))
        said = capsys.readouterr().err
        assert f"{name}: no rows on this host, continuing without" in said
        assert why in said


def test_a_channel_without_rows_is_sparse_where_the_other_is(tmp_path: Path) -> None:
    train = read_table(write(tmp_path, {"a.svm": "1 qid:1 5:1\n"}))
    (tmp_path / "validation").mkdir()
    table = read_table(tmp_path / "validation", like=train, allow_empty=True)
    assert scipy.sparse.issparse(table.features)
    assert table.features.shape == (0, 6)
    assert table.groups is not None
    assert len(table.groups) == 0


def test_rows_that_are_there_are_read_whether_or_not_there_might_be_none(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,2\n"})
    assert len(read_table(directory, allow_empty=True).labels) == 1
    (directory / "b.csv").write_text("1,x\n")
    with pytest.raises(DataError, match=r"b\.csv:1"):
        read_table(directory, allow_empty=True)


# ---- how much is to come ----


def test_the_estimate_is_near_the_truth_without_reading_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    cells = [f"{value:.3g}" for value in rng.exponential(size=90_000) * 10.0 ** rng.integers(-4, 4, size=90_000)]
    lines = [",".join(cells[start : start + 9]) for start in range(0, len(cells), 9)] * 6  # too far apart for gzip
    plain = write(tmp_path, {"a.csv": "\n".join(lines[:50_000]), "b.csv": "\n".join(lines[50_000:])}, "plain")
    packed = write(tmp_path, {"a.csv.gz": gzip.compress("\n".join(lines).encode())}, "packed")
    assert estimate_bytes(plain) == pytest.approx(60_000 * 8 * 4, rel=0.1)
    assert estimate_bytes(packed) == pytest.approx(60_000 * 8 * 4, rel=0.2)
    assert estimate_bytes(plain, columns=ColumnSpec(weight=True)) == pytest.approx(60_000 * 7 * 4, rel=0.1)
    assert estimate_bytes(write(tmp_path, {"_SUCCESS": ""}, "nothing")) == 0


def test_the_estimate_of_small_files_is_exact_and_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate_bytes(write(tmp_path, {"a.csv": "y;a;b\n1;2;3\n4;5;6\n", "b.csv": "1;2;3\n", ".x": ""})) == 24
    assert not capsys.readouterr().err
    assert estimate_bytes(write(tmp_path, {"a.pbr": dense([[1, 2, 3]] * 4)}, "records")) == 32


# ---- content types ----


@pytest.mark.parametrize("text", ["csv", "text/csv", "Text/CSV;label_size=1", 'text/csv; charset="utf-8"'])
def test_content_types_of_csv(tmp_path: Path, text: str) -> None:
    assert read_table(write(tmp_path, {"a": "1,2\n"}), content_type=text).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("application/json", r"content type 'application/json' is not known\n.*csv, text/csv, libsvm"),
        ("text/csv;label_size=0", "label_size is '0'"),
        ("text/csv;label_size=x", "label_size is 'x'"),
        ("text/csv;charset=latin-1", "charset 'latin-1'"),
    ],
)
def test_content_types_that_cannot_be_followed_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(Channel("train", write(tmp_path, {"a": "1,2\n"}), content_type=text))
