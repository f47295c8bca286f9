"""k-fold cross-validation: each model is scored only on its held-out rows.

The incumbent scores each fold's model on all rows, including its training rows: with random labels it prints an AUC of
0.94. It draws new folds at each start, so a restarted job cannot resume. Here the folds depend only on `seed`, and each
finished fold is a checkpoint.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from trainbox.checkpoint.store import Checkpoint, Checkpoints
from trainbox.data import Table
from trainbox.errors import CheckpointError, DataError, HyperparameterError
from trainbox.model.curves import save_folds as save_folds_of
from trainbox.model.plots import Picture
from trainbox.xgboost.params.declared_metrics import objective_of
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.readers import spell_base_score
from trainbox.xgboost.rows.matrices import number_groups
from trainbox.xgboost.segments import check_part, chosen_round, compare, parse_part, read_part

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_HALF = 0.5
_SCORES = "scores.json"
_HISTORIES = "histories.json"


class Fold(msgspec.Struct, frozen=True, eq=False):
    """One split of the rows into training and held-out rows."""

    repeat: int
    number: int
    train: Rows
    held_out: Rows


def split_folds(labels: Floats, params: XGBoostParams, groups: Rows | None = None) -> tuple[Fold, ...]:
    """Split rows into the folds of all repeats; stratified for classes, and groups are not split.

    Args:
        labels: (n,) or (n, k).
        params: The hyperparameters.
        groups: (n,), the query id of each row, where rows come in groups.

    Raises:
        HyperparameterError: There are more folds than rows, or than groups.
        DataError: A class has fewer rows than there are folds.
    """
    # Only now: it takes seconds, and most jobs have no folds.
    from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold  # noqa: PLC0415

    folds, repeats = params.kfold or 0, params.num_cv_round
    units = np.arange(len(labels)) if groups is None else number_groups(groups)
    count = int(units[-1]) + 1 if len(units) else 0
    if folds > count:
        raise HyperparameterError(f"_kfold is {folds}, but there are {count} {'rows' if groups is None else 'groups'}")
    if params.classes is None or groups is not None or labels.ndim > 1:
        splitter: Any = RepeatedKFold(n_splits=folds, n_repeats=repeats, random_state=params.seed)
    else:
        found, counts = np.unique(labels, return_counts=True)
        if counts.min() < folds:
            raise DataError(
                f"class {found[counts.argmin()]:g} has {counts.min()} rows, fewer than the {folds} folds",
                hint="take fewer folds, or leave the class out",
            )
        splitter = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=params.seed)
    splits = splitter.split(np.empty((count, 1)), labels if groups is None else None)
    if groups is not None:
        splits = (
            (np.flatnonzero(np.isin(units, train)), np.flatnonzero(np.isin(units, held))) for train, held in splits
        )
    return tuple(Fold(at // folds, at % folds, train, held_out) for at, (train, held_out) in enumerate(splits))


def take_rows(table: Table, rows: Rows) -> Table:
    """Return some rows of a table."""
    return msgspec.structs.replace(
        table,
        labels=table.labels[rows],
        features=table.features[rows],
        weights=None if table.weights is None else table.weights[rows],
        groups=None if table.groups is None else table.groups[rows],
    )


def join_folds(tables: Sequence[Table]) -> Table:
    """Concatenate tables that have the same columns."""
    first = tables[0]
    if len(tables) == 1:
        return first
    sparse = any(scipy.sparse.issparse(table.features) for table in tables)
    stack: Any = (lambda parts: scipy.sparse.vstack(parts, format="csr")) if sparse else np.concatenate
    groups = [number_groups(table.groups) for table in tables if table.groups is not None]
    starts = np.cumsum([0, *(len(part) and int(part[-1]) + 1 for part in groups)])
    weights = [table.weights for table in tables]
    if any(part is None for part in weights) != all(part is None for part in weights):
        raise DataError("one channel has weights and the other has none", hint="give both, or neither")
    return msgspec.structs.replace(
        first,
        labels=np.concatenate([table.labels for table in tables]),
        features=stack([table.features for table in tables]),
        files=tuple(path for table in tables for path in table.files),
        weights=None if weights[0] is None else np.concatenate([part for part in weights if part is not None]),
        groups=np.concatenate([part + start for part, start in zip(groups, starts, strict=False)]) if groups else None,
    )


def summarize(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean and standard deviation of each metric over the folds."""
    names = list(dict.fromkeys(name for fold in scores for name in fold))
    found = {}
    for name in names:
        values = np.array([fold[name] for fold in scores if name in fold], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        found[name] = {"mean": float(values.mean()), "std": spread}
    return found


def predictions_file(labels: Floats, predictions: Sequence[Floats], *, classes: int | None) -> bytes:
    """Return the content of `predictions.csv`, one line for each row, in the columns of the built-in.

    For classes: the label, the mean probability (of several classes that of the one chosen), and the class that most
    repeats chose; for numbers: the label and the mean.

    Args:
        labels: (n,)
        predictions: Of each repeat, by models that have not seen the row: (n,), or (n, classes).
        classes: `None` for numbers.
    """
    columns: list[npt.NDArray[Any]] = [labels]
    if classes is None:
        columns.append(np.mean(predictions, axis=0))
    else:
        chosen = [part.argmax(axis=1) if part.ndim > 1 else (part > _HALF).astype(np.int64) for part in predictions]
        sure = [part.max(axis=1) if part.ndim > 1 else part for part in predictions]
        votes = np.stack([np.sum([picks == number for picks in chosen], axis=0) for number in range(classes)])
        columns += [np.mean(sure, axis=0), votes.argmax(axis=0)]
    content = io.BytesIO()
    np.savetxt(content, np.column_stack(columns), delimiter=",", fmt="%f")
    return content.getvalue()


class FoldResult(msgspec.Struct, frozen=True, eq=False):
    """The result of a finished fold."""

    model: bytes
    scores: Mapping[str, float]
    #: For each row held out: (n,), or (n, classes).
    predictions: Floats
    #: The scores after each round; none of a fold in a checkpoint that was written without them.
    history: tuple[dict[str, float], ...] = ()


def save_folds(store: Checkpoints, identity: Mapping[str, str], results: Sequence[FoldResult]) -> None:
    """Write the finished folds as a checkpoint, whole or not at all; its step is how many they are."""
    with store.writing(len(results), info=identity) as path:
        (path / _SCORES).write_text(json.dumps([result.scores for result in results]))
        (path / _HISTORIES).write_text(json.dumps([result.history for result in results]))
        for number, result in enumerate(results):
            (path / f"{number:04d}.ubj").write_bytes(spell_base_score(result.model))
            np.save(path / f"{number:04d}.npy", result.predictions, allow_pickle=False)


def load_folds(found: Checkpoint | None, identity: Mapping[str, str]) -> list[FoldResult]:
    """Return the finished folds of a checkpoint.

    Raises:
        CheckpointError: The checkpoint is of another job; the difference is shown. Or it holds something else.
    """
    if found is None:
        return []
    compare(found, identity)
    scores = parse_part(read_part(found.path / _SCORES), tuple[dict[str, float], ...], f"{found.path}, {_SCORES}")
    histories = _read_histories(found.path / _HISTORIES, len(scores))
    return [
        FoldResult(*_read_fold(found.path / f"{number:04d}", fold_scores), history)
        for number, (fold_scores, history) in enumerate(zip(scores, histories, strict=True))
    ]


def _read_histories(path: Path, count: int) -> tuple[tuple[dict[str, float], ...], ...]:
    if not path.exists():  # written by an earlier version
        return ((),) * count
    found = parse_part(read_part(path), tuple[tuple[dict[str, float], ...], ...], str(path))
    if len(found) != count:
        raise CheckpointError(
            f"{path} has the scores of {len(found)} folds, not {count}", hint="start with an empty directory"
        )
    return found


def _read_fold(path: Path, scores: Mapping[str, float]) -> tuple[bytes, Mapping[str, float], Floats]:
    model, array = path.with_suffix(".ubj"), path.with_suffix(".npy")
    content = read_part(model)
    check_part(content, str(model))
    try:
        return content, scores, np.load(io.BytesIO(read_part(array)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{array} cannot be used: {error}", hint="start with an empty directory") from error


def out_of_fold(folds: Sequence[Fold], results: Sequence[FoldResult]) -> list[Floats]:
    """Return the out-of-fold predictions of each repeat, in the order of the rows."""
    repeats: dict[int, list[tuple[Rows, Floats]]] = {}
    for fold, result in zip(folds, results, strict=True):
        repeats.setdefault(fold.repeat, []).append((fold.held_out, result.predictions))
    return [_in_order(parts) for parts in repeats.values()]


def _in_order(parts: Sequence[tuple[Rows, Floats]]) -> Floats:
    rows, predictions = (
        np.concatenate([rows for rows, _ in parts]),
        np.concatenate([predictions for _, predictions in parts]),
    )
    return predictions[np.argsort(rows)]


def save_fold_curves(results: Sequence[FoldResult], params: XGBoostParams) -> Picture:
    """Write `learning-curves.json` of all folds; return its picture, not drawn yet."""
    known = [result.history for result in results if result.history]
    chosen = [chosen_round(history, objective_of(params), params) for history in known]
    return save_folds_of([[*enumerate(history)] for history in known], unit="rounds", selected=chosen)
