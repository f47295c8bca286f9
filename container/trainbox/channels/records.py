"""RecordIO: the frames around records, as MXNet and SageMaker write them.

A frame is a magic number, a word with the length in its lower 29 bits, the content, and padding to 4 bytes, all little
endian. The upper 3 bits say whether the content is whole (0) or the first, a middle or the last part (1, 2, 3) of one:
a writer cuts where the content holds the magic number itself, and leaves that out.
"""

import struct
from collections.abc import Iterator

import msgspec

from trainbox.channels.kinds import RECORDIO_MAGIC
from trainbox.channels.streams import HEAD_BYTES, Stream
from trainbox.errors import DataError

FRAME_HEAD = 8
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_WORD = struct.Struct("<I")


class Frames(msgspec.Struct, frozen=True, eq=False):
    """Some bytes of a file, whole frames of them."""

    content: bytes
    #: Where the content of each whole frame lies, and what its upper bits say.
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    flags: tuple[int, ...]
    #: Where the bytes lie in the file, and how many frames came before.
    offset: int
    number: int


def read_frames(stream: Stream, *, size: int) -> Iterator[Frames]:
    """All frames, in blocks of about `size` bytes.

    Raises:
        DataError: A frame is cut off or does not begin with the magic number; with its number and offset.
    """
    rest, offset, number = b"", 0, 1
    while data := stream.read(size):
        content = rest + data
        frames = _find(content, offset, number, stream.shown)
        used = _end(frames)
        rest, offset, number = content[used:], offset + used, number + len(frames.starts)
        if frames.starts:
            yield frames
        else:
            size = max(size, len(rest))
    if rest:
        raise _cut_off(rest, offset, number, stream.shown)


class Joiner:
    """Puts the parts of records together, over the borders of blocks."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._parts: list[bytes] = []
        self._begun = ""

    @property
    def is_waiting(self) -> bool:
        """Whether parts of a record are still to come."""
        return bool(self._parts)

    def add(self, frames: Frames) -> Iterator[tuple[str, bytes]]:
        """The records that end in these frames, with the place of their first frame.

        Raises:
            DataError: A part does not continue what came before.
        """
        for index, (start, length, flag) in enumerate(zip(frames.starts, frames.lengths, frames.flags, strict=True)):
            place, content = place_of(frames, index, self._shown), frames.content[start : start + length]
            if (flag in {_WHOLE, _FIRST}) == self.is_waiting or flag > _LAST:
                raise DataError(f"{place}: flag {flag} does not continue what came before", hint="write the file again")
            if flag == _WHOLE:
                yield place, content
                continue
            self._begun = self._begun if self._parts else place
            self._parts.append(content)
            if flag == _LAST:
                content, self._parts = RECORDIO_MAGIC.join(self._parts), []
                yield self._begun, content

    def finish(self) -> None:
        """Take the end of the file.

        Raises:
            DataError: A part is missing.
        """
        if self._parts:
            raise DataError(f"{self._begun}: its last part is missing", hint="the file is not whole: write it again")


def first_record(stream: Stream) -> tuple[str, bytes] | None:
    """The first record and its place; None where there is nothing. Nothing is consumed.

    Raises:
        DataError: It is no record, or cut off.
    """
    size = HEAD_BYTES
    while True:
        content = stream.peek(size)
        joiner = Joiner(stream.shown)
        for record in joiner.add(_find(content, 0, 1, stream.shown)):
            return record
        if len(content) < size:
            joiner.finish()
            if content:
                raise _cut_off(content, 0, 1, stream.shown)
            return None
        size *= 8


def read_contents(stream: Stream, *, size: int) -> Iterator[tuple[str, bytes]]:
    """The contents of all records, each with its place."""
    joiner = Joiner(stream.shown)
    for frames in read_frames(stream, size=size):
        yield from joiner.add(frames)
    joiner.finish()


def end_of_frames(content: bytes, shown: str) -> int:
    """Where the last whole frame ends in bytes that begin with one."""
    return _end(_find(content, 0, 1, shown))


def place_of(frames: Frames, index: int, shown: str) -> str:
    """A frame as messages name it."""
    return f"{shown}, record {frames.number + index} at byte {frames.offset + frames.starts[index] - FRAME_HEAD}"


def _find(content: bytes, offset: int, number: int, shown: str) -> Frames:
    """The whole frames in some bytes that begin with one."""
    starts: list[int] = []
    lengths: list[int] = []
    flags: list[int] = []
    at, end = 0, len(content)
    while at < end:
        if not RECORDIO_MAGIC.startswith(content[at : at + 4]):
            raise DataError(
                f"{shown}, record {number + len(starts)} at byte {offset + at} does not begin with RecordIO's magic "
                f"number, but with {content[at : at + 4].hex(' ')}",
                hint="is this recordio-protobuf, and is the file whole?",
            )
        if at + FRAME_HEAD > end:
            break
        (word,) = _WORD.unpack_from(content, at + 4)
        length = word & ((1 << _LENGTH_BITS) - 1)
        if _padded(at + FRAME_HEAD + length) > end:
            break
        starts.append(at + FRAME_HEAD)
        lengths.append(length)
        flags.append(word >> _LENGTH_BITS)
        at = _padded(at + FRAME_HEAD + length)
    return Frames(content, tuple(starts), tuple(lengths), tuple(flags), offset, number)


def _cut_off(rest: bytes, offset: int, number: int, shown: str) -> DataError:
    return DataError(
        f"{shown}, record {number} at byte {offset} is cut off: {len(rest)} bytes of it are there",
        hint="the file is not whole: write or upload it again",
    )


def _end(frames: Frames) -> int:
    return _padded(frames.starts[-1] + frames.lengths[-1]) if frames.starts else 0


def _padded(length: int) -> int:
    return (length + 3) & ~3
