"""The wire format of recordio-protobuf: RecordIO frames, and the protobuf messages in them.

A frame, as MXNet and SageMaker write it, is a magic number, a word with the length in its lower 29 bits, the content,
and padding to 4 bytes, all little endian. The upper 3 bits say whether the content is whole (0) or the first, a middle
or the last part (1, 2, 3) of a record: a writer splits where the content holds the magic number itself, and omits that.

A message is SageMaker's `aialgs.data.Record`, whose class is built at run time: a generated file would depend on the
version of the library. https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-training.html has the schema.
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

from trainbox.data.formats.byte_stream import HEAD_BYTES, ByteStream
from trainbox.data.formats.format_detection import RECORDIO_MAGIC
from trainbox.data.formats.row_block import Location
from trainbox.errors import DataError

FRAME_HEAD = 8
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_WORD = struct.Struct("<I")
_LENGTH_DELIMITED = 2
_FLOAT_BYTES = 4
# Field numbers of `aialgs.data`: Record.features and .label, key and value of a map entry, Value.float32_tensor, its
# values and shape.
_FEATURES, _LABEL, _KEY, _VALUE, _FLOATS, _VALUES, _SHAPE = 1, 2, 1, 2, 2, 1, 3
Field = tuple[int, int, int]  # number, start and end of the content
_PACKAGE = "aialgs.data"
_TENSORS = {"Float32Tensor": "FLOAT", "Float64Tensor": "DOUBLE", "Int32Tensor": "INT32"}
_VALUE_TYPES = {"float32_tensor": ("Float32Tensor", 2), "float64_tensor": ("Float64Tensor", 3)}

_VALUE_TYPES |= {"int32_tensor": ("Int32Tensor", 7), "bytes": ("Bytes", 9)}


class FrameBlock(msgspec.Struct, frozen=True, eq=False):
    """A block of whole frames."""

    content: bytes
    #: The place of the content of each whole frame, and its upper bits.
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    flags: tuple[int, ...]
    #: The offset of the block in the file, and the number of its first frame, from 1.
    offset: int
    number: int


def read_frames(stream: ByteStream, *, size: int) -> Iterator[FrameBlock]:
    """Read all frames, in blocks of about `size` bytes.

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


class RecordAssembler:
    """Joins the parts of records, across blocks."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._parts: list[bytes] = []
        self._begun = Location(0, "")

    @property
    def is_waiting(self) -> bool:
        """Return whether parts of a record are still missing."""
        return bool(self._parts)

    def add(self, frames: FrameBlock) -> Iterator[tuple[Location, bytes]]:
        """Yield the records that end in these frames, with the place of their first frame.

        Raises:
            DataError: A part does not continue what came before.
        """
        for index, (start, length, flag) in enumerate(zip(frames.starts, frames.lengths, frames.flags, strict=True)):
            place, content = locate_frame(frames, index, self._shown), frames.content[start : start + length]
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
        """Check that no part is missing at the end of the file.

        Raises:
            DataError: A part is missing.
        """
        if self._parts:
            raise DataError(f"{self._begun}: its last part is missing", hint="the file is not whole: write it again")


def peek_record(stream: ByteStream) -> tuple[Location, bytes] | None:
    """Return the first record and its place without consuming it; None if there is none.

    Raises:
        DataError: It is not a record, or is cut off.
    """
    size = HEAD_BYTES
    while True:
        content = stream.peek(size)
        joiner = RecordAssembler(stream.shown)
        for record in joiner.add(_find(content, 0, 1, stream.shown)):
            return record
        if len(content) < size:
            joiner.finish()
            if content:
                raise _cut_off(content, 0, 1, stream.shown)
            return None
        size *= 8


def read_records(stream: ByteStream, *, size: int) -> Iterator[tuple[Location, bytes]]:
    """Yield the contents of all records, each with its place."""
    joiner = RecordAssembler(stream.shown)
    for frames in read_frames(stream, size=size):
        yield from joiner.add(frames)
    joiner.finish()


def last_frame_end(content: bytes, shown: str) -> int:
    """Return the end of the last whole frame in bytes that begin with a frame."""
    return _end(_find(content, 0, 1, shown))


def locate_frame(frames: FrameBlock, index: int, shown: str) -> Location:
    """Return the location of a frame."""
    number = frames.number + index
    return Location(number, f"{shown}, record {number} at byte {frames.offset + frames.starts[index] - FRAME_HEAD}")


def _find(content: bytes, offset: int, number: int, shown: str) -> FrameBlock:
    """Find the whole frames in bytes that begin with a frame."""
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
    return FrameBlock(content, tuple(starts), tuple(lengths), tuple(flags), offset, number)


def _cut_off(rest: bytes, offset: int, number: int, shown: str) -> DataError:
    return DataError(
        f"{shown}, record {number} at byte {offset} is cut off after {len(rest)} bytes",
        hint="the file is not whole: write or upload it again",
    )


def _end(frames: FrameBlock) -> int:
    return _padded(frames.starts[-1] + frames.lengths[-1]) if frames.starts else 0


def _padded(length: int) -> int:
    return (length + 3) & ~3


class FloatSpans(msgspec.Struct, frozen=True):
    """The start and end of a record's 32-bit floats."""

    features: tuple[int, int]
    #: None if it has no label.
    labels: tuple[int, int] | None


def find_spans(record: bytes, name: bytes) -> FloatSpans | None:
    """Locate the values in a record of dense 32-bit floats; None for any other record, or one that is malformed."""
    found: dict[int, tuple[int, int]] = {}
    for number, start, end in _fields(record, 0, len(record)):
        if number not in {_FEATURES, _LABEL}:
            continue
        span = _find_values(record, start, end, name)
        if span is None or number in found:
            return None
        found[number] = span
    return FloatSpans(found[_FEATURES], found.get(_LABEL)) if _FEATURES in found else None


def _find_values(record: bytes, start: int, end: int, name: bytes) -> tuple[int, int] | None:
    """Locate the packed floats of a map entry; None if it has another name, or more than them and a shape."""
    entry = list(_fields(record, start, end))
    if [number for number, _, _ in entry] != [_KEY, _VALUE] or record[slice(*entry[0][1:])] != name:
        return None
    value = list(_fields(record, *entry[1][1:]))
    if [number for number, _, _ in value] != [_FLOATS]:
        return None
    tensor = list(_fields(record, *value[0][1:]))
    if [number for number, _, _ in tensor] not in ([_VALUES], [_VALUES, _SHAPE]):
        return None
    _, first, last = tensor[0]
    return (first, last) if last > first and (last - first) % _FLOAT_BYTES == 0 else None


def _fields(content: bytes, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message; one with number 0, which no message has, for malformed bytes."""
    at = start
    while at < end:
        tag, at = _varint(content, at, end)
        length, at = _varint(content, at, end)
        if tag & 7 != _LENGTH_DELIMITED or at + length > end:
            yield 0, start, end
            return
        yield tag >> 3, at, at + length
        at += length


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            break
    return value, at


@cache
def record_class() -> Any:  # noqa: ANN401 - made at run time
    """Return the message class, in a descriptor pool of its own, as other libraries may register the same schema."""
    from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415 - most jobs read no such record

    pool = descriptor_pool.DescriptorPool()
    pool.Add(_schema())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Record"))


def _schema() -> Any:  # noqa: ANN401 - protobuf has no types here
    from google.protobuf import descriptor_pb2  # noqa: PLC0415 - most jobs read no such record

    schema = descriptor_pb2.FileDescriptorProto(name="trainbox/record.proto", package=_PACKAGE, syntax="proto2")
    for name, kind in _TENSORS.items():
        tensor = schema.message_type.add(name=name)
        _add(tensor, "values", 1, kind, is_repeated=True)
        _add(tensor, "keys", 2, "UINT64", is_repeated=True)
        _add(tensor, "shape", 3, "UINT64", is_repeated=True)
    content = schema.message_type.add(name="Bytes")
    _add(content, "value", 1, "BYTES", is_repeated=True)
    _add(content, "content_type", 2, "STRING")
    value = schema.message_type.add(name="Value")
    value.oneof_decl.add(name="value")
    for name, (message, number) in _VALUE_TYPES.items():
        _add(value, name, number, "MESSAGE", message=message).oneof_index = 0
    record = schema.message_type.add(name="Record")
    for name, number in (("features", 1), ("label", 2)):
        entry = record.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, "STRING")
        _add(entry, "value", 2, "MESSAGE", message="Value")
        _add(record, name, number, "MESSAGE", message=f"Record.{entry.name}", is_repeated=True)
    for number, name in enumerate(("uid", "metadata", "configuration"), start=3):
        _add(record, name, number, "STRING")
    return schema


def _add(
    owner: Any,  # noqa: ANN401 - protobuf has no types here
    name: str,
    number: int,
    kind: str,
    *,
    message: str = "",
    is_repeated: bool = False,
) -> Any:  # noqa: ANN401 - protobuf has no types here
    field = owner.field.add(name=name, number=number)
    kinds = type(field)
    field.type = getattr(kinds, f"TYPE_{kind}")
    field.label = kinds.LABEL_REPEATED if is_repeated else kinds.LABEL_OPTIONAL
    if message:
        field.type_name = f".{_PACKAGE}.{message}"
    if is_repeated and kind not in {"BYTES", "MESSAGE"}:
        field.options.packed = True
    return field
