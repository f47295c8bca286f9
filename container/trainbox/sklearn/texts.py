"""Columns and labels of texts for scikit-learn: ordinal codes, or one-hot columns."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.comm import Communicator
from trainbox.contract.text import some
from trainbox.data import Coding, Table
from trainbox.data.table import recode_table
from trainbox.errors import DataError
from trainbox.log_lines import emit
from trainbox.sklearn.params import EstimatorParams
from trainbox.tabular.texts import has_number, share_codes, texts_like_missing

Floats = npt.NDArray[np.float32]

#: Of a host's memory the most for columns of 0 and 1.
_SHARE_OF_MEMORY = 0.5


def with_shared_codes(
    communicator: Communicator, train: Table, params: EstimatorParams, former: Coding | None
) -> Table:
    """Return the training rows recoded with the codes that all members share; all members call this.

    Args:
        communicator: The members.
        train: The rows of this one.
        params: The hyperparameters.
        former: The codes of a former model, which all rows have followed.

    Raises:
        DataError: A column has texts on one member and numbers on another, or too many texts; or labels are texts, and
            numbers are to be predicted.
    """
    coding = former
    if coding is None:
        coding = share_codes(communicator, train.coding, train.feature_names, lambda place: has_number(train, place))
    labels = coding.labels
    if labels and params.task == "regression":
        raise DataError(
            f"channel train: the labels are texts ({some([repr(text) for text in labels])}), and task=regression"
            " predicts numbers",
            hint="write the labels as numbers; or use classes: task=classification",
        )
    if train.feature_names:
        for text in texts_like_missing(coding, train.feature_names, params.missing):
            emit(text)
    return recode_table(train, coding)


def encode(table: Table, params: EstimatorParams, memory: int) -> Table:
    """Return the rows as trees take them: with `encoding=onehot`, a column for each text.

    Args:
        table: The rows, with codes.
        params: The hyperparameters.
        memory: Bytes that the host has.

    Raises:
        DataError: The columns of all texts would not fit into the memory.
    """
    if params.encoding == "ordinal" or not table.coding.features or not table.feature_names:
        return table
    names = expand_names(table.feature_names, table.coding)
    size = len(table.labels) * len(names) * table.features.itemsize
    if size > memory * _SHARE_OF_MEMORY:
        raise DataError(
            f"encoding=onehot makes {len(names):,} columns of {len(table.feature_names):,}, {size / 1e9:,.1f} GB in"
            f" {len(table.labels):,} rows: more than {_SHARE_OF_MEMORY:.0%} of {memory / 1e9:.1f} GB",
            hint="take encoding=ordinal, or hosts with more memory",
        )
    return msgspec.structs.replace(table, features=expand(table.features, table.coding), feature_names=names)


def expand_names(names: Sequence[str], coding: Coding) -> tuple[str, ...]:
    """Return the names of the columns that `expand` makes: `color=red` for a text."""
    found: list[str] = []
    for place, name in enumerate(names):
        texts = coding.features.get(place)
        found += [name] if texts is None else [f"{name}={text}" for text in texts]
    return tuple(found)


def expand(features: Floats, coding: Coding) -> Floats:
    """One-hot encode columns of codes; a missing value is 0 in all columns."""
    widths = [len(coding.features.get(place, (0,))) for place in range(features.shape[1])]
    wide = np.zeros((len(features), sum(widths)), np.float32)
    starts = np.cumsum([0, *widths])
    for place, start in enumerate(starts[:-1].tolist()):
        column = features[:, place]
        if place not in coding.features:
            wide[:, start] = column
            continue
        rows = np.flatnonzero(~np.isnan(column))
        wide[rows, start + column[rows].astype(np.int64)] = 1
    return wide


def collapse(wide: Floats, coding: Coding, count: int) -> Floats:
    """Undo `expand`: return the columns of codes.

    Args:
        wide: What it has made.
        coding: The texts.
        count: How many columns there were.
    """
    features = np.empty((len(wide), count), np.float32)
    start = 0
    for place in range(count):
        texts = coding.features.get(place)
        part = wide[:, start : start + len(texts or (0,))]
        start += part.shape[1]
        if texts is None:
            features[:, place] = part[:, 0]
        else:
            features[:, place] = np.where(part.any(axis=1), part.argmax(axis=1), np.nan)
    return features
