"""The records of an input: its lines, its RecordIO frames, or all of it; and mini-batches of them."""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Literal, TypeAlias

import msgspec

from trainbox.errors import DataError

#: TransformInput.SplitType and BatchStrategy, as the API spells them.
SplitType: TypeAlias = Literal["None", "Line", "RecordIO"]
Strategy: TypeAlias = Literal["MultiRecord", "SingleRecord"]
MB = 2**20
_MAGIC = struct.pack("<I", 0xCED7230A)
_HEAD_BYTES = 8
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class Record(msgspec.Struct, frozen=True):
    """One record of an input."""

    #: From 1; of lines that of the line.
    number: int
    #: As it lies in the file: a line with its end, a frame with its head and padding.
    content: bytes
    #: Of a frame what it holds; of others the same.
    payload: bytes


class MiniBatch(msgspec.Struct, frozen=True):
    """The records of one request, and its body."""

    records: tuple[Record, ...]
    body: bytes

    @property
    def rows(self) -> str:
        """Which rows of the input these are, in words."""
        first, last = self.records[0].number, self.records[-1].number
        return f"row {first:,}" if first == last else f"rows {first:,} to {last:,}"


def read_records(file: BinaryIO, split: SplitType, most_bytes: int) -> Iterator[Record]:
    """Read the records of an input one after the other.

    Args:
        file: The input.
        split: How it is split.
        most_bytes: A record that is longer is an error; 0 is any length.

    Raises:
        DataError: A record exceeds the limit, or a frame is damaged.
    """
    if split == "Line":
        yield from _read_lines(file, most_bytes)
    elif split == "RecordIO":
        yield from _read_frames(file, most_bytes)
    elif content := file.read(most_bytes + 1) if most_bytes else file.read():
        _check_length(content, 1, most_bytes, "set --split Line, or raise --max-payload")
        yield Record(1, content, content)


def _read_lines(file: BinaryIO, most_bytes: int) -> Iterator[Record]:
    number = 0
    while line := file.readline(most_bytes + 1) if most_bytes else file.readline():
        number += 1
        _check_length(line, number, most_bytes, "raise --max-payload")
        yield Record(number, line, line)


def _check_length(content: bytes, number: int, most_bytes: int, hint: str) -> None:
    if most_bytes and len(content) > most_bytes:
        raise DataError(f"record {number:,} exceeds the payload limit of {most_bytes / MB:g} MB", hint=hint)


def _read_frames(file: BinaryIO, most_bytes: int) -> Iterator[Record]:
    number, frames, parts = 0, b"", list[bytes]()
    while head := file.read(_HEAD_BYTES):
        if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
            raise DataError(f"record {number + 1:,} does not begin as RecordIO does", hint="is it RecordIO?")
        (word,) = struct.unpack("<I", head[4:])
        flag, length = word >> _LENGTH_BITS, word & (2**_LENGTH_BITS - 1)
        if most_bytes and len(frames) + length > most_bytes:
            _check_length(bytes(most_bytes + 1), number + 1, most_bytes, "raise --max-payload")
        content = file.read(length + -length % 4)
        if len(content) < length + -length % 4:
            raise DataError(f"record {number + 1:,} is cut off", hint="the file is not whole: write it again")
        if (flag in {_WHOLE, _FIRST}) == bool(parts):
            raise DataError(f"record {number + 1:,}: flag {flag} does not continue what came before")
        frames, parts = frames + head + content, [*parts, content[:length]]
        if flag in {_WHOLE, _LAST}:
            number += 1
            yield Record(number, frames, _MAGIC.join(parts))
            frames, parts = b"", []
    if parts:
        raise DataError(f"record {number + 1:,} is cut off", hint="the file is not whole: write it again")


def make_batches(
    records: Iterable[Record], strategy: Strategy, most_bytes: int, write: Callable[[Record], bytes]
) -> Iterator[MiniBatch]:
    """Put as many records into each request as fit, or one.

    Args:
        records: In their order.
        strategy: How many of them.
        most_bytes: The payload limit of a request; 0 is any length, and one request.
        write: What the model is sent of a record.

    Raises:
        DataError: What is sent of one record exceeds the limit.
    """
    batch, bodies, size = list[Record](), list[bytes](), 0
    for record in records:
        body = write(record)
        _check_length(body, record.number, most_bytes, "raise --max-payload")
        if batch and (strategy == "SingleRecord" or (most_bytes and size + len(body) > most_bytes)):
            yield MiniBatch(tuple(batch), b"".join(bodies))
            batch, bodies, size = [], [], 0
        batch.append(record)
        bodies.append(body)
        size += len(body)
    if batch:
        yield MiniBatch(tuple(batch), b"".join(bodies))
