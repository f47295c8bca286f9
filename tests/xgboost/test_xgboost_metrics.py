"""Metrics of XGBoost: on the right scale, exact over members, and in lines that the built-in's regexes read."""

import functools
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from trainbox.contract.params import parse
from trainbox.errors import DataError
from trainbox.xgboost import scores
from trainbox.xgboost.metrics import Truths, evaluate
from trainbox.xgboost.params.catalogue import METRICS, goal, is_well_formed, split
from trainbox.xgboost.params.hyperparameters import (
    XGBoostParams,
    booster_parameters,
    builtin_regexes,
    declare,
    line,
    metric_names,
    objective_name,
    objective_of,
)

MAXIMIZED = (
    *("accuracy", "auc", "aucpr", "balanced_accuracy", "f1", "f1_binary", "f1_macro", "map", "ndcg"),
    *("precision", "r2", "recall", "precision_macro", "precision_micro", "recall_macro", "recall_micro"),
)
MINIMIZED = (
    *("aft-nloglik", "cox-nloglik", "error", "gamma-deviance", "gamma-nloglik", "interval-regression-accuracy"),
    *("logloss", "mae", "mape", "merror", "mlogloss", "mphe", "mse", "poisson-nloglik", "rmse", "rmsle"),
    *("tweedie-nloglik",),
)
CLASSES = (
    *("accuracy", "balanced_accuracy", "f1", "f1_macro", "precision_macro", "precision_micro", "recall_macro"),
    *("recall_micro",),
)
TWO_CLASSES = (*CLASSES, "f1_binary", "precision", "recall")

S = TypeVar("S", bound=np.generic)
Floats = npt.NDArray[np.float64]

RANDOM = np.random.default_rng(6)
ROWS = 240
FEATURES = RANDOM.random((ROWS, 4)).astype(np.float32)
NOISE = RANDOM.normal(size=ROWS) * 0.3
NUMBERS = (FEATURES[:, 0] * 3 + FEATURES[:, 1] * FEATURES[:, 2] + NOISE + 1).astype(np.float32)
TWO = (NUMBERS > 3.2).astype(np.float32)
THREE = np.digitize(NUMBERS, [2.0, 3.4]).astype(np.float32)
WEIGHTS = RANDOM.random(ROWS).astype(np.float32)


def make(**given: object) -> XGBoostParams:
    return XGBoostParams(num_round=3, nthread=1, **given)  # type: ignore[arg-type]  # tests give what they like


def fit(params: XGBoostParams, matrix: xgb.DMatrix, rounds: int = 4) -> xgb.Booster:
    booster = xgb.Booster(booster_parameters(params, version=xgb.__version__) | {"verbosity": 0}, [matrix])
    for step in range(rounds):
        booster.update(matrix, step)
    return booster


def scores_of(params: XGBoostParams, matrix: xgb.DMatrix, booster: xgb.Booster | None = None) -> dict[str, float]:
    found = evaluate(booster or fit(params, matrix), {"train": matrix}, metric_names(params), params=params)
    return {name.removeprefix("train:"): value for name, value in found.items()}


# ---- names ----


@pytest.mark.parametrize("name", [*MAXIMIZED, *MINIMIZED])
def test_every_metric_of_the_builtin_is_known_and_read_by_its_published_regex(name: str) -> None:
    assert name in METRICS
    assert is_well_formed(name)
    said = line(7, {"train:rmse": 1.5, f"validation:{name}": 0.25, "validation:zzz": 3.0})
    published = rf".*\[[0-9]+\].*#011validation-{name}:(\S+)"
    found = re.match(published, said.replace("\t", "#011"))
    assert found is not None
    assert found[1].partition("#011")[0] == "0.25000"


@pytest.mark.parametrize("name", [*MAXIMIZED, *MINIMIZED])
def test_which_way_is_better_is_as_the_builtin_says_but_for_one(name: str) -> None:
    expected = "maximize" if name in MAXIMIZED or name == "interval-regression-accuracy" else "minimize"
    assert goal(f"validation:{name}") == expected


@pytest.mark.parametrize("shown", ["\t", "#011"])
def test_our_regexes_read_the_line_with_tabs_and_as_cloudwatch_shows_it(shown: str) -> None:
    values = {"train:ndcg@5-": 0.125, "train:error@0.7": 0.5, "validation:error@0.7": 0.75, "validation:auc": 0.8}
    said = line(12, values).replace("\t", shown)
    for name, regex in builtin_regexes(values).items():
        assert len(regex) <= 500
        found = re.search(regex, said)
        assert found is not None
        assert float(found[1].partition("#011")[0]) == values[name]
    assert re.search(builtin_regexes(["train:error@0x7"])["train:error@0x7"], said) is None
    assert re.search(builtin_regexes(["train:error@0.7"])["train:error@0.7"], said.replace("0.7:", "0x7:")) is None


def test_the_line_is_the_one_that_xgboost_prints(capsys: pytest.CaptureFixture[str]) -> None:
    params = make(objective="binary:logistic", eval_metric=("logloss", "error"))
    matrix = xgb.DMatrix(FEATURES, TWO)
    settings_ = booster_parameters(params, version=xgb.__version__) | {"eval_metric": ["logloss", "error"]}
    evals = [(matrix, "train"), (matrix, "validation")]
    booster = xgb.train(settings_, matrix, 1, evals=evals, verbose_eval=True)
    printed = capsys.readouterr().out.splitlines()[0]
    values = evaluate(booster, {"train": matrix, "validation": matrix}, metric_names(params), params=params)
    assert line(0, values) == printed


def test_the_objective_is_the_last_metric_or_the_tuners() -> None:
    assert metric_names(make(eval_metric=("mae", "rmse", "mae"))) == ("mae", "rmse")
    assert objective_name(make(eval_metric=("mae", "rmse"))) == "rmse"
    tuned = make(eval_metric=("mae", "rmse"), tuning_objective_metric="validation:mae")
    assert metric_names(tuned) == ("rmse", "mae")
    assert objective_of(tuned).name == "validation:mae"
    assert metric_names(make(tuning_objective_metric="validation:r2")) == ("r2",)
    assert objective_of(make(tuning_objective_metric="validation:r2")).goal == "maximize"


def test_metrics_are_declared_for_both_channels_also_before_anything_required_is_known() -> None:
    params = parse(XGBoostParams, {"objective": "binary:logistic", "eval_metric": "auc,error@0.7"}, partial=True)
    assert [(metric.name, metric.goal) for metric in declare(params)] == [
        ("train:auc", "maximize"),
        ("train:error@0.7", "minimize"),
        ("validation:auc", "maximize"),
        ("validation:error@0.7", "minimize"),
    ]
    declared = declare(parse(XGBoostParams, {"eval_metric": "rmse"}, partial=True))
    assert [metric.name for metric in declared] == ["train:rmse", "validation:rmse"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("auc", ("auc", "")),
        ("train:ndcg@10-", ("ndcg", "10")),
        ("error@1e-2", ("error", "1e-2")),
        ("map-", ("map", "")),
    ],
)
def test_a_name_is_split_into_kind_and_suffix(name: str, parts: tuple[str, str]) -> None:
    assert split(name) == parts


# ---- the right scale ----


SCIKIT_LEARN: Mapping[str, Callable[..., float]] = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "f1": lambda *rows, **how: sk.f1_score(*rows, average="macro", **how),
    "f1_macro": lambda *rows, **how: sk.f1_score(*rows, average="macro", **how),
    "f1_binary": sk.f1_score,
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    **{
        f"{name}_{average}": lambda *rows, score=score, average=average, **how: score(*rows, average=average, **how)
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score))
        for average in ("macro", "micro")
    },
}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("objective", "classes"),
    [("binary:logistic", 2), ("binary:logitraw", 2), ("binary:hinge", 2), ("multi:softmax", 3), ("multi:softprob", 3)],
)
def test_metrics_of_classes_are_scikit_learns(objective: str, classes: int, weights: Floats | None) -> None:
    binary = classes == 2
    labels = TWO if binary else THREE
    names = TWO_CLASSES if binary else CLASSES
    params = make(objective=objective, eval_metric=tuple(names), num_class=None if binary else classes)
    matrix = xgb.DMatrix(FEATURES, labels, weight=weights)
    booster = fit(params, matrix)
    said = booster.predict(matrix)
    guessed = (
        said.argmax(axis=1) if said.ndim == 2 else said if classes == 3 else said > (0 if "raw" in objective else 0.5)
    )
    expected = {name: SCIKIT_LEARN[name](labels, guessed, sample_weight=weights) for name in names}
    assert scores_of(params, matrix, booster) == pytest.approx(expected, abs=1e-12)
    assert 0.7 < expected["accuracy"] < 1  # neither chance nor perfect, so that a wrong scale would show


def test_what_is_so_is_asked_of_each_matrix_once_and_forgotten_with_it() -> None:
    params = make(objective="binary:logistic", eval_metric=("auc", "accuracy"))
    first, second = xgb.DMatrix(FEATURES, TWO), xgb.DMatrix(FEATURES, 1 - TWO)
    booster, truths = fit(params, first), Truths()
    for matrices in ({"train": first, "validation": second}, {"train": second, "validation": first}):
        for _ in range(2):
            found = evaluate(booster, matrices, metric_names(params), params=params, truths=truths)
            assert found == evaluate(booster, matrices, metric_names(params), params=params)
    assert truths.of(first, params) is truths.of(first, params)
    forgotten = weakref.ref(truths.of(second, params).labels)
    del second, matrices
    assert forgotten() is None


def test_accuracy_is_not_the_share_of_positives() -> None:
    """The incumbent takes probabilities for margins, so that every row counts as positive."""
    params = make(objective="binary:logistic", eval_metric=("accuracy", "error"))
    found = scores_of(params, xgb.DMatrix(FEATURES, TWO))
    assert found["accuracy"] == pytest.approx(1 - found["error"])
    assert abs(found["accuracy"] - TWO.mean()) > 0.05


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_margins_are_judged_as_the_probabilities_that_they_are(weights: Floats | None) -> None:
    """XGBoost itself takes the margins of binary:logitraw for probabilities: a log loss of 4."""
    params = make(objective="binary:logitraw", eval_metric=("logloss", "error", "error@0.3", "auc"))
    matrix = xgb.DMatrix(FEATURES, TWO, weight=weights)
    booster = fit(params, matrix)
    chance = 1 / (1 + np.exp(-booster.predict(matrix).astype(np.float64)))
    assert scores_of(params, matrix, booster) == pytest.approx(
        {
            "logloss": sk.log_loss(TWO, chance, sample_weight=weights),
            "error": 1 - sk.accuracy_score(TWO, chance > 0.5, sample_weight=weights),
            "error@0.3": 1 - sk.accuracy_score(TWO, chance > 0.3, sample_weight=weights),
            "auc": sk.roc_auc_score(TWO, chance, sample_weight=weights),
        }
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_metrics_of_amounts_are_scikit_learns(outputs: int, weights: Floats | None) -> None:
    labels = NUMBERS if outputs == 1 else np.column_stack([NUMBERS, NUMBERS**2]).astype(np.float32)
    params = make(eval_metric=("r2", "mse", "rmse", "mae"), label_columns=outputs)
    matrix = xgb.DMatrix(FEATURES, labels, weight=weights)
    booster = fit(params, matrix)
    rows = (labels.astype(np.float64), booster.predict(matrix).astype(np.float64))
    found = scores_of(params, matrix, booster)
    assert found["r2"] == pytest.approx(sk.r2_score(*rows, sample_weight=weights), rel=1e-12)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(*rows, sample_weight=weights), rel=1e-12)
    if outputs == 1:  # XGBoost's own: all digits of a number of single precision, and more
        assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(*rows, sample_weight=weights), rel=1e-6)
        assert found["mae"] == pytest.approx(sk.mean_absolute_error(*rows, sample_weight=weights), rel=1e-6)
        assert found["rmse"] != round(found["rmse"], 9)


def test_r2_holds_where_labels_are_large_and_close_together() -> None:
    labels = (NUMBERS + 2**18).astype(np.float32)
    params = make(eval_metric=("r2",), eta=1.0)
    matrix = xgb.DMatrix(FEATURES, labels)
    booster = fit(params, matrix)
    rows = (labels.astype(np.float64), booster.predict(matrix).astype(np.float64))
    assert scores_of(params, matrix, booster)["r2"] == pytest.approx(sk.r2_score(*rows), rel=1e-9)


# ---- areas under a curve ----


@pytest.mark.parametrize(
    "objective", ["binary:logistic", "binary:hinge", "reg:logistic", "multi:softprob", "multi:softmax"]
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_areas_are_xgboosts_own_and_scikit_learns(objective: str, weights: Floats | None) -> None:
    multi = objective.startswith("multi:")
    labels = THREE if multi else TWO
    params = make(objective=objective, num_class=3 if multi else None, eval_metric=("auc", "aucpr"))
    matrix = xgb.DMatrix(FEATURES, labels, weight=weights)
    booster = fit(params, matrix)
    found = scores_of(params, matrix, booster)
    booster.set_param([("eval_metric", "auc"), ("eval_metric", "aucpr")])
    fields = booster.eval_set([(matrix, "train")]).split("\t")[1:]
    assert list(found.values()) == pytest.approx([float(field.partition(":")[2]) for field in fields], abs=1e-6)
    if objective != "multi:softmax":
        how = {"multi_class": "ovr", "average": "weighted"} if multi else {}
        expected = sk.roc_auc_score(labels, booster.predict(matrix), sample_weight=weights, **how)
        assert found["auc"] == pytest.approx(expected, abs=1e-9)  # the weights are single


def test_labels_between_no_and_yes_count_in_part() -> None:
    params = make(objective="reg:logistic", eval_metric=("auc", "aucpr"))
    matrix = xgb.DMatrix(FEATURES, (TWO * 0.8 + 0.1).astype(np.float32))
    booster = fit(params, matrix)
    found = scores_of(params, matrix, booster)
    booster.set_param([("eval_metric", "auc"), ("eval_metric", "aucpr")])
    fields = booster.eval_set([(matrix, "train")]).split("\t")[1:]
    assert list(found.values()) == pytest.approx([float(field.partition(":")[2]) for field in fields], abs=1e-6)


SCORES = st.floats(width=32, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0]) | SCORES, st.booleans()), max_size=60)
)
def test_the_area_by_ranks_is_the_area_under_the_curve(rows: list[tuple[float, bool]]) -> None:
    said = np.array([row[0] for row in rows], np.float32)
    truth = np.array([row[1] for row in rows], bool)
    expected = scores.area_under_roc(scores.count_scores(said, truth * 1.0, None))
    assert scores.area_by_ranks(said, truth) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    if 0 < truth.sum() < len(truth) and not np.isnan(said).any():
        assert scores.area_by_ranks(said, truth) == pytest.approx(sk.roc_auc_score(truth, said), abs=1e-12)


# ---- members ----


class Member:
    """One of several members in threads of this process."""

    def __init__(self, rank: int, shared: "Meeting") -> None:
        self.rank = rank
        self.size = len(shared.given)
        self._shared = shared

    def total(self, values: Floats) -> Floats:
        return np.asarray(np.sum(self._shared.bring(self.rank, values), axis=0))

    def concatenate(self, values: npt.NDArray[S]) -> npt.NDArray[S]:
        return np.concatenate(self._shared.bring(self.rank, values))

    def any(self, flag: bool) -> bool:
        raise NotImplementedError(flag)


class Meeting:
    def __init__(self, size: int) -> None:
        self.given: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=300)

    def bring(self, rank: int, values: npt.NDArray[S]) -> list[npt.NDArray[S]]:
        self.given[rank] = values
        self._barrier.wait()
        everything = list(self.given)
        self._barrier.wait()
        return everything


def evaluate_apart(
    params: XGBoostParams, booster: xgb.Booster, parts: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[dict[str, float]]:
    meeting = Meeting(len(parts))
    model = booster.save_raw("ubj")

    def judge(rank: int) -> dict[str, float]:
        matrix = xgb.DMatrix(**parts[rank])
        mine = xgb.Booster({"nthread": 1}, [matrix], model_file=bytearray(model))
        return evaluate(mine, {"train": matrix}, names, params=params, group=Member(rank, meeting))

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(judge, range(len(parts))))


CASES = {
    "binary:logistic": (TWO, (*TWO_CLASSES, "auc", "aucpr", "mse", "r2")),
    "binary:logitraw": (TWO, (*TWO_CLASSES, "auc", "logloss", "error@0.4")),
    "multi:softprob": (THREE, (*CLASSES, "auc", "aucpr")),
    "multi:softmax": (THREE, (*CLASSES, "auc")),
    "reg:squarederror": (NUMBERS, ("r2", "mse")),
}


@functools.cache
def trained(objective: str, weighted: bool) -> tuple[XGBoostParams, xgb.Booster, dict[str, float]]:
    labels, names = CASES[objective]
    classes = 3 if objective.startswith("multi:") else None
    params = make(objective=objective, num_class=classes, eval_metric=names)
    matrix = xgb.DMatrix(FEATURES, labels, weight=WEIGHTS if weighted else None)
    booster = fit(params, matrix)
    return params, booster, evaluate(booster, {"train": matrix}, names, params=params)


@pytest.fixture(scope="module", autouse=True)
def _models_end_before_their_library() -> Iterator[None]:
    yield
    trained.cache_clear()


@settings(max_examples=40, deadline=None)
@given(
    objective=st.sampled_from(sorted(CASES)),
    weighted=st.booleans(),
    cuts=st.lists(st.integers(0, ROWS), min_size=1, max_size=3).map(sorted),
    is_sorted=st.booleans(),
)
def test_several_members_have_the_number_of_one_however_rows_are_split(
    objective: str, weighted: bool, cuts: list[int], is_sorted: bool
) -> None:
    params, booster, whole = trained(objective, weighted)
    labels, names = CASES[objective]
    order = np.argsort(labels, kind="stable") if is_sorted else np.arange(ROWS)  # a member with one class alone
    parts = [
        {"data": FEATURES[rows], "label": labels[rows], "weight": WEIGHTS[rows] if weighted else None}
        for rows in np.split(order, cuts)
    ]
    for found in evaluate_apart(params, booster, parts, names):
        assert found == pytest.approx(whole, abs=1e-12)
        assert list(found) == [f"train:{name}" for name in names]


def test_an_average_of_members_would_be_another_number() -> None:
    """What the incumbent logs: on sorted rows each member has one class, and no AUC at all."""
    _, booster, whole = trained("binary:logistic", weighted=False)
    params = make(objective="binary:logistic", eval_metric=("auc", "f1_binary"))
    order = np.argsort(NUMBERS)
    halves = [order[: ROWS // 3], order[ROWS // 3 :]]
    means = [scores_of(params, xgb.DMatrix(FEATURES[rows], TWO[rows]), booster)["f1_binary"] for rows in halves]
    assert abs(np.mean(means) - whole["train:f1_binary"]) > 0.02


# ---- odd rows ----


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_has_no_area_but_an_accuracy(label: float) -> None:
    params, booster, _ = trained("binary:logistic", weighted=False)
    found = scores_of(params, xgb.DMatrix(FEATURES, np.full(ROWS, label, np.float32)), booster)
    assert math.isnan(found["auc"])
    assert math.isnan(found["aucpr"])
    assert 0 < found["accuracy"] < 1
    assert found["precision"] in {0.0, 1.0}


@pytest.mark.parametrize("objective", sorted(CASES))
def test_no_rows_are_no_number_and_no_error(objective: str) -> None:
    params, booster, _ = trained(objective, weighted=False)
    found = scores_of(params, xgb.DMatrix(FEATURES[:0], TWO[:0]), booster)
    assert all(math.isnan(value) for value in found.values())


def test_a_class_that_does_not_occur_is_left_out_of_means_as_scikit_learn_does() -> None:
    params, booster, _ = trained("multi:softprob", weighted=False)
    matrix = xgb.DMatrix(FEATURES[THREE < 2], THREE[THREE < 2])
    found, guessed = scores_of(params, matrix, booster), booster.predict(matrix).argmax(axis=1)
    for name in set(CLASSES) - {"balanced_accuracy"}:  # of which scikit-learn warns
        expected = SCIKIT_LEARN[name](THREE[THREE < 2], guessed, **({} if name == "accuracy" else {"zero_division": 0}))
        assert found[name] == pytest.approx(expected)
    assert math.isnan(found["auc"])


def test_a_label_that_is_no_class_is_named_with_its_channel() -> None:
    params, booster, _ = trained("multi:softprob", weighted=False)
    for wrong in (3.0, -1.0, 0.5):
        labels = THREE.copy()
        labels[5] = wrong
        matrix = xgb.DMatrix(FEATURES, labels)
        with pytest.raises(DataError, match=rf"channel validation: a label is {wrong:g}"):
            evaluate(booster, {"validation": matrix}, ["accuracy"], params=params)


def test_constant_labels_have_no_variance_to_explain() -> None:
    params, booster, _ = trained("reg:squarederror", weighted=False)
    found = scores_of(params, xgb.DMatrix(FEATURES, np.full(ROWS, 2.0, np.float32)), booster)
    assert found["r2"] == 0.0
    assert math.isnan(scores_of(params, xgb.DMatrix(FEATURES[:1], NUMBERS[:1]), booster)["r2"])


def test_predictions_that_are_not_numbers_have_no_area() -> None:
    params = make(objective="binary:logistic", eval_metric=("auc", "aucpr"))
    matrix = xgb.DMatrix(FEATURES, TWO, base_margin=np.full(ROWS, np.nan, np.float32))
    _, booster, _ = trained("binary:logistic", weighted=False)
    assert all(math.isnan(value) for value in scores_of(params, matrix, booster).values())


# ---- XGBoost's own ----


def test_tweedies_metric_has_the_power_of_the_objective_and_the_builtins_name() -> None:
    params = make(
        objective="reg:tweedie",
        tweedie_variance_power=1.3,
        eval_metric=("tweedie-nloglik@1.3", "tweedie-nloglik@1.7", "tweedie-nloglik"),
    )
    found = scores_of(params, xgb.DMatrix(FEATURES, NUMBERS))
    assert found["tweedie-nloglik"] == found["tweedie-nloglik@1.3"] != found["tweedie-nloglik@1.7"]
    assert metric_names(make(objective="reg:tweedie")) == ("tweedie-nloglik",)


def test_ranking_is_judged_by_group_by_xgboost_itself() -> None:
    groups = np.repeat(np.arange(ROWS // 10), 10)
    weights = RANDOM.random(ROWS // 10)
    params = make(
        objective="rank:ndcg", eval_metric=("ndcg", "ndcg@3-", "map@2", "pre", "auc"), lambdarank_pair_method="mean"
    )
    matrix = xgb.DMatrix(FEATURES, TWO, qid=groups, weight=weights)
    booster = fit(params, matrix)
    found = scores_of(params, matrix, booster)
    assert 0.5 < found["auc"] <= 1
    said = booster.predict(matrix).reshape(-1, 10)
    gains = [
        sk.ndcg_score([truth], [guess]) if truth.any() else 1.0
        for truth, guess in zip(TWO.reshape(-1, 10), said, strict=True)
    ]
    assert found["ndcg"] == pytest.approx(np.average(gains, weights=weights), abs=0.05)  # ties are broken otherwise


def test_a_weight_of_a_group_is_that_of_its_rows_for_our_metrics() -> None:
    groups = np.repeat(np.arange(ROWS // 10), 10)
    weights = RANDOM.random(ROWS // 10).astype(np.float32)
    params = make(objective="binary:logistic", eval_metric=("accuracy",))
    matrix = xgb.DMatrix(FEATURES, TWO, qid=groups, weight=weights)
    booster = fit(make(objective="binary:logistic"), xgb.DMatrix(FEATURES, TWO))
    expected = sk.accuracy_score(TWO, booster.predict(matrix) > 0.5, sample_weight=np.repeat(weights, 10))
    assert scores_of(params, matrix, booster)["accuracy"] == pytest.approx(expected)


AFT = {
    "objective": "survival:aft",
    "label_columns": 2,
    "aft_loss_distribution": "extreme",
    "aft_loss_distribution_scale": 1.7,
}
GROUPED = {"objective": "rank:ndcg", "ndcg_exp_gain": False, "lambdarank_unbiased": True, "subsample": 0.7}
JUDGED: list[dict[str, Any]] = [
    {
        "objective": "binary:logistic",
        "subsample": 0.6,
        "colsample_bynode": 0.5,
        "eval_metric": ("auc", "logloss", "f1"),
    },
    {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.4, "eval_metric": ("error@0.3", "aucpr")},
    {
        "objective": "multi:softmax",
        "num_class": 3,
        "colsample_bylevel": 0.5,
        "eval_metric": ("merror", "accuracy", "auc"),
    },
    {"objective": "reg:quantileerror", "quantile_alpha": (0.1, 0.8), "subsample": 0.5, "eval_metric": ("quantile",)},
    {
        "objective": "reg:pseudohubererror",
        "huber_slope": 0.3,
        "seed_per_iteration": True,
        "eval_metric": ("mphe", "r2"),
    },
    AFT | {"eval_metric": ("aft-nloglik", "interval-regression-accuracy")},
    GROUPED | {"eval_metric": ("ndcg", "ndcg@3", "map", "auc")},
]


def rows_for(params: XGBoostParams) -> dict[str, Any]:
    if params.objective == "survival:aft":
        return {"label_lower_bound": NUMBERS, "label_upper_bound": NUMBERS + 0.1}
    if params.is_ranking:
        return {"label": THREE - (THREE == 2) * 1.0, "qid": np.repeat(np.arange(ROWS // 10), 10)}
    return {"label": NUMBERS if params.classes is None else TWO if params.classes == 2 else THREE}


@pytest.mark.parametrize("given_", JUDGED, ids=lambda given_: f"{given_['objective']}-{given_['eval_metric'][0]}")
def test_judging_a_model_changes_none_of_its_trees_and_reads_what_the_objective_was_told(
    given_: dict[str, Any],
) -> None:
    params = make(**given_)
    theirs = [name for name in params.eval_metric if name in METRICS and not METRICS[name].is_computed_here]
    models, values = [], []
    for judged in (False, True):
        matrix = xgb.QuantileDMatrix(FEATURES, **rows_for(params))
        told = {} if judged else {"eval_metric": theirs}
        booster = xgb.Booster(booster_parameters(params, version=xgb.__version__) | told, [matrix])
        for step in range(8):
            booster.update(matrix, step)
            if judged:
                found = evaluate(booster, {"train": matrix}, params.eval_metric, params=params, iteration=step)
        models.append(bytes(booster.save_raw("ubj")))
        if not judged:
            fields = booster.eval_set([(matrix, "train")]).split("\t")[1:]
            values = [float(field.rpartition(":")[2]) for field in fields]
    assert models[0] == models[1]
    assert [found[f"train:{name}"] for name in theirs] == pytest.approx(values, abs=1e-6)
