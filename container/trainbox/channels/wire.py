"""Protobuf's wire format, as far as it takes to find where the numbers of a plain record lie."""

from collections.abc import Iterator

import msgspec

_LENGTH_DELIMITED = 2
_FLOAT_BYTES = 4
# Of `aialgs.data`: Record.features and .label, the value of a map's entry, Value.float32_tensor, its values and shape.
_FEATURES, _LABEL, _KEY, _VALUE, _FLOATS, _VALUES, _SHAPE = 1, 2, 1, 2, 2, 1, 3

Field = tuple[int, int, int]  # number, start and end of the content


class Spans(msgspec.Struct, frozen=True):
    """From where to where a record's 32-bit floats lie."""

    features: tuple[int, int]
    labels: tuple[int, int]


def find_spans(record: bytes, name: bytes) -> Spans | None:
    """Where the values lie in a record of dense 32-bit floats; None for any other, and for what cannot be read."""
    found: dict[int, tuple[int, int]] = {}
    for number, start, end in _fields(record, 0, len(record)):
        if number not in {_FEATURES, _LABEL}:
            continue
        span = _find_values(record, start, end, name)
        if span is None or number in found:
            return None
        found[number] = span
    return Spans(found[_FEATURES], found[_LABEL]) if len(found) == 2 else None  # noqa: PLR2004 - both of them


def _find_values(record: bytes, start: int, end: int, name: bytes) -> tuple[int, int] | None:
    """The packed floats in an entry of a map, where it has this name and holds nothing beside them but a shape."""
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
    """The fields of a message; one with number 0, which no message has, in place of what cannot be read."""
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
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            break
    return value, at
