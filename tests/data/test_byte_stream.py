"""Blocks of lines, and that the next one of a file is read while one is worked on."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.data.formats.byte_stream import ByteStream, open_file, prefetch, read_lines


@given(
    st.lists(st.sampled_from(["a", "bc", "def", ""]), max_size=30),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.integers(1, 12),
)
def test_blocks_are_whole_lines_and_together_the_text(rows: list[str], end: str, is_ended: bool, size: int) -> None:
    text = end.join(rows) + (end if is_ended else "")
    blocks = list(read_lines(ByteStream(io.BytesIO(text.encode()), "a.csv"), size=size))
    assert b"".join(block.content for block in blocks).decode() == text
    for block in blocks[:-1]:
        assert block.content.endswith((b"\n", b"\r"))
    if end != "\r":
        before = 0
        for block in blocks:
            assert block.number == 1 + before
            before += block.content.count(b"\n")


def test_the_next_item_is_made_while_one_is_used_and_no_more_than_that() -> None:
    made: list[int] = []
    second = threading.Event()

    def make() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    items = prefetch(make())
    assert next(items) == 0
    assert second.wait(300)
    assert made == [0, 1]
    assert list(items) == [1, 2, 3, 4]


def test_an_error_comes_where_it_would_have_come_and_whoever_stops_leaves_no_thread() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("the second is broken")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="the second is broken"):
        next(items)
    stopped = prefetch(iter(range(1, 9)))
    assert next(stopped) == 1
    stopped.close()  # type: ignore[attr-defined]  # it is a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("trainbox-prefetch")]


def test_a_file_is_read_ahead_and_a_pipe_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n" * 100)
    names: dict[str, set[str]] = {"file": set(), "pipe": set()}

    class Noting(io.BytesIO):
        def __init__(self, kind: str) -> None:
            super().__init__(b"1,2\n" * 100)
            self.kind = kind

        def read(self, size: int | None = -1, /) -> bytes:
            names[self.kind].add(threading.current_thread().name)
            return super().read(size)

    for kind in names:
        list(read_lines(ByteStream(Noting(kind), "a.csv", is_file=kind == "file"), size=64))
    assert all(name.startswith("trainbox-prefetch") for name in names["file"])
    assert names["pipe"] == {threading.current_thread().name}
    with open_file(tmp_path / "a.csv", "a.csv") as stream:
        assert stream.is_file
