"""Grow trees in groups: each group is a separate fit, and all together equal the forest of one fit.

Tree i of a forest is shaped by the i-th number that scikit-learn draws from the random state it was given. A group that
begins with tree i is given a random state from which i numbers were drawn before; so it does not matter in how many
groups, in how many attempts or on how many hosts the trees grow. Nothing but scikit-learn's public interface is used
for that; tests/sklearn/forests/test_sklearn_forests.py compares the trees with those of one fit, number by number.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import joblib
import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils import get_tags

from trainbox.comm import Communicator
from trainbox.data import Table
from trainbox.errors import DataError, HyperparameterError
from trainbox.sklearn.data import EstimatorData, count_missing, targets
from trainbox.sklearn.forests.packing import Forest, pack
from trainbox.sklearn.forests.parts import ForestPart, forest_class, join_forests, state_at
from trainbox.sklearn.params import EstimatorParams, constructor_arguments
from trainbox.sklearn.repeatable import clear_padding
from trainbox.sklearn.rows import by_columns


def count_threads(params: EstimatorParams) -> int:
    """Return how many trees grow at the same time."""
    return int(joblib.effective_n_jobs(params.n_jobs))


def slices(shares: Sequence[int], trees: int, first: int = 0) -> list[range]:
    """Return the tree numbers that each host grows: contiguous ranges, proportional to its share.

    Args:
        shares: Of the members.
        trees: The number behind the last tree.
        first: That of the first; those before are a former model's.

    >>> slices([1, 1, 1], 10)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    borders = [0]
    for share in shares:
        borders.append(borders[-1] + share)
    numbers = [first + (trees - first) * border // borders[-1] for border in borders]
    return [range(*pair) for pair in itertools.pairwise(numbers)]


class ForestProgress(msgspec.Struct, frozen=True):
    """The progress of all hosts together."""

    grown: int
    left: int
    #: Whether any of them was asked to stop.
    stop: bool


def exchange_progress(
    communicator: Communicator, own: range, parts: Sequence[ForestPart], *, stop: bool
) -> ForestProgress:
    """Exchange the progress of all hosts, so that all stop together when one is asked to stop.

    Args:
        communicator: The members; all call this, after each group.
        own: The numbers of the trees that this one grows.
        parts: Those that it has.
        stop: Whether it was asked to stop.
    """
    grown = sum(part.last - part.first for part in parts)
    hosts = communicator.gather(ForestProgress(grown, len(own) - grown, stop), ForestProgress)
    return ForestProgress(
        sum(one.grown for one in hosts), sum(one.left for one in hosts), any(one.stop for one in hosts)
    )


def groups_left(own: range, parts: Sequence[ForestPart], size: int) -> list[range]:
    """Return the tree numbers of each remaining group; groups end at multiples of their size.

    Args:
        own: The numbers of the trees that this member grows.
        parts: Those that it has.
        size: Of a group.
    """
    done = parts[-1].last if parts else own.start
    borders = [done, *range(done - done % size + size, own.stop, size), own.stop]
    return [range(*pair) for pair in itertools.pairwise(borders) if pair[0] < pair[1]]


def check_rows(params: EstimatorParams, data: EstimatorData) -> None:
    """Reject rows that this kind of forest cannot learn from, before the first tree.

    Raises:
        DataError: Values are missing, and the forest takes none.
        HyperparameterError: There are not as many features or rows as the hyperparameters ask for.
    """
    rows, features = len(data.train.labels), len(data.features)
    missing = count_missing(data.train)
    if missing and not _takes_missing(params, data.train):
        count = "1 value is" if missing == 1 else f"{missing:,} values are"
        kind = "sparse rows with such" if scipy.sparse.issparse(data.train.features) else "such rows"
        raise DataError(
            f"channel train: {count} missing, and a {forest_class(params).__name__} cannot be grown from {kind}",
            hint="fill them in, or leave those rows out",
        )
    if params.monotonic_cst is not None and len(params.monotonic_cst) != features:
        raise HyperparameterError(
            f"hyperparameter 'monotonic_cst' has {len(params.monotonic_cst)} entries; there are {features} features"
        )
    if isinstance(params.max_features, int) and params.max_features > features:
        raise HyperparameterError(f"hyperparameter 'max_features' is {params.max_features}, of {features} features")
    if isinstance(params.max_samples, int) and params.max_samples > rows:
        raise HyperparameterError(f"hyperparameter 'max_samples' is {params.max_samples}, of {rows} rows")


def _takes_missing(params: EstimatorParams, table: Table) -> bool:
    forest = forest_class(params)(**constructor_arguments(params))
    return bool(get_tags(forest).input_tags.allow_nan) and not scipy.sparse.issparse(table.features)


def order_by_columns(data: EstimatorData) -> EstimatorData:
    """Return the data with its training rows by column, which trees read fastest; the rows passed in are consumed."""
    return msgspec.structs.replace(data, train=by_columns(data.train))


class FitInputs(msgspec.Struct, frozen=True, eq=False):
    """The arguments of scikit-learn's `fit` for all trees."""

    features: Any
    labels: npt.NDArray[Any]
    weights: npt.NDArray[Any] | None


def prepare(params: EstimatorParams, data: EstimatorData) -> FitInputs:
    """Return the arguments of `fit`; sparse rows by column (CSC), which scikit-learn would convert for each fit."""
    rows = _rows_with_all_classes(params, data)
    features: Any = rows.features
    if scipy.sparse.issparse(features):
        features = features.tocsc()
        features.sort_indices()
    return FitInputs(features, targets(rows, params), rows.weights)


@contextmanager
def grow(params: EstimatorParams, data: EstimatorData, groups: Sequence[range]) -> Iterator[Iterator[ForestPart]]:
    """Grow trees on threads inside the block; yields each group when it is complete, in this order.

    Meanwhile the threads go on with the next group: none of them is idle while a group ends, is judged and is saved.
    The end of the block waits for the trees that are growing just then, and drops them.

    Args:
        params: The hyperparameters.
        data: The rows.
        groups: The numbers of the trees of each.

    Raises:
        HyperparameterError: scikit-learn refuses; with what it says.
    """
    ground, threads = prepare(params, data), count_threads(params)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="trees")
    try:
        growing = [
            [pool.submit(fit, params, ground, piece) for piece in _cut(group, threads, is_last=group is groups[-1])]
            for group in groups
        ]
        yield map(_collect, groups, growing)
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(group: range, pieces: Sequence[Future[Forest]]) -> ForestPart:
    forest = join_forests([piece.result() for piece in pieces])
    return ForestPart(group.start, group.stop, forest, pack(forest))


def _cut(group: range, threads: int, *, is_last: bool) -> list[range]:
    """The numbers of the trees that a thread grows in one go: few fits, and at the end nobody who has long to go.

    Of the last group each thread takes half of its share of what is left, one tree at least (guided self-scheduling,
    https://doi.org/10.1109/TC.1987.5009495).

    >>> [len(piece) for piece in _cut(range(10), 2, is_last=False)]
    [5, 5]
    >>> [len(piece) for piece in _cut(range(10), 2, is_last=True)]
    [3, 2, 2, 1, 1, 1]
    """
    pieces, rest = [], group
    while rest:
        size = -(-len(rest) // (2 * threads)) if is_last else -(-len(group) // threads)
        pieces.append(rest[:size])
        rest = rest[size:]
    return pieces


def make_sampler(params: EstimatorParams, data: EstimatorData) -> Forest:
    """Return a forest that knows which rows a tree has drawn: fitted on the same rows, with trees of depth 1."""
    return _fit(params, prepare(params, data), range(1), max_depth=1)


def fit(params: EstimatorParams, ground: FitInputs, numbers: range) -> Forest:
    """Fit a forest of the trees with these numbers, at least one, on one thread.

    Raises:
        HyperparameterError: scikit-learn refuses; with what it says.
    """
    forest = drop_rows(_fit(params, ground, numbers))
    clear_padding(forest)
    return forest


def _fit(params: EstimatorParams, ground: FitInputs, numbers: range, **changed: object) -> Forest:
    arguments = constructor_arguments(params) | {"n_jobs": 1} | changed
    state = state_at(params.seed, numbers.start)
    forest = forest_class(params)(n_estimators=len(numbers), random_state=state, **arguments)
    try:
        forest.fit(ground.features, ground.labels, sample_weight=ground.weights)
    except ValueError as error:
        raise HyperparameterError(
            f"scikit-learn rejects the forest: {error}", hint="the hyperparameters do not fit the rows"
        ) from error
    return forest.set_params(random_state=params.seed)


def _rows_with_all_classes(params: EstimatorParams, data: EstimatorData) -> Table:
    """The rows of this member; where it has no row of a class, one without weight, so that its trees know all classes.

    Trees that have seen fewer classes could not be put together with the others: their votes would be narrower.
    """
    rows = data.train
    absent = sorted({*data.classes} - {*np.unique(rows.labels).astype(np.int64).tolist()})
    if not absent or not len(rows.labels) or params.task == "regression":
        return rows
    stack: Any = scipy.sparse.vstack if scipy.sparse.issparse(rows.features) else np.concatenate
    weights = np.ones(len(rows.labels), np.float32) if rows.weights is None else rows.weights
    return Table(
        np.concatenate([rows.labels, np.array(absent, np.float32)]),
        stack([rows.features, *[rows.features[:1]] * len(absent)]),
        rows.feature_names,
        rows.files,
        np.concatenate([weights, np.zeros(len(absent), np.float32)]),
    )


def drop_rows(forest: Forest) -> Forest:
    """Take from a fitted forest the weights of the rows that it was fitted on; none are left where there were none.

    scikit-learn 1.9 keeps them in `_sample_weight`, to find out again which rows a tree has drawn. They would be in
    every checkpoint and in the model, eight bytes for each row. This is the one place that touches what scikit-learn
    does not document; a test looks for arrays as long as the rows.
    """
    if getattr(forest, "_sample_weight", None) is not None:
        del forest._sample_weight  # noqa: SLF001 - see above
    return forest
