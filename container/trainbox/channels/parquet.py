"""Parquet: numbers, booleans and texts, decoded a few thousand rows at a time whatever the size of the row groups."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainbox.channels.blocks import Block, check
from trainbox.channels.cells import Form
from trainbox.channels.delimited import take_columns
from trainbox.channels.layout import Layout
from trainbox.channels.shortage import naming_shortage, prove_threads
from trainbox.channels.sources import Source
from trainbox.channels.table import Columns
from trainbox.errors import DataError

#: Decoded at a time.
ROWS = 32_768
#: Read at a time, of one column.
BUFFER_BYTES = 128 * 1024


def look(path: Path, shown: str, columns: Columns) -> Source | None:
    """What the footer says; None for a file without rows.

    Raises:
        DataError: It is no Parquet, or a column is no number, nor a text where there may be texts.
    """
    with _opened(path, shown) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    for field in schema:
        if not _is_numeric(field.type) and not (columns.texts and _is_text(field.type)):
            raise DataError(f"{shown}: column {field.name!r} is of type {field.type}", hint=_what_to_do(field.type))
    texts = tuple(field.name for field in schema if _is_text(field.type))
    return Source(path, shown, "Parquet", len(schema.names), tuple(schema.names), texts=texts) if rows else None


def read(form: Form, *, rows: int = ROWS) -> Iterator[Block]:
    """The rows, block by block; the words of the form hear of the texts in them.

    Raises:
        DataError: With file, row and column.
    """
    start, source = 0, form.source
    with _opened(source.path, source.shown, texts=source.texts) as file:
        prove_threads()
        for batch in file.iter_batches(batch_size=rows):
            block = _decode(pa.Table.from_batches([batch]), start, form)
            check(block, bounds=form.columns.bounds)
            form.words.close(block.features, block.labels)
            start += len(block.labels)
            yield block


def count_rows(path: Path, shown: str) -> int:
    """How many rows a file has, from its footer."""
    with _opened(path, shown) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(path: Path, shown: str, *, texts: Sequence[str] = ()) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - most jobs read none, and it loads Arrow's file systems

    # Of each column a piece at a time: a row group may be the whole file. Checksums count where there are some.
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "page_checksum_verification": True}
    options["read_dictionary"] = list(texts)  # a text that comes often is decoded once
    try:
        with naming_shortage(shown), ParquetFile(path, **options) as file:
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


def _decode(table: Any, start: int, form: Form) -> Block:  # noqa: ANN401 - pyarrow has no types
    layout = form.layout

    def where(row: int) -> str:
        return f"{form.source.shown}, row {start + row + 1}"

    decoded = [
        _groups(column, layout, where) if index == layout.group else _numbers(column, index, form, where)
        for index, column in enumerate(table.columns)
    ]
    floats = pa.Table.from_arrays(decoded, names=[str(index) for index in range(len(decoded))])
    return take_columns(floats, layout, where, bounds=form.columns.bounds)


def _numbers(column: Any, index: int, form: Form, where: Callable[[int], str]) -> Any:  # noqa: ANN401 - no types
    """A column as 32-bit floats, a text as its code."""
    layout, words = form.layout, form.words
    if not _is_text(column.type) and not words.is_text(index):
        return _plain(column).cast(pa.float32(), safe=False)
    there = column.drop_null()
    if not len(there):
        return pa.nulls(len(column), pa.float32())
    if not words.is_text(index):
        if not words.is_open(index):
            kind = f"{layout.describe(index)} is of type {_plain(column).type}"
            raise DataError(f"{where(0)}: {kind}, where numbers are expected", hint=_what_to_do(column.type))
        words.begin_text(index, str(there[0]))
    texts = _as_text(_plain(column)).dictionary_encode()
    found = words.number_column(index, texts)
    if found is None:
        rows = enumerate(texts.to_pylist())
        row, fault = next((row, fault) for row, text in rows if text and (fault := words.fault(index, text)))
        raise DataError(f"{where(row)}: {layout.describe(index)}: {fault[0]}", hint=fault[1])
    return found


def _as_text(column: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The same values as CSV has them."""
    if not pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    words = pa.array(["False", "True"])
    return pa.chunked_array([words.take(chunk.cast(pa.int8())) for chunk in column.chunks], pa.string())


def _plain(column: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
    """The same values, each where it belongs instead of in a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _groups(column: Any, layout: Layout, where: Callable[[int], str]) -> Any:  # noqa: ANN401 - no types
    describe = layout.describe(layout.group or 0)
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{where(0)}: {describe} has the groups of rows and is of type {column.type}", hint="store it as an integer"
        )
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{where(row)}: {describe}: the group is missing", hint="give each row a group")
    return column.cast(pa.int64())
