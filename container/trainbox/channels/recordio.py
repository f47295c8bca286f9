"""recordio-protobuf, SageMaker's own format: frames (`records`) around protobuf messages (`protobuf`).

A record has the features in `features["values"]` and the labels in `label["values"]`. Values with `keys` are sparse:
what has no key is missing. Where all records of a block are dense and differ in their values alone, as those of
SageMaker's writers do, the values are taken out of all of them at once instead of one by one: the bytes in between,
which say what is what, are the same, so what one of them says holds for all.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trainbox.channels.blocks import Block, check
from trainbox.channels.bounds import HINT, fill_bounds
from trainbox.channels.compressed import MOST_COLUMNS, Sparse, ascends, first_repeat, sort_rows
from trainbox.channels.records import FRAME_HEAD, Frames, Joiner, first_record, place_of, read_frames
from trainbox.channels.sources import Source
from trainbox.channels.streams import Stream
from trainbox.channels.wire import Spans, find_spans
from trainbox.errors import DataError

_NAME = "values"
_FLOAT = np.float64  # of which any number of a record is one, until it is rounded


class _Tensor(msgspec.Struct, frozen=True, eq=False):
    """The features or labels of one record."""

    values: Any
    #: The column of each value where it is sparse, else nothing.
    keys: Any
    #: How many values it has; where it is sparse, of what shape it is, or 0 where that is not said.
    width: int
    is_sparse: bool


class _Record(msgspec.Struct, frozen=True, eq=False):
    place: str
    label: _Tensor
    features: _Tensor


def look(stream: Stream, path: Path) -> Source | None:
    """What the first record says; None where there is none. Nothing is consumed.

    Raises:
        DataError: It is no record, or cut off.
    """
    first = first_record(stream)
    if first is None:
        return None
    return Source(path, stream.shown, "recordio-protobuf", _decode(*first).features.width or None)


def read(stream: Stream, source: Source, *, size: int, bounds: bool = False) -> Iterator[Block]:
    """The rows, block by block.

    Raises:
        DataError: With file, record and the record's offset.
    """
    joiner = Joiner(stream.shown)
    for frames in read_frames(stream, size=size):
        block = None if joiner.is_waiting else _read_alike(frames, source)
        if block is None:
            block = _read_each([_decode(*record) for record in joiner.add(frames)], source)
        if bounds and len(block.labels):
            block = msgspec.structs.replace(block, labels=fill_bounds(_both(block)))
        check(block, bounds=bounds)
        if len(block.labels):
            yield block
    joiner.finish()


def _both(block: Block) -> Any:  # noqa: ANN401 - an array
    if block.labels.ndim == 1 or block.labels.shape[1] != 2:  # noqa: PLR2004 - a lower and an upper one
        count = 1 if block.labels.ndim == 1 else block.labels.shape[1]
        raise DataError(f"{block.where(0)} has {count} labels, where two bounds are expected", hint=HINT)
    return block.labels


# ---- all at once ----


def _read_alike(frames: Frames, source: Source) -> Block | None:
    """Records that differ in their values alone; None where they do not."""
    if len(set(frames.lengths)) > 1 or any(frames.flags):
        return None
    start, length = frames.starts[0], frames.lengths[0]
    spans = find_spans(frames.content[start : start + length], _NAME.encode())
    if spans is None:
        return None
    # The spans are those of a plain record; what it means is for the library to say.
    first = _decode(place_of(frames, 0, source.shown), frames.content[start : start + length])
    _check_alike([first], source)
    count, stride = len(frames.starts), length + FRAME_HEAD + (-length % 4)
    rows = np.frombuffer(frames.content, np.uint8, count * stride, start - FRAME_HEAD).reshape(count, stride)
    records = rows[:, FRAME_HEAD : FRAME_HEAD + length]
    if not _is_alike(records, spans):
        return None
    labels = _floats(records[:, slice(*spans.labels)])
    return Block(
        labels[:, 0] if labels.shape[1] == 1 else labels,
        _floats(records[:, slice(*spans.features)]),
        None,
        None,
        lambda row: place_of(frames, row, source.shown),
    )


def _is_alike(records: Any, spans: Spans) -> bool:  # noqa: ANN401 - an array of bytes
    structure = np.ones(records.shape[1], bool)
    structure[slice(*spans.features)] = False
    structure[slice(*spans.labels)] = False
    between = records[:, structure]
    return bool((between == between[0]).all())


def _floats(content: Any) -> Any:  # noqa: ANN401 - an array of bytes becomes one of 32-bit floats
    return np.ascontiguousarray(content).view("<f4").astype(np.float32, copy=False)


# ---- one by one ----


def _read_each(records: Sequence[_Record], source: Source) -> Block:
    _check_alike(records, source)
    labels = np.array([value for record in records for value in record.label.values], _FLOAT)
    values = np.array([value for record in records for value in record.features.values], _FLOAT)
    if records and records[0].label.width > 1:
        labels = labels.reshape(len(records), -1)
    is_sparse = bool(records) and records[0].features.is_sparse
    return Block(
        _rounded(labels),
        _sparse(records, _rounded(values)) if is_sparse else _rounded(values).reshape(len(records), -1),
        None,
        None,
        lambda row: records[row].place,
    )


def _rounded(numbers: Any) -> Any:  # noqa: ANN401 - an array
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is an error of its own
        return numbers.astype(np.float32)


def _sparse(records: Sequence[_Record], values: Any) -> Sparse:  # noqa: ANN401 - an array
    columns = np.array([key for record in records for key in record.features.keys], np.int64)
    counts = np.array([len(record.features.keys) for record in records], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    width = max(1 + int(columns.max(initial=-1)), *(record.features.width for record in records))
    if not ascends(columns, starts):
        values, columns = sort_rows(values, columns, starts, width)
        twice = first_repeat(columns, starts)
        if twice is not None:
            raise DataError(f"{records[twice].place}: a key comes twice", hint="give each column one value")
    return Sparse(values, columns.astype(np.int32), counts, width)


def _check_alike(records: Sequence[_Record], source: Source) -> None:
    """All records of a channel must have the same shape.

    Raises:
        DataError: One has more features or labels than those before, or is dense where they are sparse.
    """
    for record in records:
        label, features, first = record.label, record.features, records[0]
        if features.is_sparse != first.features.is_sparse:
            kinds = ("sparse", "dense") if features.is_sparse else ("dense", "sparse")
            raise DataError(f"{record.place} is {kinds[0]}, those before are {kinds[1]}", hint="write all in one way")
        if (features.width or None) != source.width:
            raise DataError(
                f"{record.place} has {features.width} features, the first record has {source.width}",
                hint="every record must have the same number of features; a sparse one says it in its shape",
            )
        if label.width != first.label.width:
            raise DataError(
                f"{record.place} has {label.width} labels, those before have {first.label.width}",
                hint="every record must have the same number of labels",
            )


def _decode(place: str, content: bytes) -> _Record:
    """One record.

    Raises:
        DataError: It is no `aialgs.data.Record`, or has no features or no label that could be used.
    """
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - most jobs read no such record

    from trainbox.channels.protobuf import record_class  # noqa: PLC0415

    try:
        message = record_class().FromString(content)
    except DecodeError as error:
        raise DataError(
            f"{place} is no aialgs.data.Record: {error}",
            hint="is this recordio-protobuf? RecordIO around other content needs the channel's content type",
        ) from error
    label = _tensor(message.label, "label", place)
    if label.is_sparse or not label.width:
        raise DataError(f"{place}: the label is sparse or empty", hint="give each record its label as dense values")
    return _Record(place, label, _tensor(message.features, "features", place))


def _tensor(entries: Any, what: str, place: str) -> _Tensor:  # noqa: ANN401 - a map of the message
    if set(entries) != {_NAME}:
        found = ", ".join(sorted(map(repr, entries))) or "nothing"
        raise DataError(f"{place}: {what}: found {found}, expected 'values' alone", hint="write them as 'values'")
    kind = entries[_NAME].WhichOneof("value")
    if kind not in {"float32_tensor", "float64_tensor", "int32_tensor"}:
        raise DataError(
            f"{place}: {what}: found {kind or 'no tensor'}, expected numbers",
            hint="write them as float32_tensor, float64_tensor or int32_tensor",
        )
    tensor = getattr(entries[_NAME], kind)
    shape, keys, values = math.prod(tensor.shape) if tensor.shape else 0, tensor.keys[:], tensor.values[:]
    is_sparse = bool(keys) or (bool(shape) and not values)
    if max(shape, 1 + max(keys, default=0)) > MOST_COLUMNS:
        raise DataError(
            f"{place}: {what}: more columns than {MOST_COLUMNS:,}", hint="number the columns anew, or hash them"
        )
    if is_sparse and (len(keys) != len(values) or max(keys, default=0) >= (shape or MOST_COLUMNS)):
        raise DataError(
            f"{place}: {what}: {len(keys)} keys for {len(values)} values, of a shape of {shape or 'unknown'}",
            hint="give each value a key below the shape",
        )
    if not is_sparse and shape not in {0, len(values)}:
        raise DataError(f"{place}: {what}: {len(values)} values, of a shape of {shape}", hint="write it again")
    return _Tensor(values, keys, shape if is_sparse else len(values), is_sparse)
