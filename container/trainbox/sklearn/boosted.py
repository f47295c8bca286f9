"""`engine=xgboost`: a random forest of XGBoost, trained on the rows of all hosts without moving them.

It is one round of boosting with many parallel trees. XGBoost is imported only in these functions.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import trainbox
from trainbox.comm import Communicator
from trainbox.data import Table, take_part
from trainbox.log_lines import emit
from trainbox.model.plots import Picture
from trainbox.model.samples import thin_out
from trainbox.sklearn.data import EstimatorData, targets
from trainbox.sklearn.forests.growing import count_threads
from trainbox.sklearn.model import describe, save_importance, versions
from trainbox.sklearn.params import EstimatorParams
from trainbox.sklearn.scores import score_classes, score_numbers
from trainbox.tabular.texts import note_on_texts

if TYPE_CHECKING:
    import xgboost as xgb

#: The share of different rows among as many drawn with replacement.
_BOOTSTRAP_SHARE = 1 - math.exp(-1)
_ENOUGH_FOR_A_VECTOR = 3


def describe_engine() -> str:
    """Return the log line that explains how `engine=xgboost` differs from scikit-learn's forest."""
    return (
        "engine=xgboost grows a forest of another kind: each tree draws rows without replacement, splits lie between"
        " bins, and a leaf weighs rows by the second derivative of the loss. It is faster, and learns from the rows of"
        " all hosts; its trees and scores are not scikit-learn's. It is grown in one go, without checkpoints"
    )


def xgboost_parameters(params: EstimatorParams, data: EstimatorData) -> dict[str, Any]:
    """Return XGBoost's parameters: one round that grows all trees at once."""
    rows, features = sum(data.shares) if data.is_sharded else len(data.train.labels), len(data.features)
    settings: dict[str, Any] = {
        "objective": _objective(params, data),
        "num_parallel_tree": params.n_estimators,
        "learning_rate": 1.0,
        "tree_method": "hist",
        "max_depth": params.max_depth or 0,
        "subsample": _share_of_rows(params, rows),
        "colsample_bynode": _share_of_features(params, features),
        "reg_lambda": 1e-5,  # as XGBoost's own forests have it
        "seed": params.seed,
        "nthread": count_threads(params),
        "verbosity": min(params.verbose, 1) + 1,
    }
    if len(data.classes) >= _ENOUGH_FOR_A_VECTOR:
        settings["num_class"] = len(data.classes)
    if params.max_leaf_nodes is not None:
        settings |= {"max_leaves": params.max_leaf_nodes, "grow_policy": "lossguide"}
    if params.monotonic_cst is not None:
        settings["monotone_constraints"] = tuple(params.monotonic_cst)
    return settings


def _objective(params: EstimatorParams, data: EstimatorData) -> str:
    if params.task == "regression":
        return "reg:squarederror"
    return "multi:softprob" if len(data.classes) >= _ENOUGH_FOR_A_VECTOR else "binary:logistic"


def _share_of_rows(params: EstimatorParams, rows: int) -> float:
    if not params.draws_rows:
        return 1.0
    if isinstance(params.max_samples, int):
        return min(1.0, params.max_samples / rows)
    return params.max_samples if params.max_samples is not None else _BOOTSTRAP_SHARE


def _share_of_features(params: EstimatorParams, features: int) -> float:
    counts: Mapping[str, float] = {"sqrt": math.sqrt(features), "log2": math.log2(features), "all": features}
    chosen = params.max_features
    if chosen is None:
        chosen = "sqrt" if params.task == "classification" else "all"
    if isinstance(chosen, float):
        return chosen
    count = counts[chosen] if isinstance(chosen, str) else chosen
    return min(1.0, max(1, int(count)) / features)


def boost(params: EstimatorParams, data: EstimatorData, communicator: Communicator) -> "xgb.Booster":
    """Grow the forest on all hosts together; each host returns the complete forest.

    Raises:
        PeerError: A member is lost.
    """
    import xgboost as xgb  # noqa: PLC0415 - see the module's docstring

    from trainbox.xgboost.collective.group import collective  # noqa: PLC0415 - loads XGBoost

    own = data.train if data.is_sharded else take_part(data.train, communicator.rank, communicator.size)
    rows = f"{len(own.labels):,} rows of its own"
    emit(f"{communicator.members.name} grows {params.n_estimators} trees with XGBoost, {rows}")
    with collective(communicator):
        matrix = xgb.QuantileDMatrix(
            own.features,
            label=_encode(own, params, data),
            weight=own.weights,
            feature_types=_kinds(data),
            enable_categorical=bool(data.coding.features),
            nthread=count_threads(params),
        )
        return xgb.train(xgboost_parameters(params, data), matrix, num_boost_round=1)


def _kinds(data: EstimatorData) -> list[str] | None:
    """Texts are split as categories."""
    coded = data.coding.features
    return ["c" if place in coded else "q" for place in range(len(data.features))] if coded else None


def _encode(table: Table, params: EstimatorParams, data: EstimatorData) -> Any:  # noqa: ANN401 - numbers of either kind
    """The labels as XGBoost wants them: classes are numbered from 0."""
    labels = targets(table, params)
    return np.searchsorted(data.classes, labels) if data.classes else labels


def score_booster(booster: "xgb.Booster", params: EstimatorParams, data: EstimatorData) -> dict[str, float]:
    """Return the metrics of the validation rows, or else of the training rows, by their full names."""
    table = data.train if data.held_out is None else data.held_out
    labels = targets(table, params)
    predictions = booster.inplace_predict(table.features)
    if not data.classes:
        found = score_numbers(labels, predictions, table.weights)
    else:
        shares = np.column_stack([1 - predictions, predictions]) if predictions.ndim == 1 else predictions
        guesses = np.array(data.classes)[shares.argmax(axis=1)]
        found = score_classes(labels, guesses, shares.astype(np.float64), data.classes, weights=table.weights)
    return {f"{data.scored_channel}:{name}": score for name, score in found.items()}


def save_booster(
    booster: "xgb.Booster", params: EstimatorParams, data: EstimatorData, scores: Mapping[str, float]
) -> list[Picture]:
    """`xgboost-model`, as SageMaker's XGBoost containers load it, its card, and which features matter.

    Returns:
        The pictures to draw.

    Raises:
        OSError: A file cannot be written.
    """
    import xgboost as xgb  # noqa: PLC0415 - see the module's docstring

    from trainbox.xgboost.model import save_models  # noqa: PLC0415 - loads XGBoost

    card = describe(
        params,
        data,
        framework="xgboost",
        algorithm="xgboost",
        objective=_objective(params, data),
        absent="missing",
        iterations=1,
        metrics=scores,
        versions={**versions(), "xgboost": xgb.__version__},
        details={"trees": params.n_estimators},
    )
    save_models({"xgboost-model": bytes(booster.save_raw("ubj"))}, card, thin_out(data.train.features))
    gains: dict[str, Any] = booster.get_score(importance_type="gain")  # of trees one number each
    emit(f"saved {params.n_estimators} trees to {trainbox.model_dir() / 'xgboost-model'}")
    for text in note_on_texts(data.coding, data.columns, params.unseen):
        emit(text)
    return save_importance("gain", {name: gains.get(f"f{place}", 0.0) for place, name in enumerate(data.features)})
