"""A model is read alike by every XGBoost: its base score is one number where it can be; nothing else changes."""

from functools import cache

import numpy as np
import pytest
import xgboost as xgb

from tests.support import boosters
from trainbox.xgboost.model import warn_of_readers
from trainbox.xgboost.readers import base_scores, for_every_reader

BEFORE = b"base_scoreSL"


@cache
def model(kind: str) -> bytes:
    return bytes(boosters.train(kind)[0].save_raw("ubj"))


def text_of(content: bytes) -> bytes:
    """The text itself, by its length."""
    start = content.index(BEFORE) + len(BEFORE)
    length = int.from_bytes(content[start : start + 8], "big")
    return content[start + 8 : start + 8 + length]


@pytest.mark.parametrize("kind", ["binary:logistic", "count:poisson", "dart", "linear", "categories", "no rounds"])
def test_of_one_output_it_is_one_number_and_all_other_bytes_stay(kind: str) -> None:
    before, after = model(kind), for_every_reader(model(kind))
    assert text_of(before) == b"[%s]" % text_of(after)
    at = before.index(BEFORE) + len(BEFORE)
    assert before[:at] == after[:at]
    assert before[at + 8 + len(text_of(before)) :] == after[at + 8 + len(text_of(after)) :]
    assert float(text_of(after)) == float(base_scores(before)[0])
    assert for_every_reader(after) == after
    assert warn_of_readers({"xgboost-model": after}) == ""


def test_names_and_attributes_that_look_like_it_stay_as_they_are() -> None:
    booster, _ = boosters.train("binary:logistic")
    booster.feature_names = ["base_score", "learner_model_param", "base_scoreSL", "[5E-1]"]
    booster.set_attr(base_score="[5E-1]", learner_model_param="{base_scoreSL[5E-1]}")
    before = bytes(booster.save_raw("ubj"))
    after = for_every_reader(before)
    loaded = xgb.Booster(model_file=bytearray(after))
    assert len(before) - len(after) == 2
    assert loaded.feature_names == booster.feature_names
    assert loaded.attributes() == booster.attributes()


def test_what_differs_between_outputs_stays_and_is_told_in_a_line() -> None:
    before = model("softprob")
    assert len({*base_scores(before)}) == 3
    assert for_every_reader(before) == before
    line = warn_of_readers({"xgboost-model": before})
    assert "xgboost-model has a base_score for each of its 3 outputs: XGBoost before 3.1" in line
    assert "base_score=0.5" in line
    assert "\n" not in line


def test_one_base_score_for_several_outputs_is_one_number() -> None:
    given, traits = boosters.KINDS["softprob"]
    matrix = boosters.draw(traits)
    booster = xgb.train({**given, "base_score": 0.5, "nthread": 1}, matrix, 3)
    before = bytes(booster.save_raw("ubj"))
    after = for_every_reader(before)
    assert text_of(after) == b"5E-1"
    loaded = xgb.Booster(model_file=bytearray(after))
    np.testing.assert_array_equal(loaded.predict(matrix), booster.predict(matrix))
    assert warn_of_readers({"xgboost-model": after}) == ""
