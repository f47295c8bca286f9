"""Groups of ranking whose ids XGBoost itself would not take, and folds that cut none of them."""

import numpy as np
import pytest
import xgboost as xgb

from trainbox.data import Table
from trainbox.errors import HyperparameterError
from trainbox.xgboost.folds import join_folds, split_folds, take_rows
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.rows.matrices import fields


def ranking(**more: object) -> XGBoostParams:
    return XGBoostParams(num_round=1, objective="rank:ndcg", group_column="q", **more)  # type: ignore[arg-type]


def table(groups: list[int]) -> Table:
    count = len(groups)
    features = np.arange(count, dtype=np.float32)[:, None]
    return Table(np.arange(count, dtype=np.float32) % 2, features, ("a",), (), None, np.array(groups, np.int64))


@pytest.mark.parametrize("groups", [[8, 8, 7, 7, 7], [2**53 + 1, 2**53 + 1, -5, -5, -5], [-1, -1, 0, 0, 0]])
def test_groups_may_have_any_ids_in_any_order(groups: list[int]) -> None:
    matrix = xgb.DMatrix(**fields(table(groups), ranking()))
    assert matrix.get_group().tolist() == [2, 3]


def test_folds_cut_no_group_and_hold_each_row_out_once() -> None:
    groups = np.repeat([9, 4, 7, 1, 3, 8], [3, 1, 4, 2, 5, 2])
    folds = split_folds(np.zeros(len(groups), np.float32), ranking(kfold=3), groups)
    assert sorted(np.concatenate([fold.held_out for fold in folds]).tolist()) == list(range(len(groups)))
    for fold in folds:
        assert not {*groups[fold.held_out].tolist()} & {*groups[fold.train].tolist()}
        part = take_rows(table(groups.tolist()), fold.train)
        assert part.groups is not None
        assert part.groups.tolist() == groups[fold.train].tolist()
    with pytest.raises(HyperparameterError, match="_kfold is 7, but there are 6 groups"):
        split_folds(np.zeros(len(groups), np.float32), ranking(kfold=7), groups)


def test_groups_of_two_channels_stay_apart_in_folds() -> None:
    together = join_folds([table([5, 5, 6]), table([6, 5])])
    assert together.groups is not None
    assert together.groups.tolist() == [0, 0, 1, 2, 3]


def test_folds_of_several_label_columns_are_drawn() -> None:
    params = XGBoostParams(num_round=1, objective="binary:logistic", label_columns=2, kfold=2)
    folds = split_folds(np.array([[0, 1], [1, 0], [1, 1], [0, 0]], np.float32), params)
    assert [len(fold.held_out) for fold in folds] == [2, 2]
