"""Open a channel, files or a pipe, and yield its rows block by block, with checks over all files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from trainbox.data.file_inspection import (
    ChannelFile,
    ChannelPlan,
    ReadRequest,
    compare_names,
    compare_sources,
    detect_format,
    make_plan,
    plan_files,
)
from trainbox.data.files import first_pipe, open_pipe
from trainbox.data.formats import ByteStream, Rows, SourceInfo, inspect, read_rows, stream_from
from trainbox.data.formats.byte_stream import compression_from_magic, open_file
from trainbox.data.formats.categories import CategoryEncoder
from trainbox.data.formats.recordio_wire import read_records
from trainbox.data.table import Block, GroupOrder, describe_shape, shape_of
from trainbox.errors import DataError
from trainbox.log_lines import emit

#: Enough to detect the compression of a pipe.
_MAGIC_BYTES = 16


class OpenChannel(msgspec.Struct, frozen=True, eq=False):
    """A channel that has been inspected, and its rows."""

    #: The first file, for messages.
    shown: str
    files: tuple[Path, ...]
    names: tuple[str, ...] | None
    #: Yields the rows, block by block: those of files again with each call, those of a pipe once. Texts are encoded.
    read: Callable[[CategoryEncoder], Iterator[Block]]
    #: Makes the encoder of one reading.
    make_encoder: Callable[[], CategoryEncoder]


@contextmanager
def open_channel(request: ReadRequest) -> Iterator[OpenChannel | str]:
    """Inspect a channel and log what was decided; gives the reason if there are no rows.

    Raises:
        DataError: A file is not of its declared format, or differs from the others.
    """
    for note in request.notes:
        emit(f"{request.name}: {note}")
    if not request.is_pipe:
        yield _open_files(plan_files(request), request)
        return
    pipe = first_pipe(request.path)
    with open_pipe(pipe, pipe.name, request.pipe_timeout) as stream:
        yield _open_pipe(request, pipe, stream)


def _open_files(plan: ChannelPlan, request: ReadRequest) -> OpenChannel | str:
    for note in plan.notes:
        emit(note)
    if not plan.files:
        return plan.nothing

    def read_all(encoder: CategoryEncoder) -> Iterator[Rows]:
        for file in plan.files:
            with open_file(file.path, file.info.shown) as stream:
                yield from read_rows(stream, file.info, encoder, size=request.size)

    return _channel(plan, request, read_all)


def _open_pipe(request: ReadRequest, pipe: Path, stream: ByteStream) -> OpenChannel | str:
    """Inspect the first rows of a pipe; it cannot be read twice, so later rows are compared with them as they come."""
    streams = iter([stream])
    if request.is_wrapped:
        records = read_records(stream, size=request.size)
        streams = (stream_from(content, place.text) for place, content in records)
    found = ((each, _inspect_stream(each, pipe, request)) for each in streams)
    known = ((each, source) for each, source in found if source is not None)
    first = next(known, None)
    if first is None:
        return f"the pipe {pipe} ended without a row"
    plan = make_plan((ChannelFile(pipe, first[1]),), request)
    for note in plan.notes:
        emit(note)

    def read_all(encoder: CategoryEncoder) -> Iterator[Rows]:
        yield from read_rows(*first, encoder, size=request.size)
        for each, source in known:
            _compare(source, first[1])
            yield from read_rows(each, source, encoder, size=request.size)

    return _channel(plan, request, read_all)


def _inspect_stream(stream: ByteStream, pipe: Path, request: ReadRequest) -> SourceInfo | None:
    compression = compression_from_magic(stream.peek(_MAGIC_BYTES))
    if compression is not None:
        raise DataError(
            f"{request.name}: the pipe's data is compressed with {compression}",
            hint="set CompressionType=Gzip for this channel, or use input mode File or FastFile",
        )
    format_ = detect_format(stream, request, pipe)
    if format_ == "Parquet":
        raise DataError(
            f"{request.name}: Parquet cannot be read from a pipe: its footer, which locates the columns, is at the end",
            hint="use input mode File or FastFile for this channel",
        )
    return inspect(stream, format_, request.columns)


def _compare(source: SourceInfo, first: SourceInfo) -> None:
    compare_sources(source, first)
    if source.names is not None and first.names is not None:
        compare_names(source.shown, source.names, first.shown, first.names)


# ---- all sources ----


def _channel(
    plan: ChannelPlan, request: ReadRequest, read_all: Callable[[CategoryEncoder], Iterator[Rows]]
) -> OpenChannel:
    shown = plan.files[0].info.shown
    return OpenChannel(
        shown,
        tuple(file.path for file in plan.files),
        plan.names,
        lambda encoder: _checked(_labelled(read_all(encoder))),
        lambda: plan.make_encoder(request, shown),
    )


def _labelled(blocks: Iterable[Rows]) -> Iterator[Block]:
    for rows in blocks:
        yield _to_block(rows)
        del rows  # so that there is one block in memory, not two


def _to_block(rows: Rows) -> Block:
    if rows.labels is None:
        raise TypeError(f"{rows.where(0)}: rows were read without labels")
    where = rows.where
    return Block(rows.labels, rows.features, rows.weights, rows.groups, lambda row: where(row).text)


def _checked(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the blocks; each is compared with the first, and the order of groups is checked."""
    first, order = None, GroupOrder()
    for block in blocks:
        shape = shape_of(block)
        first = first or shape
        if shape != first:
            raise DataError(
                f"{block.where(0)} has {describe_shape(shape)}, the rows before have {describe_shape(first)}",
                hint="write all rows of a channel in one way",
            )
        if block.groups is not None:
            order.check(block.groups, block.where)
        yield block
        del block  # so that there is one block in memory, not two
