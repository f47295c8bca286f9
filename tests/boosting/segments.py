"""Train in this process, whole and interrupted at several rounds, and say whether the models are the same bytes.

A program of its own, so that it runs on any Python that has XGBoost: `python segments.py`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from unittest.mock import patch

import numpy as np
import xgboost as xgb

from trainbox.channels import Table
from trainbox.xgboost import (
    Alone,
    Params,
    Progress,
    boost,
    booster_parameters,
    evaluate,
    is_finished,
    matrices,
    metric_names,
    objective_of,
)
from trainbox.xgboost.matrices import make_matrices
from trainbox.xgboost.shards import Shard, shard_of

#: As of many rows.
EXACT = "bins at exact quantiles"
SAMPLING = {"subsample": 0.7, "colsample_bytree": 0.6, "colsample_bynode": 0.8}
CASES: dict[str, dict[str, object]] = {
    "sampling": {"objective": "binary:logistic", **SAMPLING},
    "no sampling": {"objective": "binary:logistic"},
    EXACT: {"objective": "binary:logistic", "max_bin": 32, **SAMPLING},
    "early stopping": {"objective": "binary:logistic", "early_stopping_rounds": 6, "eta": 0.9, **SAMPLING},
    "dart": {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3, **SAMPLING},
    "softprob": {"objective": "multi:softprob", "num_class": 3, **SAMPLING},
    "custom metrics": {"objective": "multi:softmax", "num_class": 3, "eval_metric": ("f1_macro", "accuracy")},
    "numbers": {"objective": "reg:squarederror", "eval_metric": ("r2", "rmse"), **SAMPLING},
    "absolute error": {"objective": "reg:absoluteerror", **SAMPLING},
    "lossguide": {"objective": "binary:logistic", "grow_policy": "lossguide", "max_leaves": 6, **SAMPLING},
    "several trees a round": {"objective": "binary:logistic", "num_parallel_tree": 3, **SAMPLING},
    "approx": {"objective": "binary:logistic", "tree_method": "approx", **SAMPLING},
    "exact": {"objective": "binary:logistic", "tree_method": "exact", "subsample": 0.7},
    "linear": {"objective": "reg:squarederror", "booster": "gblinear"},
    "ranking": {"objective": "rank:ndcg", "eval_metric": ("ndcg",), "group_column": "0"},
    "quantiles": {"objective": "reg:quantileerror", "quantile_alpha": (0.1, 0.9)},
    "random bits of XGBoost itself": {"objective": "binary:logistic", "seed_per_iteration": True, **SAMPLING},
}


def table(params: Params, seed: int) -> Table:
    """Rows whose label depends on the features, and on chance."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(240, 5)).astype(np.float32)
    score = features[:, 0] + features[:, 1] * features[:, 2] + random.normal(size=240)
    labels = np.digitize(score, [-0.5, 0.8][: (params.classes or 3) - 1]).astype(np.float32)
    groups = np.repeat(np.arange(24), 10) if params.is_ranking else None
    return Table(labels, features, tuple("abcde"), (), None, groups)


def trained(params: Params, stops: tuple[int, ...]) -> Progress:
    """Train, asked to stop after each of these rounds; each time it goes on from its newest checkpoint."""
    shards = {"train": shard_of(table(params, 1), "train", params)}
    shards["validation"] = shard_of(table(params, 2), "validation", params)
    saved = progress = Progress()
    for stop_at in (*stops, None):
        made = None if params.method == "approx" else make_matrices(shards, params, members=1)
        rounds: list[int] = []

        for progress in boost(
            params,
            booster_parameters(params, version=xgb.__version__),
            partial(_matrices, shards, params, made),
            saved,
            objective=objective_of(params),
            score=partial(_score, params, rounds),
            report=lambda _step, _scores: None,
            stop=partial(_is_due, stop_at, rounds),
        ):
            if len(progress.history) % params.checkpoint_every == 0:
                saved = progress
    return progress


def _matrices(
    shards: Mapping[str, Shard], params: Params, made: Mapping[str, xgb.DMatrix] | None
) -> Mapping[str, xgb.DMatrix]:
    return made or make_matrices(shards, params, members=1)


def _score(
    params: Params, rounds: list[int], booster: xgb.Booster, step: int, due: Mapping[str, xgb.DMatrix]
) -> dict[str, float]:
    rounds.append(step)
    return evaluate(booster, due, metric_names(params), params=params, iteration=step, group=Alone())


def _is_due(stop_at: int | None, rounds: list[int]) -> bool:
    return stop_at is not None and bool(rounds) and rounds[-1] >= stop_at


def check(names: Iterator[str] | list[str]) -> dict[str, bool]:
    """Whether each case comes to the same model."""
    same = {}
    for name in names:
        params = Params(num_round=23, checkpoint_every=5, nthread=1, **CASES[name])  # type: ignore[arg-type]
        with patch.object(matrices, "LEAST_ROWS", 0 if name == EXACT else matrices.LEAST_ROWS):
            whole, interrupted = trained(params, ()), trained(params, (3, 11, 12, 19))
        assert is_finished(interrupted.history, objective_of(params), params)
        same[name] = whole.model == interrupted.model and whole.history == interrupted.history
    return same


if __name__ == "__main__":
    print(json.dumps({"xgboost": xgb.__version__, "same": check(sys.argv[1:] or list(CASES))}))
