"""Each metric is what scikit-learn says it is, on the right scale; and where it is not defined, not-a-number."""

import math
import warnings
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn import metrics

from tests.support.growth import make_data, make_table
from trainbox.sklearn.data import targets
from trainbox.sklearn.forests.growing import grow
from trainbox.sklearn.forests.parts import forest_class
from trainbox.sklearn.forests.scorer import ForestScorer
from trainbox.sklearn.params import EstimatorParams, constructor_arguments, declare
from trainbox.sklearn.scores import score_classes, score_numbers

RANDOM = np.random.default_rng(3)
LABELS = RANDOM.integers(0, 3, 200)
SHARES = RANDOM.dirichlet([2, 2, 2], 200)
WEIGHTS = RANDOM.integers(0, 4, 200).astype(np.float32)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_scores_of_several_classes_are_scikit_learns(weights: Any) -> None:
    guesses = SHARES.argmax(axis=1)
    found = score_classes(LABELS, guesses, SHARES, (0, 1, 2), weights=weights)
    assert found == {
        "accuracy": pytest.approx(metrics.accuracy_score(LABELS, guesses, sample_weight=weights)),
        "auc": pytest.approx(metrics.roc_auc_score(LABELS, SHARES, multi_class="ovr", sample_weight=weights)),
        "f1": pytest.approx(metrics.f1_score(LABELS, guesses, average="macro", sample_weight=weights)),
        "logloss": pytest.approx(metrics.log_loss(LABELS, SHARES, sample_weight=weights)),
    }


def test_scores_of_two_classes_are_scikit_learns() -> None:
    labels, shares = np.where(LABELS > 1, 7, 3), np.column_stack([1 - SHARES[:, 2], SHARES[:, 2]])
    guesses = np.where(shares[:, 1] > 0.5, 7, 3)
    found = score_classes(labels, guesses, shares, (3, 7))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels == 7, shares[:, 1]))
    assert found["accuracy"] == pytest.approx((labels == guesses).mean())
    assert found["logloss"] == pytest.approx(metrics.log_loss(labels == 7, shares))


def test_scores_of_numbers_are_scikit_learns() -> None:
    labels, said = RANDOM.normal(size=50), RANDOM.normal(size=50)
    found = score_numbers(labels, said, WEIGHTS[:50])
    assert found["r2"] == pytest.approx(metrics.r2_score(labels, said, sample_weight=WEIGHTS[:50]))
    assert found["rmse"] == pytest.approx(math.sqrt(np.average((labels - said) ** 2, weights=WEIGHTS[:50])))
    assert found["mae"] == pytest.approx(np.average(abs(labels - said), weights=WEIGHTS[:50]))


UNDEFINED = {
    "a class that does not occur": (LABELS[LABELS < 2], SHARES[LABELS < 2], None, {"auc"}),
    "one class alone": (np.zeros(5, int), SHARES[:5], None, {"auc"}),
    "no row": (LABELS[:0], SHARES[:0], None, {"accuracy", "auc", "f1", "logloss"}),
    "no row with a weight": (LABELS[:9], SHARES[:9], np.zeros(9), {"accuracy", "auc", "f1", "logloss"}),
    "a class whose rows have no weight": (LABELS, SHARES, (LABELS < 2) * 1.0, {"auc"}),
    "shares that are none": (LABELS, np.full((200, 3), math.nan), None, {"auc", "logloss"}),
}


@pytest.mark.parametrize(("labels", "shares", "weights", "undefined"), UNDEFINED.values(), ids=UNDEFINED.keys())
def test_what_is_not_defined_is_not_a_number_and_no_exception(
    labels: Any, shares: Any, weights: Any, undefined: set[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_classes(labels, shares.argmax(axis=1), shares, (0, 1, 2), weights=weights)
    assert {name for name, score in found.items() if math.isnan(score)} == undefined


def test_of_one_number_alone_there_is_no_r2() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_numbers(np.array([1.0]), np.array([3.0]))
        assert all(map(math.isnan, score_numbers(np.zeros(0), np.zeros(0)).values()))
    assert math.isnan(found["r2"])
    assert (found["rmse"], found["mae"]) == (2.0, 2.0)


def test_without_probabilities_there_is_no_log_loss_and_without_any_ranking_no_auc() -> None:
    guesses, margins = SHARES.argmax(axis=1), np.log(SHARES)
    found = score_classes(LABELS, guesses, margins, (0, 1, 2), are_shares=False)
    assert math.isnan(found["logloss"])
    assert found["auc"] == score_classes(LABELS, guesses, SHARES, (0, 1, 2))["auc"]
    assert math.isnan(score_classes(LABELS, guesses, None, (0, 1, 2))["auc"])


@pytest.mark.parametrize("task", ["two", "three", "regression"])
def test_the_judge_scores_after_each_group_and_out_of_bag_as_scikit_learn_does(task: str) -> None:
    kind: Any = "regression" if task == "regression" else "classification"
    params = EstimatorParams(
        task=kind, n_estimators=50, oob_score=True, n_jobs=2, checkpoint_every=20, class_weight=None
    )
    data = make_data(task)
    held_out = make_table(task, seed=9)
    data = msgspec.structs.replace(data, held_out=held_out, has_held_out=True)
    judge = ForestScorer(params, data)
    with grow(params, data, [range(20), range(20, 50)]) as growing:
        told = [one for part in growing for one in judge.add_part(part)]
    assert [step for step, _ in told] == [20, 40, 50]
    plain = forest_class(params)(n_estimators=50, random_state=42, oob_score=True, **constructor_arguments(params)).fit(
        data.train.features, targets(data.train, params)
    )
    scores = told[-1][1]
    assert scores == judge.scores()
    assert scores["train:oob"] == pytest.approx(plain.oob_score_)
    quality = scores["validation:r2" if task == "regression" else "validation:accuracy"]
    assert quality == pytest.approx(plain.score(held_out.features, targets(held_out, params)))
    assert {metric.name for metric in declare(params)} > set(scores)


def test_out_of_bag_with_weights_asks_only_trees_that_have_not_seen_a_row() -> None:
    params = EstimatorParams(n_estimators=40, oob_score=True, n_jobs=1, class_weight="balanced", max_samples=0.4)
    data = make_data(weights=np.random.default_rng(1).integers(1, 5, 300).astype(np.float32))
    judge = ForestScorer(params, data)
    with grow(params, data, [range(40)]) as growing:
        told = list(judge.add_part(next(growing)))
    plain = forest_class(params)(n_estimators=40, random_state=42, oob_score=True, **constructor_arguments(params))
    plain.fit(data.train.features, targets(data.train, params), sample_weight=data.train.weights)
    assert told[-1][1]["train:oob"] == pytest.approx(plain.oob_score_)


def test_trees_that_were_judged_before_are_heard_without_a_word() -> None:
    params, data = EstimatorParams(n_estimators=6, n_jobs=1, checkpoint_every=2), make_data()
    with grow(params, data, [range(2), range(2, 4), range(4, 6)]) as growing:
        parts = list(growing)
    one, other = ForestScorer(params, data), ForestScorer(params, data)
    everything = [told for part in parts for told in one.add_part(part)]
    other.restore(parts[:2])
    assert [told for part in parts[2:] for told in other.add_part(part)] == everything[2:]


def test_metrics_are_declared_for_both_channels_and_out_of_bag_where_asked_for() -> None:
    names = [metric.name for metric in declare(EstimatorParams(oob_score=True))]
    assert names[:4] == ["train:accuracy", "train:auc", "train:f1", "train:logloss"]
    assert names[-1] == "train:oob"
    goals = {metric.name: metric.goal for metric in declare(EstimatorParams(task="regression"))}
    assert goals["validation:r2"] == "maximize"
    assert goals["validation:mae"] == goals["validation:rmse"] == "minimize"
    assert "train:oob" not in goals
