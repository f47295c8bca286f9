"""Estimate the memory that a channel will take, from the sizes of its files and the first rows of some."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainbox.contract.job import Channel
from trainbox.data.file_inspection import ChannelFile, ChannelPlan, ReadRequest, plan_files
from trainbox.data.formats import ByteStream, ColumnSpec, Rows, SourceInfo, read_rows, stream_from
from trainbox.data.formats.byte_stream import (
    LONGEST_LINE,
    detect_compression,
    open_file,
    translate_read_errors,
)
from trainbox.data.formats.parquet import count_rows
from trainbox.data.formats.recordio_wire import last_frame_end
from trainbox.data.formats.row_block import Sparse
from trainbox.data.read import LABEL_FIRST, make_request
from trainbox.data.resource_errors import translate_resource_errors
from trainbox.errors import DataError

#: The first rows of so many files are decoded, spread over all.
_SAMPLES = 16
_SAMPLE_BYTES = 512 * 1024
_ITEM = np.dtype(np.float32).itemsize


def estimate_bytes(
    channel: Path | Channel, *, columns: ColumnSpec = LABEL_FIRST, content_type: str | None = None
) -> int:
    """Estimate how many bytes the features of `read_table` will take, without reading all rows.

    4 for each cell; of sparse formats, 8 for each value that is stored. 0 for a channel without a file. Nothing is
    logged: reading the channel does.

    Raises:
        DataError: A file cannot be used, as far as its first rows show; or the channel is in Pipe mode.
    """
    request = make_request(channel, columns, content_type)
    if request.is_pipe:
        raise DataError(
            f"{request.name}: the size of a pipe's data is known only after reading it",
            hint="read it with read_blocks",
        )
    with translate_resource_errors(request.name):
        return _estimate(request)


def _estimate(request: ReadRequest) -> int:
    plan = plan_files(request)
    others = [file for file in plan.files if file.info.format != "Parquet"]
    rate = _rate(others[:: -(-len(others) // _SAMPLES) or 1], plan, request)
    total = sum(_decompressed_size(file) for file in others) * rate
    for file in plan.files:
        if file.info.format == "Parquet" and plan.schema is not None:
            with open_file(file.path, file.info.shown) as stream:
                total += count_rows(stream) * len(plan.schema.features) * _ITEM
    return int(total)


def _rate(files: list[ChannelFile], plan: ChannelPlan, request: ReadRequest) -> float:
    """Return how many bytes of memory a byte of a file becomes."""
    decoded = read = 0
    for file in files:
        with open_file(file.path, file.info.shown) as stream:
            sample = _whole_rows(stream, file.info)
        encoder = plan.make_encoder(request, file.info.shown)
        blocks = read_rows(stream_from(sample, file.info.shown), file.info, encoder, size=len(sample))
        decoded += sum(_size(rows) for rows in blocks)
        read += len(sample)
    return decoded / read if read else 0.0


def _whole_rows(stream: ByteStream, source: SourceInfo) -> bytes:
    """Return the first whole rows of a file."""
    size = _SAMPLE_BYTES
    while True:
        sample = stream.peek(size)
        if len(sample) < size:
            return sample
        is_recordio = source.format == "recordio-protobuf"
        end = last_frame_end(sample, source.shown) if is_recordio else sample.rfind(b"\n") + 1
        if end or size > LONGEST_LINE:
            return sample[:end] if end else sample
        size *= 2


def _size(rows: Rows) -> int:
    if isinstance(rows.features, Sparse):
        return 2 * _ITEM * len(rows.features.values)
    return _ITEM * rows.features.size


def _decompressed_size(file: ChannelFile) -> float:
    """Return the decompressed size of a file, extrapolated from its first bytes."""
    size = file.path.stat().st_size
    with translate_read_errors(file.info.shown):
        compression = detect_compression(file.path)
        if compression is None:
            return size
        raw: Any = pa.OSFile(str(file.path))
        with raw, pa.CompressedInputStream(raw, compression) as stream:
            decompressed = len(stream.read(8 * _SAMPLE_BYTES))
            return size * decompressed / max(1, int(raw.tell()))
