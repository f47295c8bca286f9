"""Models of every kind that XGBoost writes: boosters, objectives, categories, several outputs, pruned and cut trees.

A program of its own, so that it runs on any Python that has XGBoost: `python boosters.py` says of each kind whether the
check takes it, as UBJSON and as JSON, whether its UBJSON decodes to what encodes to the same bytes, and whether it is
the same model with its base score spelt as one number.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xgboost as xgb

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.ubjson import encode
from trainbox.errors import DataError
from trainbox.xgboost.model_check import check_model
from trainbox.xgboost.model_check.ubjson import decode
from trainbox.xgboost.readers import for_every_reader, spell_base_score

ROWS, FEATURES = 80, 4
_AFT = {"objective": "survival:aft", "aft_loss_distribution": "logistic"}
_DART = {"booster": "dart", "rate_drop": 0.5}
_VECTORS = {"multi_strategy": "multi_output_tree"}
#: The parameters of each kind, and what the data is like: `labels`, `targets`, `categories`, `groups`, `sparse`.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        name: ({"objective": name}, {})
        for name in (
            *("reg:squarederror", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:gamma"),
            *("reg:tweedie", "reg:logistic", "binary:logistic", "binary:logitraw", "binary:hinge", "count:poisson"),
            *("survival:cox",),
        )
    },
    "survival:aft": (_AFT, {"bounds": True}),
    "quantiles": ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, {}),
    "softmax": ({"objective": "multi:softmax", "num_class": 3}, {"classes": 3}),
    "softprob": ({"objective": "multi:softprob", "num_class": 3}, {"classes": 3}),
    "ndcg": ({"objective": "rank:ndcg"}, {"groups": True}),
    "map": ({"objective": "rank:map"}, {"groups": True}),
    "pairwise, unbiased": ({"objective": "rank:pairwise", "lambdarank_unbiased": True}, {"groups": True}),
    "dart": ({**_DART, "objective": "binary:logistic"}, {}),
    "dart of classes": ({**_DART, "objective": "multi:softprob", "num_class": 3}, {"classes": 3}),
    "linear": ({"booster": "gblinear", "objective": "reg:squarederror"}, {}),
    "linear of classes": ({"booster": "gblinear", "objective": "multi:softprob", "num_class": 3}, {"classes": 3}),
    "forest": ({"num_parallel_tree": 5, "subsample": 0.5, "objective": "binary:logistic"}, {}),
    "forest of classes": ({"num_parallel_tree": 2, "objective": "multi:softprob", "num_class": 3}, {"classes": 3}),
    "two targets": ({"objective": "reg:squarederror"}, {"targets": 2}),
    "a tree for two targets": (
        {"objective": "reg:squarederror", "multi_strategy": "multi_output_tree"},
        {"targets": 2},
    ),
    "a tree for three classes": (
        {"objective": "multi:softprob", "num_class": 3, **_VECTORS},
        {"classes": 3},
    ),
    "categories": ({"objective": "binary:logistic", "max_cat_to_onehot": 2}, {"categories": True}),
    "categories one by one": ({"objective": "binary:logistic", "max_cat_to_onehot": 99}, {"categories": True}),
    "exact, pruned": ({"tree_method": "exact", "gamma": 2.0, "max_depth": 6}, {}),
    "pruned by a second updater": ({"updater": "grow_colmaker,prune", "gamma": 2.0, "max_depth": 6}, {}),
    "approx": ({"tree_method": "approx", "gamma": 0.5}, {}),
    "deep": ({"max_depth": 0, "grow_policy": "lossguide", "min_child_weight": 0, "lambda": 0}, {}),
    "stumps without a split": ({"gamma": 1e9}, {}),
    "sparse": ({"objective": "binary:logistic"}, {"sparse": True}),
    "constraints": ({"monotone_constraints": "(1,-1,0,0)", "interaction_constraints": "[[0,1],[2,3]]"}, {}),
    "a base score": ({"base_score": 0.3, "objective": "binary:logistic"}, {}),
    "names": ({}, {"names": ["é", 'a "b"', "c\\d", "x y"]}),
    "no rounds": ({"objective": "binary:logistic"}, {"rounds": 0}),
}


def draw(traits: Mapping[str, Any]) -> xgb.DMatrix:
    """Rows of a kind."""
    random = np.random.default_rng(7)
    features = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    types = None
    if traits.get("categories"):
        features[:, 1:3] = random.integers(0, 40, size=(ROWS, 2))
        types = ["q", "c", "c", "q"]
    score = features[:, 0] + np.sin(features[:, 1]) + random.normal(size=ROWS) / 3
    labels: Any = (score > 0).astype(np.float32)
    if "classes" in traits:
        labels = np.digitize(score, [-0.5, 0.5]).astype(np.float32)
    if "targets" in traits:
        labels = np.stack([score, features[:, 3]], axis=1)
    if traits.get("sparse"):
        features[random.random(features.shape) < 0.7] = np.nan
    matrix = xgb.DMatrix(
        features, label=labels, feature_names=traits.get("names"), feature_types=types,
        enable_categorical=types is not None, nthread=1,
    )  # fmt: skip
    if traits.get("groups"):
        matrix.set_group([10] * (ROWS // 10))
    if traits.get("bounds"):
        matrix.set_float_info("label_lower_bound", np.abs(score))
        matrix.set_float_info("label_upper_bound", np.abs(score) + 1)
    return matrix


def train(kind: str) -> tuple[xgb.Booster, xgb.DMatrix]:
    """A model of a kind, and the rows that it has learnt from."""
    given, traits = KINDS[kind]
    matrix = draw(traits)
    params = {"max_depth": 3, "nthread": 1, "verbosity": 0, **given}
    if params.get("objective") == "reg:gamma":
        matrix.set_label(matrix.get_label() + 0.5)
    booster = xgb.train(params, matrix, num_boost_round=traits.get("rounds", 4))
    booster.set_attr(kind=kind)
    return booster, matrix


def variants(kind: str) -> dict[str, xgb.Booster]:
    """A model of a kind, and what becomes of it: a part of its rounds, its leaves refreshed, and trained on."""
    booster, matrix = train(kind)
    made = {kind: booster}
    given, traits = KINDS[kind]
    if given.get("booster") != "gblinear" and "rounds" not in traits:
        made[f"{kind}, two rounds"] = booster[1:3]
    if kind == "softprob":
        mixed = {**given, **_VECTORS, "nthread": 1, "verbosity": 0, "num_parallel_tree": 3}
        made["first trees of numbers, then of vectors"] = xgb.train(mixed, matrix, 2, xgb_model=booster.copy())
    if kind in ("binary:logistic", "softprob", "exact, pruned", "categories"):
        params = {**given, "nthread": 1, "verbosity": 0, "max_depth": 3}
        params.pop("tree_method", None)
        again = {**params, "process_type": "update", "updater": "refresh,prune", "gamma": 1.0}
        if kind != "categories":
            made[f"{kind}, refreshed"] = xgb.train(again, matrix, 2, xgb_model=booster.copy())
        made[f"{kind}, trained on"] = xgb.train(params, matrix, 2, xgb_model=booster.copy())
    return made


def judge(kinds: Sequence[str]) -> dict[str, str]:
    """What is wrong with the check of each model; empty where nothing is."""
    said = {}
    for kind in kinds:
        for name, booster in variants(kind).items():
            said[name] = "; ".join(_judge(booster))
    return said


def _judge(booster: xgb.Booster) -> list[str]:
    wrong = []
    binary, text = bytes(booster.save_raw("ubj")), bytes(booster.save_raw("json"))
    models = []
    for form, content in (("ubj", binary), ("json", text)):
        try:
            models.append(check_model(content, source=form))
        except DataError as error:
            wrong.append(f"{form} is refused: {error.message}")
    if encode(decode(binary)) != binary:
        wrong.append("it is decoded to something else")
    expected = (booster.num_boosted_rounds(), booster.num_features())
    if any((model.rounds, model.features) != expected for model in models) or len({*models}) > 1:
        wrong.append(f"{models} should have {expected}")
    return [*wrong, *_judge_spelling(binary)]


def _judge_spelling(model: bytes) -> list[str]:
    """What is wrong with the model whose base score is spelt as one number, where it is one."""
    wrong, spelt = [], spell_base_score(model)
    documents: list[Any] = [decode(model), decode(spelt)]
    plain, ours = documents
    was, now = (each["learner"]["learner_model_param"].pop("base_score") for each in documents)
    if {*was.strip("[]").split(",")} != {*now.strip("[]").split(",")} or ("," not in now and now[0] == "["):
        wrong.append(f"base_score was {was} and is {now}")
    if encode(plain) != encode(ours):
        wrong.append("something else has changed")
    moved, was_known = for_every_reader(model), check_model(model, source="as it was")
    for content in (spelt, moved):
        known = check_model(content, source="for readers")
        if msgspec.structs.replace(known, booster="gbtree") != msgspec.structs.replace(was_known, booster="gbtree"):
            wrong.append("the check takes it for another model")
        if encode(decode(content)) != content:
            wrong.append("it is decoded to something else")
    first, second = (bytes(xgb.Booster(model_file=bytearray(each)).save_raw("ubj")) for each in (model, spelt))
    if first != second:
        wrong.append("XGBoost writes it otherwise than the model as it was")
    if for_every_reader(moved) != moved:
        wrong.append("what is for every reader is not")
    return wrong


if __name__ == "__main__":
    print(json.dumps({"xgboost": xgb.__version__, "wrong": judge(sys.argv[1:] or list(KINDS))}))
