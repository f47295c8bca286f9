"""Metrics computed from sums over rows, so that they are exact over several members.

Metrics of classes and numbers are defined as in scikit-learn, the two areas under a curve as in XGBoost. XGBoost
averages these areas over members, which is an approximation; here the members merge their distinct scores.

The module does without matrix products: see `_weighted_sums`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainbox.errors import DataError

Floats = npt.NDArray[np.float64]
#: Adds up over all members, element by element.
Sum = Callable[[Floats], Floats]
#: Puts the values of all members one after the other.
Gather = Callable[[Floats], Floats]

_SIGN = np.uint32(1 << 31)


# ---- areas under a curve ----


def is_yes_or_no(labels: Floats) -> bool:
    """Whether every label is 0 or 1."""
    return bool(np.array_equal(labels, labels > 0))


def count_scores(scores: npt.NDArray[np.float32], labels: Floats, weights: Floats | None) -> Floats:
    """Return the distinct scores, ascending, with the weights of their positive and negative rows: (3, m).

    Args:
        scores: (n,)
        labels: (n,), from 0 to 1; between them a row is positive in part, as in XGBoost.
        weights: (n,); None where all rows count alike.
    """
    is_positive = labels > 0
    if weights is None and is_yes_or_no(labels):
        return _count_plain(scores, is_positive)
    weight = np.ones(len(labels)) if weights is None else weights
    return _merge(np.stack([scores.astype(np.float64), weight * labels, weight * (1.0 - labels)]))


def area_by_ranks(scores: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]) -> float:
    """`area_under_roc` of rows that all count alike, in a third of its time: Mann and Whitney's U, in whole numbers.

    https://en.wikipedia.org/wiki/Mann-Whitney_U_test#Area-under-curve_(AUC)_statistic_for_ROC_curves
    """
    count, positive = len(scores), np.count_nonzero(is_positive)
    pairs = positive * (count - positive)
    if not pairs or np.isnan(scores).any():
        return np.nan
    keys = _sort(scores, is_positive)
    # How many positive rows have come, at each row: summed up, what each has above itself, and itself.
    come = keys & keys.dtype.type(1)
    np.cumsum(come, out=come)  # of 32 bits enough for four billion rows
    above = count * positive - int(come.sum(dtype=np.uint64)) - positive * (positive - 1) // 2
    # Of one score the negative rows come first: where the next one is positive, both have it.
    last = np.flatnonzero((keys[1:] ^ keys[:-1]) == 1)
    begin, end = np.searchsorted(keys, keys[last], "left"), np.searchsorted(keys, keys[last + 1], "right")
    tied = int(((last + 1 - begin) * (end - last - 1)).sum())
    return (above - tied / 2) / pairs


def _sort(scores: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The scores as integers with the label in the lowest bit, ascending: that takes a tenth of the time of argsort.

    32 bits are enough where no score is negative, and are sorted in a third of the time of 64.
    """
    keys: npt.NDArray[Any] = _as_integers(scores)
    if keys.min(initial=_SIGN) < _SIGN:
        keys = keys.astype(np.uint64)
    keys <<= keys.dtype.type(1)  # of 32 bits the highest, which is set in all, goes
    keys |= is_positive
    keys.sort()
    return keys


def _count_plain(scores: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]) -> Floats:
    keys = _sort(scores, is_positive)
    one = keys.dtype.type(1)
    positives = np.cumsum(keys & one, dtype=np.int64)
    keys >>= one
    ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)[: len(keys)])
    counted = np.empty((3, len(ends)))
    integers = keys[ends].astype(np.uint32)
    counted[0] = _as_scores(integers | _SIGN if keys.dtype == np.uint32 else integers)
    counted[1] = np.diff(positives[ends], prepend=0)
    counted[2] = np.diff(ends, prepend=-1)
    counted[2] -= counted[1]
    return counted


def _as_integers(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """In the order of the scores: IEEE 754's bits are, once those of negative numbers are turned round."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    if bits.max(initial=0) < _SIGN:
        bits |= _SIGN
        return bits
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _as_scores(integers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    return np.where(integers & _SIGN, integers ^ _SIGN, ~integers).view(np.float32)


def _merge(counted: Floats) -> Floats:
    """One column for each score."""
    distinct, place = np.unique(counted[0], return_inverse=True)
    return np.stack([distinct, *(np.bincount(place, weights, minlength=len(distinct)) for weights in counted[1:])])


def merge_counts(counted: Floats, gather: Gather) -> Floats:
    """Merge the distinct scores of all members: (3, m)."""
    return _merge(gather(counted.T.ravel()).reshape(-1, 3).T)


def area_under_roc(counted: Floats) -> float:
    """Return the probability that a positive row scores above a negative one, ties half; NaN without both."""
    _, positive, negative = counted
    if not positive.sum() * negative.sum() > 0 or np.isnan(counted).any():
        return np.nan
    above = positive.sum() - np.cumsum(positive)
    return float((negative * (above + positive / 2)).sum() / positive.sum() / negative.sum())


def area_under_pr(counted: Floats) -> float:
    """Return the area under the precision-recall curve, interpolated as by Davis and Goadrich; NaN without both.

    Between two thresholds true and false positives grow in proportion, so precision follows a hyperbola there.
    https://doi.org/10.1145/1143844.1143874
    """
    positive, negative = counted[1:, ::-1]
    if not positive.sum() * negative.sum() > 0 or np.isnan(counted).any():
        return np.nan
    rising = positive > 0
    gain, slope = positive[rising], negative[rising] / positive[rising]
    true, false = (np.cumsum(positive) - positive)[rising], (np.cumsum(negative) - negative)[rising]
    # Precision at true + t is (true + t) / (a * (true + t) + b).
    a, b = 1.0 + slope, false - slope * true
    straight = b == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = b / a * np.log((a * (true + gain) + b) / (a * true + b))
    return float(((gain - np.where(straight, 0.0, bend)) / a).sum() / positive.sum())


# ---- classes ----


def count_classes(
    channel: str, labels: Floats, guesses: npt.NDArray[np.int64], weights: Floats | None, classes: int
) -> Floats:
    """Return for each class the weights of hits, rows and predictions, and its number of occurrences: (4, classes).

    Raises:
        DataError: A label is none of the classes.
    """
    truth = labels.astype(np.int64)
    if truth.size and ((truth != labels).any() or truth.min() < 0 or truth.max() >= classes):
        wrong = labels[(truth != labels) | (truth < 0) | (truth >= classes)][0]
        raise DataError(
            f"channel {channel}: a label is {wrong:g}, which is not a class",
            hint=f"give labels from 0 to {classes - 1}",
        )

    def add(rows: npt.NDArray[np.int64], of: Floats | None) -> Floats:
        return np.bincount(rows, of, minlength=classes).astype(np.float64)

    hits = truth == guesses
    of_hits = add(truth[hits], None if weights is None else weights[hits])
    occurring = add(truth, None) + add(guesses, None)
    return np.stack([of_hits, add(truth, weights), add(guesses, weights), occurring])


def _accuracy(counts: Floats) -> float:
    return _ratio(counts[0].sum(), counts[1].sum())


def _balanced_accuracy(counts: Floats) -> float:
    hits, rows = counts[0], counts[1]
    return float((hits[rows > 0] / rows[rows > 0]).mean())


def _precisions(counts: Floats) -> Floats:
    return _shares(counts[0], counts[2])


def _recalls(counts: Floats) -> Floats:
    return _shares(counts[0], counts[1])


def _f1s(counts: Floats) -> Floats:
    return _shares(2 * counts[0], counts[1] + counts[2])


def _macro(shares: Callable[[Floats], Floats]) -> Callable[[Floats], float]:
    """The mean over the classes that occur, in labels or guesses."""
    return lambda counts: float(shares(counts)[counts[3] > 0].mean())


def _of_class_1(shares: Callable[[Floats], Floats]) -> Callable[[Floats], float]:
    return lambda counts: float(shares(counts)[1])


def _shares(part: Floats, whole: Floats) -> Floats:
    """0 where there is nothing to share, as scikit-learn has it."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan


#: What each metric makes of the counts. `f1` is the mean over classes and `precision` and `recall` are those of class
#: 1: that is what SageMaker's built-in means by them.
OF_CLASSES: Mapping[str, Callable[[Floats], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _macro(_f1s),
    "f1_binary": _of_class_1(_f1s),
    "f1_macro": _macro(_f1s),
    "precision": _of_class_1(_precisions),
    "precision_macro": _macro(_precisions),
    "precision_micro": _accuracy,
    "recall": _of_class_1(_recalls),
    "recall_macro": _macro(_recalls),
    "recall_micro": _accuracy,
}


def class_metric(kind: str, counts: Floats) -> float:
    """Compute a metric of classes from the counts of all members; NaN without rows."""
    return OF_CLASSES[kind](counts) if counts[1].sum() > 0 else np.nan


# ---- amounts ----


def mean_over_rows(losses: Floats, weights: Floats | None, total: Sum) -> float:
    """Return the weighted mean of a loss, (n, outputs), averaged over the outputs; NaN without rows."""
    weight = np.ones(len(losses)) if weights is None else weights
    sums = total(np.append(_weighted_sums(weight, losses), weight.sum()))
    return _ratio(sums[:-1].mean(), sums[-1])


def _weighted_sums(weights: Floats, values: Floats) -> Floats:
    """Of each column of `values`, (n, outputs): a matrix product in plain numpy.

    BLAS would do it in threads that spin for a while when they are done, on the cores that XGBoost's next round needs:
    its rounds took twice their time.
    """
    return np.array([(weights * column).sum() for column in values.T])


def r_squared(labels: Floats, predictions: Floats, weights: Floats | None, total: Sum) -> float:
    """Return R², averaged over the outputs; labels and predictions are (n, outputs).

    The mean of all members' labels is known before any square is taken: a difference of sums of squares would be noise
    where the labels are large and close to each other.
    """
    weight = np.ones(len(labels)) if weights is None else weights
    outputs = labels.shape[1]
    sums = total(np.concatenate([_weighted_sums(weight, labels), [weight.sum(), len(labels)]]))
    if sums[-1] < 2 or not sums[-2] > 0:  # noqa: PLR2004 - one row has no variance
        return np.nan
    means = sums[:outputs] / sums[-2]
    errors, deviations = (labels - predictions) ** 2, (labels - means) ** 2
    squares = total(np.concatenate([_weighted_sums(weight, errors), _weighted_sums(weight, deviations)]))
    left, there = squares[:outputs], squares[outputs:]
    constant = np.where(left == 0, 1.0, 0.0)  # as scikit-learn has it: right, or not
    return float(np.where(there > 0, 1.0 - left / np.where(there > 0, there, 1.0), constant).mean())
