"""Byte streams of files, pipes and request bodies: peek at the first bytes, then read blocks of whole lines."""

import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import numpy as np

from trainbox.data.resource_errors import check_threads, translate_resource_errors, with_arrow
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

#: Enough for two lines of nearly every file.
HEAD_BYTES = 64 * 1024
#: A row of a million columns is shorter; a longer line is not text.
LONGEST_LINE = 64 * 1024 * 1024
#: Parsed by Arrow on one core at a time.
PIECE_BYTES = 1024 * 1024
_FEWEST_PIECES, _MOST_PIECES = 4, 32
#: Arrow's name of the compression, by the suffix of the file name.
COMPRESSION_SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}
#: The same by the first bytes; brotli has no magic number.
_COMPRESSION_MAGIC = {b"\x1f\x8b\x08": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
#: After the magic number of bzip2 and a digit: a block, or the end.
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
#: Enough to tell a compressed file from plain text with the name of one.
_MAGIC_BYTES = 256
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
Item = TypeVar("Item")
BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """The source of a stream."""

    def read(self, size: int, /) -> bytes:
        """Return at most that many bytes; none at the end."""

    def close(self) -> None:
        """Close the source."""


class ByteStream:
    """Bytes that can be peeked at before they are read: a pipe cannot be read twice."""

    def __init__(self, raw: Readable, shown: str, *, is_file: bool = False, origin: Path | bytes | None = None) -> None:
        self._raw = raw
        self._held = b""
        self._ended = False
        self.shown = shown
        #: Whether a read never waits for a writer.
        self.is_file = is_file
        #: For random access; None if the bytes come once, or are compressed.
        self.origin = origin

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end, without consuming them."""
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
        """Read the next `size` bytes, fewer only at the end."""
        found = self.peek(size)
        self._held = self._held[size:]
        return found

    def close(self) -> None:
        """Close the source."""
        self._raw.close()


class LineBlock(msgspec.Struct, frozen=True, eq=False):
    """A block of whole lines."""

    content: bytes
    #: The number of the first, from 1.
    number: int


@contextmanager
def open_file(path: Path, shown: str) -> Iterator[ByteStream]:
    """Open a file, decompressing it if its first bytes or its name say that it is compressed.

    Raises:
        DataError: It cannot be read, or not be decompressed to its end.
    """
    with translate_read_errors(shown):
        compression = detect_compression(path)
        raw: Any = (
            path.open("rb", buffering=0)
            if compression is None
            else pa.input_stream(os.fspath(path), compression=compression)
        )
        with raw:
            yield ByteStream(raw, shown, is_file=True, origin=path if compression is None else None)


def detect_compression(path: Path) -> str | None:
    """Detect the compression of a file, by Arrow's name; None if it is not compressed.

    The first bytes take precedence over the name: uploads lose names, and downloads decompress files that keep theirs.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_MAGIC_BYTES)
    found = compression_from_magic(head)
    named = COMPRESSION_SUFFIXES.get(path.suffix.lower())
    return found or (None if named != "brotli" and _is_text(head) else named)


def compression_from_magic(head: bytes) -> str | None:
    """Detect a compression by its magic number; None if there is none."""
    found = next((name for magic, name in _COMPRESSION_MAGIC.items() if head.startswith(magic)), None)
    return None if found == "bz2" and not head[4:].startswith(_BZIP2) else found


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and head.isascii() and not _CONTROLS.search(head)


@contextmanager
def translate_read_errors(shown: str) -> Iterator[None]:
    """Translate errors of the file system, of decompression and of exhausted resources into ones that name the file.

    Raises:
        DataError: The file cannot be read.
        ResourceError: There is not enough memory, or no thread, to read it.
    """
    try:
        with translate_resource_errors(shown):
            yield
    except with_arrow(OSError) as error:
        raise DataError(f"{shown} cannot be read: {error}", hint="is the file whole?") from error


def stream_from(content: bytes, shown: str) -> ByteStream:
    """Return a stream of bytes in memory."""
    return ByteStream(io.BytesIO(content), shown, origin=content)


def peek_lines(stream: ByteStream, most: int = 2) -> list[tuple[int, str]]:
    """Return the first lines that are not blank, with their numbers, without consuming them.

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


def peek_head(stream: ByteStream) -> list[tuple[int, str]]:
    """Return the non-blank whole lines of the first bytes, at least the first two, without consuming them.

    Raises:
        DataError: As for `peek_lines`.
    """
    first = peek_lines(stream)
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
    """Return the number of pieces to parse a block in: one for each core."""
    return min(max(int(pa.cpu_count()), _FEWEST_PIECES), _MOST_PIECES)


def block_bytes() -> int:
    """Return the number of bytes to parse at a time; more costs memory and is not faster."""
    return PIECE_BYTES * max_pieces()


def read_lines(stream: ByteStream, *, size: int) -> Iterator[LineBlock]:
    """Read all lines, in blocks of about `size` bytes; the last line may lack its line end.

    The next block of a file is read and decompressed while the caller works on one: two are in memory. Pipes are read
    without this: an interrupted process would wait for the writer.

    Raises:
        DataError: A line is longer than any row of numbers.
    """
    check_threads()
    blocks = _read_lines(stream, size)
    return prefetch(blocks) if stream.is_file else blocks


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items, each made in a thread while the previous one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="trainbox-prefetch") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
            del item  # so that there are two in memory, not three


def _read_lines(stream: ByteStream, size: int) -> Iterator[LineBlock]:
    rest, number = stream.read(len(BOM)).removeprefix(BOM), 1
    is_over = False
    while not is_over:
        content, rest, is_over = _next_lines(stream, rest, size)
        if content:
            lines = LineBlock(content, number)
            number += _count(content, b"\n") or _count(content, b"\r")
            yield lines
            del lines, content  # so that there is one block in memory, not two
        elif len(rest) > LONGEST_LINE:
            raise _too_long(stream.shown, number)
        else:
            size = max(size, 2 * len(rest))


def _next_lines(stream: ByteStream, rest: bytes, size: int) -> tuple[bytes, bytes, bool]:
    """Return whole lines, the rest after them, and whether the end is reached; no other copy outlives the call."""
    data = stream.read(max(1, size - len(rest)))
    if not data:
        return rest, b"", True
    if slice_block := data.rfind(b"\n") + 1:
        return b"".join((rest, memoryview(data)[:slice_block])), data[slice_block:], False
    data = rest + data
    # A lone carriage return ends a line where there are no line feeds.
    slice_block = (data.rfind(b"\n") + 1) or (data.rfind(b"\r", 0, -1) + 1)
    return data[:slice_block], data[slice_block:], False


def _count(content: bytes, end: bytes) -> int:
    """Count a byte; several times faster than `bytes.count` if it is frequent."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == end[0]))


def _too_long(shown: str, number: int) -> DataError:
    return DataError(
        f"{shown}:{number}: no end of the line within {LONGEST_LINE // 1024**2} MiB: this is not a row of numbers",
        hint="give the channel's content type if this is not text",
    )
