"""Rows in memory: dense or sparse features, with labels, weights and groups where they were asked for.

Arrow's columns become NumPy arrays without `to_numpy`, which imports pandas if it is installed. Two labels may be the
bounds of one number, as in survival analysis with censored rows: a right-censored row has no upper bound, a
left-censored one no lower bound; such a bound is written as an infinite number or as a missing one.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.data.formats.schema import RowSchema
from trainbox.errors import DataError
from trainbox.lazy_names import lazy_module

if TYPE_CHECKING:
    import pyarrow as pa
    import scipy.sparse
else:
    pa = lazy_module("pyarrow")
    scipy = lazy_module("scipy")

Floats = npt.NDArray[np.float32]
Groups = npt.NDArray[np.int64]
#: Each column has a name and a histogram: a larger index is a mistake, or its columns must be hashed into fewer.
MOST_COLUMNS = 2**24
Positions = npt.NDArray[np.int64]
BOUNDS_HINT = (
    "a row is lower,upper,…: both alike where the time is known, no upper one where the event has not come yet"
)
#: Rows transposed at a time, so that the scattered writes of one column stay in the processor's cache.
_TRANSPOSED = 4096
#: The fault that has a column.
_INFINITE = "a value is infinite as a 32-bit float"


class RowError(DataError):
    """A row that cannot be used, with the place of the fault as far as it is known.

    Args:
        message: What happened, with the place in words.
        hint: What to do about it.
        row: The number of the line, row or record, from 1.
        column: The number of the column, from 1.
        name: The name of the column.
        value: The text of the cell.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        row: int | None = None,
        column: int | None = None,
        name: str = "",
        value: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.row = row
        self.column = column
        self.name = name
        self.value = value


class Location(msgspec.Struct, frozen=True):
    """Where a row is written."""

    #: Of the line, row or record, from 1.
    number: int
    #: For messages: `train/a.csv:12`.
    text: str

    def __str__(self) -> str:
        return self.text


class Sparse(msgspec.Struct, frozen=True, eq=False):
    """Sparse features, as in a csr_matrix; columns ascend within a row."""

    values: Floats
    columns: Any  # int32
    #: The number of values of each row, int64.
    counts: Any
    #: One more than the last column that any row has.
    width: int


class Rows(msgspec.Struct, frozen=True, eq=False):
    """Some rows of one file or request; nothing in them but a bound is infinite, and a missing value is NaN."""

    #: (n, m), C-ordered; of sparse formats what is not stored is missing.
    features: Floats | Sparse
    #: Locates a row, counted from 0, for a message.
    where: Callable[[int], Location]
    #: (n,), or (n, k) for k > 1 labels; None if labels were not asked for.
    labels: Floats | None = None
    #: (n,)
    weights: Floats | None = None
    #: (n,)
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.features.counts if isinstance(self.features, Sparse) else self.features)


def join_features(blocks: Sequence[Rows]) -> "Floats | scipy.sparse.csr_matrix":
    """Join the features of at least one block of rows of one source."""
    features = [rows.features for rows in blocks]
    sparse = [each for each in features if isinstance(each, Sparse)]
    if not sparse:
        dense: list[Any] = [each for each in features if not isinstance(each, Sparse)]
        return dense[0] if len(dense) == 1 else np.concatenate(dense)
    counts = np.concatenate([each.counts for each in sparse])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    values, columns = (
        np.concatenate([each.values for each in sparse]),
        np.concatenate([each.columns for each in sparse]),
    )
    return make_csr(values, columns, starts, max(each.width for each in sparse))


def make_csr(values: Floats, columns: Any, starts: Any, width: int) -> "scipy.sparse.csr_matrix":  # noqa: ANN401
    """Return a csr_matrix of these arrays without copying; columns ascend within a row."""
    matrix = scipy.sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, width), copy=False)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def is_sorted(columns: npt.NDArray[Any], starts: Positions) -> bool:
    """Return whether the columns of each row ascend strictly.

    Args:
        columns: The columns of all rows, one row after the other.
        starts: Where each row begins, and where the last one ends.
    """
    return first_unsorted_row(columns, starts) is None


def first_unsorted_row(columns: npt.NDArray[Any], starts: Positions) -> int | None:
    """Return the first row whose columns do not ascend strictly."""
    stays = columns[1:] <= columns[:-1]
    borders = starts[1:-1]
    stays[borders[(borders > 0) & (borders < len(columns))] - 1] = False
    if not stays.any():
        return None
    return int(np.searchsorted(starts, 1 + np.argmax(stays), side="right")) - 1


def sort_columns(values: Floats, columns: npt.NDArray[Any], starts: Positions, width: int) -> tuple[Floats, Any]:
    """Sort the columns of each row; returns the values and columns."""
    rows = scipy.sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, width), copy=True)
    rows.sort_indices()
    return rows.data, rows.indices


def fill_bounds(labels: Floats) -> Floats:
    """Replace a missing lower bound by 0 and a missing upper bound by infinity; a row without both stays.

    Args:
        labels: (n, 2): the lower and the upper bound of each row.
    """
    filled = labels.copy()
    lower, upper = filled.T
    known = ~(np.isnan(lower) & np.isnan(upper))
    lower[known & (np.isnan(lower) | np.isneginf(lower))] = 0
    upper[known & np.isnan(upper)] = np.inf
    return filled


def find_bound_faults(labels: Floats) -> dict[str, npt.NDArray[np.bool_]]:
    """Find the rows with invalid bounds, by what is wrong with them.

    Args:
        labels: (n, 2), filled.
    """
    lower, upper = labels.T
    return {
        "both bounds of the label are missing": np.isnan(lower) | np.isnan(upper),
        "the lower bound of the label is infinite": np.isposinf(lower),
        "the lower bound of the label is negative": lower < 0,
        "the upper bound of the label is not above 0": upper <= 0,
        "the upper bound of the label is below the lower one": upper < lower,
    }


def are_valid_bounds(labels: Floats) -> bool:
    """Return whether `find_bound_faults` would find none; fast."""
    lower, upper = labels.T
    return bool(((lower >= 0) & (lower <= upper) & (upper > 0) & np.isfinite(lower)).all())


def _dtype(kind: Any) -> npt.DTypeLike:  # noqa: ANN401 - pyarrow has no types
    """Return NumPy's name of one of Arrow's types of numbers."""
    return {pa.float32(): np.float32, pa.int64(): np.int64, pa.int32(): np.int32}[kind]


def to_numpy(array: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - pyarrow has no types
    """Convert an Arrow array of numbers, without copying unless values are missing; these are NaN."""
    bits, content = array.buffers()
    span = slice(array.offset, array.offset + len(array))
    values: npt.NDArray[Any] = np.frombuffer(content, _dtype(array.type))[span]
    if array.null_count:
        values = values.copy()
        values[np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[span] == 0] = np.nan
    return values


def column_to_numpy(column: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - pyarrow has no types
    """Convert a column of an Arrow table."""
    pieces = [to_numpy(chunk) for chunk in column.chunks if len(chunk)]
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, _dtype(column.type))


def to_matrix(table: Any, columns: tuple[int, ...]) -> npt.NDArray[np.float32]:  # noqa: ANN401 - pyarrow has no types
    """Convert columns of 32-bit floats to a C-ordered matrix."""
    matrix = np.empty((table.num_rows, len(columns)), np.float32)
    at = 0
    for batch in table.to_batches(max_chunksize=_TRANSPOSED):
        end = at + batch.num_rows
        for place, column in enumerate(columns):
            matrix[at:end, place] = to_numpy(batch.column(column))
        at = end
    return matrix


def make_rows(
    table: Any,  # noqa: ANN401 - pyarrow has no types
    schema: RowSchema,
    where: Callable[[int], Location],
    *,
    bounds: bool = False,
) -> Rows:
    """Make rows of an Arrow table of 32-bit floats, whose groups, if any, are 64-bit integers; fill in the bounds."""
    labels = to_matrix(table, schema.labels) if schema.labels else None
    if labels is not None and bounds:
        labels = fill_bounds(labels)
    return Rows(
        to_matrix(table, schema.features),
        where,
        labels[:, 0] if labels is not None and len(schema.labels) == 1 else labels,
        None if schema.weight is None else to_matrix(table, (schema.weight,))[:, 0],
        None if schema.group is None else column_to_numpy(table.column(schema.group)),
    )


def validate(rows: Rows, *, bounds: bool = False, schema: RowSchema | None = None) -> None:
    """Reject values that are infinite, and labels and weights that nothing can be trained with.

    Args:
        rows: The rows; labels and weights are checked if they have some.
        bounds: Whether the two labels are bounds, which may be infinite.
        schema: The columns of the rows, if the format has columns.

    Raises:
        RowError: A label is missing or infinite, a value infinite, or a weight missing, infinite or negative.
    """
    if is_valid(rows, bounds=bounds):
        return
    labels = rows.labels
    of_bounds = find_bound_faults(labels) if bounds and labels is not None else {}
    faults: dict[str, Any] = dict(of_bounds)
    if labels is not None and not of_bounds:
        faults["the label is missing"] = _any_of_row(np.isnan(labels))
        faults["the label is infinite"] = _any_of_row(np.isinf(labels))
    faults[_INFINITE] = _infinite_rows(rows.features)
    if rows.weights is not None:
        faults["the weight is missing"] = np.isnan(rows.weights)
        faults["the weight is infinite"] = np.isinf(rows.weights)
        faults["the weight is negative"] = rows.weights < 0
    found = [(int(np.argmax(bad)), what) for what, bad in faults.items() if bad.any()]
    if found:
        row, what = min(found)
        place = rows.where(row)
        hint = BOUNDS_HINT if what in of_bounds else "correct the row or remove it"
        if what != _INFINITE:
            raise RowError(f"{place}: {what}", hint=hint, row=place.number)
        position = _first_infinite(rows.features, row)
        column = position if schema is None else schema.features[position]
        shown = f"feature f{position}" if schema is None else schema.describe(column)
        name = "" if schema is None else schema.name(column)
        raise RowError(f"{place}: {what}: {shown}", hint=hint, row=place.number, column=column + 1, name=name)


def is_valid(rows: Rows, *, bounds: bool = False) -> bool:
    """Return whether `validate` would find nothing; fast."""
    features, labels, weights = rows.features, rows.labels, rows.weights
    return bool(
        (labels is None or (are_valid_bounds(labels) if bounds else np.isfinite(labels).all()))
        and not np.isinf(features.values if isinstance(features, Sparse) else features).any()
        and (weights is None or (np.isfinite(weights).all() and (weights >= 0).all()))
    )


def _any_of_row(faults: Any) -> Any:  # noqa: ANN401 - an array of bool, in one dimension or two
    return faults if faults.ndim == 1 else faults.any(axis=1)


def _infinite_rows(features: Floats | Sparse) -> Any:  # noqa: ANN401 - an array of bool
    if isinstance(features, Sparse):
        rows = np.repeat(np.arange(len(features.counts)), features.counts)[np.isinf(features.values)]
        return np.isin(np.arange(len(features.counts)), rows)
    return np.isinf(features).any(axis=1)


def _first_infinite(features: Floats | Sparse, row: int) -> int:
    """Return the position of the first infinite feature of a row that has one."""
    if isinstance(features, Sparse):
        start = int(features.counts[:row].sum())
        return int(features.columns[start + int(np.argmax(np.isinf(features.values[start:])))])
    return int(np.argmax(np.isinf(features[row])))
