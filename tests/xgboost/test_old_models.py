"""Models in the old binary format, and pickled boosters: read with the same bits, and nothing of them runs."""

import collections
import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.boosters import train
from tests.support.old_boosters import stump
from tests.support.shared_data import shared
from trainbox.errors import DataError
from trainbox.xgboost.model_check import check_model
from trainbox.xgboost.old_models import convert, is_old
from trainbox.xgboost.predictor import load_predictor

ROWS = np.array([[0.2, 7.0], [0.6, 7.0], [np.nan, 7.0]], np.float32)


def margins(booster: xgb.Booster) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = booster.predict(xgb.DMatrix(ROWS, nthread=1), output_margin=True)
    return found


@pytest.mark.parametrize(
    ("objective", "base_score", "major", "margin"),
    [
        ("reg:linear", 0.5, 0, 0.5),
        ("binary:logistic", 0.5, 1, 0.0),
        # XGBoost before 1.0 wrote the margin.
        ("binary:logistic", 0.25, 0, 0.25),
        ("count:poisson", 0.25, 0, 0.25),
    ],
)
def test_a_tree_of_the_binary_format_predicts_what_it_says(
    objective: str, base_score: float, major: int, margin: float
) -> None:
    model = convert(stump(objective, base_score=base_score, major=major), source="old")
    known = check_model(model, source="converted")
    assert (known.features, known.trees, known.rounds) == (2, 1, 1)
    booster = xgb.Booster(model_file=bytearray(model))
    assert booster.attributes() == {"note": "é"}
    np.testing.assert_allclose(margins(booster), np.array([-0.25, 0.75, -0.25]) + margin, rtol=1e-6, atol=1e-6)
    assert convert(b"binf" + stump(objective, base_score=base_score, major=major), source="old") == model


@pytest.mark.parametrize("kind", ["binary:logistic", "softprob", "dart", "linear", "names"])
def test_a_booster_that_was_pickled_is_read_without_making_one(kind: str, tmp_path: Path) -> None:
    booster, _ = train(kind)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(booster))
    ours = load_predictor(tmp_path, ["model.pkl"], None)
    rows = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    expected = booster.predict(xgb.DMatrix(rows, nthread=1), validate_features=False)
    assert ours.predict(rows).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["saved_booster", "pickled_model"])
def test_models_of_the_built_in_answer_as_in_its_own_xgboost(name: str, tmp_path: Path) -> None:
    content = shared(f"xgboost-container/models/{name}/xgboost-model").read_bytes()
    (tmp_path / "xgboost-model").write_bytes(content)
    ours = load_predictor(tmp_path, ["xgboost-model"], None)
    assert (ours.card.objective, ours.card.classes, ours.card.features.count) == ("multi:softprob", (0, 1, 2), 4)
    rows = np.random.default_rng(0).uniform(-3, 8, size=(2, 4)).astype(np.float32)
    # Said by XGBoost 1.7.6 and 3.0.5.
    expected = [[0.99157566, 0.00471861, 0.00370571], [0.02436437, 0.5352254, 0.44041026]]
    rows[0, 1] = np.nan
    np.testing.assert_allclose(ours.predict(rows), np.array(expected, np.float32), rtol=2e-6)


def test_a_model_of_the_built_in_in_ubjson_is_served() -> None:
    path = shared("xgboost-container/abalone/models/libsvm_pickled/xgboost-model")
    ours = load_predictor(path.parent, [path.name], None)
    booster = xgb.Booster(model_file=bytearray(path.read_bytes()))
    rows = np.random.default_rng(0).uniform(0, 1, size=(20, ours.card.features.count)).astype(np.float32)
    assert ours.predict(rows).tobytes() == booster.predict(xgb.DMatrix(rows, nthread=1)).tobytes()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


@pytest.mark.parametrize("found", [Evil(), collections.OrderedDict(), {"handle": b"x"}, [Evil()]])
def test_a_pickle_of_something_else_is_refused_before_it_runs(
    found: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"old is not a model of XGBoost: the pickle (asks for|holds no)"):
        convert(pickle.dumps(found), source="old")
    assert not list(tmp_path.iterdir())


def test_json_and_ubjson_are_not_old() -> None:
    booster, _ = train("binary:logistic")
    assert not any(is_old(bytes(booster.save_raw(form))) for form in ("ubj", "json"))
    assert is_old(pickle.dumps(booster))


MODEL = stump("binary:logistic", base_score=0.5, major=1)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_model_is_refused_or_is_one_that_the_check_takes(data: st.DataObject) -> None:
    content = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(DataError):
        check_model(convert(cut, source="old"), source="old")
