"""How much the features of a model matter: of those that it uses, and of no others."""

import numpy as np
import xgboost as xgb

from trainbox.xgboost.model import importance

ROWS = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
NAMES = ("age", "fare", "noise")


def test_what_the_trees_use_is_ordered_and_what_they_never_use_is_left_out() -> None:
    labels = 3 * ROWS[:, 1] + ROWS[:, 0]
    booster = xgb.train({"max_depth": 2, "gamma": 5.0}, xgb.DMatrix(ROWS, labels), 3)
    found = importance(booster, NAMES)
    assert {kind: list(scores) for kind, scores in found.items()} == {
        kind: ["fare", "age"] for kind in ("gain", "weight", "cover", "total_gain", "total_cover")
    }
    assert found["gain"]["fare"] == booster.get_score(importance_type="gain")["f1"]


def test_trees_that_split_nothing_use_nothing() -> None:
    booster = xgb.train({"gamma": 1e9}, xgb.DMatrix(ROWS, ROWS[:, 0]), 1)
    assert importance(booster, NAMES) == {kind: {} for kind in ("gain", "weight", "cover", "total_gain", "total_cover")}


def test_weights_of_a_line_that_are_zero_are_left_out() -> None:
    rows = xgb.DMatrix(ROWS, 2 * ROWS[:, 0] - ROWS[:, 2])
    chosen = {"booster": "gblinear", "updater": "coord_descent", "alpha": 0.3}
    assert list(importance(xgb.train(chosen, rows, 20), NAMES)["weight"]) == ["age", "noise"]
    classes = xgb.DMatrix(ROWS, np.digitize(ROWS[:, 0], [-0.5, 0.5]))
    several = xgb.train({**chosen, "objective": "multi:softprob", "num_class": 3}, classes, 20)
    assert list(importance(several, NAMES)["weight"]) == ["age"]
