"""recordio-protobuf, SageMaker's own format: frames around protobuf messages (`recordio_wire`).

A record has the features in `features["values"]` and the labels in `label["values"]`. Values with `keys` are sparse:
a column without a key is missing. If all records of a block are dense and differ in their values alone, as those of
SageMaker's writers do, the values are taken out of all records at once instead of one by one: the bytes in between,
which define the structure, are equal, so what holds for one record holds for all.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from trainbox.data.formats.byte_stream import ByteStream
from trainbox.data.formats.recordio_wire import (
    FRAME_HEAD,
    FloatSpans,
    FrameBlock,
    RecordAssembler,
    find_spans,
    locate_frame,
    peek_record,
    read_frames,
    record_class,
)
from trainbox.data.formats.row_block import (
    BOUNDS_HINT,
    MOST_COLUMNS,
    Floats,
    Location,
    RowError,
    Rows,
    Sparse,
    fill_bounds,
    first_unsorted_row,
    is_sorted,
    sort_columns,
    validate,
)
from trainbox.data.formats.schema import SourceInfo

_NAME = "values"
_FLOAT = np.float64  # holds any number of a record until it is rounded


class _Tensor(msgspec.Struct, frozen=True, eq=False):
    """The features or labels of one record."""

    values: Any
    #: The column of each value if it is sparse, or nothing.
    keys: Any
    #: The number of values; if it is sparse its shape, or 0 if that is not given.
    width: int
    is_sparse: bool


class _Record(msgspec.Struct, frozen=True, eq=False):
    place: Location
    label: _Tensor | None
    features: _Tensor


def inspect(stream: ByteStream, *, labelled: bool = True) -> SourceInfo | None:
    """Inspect the first record without consuming it; None if there is none.

    Raises:
        DataError: It is not a record, or is cut off.
    """
    first = peek_record(stream)
    if first is None:
        return None
    return SourceInfo(stream.shown, "recordio-protobuf", _decode(*first, labelled=labelled).features.width or None)


def read_rows(
    stream: ByteStream, source: SourceInfo, *, size: int, labelled: bool = True, bounds: bool = False
) -> Iterator[Rows]:
    """Yield the rows, block by block.

    Args:
        stream: The frames.
        source: What the first record says.
        size: The number of bytes to decode at a time.
        labelled: Whether records have labels; if not, those that they have are ignored.
        bounds: Whether the two labels are bounds.

    Raises:
        RowError: With file, record and the record's offset.
    """
    assembler = RecordAssembler(stream.shown)
    for frames in read_frames(stream, size=size):
        block = None if assembler.is_waiting else _read_uniform(frames, source, labelled=labelled)
        if block is None:
            records = [_decode(*record, labelled=labelled) for record in assembler.add(frames)]
            if not records:
                continue
            block = _read_each(records, source)
        if bounds:
            block = msgspec.structs.replace(block, labels=fill_bounds(_both_bounds(block)))
        validate(block, bounds=bounds)
        yield block
    assembler.finish()


def _both_bounds(block: Rows) -> Floats:
    labels = block.labels
    count = 0 if labels is None else 1 if labels.ndim == 1 else labels.shape[1]
    if labels is None or count != 2:  # noqa: PLR2004 - a lower and an upper one
        place = block.where(0)
        raise RowError(f"{place} has {count} labels, where two bounds are expected", hint=BOUNDS_HINT, row=place.number)
    return labels


# ---- all records of a block at once ----


def _read_uniform(frames: FrameBlock, source: SourceInfo, *, labelled: bool) -> Rows | None:
    """Decode records that differ in their values alone; None if they differ otherwise."""
    if len(set(frames.lengths)) > 1 or any(frames.flags):
        return None
    start, length = frames.starts[0], frames.lengths[0]
    spans = find_spans(frames.content[start : start + length], _NAME.encode())
    if spans is None or (labelled and spans.labels is None):
        return None

    def where(row: int) -> Location:
        return locate_frame(frames, row, source.shown)

    # The spans are those of a plain record; the library says what it means.
    _check_alike([_decode(where(0), frames.content[start : start + length], labelled=labelled)], source)
    count, stride = len(frames.starts), length + FRAME_HEAD + (-length % 4)
    rows = np.frombuffer(frames.content, np.uint8, count * stride, start - FRAME_HEAD).reshape(count, stride)
    records = rows[:, FRAME_HEAD : FRAME_HEAD + length]
    if not _is_alike(records, spans):
        return None
    features = _floats(records[:, slice(*spans.features)])
    if not labelled or spans.labels is None:
        return Rows(features, where)
    labels = _floats(records[:, slice(*spans.labels)])
    return Rows(features, where, labels[:, 0] if labels.shape[1] == 1 else labels)


def _is_alike(records: Any, spans: FloatSpans) -> bool:  # noqa: ANN401 - an array of bytes
    structure = np.ones(records.shape[1], bool)
    structure[slice(*spans.features)] = False
    if spans.labels is not None:
        structure[slice(*spans.labels)] = False
    between = records[:, structure]
    return bool((between == between[0]).all())


def _floats(content: Any) -> Any:  # noqa: ANN401 - an array of bytes becomes one of 32-bit floats
    return np.ascontiguousarray(content).view("<f4").astype(np.float32, copy=False)


# ---- one by one ----


def _read_each(records: Sequence[_Record], source: SourceInfo) -> Rows:
    _check_alike(records, source)
    values = _rounded(np.array([value for record in records for value in record.features.values], _FLOAT))
    return Rows(
        _to_sparse(records, values) if records[0].features.is_sparse else values.reshape(len(records), -1),
        lambda row: records[row].place,
        _labels_of(records),
    )


def _labels_of(records: Sequence[_Record]) -> Floats | None:
    first = records[0].label
    if first is None:
        return None
    labels: Floats = _rounded(
        np.array([value for record in records if record.label for value in record.label.values], _FLOAT)
    )
    return labels.reshape(len(records), -1) if first.width > 1 else labels


def _rounded(numbers: Any) -> Any:  # noqa: ANN401 - an array
    with np.errstate(over="ignore"):  # too large a number becomes infinite, which is reported later
        return numbers.astype(np.float32)


def _to_sparse(records: Sequence[_Record], values: Any) -> Sparse:  # noqa: ANN401 - an array
    columns = np.array([key for record in records for key in record.features.keys], np.int64)
    counts = np.array([len(record.features.keys) for record in records], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    width = max(1 + int(columns.max(initial=-1)), *(record.features.width for record in records))
    if not is_sorted(columns, starts):
        values, columns = sort_columns(values, columns, starts, width)
        twice = first_unsorted_row(columns, starts)
        if twice is not None:
            place = records[twice].place
            raise RowError(f"{place}: a key is repeated", hint="give each column one value", row=place.number)
    return Sparse(values, columns.astype(np.int32), counts, width)


def _check_alike(records: Sequence[_Record], source: SourceInfo) -> None:
    """Reject records of different shapes.

    Raises:
        RowError: A record has more features or labels than those before, or is dense where they are sparse.
    """
    for record in records:
        place, label, features, first = record.place, record.label, record.features, records[0]
        if features.is_sparse != first.features.is_sparse:
            kinds = ("sparse", "dense") if features.is_sparse else ("dense", "sparse")
            raise RowError(
                f"{place} is {kinds[0]}, those before are {kinds[1]}", hint="write all in one way", row=place.number
            )
        if (features.width or None) != source.width:
            raise RowError(
                f"{place} has {features.width} features, the first record has {source.width}",
                hint="every record must have the same number of features; a sparse one says it in its shape",
                row=place.number,
            )
        if label is not None and first.label is not None and label.width != first.label.width:
            raise RowError(
                f"{place} has {label.width} labels, those before have {first.label.width}",
                hint="every record must have the same number of labels",
                row=place.number,
            )


def _decode(place: Location, content: bytes, *, labelled: bool) -> _Record:
    """Decode a record.

    Raises:
        RowError: It is not an `aialgs.data.Record`, or has no usable features or label.
    """
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - most jobs read no such record

    try:
        message = record_class().FromString(content)
    except DecodeError as error:
        raise RowError(
            f"{place} is not an aialgs.data.Record: {error}",
            hint="is this recordio-protobuf? RecordIO around other content needs the channel's content type",
            row=place.number,
        ) from error
    label = _tensor(message.label, "label", place) if labelled else None
    if label is not None and (label.is_sparse or not label.width):
        raise RowError(
            f"{place}: the label is sparse or empty",
            hint="give each record its label as dense values",
            row=place.number,
        )
    return _Record(place, label, _tensor(message.features, "features", place))


def _tensor(entries: Any, what: str, place: Location) -> _Tensor:  # noqa: ANN401 - a map of the message
    if set(entries) != {_NAME}:
        found = ", ".join(sorted(map(repr, entries))) or "nothing"
        raise RowError(
            f"{place}: {what}: found {found}, expected 'values' alone",
            hint="write them as 'values'",
            row=place.number,
        )
    kind = entries[_NAME].WhichOneof("value")
    if kind not in {"float32_tensor", "float64_tensor", "int32_tensor"}:
        raise RowError(
            f"{place}: {what}: found {kind or 'no tensor'}, expected numbers",
            hint="write them as float32_tensor, float64_tensor or int32_tensor",
            row=place.number,
        )
    tensor = getattr(entries[_NAME], kind)
    shape, keys, values = math.prod(tensor.shape) if tensor.shape else 0, tensor.keys[:], tensor.values[:]
    is_sparse = bool(keys) or (bool(shape) and not values)
    if max(shape, 1 + max(keys, default=0)) > MOST_COLUMNS:
        raise RowError(
            f"{place}: {what}: more columns than {MOST_COLUMNS:,}",
            hint="number the columns anew, or hash them",
            row=place.number,
        )
    if is_sparse and (len(keys) != len(values) or max(keys, default=0) >= (shape or MOST_COLUMNS)):
        raise RowError(
            f"{place}: {what}: {len(keys)} keys for {len(values)} values, of a shape of {shape or 'unknown'}",
            hint="give each value a key below the shape",
            row=place.number,
        )
    if not is_sparse and shape not in {0, len(values)}:
        raise RowError(
            f"{place}: {what}: {len(values)} values, of a shape of {shape}", hint="write it again", row=place.number
        )
    return _Tensor(values, keys, shape if is_sparse else len(values), is_sparse)
