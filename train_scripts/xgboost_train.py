"""Gradient boosted trees with XGBoost, from the channel `train` to `xgboost-model`.

    trainbox run xgboost --channel train=DIR --channel validation=DIR --hp num_round=100 --hp max_depth=5
    python train_scripts/xgboost_train.py --num_round 100 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=xgboost -v TREE:/opt/ml IMAGE train

Channels: `train`, and `validation` or `test`, of CSV or Parquet files, the label first. Hyperparameters have the names
of SageMaker's built-in XGBoost. The metrics of the second channel are always called `validation:…`, so that a tuner's
objective does not change with the channel's name; the objective is the last of `eval_metric`, as XGBoost has it.

A resumed job gives the same model as one that was never interrupted, bit for bit. XGBoost before 3.4 cannot save its
random generator, so training goes in segments of `checkpoint_every` rounds: each starts a new Booster from the bytes of
the last one, with a seed of its own; checkpoints lie between segments alone. Interrupted or not, the same segments run.
"""

import hashlib
import json
import math
import sys
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xgboost as xgb
from msgspec import Meta

import trainbox
from trainbox.channels import Table, read_table
from trainbox.errors import CheckpointError, DataError, HyperparameterError, RunError

DEFAULT_METRIC = {
    "reg:squarederror": "rmse",
    "reg:squaredlogerror": "rmsle",
    "reg:logistic": "rmse",
    "reg:pseudohubererror": "mphe",
    "reg:absoluteerror": "mae",
    "reg:gamma": "gamma-nloglik",
    "reg:tweedie": "tweedie-nloglik@1.5",
    "count:poisson": "poisson-nloglik",
    "binary:logistic": "logloss",
    "binary:logitraw": "logloss",
    "binary:hinge": "error",
    "multi:softmax": "mlogloss",
    "multi:softprob": "mlogloss",
}
MAXIMIZED = {"auc", "aucpr", "map", "ndcg", "pre"}
MINIMIZED = {"rmse", "rmsle", "mae", "mape", "mphe", "logloss", "mlogloss", "error", "merror"}
MINIMIZED |= {"poisson-nloglik", "gamma-nloglik", "gamma-deviance", "tweedie-nloglik"}
OURS = {"num_round", "eval_metric", "early_stopping_rounds", "checkpoint_every", "seed"}  # the rest goes to XGBoost
FREE = {"num_round", "early_stopping_rounds", "nthread", "verbosity"}  # shapes no tree: a resumed job may change it
ALIASES = {"eta": "learning_rate", "gamma": "min_split_loss", "lambda": "reg_lambda", "alpha": "reg_alpha"}

History = list[dict[str, float]]  # the metrics of each round, by name
Objective = Literal[*DEFAULT_METRIC]  # type: ignore[valid-type]  # mypy knows only literals that are written out
Share = Annotated[float, Meta(gt=0, le=1)]


class Params(msgspec.Struct, frozen=True, kw_only=True, rename={"lambda_": "lambda"}):
    """The hyperparameters; one left out has XGBoost's own default."""

    num_round: Annotated[int, Meta(ge=1, description="boosting rounds")]
    objective: Annotated[Objective, Meta(description="what is learnt from the labels")] = "reg:squarederror"
    num_class: Annotated[int, Meta(ge=2, description="number of classes, for multi:* alone")] | None = None
    eval_metric: Annotated[tuple[str, ...], Meta(description="one or more; the last is the objective")] = ()
    early_stopping_rounds: Annotated[int, Meta(ge=1, description="patience, in rounds without gain")] | None = None
    checkpoint_every: Annotated[int, Meta(ge=1, description="rounds from one checkpoint to the next")] = 50
    eta: Annotated[float, Meta(ge=0, le=1, description="learning rate")] | None = None
    gamma: Annotated[float, Meta(ge=0, description="least loss reduction that a split must bring")] | None = None
    max_depth: Annotated[int, Meta(ge=0, description="deepest tree; 0 is no limit")] = 6
    max_leaves: Annotated[int, Meta(ge=0, description="most leaves of a tree; 0 is no limit")] = 0
    grow_policy: Annotated[Literal["depthwise", "lossguide"], Meta(description="order of splits")] = "depthwise"
    min_child_weight: Annotated[float, Meta(ge=0, description="least sum of weights in a leaf")] = 1.0
    max_delta_step: Annotated[float, Meta(ge=0, description="largest output of a leaf; 0 is no limit")] = 0.0
    subsample: Annotated[Share, Meta(description="share of the rows drawn in each round")] = 1.0
    colsample_bytree: Annotated[Share, Meta(description="share of the features drawn for each tree")] = 1.0
    colsample_bylevel: Annotated[Share, Meta(description="share of the features drawn for each level")] = 1.0
    colsample_bynode: Annotated[Share, Meta(description="share of the features drawn for each split")] = 1.0
    lambda_: Annotated[float, Meta(ge=0, description="L2 regularization")] | None = None
    alpha: Annotated[float, Meta(ge=0, description="L1 regularization")] | None = None
    scale_pos_weight: Annotated[float, Meta(gt=0, description="weight of the positive class")] | None = None
    base_score: Annotated[float, Meta(description="first prediction; else estimated from labels")] | None = None
    tree_method: Annotated[Literal["auto", "hist", "approx", "exact"], Meta(description="how to find splits")] = "auto"
    max_bin: Annotated[int, Meta(ge=2, description="bins of a feature's histogram")] = 256
    num_parallel_tree: Annotated[int, Meta(ge=1, description="trees in each round")] = 1
    tweedie_variance_power: Annotated[float, Meta(gt=1, lt=2, description="for reg:tweedie alone")] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31, description="of every random choice")] = 0
    nthread: Annotated[int, Meta(ge=1, description="threads; else one for each processor")] | None = None
    verbosity: Annotated[int, Meta(ge=0, le=3, description="how much XGBoost itself says")] = 1
    learning_rate: Annotated[float, Meta(ge=0, le=1, description="another name of eta")] | None = None
    min_split_loss: Annotated[float, Meta(ge=0, description="another name of gamma")] | None = None
    reg_lambda: Annotated[float, Meta(ge=0, description="another name of lambda")] | None = None
    reg_alpha: Annotated[float, Meta(ge=0, description="another name of alpha")] | None = None

    def __post_init__(self) -> None:
        given = as_dict(self)
        problems = [f"{a} and {b} are one and the same" for a, b in ALIASES.items() if a in given and b in given]
        if self.objective.startswith("multi:") != (self.num_class is not None):
            problems.append(f"objective is {self.objective}; multi:* and only they need num_class")
        known = MAXIMIZED | MINIMIZED
        unknown = [name for name in self.eval_metric if kind(name) not in known]
        problems += [f"eval_metric {name} is none of {', '.join(sorted(known))}" for name in unknown]
        if problems:
            raise ValueError("; ".join(problems))


def as_dict(params: Params) -> dict[str, Any]:
    """What was given or has a default, by its name as a hyperparameter."""
    values: dict[str, Any] = json.loads(msgspec.json.encode(params))
    return {name: value for name, value in values.items() if value is not None}


def kind(metric: str) -> str:
    """`error@0.7` is an error, `validation:ndcg@10-` an NDCG."""
    return metric.rpartition(":")[2].partition("@")[0].rstrip("-")


def metric_names(params: Params) -> list[str]:
    """What XGBoost evaluates in each round; the objective last."""
    power = params.tweedie_variance_power
    default = DEFAULT_METRIC[params.objective] if power is None else f"tweedie-nloglik@{power:g}"
    return list(dict.fromkeys(params.eval_metric)) or [default]


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs; `trainbox metrics xgboost --hp num_round=1 --hp eval_metric=auc` shows it."""
    names = [f"{channel}:{name}" for channel in ("train", "validation") for name in metric_names(params)]
    return tuple(trainbox.Metric(name, "maximize" if kind(name) in MAXIMIZED else "minimize") for name in names)


def main() -> None:
    """Read, resume, train in segments, save."""
    params = trainbox.hyperparameters(Params)
    tables = read_tables(params)
    matrices = make_matrices(tables, params)
    declared = {metric.name: metric for metric in metrics(params)}
    objective = declared[f"{list(tables)[-1]}:{metric_names(params)[-1]}"]
    settings = {k: v for k, v in as_dict(params).items() if k not in OURS} | {"eval_metric": metric_names(params)}

    store = trainbox.checkpoints()
    identity = identify(params, tables)
    model, history = resume(store, identity, params)

    finished = is_finished(history, objective, params)
    while not finished and not trainbox.stop_requested():
        # A segment: a new Booster, with a seed that the segment's place alone decides.
        start = len(history)
        segment = settings | {"seed": (params.seed + start * 1_000_003) % 2**31}
        if params.tree_method == "approx":  # its bins depend on the rows drawn when a matrix is first used
            matrices = make_matrices(tables, params)
        booster = xgb.Booster(segment, list(matrices.values()), model_file=model)
        for step in range(start, start + params.checkpoint_every):
            booster.update(matrices["train"], step)
            history.append(evaluate(booster, matrices, metric_names(params)))
            trainbox.log(step, {declared[name]: value for name, value in history[-1].items()})
            finished = is_finished(history, objective, params)
            if finished or trainbox.stop_requested():
                break
        model = booster.save_raw("ubj")
        if len(history) % params.checkpoint_every == 0:
            with store.writing(len(history), info=identity) as path:
                (path / "model.ubj").write_bytes(model)
                (path / "history.json").write_text(json.dumps(history))

    if model is None:
        say("asked to stop before the first round: there is no model to save")
        return
    if not finished:
        lost = len(history) % params.checkpoint_every
        say(f"asked to stop: {len(history)} rounds are saved; a resumed job repeats the last {lost} of them")
    best = best_round(history, objective)
    chosen = best if params.early_stopping_rounds else len(history) - 1
    save(model, chosen, {"complete": finished, "best_iteration": best, "metrics": history[chosen]}, tables, params)
    trainbox.final({declared[name]: value for name, value in history[chosen].items()})  # the saved model's, for a tuner


def read_tables(params: Params) -> dict[str, Table]:
    """`train`, and `validation` where there is a channel of that name or `test`."""
    job = trainbox.current_job()
    if len(job.hosts) > 1 or (job.settings.processes_per_host or 1) > 1:
        raise RunError("xgboost_train.py trains in one process", hint="one instance, and no processes_per_host")
    tables = {"train": read_table(trainbox.channel("train"))}
    held_out = [name for name in ("validation", "test") if name in job.channels][:1]
    for name in held_out:
        tables["validation"] = read_table(trainbox.channel(name), like=tables["train"])
    if params.early_stopping_rounds and not held_out:
        raise DataError("early_stopping_rounds needs a channel 'validation' or 'test'", hint="add one, or leave it out")
    for name in sorted({*job.channels} - {"train", "code", *held_out}):
        say(f"the channel {name!r} is not read")
    for name, table in tables.items():
        check_labels(name, table, params)
    return tables


def check_labels(channel: str, table: Table, params: Params) -> None:
    """Refuse labels that the objective cannot learn from."""
    found = np.unique(table.labels)
    shown = ", ".join(f"{label:g}" for label in found[:10]) + ", …" * (len(found) > 10)  # noqa: PLR2004
    classes = 2 if params.objective.startswith("binary:") else params.num_class
    if classes and not np.isin(found, range(classes)).all():
        raise DataError(f"channel {channel}: the labels are {shown}", hint=f"give labels from 0 to {classes - 1}")
    if len(found) == 1 and channel == "train":
        raise DataError(f"channel train: every label is {shown}: there is nothing to learn")


def make_matrices(tables: dict[str, Table], params: Params) -> dict[str, xgb.DMatrix]:
    """Binned once where the method works on histograms, which saves memory and time."""
    matrices: dict[str, xgb.DMatrix] = {}
    for name, table in tables.items():
        rows = (table.features, table.labels)
        if params.tree_method in {"approx", "exact"}:
            matrices[name] = xgb.DMatrix(*rows, nthread=params.nthread)
        else:
            bins = {"ref": matrices.get("train"), "max_bin": params.max_bin}
            matrices[name] = xgb.QuantileDMatrix(*rows, nthread=params.nthread, **bins)
    return matrices


def identify(params: Params, tables: dict[str, Table]) -> dict[str, str]:
    """Everything that shapes the model: a checkpoint of something else must not be continued."""
    identity = {name: json.dumps(value) for name, value in as_dict(params).items() if name not in FREE}
    for channel, table in tables.items():
        digest = hashlib.sha256(table.labels.tobytes())
        digest.update(table.features.data)
        shape = " x ".join(map(str, table.features.shape))
        identity[f"channel {channel}"] = f"{shape}, SHA-256 {digest.hexdigest()[:16]}"
    return identity | {"xgboost": xgb.__version__}


def resume(store: trainbox.Checkpoints, identity: dict[str, str], params: Params) -> tuple[bytearray | None, History]:
    """The newest checkpoint's model, and the metrics of its rounds."""
    found = store.latest()
    if found is None:
        return None, []
    differing = [name for name in sorted({*identity, *found.info}) if identity.get(name) != found.info.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {found.info.get(name)} and is {identity.get(name)}" for name in differing)
        what = f"the checkpoint {found.path} cannot be continued: {listed}"
        raise CheckpointError(what, hint="take the values back, or start with an empty checkpoint directory")
    if found.step > params.num_round:
        raise HyperparameterError(f"num_round is {params.num_round}, but {found.path} has {found.step} rounds")
    history = json.loads((found.path / "history.json").read_text())
    return bytearray((found.path / "model.ubj").read_bytes()), history


def evaluate(booster: xgb.Booster, matrices: dict[str, xgb.DMatrix], names: list[str]) -> dict[str, float]:
    """All metrics of all channels, out of XGBoost's own line: `[3]<TAB>train-auc:0.86<TAB>validation-auc:0.84`."""
    line = booster.eval_set([(matrix, channel) for channel, matrix in matrices.items()])
    values = [float(field.rpartition(":")[2]) for field in line.split("\t")[1:]]
    return dict(zip([f"{channel}:{name}" for channel in matrices for name in names], values, strict=True))


def best_round(history: History, objective: trainbox.Metric) -> int:
    """The first round with the best objective; not-a-number is never best."""
    sign = 1 if objective.goal == "maximize" else -1
    scores = [-math.inf if math.isnan(values[objective.name]) else sign * values[objective.name] for values in history]
    return scores.index(max(scores))


def is_finished(history: History, objective: trainbox.Metric, params: Params) -> bool:
    """Whether all rounds are done, or early stopping ends them: by the metrics alone, so that a resumed job agrees."""
    if not history or len(history) >= params.num_round:
        return bool(history)
    patience = params.early_stopping_rounds
    return patience is not None and len(history) - 1 - best_round(history, objective) >= patience


def save(model: bytearray, chosen: int, about: dict[str, Any], tables: dict[str, Table], params: Params) -> None:
    """`xgboost-model`, which SageMaker's XGBoost containers load too, and what one must know of it, `model.json`."""
    booster = xgb.Booster(model_file=model)
    if chosen + 1 < booster.num_boosted_rounds():
        booster = booster[: chosen + 1]
    # Feature names stay out of the model: with them XGBoost refuses to predict from a matrix that has none.
    versions = {"trainbox": trainbox.__version__, "xgboost": xgb.__version__, "python": sys.version.split()[0]}
    about |= {"algorithm": "xgboost", "rounds": chosen + 1, "features": tables["train"].feature_names}
    about |= {"hyperparameters": as_dict(params), "versions": versions}
    trainbox.save("model.json", msgspec.json.format(msgspec.json.encode(about), indent=1))
    trainbox.save("xgboost-model", bytes(booster.save_raw("ubj")))
    say(f"saved {chosen + 1} rounds to {trainbox.model_dir() / 'xgboost-model'}")


def say(text: str) -> None:
    """Tell the reader of the log about a choice."""
    print(f"xgboost_train: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
