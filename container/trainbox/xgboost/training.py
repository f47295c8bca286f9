"""The rounds of one model, segment by segment, with scores, until the last round, early stopping or a stop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

import trainbox
from trainbox import toolkit
from trainbox.errors import HyperparameterError
from trainbox.log_lines import emit
from trainbox.metrics import Metric
from trainbox.system.machine import read_machine
from trainbox.tabular.script import RemainingTime
from trainbox.xgboost.collective.group import CollectiveGroup
from trainbox.xgboost.metrics import Truths, evaluate
from trainbox.xgboost.params.declared_metrics import declare, line, metric_names, objective_of
from trainbox.xgboost.params.hyperparameters import XGBoostParams, booster_parameters
from trainbox.xgboost.rows.matrices import Bins
from trainbox.xgboost.rows.reading import BoostingData
from trainbox.xgboost.segments import (
    Progress,
    begin_segment,
    can_continue,
    check_decision,
    continue_booster,
    end_of,
    is_finished,
    warm_up_gpu,
)

#: Scores the model after a round on some of the matrices: `{"validation:auc": 0.84}`.
Score = Callable[[xgb.Booster, int, Mapping[str, xgb.DMatrix]], dict[str, float]]
#: The matrices of a segment, `train` first.
Matrices = Callable[[], Mapping[str, xgb.DMatrix]]
#: Tells the log the scores of a round.
LogScores = Callable[[int, Mapping[str, float]], None]
#: A custom objective: raw predictions and the matrix to gradients and Hessians, as `obj` of `xgboost.train`.
CustomObjective = Callable[[npt.NDArray[np.float32], xgb.DMatrix], tuple[npt.NDArray[Any], npt.NDArray[Any]]]

_SECONDS_BETWEEN_LINES = 30.0


def channels_due(step: int, params: XGBoostParams, channels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the channels on which the model is scored after a round.

    The rows trained on are by far the most, and to score them every round takes half of a job's time: they are scored
    in the first round, in every `eval_train_every`-th and in the last.
    """
    every = params.eval_train_every
    is_due = step == params.num_round - 1 or (every > 0 and (step == 0 or (step + 1) % every == 0))
    return channels if is_due else tuple(channel for channel in channels if channel != "train")


def train(
    params: XGBoostParams,
    group: CollectiveGroup,
    data: BoostingData,
    progress: Progress,
    bins: Bins,
    *,
    before: int = 0,
    objective: CustomObjective | None = None,
) -> Iterator[Progress]:
    """Train segment by segment; score and log each round.

    Args:
        params: The hyperparameters.
        group: The members, in a collective.
        data: The rows; they are freed where possible.
        progress: Where to continue.
        bins: How rows are binned.
        before: The number of rounds of the folds before this one, for the log.
        objective: A custom objective.
    """
    settings = booster_parameters(params, version=xgb.__version__, features=data.agreement.columns)
    names = metric_names(params)
    declared = {metric.name: metric for metric in declare(params)}
    truths = Truths()

    def score(booster: xgb.Booster, step: int, due: Mapping[str, xgb.DMatrix]) -> dict[str, float]:
        return evaluate(booster, due, names, params=params, iteration=step, group=group, truths=truths)

    def report(step: int, scores: Mapping[str, float]) -> None:
        if group.rank == 0:
            print(line(step, scores), flush=True)  # as XGBoost and the built-in write it
        trainbox.log(before + step, {declared[name]: value for name, value in scores.items()})

    return boost(
        params,
        {**settings, "device": find_device(params)},
        data.matrices(params, bins),
        progress,
        objective=objective_of(params),
        score=score,
        report=report,
        stop=lambda: group.any(trainbox.stop_requested()),
        gradients=objective,
    )


def log_final(params: XGBoostParams, step: int, scores: Mapping[str, float]) -> None:
    """Log the scores of the saved model once more, the objective last: a tuner takes the last value it finds."""
    if not scores:  # stopped, in a round in which none was due
        return
    print(line(step, scores), flush=True)
    trainbox.final({metric: scores[metric.name] for metric in declare(params) if metric.name in scores})


def boost(
    params: XGBoostParams,
    settings: Mapping[str, Any],
    matrices: Matrices,
    progress: Progress,
    *,
    objective: Metric,
    score: Score,
    report: LogScores,
    stop: Callable[[], bool],
    gradients: CustomObjective | None = None,
) -> Iterator[Progress]:
    """Train, and yield the progress after each segment; the last may be shorter.

    Args:
        params: The hyperparameters.
        settings: Those of XGBoost itself.
        matrices: Gives the matrices of a segment, `train` first: the same for all, or made anew for each.
        progress: Where to go on.
        objective: Decides about early stopping.
        score: Scores the model.
        report: Tells the log.
        stop: Whether to leave after this round; called once a round, on all members alike.
        gradients: A custom objective; by default that of the settings.

    Raises:
        TrainingError: Training is done, and early stopping has nothing to choose the round by.
    """
    remaining = RemainingTime(params.num_round, len(progress.history), "rounds", least=_SECONDS_BETWEEN_LINES)
    finished = is_finished(progress.history, objective, params)
    stopped = not finished and stop()
    booster: xgb.Booster | None = None
    while not finished and not stopped:
        start, history = len(progress.history), list(progress.history)
        rows = matrices()
        if booster is not None and can_continue(params):
            continue_booster(booster, params, start)
        else:
            if booster is None:
                warm_up_gpu(settings, params, rows)
            booster = begin_segment(settings, params, rows, progress)
        for step in range(start, min(end_of(params, start), params.num_round)):
            booster.update(rows["train"], step, gradients)
            due = channels_due(step, params, tuple(rows))
            scores = score(booster, step, {channel: rows[channel] for channel in due})
            history.append(scores)
            finished, stopped = is_finished(history, objective, params), stop()
            # After a stop the log has more scores than are kept: a resumed job has the same in each round.
            rest = {channel: rows[channel] for channel in rows if channel not in due}
            more = score(booster, step, rest) if rest and (finished or stopped) else {}
            if finished:
                scores |= more
            if more | scores:
                report(step, more | scores)
            remaining.update(step + 1)
            if finished or stopped:
                break
        progress = Progress(bytes(booster.save_raw("ubj")), tuple(history), more | scores, progress.former)
        yield progress
    if finished:
        check_decision(progress.history, objective, params)


# ---- devices ----


def find_device(params: XGBoostParams) -> str:
    """Return the device of this process.

    Raises:
        HyperparameterError: There is no such GPU, or this XGBoost cannot use any.
    """
    local_rank = toolkit.current_ranks().local_rank
    has_cuda = bool(xgb.build_info().get("USE_CUDA"))
    chosen = choose_device(params.runs_on, local_rank=local_rank, gpus=read_machine().gpus, has_cuda=has_cuda)
    if chosen != "cpu":
        emit(f"training on {chosen}")
    return chosen


def choose_device(asked: str, *, local_rank: int, gpus: int, has_cuda: bool) -> str:
    """Choose the device of a process; several processes of a host have one GPU each.

    XGBoost without a GPU trains on the processor after a warning, at the price of a GPU instance.

    Args:
        asked: `cpu`, `cuda` or `cuda:N`.
        local_rank: The place of this process on its host.
        gpus: How many GPUs the host has.
        has_cuda: Whether this XGBoost was built for GPUs.

    Raises:
        HyperparameterError: There is no such GPU, or this XGBoost cannot use any.
    """
    if asked == "cpu":
        return asked
    if not has_cuda:
        raise HyperparameterError(
            f"device is {asked}, and the XGBoost of this image was built without CUDA",
            hint="device=cpu, or an image of VARIANT=gpu",
        )
    number = int(asked.partition(":")[2] or local_rank)
    if number >= gpus:
        raise HyperparameterError(
            f"device is {asked}, and process {local_rank} of this host finds {gpus} GPU(s), no cuda:{number}",
            hint="device=cpu, an instance with more GPUs, or fewer processes_per_host",
        )
    return f"cuda:{number}"
