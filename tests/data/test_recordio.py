"""recordio-protobuf: against an encoder that writes each byte by hand, and every way in which a file can be broken."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import writers
from tests.support.writers import dense, entry, field, frame, record, sparse, sparse_features, tensor, write
from trainbox.contract.job import Channel
from trainbox.data import estimate_bytes, read_blocks, read_table
from trainbox.data.formats import recordio
from trainbox.errors import DataError

ROWS = [[1.0, 2.0, 3.5], [0.0, float("nan"), -4.0], [2.0, 0.0, 1e-30]]


def test_dense_records_are_a_matrix(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, {"a.pbr": dense(ROWS[:2]), "b.pbr": dense(ROWS[2:])}))
    assert table.labels.tolist() == [1, 0, 2]
    assert isinstance(table.features, np.ndarray)
    assert table.features.flags.c_contiguous
    np.testing.assert_array_equal(table.features, np.array(ROWS, np.float32)[:, 1:])
    assert table.feature_names == ("f0", "f1")


@pytest.mark.parametrize("kind", ["float64", "int32"])
def test_tensors_of_other_numbers_are_rounded_to_32_bits(tmp_path: Path, kind: str) -> None:
    rows = [[1.0, 3, -7], [0.0, 2**30 + 1, 5]]
    table = read_table(write(tmp_path, {"a.pbr": dense(rows, kind=kind)}))
    np.testing.assert_array_equal(table.features, np.array(rows, np.float32)[:, 1:])


def test_records_of_several_kinds_of_numbers_and_with_more_fields_are_one_matrix(tmp_path: Path) -> None:
    content = b"".join(
        frame(record(tensor([1, 2], kind=kind, shape=[2]), tensor([5], kind=kind), rest=field(3, b"uid") * extra))
        for kind, extra in (("float32", 0), ("float64", 1), ("int32", 2), ("float32", 3))
    )
    table = read_table(write(tmp_path, {"a.rec": content}))
    assert table.features.tolist() == [[1, 2]] * 4
    assert table.labels.tolist() == [5] * 4


def test_several_labels_make_a_matrix(tmp_path: Path) -> None:
    content = frame(record(tensor([9]), tensor([1, 2]))) + frame(record(tensor([8]), tensor([3, 4])))
    assert read_table(write(tmp_path, {"a.pbr": content})).labels.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("width", [10, None])
def test_sparse_records_are_a_csr_matrix(tmp_path: Path, width: int | None) -> None:
    rows: list[tuple[float, dict[int, float]]] = [(1, {3: 0.5, 9: 2}), (0, {7: 1, 2: 4})]
    rows += [] if width is None else [(1, {})]
    table = read_table(write(tmp_path, {"a.pbr": sparse(rows, width)}))
    features = sparse_features(table)
    assert features.shape == (len(rows), 10)
    assert features.indices.tolist() == [3, 9, 2, 7]
    assert features.data.tolist() == [0.5, 2, 4, 1]
    assert features.has_sorted_indices


@pytest.mark.parametrize("size", [1, 40, 1000])
def test_a_record_in_parts_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A writer cuts where the magic number comes up in the content, and leaves it out; a block may be one part."""
    monkeypatch.setattr("trainbox.data.read.block_bytes", lambda: size)
    magic = struct.unpack("<f", struct.pack("<I", writers.MAGIC))[0]
    content = record(tensor([1, magic, 2]), tensor([1]))
    head, tail = content.split(struct.pack("<I", writers.MAGIC))
    parts = frame(head, 1) + frame(tail, 3)
    table = read_table(write(tmp_path, {"a.pbr": frame(content) + parts + frame(content)}))
    assert table.features.tobytes() == np.array([[1, magic, 2]] * 3, np.float32).tobytes()


def test_a_file_without_a_name_for_it_is_known_by_its_first_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read_table(write(tmp_path, {"part-0": dense(ROWS)})).labels) == 3
    assert "train/part-0 read as recordio-protobuf" in capsys.readouterr().err


def test_blocks_and_the_estimate_agree_with_the_table(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20_000, 12)).astype(np.float32)
    directory = write(tmp_path, {"a.pbr": dense(rows.tolist())})
    blocks = list(read_blocks(directory, rows=3_000))
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), rows[:, 1:])
    assert [len(block.labels) for block in blocks] == [3_000] * 6 + [2_000]
    assert estimate_bytes(directory) == pytest.approx(rows[:, 1:].nbytes, rel=0.05)


ONE = record(tensor([1, 2]), tensor([1]))
GOOD = frame(ONE)
BAD: dict[str, tuple[bytes, str]] = {
    "a frame that is cut off": (GOOD * 2 + GOOD[:-6], r"a\.pbr, record 3 at byte \d+ is cut off"),
    "a head that is cut off": (GOOD + GOOD[:5], r"a\.pbr, record 2 at byte \d+ is cut off after 5 bytes"),
    "the first record cut off": (GOOD[:20], r"a\.pbr, record 1 at byte 0 is cut off"),
    "another magic number": (
        GOOD + b"\1\2\3\4" + GOOD[4:],
        rf"a\.pbr, record 2 at byte {len(GOOD)} does not begin .* but with 01 02 03 04",
    ),
    "text": (b"1,2,3\n", r"a\.pbr, record 1 at byte 0 does not begin with RecordIO's magic"),
    "no message": (GOOD + frame(b"\xff" * 12), r"a\.pbr, record 2 at byte \d+ is not an aialgs\.data\.Record"),
    "bytes for features": (
        GOOD + frame(record(field(9, field(1, b"jpeg")), tensor([1]))),
        r"a\.pbr, record 2 at byte \d+: features: found bytes, expected numbers",
    ),
    "an empty value": (GOOD + frame(record(b"", tensor([1]))), r"record 2 at byte \d+: features: found no tensor"),
    "features of another name": (
        GOOD + frame(entry(1, tensor([1, 2]), "pixels") + entry(2, tensor([1]))),
        r"record 2 at byte \d+: features: found 'pixels', expected 'values' alone",
    ),
    "no label": (GOOD + frame(entry(1, tensor([1, 2]))), r"record 2 at byte \d+: label: found nothing"),
    "an empty label": (GOOD + frame(record(tensor([1, 2]), tensor([]))), "record 2.*the label is sparse or empty"),
    "more features": (
        GOOD * 3 + frame(record(tensor([1, 2, 3]), tensor([1]))),
        r"a\.pbr, record 4 at byte \d+ has 3 features, the first record has 2",
    ),
    "more labels": (
        GOOD + frame(record(tensor([1, 2]), tensor([1, 2]))),
        r"record 2.* has 2 labels, those before .* 1",
    ),
    "sparse after dense": (
        GOOD + frame(record(tensor([1], keys=[0], shape=[2]), tensor([1]))),
        r"record 2 at byte \d+ is sparse, those before are dense",
    ),
    "a key beyond the shape": (
        frame(record(tensor([1], keys=[2], shape=[2]), tensor([1]))),
        r"record 1 at byte 0: features: 1 keys for 1 values, of a shape of 2",
    ),
    "fewer keys than values": (frame(record(tensor([1, 2], keys=[0]), tensor([1]))), "features: 1 keys for 2 values"),
    "a key twice": (
        sparse([(1, {0: 1})], 3) + frame(record(tensor([1, 2], keys=[1, 1], shape=[3]), tensor([1]))),
        r"record 2 at byte \d+: a key is repeated",
    ),
    "another shape": (sparse([(1, {0: 1})], 3) + sparse([(1, {0: 1})], 4), "record 2.* has 4 features, .* has 3"),
    "a shape that is not that of the values": (frame(record(tensor([1, 2], shape=[3]), tensor([1]))), "2 values, of a"),
    "a label that is NaN": (
        GOOD + frame(record(tensor([1, 2]), tensor([float("nan")]))),
        rf"a\.pbr, record 2 at byte {len(GOOD)}: the label is missing",
    ),
    "an infinite value": (GOOD + dense([[1, float("inf"), 2]]), r"record 2 at byte \d+: a value is infinite"),
    "too large for 32 bits": (GOOD + dense([[1, 1e300, 2]], kind="float64"), r"record 2 .*: a value is infinite"),
    "a last part that is missing": (GOOD + frame(ONE, 1), r"record 2 at byte \d+: its last part is missing"),
    "a middle part before the first": (GOOD + frame(ONE, 2), r"record 2 at byte \d+: flag 2 does not continue"),
    "a whole record between parts": (frame(ONE, 1) + GOOD, r"record 2 at byte \d+: flag 0 does not continue"),
    "a flag that does not exist": (GOOD + frame(ONE, 5), r"record 2 at byte \d+: flag 5 does not continue"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_broken_files_are_errors_that_say_where(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, {"a.pbr": content}))


def test_another_file_with_other_records_is_refused(tmp_path: Path) -> None:
    files = {"a.pbr": dense(ROWS), "b.pbr": sparse([(1, {0: 1})], 2)}
    with pytest.raises(DataError, match=r"b\.pbr, record 1 at byte 0 has .* sparse features, .* dense features"):
        read_table(write(tmp_path, files))


def test_a_content_type_that_the_bytes_contradict_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a": dense(ROWS)})
    with pytest.raises(DataError, match="train/a is recordio-protobuf, but the channel's content type is 'text/csv'"):
        read_table(Channel("train", directory, content_type="text/csv"))
    text = write(tmp_path, {"a": "1,2\n"}, "text")
    with pytest.raises(
        DataError, match=r"text/a is CSV, but .* 'application/x-recordio-protobuf': it begins with '1,2"
    ):
        read_table(Channel("text", text, content_type="application/x-recordio-protobuf"))


numbers = st.floats(width=32, allow_infinity=False)
finite = st.floats(width=32, allow_infinity=False, allow_nan=False)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.tuples(finite, st.lists(numbers, min_size=width, max_size=width)), min_size=1, max_size=6
        )
    ),
    size=st.integers(1, 300),
    alike=st.booleans(),
)
def test_dense_records_are_read_back_to_the_bit_all_at_once_and_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, list[float]]], size: int, alike: bool
) -> None:
    content = dense([[label, *values] for label, values in rows])
    path = write(tmp_path_factory.mktemp("data"), {"a.pbr": content}) / "a.pbr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainbox.data.read.block_bytes", lambda: size)
        if not alike:
            patch.setattr(recordio, "_read_uniform", lambda *_args, **_options: None)
        table = read_table(path)
    assert table.labels.tobytes() == np.array([label for label, _ in rows], np.float32).tobytes()
    np.testing.assert_array_equal(table.features, np.array([values for _, values in rows], np.float32))


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(finite, st.dictionaries(st.integers(0, 99), numbers, max_size=4)), min_size=1, max_size=6),
    size=st.integers(1, 300),
)
def test_sparse_records_are_read_back_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, dict[int, float]]], size: int
) -> None:
    path = write(tmp_path_factory.mktemp("data"), {"a.pbr": sparse(rows, 100)}) / "a.pbr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainbox.data.read.block_bytes", lambda: size)
        table = read_table(path)
    stored = [sorted(row.items()) for _, row in rows]
    features = sparse_features(table)
    assert features.shape == (len(rows), 100)
    assert features.indices.tolist() == [column for row in stored for column, _ in row]
    expected = np.array([value for row in stored for _, value in row], np.float32)
    np.testing.assert_array_equal(features.data, expected)


def _flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@settings(max_examples=60)
@given(data=st.data())
def test_no_broken_byte_ends_in_anything_but_a_table_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    make: Callable[[], bytes] = data.draw(st.sampled_from([lambda: dense(ROWS), lambda: sparse([(1, {3: 1})] * 3, 9)]))
    content = make()
    content = _flip(content, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
    path = write(tmp_path_factory.mktemp("data"), {"a.pbr": content}) / "a.pbr"
    try:
        read_table(path)
    except DataError as error:
        assert "a.pbr" in error.message  # noqa: PT017 - a table is as good
