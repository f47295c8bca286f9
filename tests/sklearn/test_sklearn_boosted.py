"""`engine=xgboost`: the forest's hyperparameters in XGBoost's words; test_forest_hosts.py trains with them."""

import math
from typing import Any

import msgspec
import pytest

from tests.support.growth import make_data
from trainbox.sklearn.boosted import xgboost_parameters
from trainbox.sklearn.params import EstimatorParams


def parameters(task: str = "two", **given: Any) -> dict[str, Any]:
    kind: Any = "regression" if task == "regression" else "classification"
    return xgboost_parameters(EstimatorParams(task=kind, engine="xgboost", n_jobs=1, **given), make_data(task))


def test_all_trees_grow_in_one_round_without_shrinking() -> None:
    found = parameters(n_estimators=70, max_depth=None, seed=3)
    assert (found["num_parallel_tree"], found["learning_rate"]) == (70, 1.0)
    assert (found["max_depth"], found["seed"]) == (0, 3)


@pytest.mark.parametrize(
    ("task", "objective", "classes"),
    [
        ("two", "binary:logistic", None),
        ("three", "multi:softprob", 3),
        ("regression", "reg:squarederror", None),
    ],
)
def test_the_objective_follows_from_the_labels(task: str, objective: str, classes: int | None) -> None:
    found = parameters(task)
    assert found["objective"] == objective
    assert found.get("num_class") == classes


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, 1 - math.exp(-1)),
        ({"bootstrap": False}, 1.0),
        ({"max_samples": 0.25}, 0.25),
        ({"max_samples": 60}, 0.2),
    ],
)
def test_a_tree_draws_as_many_different_rows_as_a_forests_tree_sees(given: dict[str, Any], share: float) -> None:
    assert parameters(**given)["subsample"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("task", "given", "share"),
    [
        ("two", None, 0.5),
        ("regression", None, 1.0),
        ("two", "log2", 0.5),
        ("two", "all", 1.0),
        ("two", 1, 0.25),
        ("two", 0.3, 0.3),
    ],
)
def test_a_split_tries_as_many_features_as_a_forests_split(task: str, given: Any, share: float) -> None:
    assert parameters(task, max_features=given)["colsample_bynode"] == pytest.approx(share)


def test_limits_that_xgboost_has_too_are_passed_on() -> None:
    found = parameters(max_leaf_nodes=9, monotonic_cst=(1, 0, 0, -1))
    assert (found["max_leaves"], found["grow_policy"]) == (9, "lossguide")
    assert found["monotone_constraints"] == (1, 0, 0, -1)


def test_shares_of_sharded_rows_are_those_of_all_hosts_rows() -> None:
    data = msgspec.structs.replace(make_data(), is_sharded=True, shares=(300, 900))
    found = xgboost_parameters(EstimatorParams(engine="xgboost", max_samples=600, n_jobs=1), data)
    assert found["subsample"] == pytest.approx(0.5)
