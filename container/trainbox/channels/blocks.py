"""Some rows of a channel, checked, and how many such blocks become one table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from trainbox.channels.bounds import HINT, are_sound, find_faults
from trainbox.channels.compressed import Sparse, make_matrix
from trainbox.channels.table import Floats, Groups
from trainbox.errors import DataError


class Block(msgspec.Struct, frozen=True, eq=False):
    """Some rows; what the arrays mean is `Table`'s."""

    labels: Floats
    features: Floats | Sparse
    weights: Floats | None
    groups: Groups | None
    #: Names a row for a message: `train/a.csv:12`.
    where: Callable[[int], str]


#: Looks at rows as they are read, and at the names of their features where those are known.
Inspect: TypeAlias = Callable[[Block, Sequence[str] | None], None]


class Seen:
    """The groups of the rows before: each may come in one run of neighbours only."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._ascending: list[Groups] = []
        self._others: set[int] | None = None  # all of them, once they do not ascend

    def check(self, groups: Groups, where: Callable[[int], str]) -> None:
        """Take the next rows.

        Raises:
            DataError: A group goes on after others have come between.
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


def check(block: Block, *, bounds: bool = False) -> None:
    """Refuse rows with which nothing can be trained.

    Args:
        block: The rows.
        bounds: Whether the two labels are bounds, which may be infinite.

    Raises:
        DataError: A label is missing or infinite, a value infinite, or a weight missing, infinite or negative.
    """
    if is_sound(block, bounds=bounds):
        return
    of_bounds = find_faults(block.labels) if bounds else {}
    faults = of_bounds or {
        "the label is missing": _any_of_row(np.isnan(block.labels)),
        "the label is infinite": _any_of_row(np.isinf(block.labels)),
    }
    faults["a value is infinite as a 32-bit float"] = _infinite_rows(block.features)
    if block.weights is not None:
        faults["the weight is missing"] = np.isnan(block.weights)
        faults["the weight is infinite"] = np.isinf(block.weights)
        faults["the weight is negative"] = block.weights < 0
    found = [(int(np.argmax(rows)), what) for what, rows in faults.items() if rows.any()]
    if found:
        row, what = min(found)
        raise DataError(
            f"{block.where(row)}: {what}", hint=HINT if what in of_bounds else "correct the row or remove it"
        )


def is_sound(block: Block, *, bounds: bool = False) -> bool:
    """Whether `check` has nothing to say, found out quickly."""
    features, weights = block.features, block.weights
    return bool(
        (are_sound(block.labels) if bounds else np.isfinite(block.labels).all())
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


class Growing:
    """The rows so far. Growing moves the pages of a large array instead of copying them (mremap).

    So the peak is the matrix and one block. Views of the arrays must not outlive a method: `resize` may move them.
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
        """The array of that name, which is the caller's from now on; None if no block had one."""
        return self._arrays.pop(name, None)

    def take_features(self, width: int) -> Any:  # noqa: ANN401 - a matrix, dense or sparse
        """The features, `width` columns wide: more than any row has where they are sparse."""
        if not self._is_sparse:
            return self.take("features")
        counts = self.take("counts")
        starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        if starts[-1] <= np.iinfo(np.int32).max:
            starts = starts.astype(np.int32)  # of one type with the columns, or scipy copies them
        return make_matrix(self.take("values"), self.take("columns"), starts, width)


def cut(block: Block, start: int, stop: int) -> Block:
    """The rows from `start` to before `stop`."""
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
    """How many labels a row has, whether it has a weight and a group, and whether it is sparse."""
    labels = 1 if block.labels.ndim == 1 else block.labels.shape[1]
    return labels, block.weights is not None, block.groups is not None, isinstance(block.features, Sparse)


def describe_shape(shape: tuple[int, bool, bool, bool]) -> str:
    """The same in words."""
    labels, has_weight, has_group, is_sparse = shape
    weight, group = ("a" if has_weight else "no", "a" if has_group else "no")
    return f"{labels} label(s), {weight} weight, {group} group and {'sparse' if is_sparse else 'dense'} features"


def regroup(blocks: Iterable[Block], rows: int) -> Iterator[Growing]:
    """The same rows, `rows` at a time; fewer at the end alone."""
    growing = Growing()
    for block in blocks:
        start = 0
        while start < len(block.labels):
            stop = min(start + rows - growing.rows, len(block.labels))
            growing.add(cut(block, start, stop))
            start = stop
            if growing.rows == rows:
                yield growing
                growing = Growing()
    if growing.rows:
        yield growing
