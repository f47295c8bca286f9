"""Rows to grow forests from, and what makes two forests the same."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from trainbox.data import Table, default_names
from trainbox.sklearn.data import EstimatorData

#: All that a tree decides by. Compared one by one: between them lie bytes that nobody writes.
_FIELDS = (
    "children_left",
    "children_right",
    "feature",
    "threshold",
    "value",
    "impurity",
    "n_node_samples",
    "weighted_n_node_samples",
    "missing_go_to_left",
)


def anatomy(trees: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Everything that makes trees what they are, bit by bit."""
    return [
        (type(tree).__name__, tree.random_state, *[getattr(tree.tree_, field).tobytes() for field in _FIELDS])
        for tree in trees
    ]


def trees_of(root: Path) -> list[tuple[Any, ...]]:
    """Those of the model that a job has left."""
    return anatomy(joblib.load(root / "model" / "model.joblib").estimators_)


def draw_rows(task: str, rows: int = 300, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Four features, and two or three classes or a number that depend on the first two."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4)).round(4)
    signal = features[:, 0] + features[:, 1] + random.normal(size=rows) / 2
    if task == "regression":
        return features, signal.round(4)
    return features, np.digitize(signal, [-0.5, 0.5] if task == "three" else [0.0])


def write_rows(
    path: Path, *, task: str = "two", rows: int = 300, seed: int = 0, header: str = "", part: slice | None = None
) -> None:
    """The same as CSV, the label first."""
    features, labels = draw_rows(task, rows, seed)
    pairs = list(zip(labels.tolist(), features.tolist(), strict=True))[part or slice(None)]
    lines = [",".join(map(str, [label, *row])) for label, row in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "\n".join(lines) + "\n")


def make_table(task: str = "two", rows: int = 300, seed: int = 0, weights: npt.NDArray[Any] | None = None) -> Table:
    """The same as a table."""
    features, labels = draw_rows(task, rows, seed)
    return Table(labels.astype(np.float32), features.astype(np.float32), default_names(4), (), weights)


def make_data(task: str = "two", **more: Any) -> EstimatorData:
    """What one host alone trains on, judged by the same rows."""
    table = make_table(task, **more)
    classes = () if task == "regression" else tuple(np.unique(table.labels).astype(int).tolist())
    return EstimatorData(
        train=table,
        held_out=None,
        has_held_out=False,
        features=table.feature_names,
        classes=classes,
        shares=(1,),
        is_sharded=False,
    )
