"""Which round is the best, when early stopping ends a job, and when there is nothing to decide by."""

import math
from collections.abc import Sequence
from typing import Literal

import pytest

from trainbox.errors import TrainingError
from trainbox.metrics import Metric
from trainbox.xgboost.params.hyperparameters import XGBoostParams
from trainbox.xgboost.segments import best_round, check_decision, chosen_round, is_finished

NAN, INF = math.nan, math.inf


def history(*values: float) -> list[dict[str, float]]:
    return [{"validation:x": value} for value in values]


@pytest.mark.parametrize(
    ("goal", "values", "best"),
    [
        ("maximize", [0.5, 0.7, 0.7, 0.6], 1),
        ("minimize", [0.5, 0.7, 0.5, 0.6], 0),
        ("maximize", [NAN, 0.2, NAN, 0.3], 3),
        ("maximize", [0.2, INF, 0.3], 2),
        ("minimize", [INF, 0.2, -INF], 1),
        ("minimize", [NAN, NAN], None),
        ("maximize", [-INF, INF, NAN], None),
        ("maximize", [], None),
    ],
)
def test_the_best_round_is_the_first_with_the_best_finite_number(
    goal: Literal["maximize", "minimize"], values: Sequence[float], best: int | None
) -> None:
    assert best_round(history(*values), Metric("validation:x", goal)) == best


def test_a_round_without_the_metric_is_never_best() -> None:
    assert best_round([{"train:x": 1.0}, {"validation:x": 0.1}, {}], Metric("validation:x", "maximize")) == 1


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_early_stopping_by_what_is_never_a_number_is_an_error_as_soon_as_it_would_decide(value: float) -> None:
    params, auc = XGBoostParams(num_round=100, early_stopping_rounds=3), Metric("validation:x", "maximize")
    assert not is_finished(history(value, value, value), auc, params)
    assert is_finished(history(value, value, value, value), auc, params)
    with pytest.raises(TrainingError, match="validation:x was not a finite number in any of 4 rounds"):
        check_decision(history(value, value, value, value), auc, params)
    check_decision(history(value, value, value, 0.5), auc, params)
    check_decision(history(value, value), auc, XGBoostParams(num_round=2))


def test_where_nothing_was_decided_the_last_round_is_saved() -> None:
    auc = Metric("validation:x", "maximize")
    assert chosen_round(history(NAN, NAN, NAN), auc, XGBoostParams(num_round=9, early_stopping_rounds=5)) == 2
    assert chosen_round(history(0.9, 0.8, 0.7), auc, XGBoostParams(num_round=9)) == 2
    assert chosen_round(history(0.9, 0.8, 0.7), auc, XGBoostParams(num_round=9, early_stopping_rounds=5)) == 0
