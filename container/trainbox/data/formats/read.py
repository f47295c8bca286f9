"""Read rows of any format, block by block, and parse a request body as the same bytes in a channel are parsed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from trainbox.contract.text import some
from trainbox.data.formats import csv, csv_header, libsvm, parquet, recordio
from trainbox.data.formats.byte_stream import ByteStream, block_bytes, stream_from
from trainbox.data.formats.categories import CategoryEncoder, Coding, RowFormat
from trainbox.data.formats.row_block import Floats, Rows, join_features
from trainbox.data.formats.schema import (
    FEATURES_ONLY,
    ColumnSpec,
    Format,
    RowSchema,
    SourceInfo,
    resolve_schema,
)
from trainbox.data.resource_errors import translate_resource_errors
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
    import scipy.sparse
else:
    pa = lazy_module("pyarrow")
    scipy = lazy_module("scipy")


def inspect(stream: ByteStream, format_: Format, columns: ColumnSpec) -> SourceInfo | None:
    """Inspect the first rows, or the footer, without consuming them; None if there are no rows.

    Raises:
        DataError: They are not of this format, or of rows that cannot be read.
    """
    if format_ == "libsvm":
        return libsvm.inspect(stream)
    if format_ == "recordio-protobuf":
        return recordio.inspect(stream, labelled=columns.labels > 0)
    return parquet.inspect(stream, columns) if format_ == "Parquet" else csv_header.inspect(stream, columns)


def read_rows(stream: ByteStream, source: SourceInfo, encoder: CategoryEncoder, *, size: int) -> Iterator[Rows]:
    """Yield the rows of a stream that has been inspected, block by block.

    Args:
        stream: The bytes.
        source: What `inspect` has found.
        encoder: For the schema and columns of the rows; it encodes texts.
        size: The number of bytes to parse at a time.

    Raises:
        DataError: A row cannot be used; if its place is known, a `RowError`.
        ResourceError: There is not enough memory, or no thread, to read it.
    """
    # Signals belong to the program. Arrow would wait for Ctrl-C in a thread, for each block of CSV anew, and a process
    # that ends soon after has been seen to abort with it (SIGABRT in place of its exit code).
    pa.enable_signal_handlers(False)
    columns = encoder.columns
    labelled = columns.labels > 0
    if source.format == "libsvm":
        return libsvm.read_rows(stream, size=size, labelled=labelled)
    if source.format == "recordio-protobuf":
        return recordio.read_rows(stream, source, size=size, labelled=labelled, bounds=columns.bounds)
    if encoder.schema is None:
        raise TypeError(f"{source.shown}: {source.format} needs a schema")
    form = RowFormat(source, encoder.schema, columns, encoder)
    return parquet.read_rows(stream, form) if source.format == "Parquet" else csv.read_rows(stream, form, size=size)


# ---- request bodies ----


class BodyRows(msgspec.Struct, frozen=True, eq=False):
    """The rows of a request body: n rows, m features."""

    #: (n, m), C-ordered; a csr_matrix for libsvm and sparse recordio, where what is not stored is missing.
    features: "Floats | scipy.sparse.csr_matrix"
    #: The names of the features; None if the body has none.
    names: tuple[str, ...] | None


class BodyReader(msgspec.Struct, frozen=True, eq=False):
    """A request body whose first rows have been inspected."""

    #: The names of the features; None if the body has none.
    names: tuple[str, ...] | None
    #: The number of features; None if only the rows tell (libsvm, and sparse records without a shape).
    width: int | None
    #: The rows, block by block; once.
    blocks: Iterator[Rows]


def open_body(
    stream: ByteStream,
    format_: Format,
    columns: ColumnSpec = FEATURES_ONLY,
    *,
    names: tuple[str, ...] | None = None,
    coding: Coding | None = None,
    size: int | None = None,
    source: SourceInfo | None = None,
) -> BodyReader:
    """Inspect the first rows of a body of any length; its rows are then read in bounded memory.

    Args:
        stream: The bytes, decompressed. Parquet needs all of them in memory: `stream_from(content, shown)`.
        format_: Their format, for example from `read_content_type`.
        columns: What a row of CSV or Parquet has besides features.
        names: The names of the expected features. A body without names must have as many columns; one with names may
            have others, in another order, which are returned as they are.
        coding: The codes of texts, by the position in `names`, or else in the body.
        size: The number of bytes to parse at a time.
        source: What `inspect` has found; None if it was not asked yet, or there are no rows.

    Raises:
        DataError: The first rows cannot be used.
        ValueError: Texts are allowed without their codes.
    """
    if columns.texts and coding is None:
        raise ValueError("texts of a request need the codes of training")
    if source is None:
        with translate_resource_errors(stream.shown):
            source = inspect(stream, format_, columns)
    if source is None:
        return BodyReader(None, 0, iter(()))
    encoder = make_encoder(source, columns, names=names, coding=coding)
    schema = encoder.schema
    found = None if schema is None or source.names is None else schema.feature_names
    width = source.width if schema is None else len(schema.features)
    if found is None and names is not None and width is not None and width != len(names):
        raise DataError(
            f"{source.shown} has {width} features, {len(names)} are expected",
            hint=f"give the features in this order: {some(names)}",
        )
    return BodyReader(found, width, _translated(stream, source, encoder, size or block_bytes()))


def make_encoder(
    source: SourceInfo, columns: ColumnSpec, *, names: tuple[str, ...] | None, coding: Coding | None
) -> CategoryEncoder:
    """Return the encoder of the rows of a body, as for `open_body`.

    Raises:
        DataError: No column is left to be a feature, or a name holds a NUL.
    """
    schema = _schema_of(source, columns, names) if source.format in {"CSV", "Parquet"} else None
    found = None if schema is None or source.names is None else schema.feature_names
    return CategoryEncoder(schema, columns, source.shown, coding=_reorder_coding(coding, names, found))


def _schema_of(source: SourceInfo, columns: ColumnSpec, names: tuple[str, ...] | None) -> RowSchema:
    """Return the schema of a body; one without names has the expected ones, for messages."""
    fits = source.names is None and names is not None and len(names) == source.width
    return resolve_schema(columns, source.width or 0, names if fits else source.names, source.shown)


def _reorder_coding(
    coding: Coding | None, names: tuple[str, ...] | None, found: tuple[str, ...] | None
) -> Coding | None:
    """Return a coding by the positions that its features have in the body."""
    if coding is None or names is None or found is None:
        return coding
    places = {name: place for place, name in enumerate(found)}
    return Coding({places[names[place]]: texts for place, texts in coding.features.items() if names[place] in places})


def _translated(stream: ByteStream, source: SourceInfo, encoder: CategoryEncoder, size: int) -> Iterator[Rows]:
    with translate_resource_errors(stream.shown):
        yield from read_rows(stream, source, encoder, size=size)


def parse_body(
    content: bytes,
    format_: Format,
    columns: ColumnSpec = FEATURES_ONLY,
    *,
    names: tuple[str, ...] | None = None,
    coding: Coding | None = None,
    shown: str = "body",
) -> BodyRows:
    """Parse a request body; one without rows gives no rows.

    Args:
        content: The bytes, decompressed.
        format_: As for `open_body`.
        columns: As for `open_body`.
        names: As for `open_body`.
        coding: As for `open_body`.
        shown: The name of the body in messages.

    Raises:
        RowError: With row, column, name and value of the first cell that cannot be used, as far as the format has them.
        DataError: The body cannot be used as a whole.
    """
    reader = open_body(stream_from(content, shown), format_, columns, names=names, coding=coding)
    blocks = list(reader.blocks)
    if not blocks:
        return BodyRows(np.empty((0, reader.width or 0), np.float32), reader.names)
    return BodyRows(join_features(blocks), reader.names)
