"""Rows of which few columns are stored: sorted, looked through for doubles, and made a csr_matrix without copying."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.channels.table import Floats

#: Each column has a name and a histogram: more are a mistake in an index, or want hashing into fewer.
MOST_COLUMNS = 2**24

Positions = npt.NDArray[np.int64]


class Sparse(msgspec.Struct, frozen=True, eq=False):
    """Rows of which few columns are stored, as in a csr_matrix; columns ascend within a row."""

    values: Floats
    columns: Any  # int32
    #: How many values each row has, int64.
    counts: Any
    #: Beyond the last column that any row has.
    width: int


def make_matrix(values: Floats, columns: Any, starts: Any, width: int) -> scipy.sparse.csr_matrix:  # noqa: ANN401
    """A csr_matrix of these very arrays; its columns ascend within a row."""
    matrix = scipy.sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, width), copy=False)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def ascends(columns: npt.NDArray[Any], starts: Positions) -> bool:
    """Whether each row's columns ascend, none coming twice.

    Args:
        columns: Of all rows, one behind the other.
        starts: Where each row begins, and where the last one ends.
    """
    return first_repeat(columns, starts) is None


def first_repeat(columns: npt.NDArray[Any], starts: Positions) -> int | None:
    """The first row with a column that is not beyond the one before it."""
    stays = columns[1:] <= columns[:-1]
    borders = starts[1:-1]
    stays[borders[(borders > 0) & (borders < len(columns))] - 1] = False
    if not stays.any():
        return None
    return int(np.searchsorted(starts, 1 + np.argmax(stays), side="right")) - 1


def sort_rows(values: Floats, columns: npt.NDArray[Any], starts: Positions, width: int) -> tuple[Floats, Any]:
    """The values and columns of the same rows, with each row's columns in order."""
    rows = scipy.sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, width), copy=True)
    rows.sort_indices()
    return rows.data, rows.indices
