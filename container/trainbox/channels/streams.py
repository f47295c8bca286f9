"""Bytes from a file or a pipe: looked at first, then read in blocks of whole lines."""

import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from trainbox.channels.shortage import naming_shortage, prove_threads
from trainbox.errors import DataError

#: Enough for two lines of nearly every file.
HEAD_BYTES = 64 * 1024
#: A row of a million columns is shorter; what is longer is no text.
LONGEST_LINE = 64 * 1024 * 1024
#: What Arrow parses on one core at a time.
PIECE_BYTES = 1024 * 1024
_FEWEST_PIECES, _MOST_PIECES = 4, 32
#: What Arrow calls what the end of a name says.
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}
#: The same by the first bytes; brotli has no mark.
_PACKED = {b"\x1f\x8b\x08": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
#: Behind the mark of bzip2 and a digit: a block, or the end.
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
#: So much of a file shows whether it is packed, or plain text with the name of a packed one.
_MARK_BYTES = 256
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
Item = TypeVar("Item")
BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """What a stream reads from."""

    def read(self, size: int, /) -> bytes:
        """At most that many bytes; none at the end."""

    def close(self) -> None:
        """Give the file back."""


class Stream:
    """Bytes that can be looked at before they are read: from a pipe nothing can be read twice."""

    def __init__(self, raw: Readable, shown: str, *, is_file: bool = False) -> None:
        self._raw = raw
        self._held = b""
        self._ended = False
        self.shown = shown
        #: Whether a read never waits for somebody who writes.
        self.is_file = is_file

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end alone; the next `read` begins with them."""
        pieces, length = [self._held], len(self._held)
        while length < size and not self._ended:
            piece = self._raw.read(size - length)  # a pipe gives 64 KiB at a time
            self._ended = not piece
            pieces.append(piece)
            length += len(piece)
        held = [piece for piece in pieces if piece]
        self._held = held[0] if len(held) == 1 else b"".join(held)
        return self._held[:size]

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end alone."""
        found = self.peek(size)
        self._held = self._held[size:]
        return found

    def close(self) -> None:
        """Give the file back."""
        self._raw.close()


class Lines(msgspec.Struct, frozen=True, eq=False):
    """Whole lines of a text."""

    content: bytes
    #: The number of the first, from 1.
    number: int


@contextmanager
def open_file(path: Path, shown: str) -> Iterator[Stream]:
    """A file's bytes, unpacked where its first bytes or its name say that it is packed.

    Raises:
        DataError: It cannot be read, or not unpacked to its end.
    """
    with reading(shown):
        packing = packing_of(path)
        raw: Any = (
            path.open("rb", buffering=0) if packing is None else pa.input_stream(os.fspath(path), compression=packing)
        )
        with raw:
            yield Stream(raw, shown, is_file=True)


def packing_of(path: Path) -> str | None:
    """How a file is packed, in Arrow's words; None where it is not.

    The first bytes count before the name: uploads lose names, and downloads unpack what keeps its name.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_MARK_BYTES)
    found = packing_by_mark(head)
    named = COMPRESSED.get(path.suffix.lower())
    return found or (None if named != "brotli" and _is_text(head) else named)


def packing_by_mark(head: bytes) -> str | None:
    """How bytes are packed that begin so; None where no mark says it."""
    found = next((packing for mark, packing in _PACKED.items() if head.startswith(mark)), None)
    return None if found == "bz2" and not head[4:].startswith(_BZIP2) else found


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and head.isascii() and not _CONTROLS.search(head)


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Errors of the file system and of unpacking become one that names the file; so does a lack of memory or threads.

    Raises:
        DataError: It cannot be read.
        ResourceError: There is not enough memory, or no thread, to read it.
    """
    try:
        with naming_shortage(shown):
            yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shown} cannot be read: {error}", hint="is the file whole?") from error


def stream_of(content: bytes, shown: str) -> Stream:
    """Bytes that lie in memory, as a stream."""
    return Stream(io.BytesIO(content), shown)


def first_lines(stream: Stream, most: int = 2) -> list[tuple[int, str]]:
    """The first lines with something in them, with their numbers; nothing is consumed.

    Raises:
        DataError: They are not UTF-8, or longer than any row of numbers.
    """
    size = HEAD_BYTES
    while True:
        head = stream.peek(size)
        is_all = len(head) < size
        lines = _whole_lines(head, is_all=is_all)
        found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()][:most]
        if len(found) == most or is_all:
            return [(number, _decode(line, number, stream.shown)) for number, line in found]
        if size == LONGEST_LINE:
            raise _too_long(stream.shown, 1 + len(lines))
        size = min(8 * size, LONGEST_LINE)


def lines_in_head(stream: Stream) -> list[tuple[int, str]]:
    """The lines with something in them that lie whole in the first bytes, the first two at least; none is consumed.

    Raises:
        DataError: As for `first_lines`, of which these are the first two.
    """
    first = first_lines(stream)
    head = stream.peek(HEAD_BYTES)
    lines = _whole_lines(head, is_all=len(head) < HEAD_BYTES)
    found = [(number, line.decode(errors="replace")) for number, line in enumerate(lines, start=1) if line.strip()]
    return [*first, *found[len(first) :]]


def _whole_lines(head: bytes, *, is_all: bool) -> list[bytes]:
    lines = head.removeprefix(BOM).splitlines()
    return lines if is_all or head.endswith((b"\n", b"\r")) else lines[:-1]


def _decode(line: bytes, number: int, shown: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown} is not UTF-8 text: line {number}: {error}",
            hint="a channel holds CSV, libsvm, Parquet or recordio-protobuf; write text as UTF-8 (what Excel and"
            " Windows write is often Windows-1252)",
        ) from error


def max_pieces() -> int:
    """In how many pieces to parse a block: one for each core."""
    return min(max(int(pa.cpu_count()), _FEWEST_PIECES), _MOST_PIECES)


def block_bytes() -> int:
    """How much to parse at a time; more costs memory, and is no faster."""
    return PIECE_BYTES * max_pieces()


def read_lines(stream: Stream, *, size: int) -> Iterator[Lines]:
    """All lines, in blocks of about `size` bytes; the last one may lack its line end.

    Of a file the next block is read, and unpacked, while the caller works on one: two are in memory. Not of a pipe:
    whoever is interrupted would wait for its other end.

    Raises:
        DataError: A line is longer than any row of numbers.
    """
    prove_threads()
    blocks = _read_lines(stream, size)
    return ahead(blocks) if stream.is_file else blocks


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made in a thread of its own while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="trainbox-ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
            del item  # so that there are two in memory, not three


def _read_lines(stream: Stream, size: int) -> Iterator[Lines]:
    rest, number = stream.read(len(BOM)).removeprefix(BOM), 1
    is_over = False
    while not is_over:
        content, rest, is_over = _next_lines(stream, rest, size)
        if content:
            lines = Lines(content, number)
            number += _count(content, b"\n") or _count(content, b"\r")
            yield lines
            del lines, content  # so that there is one block in memory, not two
        elif len(rest) > LONGEST_LINE:
            raise _too_long(stream.shown, number)
        else:
            size = max(size, 2 * len(rest))


def _next_lines(stream: Stream, rest: bytes, size: int) -> tuple[bytes, bytes, bool]:
    """Whole lines, what follows them, and whether the end is reached; what is read here does not outlive the call."""
    data = stream.read(max(1, size - len(rest)))
    if not data:
        return rest, b"", True
    if cut := data.rfind(b"\n") + 1:
        return b"".join((rest, memoryview(data)[:cut])), data[cut:], False
    data = rest + data
    # A lone carriage return ends a line where there are no line feeds.
    cut = (data.rfind(b"\n") + 1) or (data.rfind(b"\r", 0, -1) + 1)
    return data[:cut], data[cut:], False


def _count(content: bytes, end: bytes) -> int:
    """How often a byte comes; several times faster than `bytes.count` where it comes often."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == end[0]))


def _too_long(shown: str, number: int) -> DataError:
    return DataError(
        f"{shown}:{number}: no end of the line within {LONGEST_LINE // 1024**2} MiB: this is no row of numbers",
        hint="give the channel's content type if this is not text",
    )
