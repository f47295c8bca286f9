"""The values of a job's metrics after a round.

XGBoost evaluates its own metrics, and sums them over members. Computed here are metrics that XGBoost does not have, the
two areas under a curve (`auc`, `aucpr`), which XGBoost averages over members, and those that it evaluates on the wrong
scale: for `binary:logitraw` it uses margins as probabilities.

XGBoost returns its values as text with 17 decimals, so the last digit may differ.
"""

from collections.abc import Collection, Mapping, Sequence
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import numpy.typing as npt
import xgboost as xgb

from trainbox.xgboost import scores
from trainbox.xgboost.collective.group import CollectiveGroup, SingleProcess
from trainbox.xgboost.params.catalogue import METRICS, split
from trainbox.xgboost.params.hyperparameters import XGBoostParams, metric_parameters
from trainbox.xgboost.params.rules import objective
from trainbox.xgboost.scores import Floats

Predictions = npt.NDArray[np.float32]

_AREAS = {"auc": scores.area_under_roc, "aucpr": scores.area_under_pr}
_ON_THE_WRONG_SCALE = ("logloss", "error")
_HALF = 0.5


class _Truth(msgspec.Struct, frozen=True, eq=False):
    """What is known of the rows of a matrix.

    Args:
        labels: (n, label columns)
        weights: (n,), or None where all rows count alike.
        is_plain: Whether they do, and each row is of a class and of no other in part.
    """

    labels: Floats
    weights: Floats | None
    is_plain: bool


class Truths:
    """The labels and weights of each matrix, read once and not in every round."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[xgb.DMatrix, _Truth] = WeakKeyDictionary()

    def of(self, matrix: xgb.DMatrix, params: XGBoostParams) -> _Truth:
        """Return labels and weights of a matrix, which does not change."""
        if matrix not in self._known:
            self._known[matrix] = _read_truth(matrix, params)
        return self._known[matrix]


class _Rows(msgspec.Struct, frozen=True, eq=False):
    """What there is to judge on one channel.

    Args:
        channel: Its name.
        truth: What is so.
        predictions: (n, outputs); of multi:* the probability of each class.
    """

    channel: str
    truth: _Truth
    predictions: Predictions


def evaluate(
    booster: xgb.Booster,
    matrices: Mapping[str, xgb.DMatrix],
    names: Sequence[str],
    *,
    params: XGBoostParams,
    iteration: int = 0,
    group: CollectiveGroup | None = None,
    truths: Truths | None = None,
) -> dict[str, float]:
    """Compute all metrics on all channels, over the rows of all members; all members call this with the same channels.

    Args:
        booster: The model; it is asked for the same metrics each time.
        matrices: The rows of this member by channel; a member may have none.
        names: The metrics, as `metric_names` gives them.
        params: The hyperparameters.
        iteration: The round, for XGBoost's own line.
        group: The members; None where there is one.
        truths: Of the matrices, kept from one call to the next.

    Returns:
        By names such as `train:auc`, in the order of channels and metrics; NaN where there is no such number.

    Raises:
        DataError: A label is no class.
        xgboost.core.XGBoostError: The labels are none that one of XGBoost's own metrics can judge.
    """
    computed_here = [name for name in names if _is_computed_here(name, params)]
    by_xgboost = [name for name in names if name not in computed_here]
    found = _evaluate_in_xgboost(booster, matrices, by_xgboost, params, iteration) if by_xgboost else {}
    for channel, matrix in matrices.items() if computed_here else ():
        truth = (truths or Truths()).of(matrix, params)
        rows = _Rows(channel, truth, _predict(booster, matrix, params))
        values = _evaluate_here(rows, computed_here, params, group or SingleProcess())
        found |= {f"{channel}:{name}": value for name, value in values.items()}
    return {f"{channel}:{name}": found[f"{channel}:{name}"] for channel in matrices for name in names}


# ---- XGBoost's own ----


def _evaluate_in_xgboost(
    booster: xgb.Booster,
    matrices: Mapping[str, xgb.DMatrix],
    names: Sequence[str],
    params: XGBoostParams,
    iteration: int,
) -> dict[str, float]:
    # Metrics add up in a booster, each once, in this order; to name them again costs nothing and changes no tree. A
    # metric that comes after the first round has not heard what the objective was told.
    written = {name: _as_xgboost_writes(name, params) for name in names}
    asked = list(dict.fromkeys(written.values()))
    booster.set_param([*metric_parameters(params).items(), *(("eval_metric", metric) for metric in asked)])
    line = booster.eval_set([(matrix, channel) for channel, matrix in matrices.items()], iteration)
    numbers = [float(field.rpartition(":")[2]) for field in line.split("\t")[1:]]
    places = [(channel, metric) for channel in matrices for metric in asked]
    found = dict(zip(places, numbers, strict=True))
    return {f"{channel}:{name}": found[channel, written[name]] for channel in matrices for name in names}


def _as_xgboost_writes(name: str, params: XGBoostParams) -> str:
    return f"{name}@{params.tweedie_variance_power:g}" if name == "tweedie-nloglik" else name


# ---- computed here ----


def _is_computed_here(name: str, params: XGBoostParams) -> bool:
    kind = split(name)[0]
    if kind in _AREAS:
        return not params.is_ranking  # there XGBoost has the mean over groups, and a group is whole on its member
    return METRICS[kind].is_computed_here or (kind in _ON_THE_WRONG_SCALE and objective(params) == "binary:logitraw")


def _read_truth(matrix: xgb.DMatrix, params: XGBoostParams) -> _Truth:
    count, weights, groups = matrix.num_row(), matrix.get_weight().astype(np.float64), matrix.get_group()
    if len(groups) and len(weights):
        weights = np.repeat(weights, groups)  # where rows come in groups, a weight is a group's
    labels = matrix.get_label().astype(np.float64).reshape(count, params.label_columns)
    is_whole = params.num_class is not None or scores.is_yes_or_no(labels[:, 0])
    return _Truth(labels, weights if len(weights) else None, is_whole and not len(weights))


def _predict(booster: xgb.Booster, matrix: xgb.DMatrix, params: XGBoostParams) -> Predictions:
    """(n, outputs), on the scale of the labels; of multi:* the probabilities, of binary:logitraw the margins."""
    labels_alone = objective(params) == "multi:softmax"
    predictions = np.asarray(booster.predict(matrix, output_margin=labels_alone), np.float32)
    predictions = predictions.reshape(matrix.num_row(), params.num_class or params.label_columns)
    if labels_alone:
        predictions = np.exp(predictions - predictions.max(axis=1, keepdims=True, initial=-np.inf))
        predictions /= predictions.sum(axis=1, keepdims=True)
    return predictions


def _evaluate_here(
    rows: _Rows, names: Sequence[str], params: XGBoostParams, group: CollectiveGroup
) -> dict[str, float]:
    kinds = {name: split(name)[0] for name in names}
    found: dict[str, float] = {}
    if any(kind in scores.OF_CLASSES for kind in kinds.values()):
        truth, guesses = rows.truth, _guess(rows, params)
        labels = truth.labels[:, 0]
        counted = scores.count_classes(rows.channel, labels, guesses, truth.weights, params.classes or 0)
        counts = group.total(counted.ravel()).reshape(counted.shape)
        found |= {name: scores.class_metric(kind, counts) for name, kind in kinds.items() if kind in scores.OF_CLASSES}
    areas = {name: kind for name, kind in kinds.items() if kind in _AREAS}
    if areas:
        judged = _areas({*areas.values()}, rows, params, group)
        found |= {name: judged[kind] for name, kind in areas.items()}
    rest = [name for name in names if name not in found]
    return found | {name: _amount_metric(name, rows, group) for name in rest}


def _guess(rows: _Rows, params: XGBoostParams) -> npt.NDArray[np.int64]:
    """The class that the model takes each row for."""
    if params.num_class is not None:
        best: npt.NDArray[np.int64] = rows.predictions.argmax(axis=1)
        return best
    predictions = rows.predictions[:, 0]
    return (predictions > (0.0 if objective(params) == "binary:logitraw" else _HALF)).astype(np.int64)


def _areas(kinds: Collection[str], rows: _Rows, params: XGBoostParams, group: CollectiveGroup) -> dict[str, float]:
    """The areas by kind, as XGBoost takes the mean over classes: by their rows for `auc`, all alike for `aucpr`."""
    wanted = _one_vs_rest(rows, params)
    if group.size == 1 and rows.truth.is_plain and set(kinds) == {"auc"}:  # what a tuner is mostly given
        areas = [scores.area_by_ranks(predictions, truth > 0) for predictions, truth in wanted]
        return {"auc": _mean(areas, [truth.sum() for _, truth in wanted])}
    counted = [scores.count_scores(predictions, truth, rows.truth.weights) for predictions, truth in wanted]
    curves = counted if group.size == 1 else [scores.merge_counts(each, group.concatenate) for each in counted]
    sizes = {"auc": [curve[1].sum() for curve in curves], "aucpr": [1.0] * len(curves)}
    return {kind: _mean([_AREAS[kind](curve) for curve in curves], sizes[kind]) for kind in kinds}


def _one_vs_rest(rows: _Rows, params: XGBoostParams) -> list[tuple[Predictions, Floats]]:
    """The scores of each class and whether a row is of it; of two classes, those of class 1."""
    labels = rows.truth.labels[:, 0]
    if params.num_class is None:
        return [(rows.predictions[:, 0], labels)]
    return [(column, (labels == place) * 1.0) for place, column in enumerate(rows.predictions.T)]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.average(values, weights=weights)) if sum(weights) > 0 else np.nan


def _amount_metric(name: str, rows: _Rows, group: CollectiveGroup) -> float:
    kind, threshold = split(name)
    labels, predictions = rows.truth.labels, rows.predictions.astype(np.float64)
    if kind == "r2":
        return scores.r_squared(labels, predictions, rows.truth.weights, group.total)
    if kind == "mse":
        return scores.mean_over_rows((labels - predictions) ** 2, rows.truth.weights, group.total)
    if kind == "logloss":  # of margins: log(1 + e^m) - y m, which does not overflow
        return scores.mean_over_rows(
            np.logaddexp(0.0, predictions) - labels * predictions, rows.truth.weights, group.total
        )
    chance = float(threshold or _HALF)
    with np.errstate(over="ignore"):
        wrong = (1.0 / (1.0 + np.exp(-predictions)) > chance) != (labels > _HALF)
    return scores.mean_over_rows(wrong * 1.0, rows.truth.weights, group.total)
