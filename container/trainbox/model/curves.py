"""Learning curves: the scores of a training as `learning-curves.json` in `output/data`, and their picture."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec

from trainbox import atomic_write, toolkit
from trainbox.model.plots import FoldCurve, Picture, draw_curves, draw_folds

#: The scores by the steps that they are of, in order.
History = Sequence[tuple[int, Mapping[str, float]]]
_NAME = "learning-curves"


def save_curves(history: History, *, unit: str, selected: int | None = None) -> Picture:
    """Write `learning-curves.json`; returns its picture, which is not drawn yet.

    Args:
        history: The scores.
        unit: What the steps count: `rounds`, `trees` or `epochs`.
        selected: The step whose model is saved.

    Raises:
        OSError: It cannot be written.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for step, scores in history:
        for name, value in scores.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    path = _save({name: {unit: steps, "values": values} for name, (steps, values) in curves.items()})
    return partial(draw_curves, path, curves, step=unit, selected=selected)


def save_folds(folds: Sequence[History], *, unit: str, selected: Sequence[int]) -> Picture:
    """Write `learning-curves.json` of a cross-validation; returns its picture, with a line for each fold.

    Args:
        folds: The scores of each fold.
        unit: What the steps count.
        selected: The step whose model is saved, for each fold.

    Raises:
        OSError: It cannot be written.
    """
    names = dict.fromkeys(name for fold in folds for _, scores in fold for name in scores)
    curves = {name: fold_curve(name, folds, selected) for name in names}
    content = {
        name: {
            unit: curve.steps,
            "folds": curve.folds,
            "mean": curve.mean,
            "deviation": curve.deviation,
        }
        for name, curve in curves.items()
    }
    return partial(draw_folds, _save(content), curves, step=unit)


def fold_curve(name: str, folds: Sequence[History], selected: Sequence[int]) -> FoldCurve:
    """Pure: one metric of all folds, at the steps that any of them has."""
    tables = [{step: scores[name] for step, scores in fold if name in scores} for fold in folds]
    steps = sorted({step for table in tables for step in table})
    rows = [[table.get(step, math.nan) for step in steps] for table in tables]
    columns = [[row[at] for row in rows if math.isfinite(row[at])] for at in range(len(steps))]
    chosen = [table.get(step, math.nan) for table, step in zip(tables, selected, strict=True)]
    until = [
        [table[at] for at in steps if at in table and at <= step] for table, step in zip(tables, selected, strict=True)
    ]
    finite = [values[-1] for values in until if values and math.isfinite(values[-1])]
    return FoldCurve(
        steps=steps,
        folds=rows,
        mean=[fmean(column) if column else math.nan for column in columns],
        deviation=[stdev(column) if len(column) > 1 else 0.0 for column in columns],
        selected=list(zip(selected, chosen, strict=True)),
        summary=(fmean(finite), stdev(finite) if len(finite) > 1 else 0.0) if finite else None,
    )


def _save(content: Mapping[str, Any]) -> Path:
    """Write the numbers; the path without its suffix."""
    directory = toolkit.current_job().layout.output_data_dir
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write.write(directory / f"{_NAME}.json", msgspec.json.encode(content))
    return directory / _NAME
