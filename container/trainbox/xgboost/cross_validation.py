"""Cross-validation as a job: train, score and checkpoint each fold, then save all models and the mean scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

import trainbox
from trainbox.checkpoint.store import Checkpoint
from trainbox.data import Table
from trainbox.model.plots import draw_pictures
from trainbox.model.samples import Matrix
from trainbox.tabular.script import log_line, save_output
from trainbox.tabular.texts import note_on_texts
from trainbox.xgboost.collective.group import SingleProcess
from trainbox.xgboost.folds import (
    Fold,
    FoldResult,
    join_folds,
    load_folds,
    out_of_fold,
    predictions_file,
    save_fold_curves,
    save_folds,
    split_folds,
    summarize,
    take_rows,
)
from trainbox.xgboost.model import describe, first_rounds, save_models
from trainbox.xgboost.params.declared_metrics import objective_of
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.matrices import Bins, plain_matrix
from trainbox.xgboost.rows.reading import BoostingData
from trainbox.xgboost.segments import Progress, chosen_round, is_finished
from trainbox.xgboost.training import log_final, train


def cross_validate(
    params: XGBoostParams,
    data: BoostingData,
    *,
    store: trainbox.Checkpoints,
    found: Checkpoint | None,
    identity: Mapping[str, str],
    bins: Bins,
    thin: Matrix,
) -> None:
    """Train a model for each fold, scored on the rows of that fold, with a checkpoint after each.

    Args:
        params: The hyperparameters.
        data: The rows of all channels, which are joined.
        store: The checkpoints of the job.
        found: The newest checkpoint, of finished folds.
        identity: What shapes the models.
        bins: How rows are binned.
        thin: A sample of the rows, for the card.

    Raises:
        CheckpointError: The checkpoint is of another job; the difference is shown.
    """
    rows = join_folds([shard.table for shard in data.shards.values()])
    folds = split_folds(rows.labels, params, rows.groups)
    results = load_folds(found, identity)
    for fold in folds[len(results) :]:
        number = f"fold {len(results) + 1} of {len(folds)}"
        log_line(f"{number}: {len(fold.train):,} rows to learn from, {len(fold.held_out):,} held out")
        result = _train_fold(params, data, rows, fold, bins, before=params.num_round * len(results))
        if result is None:
            log_line(f"asked to stop in {number}: a resumed job begins with this fold")
            return
        results.append(result)
        save_folds(store, identity, results)
    _save(params, data, thin=thin, labels=rows.labels, folds=folds, results=results)


def _train_fold(
    params: XGBoostParams, data: BoostingData, rows: Table, fold: Fold, bins: Bins, *, before: int
) -> FoldResult | None:
    """Train one fold; None if the job is stopped before it is finished."""
    held_out = take_rows(rows, fold.held_out)
    part = data.of({"train": take_rows(rows, fold.train), "validation": held_out}, params)
    progress = Progress()
    for latest in train(params, SingleProcess(), part, progress, bins, before=before):
        progress = latest
    if progress.model is None or not is_finished(progress.history, objective_of(params), params):
        return None
    chosen = chosen_round(progress.history, objective_of(params), params)
    model = first_rounds(progress.model, chosen + 1)
    predictions = model.predict(plain_matrix(held_out, params))
    return FoldResult(bytes(model.save_raw("ubj")), progress.history[chosen], predictions, progress.history)


def _save(
    params: XGBoostParams,
    data: BoostingData,
    *,
    thin: Matrix,
    labels: npt.NDArray[np.float32],
    folds: Sequence[Fold],
    results: Sequence[FoldResult],
) -> None:
    """Save the models of all folds, the out-of-fold predictions, and the mean scores."""
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
    save_models(models, card, thin)
    predictions = out_of_fold(folds, results)
    save_output("predictions.csv", predictions_file(labels, predictions, classes=params.classes))
    picture = save_fold_curves(results, params)
    log_line(f"saved {len(results)} models to {trainbox.model_dir()}: xgboost-model-0, …")
    for text in note_on_texts(data.agreement.coding, data.agreement.columns, params.unseen):
        log_line(text)
    for name, score in scores.items():
        log_line(f"{name}: {score['mean']:.6g} on average over the folds, standard deviation {score['std']:.6g}")
    log_final(params, params.num_round, {name: score["mean"] for name, score in scores.items()})
    draw_pictures(picture)
