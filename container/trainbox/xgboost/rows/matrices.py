"""XGBoost's matrix of a shard.

If the tree method uses histograms, training rows are binned once: one byte for a value instead of four. Validation rows
are only predicted, which is fastest from the plain values. Rows on the disk stay there, and are
read block by block (`ExtMemQuantileDMatrix`); to train on a GPU their bins are kept in memory.
"""

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse
import xgboost as xgb

from trainbox.data import Coding, Table
from trainbox.data.formats.row_block import Groups
from trainbox.errors import DataError, HyperparameterError
from trainbox.xgboost.params.constraints import weights
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.agreement import NO_TEXTS
from trainbox.xgboost.rows.blocks import read_features
from trainbox.xgboost.rows.cuts import exact_cuts
from trainbox.xgboost.rows.shards import Shard

Floats = npt.NDArray[np.float32]
#: Where the features of the rows to learn from are cut: by XGBoost's sketch, at exact quantiles, or nowhere where trees
#: read the values. `exact` are the quantiles of a checkpoint from before there was a choice.
Bins = Literal["sketch", "quantiles", "exact", "none"]

#: `exact` leaves fewer rows to the sketch.
LEAST_ROWS = 100_000
_QUANTILES: Mapping[str, Bins] = {"quantiles": "quantiles", "exact": "exact"}


def choose_bins(train: Shard, params: XGBoostParams, *, members: int, begun: str | None = None) -> Bins:
    """Choose how the training rows are binned: by XGBoost's default, the hyperparameter, or the checkpoint.

    Args:
        train: The rows, of one member.
        params: The hyperparameters.
        members: Those that train together; their sketches are put together by XGBoost.
        begun: How the job that goes on has binned them; nothing where it begins.

    Raises:
        HyperparameterError: Quantiles are asked for, and cannot be had of these rows.
    """
    if not params.is_binned:
        return "none"
    obstacle = _obstacle(train, params, members)
    if obstacle is not None and params.bins == "quantiles":
        raise HyperparameterError(
            f"bins=quantiles needs all rows in the memory of one process, dense and of one weight: {obstacle}",
            hint="use bins=sketch, which works with any rows",
        )
    if obstacle is not None or params.bins == "sketch":
        return "sketch"
    return _QUANTILES.get(begun or "") or params.bins or "sketch"


def _obstacle(train: Shard, params: XGBoostParams, members: int) -> str | None:
    """What stands in the way of exact quantiles, which are found by sorting."""
    if members > 1:
        return f"{members} processes have a part each"
    if train.is_on_disk:
        return "they are on the disk, because they do not fit into memory"
    if params.runs_on != "cpu":
        return f"they are binned on {params.runs_on}"
    if params.categorical_features or train.coding.features:
        return "some features are categories"
    if train.table.weights is not None:
        return "they have weights"
    return "they are sparse" if scipy.sparse.issparse(train.table.features) else None


def make_matrices(shards: MutableMapping[str, Shard], params: XGBoostParams, *, bins: Bins) -> dict[str, xgb.DMatrix]:
    """Make a matrix of each shard, and free the shard: training rows and matrices together are the peak of memory.

    Args:
        shards: `train`, and perhaps `validation`; none is left.
        params: The hyperparameters.
        bins: How the rows to learn from are binned.
    """
    matrices = {"train": _make_train(shards.pop("train"), params, bins)}
    while shards:
        name, shard = shards.popitem()
        on_disk = shard.is_on_disk
        matrices[name] = _make_matrix(shard, params, matrices["train"]) if on_disk else _plain(shard.table, params)
    return matrices


def _make_train(train: Shard, params: XGBoostParams, bins: Bins) -> xgb.DMatrix:
    at_quantiles = bins == "quantiles" or (bins == "exact" and train.rows >= LEAST_ROWS)
    matrix = _make_matrix(train, params, _at_quantiles(train.table, params) if at_quantiles else None)
    if params.feature_weights is not None:
        drawn = weights(params.feature_weights, train.feature_names)
        matrix.set_info(feature_weights=np.array(drawn, np.float32))
    return matrix


def _make_matrix(shard: Shard, params: XGBoostParams, like: xgb.DMatrix | None) -> xgb.DMatrix:
    """One to learn from, or with its bins, `like`."""
    if shard.is_on_disk:
        kinds, width = feature_types(shard.feature_names, params, shard.coding), len(shard.feature_names)
        paths = [path for path in shard.blocks if isinstance(path, Path)]
        given = {"ref": like, "max_bin": params.max_bin} | _shared(params, shard.coding)
        if params.runs_on == "cpu":
            cache = os.fspath(paths[0].parent / "bins")
            return xgb.ExtMemQuantileDMatrix(_Blocks(paths, width, kinds, params, cache), **given)
        # One for GPUs wants blocks that lie on the GPU already (XGBoost 3.4): for them the bins are kept in memory.
        return xgb.QuantileDMatrix(_Blocks(paths, width, kinds, params, None), **given)
    if not params.is_binned:
        return _plain(shard.table, params)
    given = fields(shard.table, params) | _shared(params, shard.coding)
    return xgb.QuantileDMatrix(**given, ref=like, max_bin=params.max_bin)


def _plain(table: Table, params: XGBoostParams) -> xgb.DMatrix:
    return xgb.DMatrix(**fields(table, params), **_shared(params, table.coding))


def _shared(params: XGBoostParams, coding: Coding) -> dict[str, Any]:
    is_categorical = bool(params.categorical_features or coding.features)
    return {"nthread": params.nthread, "enable_categorical": is_categorical}


def _at_quantiles(table: Table, params: XGBoostParams) -> xgb.DMatrix:
    threads = params.nthread or len(os.sched_getaffinity(0))
    return xgb.QuantileDMatrix(exact_cuts(table.features, params.max_bin, threads=threads), max_bin=params.max_bin)


def plain_matrix(table: Table, params: XGBoostParams) -> xgb.DMatrix:
    """Return a matrix of a table, to predict from."""
    kinds = feature_types(table.feature_names, params, table.coding)
    return xgb.DMatrix(
        table.features, feature_types=kinds, enable_categorical=kinds is not None, nthread=params.nthread
    )


def fields(table: Table, params: XGBoostParams) -> dict[str, Any]:
    """Return the arguments of a matrix for a table.

    Feature names stay out: a model that has them refuses to predict from a matrix that has none.
    """
    given: dict[str, Any] = {"data": table.features, "weight": table.weights}
    given["feature_types"] = feature_types(table.feature_names, params, table.coding)
    if table.groups is not None:
        given["qid"] = number_groups(table.groups)
        given["weight"] = _weights_of_groups(table)
    return given | _labels(table.labels, params)


def _labels(labels: Floats, params: XGBoostParams) -> dict[str, Floats]:
    """The labels by what XGBoost calls them: those of survival:aft are bounds."""
    if params.objective == "survival:aft":
        return dict(zip(("label_lower_bound", "label_upper_bound"), labels.T, strict=True))
    return {"label": labels}


def number_groups(groups: Groups) -> Groups:
    """Number groups of adjacent rows 0, 1, 2, …: XGBoost requires ascending 32-bit numbers."""
    numbers: Groups = np.cumsum(np.diff(groups, prepend=groups[:1]) != 0)
    return numbers


def _weights_of_groups(table: Table) -> Floats | None:
    """XGBoost wants one weight for each group of ranking, SageMaker gives one for each row.

    Raises:
        DataError: The rows of a group have different weights.
    """
    if table.weights is None or table.groups is None:
        return None
    starts = np.flatnonzero(np.diff(table.groups, prepend=table.groups[:1] - 1))
    sizes = np.diff(starts, append=len(table.groups))
    weights: Floats = table.weights[starts]
    if not np.array_equal(np.repeat(weights, sizes), table.weights):
        row = int(np.argmax(np.repeat(weights, sizes) != table.weights))
        raise DataError(
            f"group {table.groups[row]}: row {row + 1} has another weight than the first of its group",
            hint="in ranking a weight is that of a whole group",
        )
    return weights


def feature_types(names: Sequence[str], params: XGBoostParams, coding: Coding = NO_TEXTS) -> list[str] | None:
    """Return `c` for a categorical feature and `q` for a number; None if all are numbers.

    Args:
        names: Of the features.
        params: The hyperparameters, which name those of codes.
        coding: Of those of texts.

    Raises:
        HyperparameterError: A categorical feature that there is not.
    """
    if not params.categorical_features and not coding.features:
        return None
    kinds = ["c" if place in coding.features else "q" for place in range(len(names))]
    for wanted in params.categorical_features:
        text = str(wanted)
        if text in names:
            kinds[names.index(text)] = "c"
        elif text.isdigit() and int(text) < len(names):
            kinds[int(text)] = "c"
        else:
            raise HyperparameterError(
                f"categorical_features: there is no feature {text!r}",
                hint=f"give names of the header, or positions from 0 to {len(names) - 1}; the label does not count",
            )
    return kinds


class _Blocks(xgb.DataIter):
    """The blocks of a shard, one after the other, as often as XGBoost asks."""

    def __init__(
        self, paths: Sequence[Path], width: int, kinds: list[str] | None, params: XGBoostParams, cache: str | None
    ) -> None:
        self._paths = paths
        self._width = width
        self._kinds = kinds
        self._params = params
        self._at = 0
        super().__init__(cache_prefix=cache)

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Pass the next block to XGBoost, if there is one."""
        if self._at == len(self._paths):
            return False
        input_data(**_read_block(self._paths[self._at], self._width, self._params), feature_types=self._kinds)
        self._at += 1
        return True

    def reset(self) -> None:
        """Start again with the first block."""
        self._at = 0


def _read_block(directory: Path, width: int, params: XGBoostParams) -> dict[str, Any]:
    weights = directory / "weights.npy"
    return {
        "data": read_features(directory, width),
        "weight": np.load(weights) if weights.exists() else None,
        **_labels(np.load(directory / "labels.npy"), params),
    }
