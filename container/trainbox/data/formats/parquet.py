"""Parquet: numbers, booleans and texts, decoded a few thousand rows at a time for any size of row groups."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainbox.data.formats.byte_stream import ByteStream
from trainbox.data.formats.categories import RowFormat
from trainbox.data.formats.row_block import Location, RowError, Rows, make_rows, validate
from trainbox.data.formats.schema import ColumnSpec, RowSchema, SourceInfo
from trainbox.data.resource_errors import check_threads, translate_resource_errors
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

#: Rows decoded at a time.
ROWS = 32_768
#: Bytes of a column read at a time.
BUFFER_BYTES = 128 * 1024


def inspect(stream: ByteStream, columns: ColumnSpec) -> SourceInfo | None:
    """Inspect the footer; None if there are no rows.

    Raises:
        DataError: It is not Parquet, or a column holds neither numbers nor, if these are allowed, texts.
    """
    shown = stream.shown
    with _opened(stream) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    return describe_columns(schema, columns, shown) if rows else None


def describe_columns(schema: Any, columns: ColumnSpec, shown: str) -> SourceInfo:  # noqa: ANN401 - pyarrow has no types
    """Return what the schema of Parquet or Arrow says of its rows.

    Raises:
        DataError: A column holds neither numbers nor, if these are allowed, texts.
    """
    for field in schema:
        if not _is_numeric(field.type) and not (columns.texts and _is_text(field.type)):
            raise DataError(f"{shown}: column {field.name!r} is of type {field.type}", hint=_what_to_do(field.type))
    texts = tuple(field.name for field in schema if _is_text(field.type))
    return SourceInfo(shown, "Parquet", len(schema.names), tuple(schema.names), texts=texts)


def read_rows(stream: ByteStream, form: RowFormat, *, rows: int = ROWS) -> Iterator[Rows]:
    """Yield the rows, block by block; texts are encoded by the encoder of `form`.

    Raises:
        DataError: With file, row and column.
    """
    start, source = 0, form.source
    with _opened(stream, texts=source.texts) as file:
        check_threads()
        for batch in file.iter_batches(batch_size=rows):
            block = decode_table(pa.Table.from_batches([batch]), start, form)
            form.encoder.observe_numbers(block.features, block.labels)
            start += len(block)
            yield block


def count_rows(stream: ByteStream) -> int:
    """Return the number of rows, from the footer."""
    with _opened(stream) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(stream: ByteStream, *, texts: Sequence[str] = ()) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - loads Arrow's file systems, and most jobs read none

    shown, origin = stream.shown, stream.origin
    if origin is None:
        raise TypeError(f"{shown}: Parquet needs random access")
    # Each column is read piece by piece: a row group may be the whole file. Checksums are verified if there are any.
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "page_checksum_verification": True}
    options["read_dictionary"] = list(texts)  # a repeated text is decoded once
    try:
        source = pa.BufferReader(origin) if isinstance(origin, bytes) else origin
        with translate_resource_errors(shown), ParquetFile(source, **options) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown} cannot be read as Parquet: {error}", hint="is the file whole, and is it Parquet?"
        ) from error


def _is_text(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view))


def _is_numeric(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    return any(test(kind) for test in tests)


def _what_to_do(kind: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    if pa.types.is_temporal(kind):
        return "every column must be a number; write times as seconds, or as parts such as the hour"
    if pa.types.is_nested(kind):
        return "every column must be a number; give each element a column of its own"
    return "every column must be a number; encode text as numbers"


def decode_table(table: Any, start: int, form: RowFormat) -> Rows:  # noqa: ANN401 - pyarrow has no types
    """Return the rows of an Arrow table; texts are encoded by the encoder of `form`.

    Args:
        table: The columns of `form`.
        start: The number of rows before it.
        form: How they are encoded.

    Raises:
        DataError: With file, row and column.
    """
    schema = form.schema

    def where(row: int) -> Location:
        number = start + row + 1
        return Location(number, f"{form.source.shown}, row {number}")

    decoded = [
        _groups(column, schema, where) if index == schema.group else _numbers(column, index, form, where)
        for index, column in enumerate(table.columns)
    ]
    floats = pa.Table.from_arrays(decoded, names=[str(index) for index in range(len(decoded))])
    block = make_rows(floats, schema, where, bounds=form.columns.bounds)
    validate(block, bounds=form.columns.bounds, schema=schema)
    return block


def _numbers(column: Any, index: int, form: RowFormat, where: Callable[[int], Location]) -> Any:  # noqa: ANN401 - no types
    """Convert a column to 32-bit floats, a text to its code."""
    schema, encoder = form.schema, form.encoder
    if not _is_text(column.type) and not encoder.is_text(index):
        return _plain(column).cast(pa.float32(), safe=False)
    there = column.drop_null()
    if not len(there):
        return pa.nulls(len(column), pa.float32())
    if not encoder.is_text(index):
        if not encoder.is_undecided(index):
            kind = f"{schema.describe(index)} is of type {_plain(column).type}"
            raise DataError(f"{where(0)}: {kind}, where numbers are expected", hint=_what_to_do(column.type))
        encoder.mark_as_text(index, str(there[0]))
    texts = _as_text(_plain(column)).dictionary_encode()
    found = encoder.encode_column(index, texts)
    if found is None:
        row, text, fault = next(
            (row, text, fault)
            for row, text in enumerate(texts.to_pylist())
            if text and (fault := encoder.find_fault(index, text))
        )
        place = where(row)
        raise RowError(
            f"{place}: {schema.describe(index)}: {fault[0]}",
            hint=fault[1],
            row=place.number,
            column=index + 1,
            name=schema.name(index),
            value=text,
        )
    return found


def _as_text(column: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Convert to the texts that CSV would have."""
    if not pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    words = pa.array(["False", "True"])
    return pa.chunked_array([words.take(chunk.cast(pa.int8())) for chunk in column.chunks], pa.string())


def _plain(column: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Decode a dictionary column."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _groups(column: Any, schema: RowSchema, where: Callable[[int], Location]) -> Any:  # noqa: ANN401 - no types
    describe = schema.describe(schema.group or 0)
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{where(0)}: {describe} has the groups of rows and is of type {column.type}", hint="store it as an integer"
        )
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{where(row)}: {describe}: the group is missing", hint="give each row a group")
    return column.cast(pa.int64())
