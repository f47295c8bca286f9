"""Parquet, Arrow and NumPy arrays of a request: what they say of their size is checked before memory is made for it."""

import io
import math
from collections.abc import Iterable
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainbox.data.formats import BodyReader, Rows, open_body, stream_from
from trainbox.data.formats.arrow_stream import open_arrow
from trainbox.data.formats.row_block import join_features
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module
from trainbox.serving.bodies.features import (
    FeaturePlan,
    Floats,
    check_cells,
    check_codes,
    check_count,
    check_size,
    order_of,
    translate,
)
from trainbox.serving.bodies.request_errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy_module("pyarrow")

_NPY_MAGIC = b"\x93NUMPY"
_NUMBERS = "biuf"
_LONGEST_HEADER = 10_000
_ROWS, _ONE_ROW = 2, 1


def decode_parquet(body: bytes, plan: FeaturePlan) -> Floats:
    """Return the rows of a body of Parquet; columns are matched by name.

    Raises:
        RequestError: With row, column, name and value of the first cell that cannot be used.
    """
    try:
        _check_footer(body, plan)
        reader = open_body(
            stream_from(body, "body"), "Parquet", plan.columns, names=plan.names or None, coding=plan.coding
        )
        return _join(reader, plan)
    except DataError as error:
        raise translate(plan, error) from error


def decode_arrow(body: bytes, plan: FeaturePlan) -> Floats:
    """Return the rows of a stream of Arrow; columns are matched by name.

    Raises:
        RequestError: As `decode_parquet`.
    """
    try:
        return _join(open_arrow(body, "body", plan.columns, names=plan.names or None, coding=plan.coding), plan)
    except DataError as error:
        raise translate(plan, error) from error


def _check_footer(body: bytes, plan: FeaturePlan) -> None:
    from pyarrow.parquet import read_metadata  # noqa: PLC0415 - most requests are no Parquet

    try:
        found = read_metadata(pa.BufferReader(body))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"body cannot be read as Parquet: {error}", hint="is it whole, and is it Parquet?") from error
    # No more is asked: where Arrow's C++ finds a `row_group` malformed, its exception ends the process.
    check_size(plan, found.num_rows, found.num_columns)


def _join(reader: BodyReader, plan: FeaturePlan) -> Floats:
    order = order_of(plan, reader.names) if reader.names is not None else None
    blocks = list(_bounded(reader.blocks, plan, reader.width or 0))
    if not blocks:
        return np.empty((0, plan.count), np.float32)
    rows: Any = join_features(blocks)
    rows = rows if order is None else np.ascontiguousarray(rows[:, order])
    check_codes(plan, rows)
    found: Floats = rows
    return found


def _bounded(blocks: Iterable[Rows], plan: FeaturePlan, width: int) -> Iterable[Rows]:
    count = 0
    for block in blocks:
        count += len(block)
        check_size(plan, count, width)
        yield block


# ---- NumPy ----


def decode_npy(body: bytes, plan: FeaturePlan) -> Floats:
    """Return the rows, or the row, of an array of numbers that `numpy.save` wrote.

    Raises:
        RequestError: It is no such array, or a value cannot be used.
    """
    array = read_npy(body)
    if plan.is_open and array.ndim:
        rows = as_floats(array if array.ndim > 1 else array[None])
        check_cells(plan, rows.reshape(len(rows), -1))
        return rows
    if array.ndim not in {_ROWS, _ONE_ROW}:
        raise RequestError(f"the array has the shape {array.shape}", hint="send rows: an array of two dimensions")
    rows = array[None] if array.ndim == _ONE_ROW else array
    check_count(plan, rows.shape[1], "the array")
    check_size(plan, *rows.shape)
    found = as_floats(rows)
    check_cells(plan, found)
    return found


def as_floats(array: npt.NDArray[Any]) -> Floats:
    """Return numbers as 32-bit floats; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def read_npy(body: bytes) -> npt.NDArray[Any]:
    """Return an array of numbers; nothing is unpickled.

    Raises:
        RequestError: It is not one, or its header does not fit its size.
    """
    file = io.BytesIO(body)
    formats = np.lib.format
    try:
        version = formats.read_magic(file)
        read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, is_fortran, dtype = read(file, max_header_size=_LONGEST_HEADER)
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError, TokenError) as error:
        raise _no_array(str(error)) from error
    if dtype.kind not in _NUMBERS or dtype.itemsize > 8:  # noqa: PLR2004 - 64 bits
        raise _no_array(f"it holds {dtype}, not numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(body) - file.tell():
        raise _no_array(f"{len(body) - file.tell():,} bytes follow a header of the shape {shape} of {dtype}")
    flat = np.frombuffer(body, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _no_array(why: str) -> RequestError:
    return RequestError(
        f"the body is not an array of numbers: {why}",
        hint="send what numpy.save(file, rows.astype('float32'), allow_pickle=False) writes",
        redacted="the body is not an array of numbers",
    )
