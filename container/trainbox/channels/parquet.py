"""Parquet: numbers and booleans, decoded a few thousand rows at a time whatever the size of the row groups."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainbox.channels.blocks import Block, check
from trainbox.channels.delimited import take_columns
from trainbox.channels.layout import Layout
from trainbox.channels.shortage import naming_shortage, prove_threads
from trainbox.channels.sources import Source
from trainbox.errors import DataError

#: Decoded at a time.
ROWS = 32_768
#: Read at a time, of one column.
BUFFER_BYTES = 128 * 1024


def look(path: Path, shown: str) -> Source | None:
    """What the footer says; None for a file without rows.

    Raises:
        DataError: It is no Parquet, or a column is no number.
    """
    with _opened(path, shown) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    for field in schema:
        if not _is_numeric(field.type):
            raise DataError(f"{shown}: column {field.name!r} is of type {field.type}", hint=_what_to_do(field.type))
    return Source(path, shown, "Parquet", len(schema.names), tuple(schema.names)) if rows else None


def read(source: Source, layout: Layout, *, rows: int = ROWS) -> Iterator[Block]:
    """The rows, block by block.

    Raises:
        DataError: With file, row and column.
    """
    start = 0
    with _opened(source.path, source.shown) as file:
        prove_threads()
        for batch in file.iter_batches(batch_size=rows):
            block = _decode(pa.Table.from_batches([batch]), start, source, layout)
            check(block)
            start += len(block.labels)
            yield block


def count_rows(path: Path, shown: str) -> int:
    """How many rows a file has, from its footer."""
    with _opened(path, shown) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - most jobs read none, and it loads Arrow's file systems

    # Of each column a piece at a time: a row group may be the whole file. Checksums count where there are some.
    options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "page_checksum_verification": True}
    try:
        with naming_shortage(shown), ParquetFile(path, **options) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown} cannot be read as Parquet: {error}", hint="is the file whole, and is it Parquet?"
        ) from error


def _is_numeric(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    return any(test(kind) for test in tests)


def _what_to_do(kind: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    if pa.types.is_temporal(kind):
        return "every column must be a number; write times as seconds, or as parts such as the hour"
    if pa.types.is_nested(kind):
        return "every column must be a number; give each element a column of its own"
    return "every column must be a number; encode text as numbers"


def _decode(table: Any, start: int, source: Source, layout: Layout) -> Block:  # noqa: ANN401 - pyarrow has no types
    def where(row: int) -> str:
        return f"{source.shown}, row {start + row + 1}"

    columns = [
        _groups(column, layout, where) if index == layout.group else column.cast(pa.float32(), safe=False)
        for index, column in enumerate(table.columns)
    ]
    floats = pa.Table.from_arrays(columns, names=[str(index) for index in range(len(columns))])
    return take_columns(floats, layout, where)


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
