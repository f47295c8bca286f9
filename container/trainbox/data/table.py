"""A channel in memory: labels, features, weights and groups, built block by block."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.data.formats.categories import Coding, recode
from trainbox.data.formats.row_block import Floats, Groups, Sparse, make_csr
from trainbox.errors import DataError

#: Of a digest: small enough to occupy all processors, large enough to hide the cost of a task.
_PIECE_BYTES = 4 * 2**20


class Table(msgspec.Struct, frozen=True, eq=False):
    """The rows of a channel: n rows, m features; only bounds may be infinite, and a missing value is NaN."""

    #: (n,), or (n, k) for k > 1 labels.
    labels: Floats
    #: (n, m), C-ordered; a csr_matrix for libsvm and sparse recordio, where what is not stored is missing.
    features: Floats | scipy.sparse.csr_matrix
    #: From the header; `f0`, `f1`, … if no file has one.
    feature_names: tuple[str, ...]
    files: tuple[Path, ...]
    #: (n,), none negative.
    weights: Floats | None = None
    #: (n,): the query id of each row; the rows of a group are neighbours.
    groups: Groups | None = None
    #: Of the columns of texts, whose values are codes.
    coding: Coding = Coding()


def take_part(table: Table, index: int, count: int) -> Table:
    """Return the rows of rank `index` of `count` if every rank has read the whole channel.

    The parts are contiguous and in order, and together hold every row exactly once. Groups are not split, so parts of
    grouped rows may differ in size, and one may be empty.

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
    """Return the same rows with the codes of another coding, which has all their texts; changes the arrays in place."""
    for place, texts in table.coding.features.items():
        recode(table.features[:, place], texts, coding.features[place])
    if table.coding.labels:
        recode(table.labels, table.coding.labels, coding.labels)
    return msgspec.structs.replace(table, coding=coding)


def _border(groups: Groups | None, row: int) -> int:
    """Return the first row at or after `row` that begins a group, or the number of rows."""
    if groups is None or row == 0:
        return row
    changes = np.flatnonzero(groups[row:] != groups[row - 1 : -1])
    return row + int(changes[0]) if len(changes) else len(groups)


def digest(table: Table) -> str:
    """Return a BLAKE2b digest of labels, features, weights and groups, 64 hex digits; names and files do not count.

    It is the digest of the digests of pieces, which all processors compute together: SHA-256 of everything takes half
    a second for a million rows on a processor without instructions for it.
    """
    features: Any = table.features
    # SciPy chooses the width of the indices; it is not part of the data.
    is_sparse = scipy.sparse.issparse(features)
    wide = [features.indptr.astype(np.int64), features.indices.astype(np.int64)] if is_sparse else []
    arrays = [table.labels, *wide, features.data if is_sparse else features, table.weights, table.groups]
    layout = [None if array is None else (array.dtype.str, array.shape) for array in arrays]
    pieces = [piece for array in arrays if array is not None for piece in _pieces(array)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = list(pool.map(_digest, pieces))
    return _digest(repr((layout, features.shape)).encode() + b"".join(digests)).hex()


def _pieces(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for begin in range(0, len(content), _PIECE_BYTES):
        yield content[begin : begin + _PIECE_BYTES].data


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()


class Block(msgspec.Struct, frozen=True, eq=False):
    """A block of labelled rows; the arrays are those of `Table`."""

    labels: Floats
    features: Floats | Sparse
    weights: Floats | None
    groups: Groups | None
    #: Locates a row for a message: `train/a.csv:12`.
    where: Callable[[int], str]


#: Called with each block of rows as it is read, and the names of its features if they are known.
Inspect: TypeAlias = Callable[[Block, Sequence[str] | None], None]


class GroupOrder:
    """Checks that the rows of each group are neighbours, over all blocks."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._ascending: list[Groups] = []
        self._others: set[int] | None = None  # all groups, as soon as they do not ascend

    def check(self, groups: Groups, where: Callable[[int], str]) -> None:
        """Check the next rows.

        Raises:
            DataError: A group continues after rows of another group.
        """
        if not len(groups):
            return
        starts = np.concatenate([np.zeros(1, np.int64), 1 + np.flatnonzero(np.diff(groups))])
        if groups[0] == self._last:
            starts = starts[1:]
        runs = groups[starts]
        if self._others is None and self._ascends(runs):
            self._ascending.append(runs)
        else:
            self._look_up(runs, starts, where)
        self._last = int(groups[-1])

    def _ascends(self, runs: Groups) -> bool:
        return bool((np.diff(runs) > 0).all() and (self._last is None or not len(runs) or runs[0] > self._last))

    def _look_up(self, runs: Groups, starts: Groups, where: Callable[[int], str]) -> None:
        if self._others is None:
            self._others = {group for before in self._ascending for group in before.tolist()}
            self._ascending = []
        for row, group in zip(starts.tolist(), runs.tolist(), strict=True):
            if group in self._others:
                raise DataError(
                    f"{where(row)}: rows of group {group} came before, and others between",
                    hint="sort the rows so that those of one group (qid) are neighbours, in one file",
                )
            self._others.add(group)


class TableBuilder:
    """Appends blocks to arrays; a large array grows without being copied, as its pages are moved (mremap).

    So the peak memory is the matrix and one block. No view of an array may outlive a method: `resize` may move it.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.width = 0
        self._arrays: dict[str, Any] = {}
        self._is_sparse = False

    def add(self, block: Block) -> None:
        """Append rows; all blocks must have the same columns, labels and so on."""
        features = block.features
        parts: dict[str, Any] = {"labels": block.labels, "weights": block.weights, "groups": block.groups}
        if isinstance(features, Sparse):
            self._is_sparse = True
            self.width = max(self.width, features.width)
            parts |= {"values": features.values, "columns": features.columns, "counts": features.counts}
        else:
            self.width = features.shape[1]
            parts["features"] = features
        for name, part in parts.items():
            if part is not None:
                self._append(name, part)
        self.rows += len(block.labels)

    def _append(self, name: str, part: Any) -> None:  # noqa: ANN401 - an array of any type
        array = self._arrays.get(name)
        if array is None:
            self._arrays[name] = np.array(part, order="C")
            return
        start = len(array)
        array.resize((start + len(part), *array.shape[1:]), refcheck=False)
        array[start:] = part

    def take(self, name: str) -> Any:  # noqa: ANN401 - an array or None
        """Hand over the array of that name to the caller; None if no block had one."""
        return self._arrays.pop(name, None)

    def take_features(self, width: int) -> Any:  # noqa: ANN401 - a matrix, dense or sparse
        """Hand over the features, `width` columns wide; sparse ones may have more columns than any row."""
        if not self._is_sparse:
            return self.take("features")
        counts = self.take("counts")
        starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        if starts[-1] <= np.iinfo(np.int32).max:
            starts = starts.astype(np.int32)  # the type of the columns, or scipy copies them
        return make_csr(self.take("values"), self.take("columns"), starts, width)


def slice_block(block: Block, start: int, stop: int) -> Block:
    """Return the rows from `start` to before `stop`."""
    features = block.features
    if isinstance(features, Sparse):
        first, last = int(features.counts[:start].sum()), int(features.counts[:stop].sum())
        part: Floats | Sparse = Sparse(
            features.values[first:last], features.columns[first:last], features.counts[start:stop], features.width
        )
    else:
        part = features[start:stop]
    return Block(
        block.labels[start:stop],
        part,
        None if block.weights is None else block.weights[start:stop],
        None if block.groups is None else block.groups[start:stop],
        lambda row: block.where(start + row),
    )


def shape_of(block: Block) -> tuple[int, bool, bool, bool]:
    """Return the number of labels of a row, whether it has a weight and a group, and whether it is sparse."""
    labels = 1 if block.labels.ndim == 1 else block.labels.shape[1]
    return labels, block.weights is not None, block.groups is not None, isinstance(block.features, Sparse)


def describe_shape(shape: tuple[int, bool, bool, bool]) -> str:
    """Describe a shape for a message."""
    labels, has_weight, has_group, is_sparse = shape
    weight, group = ("a" if has_weight else "no", "a" if has_group else "no")
    return f"{labels} label(s), {weight} weight, {group} group and {'sparse' if is_sparse else 'dense'} features"


def rechunk(blocks: Iterable[Block], rows: int) -> Iterator[TableBuilder]:
    """Yield the same rows, `rows` at a time; fewer only at the end."""
    builder = TableBuilder()
    for block in blocks:
        start = 0
        while start < len(block.labels):
            stop = min(start + rows - builder.rows, len(block.labels))
            builder.add(slice_block(block, start, stop))
            start = stop
            if builder.rows == rows:
                yield builder
                builder = TableBuilder()
    if builder.rows:
        yield builder
