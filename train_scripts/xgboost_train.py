"""Gradient boosted trees with XGBoost, from the channel `train` to `xgboost-model`.

    trainbox run xgboost --channel train=DIR --channel validation=DIR --hp num_round=100 --hp max_depth=5
    python train_scripts/xgboost_train.py --num_round 100 --channel train=DIR --channel validation=DIR
    docker run -e TRAINBOX_SCRIPT=xgboost -v TREE:/opt/ml IMAGE train

A drop-in for SageMaker's built-in XGBoost: the same hyperparameters, metric names and model file, and the same channels
(`train`, and `validation` or `test`; CSV, Parquet, libsvm or recordio-protobuf, the label first). The metrics of the
second channel are always called `validation:…`, so that a tuner's objective does not change with the channel's name;
the objective is the last of `eval_metric`.

A resumed job gives the same model as one that was never interrupted, bit for bit: training goes in segments of
`checkpoint_every` rounds, each from the bytes of the last one with a seed of its own, and checkpoints lie between
segments alone. On several hosts, or several GPUs of one, every process trains the same model on its own rows.
"""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import trainbox
from trainbox.contract.job import default_in_environment

if __name__ == "__main__":
    trainbox.stop_requested()  # from here on a stop is heard: the imports below take seconds
    # Threads of OpenMP spin for milliseconds after each of a round's hundred parallel loops. Where something else wants
    # the processor that takes ten times as long as the loops do.
    default_in_environment("OMP_WAIT_POLICY", "passive")

import numpy as np
import numpy.typing as npt

from trainbox.errors import RunError, Stopped
from trainbox.tabular.lean import unlisted, without

# Nine tenths of the time of this import are for classifiers and data frames, and for what SciPy copies of NumPy.
with without("sklearn", "pandas", "xgboost.sklearn"), unlisted(np, "f2py", "testing"):
    import xgboost as xgb

    from trainbox.xgboost import (
        Alone,
        Bins,
        Data,
        Fold,
        FoldResult,
        Group,
        Matrix,
        Params,
        Progress,
        Truths,
        best_round,
        boost,
        booster_parameters,
        check_members,
        chosen_round,
        collective,
        cut,
        declare,
        describe,
        draw_pictures,
        evaluate,
        explain,
        find_device,
        identify,
        is_finished,
        join_folds,
        line,
        load_folds,
        meet,
        metric_names,
        notes,
        objective_of,
        out_of_fold,
        plain_matrix,
        predictions_file,
        read_data,
        read_former,
        resume,
        save_curves,
        save_fold_curves,
        save_folds,
        save_importance,
        save_models,
        save_output,
        save_progress,
        split_folds,
        summarize,
        take_rows,
        thin_rows,
    )


def metrics(params: Params) -> tuple[trainbox.Metric, ...]:
    """What this script logs; `trainbox metrics xgboost --hp num_round=1 --hp eval_metric=auc` shows it."""
    return declare(params)


def main() -> None:
    """Read, agree with the other processes of the job, and train one model or one for each fold."""
    params = trainbox.hyperparameters(Params)
    for note in notes(params):
        say(note)
    store = trainbox.checkpoints()
    with meet() as circle, ExitStack() as files:
        check_members(params, circle.size)
        is_first = circle.members.is_first  # it logs and saves
        found = store.latest() if not params.kfold else None
        data = read_data(params, circle, files, checkpoint=found.step if found else None)
        if params.kfold and circle.size > 1:
            raise RunError("cross-validation trains in one process", hint="one instance, and no processes_per_host")
        former = read_former(params, data.agreement, circle)
        if params.kfold:
            cross_validate(params, store, data)
            return
        bins = data.bins(params, found)
        identity = identify(params, data.agreement, bins, former)
        thin = thin_rows(data.shards["train"]) if is_first else None
        progress = resume(found, data.agreement, circle, identity, params, former=former)
        with collective(circle) as group:
            for latest in train(params, group, data, progress, bins):
                progress = latest
                if is_first and len(progress.history) % params.checkpoint_every == 0:
                    save_progress(store, identity, progress)
        if thin is not None:
            finish(params, data, progress, thin)


def train(
    params: Params, group: Group, data: Data, progress: Progress, bins: Bins, *, before: int = 0
) -> Iterator[Progress]:
    """Segment after segment, each round scored and logged; `before` are the rounds of the folds before this one."""
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
    )


def cross_validate(params: Params, store: trainbox.Checkpoints, data: Data) -> None:
    """A model for each fold, scored on the rows that it has not seen; a checkpoint after each."""
    rows = join_folds([shard.table for shard in data.shards.values()])
    folds = split_folds(rows.labels, params, rows.groups)
    found = store.latest()
    bins = data.bins(params, found)
    identity = identify(params, data.agreement, bins)
    results = load_folds(found, identity)
    for fold in folds[len(results) :]:
        number = f"fold {len(results) + 1} of {len(folds)}"
        say(f"{number}: {len(fold.train):,} rows to learn from, {len(fold.held_out):,} held out")
        held_out = take_rows(rows, fold.held_out)
        part = data.of({"train": take_rows(rows, fold.train), "validation": held_out}, params)
        progress = Progress()
        for latest in train(params, Alone(), part, progress, bins, before=params.num_round * len(results)):
            progress = latest
        if progress.model is None or not is_finished(progress.history, objective_of(params), params):
            say(f"asked to stop in {number}: a resumed job begins with this fold")
            return
        chosen = chosen_round(progress.history, objective_of(params), params)
        model = cut(progress.model, chosen + 1)
        said = model.predict(plain_matrix(held_out, params))
        results.append(FoldResult(bytes(model.save_raw("ubj")), progress.history[chosen], said, progress.history))
        save_folds(store, identity, results)
    finish_folds(params, data, rows.labels, folds, results)


def finish(params: Params, data: Data, progress: Progress, thin: Matrix) -> None:
    """Save the model, of the best round where early stopping chooses, with what one must know of it."""
    history, objective = progress.history, objective_of(params)
    if progress.model is None or not history:
        say("asked to stop before the first round: there is no model to save")
        return
    complete = is_finished(history, objective, params)
    if not complete:
        lost = len(history) % params.checkpoint_every
        say(f"asked to stop: {len(history)} rounds are saved; a resumed job repeats the last {lost} of them")
    chosen, best = chosen_round(history, objective, params), best_round(history, objective)
    rounds = progress.former + chosen + 1
    model, features = cut(progress.model, rounds), data.agreement.columns
    best = best_round(history, objective)
    scores = {**history[chosen], **(progress.scores if chosen == len(history) - 1 else {})}
    card = describe(
        params,
        features,
        coding=data.agreement.coding,
        complete=complete,
        iterations=rounds,
        best_iteration=None if best is None else progress.former + best,
        metrics=scores,
    )
    save_models({"xgboost-model": bytes(model.save_raw("ubj"))}, card, thin)
    pictures = save_importance(model, features), save_curves(history, chosen)
    say(f"saved {rounds} rounds to {trainbox.model_dir() / 'xgboost-model'}")
    for text in explain(data.agreement.coding, features, params.unseen):
        say(text)
    conclude(params, chosen, scores)
    if complete:
        draw_pictures(*pictures)


def finish_folds(
    params: Params, data: Data, labels: npt.NDArray[np.float32], folds: Sequence[Fold], results: Sequence[FoldResult]
) -> None:
    """Save the models of all folds, what each said of the rows that it had not seen, and the means of the scores."""
    scores = summarize([result.scores for result in results])
    card = describe(
        params,
        data.agreement.columns,
        coding=data.agreement.coding,
        metrics={name: score["mean"] for name, score in scores.items()},
        deviations={name: score["std"] for name, score in scores.items()},
        folds=tuple(result.scores for result in results),
    )
    models = {f"xgboost-model-{number}": result.model for number, result in enumerate(results)}
    save_models(models, card, thin_rows(data.shards["train"]))
    said = out_of_fold(folds, results)
    save_output("predictions.csv", predictions_file(labels, said, classes=params.classes))
    picture = save_fold_curves(results, params)
    say(f"saved {len(results)} models to {trainbox.model_dir()}: xgboost-model-0, …")
    for text in explain(data.agreement.coding, data.agreement.columns, params.unseen):
        say(text)
    for name, score in scores.items():
        say(f"{name}: {score['mean']:.6g} on average over the folds, standard deviation {score['std']:.6g}")
    conclude(params, params.num_round, {name: score["mean"] for name, score in scores.items()})
    draw_pictures(picture)


def conclude(params: Params, step: int, scores: Mapping[str, float]) -> None:
    """The scores of what is saved once more, the objective last: a tuner takes the last value that it finds."""
    if not scores:  # stopped, in a round in which none was due
        return
    print(line(step, scores), flush=True)
    trainbox.final({metric: scores[metric.name] for metric in declare(params) if metric.name in scores})


def say(text: str) -> None:
    """Tell the reader of the log about a choice."""
    print(f"xgboost_train: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except Stopped as stop:
        if not trainbox.stop_requested():  # another host was stopped, and this one may never be
            raise
        say(f"{stop.message}: there is nothing to save; a resumed job starts from its last checkpoint")
    gc.freeze()  # what is left goes with the process; to look through it for garbage first takes half a second
