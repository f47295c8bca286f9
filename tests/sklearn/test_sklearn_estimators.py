"""Any estimator by name: scikit-learn's and the user's own, and nothing else."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.support.growth import make_data, make_table
from trainbox.errors import DataError, HyperparameterError
from trainbox.sklearn.estimators import find_estimator, fit_estimator, make_estimator, score_estimator
from trainbox.sklearn.model import find_importance
from trainbox.sklearn.params import EstimatorParams

OWN = """
import sys
from sklearn.base import BaseEstimator, ClassifierMixin
import numpy as np
touched = True
class Constant(ClassifierMixin, BaseEstimator):
    def __init__(self, label=0):
        self.label = label
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self
    def predict(self, X):
        return np.full(len(X), self.label)
def function(): ...
"""


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    before = sys.path[:]
    (tmp_path / "own_models.py").write_text(OWN)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("own_models", None)


def make(name: str, *, source: Path | None = None, task: Any = "classification", **given: object) -> Any:
    params = EstimatorParams(estimator=name, estimator_params=given, task=task, seed=5)
    return make_estimator(params, [source] if source else [])


def test_an_estimator_of_scikit_learn_is_found_and_gets_its_arguments() -> None:
    made = make("sklearn.linear_model.LogisticRegression", C=0.5, max_iter=50)
    assert isinstance(made, LogisticRegression)
    assert (made.C, made.max_iter, made.random_state) == (0.5, 50, 5)


def test_a_class_of_the_users_own_source_is_found(source: Path) -> None:
    made = make("own_models:Constant", source=source, label=1)
    assert type(made).__name__ == "Constant"
    data = make_data()
    params = EstimatorParams(estimator="own_models:Constant")
    scores = score_estimator(fit_estimator(made, params, data), params, data)
    assert scores["train:accuracy"] == (data.train.labels == 1).mean()
    assert math.isnan(scores["train:auc"])
    assert math.isnan(scores["train:logloss"])


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.base.BaseEstimator",
        "sklearn.utils.Bunch",
        "sklearn.linear_model.np",
        "sklearn.linear_model.Nonsense",
        "sklearn.pipeline.Pipeline; import os",
        "__import__('os').system('true')",
        "sklearn",
        "",
    ],
)
def test_nothing_else_is_looked_up(name: str, source: Path) -> None:
    with pytest.raises(HyperparameterError, match="hyperparameter 'estimator' is "):
        find_estimator(name, [source])


@pytest.mark.parametrize("name", ["own_models:function", "own_models:nobody", "own_models:sys", "other:Constant"])
def test_what_is_no_estimator_of_the_users_source_is_refused(name: str, source: Path) -> None:
    with pytest.raises(HyperparameterError, match="hyperparameter 'estimator' is "):
        find_estimator(name, [source])


def test_a_module_outside_of_the_source_is_not_even_imported(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(HyperparameterError, match="no module 'own_models' in the job's source"):
        find_estimator("own_models:Constant", [elsewhere])
    assert "own_models" not in sys.modules
    assert source.is_dir()


def test_a_name_that_is_almost_right_is_suggested() -> None:
    with pytest.raises(HyperparameterError, match="scikit-learn has no such class") as caught:
        find_estimator("sklearn.linear_model.LogisticRegresion", [])
    assert caught.value.hint == "did you mean sklearn.linear_model.LogisticRegression?"


WRONG: dict[str, tuple[str, dict[str, object], str]] = {
    "an argument nobody knows": (
        "sklearn.linear_model.LogisticRegression",
        {"max_itr": 3},
        "'max_itr' is not known to .* did you mean 'max_iter'?",
    ),
    "a value out of range": ("sklearn.linear_model.LogisticRegression", {"C": -1.0}, "'C' parameter of Logistic"),
    "a value of another type": ("sklearn.svm.SVC", {"kernel": ["rbf"]}, "'kernel' parameter of SVC"),
    "a code in place of a value": ("sklearn.svm.SVC", {"gamma": "__import__('os')"}, "'gamma' parameter of SVC"),
    "one that needs others": ("sklearn.ensemble.VotingClassifier", {}, "VotingClassifier needs 'estimators'"),
}


@pytest.mark.parametrize(("name", "given", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_found_before_any_row_is_read(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparameterError, match=f"'estimator-params': .*{message}"):
        make(name, **given)


def test_a_regressor_is_nothing_for_classes() -> None:
    with pytest.raises(HyperparameterError, match="does not support task=classification") as caught:
        make("sklearn.linear_model.Ridge")
    assert "use task=regression" in caught.value.hint
    assert make("sklearn.linear_model.Ridge", task="regression").alpha == 1.0
    with pytest.raises(HyperparameterError, match="it is not an estimator"):
        make("sklearn.decomposition.PCA")


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "task", "defined"),
    [
        ("sklearn.linear_model.LogisticRegression", "three", {"accuracy", "auc", "f1", "logloss"}),
        ("sklearn.svm.LinearSVC", "two", {"accuracy", "auc", "f1"}),
        ("sklearn.svm.LinearSVC", "three", {"accuracy", "auc", "f1"}),
        ("sklearn.ensemble.HistGradientBoostingClassifier", "two", {"accuracy", "auc", "f1", "logloss"}),
        ("sklearn.neighbors.KNeighborsRegressor", "regression", {"r2", "rmse", "mae"}),
        ("sklearn.linear_model.Ridge", "regression", {"r2", "rmse", "mae"}),
    ],
)
def test_estimators_are_judged_by_the_same_metrics(name: str, task: str, defined: set[str]) -> None:
    given = {"max_iter": 5} if "HistGradient" in name else {}  # its threads take long to come on a busy machine
    params = EstimatorParams(
        estimator=name, task="regression" if task == "regression" else "classification", estimator_params=given
    )
    data = make_data(task)
    data = msgspec.structs.replace(data, held_out=make_table(task, seed=4), has_held_out=True)
    made = fit_estimator(make_estimator(params, []), params, data)
    scores = score_estimator(made, params, data)
    assert {key.removeprefix("validation:") for key, score in scores.items() if not math.isnan(score)} == defined
    assert scores.get("validation:auc", scores.get("validation:r2", 0.0)) > 0.7
    kind, importance = find_importance(made, data.features)
    expected = {"sklearn.linear_model": "coefficient", "sklearn.svm": "coefficient"}.get(name.rpartition(".")[0], "")
    assert kind == expected
    if expected:
        assert max(importance, key=lambda feature: importance[feature]) in {"f0", "f1"}


def test_weights_of_rows_count_where_the_estimator_takes_them_and_are_refused_elsewhere() -> None:
    data = make_data(weights=np.random.default_rng(1).integers(0, 3, 300).astype(np.float32))
    params = EstimatorParams(estimator="sklearn.linear_model.LogisticRegression", csv_weights=True)
    made = fit_estimator(make_estimator(params, []), params, data)
    plain = LogisticRegression(random_state=42).fit(data.train.features, data.train.labels, data.train.weights)
    assert made.coef_ == pytest.approx(plain.coef_)
    other = EstimatorParams(estimator="sklearn.neighbors.KNeighborsClassifier", csv_weights=True)
    with pytest.raises(HyperparameterError, match="KNeighborsClassifier does not support sample weights"):
        fit_estimator(make_estimator(other, []), other, data)


def test_missing_values_are_refused_where_the_estimator_takes_none() -> None:
    data = make_data()
    data.train.features[0, 0] = math.nan
    params = EstimatorParams(estimator="sklearn.linear_model.LogisticRegression")
    with pytest.raises(DataError, match="1 values are missing, which LogisticRegression does not support"):
        fit_estimator(make_estimator(params, []), params, data)
    boosted = EstimatorParams(estimator="sklearn.tree.DecisionTreeClassifier")
    fit_estimator(make_estimator(boosted, []), boosted, data)


def test_what_an_estimator_says_of_the_rows_is_an_error_of_the_data() -> None:
    params = EstimatorParams(estimator="sklearn.naive_bayes.MultinomialNB")
    with pytest.raises(DataError, match="MultinomialNB rejects these rows: Negative values"):
        fit_estimator(make_estimator(params, []), params, make_data())


def test_that_a_fit_has_not_converged_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    params = EstimatorParams(estimator="sklearn.linear_model.LogisticRegression", estimator_params={"max_iter": 1})
    fit_estimator(make_estimator(params, []), params, make_data())
    assert "LogisticRegression: lbfgs failed to converge" in capsys.readouterr().err
