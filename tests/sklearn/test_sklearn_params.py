"""The hyperparameters of forests: types, ranges, names alike, and what does not go together, all at once."""

from typing import Any

import pytest

from trainbox.contract import params as contract
from trainbox.errors import HyperparameterError
from trainbox.sklearn.params import EstimatorParams, constructor_arguments


def parse(**given: object) -> EstimatorParams:
    return contract.parse(EstimatorParams, given, program="random_forest_train.py")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_features", "1", 1),
        ("max-features", "1.0", 1.0),
        ("max_features", '"log2"', "log2"),
        ("max_depth", "null", None),
        ("min-samples-split", "0.1", 0.1),
        ("max_samples", "200", 200),
        ("class_weight", '{"0": 1, "1": 4.5}', {"0": 1.0, "1": 4.5}),
        ("class_weight", "balanced", "balanced"),
        ("monotonic_cst", "1,0,-1", (1, 0, -1)),
        ("bootstrap", "false", False),
        ("csv_weights", "1", True),
        ("n_estimators", "1e2", 100),
    ],
)
def test_a_text_is_read_as_what_scikit_learn_takes(name: str, text: str, value: object) -> None:
    found = getattr(parse(**{name: text}), name.replace("-", "_"))
    assert (found, type(found)) == (value, type(value))


BAD: dict[str, tuple[dict[str, object], str]] = {
    "a name nobody knows": ({"max_dept": "3"}, "did you mean 'max-depth'?"),
    "a share above one": ({"max_features": "1.5"}, "expected one of all, log2, sqrt or int >= 1 or float > 0 and <= 1"),
    "no tree": ({"n-estimators": "0"}, "'n-estimators' is '0', expected int >= 1"),
    "a direction that is none": ({"monotonic_cst": "[1, 2]"}, "list of one of -1, 0, 1"),
    "a criterion of the other task": ({"criterion": "poisson"}, "criterion=poisson is not for classification"),
    "out-of-bag without a draw": (
        {"oob_score": "true", "algorithm": "extra_trees"},
        "oob_score: bootstrap=true is needed",
    ),
    "few rows without a draw": ({"max_samples": "0.5", "bootstrap": "false"}, "max_samples: bootstrap=true is needed"),
    "classes of numbers": ({"task": "regression", "class_weight": "balanced"}, "class_weight is for classification"),
    "a class that is no number": ({"class_weight": '{"yes": 1}'}, "class_weight: 'yes' is not a class"),
    "no threads": ({"n_jobs": "0"}, "n_jobs=0 is not a number of threads"),
    "out-of-bag over hosts": ({"oob_score": "1", "allow_shard_forests": "1"}, "oob_score has no meaning with"),
    "an estimator's arguments alone": ({"estimator_params": '{"C": 1}'}, "estimator_params cannot be used without"),
    "a forest's arguments for an estimator": (
        {"estimator": "sklearn.svm.SVC", "max_depth": "4", "oob_score": "1"},
        "max_depth, oob_score cannot be used with estimator=sklearn.svm.SVC",
    ),
    "what XGBoost has not": ({"engine": "xgboost", "ccp_alpha": "0.1"}, "ccp_alpha cannot be used with engine=xgboost"),
    "extra trees of XGBoost": ({"engine": "xgboost", "algorithm": "extra_trees"}, "algorithm cannot be used with"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError) as caught:
        parse(**given)
    assert message in str(caught.value)


def test_all_that_does_not_fit_is_said_at_once() -> None:
    with pytest.raises(HyperparameterError) as caught:
        parse(criterion="poisson", oob_score="1", bootstrap="0", n_jobs="0")
    assert str(caught.value).count(";") == 2


def test_each_kind_of_forest_has_scikit_learns_own_defaults() -> None:
    assert EstimatorParams().draws_rows is True
    assert EstimatorParams(algorithm="extra_trees").draws_rows is False
    assert "max_features" not in constructor_arguments(EstimatorParams())
    assert constructor_arguments(EstimatorParams(max_features="all"))["max_features"] is None
    assert constructor_arguments(EstimatorParams(class_weight={"0": 1.0, "-1": 2.0}))["class_weight"] == {
        0: 1.0,
        -1: 2.0,
    }
    assert "class_weight" not in constructor_arguments(EstimatorParams(task="regression"))
