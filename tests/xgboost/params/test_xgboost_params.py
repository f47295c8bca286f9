"""Hyperparameters of XGBoost: all of the built-in's and today's, checked as a whole, and all that XGBoost reads."""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from trainbox.contract.params import fields, parse
from trainbox.errors import HyperparameterError
from trainbox.xgboost.metrics import evaluate
from trainbox.xgboost.params import checks, rules
from trainbox.xgboost.params.catalogue import METRICS, OBJECTIVES
from trainbox.xgboost.params.constraints import weights
from trainbox.xgboost.params.declaration import Declaration
from trainbox.xgboost.params.hyperparameters import (
    FREE,
    XGBoostParams,
    as_dict,
    booster_parameters,
    check_members,
    metric_names,
    notes,
    shaping,
)

VERSION = xgb.__version__
RELEASE = tuple(map(int, VERSION.split(".")[:2]))
INCUMBENTS = (
    *("num_round", "csv_weights", "early_stopping_rounds", "booster", "verbosity", "nthread", "eta", "gamma"),
    *("max_depth", "min_child_weight", "max_delta_step", "subsample", "colsample_bytree", "colsample_bylevel"),
    *("colsample_bynode", "lambda", "alpha", "tree_method", "sketch_eps", "scale_pos_weight", "updater"),
    *("dsplit", "refresh_leaf", "process_type", "grow_policy", "max_leaves", "max_bin", "predictor"),
    *("monotone_constraints", "interaction_constraints", "sample_type", "normalize_type", "rate_drop"),
    *("one_drop", "skip_drop", "lambda_bias", "tweedie_variance_power", "objective", "num_class", "base_score"),
    *("_kfold", "_num_cv_round", "_tuning_objective_metric", "eval_metric", "seed", "num_parallel_tree"),
    *("save_model_on_termination", "aft_loss_distribution", "aft_loss_distribution_scale"),
    *("single_precision_histogram", "deterministic_histogram", "sampling_method", "prob_buffer_row"),
    *("use_dask_gpu_training", "learning_rate", "min_split_loss", "reg_lambda", "reg_alpha"),
)

RANDOM = np.random.default_rng(5)
ROWS = 40
FEATURES = RANDOM.random((ROWS, 4)).astype(np.float32)
CODES = np.column_stack([FEATURES[:, :3], RANDOM.integers(0, 5, ROWS)]).astype(np.float32)


def read(**given_: str) -> XGBoostParams:
    return parse(XGBoostParams, {"num_round": "3", **given_}, program="xgboost_train.py")


def refused(**given_: str) -> str:
    with pytest.raises(HyperparameterError) as caught:
        read(**given_)
    return str(caught.value)


def given_to_xgboost(version: str = VERSION, features: Iterable[str] = (), **given_: str) -> dict[str, Any]:
    return booster_parameters(read(**given_), version=version, features=list(features))


# ---- the declaration ----


def test_every_hyperparameter_of_the_builtin_has_a_name_here_and_all_are_described() -> None:
    declared = {field.name: field for field in fields(XGBoostParams)}
    assert set(INCUMBENTS) <= set(declared)
    assert [name for name, field in declared.items() if field.required] == ["num_round"]
    assert [name for name, field in declared.items() if not field.description] == []


def test_texts_as_sagemaker_sends_them_become_values() -> None:
    params = read(
        max_depth="1e1",
        eta="0.2",
        csv_weights="1",
        one_drop="1",
        booster="dart",
        eval_metric="rmse,mae",
        categorical_features='["colour", 3]',
        missing=",NA",
        _kfold="5",
        save_model_on_termination="true",
    )
    assert (params.max_depth, params.eta, params.csv_weights, params.one_drop) == (10, 0.2, True, True)
    assert params.eval_metric == ("rmse", "mae")
    assert params.categorical_features == ("colour", "3")
    assert params.missing == ("", "NA")
    assert params.kfold == 5


def test_a_misspelt_name_gets_the_right_one_and_all_that_is_wrong_is_said_at_once() -> None:
    said = refused(max_dept="3", eta="2", subsample="0", seed="x")
    assert "did you mean 'max_depth'?" in said
    assert "'eta' is '2', expected float >= 0 and <= 1" in said
    assert "'subsample' is '0'" in said
    assert "'seed' is 'x'" in said
    together = refused(objective="multi:softmax", quantile_alpha="0.1", eval_metric="acuracy", process_type="update")
    for part in (
        "needs num_class",
        "quantile_alpha applies only with objective reg:quantileerror",
        "did you mean 'accuracy'?",
        "process_type",
    ):
        assert part in together


@pytest.mark.parametrize(
    "name", ["monotone_constraints", "interaction_constraints", "updater", "quantile_alpha", "eval_metric"]
)
def test_nothing_is_ever_evaluated(name: str, tmp_path: Path) -> None:
    """The incumbent ran the command; here a fast test would fail that did."""
    ran = tmp_path / "ran"
    for text in (f"__import__('os').system('touch {ran}')", f"(__import__('os').system('touch {ran}'),)"):
        with pytest.raises(HyperparameterError):
            given_to_xgboost(**{name: text})
    assert not ran.exists()


WRONG = [
    ({"objective": "binary:logistic", "num_class": "2"}, "num_class applies only with objective multi:*"),
    ({"quantile_alpha": "0.5"}, "quantile_alpha applies only with objective reg:quantileerror"),
    ({"objective": "reg:quantileerror"}, "objective reg:quantileerror needs quantile_alpha"),
    ({"objective": "reg:quantileerror", "quantile_alpha": "0.9,0.1"}, "give each once, in ascending order"),
    ({"objective": "reg:expectileerror"}, "objective reg:expectileerror needs expectile_alpha"),
    ({"objective": "survival:cox", "label_columns": "2"}, "objective survival:cox learns one column"),
    ({"objective": "survival:aft"}, "objective survival:aft needs label_columns=2"),
    ({"objective": "binary:logistic", "base_score": "1"}, "it is a probability, between 0 and 1"),
    ({"objective": "reg:gamma", "base_score": "0"}, "it must be above 0"),
    ({"base_score": "inf"}, "base_score is inf: give a finite number"),
    ({"eta": "1e-50"}, "eta is 1e-50: XGBoost reads numbers from 1.2e-38 to 3.4e+38, and 0"),
    ({"lambda": "inf", "reg_alpha": "inf"}, "lambda is inf: give a finite number; reg_alpha is inf"),
    ({"eta": "0.1", "learning_rate": "0.1"}, "eta and learning_rate are the same hyperparameter"),
    ({"alpha": "0", "reg_alpha": "1"}, "alpha and reg_alpha are the same hyperparameter"),
    (
        {"booster": "gblinear", "monotone_constraints": "(1)"},
        "monotone_constraints applies only with booster=gbtree or dart",
    ),
    ({"booster": "gblinear", "updater": "grow_colmaker"}, "with booster=gblinear give one, shotgun or coord_descent"),
    ({"booster": "gblinear", "updater": "shotgun", "feature_selector": "random"}, "needs updater=coord_descent"),
    ({"updater": "shotgun"}, "updater shotgun is unknown"),
    ({"updater": "grow_colmakr"}, "did you mean 'grow_colmaker'?"),
    ({"updater": "prune"}, "begin with one that grows trees"),
    ({"updater": "grow_colmaker,grow_histmaker"}, "begin with one that grows trees"),
    ({"updater": "grow_colmaker,prune", "tree_method": "hist"}, "is tree_method=exact, but tree_method is hist"),
    ({"updater": "distcol"}, "updater distcol was removed"),
    ({"updater": "grow_histmaker,refresh", "monotone_constraints": "(1)"}, "does not go with the updater 'refresh'"),
    ({"process_type": "update"}, "works on the trees of a model given"),
    (
        {"tree_method": "exact", "categorical_features": "0"},
        "categorical_features applies only with tree_method=hist or approx",
    ),
    ({"tree_method": "exact", "device": "cuda"}, "tree_method=exact grows on a processor only, and device is cuda"),
    ({"tree_method": "exact", "max_depth": "0"}, "which tree_method=exact does not have"),
    ({"tree_method": "exact", "external_memory": "on"}, "external_memory=on needs tree_method=hist"),
    ({"multi_strategy": "multi_output_tree", "booster": "dart"}, "does not go with booster=dart"),
    ({"multi_strategy": "multi_output_tree", "tree_method": "approx"}, "does not go with tree_method=approx"),
    ({"feature_weights": "(0,0)", "colsample_bytree": "0.5"}, "feature_weights leaves no feature to draw"),
    ({"feature_weights": "(1,1e300)", "colsample_bytree": "0.5"}, "feature_weights is 1e+300: XGBoost reads numbers"),
    ({"feature_weights": '{"a": 1e-50}'}, "feature_weights is 1e-50: XGBoost reads numbers"),
    ({"feature_weights": "(1,-1)"}, "'feature_weights' is '(1,-1)'"),
    ({"dsplit": "col"}, "which splits rows over hosts, never columns"),
    ({"monotone_constraints": "(2,0)"}, "'monotone_constraints' is '(2,0)'"),
    ({"interaction_constraints": "[[0,1"}, "'interaction_constraints' is '[[0,1'"),
    ({"objective": "aft_loss_distribution"}, "expected one of"),
    ({"device": "tpu"}, "'device' is 'tpu'"),
    (
        {"eval_metric": "auc"},
        "eval_metric auc is for binary:*, multi:*, rank:* and reg:logistic, and the objective is reg:sq",
    ),
    ({"eval_metric": "aft-nloglik"}, "eval_metric aft-nloglik is for survival:aft"),
    ({"eval_metric": "interval-regression-accuracy"}, "is for survival:aft"),
    ({"eval_metric": "cox-nloglik"}, "is for survival:cox"),
    ({"eval_metric": "merror"}, "is for multi:*"),
    ({"eval_metric": "accuracy"}, "is for binary:* and multi:*"),
    ({"eval_metric": "quantile"}, "is for reg:quantileerror"),
    ({"eval_metric": "ndcg"}, "is for rank:* and binary:*, or with group_column"),
    ({"objective": "multi:softprob", "num_class": "3", "eval_metric": "rmse"}, "every objective but multi:*"),
    (
        {"objective": "multi:softprob", "num_class": "3", "eval_metric": "recall"},
        "use an average such as recall_macro",
    ),
    ({"objective": "binary:logistic", "eval_metric": "error@x"}, "error, or error@ and a number such as error@0.7"),
    ({"objective": "binary:logistic", "eval_metric": "auc@5"}, "is not how auc is written"),
    ({"objective": "binary:logistic", "eval_metric": "ams"}, "ams@ and a number"),
    ({"objective": "rank:ndcg", "eval_metric": "ndcg@0"}, "ndcg@ and a number of rows"),
    ({"objective": "rank:ndcg", "eval_metric": "error@0.5-"}, "is not how error is written"),
    ({"objective": "binary:logistic", "eval_metric": "auc", "label_columns": "2"}, "scores one label column"),
    ({"objective": "reg:quantileerror", "quantile_alpha": "0.1,0.9", "eval_metric": "r2"}, "makes several"),
    ({"_tuning_objective_metric": "validation:acc"}, "_tuning_objective_metric acc is unknown"),
    ({"_tuning_objective_metric": "test:rmse"}, "name a metric of train or validation"),
]


@pytest.mark.parametrize(("given_", "said"), WRONG, ids=[json.dumps(case)[:80] for case, _ in WRONG])
def test_what_does_not_go_together_is_said(given_: dict[str, str], said: str) -> None:
    assert said in refused(**given_)


RIGHT = [
    {"objective": "binary:logistic", "eval_metric": "auc,error@0.7,ndcg@5-,ams@0.15,f1,precision,mse,r2"},
    {"objective": "multi:softprob", "num_class": "2", "eval_metric": "precision,f1_binary,mlogloss"},
    {"objective": "reg:squarederror", "group_column": "7", "eval_metric": "ndcg@3,map"},
    {"eval_metric": "rmse,tweedie-nloglik,tweedie-nloglik@1.2,r2,mse", "label_columns": "3"},
    {"_tuning_objective_metric": "validation:rmse", "_kfold": "3", "_num_cv_round": "2"},
    {
        "objective": "rank:map",
        "eval_metric": "map@5,pre@2,auc",
        "lambdarank_unbiased": "1",
        "lambdarank_bias_norm": "2",
    },
    {"max_leaves": "7"},
    {"max_depth": "0", "grow_policy": "lossguide"},
    {"seed": "-5"},
    {"_kfold": "3", "early_stopping_rounds": "2"},
    {"updater": "grow_quantile_histmaker,prune,refresh", "refresh_leaf": "0"},
]


@pytest.mark.parametrize("given_", RIGHT, ids=json.dumps)
def test_what_goes_together_is_taken(given_: dict[str, str]) -> None:
    assert set(given_) <= set(as_dict(read(**given_)))


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"tree_method": "exact"}, "tree_method=exact needs all rows in one place"),
        ({"updater": "grow_colmaker,prune"}, "tree_method=exact needs"),
        ({"updater": "grow_histmaker,prune"}, "the updater 'prune' does not work"),
        ({"booster": "gblinear"}, "booster=gblinear leaves each member"),
        ({"objective": "survival:cox"}, "survival:cox compares each row with all others"),
        ({"objective": "rank:ndcg", "lambdarank_unbiased": "1"}, "lambdarank_unbiased=true estimates"),
        (
            {"objective": "binary:logistic", "_tuning_objective_metric": "validation:ams@0.1"},
            "eval_metric ams@0.1 needs",
        ),
    ],
)
def test_what_several_members_cannot_do_is_refused_before_they_begin(given_: dict[str, str], said: str) -> None:
    check_members(read(**given_), 1)
    with pytest.raises(HyperparameterError, match=re.escape(said)) as caught:
        check_members(read(**given_), 3)
    assert "there are 3 processes" in str(caught.value)
    check_members(read(booster="dart", rate_drop="0.1", eval_metric="rmse"), 3)


# ---- the past ----


@pytest.mark.parametrize(
    ("given_", "note", "expected"),
    [
        ({"objective": "reg:linear"}, "reg:squarederror", {"objective": "reg:squarederror"}),
        ({"tree_method": "gpu_hist"}, "device=cuda", {"tree_method": "hist", "device": "cuda"}),
        ({"tree_method": "gpu_hist", "device": "cuda:1"}, "device=cuda:1", {"tree_method": "hist", "device": "cuda:1"}),
        ({"use_dask_gpu_training": "true"}, "device=cuda", {"device": "cuda"}),
        ({"updater": "grow_skmaker"}, "using grow_histmaker instead", {"updater": "grow_histmaker"}),
        ({"updater": "grow_colmaker,prune,sync"}, "it is left out", {"updater": "grow_colmaker,prune"}),
        ({"predictor": "gpu_predictor"}, "predictor is not read", {"device": "cpu"}),
        ({"dsplit": "row"}, "dsplit is not read", {}),
        ({"sketch_eps": "0.03"}, "max_bin", {"max_bin": 256}),
        ({"lambda_bias": "0.1"}, "lambda_bias is not read", {}),
        ({"prob_buffer_row": "2"}, "prob_buffer_row is not read", {}),
        ({"deterministic_histogram": "false"}, "always deterministic", {}),
        ({"single_precision_histogram": "true"}, "single_precision_histogram is not read", {}),
        ({"save_model_on_termination": "true"}, "always saves its model", {}),
        ({"booster": "gblinear"}, "coord_descent", {"updater": "coord_descent"}),
        ({"_kfold": "3", "early_stopping_rounds": "2"}, "somewhat too good", {}),
        (
            {"objective": "survival:aft", "label_columns": "2", "eval_metric": "interval-regression-accuracy"},
            "maximized",
            {},
        ),
    ],
)
def test_what_is_done_otherwise_is_said(given_: dict[str, str], note: str, expected: dict[str, object]) -> None:
    lines = notes(read(**given_))
    assert any(note in line for line in lines)
    settings_ = given_to_xgboost(**given_)
    assert {name: settings_[name] for name in expected} == expected
    retired = set(given_) - {"objective", "tree_method", "updater", "booster", "device"}
    assert not retired & set(settings_)


def test_a_usual_job_has_nothing_to_be_told() -> None:
    assert notes(read(objective="binary:logistic", eval_metric="auc", eta="0.1")) == ()


# ---- what shapes the model ----


def test_other_names_and_names_of_the_past_shape_the_same_model() -> None:
    assert shaping(read(eta="0.1", reg_lambda="2")) == shaping(read(learning_rate="0.1", **{"lambda": "2"}))
    assert shaping(read(objective="reg:linear", tree_method="gpu_hist")) == shaping(read(device="cuda"))
    assert shaping(read(updater="grow_skmaker", predictor="auto")) == shaping(read(updater="grow_histmaker"))


@pytest.mark.parametrize(
    "given_",
    [
        {"num_round": "9"},
        {"nthread": "2"},
        {"verbosity": "0"},
        {"early_stopping_rounds": "4"},
        {"eval_train_every": "0"},
        {"predictor": "auto"},
        {"delimiter": ";"},
    ],
    ids=json.dumps,
)
def test_what_shapes_no_tree_may_change_in_a_resumed_job(given_: dict[str, str]) -> None:
    assert set(given_) <= FREE
    assert shaping(read(**given_)) == shaping(read())


@pytest.mark.parametrize(
    "given_",
    [
        {"checkpoint_every": "7"},
        {"seed": "1"},
        {"eta": "0.3"},
        {"eval_metric": "mae"},
        {"_kfold": "3"},
        {"max_bin": "9"},
    ],
    ids=json.dumps,
)
def test_what_shapes_the_model_is_told_apart(given_: dict[str, str]) -> None:
    assert shaping(read(**given_)) != shaping(read())
    assert json.loads(json.dumps(shaping(read(**given_)))) == shaping(read(**given_))


def test_values_are_shown_by_the_hyperparameters_own_names() -> None:
    shown = as_dict(read(_kfold="3", monotone_constraints='{"a": 1}', **{"lambda": "2"}))
    assert (shown["_kfold"], shown["lambda"], shown["monotone_constraints"]) == (3, 2.0, {"a": 1})
    assert "nthread" not in shown
    assert json.loads(json.dumps(shown)) == shown


# ---- what XGBoost is given ----


def test_xgboost_is_given_nothing_of_ours_and_no_metric() -> None:
    settings_ = given_to_xgboost(
        eval_metric="rmse", _kfold="3", csv_weights="1", external_memory="off", predictor="auto"
    )
    ours = {"num_round", "eval_metric", "kfold", "_kfold", "csv_weights", "external_memory", "predictor", "missing"}
    assert not ours & set(settings_)
    assert settings_["disable_default_eval_metric"] == 1
    assert given_to_xgboost(learning_rate="0.2", **{"lambda": "3"}).items() >= {"eta": 0.2, "lambda": 3.0}.items()


def test_constraints_come_by_position_or_by_name() -> None:
    names = ["age", "income", "debt"]
    tuples = [
        given_to_xgboost(monotone_constraints=text, features=names) for text in ("(0,1,-1)", "[0, 1, -1]", "0,1,-1")
    ]
    named = [
        given_to_xgboost(monotone_constraints=json.dumps(given_), features=names)
        for given_ in ({"income": 1, "debt": -1}, {"1": 1, "debt": -1})
    ]
    assert {settings_["monotone_constraints"] for settings_ in (*tuples, *named)} == {"(0,1,-1)"}
    for text in ('[["age", "debt"], ["income"]]', "[[0, 2], [1]]", "((0, 2), (1,))"):
        settings_ = given_to_xgboost(interaction_constraints=text, features=names)
        assert settings_["interaction_constraints"] == "[[0, 2], [1]]"
    for wrong in ({"monotone_constraints": '{"incom": 1}'}, {"interaction_constraints": '[["incom"]]'}):
        with pytest.raises(HyperparameterError, match="did you mean 'income'"):
            given_to_xgboost(features=names, **wrong)
    with pytest.raises(HyperparameterError, match="4 directions, and the data 3 features"):
        given_to_xgboost(monotone_constraints="(1,1,1,1)", features=names)
    with pytest.raises(HyperparameterError, match="names a feature twice"):
        given_to_xgboost(monotone_constraints='{"age": 1, "0": 1}', features=names)
    with pytest.raises(HyperparameterError, match="no feature '7'"):
        given_to_xgboost(interaction_constraints="[[7]]", features=names)


def test_feature_weights_come_by_position_or_by_name() -> None:
    names = ["age", "income", "debt"]
    for text in ('{"income": 0.5, "2": 0}', "(1, 0.5, 0)", "[1, 0.5, 0]"):
        given_ = read(feature_weights=text, colsample_bytree="0.5").feature_weights
        assert given_ is not None
        assert weights(given_, names) == [1.0, 0.5, 0.0]
    (note,) = notes(read(feature_weights="(1,2)"))
    assert note.startswith("feature_weights is not read: it applies only with colsample_bytree, colsample_bylevel or ")
    with pytest.raises(HyperparameterError, match="did you mean 'income'"):
        weights({"incom": 1.0}, names)
    with pytest.raises(HyperparameterError, match="names a feature twice"):
        weights({"age": 1.0, "0": 1.0}, names)
    with pytest.raises(HyperparameterError, match="2 weights, and the data 3 features"):
        weights((1.0, 2.0), names)


@pytest.mark.parametrize("method", ["hist", "approx", "exact"])
def test_every_tree_method_keeps_a_monotone_constraint(method: str) -> None:
    settings_ = given_to_xgboost(monotone_constraints="(0,-1)", tree_method=method, features="abcd")
    booster = xgb.train(settings_, xgb.DMatrix(FEATURES, np.sin(9 * FEATURES[:, 1])), 5)
    rising = np.full((50, 4), 0.5, np.float32)
    rising[:, 1] = np.linspace(0, 1, 50)
    said = booster.predict(xgb.DMatrix(rising))
    assert (np.diff(said) <= 1e-6).all()
    assert said[0] > said[-1]


def test_what_the_installed_xgboost_lacks_is_refused_by_version() -> None:
    expectile = {"objective": "reg:expectileerror", "expectile_alpha": "0.2"}
    with pytest.raises(HyperparameterError, match=r"needs XGBoost 3\.3 or newer; here is 3\.2\.0"):
        given_to_xgboost("3.2.0", **expectile)
    assert given_to_xgboost("3.4.1", **expectile)["expectile_alpha"] == "[0.2]"
    constrained = {"multi_strategy": "multi_output_tree", "monotone_constraints": "(1)"}
    with pytest.raises(HyperparameterError, match=r"need XGBoost 3\.4 or newer"):
        given_to_xgboost("3.2.0", **constrained)
    assert given_to_xgboost("3.5.0-dev", **constrained)["monotone_constraints"] == "(1)"


def test_dropout_belongs_to_common_trees_from_xgboost_3_4_on() -> None:
    given_ = {"booster": "dart", "rate_drop": "0.5", "one_drop": "1", "seed": "3"}
    assert given_to_xgboost("3.2.0", **given_)["booster"] == "dart"
    assert given_to_xgboost("3.4.1", **given_)["booster"] == "gbtree"
    labels = FEATURES[:, 0] + FEATURES[:, 1]
    here = given_to_xgboost(**given_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of booster=dart in 3.4
        said = [
            xgb.train(here | change, xgb.DMatrix(FEATURES, labels), 8).predict(xgb.DMatrix(FEATURES))
            for change in ({}, {"booster": "dart"}, {"rate_drop": 0.0, "one_drop": 0})
        ]
    assert (said[0] == said[1]).all()
    assert (said[0] != said[2]).any()


def test_the_matrix_and_the_labels_can_be_chosen_by_what_the_parameters_say() -> None:
    assert read().is_binned
    assert read(tree_method="gpu_hist").is_binned
    assert not read(updater="grow_colmaker,prune").is_binned
    assert not read(updater="grow_quantile_histmaker,refresh").is_binned
    assert not read(booster="gblinear").is_binned
    assert read(updater="grow_histmaker").method == "approx"
    assert read(objective="binary:hinge").classes == 2
    assert read(objective="multi:softmax", num_class="5").classes == 5
    assert read().classes is None
    assert read(objective="rank:map").is_ranking


# ---- XGBoost reads all of it ----


def labels_for(params: Declaration) -> dict[str, Any]:
    name, columns = rules.objective(params), params.label_columns
    random = np.random.default_rng(1)
    if name == "survival:aft":
        low = random.random(ROWS) + 0.5
        return {"label_lower_bound": low, "label_upper_bound": low + 0.2}
    if name.startswith("multi:"):
        return {"label": np.arange(ROWS) % (params.num_class or 2)}
    if name.startswith("rank:"):
        return {"label": np.arange(ROWS) % 2, "qid": np.repeat(np.arange(4), 10)}
    if name.startswith("binary:") or name == "reg:logistic":
        rows = np.arange(ROWS)
        return {"label": np.column_stack([rows % 2 == column % 2 for column in range(columns)]).astype(np.float32)}
    return {"label": random.random((ROWS, columns)) + 0.5}


def matrix_for(params: XGBoostParams) -> xgb.DMatrix:
    kinds = ["q", "q", "q", "c"] if params.categorical_features else None
    how = {"feature_types": kinds, "enable_categorical": bool(kinds), "nthread": 1, **labels_for(params)}
    if params.is_binned:
        return xgb.QuantileDMatrix(CODES, max_bin=params.max_bin, **how)
    return xgb.DMatrix(CODES, **how)


def train(params: XGBoostParams, rounds: int = 2) -> tuple[xgb.Booster, xgb.DMatrix, list[str]]:
    matrix = matrix_for(params)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        booster = xgb.Booster(booster_parameters(params, version=VERSION, features="abcd"), [matrix])
        for step in range(rounds):
            booster.update(matrix, step)
        evaluate(booster, {"train": matrix}, metric_names(params), params=params)
    return booster, matrix, [str(warning.message) for warning in said]


HERE = [name for name in OBJECTIVES if name != "reg:expectileerror" or RELEASE >= (3, 3)]
SHARES = st.floats(0.1, 1.0)
CHANCES = st.just(0.0) | st.floats(1.2e-38, 1.0)
AMOUNTS = st.just(0.0) | st.floats(1.2e-38, 5.0)
#: What may be given for each attribute, where it is read at all.
POOLS: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(-(2**31), 2**31 - 1),
    "seed_per_iteration": st.booleans(),
    "base_score": st.floats(0.2, 0.8),
    "scale_pos_weight": st.floats(0.1, 4.0),
    "tweedie_variance_power": st.floats(1.1, 1.9),
    "huber_slope": st.floats(0.1, 4.0),
    "aft_loss_distribution": st.sampled_from(["normal", "logistic", "extreme"]),
    "aft_loss_distribution_scale": st.floats(0.5, 2.0),
    "lambdarank_pair_method": st.sampled_from(["topk", "mean"]),
    "lambdarank_num_pair_per_sample": st.integers(1, 5),
    "lambdarank_normalization": st.booleans(),
    "lambdarank_score_normalization": st.booleans(),
    "lambdarank_unbiased": st.booleans(),
    "ndcg_exp_gain": st.booleans(),
    "eta": CHANCES,
    "gamma": AMOUNTS,
    "max_depth": st.integers(1, 4),
    "max_leaves": st.integers(0, 5),
    "grow_policy": st.sampled_from(["depthwise", "lossguide"]),
    "min_child_weight": AMOUNTS,
    "max_delta_step": AMOUNTS,
    "subsample": SHARES,
    "sampling_method": st.sampled_from(["uniform", "gradient_based"]),
    "colsample_bytree": SHARES,
    "colsample_bylevel": SHARES,
    "colsample_bynode": SHARES,
    "lambda_": AMOUNTS,
    "alpha": AMOUNTS,
    "max_bin": st.integers(2, 32),
    "max_cached_hist_node": st.integers(1, 100),
    "num_parallel_tree": st.integers(1, 3),
    "max_cat_to_onehot": st.integers(1, 6),
    "max_cat_threshold": st.integers(1, 6),
    "monotone_constraints": st.sampled_from([(1, 0, -1), {"a": 1, "2": -1}, ()]),
    "interaction_constraints": st.sampled_from([(("a", "1"), ("2", "3")), (("0",),)]),
    "refresh_leaf": st.booleans(),
    "rate_drop": CHANCES,
    "skip_drop": CHANCES,
    "one_drop": st.booleans(),
    "sample_type": st.sampled_from(["uniform", "weighted"]),
    "normalize_type": st.sampled_from(["tree", "forest"]),
    "feature_selector": st.sampled_from(["cyclic", "shuffle", "random", "greedy", "thrifty"]),
    "verbosity": st.integers(1, 1),
    "device": st.just("cpu"),
}
HOW: list[dict[str, Any]] = [
    {"tree_method": "auto"},
    {"tree_method": "hist", "categorical_features": ("3",)},
    {"tree_method": "approx"},
    {"tree_method": "exact"},
    {"booster": "dart"},
    {"booster": "dart", "tree_method": "exact"},
    {"booster": "gblinear"},
    {"booster": "gblinear", "updater": ("coord_descent",), "feature_selector": "greedy", "top_k": 2},
    {"updater": ("grow_colmaker", "prune")},
    {"updater": ("grow_quantile_histmaker", "prune", "refresh")},
    {"updater": ("grow_skmaker", "sync")},
    {"multi_strategy": "multi_output_tree"},
]


@st.composite
def valid(draw: st.DrawFn) -> XGBoostParams:
    name = draw(st.sampled_from(HERE))
    how = draw(st.sampled_from(HOW))
    base: dict[str, Any] = {"num_round": 2, "nthread": 1, "objective": name, **how}
    base |= {"num_class": draw(st.integers(2, 4))} if name.startswith("multi:") else {}
    alphas = draw(st.sampled_from([(0.5,), (0.1, 0.5, 0.9)]))
    base |= (
        {"quantile_alpha": alphas} if "quantile" in name else {"expectile_alpha": alphas} if "expectile" in name else {}
    )
    base |= {"label_columns": 2} if name == "survival:aft" else {}
    if OBJECTIVES[name].several:
        base |= {"label_columns": draw(st.integers(1, 2))}
    declared = Declaration(**base)
    readable = [attribute for attribute in POOLS if attribute not in base and rules.is_read(attribute, declared)]
    for attribute in draw(st.lists(st.sampled_from(readable), unique=True, max_size=12)):
        base[attribute] = draw(POOLS[attribute])
    if base.get("multi_strategy") == "multi_output_tree" and RELEASE < (3, 4):
        base = {key: value for key, value in base.items() if not key.endswith("_constraints")}
    if "refresh" in base.get("updater", ()):
        base.pop("monotone_constraints", None)
    return XGBoostParams(**base)


@settings(max_examples=80, deadline=None)
@given(valid())
def test_xgboost_reads_every_parameter_that_it_is_given(params: XGBoostParams) -> None:
    _, _, said = train(params)
    assert [line for line in said if "not used" in line] == []
    assert [line for line in said if "dart" in line] == []


@pytest.mark.parametrize("name", HERE)
def test_every_metric_that_goes_with_an_objective_is_evaluated(name: str) -> None:
    base: dict[str, Any] = {"num_round": 2, "nthread": 1, "objective": name}
    base |= {"num_class": 2} if name.startswith("multi:") else {}
    base |= (
        {"quantile_alpha": (0.5,)} if "quantile" in name else {"expectile_alpha": (0.5,)} if "expectile" in name else {}
    )
    base |= {"label_columns": 2} if name == "survival:aft" else {}
    fitting = [kind + "@0.5" * (metric.suffix == "required") for kind, metric in METRICS.items() if fits(kind, base)]
    params = XGBoostParams(eval_metric=tuple(fitting), **base)
    booster, matrix, _ = train(params)
    found = evaluate(booster, {"train": matrix}, metric_names(params), params=params)
    assert list(found) == [f"train:{metric}" for metric in fitting]
    assert OBJECTIVES[name].metric in fitting
    assert not np.isnan(found[f"train:{OBJECTIVES[name].metric}"])


@pytest.mark.parametrize("name", [name for name in HERE if OBJECTIVES[name].several])
def test_every_metric_that_goes_with_several_label_columns_is_evaluated(name: str) -> None:
    base: dict[str, Any] = {"num_round": 2, "nthread": 1, "objective": name, "label_columns": 2}
    params = XGBoostParams(eval_metric=tuple(kind for kind in METRICS if fits(kind, base)), **base)
    booster, matrix, _ = train(params)
    assert len(evaluate(booster, {"train": matrix}, metric_names(params), params=params)) >= 10


def fits(kind: str, base: dict[str, Any]) -> bool:
    name = kind + "@0.5" * (METRICS[kind].suffix == "required")
    return not checks.find_problems(Declaration(eval_metric=(name,), **base))


def test_a_question_about_a_script_needs_nothing_that_is_required() -> None:
    params = parse(XGBoostParams, {"objective": "binary:logistic"}, partial=True)
    assert as_dict(params)["objective"] == "binary:logistic"
    assert "num_round" not in as_dict(params)


#: What the built-in takes as well, and XGBoost only warns of.
UNREAD = [
    ({"tweedie_variance_power": "1.2"}, "tweedie_variance_power applies only with objective reg:tweedie"),
    (
        {"aft_loss_distribution": "extreme"},
        "aft_loss_distribution applies only with objective survival:aft",
    ),
    ({"huber_slope": "2"}, "huber_slope applies only with objective reg:pseudohubererror"),
    ({"lambdarank_pair_method": "mean"}, "lambdarank_pair_method applies only with objective rank:*"),
    (
        {"objective": "rank:ndcg", "lambdarank_bias_norm": "2"},
        "applies only with lambdarank_unbiased=true",
    ),
    (
        {"objective": "multi:softmax", "num_class": "3", "scale_pos_weight": "2"},
        "scale_pos_weight applies only with objective bin",
    ),
    ({"skip_drop": "0.1"}, "skip_drop applies only with booster=dart"),
    ({"feature_selector": "greedy"}, "feature_selector applies only with booster=gblinear"),
    ({"booster": "gblinear", "max_depth": "3"}, "max_depth applies only with booster=gbtree or dart"),
    (
        {"booster": "gblinear", "min_split_loss": "1"},
        "min_split_loss applies only with booster=gbtree or dart",
    ),
    ({"booster": "gblinear", "top_k": "1"}, "top_k applies only with feature_selector=greedy or thrifty"),
    ({"refresh_leaf": "0"}, "refresh_leaf applies only with the updater 'refresh'"),
    ({"tree_method": "exact", "max_bin": "16"}, "max_bin applies only with tree_method=hist or approx"),
    (
        {"tree_method": "exact", "max_leaves": "4"},
        "max_leaves applies only with tree_method=hist or approx",
    ),
    (
        {"tree_method": "exact", "grow_policy": "lossguide"},
        "grow_policy applies only with tree_method=hist or approx",
    ),
    (
        {"tree_method": "exact", "colsample_bynode": "0.5"},
        "colsample_bynode applies only with tree_method=hist or approx",
    ),
    (
        {"tree_method": "exact", "sampling_method": "gradient_based"},
        "sampling_method applies only with tree_method=hist or",
    ),
    (
        {"max_cat_to_onehot": "2", "tree_method": "exact"},
        "max_cat_to_onehot applies only with tree_method=hist or approx",
    ),
    ({"_num_cv_round": "2"}, "_num_cv_round applies only with _kfold"),
]


@pytest.mark.parametrize(("given_", "said"), UNREAD, ids=[json.dumps(case)[:80] for case, _ in UNREAD])
def test_what_nothing_reads_is_said_and_not_passed_on(given_: dict[str, str], said: str) -> None:
    params = read(**given_)
    note = said.replace("applies only", "is not read: it applies only")
    assert any(note in said_of_all for said_of_all in notes(params))
    name = said.split(maxsplit=1)[0]
    if name != "goes":
        assert name not in booster_parameters(params, version="3.2.0")
