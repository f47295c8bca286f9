"""Output goes on byte for byte and by whole lines, whatever the chunks it arrives in."""

import os
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.system.relay import LONGEST_LINE_BYTES, TAIL_BYTES, Lines, Sink

pieces = st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"\r", b"\r\n", b"\x00", "é".encode()[:1]]))


@given(pieces)
def test_any_chunks_of_any_bytes_give_the_same_bytes_by_whole_lines(chunks: list[bytes]) -> None:
    lines = Lines()
    given_out = [lines.feed(chunk) for chunk in chunks]
    assert all(part.endswith(b"\n") for part in given_out if part)
    assert lines.end() == b"".join(chunks)
    assert b"".join([*given_out, lines.close()]) == b"".join(chunks)
    assert lines.close() == b""
    assert lines.end() == b"".join(chunks)


@given(st.integers(1, 3 * LONGEST_LINE_BYTES), st.integers(1000, LONGEST_LINE_BYTES), st.booleans())
def test_a_line_is_cut_only_beyond_one_mebibyte(length: int, step: int, ended: bool) -> None:
    line = b"x" * length + b"\n" * ended
    lines = Lines()
    given_out = [lines.feed(line[start : start + step]) for start in range(0, len(line), step)]
    cut = [part for part in given_out if part and not part.endswith(b"\n")]
    assert all(len(part) > LONGEST_LINE_BYTES for part in cut)
    assert b"".join([*given_out, lines.close()]) == line


@given(st.lists(st.tuples(st.integers(0, 2 * TAIL_BYTES), st.booleans()), max_size=8))
def test_the_tail_is_the_end_of_all_that_was_written(sizes: list[tuple[int, bool]]) -> None:
    chunks = [bytes([65 + index]) * size + b"\n" * ended for index, (size, ended) in enumerate(sizes)]
    lines = Lines()
    for chunk in chunks:
        lines.feed(chunk)
    assert lines.end() == b"".join(chunks)[-TAIL_BYTES:]


def test_a_line_of_a_mebibyte_in_the_smallest_chunks_costs_what_its_bytes_cost() -> None:
    """To copy what has come so far with each chunk would be 10^12 bytes."""
    lines = Lines()
    given_out = sum(len(lines.feed(b"\0")) for _ in range(LONGEST_LINE_BYTES))
    assert (given_out, len(lines.close()), len(lines.end())) == (0, LONGEST_LINE_BYTES, TAIL_BYTES)


def test_a_sink_waits_for_a_slow_reader_of_a_non_blocking_pipe() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    read = bytearray()
    thread = threading.Thread(target=_read_all, args=(reader, read.extend))
    sink = Sink(writer)
    data = bytes(range(256)) * 4096
    thread.start()
    sink.write(data)
    os.close(writer)
    thread.join()
    os.close(reader)
    assert bytes(read) == data
    assert sink.lost is None


def _read_all(reader: int, keep: Callable[[bytes], None]) -> None:
    while chunk := os.read(reader, 1000):
        keep(chunk)


def test_a_sink_nobody_reads_drops_what_comes_and_says_why() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = Sink(writer)
    sink.write(b"one\n")
    sink.write(b"two\n")
    os.close(writer)
    assert isinstance(sink.lost, BrokenPipeError)


@pytest.mark.parametrize(("written", "seen"), [(b"open", b"open\n"), (b"ended\n", b"ended\n"), (b"", b"")])
def test_a_sink_begins_a_new_line_only_where_one_is_open(written: bytes, seen: bytes) -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    sink.write(written)
    sink.end_line()
    os.close(writer)
    assert os.read(reader, 100) == seen
    os.close(reader)
