"""The metrics of classes and numbers, and the predictions of a forest's trees.

A metric that is not defined, such as the AUC if a class does not occur, is NaN; scoring raises no exception.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.base import is_regressor
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from trainbox.data import Table
from trainbox.sklearn.params import GOALS

Array = npt.NDArray[Any]


def score_numbers(labels: Array, predictions: Array, weights: Array | None = None) -> dict[str, float]:
    """Return R², the root mean squared error and the mean absolute error.

    Args:
        labels: (n,)
        predictions: (n,)
        weights: (n,), none negative.
    """
    if weights is not None:
        labels, predictions, weights = _counting(weights, labels, predictions, weights)
    if not len(labels):
        return dict.fromkeys(GOALS["regression"], math.nan)
    with _quiet():
        return {
            "r2": float(r2_score(labels, predictions, sample_weight=weights)),
            "rmse": float(root_mean_squared_error(labels, predictions, sample_weight=weights)),
            "mae": float(mean_absolute_error(labels, predictions, sample_weight=weights)),
        }


def score_classes(
    labels: Array,
    guesses: Array,
    ranking: Array | None,
    classes: Sequence[int],
    *,
    are_shares: bool = True,
    weights: Array | None = None,
) -> dict[str, float]:
    """Return accuracy, AUC (one-vs-rest mean for several classes), macro F1 and log loss.

    Args:
        labels: (n,)
        guesses: (n,) labels.
        ranking: (n, k), for each class the higher the more it looks like that; or nothing.
        classes: The k labels in ascending order.
        are_shares: Whether each row of `ranking` holds probabilities: else there is no log loss.
        weights: (n,), none negative.
    """
    if weights is not None:
        labels, guesses, weights, ranking = _counting(weights, labels, guesses, weights, ranking)
    if not len(labels):
        return dict.fromkeys(GOALS["classification"], math.nan)
    is_known = ranking is not None and are_shares and bool(np.isfinite(ranking).all())
    with _quiet():
        return {
            "accuracy": float(accuracy_score(labels, guesses, sample_weight=weights)),
            "auc": math.nan if ranking is None else _area(labels, ranking, classes, weights),
            "f1": float(f1_score(labels, guesses, average="macro", zero_division=0.0, sample_weight=weights)),
            "logloss": log_loss(labels, ranking, labels=classes, sample_weight=weights) if is_known else math.nan,
        }


def _area(labels: Array, ranking: Array, classes: Sequence[int], weights: Array | None) -> float:
    """The area below the curve of the second class of two; of several, the mean of each against the rest."""
    if len(np.unique(labels)) < len(classes) or len(classes) < 2 or not np.isfinite(ranking).all():  # noqa: PLR2004
        return math.nan
    if len(classes) == 2:  # noqa: PLR2004
        return float(roc_auc_score(labels, ranking[:, 1], sample_weight=weights))
    areas = [
        roc_auc_score(labels == label, ranking[:, place], sample_weight=weights) for place, label in enumerate(classes)
    ]
    return float(np.mean(areas))


def _counting(weights: Array, *arrays: Array | None) -> list[Any]:
    """The rows that count: one without weight would make metrics undefined that are not."""
    return [None if array is None else array[weights > 0] for array in arrays]


@contextmanager
def _quiet() -> Iterator[None]:
    """scikit-learn warns where a metric is not defined; the log says so anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        yield


class Votes:
    """The predictions of a forest's trees on some rows, summed in the order of the trees.

    The forest's own sum depends on which thread is done first.

    Args:
        table: The rows.
        labels: Their labels, as the trees know them.
        classes: The labels of training; none for numbers.
        threads: How many trees are asked at the same time.
    """

    def __init__(self, table: Table, labels: Array, classes: Sequence[int], threads: int) -> None:
        self._table, self._labels, self._classes, self._threads = table, labels, classes, threads
        self._sum: Array = np.zeros((len(labels), len(classes)) if classes else len(labels))
        self._count = 0

    def add(self, trees: Sequence[Any]) -> None:
        """Add the predictions of more trees."""
        for predictions in predict_each(trees, [self._table.features] * len(trees), self._threads):
            self._sum += predictions
        self._count += len(trees)

    def scores(self) -> dict[str, float]:
        """Return the metrics of all trees so far, at least one."""
        predictions = self._sum / self._count
        if not self._classes:
            return score_numbers(self._labels, predictions, self._table.weights)
        guesses = np.array(self._classes)[predictions.argmax(axis=1)]
        return score_classes(self._labels, guesses, predictions, self._classes, weights=self._table.weights)


class OutOfBag:
    """The out-of-bag predictions of a forest.

    Args:
        table: The rows trained on.
        labels: Their labels, as the trees know them.
        classes: The labels of training; none for numbers.
        sampler: A forest fitted on the same rows in the same way, whichever trees it has: it knows which rows a tree
            has drawn.
        threads: How many trees are asked at the same time.
    """

    def __init__(self, table: Table, labels: Array, classes: Sequence[int], sampler: Any, threads: int) -> None:  # noqa: ANN401
        self._table, self._labels, self._classes = table, labels, classes
        self._sampler, self._threads = sampler, threads
        self._sum: Array = np.zeros((len(labels), len(classes)) if classes else len(labels))
        self._counts = np.zeros(len(labels), np.int64)

    def add(self, trees: Sequence[Any]) -> None:
        """Add the predictions of more trees."""
        self._sampler.estimators_ = list(trees)
        unseen = [self._without(drawn) for drawn in self._sampler.estimators_samples_]
        parts = (self._table.features[rows] for rows in unseen)
        for rows, predictions in zip(unseen, predict_each(trees, parts, self._threads), strict=True):
            self._sum[rows] += predictions
            self._counts[rows] += 1

    def _without(self, drawn: Array) -> Array:
        unseen = np.ones(len(self._labels), bool)
        unseen[drawn] = False
        return np.flatnonzero(unseen)

    def score(self) -> float:
        """Return accuracy or R² over the rows that some tree has not seen, as scikit-learn computes it."""
        seen = self._counts > 0
        if not seen.any():
            return math.nan
        labels, predictions = self._labels[seen], self._sum[seen]
        if self._classes:
            return float(accuracy_score(labels, np.array(self._classes)[predictions.argmax(axis=1)]))
        with _quiet():
            return float(r2_score(labels, predictions / self._counts[seen]))


def predict_each(trees: Sequence[Any], features: Iterable[Any], threads: int) -> Iterator[Array]:
    """Yield the predictions of each tree on its rows, in order: numbers, or class probabilities."""
    together = joblib.Parallel(n_jobs=threads, prefer="threads", return_as="generator")
    predictions: Iterator[Array] = together(
        joblib.delayed(_predict)(tree, rows) for tree, rows in zip(trees, features, strict=True)
    )
    return predictions


def _predict(tree: Any, rows: Any) -> Array:  # noqa: ANN401 - scikit-learn has no types
    if scipy.sparse.issparse(rows):
        rows = rows.tocsr()
    if rows.shape[0] == 0:
        return np.zeros((0, tree.n_classes_) if not is_regressor(tree) else 0)
    answer: Array = tree.predict(rows) if is_regressor(tree) else tree.predict_proba(rows)
    return answer
