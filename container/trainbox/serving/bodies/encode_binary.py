"""Write predictions as NumPy arrays, recordio-protobuf, Parquet and Arrow."""

import io
import struct
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from trainbox.data.formats.format_detection import RECORDIO_MAGIC
from trainbox.data.formats.recordio_wire import record_class
from trainbox.lazy_names import lazy_module
from trainbox.serving.bodies.outputs import Column, Numbers
from trainbox.serving.bodies.request_errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_LENGTH = struct.Struct("<I")


def encode_npy(columns: Sequence[Column]) -> bytes:
    """Return an array: (n,) for one number a row, (n, c) for several; outputs are side by side.

    Raises:
        RequestError: 406: an output is a text.
    """
    parts = [_numbers_of(column) for column in columns]
    array = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _numbers_of(column: Column) -> Numbers:
    if isinstance(column.values, np.ndarray):
        return column.values
    array = np.array(column.values)
    if array.dtype.kind not in "iuf" and array.size:
        raise RequestError(
            f"an array of NumPy has no texts, and {column.name} is one",
            status=HTTPStatus.NOT_ACCEPTABLE,
            hint='accept application/json, or choose outputs: application/x-npy; output="probabilities"',
        )
    return array


def encode_recordio(columns: Sequence[Column]) -> bytes:
    """Return a record for each row, with its outputs as labels: numbers are 32-bit floats, texts are bytes.

    What has two dimensions in a row is flat and has its shape.
    """
    make = record_class()
    rows = len(columns[0].values) if columns else 0
    values = [_flat(column) for column in columns]
    return b"".join(_frame(_record(make(), values, row)) for row in range(rows))


def _flat(column: Column) -> tuple[str, list[Any], tuple[int, ...]]:
    """Return the name of a column, what each row has of it, and the shape of that where it has several dimensions."""
    values = column.values
    if isinstance(values, list):
        return column.name, values, ()
    shape = values.shape[1:] if values.ndim > 2 else ()  # noqa: PLR2004 - rows, and numbers of each
    return column.name, (values.reshape(len(values), -1) if shape else values).tolist(), shape


def _record(
    record: Any,  # noqa: ANN401 - made at run time
    columns: Sequence[tuple[str, list[Any], tuple[int, ...]]],
    row: int,
) -> bytes:
    for name, values, shape in columns:
        value = values[row] if isinstance(values[row], list) else [values[row]]
        if any(isinstance(each, str) for each in value):
            record.label[name].bytes.value.extend(str(each).encode() for each in value)
        else:
            record.label[name].float32_tensor.values.extend(value)
            record.label[name].float32_tensor.shape.extend(shape)
    content: bytes = record.SerializeToString(deterministic=True)
    return content


def _frame(content: bytes) -> bytes:
    return RECORDIO_MAGIC + _LENGTH.pack(len(content)) + content + b"\0" * (-len(content) % 4)


def encode_parquet(columns: Sequence[Column]) -> bytes:
    """Return a file with a column for each output."""
    from pyarrow.parquet import write_table  # noqa: PLC0415 - most answers are no Parquet

    sink = pa.BufferOutputStream()
    write_table(_table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def encode_arrow(columns: Sequence[Column]) -> bytes:
    """Return a stream with a column for each output."""
    table = _table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _table(columns: Sequence[Column]) -> Any:  # noqa: ANN401 - pyarrow has no types
    return pa.table({column.name: _array(column.values) for column in columns})


def _array(values: Numbers | list[Any]) -> Any:  # noqa: ANN401 - pyarrow has no types
    if isinstance(values, list) or values.ndim == 1:
        return pa.array(values)
    found = pa.array(np.ascontiguousarray(values).ravel())
    for width in reversed(values.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, width)
    return found
