"""A channel, opened: its files or its pipe looked at, agreed upon, and read block by block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa

from trainbox.channels import delimited, libsvm, parquet, pipes, recordio
from trainbox.channels.blocks import Block, Seen, describe_shape, shape_of
from trainbox.channels.cells import Form
from trainbox.channels.files import list_files, show
from trainbox.channels.foreign import refuse_foreign
from trainbox.channels.kinds import PARQUET_MAGIC, Kind, kind_by_content, kind_by_name, refuse_another_kind
from trainbox.channels.layout import Layout, lay_out
from trainbox.channels.records import read_contents
from trainbox.channels.request import Request
from trainbox.channels.sources import Source, agree, compare_names, compare_sources
from trainbox.channels.streams import Stream, open_file, packing_by_mark, packing_of, stream_of
from trainbox.channels.table import default_names
from trainbox.channels.wording import some
from trainbox.channels.words import Words
from trainbox.contract.text import short
from trainbox.errors import DataError
from trainbox.say import say

#: So much shows how the stream of a pipe is packed.
_MARK_BYTES = 16


class Plan(msgspec.Struct, frozen=True):
    """What the first lines of all files say."""

    sources: tuple[Source, ...] = ()
    #: Where the columns stand, if a row has columns.
    layout: Layout | None = None
    #: Of the features; None where only the rows say how many there are (libsvm, and sparse records without a shape).
    names: tuple[str, ...] | None = None
    #: What was decided for the user.
    notes: tuple[str, ...] = ()
    #: Why there is no source.
    nothing: str = ""


class Rows(msgspec.Struct, frozen=True, eq=False):
    """What is known before the first row is read, and the rows."""

    #: The first file, as messages name it.
    shown: str
    files: tuple[Path, ...]
    names: tuple[str, ...] | None
    #: The rows, block by block; those of files again with each call, those of a pipe once. Texts are told to the words.
    read: Callable[[Words], Iterator[Block]]
    #: Makes what hears of the texts of one reading.
    words: Callable[[], Words]


@contextmanager
def open_rows(request: Request) -> Iterator[Rows | str]:
    """Look at a channel, and say what was decided; in place of rows, why there are none.

    Raises:
        DataError: A file cannot be read as what it is said to be, or differs from the others.
    """
    # Signals are the script's. Arrow would wait for Ctrl-C in a thread of its own, for each block of CSV anew, with
    # which a process that ends soon after has been seen to abort (SIGABRT in place of its exit code).
    pa.enable_signal_handlers(False)
    for note in request.notes:
        say(f"{request.name}: {note}")
    if not request.is_pipe:
        yield _open_files(plan_files(request), request)
        return
    pipe = pipes.first_pipe(request.path)
    with pipes.open_pipe(pipe, pipe.name, request.patience) as stream:
        yield _open_pipe(request, pipe, stream)


# ---- files ----


def plan_files(request: Request) -> Plan:
    """Look at every file; nothing is said.

    Raises:
        DataError: A file cannot be read as what it is said to be, or differs from the others.
    """
    paths, notes = list_files(request.path)
    looks = [(path, _look_at_file(path, request)) for path in paths]
    empty = [show(path, request.path) for path, source in looks if source is None]
    sources = tuple(source for _, source in looks if source is not None)
    if not sources:
        what = f"holds nothing but empty files ({some(empty)})" if empty else "holds no file"
        return Plan(notes=notes, nothing=f"the channel {request.path} {what}")
    if empty:
        notes += (f"{request.name}: skipped empty files: {some(empty)}",)
    guessed = [source for source in sources if source.kind != "CSV" and not _is_told(source, request)]
    for kind in sorted({source.kind for source in guessed}):
        files = [source.shown for source in guessed if source.kind == kind]
        notes += (f"{request.name}: no content type is given; {some(files)} read as {kind}, as the content looks",)
    return _plan(sources, request, notes)


def _plan(sources: tuple[Source, ...], request: Request, notes: tuple[str, ...] = ()) -> Plan:
    first = sources[0]
    names, more = agree(sources, request.name)
    notes += more
    _check_format(first, request)
    if first.kind in {"CSV", "Parquet"}:
        layout = lay_out(request.columns, first.width or 0, names, first.shown)
        return Plan(sources, layout, layout.feature_names, notes)
    if request.columns.weight or request.columns.group is not None:
        notes += (f"{request.name}: {first.kind} has no columns of weights or groups; those asked for are not heeded",)
    return Plan(sources, None, None if first.width is None else default_names(first.width), notes)


def _check_format(first: Source, request: Request) -> None:
    """Refuse what the format of a channel has no room for.

    Raises:
        DataError: Bounds or texts are asked for, and rows have one label, or numbers alone.
    """
    if request.columns.bounds and first.kind == "libsvm":
        raise DataError(
            f"{first.shown} is libsvm, whose rows have one label, and two are needed: the lower and the upper bound",
            hint="use CSV or Parquet",
        )
    if request.columns.categorical and first.kind in {"libsvm", "recordio-protobuf"}:
        raise DataError(
            f"{first.shown} is {first.kind}, which has numbers alone, and categorical names columns of texts",
            hint="use CSV or Parquet; or leave categorical out",
        )


def _is_told(source: Source, request: Request) -> bool:
    return request.said is not None or kind_by_name(source.path) == source.kind


def _look_at_file(path: Path, request: Request) -> Source | None:
    shown = show(path, request.path)
    with open_file(path, shown) as stream:
        refuse_foreign(stream, path)
        kind = kind_by_name(path) if request.said is None else request.said.kind
        if request.said is not None:
            refuse_another_kind(stream, request.said)
        kind = kind or kind_by_content(stream)
        if kind != "Parquet":
            return _look(stream, path, kind, request)
        head = stream.peek(len(PARQUET_MAGIC))
    if head not in {PARQUET_MAGIC, b""}:
        raise DataError(
            f"{shown} cannot be read as Parquet: it begins with {short(head.decode(errors='replace'))}, not with PAR1",
            hint="name it by what it holds, for example .csv, or give the channel's content type",
        )
    if packing_of(path) is not None:
        raise DataError(f"{shown} is Parquet within another packing", hint="unpack it: Parquet is compressed in itself")
    return parquet.look(path, shown, request.columns)


def _look(stream: Stream, path: Path, kind: Kind, request: Request) -> Source | None:
    if kind == "libsvm":
        return libsvm.look(stream, path)
    if kind == "recordio-protobuf":
        return recordio.look(stream, path)
    return delimited.look(stream, path, request.columns)


def _open_files(plan: Plan, request: Request) -> Rows | str:
    for note in plan.notes:
        say(note)
    if not plan.sources:
        return plan.nothing

    def read_all(words: Words) -> Iterator[Block]:
        for source in plan.sources:
            yield from _read_source(source, plan.layout, request, words)

    shown, files = plan.sources[0].shown, tuple(source.path for source in plan.sources)
    return Rows(
        shown, files, plan.names, lambda words: _checked(read_all(words)), lambda: make_words(plan, request, shown)
    )


def make_words(plan: Plan, request: Request, shown: str) -> Words:
    """What is known of texts before the first row is read.

    Raises:
        DataError: A column that is said to be one of texts is not there.
    """
    return Words(plan.layout, request.columns, shown, coding=request.coding, is_pipe=request.is_pipe)


def _read_source(source: Source, layout: Layout | None, request: Request, words: Words) -> Iterator[Block]:
    """The rows of one file."""
    if source.kind == "Parquet" and layout is not None:
        yield from parquet.read(Form(source, layout, request.columns, words))
        return
    with open_file(source.path, source.shown) as stream:
        yield from read_stream(stream, source, layout, request, words)


def read_stream(
    stream: Stream, source: Source, layout: Layout | None, request: Request, words: Words
) -> Iterator[Block]:
    """The rows of a file or pipe that has been looked at."""
    if source.kind == "libsvm":
        return libsvm.read(stream, size=request.size)
    if source.kind == "recordio-protobuf":
        return recordio.read(stream, source, size=request.size, bounds=request.columns.bounds)
    if layout is None:
        raise TypeError(f"{source.shown}: {source.kind} has columns, and no layout")
    return delimited.read(stream, Form(source, layout, request.columns, words), size=request.size)


# ---- a pipe ----


def _open_pipe(request: Request, pipe: Path, stream: Stream) -> Rows | str:
    """Nothing of a pipe can be read twice: what follows the first rows is compared with them as it comes."""
    streams = iter([stream])
    if request.is_wrapped:
        streams = (stream_of(content, place) for place, content in read_contents(stream, size=request.size))
    found = ((each, _look_at_stream(each, pipe, request)) for each in streams)
    known = ((each, source) for each, source in found if source is not None)
    first = next(known, None)
    if first is None:
        return f"nothing came through the pipe {pipe}"
    plan = _plan((first[1],), request)
    for note in plan.notes:
        say(note)

    def read_all(words: Words) -> Iterator[Block]:
        yield from read_stream(*first, plan.layout, request, words)
        for each, source in known:
            _compare(source, first[1])
            yield from read_stream(each, source, plan.layout, request, words)

    shown = first[1].shown
    return Rows(
        shown, (pipe,), plan.names, lambda words: _checked(read_all(words)), lambda: make_words(plan, request, shown)
    )


def _look_at_stream(stream: Stream, pipe: Path, request: Request) -> Source | None:
    packing = packing_by_mark(stream.peek(_MARK_BYTES))
    if packing is not None:
        raise DataError(
            f"{request.name}: what comes through the pipe is packed with {packing}",
            hint="set CompressionType=Gzip for this channel, or use input mode File or FastFile",
        )
    refuse_foreign(stream, pipe)
    if request.said is not None:
        refuse_another_kind(stream, request.said)
    kind = kind_by_content(stream) if request.said is None else request.said.kind
    if kind == "Parquet":
        raise DataError(
            f"{request.name}: Parquet cannot be read from a pipe: what says where its columns lie stands at the end",
            hint="use input mode File or FastFile for this channel",
        )
    return _look(stream, pipe, kind, request)


def _compare(source: Source, first: Source) -> None:
    compare_sources(source, first)
    if source.names is not None and first.names is not None:
        compare_names(source.shown, source.names, first.shown, first.names)


# ---- what holds over all files ----


def _checked(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, each compared with the first, and the groups followed from one to the next."""
    first, seen = None, Seen()
    for block in blocks:
        shape = shape_of(block)
        first = first or shape
        if shape != first:
            raise DataError(
                f"{block.where(0)} has {describe_shape(shape)}, the rows before have {describe_shape(first)}",
                hint="write all rows of a channel in one way",
            )
        if block.groups is not None:
            seen.check(block.groups, block.where)
        yield block
        del block  # so that there is one block in memory, not two
