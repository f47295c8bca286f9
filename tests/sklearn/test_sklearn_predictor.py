"""An estimator answers with the bits of its own prediction; a forest gets them from its trees, which takes less."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import ensemble, linear_model, naive_bayes, neighbors, svm, tree
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from trainbox.contract.model_card import ModelCard, features_of
from trainbox.data import Coding
from trainbox.errors import DataError
from trainbox.sklearn.predictor import EstimatorPredictor, load_predictor
from trainbox.sklearn.texts import expand

MOST_ROWS, FEATURES = 130, 5
NAMES = ("age", "height", "weight", "f3", "f4")
MODELS: dict[str, Any] = {
    "forest": lambda: ensemble.RandomForestClassifier(12, max_depth=6, random_state=1, n_jobs=-1),
    "forest of numbers": lambda: ensemble.RandomForestRegressor(12, max_depth=6, random_state=1),
    "extra trees": lambda: ensemble.ExtraTreesClassifier(12, max_depth=6, random_state=1),
    "extra trees of numbers": lambda: ensemble.ExtraTreesRegressor(12, max_depth=6, random_state=1),
    "one tree": lambda: tree.DecisionTreeClassifier(random_state=1),
    "boosted": lambda: ensemble.GradientBoostingClassifier(n_estimators=4, random_state=1),
    "histograms": lambda: ensemble.HistGradientBoostingClassifier(max_iter=4, random_state=1),
    "histograms of numbers": lambda: ensemble.HistGradientBoostingRegressor(max_iter=4, random_state=1),
    "logistic": linear_model.LogisticRegression,
    "ridge": linear_model.Ridge,
    "vectors": svm.SVC,
    "vectors, linear": svm.LinearSVC,
    "neighbours": neighbors.KNeighborsClassifier,
    "bayes": naive_bayes.GaussianNB,
    "a pipeline": lambda: make_pipeline(StandardScaler(), linear_model.LogisticRegression()),
    "a pipeline with a forest": lambda: make_pipeline(
        StandardScaler(), ensemble.RandomForestClassifier(5, random_state=1, n_jobs=2)
    ),
    "a vote": lambda: ensemble.VotingClassifier(
        [("a", linear_model.LogisticRegression()), ("b", tree.DecisionTreeClassifier(random_state=1))], voting="soft"
    ),
}
ROWWISE = frozenset({"forest", "forest of numbers", "extra trees", "extra trees of numbers", "one tree", "boosted"})
ROWWISE |= {"histograms", "histograms of numbers"}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `serve` has it; without it scikit-learn counts the cores in a process of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def draw_rows(count: int, *, seed: int = 3) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)
    return found


def fitted(name: str, *, classes: int = 3) -> Any:
    rows = draw_rows(200, seed=7)
    score = rows[:, 0] + np.sin(rows[:, 1])
    labels = (
        score if name in {"forest of numbers", "extra trees of numbers", "histograms of numbers", "ridge"} else None
    )
    steps = [-0.5, 0.5] if classes == 3 else [0.0]
    return MODELS[name]().fit(rows, np.digitize(score, steps) if labels is None else labels)


def saved(directory: Path, model: Any, form: str = "skops") -> str:
    (directory / f"model.{form}").write_bytes(skops.io.dumps(model) if form == "skops" else pickled(model))
    return f"model.{form}"


def pickled(model: Any) -> bytes:
    content = io.BytesIO()
    joblib.dump(model, content, compress=3)
    return content.getvalue()


def load(directory: Path, name: str, card: ModelCard | None = None, *, code: bool = True) -> EstimatorPredictor:
    return load_predictor(directory, name, card, is_pickle=not name.endswith("skops"), may_run_code=code)


def predict_alone(model: Any, rows: Any) -> npt.NDArray[np.float64]:
    for each in [model, *(step for _, step in getattr(model, "steps", ()))]:
        if hasattr(each, "n_jobs"):
            each.n_jobs = 1
    found: npt.NDArray[Any] = model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)
    return found.astype(np.float64) if found.dtype.kind != "f" else found


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_the_answers_are_those_of_the_estimator_to_the_bit(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    ours = load(tmp_path, saved(tmp_path, model))
    assert ours.is_rowwise is (name in ROWWISE)
    rows = draw_rows(MOST_ROWS)
    assert ours.predict(rows[:0]).shape == (0, *predict_alone(model, rows).shape[1:])
    for count in (1, 2, 3, 5, 7, 8, 64, 65, MOST_ROWS):
        assert_same(ours.predict(rows[:count]), predict_alone(model, rows[:count]))
    if ours.is_rowwise:
        alone = [ours.predict(rows[place : place + 1]) for place in range(MOST_ROWS)]
        assert_same(np.concatenate(alone), predict_alone(model, rows))


@pytest.mark.parametrize("name", ["forest", "forest of numbers", "logistic"])
def test_sparse_rows_have_zeros_where_they_store_nothing(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    ours = load(tmp_path, saved(tmp_path, model))
    rows = draw_rows(20)
    rows[np.abs(rows) < 0.5] = 0
    sparse = scipy.sparse.csr_matrix(rows)
    assert_same(ours.predict(sparse), predict_alone(model, sparse))


def test_missing_values_go_where_the_forest_sends_them_and_others_refuse_them(tmp_path: Path) -> None:
    model, rows = fitted("forest"), draw_rows(20)
    rows[3, 2] = np.nan
    assert_same(load(tmp_path, saved(tmp_path, model)).predict(rows), predict_alone(model, rows))
    linear = load(tmp_path, saved(tmp_path, fitted("logistic")))
    with pytest.raises(DataError, match="row 4: f2 is missing, and LogisticRegression does not take missing values"):
        linear.predict(rows)


@pytest.mark.parametrize("form", ["joblib", "pkl"])
@pytest.mark.parametrize("name", ["forest", "logistic"])
def test_a_pickle_is_read_as_joblib_or_pickle_wrote_it(name: str, form: str, tmp_path: Path) -> None:
    model = fitted(name)
    file = saved(tmp_path, model, form)
    if form == "pkl":
        (tmp_path / file).write_bytes(pickle.dumps(model))
    rows = draw_rows(9)
    assert_same(load(tmp_path, file).predict(rows), predict_alone(model, rows))


def test_texts_have_the_columns_that_training_made_of_them(tmp_path: Path) -> None:
    coding = Coding({1: ("blue", "green", "red")})
    codes = draw_rows(60)
    codes[:, 1] = np.arange(60) % 3
    codes[5, 1] = np.nan
    model = linear_model.LogisticRegression().fit(expand(codes, coding), np.arange(60) % 2)
    card = ModelCard(
        framework="scikit-learn",
        algorithm="sklearn.linear_model.LogisticRegression",
        objective="classification",
        features=features_of(NAMES, {"height": "text"}),
        classes=(0, 1),
        categories={"height": coding.features[1]},
        hyperparameters={"encoding": "onehot"},
    )
    ours = load(tmp_path, saved(tmp_path, model), card)
    assert_same(ours.predict(codes), predict_alone(model, expand(codes, coding)))


@pytest.mark.parametrize("labels", [("no", "yes"), (3, 5)])
def test_a_foreign_estimator_says_itself_what_it_expects(labels: tuple[Any, Any], tmp_path: Path) -> None:
    rows = draw_rows(60)
    model = svm.LinearSVC().fit(rows, np.where(rows[:, 0] > 0, labels[1], labels[0]))
    model.feature_names_in_ = np.array(NAMES, dtype=object)
    ours = load(tmp_path, saved(tmp_path, model, "joblib"))
    assert ours.card.features.names == NAMES
    assert (ours.card.classes, ours.card.objective) == (labels, "classification")
    assert isinstance(ours.card.samples[0].prediction, float)  # a class, and no shares
    said = ours.predict(rows)
    assert said.tolist() == [(labels.index(each) if each in ("no", "yes") else each) for each in expected(model, rows)]


def expected(model: Any, rows: npt.NDArray[Any]) -> list[Any]:
    del model.feature_names_in_
    found: list[Any] = model.predict(rows).tolist()
    return found


def test_skops_makes_no_object_of_another_library_where_no_code_may_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = draw_rows(60)
    model = make_pipeline(FunctionTransformer(copy.deepcopy), linear_model.Ridge()).fit(rows, rows[:, 0])
    file = saved(tmp_path, model)
    with pytest.raises(DataError, match="which is code, and TRAINBOX_SERVE_CODE is never"):
        load(tmp_path, file, code=False)
    assert_same(load(tmp_path, file).predict(rows), predict_alone(model, rows))
    assert "loading it runs code" in capfd.readouterr().err


def test_scikit_learns_own_types_need_no_trust(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("forest", "histograms", "neighbours", "boosted"):
        load(tmp_path, saved(tmp_path, fitted(name)), code=False)
    assert capfd.readouterr().err == ""


def test_what_is_no_estimator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.joblib").write_bytes(pickled({"a": 1}))
    with pytest.raises(DataError, match="holds dict, which does not predict"):
        load(tmp_path, "model.joblib")
    (tmp_path / "model.joblib").write_bytes(b"\x80\x04cno_such_module\nThing\n.")
    with pytest.raises(DataError, match=r"cannot be loaded: ModuleNotFoundError: .*no_such_module.*\n.*code/"):
        load(tmp_path, "model.joblib")
    (tmp_path / "model.skops").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be loaded: BadZipFile"):
        load(tmp_path, "model.skops")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path, "other.skops")


def test_a_forest_whose_tree_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    model = fitted("forest")
    model.estimators_[1].tree_.children_left[0] = 10**6
    with pytest.raises(DataError, match="tree 1 has a child or feature index out of range"):
        load(tmp_path, saved(tmp_path, model))


@pytest.mark.parametrize("kind", ["forest", "boosted", "one tree"])
def test_leaves_are_those_of_apply_one_for_each_tree(kind: str, tmp_path: Path) -> None:
    model = fitted(kind)
    ours, rows = load(tmp_path, saved(tmp_path, model)), draw_rows(20)
    expected = model.apply(rows).reshape(20, -1)
    for form in (rows, scipy.sparse.csr_matrix(rows)):
        found = ours.extras["leaf"](form)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_of_trees_has_no_leaves(tmp_path: Path) -> None:
    assert not load(tmp_path, saved(tmp_path, fitted("neighbours"))).extras


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    ours = load(tmp_path, saved(tmp_path, fitted("forest")))
    with pytest.raises(DataError, match="a row has 4 features, and the model 5"):
        ours.predict(draw_rows(2)[:, :4])


FOREST = fitted("forest", classes=2)


@settings(max_examples=10)
@given(counts=st.lists(st.integers(1, MOST_ROWS), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_requests_that_are_joined_give_each_row_what_it_gets_alone(counts: list[int], seed: int) -> None:
    card = ModelCard(framework="scikit-learn", algorithm="x", objective="classification", features=features_of(NAMES))
    ours = EstimatorPredictor(FOREST, card)
    parts = [draw_rows(count, seed=seed + place) for place, count in enumerate(counts)]
    assert_same(ours.predict(np.concatenate(parts)), np.concatenate([predict_alone(FOREST, rows) for rows in parts]))
