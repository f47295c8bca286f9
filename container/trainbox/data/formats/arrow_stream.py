"""Arrow's streaming format in a request body: the columns of Parquet, without its compression.

The bytes come from outside: what they say of their own size is not believed. A compressed buffer says how large it
becomes, and is refused; offsets are checked before they are followed.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainbox.data.formats.categories import CategoryEncoder, Coding, RowFormat
from trainbox.data.formats.parquet import decode_table, describe_columns
from trainbox.data.formats.read import BodyReader, make_encoder
from trainbox.data.formats.row_block import Rows
from trainbox.data.formats.schema import ColumnSpec, RowSchema, SourceInfo
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_HINT = "write it with pyarrow.ipc.new_stream"
#: Of the flatbuffers of a message (Arrow's Message.fbs): the kind of header, the header; in a batch of a dictionary the
#: batch; in a batch the compression.
_KIND, _HEADER, _DATA, _COMPRESSION = 1, 2, 1, 3
_DICTIONARY, _BATCH = 2, 3


def open_arrow(
    content: bytes, shown: str, columns: ColumnSpec, *, names: tuple[str, ...] | None, coding: Coding | None
) -> BodyReader:
    """Read the schema of a stream; its rows are then read batch by batch.

    Args:
        content: The bytes of the stream.
        shown: Its name in messages.
        columns: What a row has besides features.
        names: As for `open_body`.
        coding: As for `open_body`.

    Raises:
        DataError: It is not a stream of Arrow, or a column cannot be used.
    """
    try:
        reject_compression(content, shown)
        reader = pa.ipc.open_stream(pa.BufferReader(content))
        source = describe_columns(reader.schema, columns, shown)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shown, error) from error
    encoder = make_encoder(source, columns, names=names, coding=coding)
    return BodyReader(source.names, source.width, _read(reader, source, columns, encoder))


def _read(reader: Any, source: SourceInfo, columns: ColumnSpec, encoder: CategoryEncoder) -> Iterator[Rows]:  # noqa: ANN401
    schema = encoder.schema
    if not isinstance(schema, RowSchema):
        raise TypeError(f"{source.shown}: Arrow needs a schema")
    form, start = RowFormat(source, schema, columns, encoder), 0
    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(source.shown, error) from error
        yield decode_table(pa.Table.from_batches([batch]), start, form)
        start += batch.num_rows


def _unreadable(shown: str, error: BaseException) -> DataError:
    return DataError(f"{shown} cannot be read as a stream of Arrow: {error}", hint=_HINT)


def reject_compression(content: bytes, shown: str) -> None:
    """Reject a stream with compressed buffers.

    Raises:
        DataError: It has some.
        pyarrow.ArrowException: It is malformed.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(content))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if _is_compressed(message.metadata.to_pybytes()):
            raise DataError(f"{shown} is compressed Arrow", hint="write it without compression")


def _is_compressed(message: bytes) -> bool:
    root = int.from_bytes(message[:4], "little")
    kind = _field(message, root, _KIND)
    header = _follow(message, _field(message, root, _HEADER))
    if kind is None or header is None:
        return False
    if message[kind] == _DICTIONARY:
        header = _follow(message, _field(message, header, _DATA))
    elif message[kind] != _BATCH:
        return False
    return header is not None and _field(message, header, _COMPRESSION) is not None


def _field(message: bytes, table: int, number: int) -> int | None:
    """Return where a field of a table of flatbuffers is; None if it is not there."""
    fields = table - int.from_bytes(message[table : table + 4], "little", signed=True)
    size = int.from_bytes(message[fields : fields + 2], "little")
    at = 4 + 2 * number
    offset = int.from_bytes(message[fields + at : fields + at + 2], "little") if at < size else 0
    return table + offset if offset else None


def _follow(message: bytes, at: int | None) -> int | None:
    return None if at is None else at + int.from_bytes(message[at : at + 4], "little")
