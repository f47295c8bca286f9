"""Train in this process, whole and interrupted at several rounds, and say whether the models are the same bytes.

A program of its own, so that it runs on any Python that has XGBoost: `python segments.py [--device cuda] [CASE …]`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import xgboost as xgb

from trainbox.contract.job import Channel
from trainbox.data import Table
from trainbox.xgboost.collective.group import SingleProcess
from trainbox.xgboost.metrics import evaluate
from trainbox.xgboost.params.hyperparameters import XGBoostParams, booster_parameters, metric_names, objective_of
from trainbox.xgboost.rows import shards
from trainbox.xgboost.rows.matrices import choose_bins, make_matrices
from trainbox.xgboost.rows.shards import RowPartition, Shard, read_shard, shard_of
from trainbox.xgboost.segments import Progress, is_finished
from trainbox.xgboost.training import boost

AT_QUANTILES = "bins at exact quantiles"
ON_DISK = "rows in blocks on the disk"
SAMPLING = {"subsample": 0.7, "colsample_bytree": 0.6, "colsample_bynode": 0.8}
CASES: dict[str, dict[str, object]] = {
    "sampling": {"objective": "binary:logistic", **SAMPLING},
    "no sampling": {"objective": "binary:logistic"},
    AT_QUANTILES: {"objective": "binary:logistic", "max_bin": 32, "bins": "quantiles", **SAMPLING},
    ON_DISK: {"objective": "binary:logistic", "external_memory": "on", **SAMPLING},
    "two outputs": {"objective": "reg:squarederror", "label_columns": 2, **SAMPLING},
    "a tree for both outputs": {
        "objective": "reg:squarederror",
        "label_columns": 2,
        "multi_strategy": "multi_output_tree",
    },
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
    "pruned by a second updater": {"objective": "binary:logistic", "updater": ("grow_colmaker", "prune"), "gamma": 1.0},
    "linear": {"objective": "reg:squarederror", "booster": "gblinear"},
    "ranking": {"objective": "rank:ndcg", "eval_metric": ("ndcg",), "group_column": "0"},
    "quantiles": {"objective": "reg:quantileerror", "quantile_alpha": (0.1, 0.9)},
    "counts": {"objective": "count:poisson", **SAMPLING},
    "survival": {"objective": "survival:cox", **SAMPLING},
    "margins": {"objective": "binary:logitraw", "eval_metric": ("logloss", "auc"), **SAMPLING},
    "huber": {"objective": "reg:pseudohubererror", "huber_slope": 0.5, "eval_metric": ("mphe",), **SAMPLING},
    "constraints": {"objective": "binary:logistic", "monotone_constraints": (1, 0, -1, 0, 0), **SAMPLING},
    "weights of features": {"objective": "binary:logistic", "feature_weights": (5.0, 1.0, 1.0, 1.0, 2.0), **SAMPLING},
    "pairs at random": {"objective": "rank:ndcg", "lambdarank_pair_method": "mean", "group_column": "0", **SAMPLING},
    "random bits of XGBoost itself": {"objective": "binary:logistic", "seed_per_iteration": True, **SAMPLING},
}
#: What is not done on a GPU.
ON_PROCESSORS = ("exact", AT_QUANTILES)


def table(params: XGBoostParams, seed: int) -> Table:
    """Rows whose label depends on the features, and on chance."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(240, 5)).astype(np.float32)
    score = features[:, 0] + features[:, 1] * features[:, 2] + random.normal(size=240)
    labels = np.digitize(score, [-0.5, 0.8][: (params.classes or 3) - 1]).astype(np.float32)
    if params.label_columns > 1:
        labels = np.stack([labels, features[:, 3]], axis=1)
    groups = np.repeat(np.arange(24), 10) if params.is_ranking else None
    return Table(labels, features, tuple("abcde"), (), None, groups)


def on_disk(table: Table, name: str, params: XGBoostParams, directory: Path, train: Shard | None) -> Shard:
    """A table in blocks of a hundred rows."""
    source = directory / f"{name}.csv"
    np.savetxt(source, np.column_stack([table.labels, table.features]), delimiter=",")
    with patch.object(shards, "BLOCK_ROWS", 100):
        blocks = directory / f"{name}-blocks"
        return read_shard(Channel(name=name, path=source), name, params, RowPartition(), like=train, spool=blocks)


def read(params: XGBoostParams, directory: Path) -> dict[str, Shard]:
    """The rows to learn from, and others."""
    read: dict[str, Shard] = {}
    for seed, name in enumerate(("train", "validation"), 1):
        rows = table(params, seed)
        is_on_disk = params.external_memory == "on"
        like = read.get("train")
        read[name] = on_disk(rows, name, params, directory, like) if is_on_disk else shard_of(rows, name, params)
    return read


def trained(params: XGBoostParams, stops: tuple[int, ...], shards: Mapping[str, Shard]) -> Progress:
    """Train, asked to stop after each of these rounds; each time it goes on from its newest checkpoint."""
    saved = progress = Progress()
    for stop_at in (*stops, None):
        made = None if params.method == "approx" else _make(shards, params)
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
    shards: Mapping[str, Shard], params: XGBoostParams, made: Mapping[str, xgb.DMatrix] | None
) -> Mapping[str, xgb.DMatrix]:
    return made or _make(shards, params)


def _make(shards: Mapping[str, Shard], params: XGBoostParams) -> Mapping[str, xgb.DMatrix]:
    return make_matrices(dict(shards), params, bins=choose_bins(shards["train"], params, members=1))


def _score(
    params: XGBoostParams, rounds: list[int], booster: xgb.Booster, step: int, due: Mapping[str, xgb.DMatrix]
) -> dict[str, float]:
    rounds.append(step)
    return evaluate(booster, due, metric_names(params), params=params, iteration=step, group=SingleProcess())


def _is_due(stop_at: int | None, rounds: list[int]) -> bool:
    return stop_at is not None and bool(rounds) and rounds[-1] >= stop_at


def check(names: Sequence[str], device: str) -> dict[str, bool]:
    """Whether each case comes to the same model."""
    same = {}
    for name in names:
        params = XGBoostParams(num_round=23, checkpoint_every=5, nthread=1, device=device, **CASES[name])  # type: ignore[arg-type]
        with TemporaryDirectory() as directory:
            rows = read(params, Path(directory))
            whole, interrupted = trained(params, (), rows), trained(params, (3, 11, 12, 19), rows)
        assert is_finished(interrupted.history, objective_of(params), params)
        same[name] = whole.model == interrupted.model and whole.history == interrupted.history
    return same


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    asked = parser.parse_args()
    print(json.dumps({"xgboost": xgb.__version__, "same": check(asked.cases, asked.device)}))
