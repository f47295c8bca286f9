"""Pipe mode: real FIFOs with a writer behind them, through the same readers."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import scipy.sparse

from tests.support.writers import dense, frame
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, estimate_bytes, read_blocks, read_table
from trainbox.errors import DataError

pytestmark = pytest.mark.process

SECONDS = 240.0


def piped(root: Path, content_type: str | None = None, *, wrapper: Literal["None", "RecordIO"] = "None") -> Channel:
    return Channel("train", root / "train", "Pipe", content_type, record_wrapper=wrapper)


@contextmanager
def writing(root: Path, pieces: Sequence[bytes], *, late: float = 0.0) -> Iterator[None]:
    """A writer of the first epoch's FIFO; it makes it `late` seconds from now, and nobody may open the second."""

    def write() -> None:
        time.sleep(late)
        os.mkfifo(root / "train_0")
        with (root / "train_0").open("wb", buffering=0) as pipe:
            for piece in pieces:
                os.write(pipe.fileno(), piece)

    os.mkfifo(root / "train_1")
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join(SECONDS)
    assert not thread.is_alive()


def test_csv_comes_through_a_pipe_in_any_pieces(tmp_path: Path) -> None:
    with writing(tmp_path, [b"1,", b"2\n3", b",4\n", b"5,6"], late=0.2):
        table = read_table(piped(tmp_path, "text/csv"), pipe_timeout=SECONDS)
    assert table.labels.tolist() == [1, 3, 5]
    assert table.features.tolist() == [[2], [4], [6]]
    assert table.files == (tmp_path / "train_0",)


def test_the_headers_of_files_that_were_joined_are_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writing(tmp_path, [b"y,a\n1,2\n", b"y,a\n3,4\n", b"y,a\r\n5,6\n"]):
        table = read_table(piped(tmp_path), pipe_timeout=SECONDS)
    assert table.labels.tolist() == [1, 3, 5]
    assert table.feature_names == ("a",)
    assert capsys.readouterr().err.count("the header is repeated further down") == 1


def test_a_fault_in_a_pipe_has_the_line_of_the_stream(tmp_path: Path) -> None:
    fault = pytest.raises(DataError, match=r"train_0:4: column 2 \('a'\): 'x' is not a number")
    with writing(tmp_path, [b"y,a\n1,2\n", b"y,a\n3,x\n"]), fault:
        read_table(piped(tmp_path), pipe_timeout=SECONDS)


def test_libsvm_and_recordio_come_through_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with writing(tmp_path / "a", [b"1 1:2\n0 4", b":1\n"]):
        table = read_table(piped(tmp_path / "a", "text/libsvm"), pipe_timeout=SECONDS)
    assert scipy.sparse.issparse(table.features)
    assert table.features.shape == (2, 5)
    content = dense([[1, 2, 3], [4, 5, 6]])
    with writing(tmp_path / "b", [content[:30], content[30:]]):
        channel = piped(tmp_path / "b", "application/x-recordio-protobuf", wrapper="RecordIO")
        table = read_table(channel, pipe_timeout=SECONDS)
    assert table.features.tolist() == [[2, 3], [5, 6]]


def test_files_in_records_of_their_own_keep_their_headers_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with writing(tmp_path / "a", [frame(b"y,a\n1,2\n") + frame(b""), frame(b"y,a\n3,4")]):
        table = read_table(piped(tmp_path / "a", "text/csv", wrapper="RecordIO"), pipe_timeout=SECONDS)
    assert table.labels.tolist() == [1, 3]
    fault = pytest.raises(DataError, match=r"train_0, record 2 at byte 16 calls a column 'b' where .* 'a'")
    with writing(tmp_path / "b", [frame(b"y,a\n1,2\n"), frame(b"y,b\n3,4")]), fault:
        read_table(piped(tmp_path / "b", "text/csv", wrapper="RecordIO"), pipe_timeout=SECONDS)


def test_blocks_of_a_pipe_come_before_its_end(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60_000, 6)).astype(np.float32)
    text = "".join(",".join(map(repr, row)) + "\n" for row in rows.tolist()).encode()
    pieces = [text[start : start + 50_000] for start in range(0, len(text), 50_000)]
    with writing(tmp_path, pieces):
        blocks = list(read_blocks(piped(tmp_path, "text/csv"), rows=7_000, pipe_timeout=SECONDS))
    assert [len(block.labels) for block in blocks] == [7_000] * 8 + [4_000]
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), rows[:, 1:])


def test_a_pipe_without_a_row_is_an_error_or_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with writing(tmp_path / "a", []), pytest.raises(DataError, match="ended without a row"):
        read_table(piped(tmp_path / "a", "text/csv"), pipe_timeout=SECONDS)
    with writing(tmp_path / "b", []):
        table = read_table(piped(tmp_path / "b", "text/csv"), allow_empty=True, pipe_timeout=SECONDS)
    assert len(table.labels) == 0


def test_parquet_over_a_pipe_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "train_0").write_bytes(b"PAR1....PAR1")
    for content_type in (None, "application/x-parquet"):
        with pytest.raises(DataError, match=r"Parquet cannot be read from a pipe.*\n.*FastFile"):
            read_table(piped(tmp_path, content_type))


def test_a_pipe_that_does_not_appear_is_an_error_after_a_while(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_0: the pipe of the channel did not appear within 0\.2 s"):
        read_table(piped(tmp_path), pipe_timeout=0.2)


def test_a_pipe_to_which_nobody_writes_is_an_error_after_a_while(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train_0")
    with pytest.raises(DataError, match=r"train_0: nobody wrote to the pipe within 0\.2 s"):
        read_table(piped(tmp_path), pipe_timeout=0.2)


def test_how_much_comes_through_a_pipe_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known only after reading it"):
        estimate_bytes(piped(tmp_path))


def test_groups_are_followed_from_block_to_block_of_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "train_0").write_text("".join(f"1,{row // 3},5\n" for row in range(30)) + "1,2,5\n")
    with pytest.raises(DataError, match=r"train_0:31: rows of group 2 came before"):
        list(read_blocks(piped(tmp_path), columns=ColumnSpec(group="1"), rows=4))
