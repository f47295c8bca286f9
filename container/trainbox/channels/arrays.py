"""Arrow's columns as NumPy's arrays, without `to_numpy`: that imports pandas, where it is installed, for nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: Rows that are transposed at a time, so that the scattered writes of one column stay in the processor's cache.
_TRANSPOSED = 4096

_TYPES = {pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}


def values_of(array: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - pyarrow has no types
    """An array of numbers, not copied where nothing is missing in it; a missing one is NaN."""
    bits, content = array.buffers()
    span = slice(array.offset, array.offset + len(array))
    values: npt.NDArray[Any] = np.frombuffer(content, _TYPES[array.type])[span]
    if array.null_count:
        values = values.copy()
        values[np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[span] == 0] = np.nan
    return values


def column_of(column: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - pyarrow has no types
    """A column of a table, in one piece."""
    pieces = [values_of(chunk) for chunk in column.chunks if len(chunk)]
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, _TYPES[column.type])


def fill(table: Any, columns: tuple[int, ...]) -> npt.NDArray[np.float32]:  # noqa: ANN401 - pyarrow has no types
    """Columns of 32-bit floats, row by row as a matrix has them."""
    matrix = np.empty((table.num_rows, len(columns)), np.float32)
    at = 0
    for batch in table.to_batches(max_chunksize=_TRANSPOSED):
        end = at + batch.num_rows
        for place, column in enumerate(columns):
            matrix[at:end, place] = values_of(batch.column(column))
        at = end
    return matrix
