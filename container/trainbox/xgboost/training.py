"""The rounds of one model: segment by segment, scored as they are due, until all are done or somebody says stop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xgboost as xgb

from trainbox.metrics import Metric
from trainbox.tabular.pace import Pace
from trainbox.xgboost.params import Params
from trainbox.xgboost.segments import (
    Progress,
    begin_segment,
    can_go_on,
    check_decision,
    end_of,
    go_on,
    is_finished,
    prepare,
)

#: Scores the model after a round on some of the matrices: `{"validation:auc": 0.84}`.
Score = Callable[[xgb.Booster, int, Mapping[str, xgb.DMatrix]], dict[str, float]]
#: The matrices of a segment, `train` first.
Matrices = Callable[[], Mapping[str, xgb.DMatrix]]
#: Tells the log the scores of a round.
Report = Callable[[int, Mapping[str, float]], None]

_SECONDS_BETWEEN_LINES = 30.0


def channels_due(step: int, params: Params, channels: tuple[str, ...]) -> tuple[str, ...]:
    """On which channels the model is scored after a round.

    The rows trained on are by far the most, and to score them every round takes half of a job's time: they are scored
    in the first round, in every `eval_train_every`-th and in the last.
    """
    every = params.eval_train_every
    is_due = step == params.num_round - 1 or (every > 0 and (step == 0 or (step + 1) % every == 0))
    return channels if is_due else tuple(channel for channel in channels if channel != "train")


def boost(
    params: Params,
    settings: Mapping[str, Any],
    matrices: Matrices,
    progress: Progress,
    *,
    objective: Metric,
    score: Score,
    report: Report,
    stop: Callable[[], bool],
) -> Iterator[Progress]:
    """Train, and yield where training stands after each segment; the last may be cut short by the end or by a stop.

    Args:
        params: The hyperparameters.
        settings: Those of XGBoost itself.
        matrices: Gives the matrices of a segment, `train` first: the same for all, or made anew for each.
        progress: Where to go on.
        objective: Decides about early stopping.
        score: Scores the model.
        report: Tells the log.
        stop: Whether to leave after this round; called once a round, on all members alike.

    Raises:
        TrainingError: Training is done, and early stopping has nothing to choose the round by.
    """
    pace = Pace(params.num_round, len(progress.history), "rounds", least=_SECONDS_BETWEEN_LINES)
    finished = is_finished(progress.history, objective, params)
    stopped = not finished and stop()
    booster: xgb.Booster | None = None
    while not finished and not stopped:
        start, history = len(progress.history), list(progress.history)
        rows = matrices()
        if booster is not None and can_go_on(params):
            go_on(booster, params, start)
        else:
            if booster is None:
                prepare(settings, params, rows)
            booster = begin_segment(settings, params, rows, progress)
        for step in range(start, min(end_of(params, start), params.num_round)):
            booster.update(rows["train"], step)
            due = channels_due(step, params, tuple(rows))
            scores = score(booster, step, {channel: rows[channel] for channel in due})
            history.append(scores)
            finished, stopped = is_finished(history, objective, params), stop()
            # Of a stop the log shows more than is kept: the same rounds shall have the same scores in a resumed job.
            rest = {channel: rows[channel] for channel in rows if channel not in due}
            more = score(booster, step, rest) if rest and (finished or stopped) else {}
            if finished:
                scores |= more
            if more | scores:
                report(step, more | scores)
            pace.tell(step + 1)
            if finished or stopped:
                break
        progress = Progress(bytes(booster.save_raw("ubj")), tuple(history), more | scores, progress.former)
        yield progress
    if finished:
        check_decision(progress.history, objective, params)
