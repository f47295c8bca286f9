"""Inspect the first rows of every file of a channel, and plan how to read all files as one table."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trainbox.contract.text import short, some
from trainbox.data.files import display_path, list_files
from trainbox.data.formats import ColumnSpec, Format, SourceInfo, inspect
from trainbox.data.formats.byte_stream import ByteStream, detect_compression, open_file
from trainbox.data.formats.categories import CategoryEncoder, Coding
from trainbox.data.formats.format_detection import (
    PARQUET_MAGIC,
    ContentType,
    format_from_content,
    format_from_name,
    reject_format_mismatch,
    reject_unsupported,
)
from trainbox.data.formats.schema import RowSchema, default_names, resolve_schema
from trainbox.errors import DataError

_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", " ": "blank"}


class ReadRequest(msgspec.Struct, frozen=True):
    """One reading of a channel, with everything decided that does not depend on its data."""

    name: str
    path: Path
    columns: ColumnSpec
    #: None: the name or first bytes of each file decide the format.
    content_type: ContentType | None
    is_pipe: bool
    #: Whether each file is wrapped in a record of its own (Pipe mode with the record wrapper RecordIO).
    is_wrapped: bool
    #: How long to wait for a pipe to appear and for its writer, in seconds.
    pipe_timeout: float
    #: The number of bytes of text or records to parse at a time.
    size: int
    #: Decisions that the user should know.
    notes: tuple[str, ...] = ()
    #: The codes of texts that these rows must have.
    coding: Coding | None = None


class ChannelFile(msgspec.Struct, frozen=True):
    """A file with rows, inspected."""

    path: Path
    info: SourceInfo


class ChannelPlan(msgspec.Struct, frozen=True):
    """How to read the files of a channel, from their first rows."""

    files: tuple[ChannelFile, ...] = ()
    #: The columns of a row; None for formats without columns.
    schema: RowSchema | None = None
    #: The names of the features; None if only the rows tell their number (libsvm, and sparse records without a shape).
    names: tuple[str, ...] | None = None
    #: Decisions that the user should know.
    notes: tuple[str, ...] = ()
    #: Why there are no rows, if there are none.
    nothing: str = ""

    def make_encoder(self, request: ReadRequest, shown: str) -> CategoryEncoder:
        """Make the encoder of one reading.

        Raises:
            DataError: A column that is named as one of texts does not exist.
        """
        return CategoryEncoder(self.schema, request.columns, shown, coding=request.coding, is_pipe=request.is_pipe)


def plan_files(request: ReadRequest) -> ChannelPlan:
    """Inspect every file, without logging.

    Raises:
        DataError: A file is not of its declared format, or differs from the others.
    """
    paths, notes = list_files(request.path)
    inspected = [(path, _inspect_file(path, request)) for path in paths]
    empty = [display_path(path, request.path) for path, info in inspected if info is None]
    files = tuple(ChannelFile(path, info) for path, info in inspected if info is not None)
    if not files:
        what = f"holds nothing but empty files ({some(empty)})" if empty else "holds no file"
        return ChannelPlan(notes=notes, nothing=f"the channel {request.path} {what}")
    if empty:
        notes += (f"{request.name}: skipped empty files: {some(empty)}",)
    guessed = [file.info for file in files if file.info.format != "CSV" and not _is_declared(file, request)]
    for format_ in sorted({info.format for info in guessed}):
        shown = [info.shown for info in guessed if info.format == format_]
        notes += (
            f"{request.name}: no content type is given; {some(shown)} read as {format_}, detected from the content",
        )
    return make_plan(files, request, notes)


def make_plan(files: tuple[ChannelFile, ...], request: ReadRequest, notes: tuple[str, ...] = ()) -> ChannelPlan:
    """Plan the reading of inspected files.

    Raises:
        DataError: They differ, or their format does not support what is requested.
    """
    first = files[0].info
    names, more = agree_on_columns([file.info for file in files], request.name)
    notes += more
    _check_format(first, request)
    if first.format in {"CSV", "Parquet"}:
        schema = resolve_schema(request.columns, first.width or 0, names, first.shown)
        return ChannelPlan(files, schema, schema.feature_names, notes)
    if request.columns.weight or request.columns.group is not None:
        notes += (f"{request.name}: {first.format} has no columns of weights or groups; those asked for are ignored",)
    return ChannelPlan(files, None, None if first.width is None else default_names(first.width), notes)


def _check_format(first: SourceInfo, request: ReadRequest) -> None:
    """Reject what the format of a channel does not support.

    Raises:
        DataError: Bounds or texts are requested, and rows have one label, or numbers alone.
    """
    if request.columns.bounds and first.format == "libsvm":
        raise DataError(
            f"{first.shown} is libsvm, whose rows have one label, and two are needed: the lower and the upper bound",
            hint="use CSV or Parquet",
        )
    if request.columns.categorical and first.format in {"libsvm", "recordio-protobuf"}:
        raise DataError(
            f"{first.shown} is {first.format}, which has numbers alone, and categorical names columns of texts",
            hint="use CSV or Parquet; or leave categorical out",
        )


def _is_declared(file: ChannelFile, request: ReadRequest) -> bool:
    return request.content_type is not None or format_from_name(file.path) == file.info.format


# ---- one file ----


def _inspect_file(path: Path, request: ReadRequest) -> SourceInfo | None:
    with open_file(path, display_path(path, request.path)) as stream:
        format_ = detect_format(stream, request, path)
        if format_ == "Parquet":
            _check_parquet(stream, path)
        return inspect(stream, format_, request.columns)


def detect_format(stream: ByteStream, request: ReadRequest, path: Path) -> Format:
    """Return the format that is declared, or else detected.

    Raises:
        DataError: The stream is of an unsupported format, or contradicts the declared one.
    """
    declared = request.content_type
    reject_unsupported(stream, path.suffix)
    if declared is None:
        return format_from_name(path) or format_from_content(stream)
    reject_format_mismatch(stream, declared)
    return declared.format


def _check_parquet(stream: ByteStream, path: Path) -> None:
    shown, head = stream.shown, stream.peek(len(PARQUET_MAGIC))
    if head not in {PARQUET_MAGIC, b""}:
        raise DataError(
            f"{shown} cannot be read as Parquet: it begins with {short(head.decode(errors='replace'))}, not with PAR1",
            hint="name it by what it holds, for example .csv, or give the channel's content type",
        )
    if detect_compression(path) is not None:
        raise DataError(
            f"{shown} is Parquet within another compression", hint="decompress it: Parquet is compressed in itself"
        )


# ---- all files ----


def agree_on_columns(sources: Sequence[SourceInfo], channel: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the header that all files share, or None if no file has one; and notes about it for the log.

    Raises:
        DataError: Two files differ in their format, their number of columns, or a column's name.
    """
    first = sources[0]
    for source in sources:
        compare_sources(source, first)
    notes = [source.note for source in sources if source.note]
    for delimiter in sorted({source.delimiter for source in sources} - {","}):
        files = [source.shown for source in sources if source.delimiter == delimiter]
        named_delimiter = _DELIMITER_NAMES.get(delimiter, repr(delimiter))
        notes.append(f"{channel}: columns are separated by a {named_delimiter} in {some(files)}")
    named = [source for source in sources if source.names is not None]
    if not named:
        return None, tuple(notes)
    for source in named:
        compare_names(source.shown, source.names or (), named[0].shown, named[0].names or ())
    bare = [source.shown for source in sources if source.names is None]
    notes.append(
        f"{channel}: {len(named)} of {len(sources)} files have a header ({some(named[0].names or ())})"
        + (f", {some(bare)} not: columns are taken by their position" if bare else "")
    )
    return named[0].names, tuple(notes)


def compare_sources(source: SourceInfo, first: SourceInfo) -> None:
    """Reject two sources that cannot be one table.

    Raises:
        DataError: One has another format, or another number of columns.
    """
    if source.format != first.format and {source.format, first.format} != {"CSV", "Parquet"}:
        raise DataError(
            f"{source.shown} is {source.format}, {first.shown} is {first.format}",
            hint="all files of a channel must be of one format (CSV and Parquet go together)",
        )
    if source.width != first.width:
        raise DataError(
            f"{source.shown} has {source.width} columns, {first.shown} has {first.width}",
            hint="every file of a channel must have the same columns",
        )


def compare_features(here: str, names: tuple[str, ...], there: str, other_names: tuple[str, ...]) -> None:
    """Reject two channels with different features; names are compared if both have some.

    Raises:
        DataError: They differ.
    """
    if len(names) != len(other_names):
        raise DataError(
            f"{here} has {len(names)} features, {there} has {len(other_names)}",
            hint="every channel must have the same columns",
        )
    if default_names(len(names)) not in {names, other_names}:
        compare_names(here, names, there, other_names)


def compare_names(here: str, names: tuple[str, ...], there: str, other_names: tuple[str, ...]) -> None:
    """Reject two lists of columns with different names.

    Raises:
        DataError: They differ.
    """
    for name, other_name in zip(names, other_names, strict=True):
        if name != other_name:
            raise DataError(
                f"{here} calls a column {name!r} where {there} calls it {other_name!r}",
                hint="every file must have the same columns in the same order",
            )
