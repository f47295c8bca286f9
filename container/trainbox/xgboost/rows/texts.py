"""Columns and labels of texts: codes shared by all members, and what XGBoost supports."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trainbox.comm import Communicator
from trainbox.contract.text import some
from trainbox.data import Coding
from trainbox.data.formats.categories import recode
from trainbox.data.table import recode_table
from trainbox.errors import DataError, HyperparameterError
from trainbox.log_lines import emit
from trainbox.tabular.texts import has_number, share_codes, texts_like_missing
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.blocks import read_block
from trainbox.xgboost.rows.shards import Shard, shard_of, summarize_blocks, with_fault


def with_shared_codes(train: Shard, communicator: Communicator, params: XGBoostParams, former: Coding | None) -> Shard:
    """Return the training rows recoded with the codes that all members share; all members call this.

    Args:
        train: Those of this member.
        communicator: The members.
        params: The hyperparameters.
        former: The codes of a former model, which all rows have followed.

    Raises:
        DataError: A column has texts on one member and numbers on another, too many texts, or texts that the objective
            cannot learn from.
        HyperparameterError: Trees do not grow from categories this way.
    """
    coding = former
    if coding is None:
        coding = share_codes(communicator, train.coding, train.feature_names, lambda place: _has_number(train, place))
    check_texts(coding, train.feature_names, params)
    if train.feature_names:
        for text in texts_like_missing(coding, train.feature_names, params.missing):
            emit(text)
    if coding == train.coding:
        return train
    return with_fault(recode_shard(train, coding, params), train.labels.fault)


def _has_number(shard: Shard, place: int) -> bool:
    if shard.is_sparse:
        return True
    for block in shard.blocks:
        table = read_block(block) if isinstance(block, Path) else block
        if place < len(table.feature_names) and has_number(table, place):
            return True
    return False


def recode_shard(shard: Shard, coding: Coding, params: XGBoostParams) -> Shard:
    """Recode the rows with another coding, which includes all of their texts."""
    if not shard.is_on_disk:
        return shard_of(recode_table(shard.table, coding), shard.channel, params)
    paths = [block for block in shard.blocks if isinstance(block, Path)]
    for path in paths:
        features = np.load(path / "features.npy", mmap_mode="r+")
        for place, texts in shard.coding.features.items():
            column = np.array(features[:, place])
            recode(column, texts, coding.features[place])
            features[:, place] = column
        if shard.coding.labels:
            labels = np.load(path / "labels.npy")
            recode(labels, shard.coding.labels, coding.labels)
            np.save(path / "labels.npy", labels)
    return msgspec.structs.replace(shard, coding=coding, **summarize_blocks(map(read_block, paths), params))


def check_texts(coding: Coding, names: Sequence[str], params: XGBoostParams) -> None:
    """Reject texts that the objective or the tree method cannot use.

    Raises:
        DataError: Labels are texts, and the objective learns numbers, or another number of classes.
        HyperparameterError: Features are texts, and trees do not grow from categories this way.
    """
    if coding.features and params.method not in {"hist", "approx"}:
        listed = some([names[place] if place < len(names) else f"feature {place}" for place in coding.features])
        way = "booster=gblinear" if params.method == "linear" else f"tree_method={params.method}"
        raise HyperparameterError(
            f"{way} supports only numbers, and the channel train has texts in {listed}",
            hint="use tree_method=hist or approx, which split categories; or leave the columns out",
        )
    count = len(coding.labels)
    if not count:
        return
    found = f"channel train: the labels are {count:,} different texts ({some([repr(text) for text in coding.labels])})"
    if count == 1:
        raise DataError(f"{found}; training needs at least two", hint="the first column must be the label; is it?")
    ways = "objective=binary:logistic" if count == 2 else f"objective=multi:softprob and num_class={count}"  # noqa: PLR2004
    if params.classes is None:
        raise DataError(
            f"{found}, and objective {params.objective} predicts a number",
            hint=f"write the labels as numbers; or use classes: {ways}",
        )
    if params.classes != count:
        raise DataError(f"{found}, and objective {params.objective} has {params.classes} classes", hint=f"take {ways}")
