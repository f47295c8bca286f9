"""What a channel becomes in memory: labels, features, weights and groups, row by row."""

import functools
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.channels.coding import Coding, recode
from trainbox.contract.model_card import MISSING

Floats = npt.NDArray[np.float32]
Groups = npt.NDArray[np.int64]

#: Of a digest: small enough that all processors have their part, large enough that to hand them over costs nothing.
_PIECE_BYTES = 4 * 2**20


class Columns(msgspec.Struct, frozen=True):
    """What stands where in a row of CSV or Parquet: labels, then perhaps the weight, then the features.

    Other formats say it themselves: libsvm by its syntax, recordio-protobuf by the names in a record.
    """

    #: How many of the leading columns are labels.
    labels: int = 1
    #: Whether the next column is the row's weight (`csv_weights` of the built-in XGBoost).
    weight: bool = False
    #: The column with the query id of ranking: its name in the header or in Parquet, or its position from 0, as "7".
    group: str | None = None
    #: What stands for a missing value in CSV.
    missing: tuple[str, ...] = MISSING
    #: What separates the columns of CSV; found out where it is not given.
    delimiter: str | None = None
    #: Whether the two labels are the bounds of one number, of which one may be missing or infinite.
    bounds: bool = False
    #: Whether a column may hold texts, which become codes (`Table.coding`); else they are an error.
    texts: bool = False
    #: The columns all of whose cells are texts, numbers too: their names, or positions among the features.
    categorical: tuple[str, ...] = ()
    #: What becomes of a text that the channel to be followed does not have.
    unseen: Literal["error", "missing"] = "error"

    def __post_init__(self) -> None:
        if self.labels < 1:
            raise ValueError(f"{self.labels} columns are labels; training needs one at least")
        if self.bounds and self.labels != 2:  # noqa: PLR2004 - a lower and an upper one
            raise ValueError(f"{self.labels} columns are labels; bounds are two, the lower and the upper one")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"0123456789.+-'):
            raise ValueError(f"the delimiter {self.delimiter!r} is not one character, or one of a number or a line end")


class Table(msgspec.Struct, frozen=True, eq=False):
    """The rows of a channel: n rows, m features; nothing in it but a bound is infinite, and a missing value is NaN."""

    #: (n,), or (n, k) where a row has k > 1 labels.
    labels: Floats
    #: (n, m), C-ordered; a csr_matrix for libsvm and sparse recordio, where what is not stored is missing.
    features: Floats | scipy.sparse.csr_matrix
    #: From the header; `f0`, `f1`, … where no file has one.
    feature_names: tuple[str, ...]
    files: tuple[Path, ...]
    #: (n,), none negative.
    weights: Floats | None = None
    #: (n,): the query id of each row; the rows of a group are neighbours.
    groups: Groups | None = None
    #: Of the columns of texts, whose numbers are codes.
    coding: Coding = Coding()


def take_part(table: Table, index: int, count: int) -> Table:
    """The rows of rank `index` of `count` where every rank has read the whole channel.

    The parts are contiguous and in order, and together hold every row exactly once. No group is cut: a border falls
    between two groups, so parts of grouped rows may differ in size, and one may be empty.

    Raises:
        ValueError: `index` is not below `count`.
    """
    if not 0 <= index < count:
        raise ValueError(f"part {index} of {count} parts")
    rows = len(table.labels)
    start, stop = (_border(table.groups, rows * part // count) for part in (index, index + 1))
    part = slice(start, stop)
    return Table(
        table.labels[part],
        table.features[part],
        table.feature_names,
        table.files,
        None if table.weights is None else table.weights[part],
        None if table.groups is None else table.groups[part],
        table.coding,
    )


def recode_table(table: Table, coding: Coding) -> Table:
    """The same rows with the codes of another coding, which has all their texts; the arrays are changed in place."""
    for place, texts in table.coding.features.items():
        recode(table.features[:, place], texts, coding.features[place])
    if table.coding.labels:
        recode(table.labels, table.coding.labels, coding.labels)
    return msgspec.structs.replace(table, coding=coding)


def _border(groups: Groups | None, row: int) -> int:
    """The first row at or after `row` with which a group begins; the end of the rows is one too."""
    if groups is None or row == 0:
        return row
    changes = np.flatnonzero(groups[row:] != groups[row - 1 : -1])
    return row + int(changes[0]) if len(changes) else len(groups)


def digest(table: Table) -> str:
    """A BLAKE2b of labels, features, weights and groups, 64 hex digits; names and files do not count.

    It is one of the digests of pieces, which all processors make together: SHA-256 of all in one takes half a second
    for a million rows where the processor has no instructions for it.
    """
    features: Any = table.features
    # The width of the numbers is SciPy's choice, and no part of the data.
    is_sparse = scipy.sparse.issparse(features)
    wide = [features.indptr.astype(np.int64), features.indices.astype(np.int64)] if is_sparse else []
    arrays = [table.labels, *wide, features.data if is_sparse else features, table.weights, table.groups]
    told = [None if array is None else (array.dtype.str, array.shape) for array in arrays]
    pieces = [piece for array in arrays if array is not None for piece in _pieces(array)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = list(pool.map(_digest, pieces))
    return _digest(repr((told, features.shape)).encode() + b"".join(digests)).hex()


def _pieces(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for begin in range(0, len(content), _PIECE_BYTES):
        yield content[begin : begin + _PIECE_BYTES].data


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()


@functools.lru_cache(maxsize=2)
def default_names(count: int) -> tuple[str, ...]:
    """The names of features that no header names; all tables of a million share one million of them."""
    return tuple(f"f{i}" for i in range(count))
