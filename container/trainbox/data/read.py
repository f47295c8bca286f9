"""Read a channel as one table, or as a table for every few thousand rows."""

from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa  # noqa: F401 - channels need it: better now than when memory or files are scarce
import scipy.sparse

from trainbox.contract.job import Channel
from trainbox.contract.text import did_you_mean, printable
from trainbox.data.channel_reader import OpenChannel, open_channel
from trainbox.data.file_inspection import ReadRequest, compare_features
from trainbox.data.formats import ColumnSpec, read_content_type
from trainbox.data.formats.byte_stream import block_bytes
from trainbox.data.formats.categories import CategoryEncoder, Coding, sort_coding
from trainbox.data.formats.row_block import Sparse
from trainbox.data.formats.schema import default_names
from trainbox.data.resource_errors import translate_resource_errors
from trainbox.data.table import Block, Inspect, Table, TableBuilder, rechunk, recode_table
from trainbox.errors import DataError
from trainbox.log_lines import emit

#: The label first, then the features.
LABEL_FIRST = ColumnSpec()
#: Seconds; SageMaker makes a channel's pipes before it starts the container, or soon after.
PIPE_TIMEOUT = 300.0
#: Of a block: 7 MB for 28 features.
ROWS = 65_536
_HEADERS_ONLY = "no rows in {}: its files hold only headers or comments"
#: The channels that the bundled scripts read as rows, and those that they read in another way.
_ROWS, _OTHERS = ("train", "validation", "test"), ("code", "model")


def make_request(
    channel: Path | Channel,
    columns: ColumnSpec = LABEL_FIRST,
    content_type: str | None = None,
    pipe_timeout: float = PIPE_TIMEOUT,
    coding: Coding | None = None,
) -> ReadRequest:
    """Combine the settings of the job, the content type and the caller; the caller takes precedence.

    Raises:
        DataError: The content type is unknown, or says that rows have no labels.
        ValueError: The caller says that rows have no labels.
    """
    if columns.labels < 1:
        raise ValueError(f"{columns.labels} columns are labels; training needs at least one")
    if isinstance(channel, Path):
        channel = Channel(channel.name, channel)
    text = content_type or channel.content_type
    declared = read_content_type(text) if text else None
    notes = []
    if declared is not None and declared.labels == 0:
        raise DataError(
            f"the content type {text!r}: label_size is '0', expected a number of columns, 1 or more",
            hint="training needs labels; write text/csv;label_size=1",
        )
    if declared is not None and declared.labels is not None and declared.labels != columns.labels:
        if columns.labels == LABEL_FIRST.labels:
            notes.append(f"the first {declared.labels} columns are labels, as the content type {declared.text!r} says")
            columns = msgspec.structs.replace(columns, labels=declared.labels)
        else:
            notes.append(f"{columns.labels} columns are labels; the content type {declared.text!r} is ignored")
    is_pipe = channel.input_mode == "Pipe"
    is_text = declared is not None and declared.format in {"CSV", "libsvm"}
    is_wrapped = is_pipe and is_text and channel.record_wrapper == "RecordIO"
    return ReadRequest(
        channel.name,
        channel.path,
        columns,
        declared,
        is_pipe,
        is_wrapped,
        pipe_timeout,
        block_bytes(),
        tuple(notes),
        coding,
    )


def read_table(
    channel: Path | Channel,
    *,
    like: Table | None = None,
    columns: ColumnSpec = LABEL_FIRST,
    content_type: str | None = None,
    coding: Coding | None = None,
    allow_empty: bool = False,
    pipe_timeout: float = PIPE_TIMEOUT,
    inspect: Inspect | None = None,
) -> Table:
    """Read all files of a channel as one table.

    Args:
        channel: The job's channel, or a directory, or one file. In Pipe mode, its first pipe is read to its end.
        like: The table of another channel, whose columns and codes of texts this one must have; libsvm is made at
            least as wide.
        columns: The columns of a row of CSV or Parquet.
        content_type: Overrides the channel's own; if both are None, the name or content of each file decides.
        coding: The codes of texts; overrides those of `like`.
        allow_empty: Whether a channel without rows (on this host) gives a table without rows instead of an error. Its
            columns are those of a header, or of `like`.
        pipe_timeout: How long to wait for a pipe, in seconds.
        inspect: Called with each block of rows as it is read, and the names of its features.

    Raises:
        DataError: With file, line and cell, and what to do.
        ResourceError: There is not enough memory, or no thread, to read it.
    """
    coding = coding if coding is not None or like is None else like.coding
    request = make_request(channel, columns, content_type, pipe_timeout, coding)
    if allow_empty and not request.is_pipe and not request.path.exists():
        _reject_empty(request, f"there is no {request.path}", allow_empty=allow_empty)
        return _without_rows(request, None, like)
    with translate_resource_errors(request.name), open_channel(request) as opened:
        if isinstance(opened, str):
            _reject_empty(request, opened, allow_empty=allow_empty)
            return _without_rows(request, None, like)
        if like is not None and opened.names is not None:
            compare_features(opened.shown, opened.names, _name_of(like), like.feature_names)
        builder, encoder = TableBuilder(), opened.make_encoder()
        for block in _inspected(opened, encoder, inspect):
            builder.add(block)
            del block  # so that there is one block in memory, not two
        if builder.rows:
            table = _make(builder, opened, like, encoder.coding())
            if coding is None:
                table = recode_table(table, sort_coding(table.coding))
            emit(
                f"{request.name}: {builder.rows:,} rows, {len(table.feature_names)} features, {len(opened.files)} files"
            )
            return table
    _reject_empty(request, _HEADERS_ONLY.format(request.path), allow_empty=allow_empty)
    return _without_rows(request, opened, like)


def read_blocks(
    channel: Path | Channel,
    *,
    columns: ColumnSpec = LABEL_FIRST,
    content_type: str | None = None,
    like: tuple[str, ...] | None = None,
    coding: Coding | None = None,
    rows: int = ROWS,
    allow_empty: bool = False,
    pipe_timeout: float = PIPE_TIMEOUT,
    inspect: Inspect | None = None,
) -> Iterator[Table]:
    """Read a channel in bounded memory: the same rows in the same order, with the same checks.

    Each table has `rows` rows, the last one fewer. All have the same width; to know it, libsvm files are read twice.
    A pipe cannot be read twice: there a table of libsvm is as wide as the widest row so far, and at least as `like`.
    Texts get codes in order of appearance: each table has the texts of those before, in the same order, and perhaps
    more.

    Args:
        channel: As for `read_table`.
        columns: As for `read_table`.
        content_type: As for `read_table`.
        like: The names of another channel's features, which this one must have.
        coding: The codes of texts.
        rows: The rows of a table.
        allow_empty: Whether a channel without rows (on this host) gives no table instead of an error.
        pipe_timeout: How long to wait for a pipe, in seconds.
        inspect: As for `read_table`.

    Raises:
        DataError: With file, line and cell, and what to do; earlier tables may have been yielded.
    """
    request = make_request(channel, columns, content_type, pipe_timeout, coding)
    if allow_empty and not request.is_pipe and not request.path.exists():
        _reject_empty(request, f"there is no {request.path}", allow_empty=allow_empty)
        return
    count = 0
    with translate_resource_errors(request.name), open_channel(request) as opened:
        if isinstance(opened, str):
            _reject_empty(request, opened, allow_empty=allow_empty)
            return
        if like is not None and opened.names is not None:
            compare_features(opened.shown, opened.names, "the other channel", like)
        width = len(like or ())
        if opened.names is None and not request.is_pipe:
            blocks = opened.read(opened.make_encoder())
            widths = (block.features.width for block in blocks if isinstance(block.features, Sparse))
            width = max(width, max(widths, default=0))
        encoder = opened.make_encoder()
        for builder in rechunk(_inspected(opened, encoder, inspect), rows):
            width = max(width, builder.width)
            count += builder.rows
            yield _make(builder, opened, None, encoder.coding(), width=width)
    if not count:
        _reject_empty(request, _HEADERS_ONLY.format(request.path), allow_empty=allow_empty)
        return
    emit(f"{request.name}: {count:,} rows read in blocks of {rows:,}, {len(opened.files)} files")


def _inspected(opened: OpenChannel, encoder: CategoryEncoder, inspect: Inspect | None) -> Iterator[Block]:
    for block in opened.read(encoder):
        if inspect is not None:
            inspect(block, opened.names)
        yield block
        del block  # so that there is one block in memory, not two


def _make(builder: TableBuilder, opened: OpenChannel, like: Table | None, coding: Coding, *, width: int = 0) -> Table:
    if opened.names is None:
        width = max(width, builder.width, 0 if like is None else len(like.feature_names))
        if not width:
            raise DataError(f"{opened.shown}: no row has a feature", hint="a row is label index:value …")
    names = opened.names or default_names(width)
    return Table(
        builder.take("labels"),
        builder.take_features(len(names)),
        names,
        opened.files,
        builder.take("weights"),
        builder.take("groups"),
        coding,
    )


def _reject_empty(request: ReadRequest, why: str, *, allow_empty: bool) -> None:
    if not allow_empty:
        raise DataError(why, hint="check the S3 prefix or the path that the channel was given")
    emit(f"{request.name}: no rows on this host, continuing without: {why}")


def _without_rows(request: ReadRequest, opened: OpenChannel | None, like: Table | None) -> Table:
    """Return a table without rows, but with columns: other hosts have rows, and all need the same columns."""
    names = (opened and opened.names) or (like and like.feature_names) or ()
    columns = request.columns
    labels = columns.labels if like is None or like.labels.ndim == 1 else like.labels.shape[1]
    is_sparse = like is not None and scipy.sparse.issparse(like.features)
    empty = np.empty((0, len(names)), np.float32)
    return Table(
        np.empty((0, labels) if labels > 1 else 0, np.float32),
        scipy.sparse.csr_matrix(empty) if is_sparse else empty,
        names,
        opened.files if opened else (),
        np.empty(0, np.float32) if columns.weight or (like is not None and like.weights is not None) else None,
        np.empty(0, np.int64) if columns.group or (like is not None and like.groups is not None) else None,
        request.coding or Coding(),
    )


def _name_of(table: Table) -> str:
    """Return the channel of a table for a message."""
    return printable("/".join(table.files[0].parts[-2:])) if table.files else "the other channel"


def log_unread(given: Collection[str], read: Collection[str]) -> None:
    """Log which channels of a job are not read, which are often misspelt.

    Args:
        given: The names of all channels of the job.
        read: The channels that the script reads as rows.
    """
    meant = [name for name in _ROWS if name not in given]
    for name in sorted({*given} - {*read, *_OTHERS}):
        emit(f"the channel {name!r} is not read{did_you_mean(name, meant)}")
