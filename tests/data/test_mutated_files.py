"""Files that are torn, changed or made to harm are read, or refused with their name; nothing else comes of them."""

import bz2
import contextlib
import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.support.writers import MAGIC, dense, frame, record, sparse, tensor, varint, write
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError

_ROWS = np.arange(60, dtype=np.float32).reshape(-1, 3)
_CSV = "\n".join(",".join(map(str, row)) for row in _ROWS.tolist()).encode() + b"\n"
_SVM = b"".join(b"1:1 qid:%d 1:%d 7:0.5\n" % (row // 5, row) for row in range(20))


def _parquet(**options: str) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({str(i): _ROWS[:, i] for i in range(3)}), sink, **options)
    return sink.getvalue()


def _compressed(name: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(_CSV)
    return bytes(sink.getvalue().to_pybytes())


FILES: dict[str, tuple[str, bytes]] = {
    "CSV": ("a.csv", _CSV),
    "CSV with a header": ("a.csv", b'"y",x,"z z"\n' + _CSV),
    "libsvm": ("a.svm", _SVM),
    "Parquet": ("a.parquet", _parquet()),
    "Parquet with pages of another kind": ("a.parquet", _parquet(compression="zstd", data_page_version="2.0")),
    "dense records": ("a.rec", dense(_ROWS.tolist())),
    "dense records of 64 bits": ("a.rec", dense(_ROWS.tolist(), kind="float64")),
    "sparse records": ("a.rec", sparse([(1, {0: 1.0, 5: 2.0})] * 9, width=9)),
    "gzip": ("a.csv.gz", gzip.compress(_CSV)),
    "bzip2": ("a.csv.bz2", bz2.compress(_CSV)),
    "Zstandard": ("a.csv.zst", _compressed("zstd")),
    "LZ4": ("a.csv.lz4", _compressed("lz4")),
    "Brotli": ("a.csv.br", _compressed("brotli")),
    "records within gzip": ("a.rec.gz", gzip.compress(dense(_ROWS.tolist()))),
    "no name of a format": ("part-0", _CSV),
}
_CHANGES = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["put", "insert", "cut", "end"]), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for place, how, with_what in changes:
        at = place % (len(content) + 1)
        if how == "end":
            content = content[:at]
        else:
            gone = {"put": len(with_what), "insert": 0, "cut": 1 + 3 * len(with_what)}[how]
            content = content[:at] + (b"" if how == "cut" else with_what) + content[at + gone :]
    return content


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES.keys())
def test_a_changed_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    directory = write(tmp_path_factory.mktemp("data"), {name: content})
    assert len(read_table(directory).labels)
    uses: list[Callable[[Path], object]] = [read_table, estimate_bytes, lambda path: list(read_blocks(path, rows=7))]

    @given(_CHANGES, st.sampled_from(uses))
    @settings(max_examples=100)
    def check(changes: list[tuple[int, str, bytes]], use: Callable[[Path], object]) -> None:
        (directory / name).write_bytes(changed(content, changes))
        with contextlib.suppress(DataError):  # anything else fails the test
            use(directory)

    check()


@given(st.text(alphabet='0123456789.,;|\t\r\n"eE+-:# \0\x1a\x85\u2028naifq\ufeff', max_size=60))
@settings(max_examples=300)
def test_text_of_what_text_consists_of_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.mktemp("data") / "train"
    directory.mkdir()
    for name in ("a.csv", "a.svm", "part"):
        (directory / name).write_text(text, newline="")
        for columns in (ColumnSpec(), ColumnSpec(labels=1, weight=True), ColumnSpec(group="0")):
            with contextlib.suppress(DataError):
                read_table(directory / name, columns=columns)
        (directory / name).unlink()


# ---- sizes that are declared, and not there ----


DECLARED = {
    "a frame of half a gigabyte": struct.pack("<II", MAGIC, 2**29 - 1) + b"x" * 100,
    "a record that declares more than its frame": frame(b"\x0a" + varint(2**31) + b"x"),
    "a length of ten bytes": frame(b"\x0a" + b"\xff" * 9 + b"\x01" + b"x"),
    "a length without end": frame(b"\x0a" + b"\xff" * 40),
    "a shape beyond all": frame(record(tensor([1.0], keys=[0], shape=[2**40]), tensor([1]))),
    "a shape of many numbers": frame(record(tensor([1.0], keys=[0], shape=[2**20] * 50), tensor([1]))),
    "a key beyond all": frame(record(tensor([1.0], keys=[2**63]), tensor([1]))),
    "a part that goes on for ever": frame(b"x", 1) * 100,
    "an empty frame": frame(b""),
    "groups within groups": frame(b"\x0b" * 5000),
}


@pytest.mark.parametrize("content", DECLARED.values(), ids=DECLARED.keys())
@pytest.mark.parametrize("before", [b"", dense([[1, 2, 3]] * 5)], ids=["first", "later"])
def test_what_a_record_only_declares_is_not_believed(tmp_path: Path, before: bytes, content: bytes) -> None:
    directory = write(tmp_path, {"a.rec": before + content})
    for use in (read_table, lambda path: list(read_blocks(path))):
        with pytest.raises(DataError, match=r"train/a\.rec, record"):
            use(directory)


@pytest.mark.parametrize("file", ["a.csv", "a.parquet"])
def test_a_name_with_a_nul_is_refused_for_a_library_would_know_half_of_it(tmp_path: Path, file: str) -> None:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"y": [1.0], "a\0b": [2.0], "a\0c": [3.0]}), sink)
    directory = write(tmp_path, {file: sink.getvalue() if file == "a.parquet" else "y,a\0b,a\0c\n1,2,3\n"})
    with pytest.raises(DataError, match=rf"train/{file}: the name of column 2 holds a NUL: 'a\\x00b'"):
        read_table(directory)


def test_a_parquet_footer_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    content = _parquet()
    for length in (0, 1, len(content), 2**31 - 1, 2**32 - 1):
        directory = write(tmp_path, {"a.parquet": content[:-8] + struct.pack("<I", length) + b"PAR1"})
        with pytest.raises(DataError, match=r"train/a\.parquet cannot be read as Parquet"):
            read_table(directory)


@pytest.mark.parametrize("name", [name for name, (file, _) in FILES.items() if file.endswith((".gz", ".bz2", ".zst"))])
def test_every_cut_of_a_compressed_file_is_refused(tmp_path: Path, name: str) -> None:
    file, content = FILES[name]
    for length in range(1, len(content)):
        directory = write(tmp_path, {file: content[:length]})
        with pytest.raises(DataError):
            read_table(directory)
