"""A model of XGBoost answers with the bits of `Booster.predict`, whatever it is made of and however many rows ask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.boosters import FEATURES, KINDS, train
from trainbox.contract.model_card import ModelCard, classes_of, features_of
from trainbox.errors import DataError
from trainbox.xgboost import predictor
from trainbox.xgboost.c_api import Booster, Library
from trainbox.xgboost.fold_predictions import combine_folds
from trainbox.xgboost.predictor import XGBoostPredictor, load_predictor
from trainbox.xgboost.readers import for_every_reader

MOST_ROWS = 130
#: One of each way that a prediction is made; the others are `long`.
COMMON = (
    "binary:logistic",
    "softprob",
    "softmax",
    "dart of classes",
    "linear of classes",
    "categories",
    "survival:aft",
)


def draw_rows(kind: str, count: int, *, seed: int = 3) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, FEATURES)).astype(np.float32)
    if KINDS[kind][1].get("categories"):
        rows[:, 1:3] = random.integers(0, 40, size=(count, 2))
    rows[random.random(rows.shape) < 0.2] = np.nan
    return rows


def card_of(kind: str) -> ModelCard:
    given, traits = KINDS[kind]
    names = traits.get("names") or [f"f{place}" for place in range(FEATURES)]
    codes = [names[1], names[2]] if traits.get("categories") else []
    objective = str(given.get("objective", "reg:squarederror"))
    return ModelCard(
        framework="xgboost",
        algorithm="xgboost",
        objective=objective,
        features=features_of(names, dict.fromkeys(codes, "code")),
        classes=classes_of(objective, given.get("num_class")),
    )


def predict_alone(kind: str, booster: xgb.Booster, rows: Any) -> npt.NDArray[np.float32]:
    types = ["q", "c", "c", "q"] if KINDS[kind][1].get("categories") else None
    matrix = xgb.DMatrix(rows, feature_types=types, enable_categorical=types is not None, nthread=1)
    found: npt.NDArray[np.float32] = booster.predict(matrix, validate_features=False)
    return found


def saved(directory: Path, *boosters: xgb.Booster, form: str = "ubj") -> tuple[str, ...]:
    """As training saves one, or those of folds."""
    names = ["xgboost-model"] if len(boosters) == 1 else [f"xgboost-model-{n}" for n in range(len(boosters))]
    for name, booster in zip(names, boosters, strict=True):
        content = bytes(booster.save_raw(form))
        (directory / name).write_bytes(for_every_reader(content) if form == "ubj" else content)
    return tuple(names)


def of_library(booster: xgb.Booster) -> Booster:
    return Booster(Library(), bytes(booster.save_raw()))


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "kind", [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_the_answers_are_those_of_the_library_to_the_bit(kind: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of(kind))
    assert ours.is_rowwise
    rows = draw_rows(kind, MOST_ROWS)
    expected = predict_alone(kind, booster, rows)
    for count in (0, 1, 2, 3, 5, 7, 8, 64, 65, MOST_ROWS):
        assert_same(ours.predict(rows[:count]), expected[:count])
    alone = np.concatenate([ours.predict(rows[place : place + 1]) for place in range(MOST_ROWS)])
    assert_same(alone, expected)
    ours.set_threads(2)
    assert_same(ours.predict(rows), expected)


@pytest.mark.parametrize("kind", ["binary:logistic", "softprob", "linear"])
def test_sparse_rows_lack_what_they_do_not_store(kind: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of(kind))
    dense = draw_rows(kind, 20)
    rows = scipy.sparse.csr_matrix(np.nan_to_num(dense, nan=0.0))
    assert_same(ours.predict(rows), predict_alone(kind, booster, rows))
    assert_same(ours.predict(rows), predict_alone(kind, booster, np.where(rows.toarray() == 0, np.nan, dense)))


def trained_folds(kind: str) -> Sequence[xgb.Booster]:
    given, traits = KINDS[kind]
    _, matrix = train(kind)
    places = np.arange(matrix.num_row())
    params = {"max_depth": 3, "nthread": 1, "verbosity": 0, **given}
    return [xgb.train(params, matrix.slice(places[places % 3 != fold]), traits.get("rounds", 4)) for fold in range(3)]


@pytest.mark.parametrize("kind", ["binary:logistic", "softprob", "softmax", "binary:hinge"])
def test_the_models_of_several_folds_answer_together_or_only_the_first(kind: str, tmp_path: Path) -> None:
    boosters = trained_folds(kind)
    names, card = saved(tmp_path, *boosters), card_of(kind)
    rows = draw_rows(kind, 40)
    said = [predict_alone(kind, booster, rows) for booster in boosters]
    all_of_them = load_predictor(tmp_path, names, card)
    assert_same(all_of_them.predict(rows), combine_folds(said, card.objective))
    assert_same(load_predictor(tmp_path, names, card, use_ensemble=False).predict(rows), said[0])
    with pytest.raises(DataError, match="several folds"):
        all_of_them.contributions(rows)
    with pytest.raises(DataError, match="leaves are not available for a model of several folds"):
        all_of_them.leaves(rows)


@pytest.mark.parametrize("kind", ["binary:logistic", "softprob", "dart of classes", "categories", "forest of classes"])
def test_leaves_are_those_of_pred_leaf_one_for_each_tree(kind: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of(kind))
    rows = draw_rows(kind, 20)
    types = ["q", "c", "c", "q"] if KINDS[kind][1].get("categories") else None
    matrix = xgb.DMatrix(rows, feature_types=types, enable_categorical=types is not None, nthread=1)
    expected = booster.predict(matrix, pred_leaf=True, validate_features=False)
    assert_same(ours.leaves(rows), expected.astype(np.int32))
    assert_same(ours.extras["leaf"](rows[:1]), expected[:1].astype(np.int32))
    sparse = scipy.sparse.csr_matrix(np.nan_to_num(rows, nan=0.0))
    matrix = xgb.DMatrix(sparse, feature_types=types, enable_categorical=types is not None, nthread=1)
    found = booster.predict(matrix, pred_leaf=True, validate_features=False)
    assert_same(ours.leaves(sparse), found.astype(np.int32))


def test_the_leaf_of_a_single_tree_is_a_list_of_one(tmp_path: Path) -> None:
    booster, _ = train("binary:logistic")
    ours = load_predictor(tmp_path, saved(tmp_path, booster[:1]), card_of("binary:logistic"))
    rows = draw_rows("binary:logistic", 5)
    expected = booster[:1].predict(xgb.DMatrix(rows, nthread=1), pred_leaf=True)
    assert_same(ours.leaves(rows), expected.astype(np.int32).reshape(5, 1))


def test_a_model_without_trees_has_no_leaves(tmp_path: Path) -> None:
    booster, _ = train("linear")
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of("linear"))
    with pytest.raises(DataError, match=r"leaves are not available for this model: .*gblinear"):
        ours.leaves(draw_rows("linear", 2))


def test_contributions_add_up_to_the_margin(tmp_path: Path) -> None:
    booster, _ = train("binary:logistic")
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of("binary:logistic"))
    rows = draw_rows("binary:logistic", 9)
    found = ours.contributions(rows)
    assert found.shape == (9, FEATURES + 1)
    margin = booster.predict(xgb.DMatrix(rows, nthread=1), output_margin=True)
    np.testing.assert_allclose(found.sum(axis=1), margin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(("softprob", 3), ("softmax", 3), ("two targets", 2)),
        *(("linear of classes", 3), ("dart of classes", 3), ("forest of classes", 3)),
    ],
)
def test_each_of_several_outputs_has_contributions_that_add_up_to_its_margin(
    kind: str, count: int, tmp_path: Path
) -> None:
    booster, _ = train(kind)
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of(kind))
    rows = draw_rows(kind, 9)
    found = ours.contributions(rows)
    assert found.shape == (9, count, FEATURES + 1)
    margin = booster.predict(xgb.DMatrix(rows, nthread=1), output_margin=True)
    np.testing.assert_allclose(found.sum(axis=2), margin, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_say_what_contributes_is_named(tmp_path: Path) -> None:
    kind = "a tree for two targets"
    booster, _ = train(kind)
    ours, rows = load_predictor(tmp_path, saved(tmp_path, booster), card_of(kind)), draw_rows(kind, 2)
    try:
        expected = booster.predict(xgb.DMatrix(rows, nthread=1), pred_contribs=True)
    except xgb.core.XGBoostError:  # up to 3.2
        with pytest.raises(DataError, match="contributions are not available for this model: "):
            ours.contributions(rows)
    else:
        assert_same(ours.contributions(rows), expected)


@pytest.mark.parametrize("form", ["ubj", "json"])
@pytest.mark.parametrize("kind", ["names", "categories", "softprob"])
def test_a_foreign_model_says_itself_what_it_expects(kind: str, form: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    ours = load_predictor(tmp_path, saved(tmp_path, booster, form=form), None)
    assert msgspec.structs.replace(ours.card, versions={}, iterations=None) == card_of(kind)
    rows = draw_rows(kind, 20)
    assert_same(ours.predict(rows), predict_alone(kind, booster, rows))


def test_a_damaged_model_and_one_of_another_card_are_refused(tmp_path: Path) -> None:
    booster, _ = train("binary:logistic")
    names = saved(tmp_path, booster)
    wide = msgspec.structs.replace(card_of("binary:logistic"), features=features_of([f"f{n}" for n in range(9)]))
    with pytest.raises(DataError, match="has 4 features, and its card 9"):
        load_predictor(tmp_path, names, wide)
    content = (tmp_path / names[0]).read_bytes()
    (tmp_path / names[0]).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is not a model of XGBoost"):
        load_predictor(tmp_path, names, card_of("binary:logistic"))
    with pytest.raises(DataError, match="cannot be read"):
        load_predictor(tmp_path, ["xgboost-model-7"], None)


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    booster, _ = train("binary:logistic")
    ours = load_predictor(tmp_path, saved(tmp_path, booster), card_of("binary:logistic"))
    with pytest.raises(DataError, match="a row has 3 features, and the model 4"):
        ours.predict(np.zeros((2, 3), np.float32))


@pytest.fixture(scope="module")
def logistic() -> tuple[xgb.Booster, XGBoostPredictor]:
    booster, _ = train("binary:logistic")
    return booster, XGBoostPredictor([of_library(booster)], card_of("binary:logistic"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, MOST_ROWS), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_requests_that_are_joined_give_each_row_what_it_gets_alone(
    logistic: tuple[xgb.Booster, XGBoostPredictor], counts: list[int], seed: int
) -> None:
    booster, ours = logistic
    parts = [draw_rows("binary:logistic", count, seed=seed + place) for place, count in enumerate(counts)]
    expected = np.concatenate([predict_alone("binary:logistic", booster, rows) for rows in parts])
    assert_same(ours.predict(np.concatenate(parts)), expected)
    assert_same(np.concatenate([ours.predict(rows) for rows in parts]), expected)


def test_weights_of_dropout_are_seen_in_every_shape_of_a_model() -> None:
    for kind, plain in {"binary:logistic": True, "softprob": True, "dart": False, "linear": False}.items():
        assert predictor.has_plain_trees(of_library(train(kind)[0])) is plain, kind
