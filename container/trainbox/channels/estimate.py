"""How much memory a channel will take, from the sizes of its files and the first rows of some."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from trainbox.channels import parquet
from trainbox.channels.blocks import Block
from trainbox.channels.compressed import Sparse
from trainbox.channels.records import end_of_frames
from trainbox.channels.request import LABEL_FIRST, Request, ask
from trainbox.channels.rows import Plan, make_words, plan_files, read_stream
from trainbox.channels.shortage import naming_shortage
from trainbox.channels.sources import Source
from trainbox.channels.streams import LONGEST_LINE, Stream, open_file, packing_of, reading, stream_of
from trainbox.channels.table import Columns
from trainbox.contract.job import Channel
from trainbox.errors import DataError

#: Of so many files the first rows are decoded, spread over all.
_SAMPLES = 16
_SAMPLE_BYTES = 512 * 1024
_ITEM = np.dtype(np.float32).itemsize


def estimate_bytes(channel: Path | Channel, *, columns: Columns = LABEL_FIRST, content_type: str | None = None) -> int:
    """About how many bytes the features of `read_table` will take, without reading all rows.

    4 for each cell; of sparse formats, 8 for each value that is stored. 0 for a channel without a file. Nothing is
    said: whoever reads the channel hears it then.

    Raises:
        DataError: A file cannot be used, so far as its first rows show; or the channel is in Pipe mode.
    """
    request = ask(channel, columns, content_type)
    if request.is_pipe:
        raise DataError(
            f"{request.name}: how much comes through a pipe is known only when it has been read",
            hint="read it with read_blocks",
        )
    with naming_shortage(request.name):
        return _estimate(request)


def _estimate(request: Request) -> int:
    plan = plan_files(request)
    layout = plan.layout
    texts = [source for source in plan.sources if source.kind != "Parquet"]
    rate = _rate(texts[:: -(-len(texts) // _SAMPLES) or 1], plan, request)
    total = sum(_plain_size(source) for source in texts) * rate
    for source in plan.sources:
        if source.kind == "Parquet" and layout is not None:
            total += parquet.count_rows(source.path, source.shown) * len(layout.features) * _ITEM
    return int(total)


def _rate(sources: list[Source], plan: Plan, request: Request) -> float:
    """How many bytes of memory a byte of a file becomes."""
    decoded = read = 0
    for source in sources:
        with open_file(source.path, source.shown) as stream:
            sample = _whole_rows(stream, source)
        blocks = read_stream(
            stream_of(sample, source.shown),
            source,
            plan.layout,
            msgspec.structs.replace(request, size=len(sample)),
            make_words(plan, request, source.shown),
        )
        decoded += sum(_size(block) for block in blocks)
        read += len(sample)
    return decoded / read if read else 0.0


def _whole_rows(stream: Stream, source: Source) -> bytes:
    """The first rows of a file."""
    size = _SAMPLE_BYTES
    while True:
        sample = stream.peek(size)
        if len(sample) < size:
            return sample
        end = end_of_frames(sample, source.shown) if source.kind == "recordio-protobuf" else sample.rfind(b"\n") + 1
        if end or size > LONGEST_LINE:
            return sample[:end] if end else sample
        size *= 2


def _size(block: Block) -> int:
    if isinstance(block.features, Sparse):
        return 2 * _ITEM * len(block.features.values)
    return _ITEM * block.features.size


def _plain_size(source: Source) -> float:
    """The size of a file, unpacked: that of a packed one from how far its first bytes stretch."""
    size = source.path.stat().st_size
    with reading(source.shown):
        packing = packing_of(source.path)
        if packing is None:
            return size
        raw: Any = pa.OSFile(str(source.path))
        with raw, pa.CompressedInputStream(raw, packing) as stream:
            plain = len(stream.read(8 * _SAMPLE_BYTES))
            return size * plain / max(1, int(raw.tell()))
