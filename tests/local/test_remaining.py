"""The status line says how long the rest of the steps takes, where the hyperparameters say how many there are."""

import pytest

from trainbox.cli.screen.remaining import DEFAULTS, Remaining, find_total
from trainbox.contract import params
from trainbox.sklearn.params import EstimatorParams
from trainbox.torch.networks.hyperparameters import NetworkParams


@pytest.mark.parametrize(
    ("hyperparameters", "total"),
    [
        ({}, None),
        ({"num_round": "150"}, 150),
        ({"n-estimators": "40"}, 40),
        ({"Epochs": "3"}, 3),
        ({"epochs": "3", "max_steps": "100"}, 100),
        ({"epochs": "many"}, None),
        ({"epochs": "-1"}, None),
    ],
)
def test_the_number_of_steps_is_a_hyperparameter(hyperparameters: dict[str, str], total: int | None) -> None:
    assert find_total("train.py", hyperparameters) == total


def test_bundled_scripts_have_their_defaults() -> None:
    assert find_total("pytorch_train", {}) == 10
    assert find_total("random_forest_train", {"max-depth": "5"}) == 100
    assert find_total("xgboost_train", {}) is None
    assert find_total("xgboost_train", {"num_round": "10", "_kfold": "5", "_num_cv_round": "2"}) == 100
    assert find_total("xgboost_train", {"num_round": "10", "_kfold": "null"}) == 10
    assert {field.name.replace("-", "_"): field.default for field in params.fields(EstimatorParams)}[
        "n_estimators"
    ] == "100"
    assert DEFAULTS["pytorch_train"] == ("epochs", NetworkParams().epochs)


class Steps:
    """Steps that are logged at moments of a clock of their own."""

    def __init__(self, total: int | None) -> None:
        self.now = 0.0
        self.remaining = Remaining(total, clock=lambda: self.now)

    def at(self, now: float, step: int) -> None:
        self.now = now
        self.remaining.note(step)


def test_nothing_is_said_before_two_steps_and_after_the_last() -> None:
    steps = Steps(3)
    assert steps.remaining.seconds() is None
    steps.at(5, 0)
    assert steps.remaining.seconds() is None
    steps.at(6, 1)
    assert steps.remaining.seconds() == 1
    steps.at(7, 2)
    assert steps.remaining.seconds() is None


def test_it_gets_less_while_nothing_is_logged_and_is_never_negative() -> None:
    steps = Steps(100)
    steps.at(0, 10)
    steps.at(10, 20)
    assert steps.remaining.seconds() == 80
    steps.now = 50
    assert steps.remaining.seconds() == 40
    steps.now = 500
    assert steps.remaining.seconds() == 0


def test_steps_that_begin_again_have_a_pace_of_their_own() -> None:
    steps = Steps(100)
    steps.at(0, 0)
    steps.at(10, 50)
    steps.at(1000, 40)
    assert steps.remaining.seconds() is None
    steps.at(1002, 42)
    assert steps.remaining.seconds() == 57


def test_steps_beyond_the_total_are_of_another_kind() -> None:
    steps = Steps(10)
    steps.at(0, 100)
    steps.at(1, 200)
    assert steps.remaining.seconds() is None
    unknown = Steps(None)
    unknown.at(0, 1)
    unknown.at(1, 2)
    assert unknown.remaining.seconds() is None
