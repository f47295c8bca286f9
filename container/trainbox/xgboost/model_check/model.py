"""The whole of a model: its parameters, its booster, and what they say about each other."""

import math
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from trainbox.errors import DataError
from trainbox.xgboost.model_check import sections
from trainbox.xgboost.model_check.categories import LARGEST_SPLITS_BYTES, bytes_of_splits, check_columns
from trainbox.xgboost.model_check.sections import Section
from trainbox.xgboost.model_check.trees import Shape, check_trees

Bools: TypeAlias = npt.NDArray[np.bool_]
Booster: TypeAlias = Literal["gbtree", "dart", "gblinear"]

_MOST_FEATURES = 2**31 - 1
#: Classes or targets, and trees of a round: no model without trees says what it means by more.
_MOST_OUTPUTS = 2**20
_MOST_TREES = 2**31 - 1
_BASE_SCORE = re.compile(r"\[?[-+0-9.eE]+(?:,[-+0-9.eE]+)*\]?")
_HINT = (
    "the file was damaged, or not written by XGBoost: take another checkpoint or model; to see what XGBoost itself"
    " makes of it, load it in a process of its own"
)


class Model(msgspec.Struct, frozen=True):
    """Properties of a model, read from its bytes."""

    booster: Booster
    objective: str
    features: int
    #: Classes, targets or quantiles: how many numbers a prediction has.
    outputs: int
    trees: int
    rounds: int
    #: Of the XGBoost that wrote it.
    version: tuple[int, int, int]


def check_model(content: bytes, *, source: str) -> Model:
    """Check that XGBoost can load these bytes as a model, predict with it, and continue training it.

    Args:
        content: UBJSON or JSON, from whomever; it is not changed, and XGBoost should get the very same.
        source: Where it is from, for the message.

    Returns:
        What it is.

    Raises:
        DataError: It is no model; which tree, which node, and what is wrong.
    """
    try:
        return _check(sections.read(content))
    except ValueError as error:
        raise DataError(f"{source} is not a model of XGBoost: {error}", hint=_HINT) from error


def _check(document: Section) -> Model:
    learner = document.section("learner")
    param = learner.section("learner_model_param")
    features = param.number("num_feature", _MOST_FEATURES, lowest=1)
    classes = param.number("num_class", _MOST_OUTPUTS)
    targets = param.number("num_target", _MOST_OUTPUTS, lowest=1, default=1)
    if classes > 1 and targets > 1:
        raise ValueError(f"it has {classes} classes and {targets} targets: XGBoost has no model of both")
    shape = Shape(features=features, outputs=max(classes, targets, 1))
    _check_base_score(param.text("base_score"), shape.outputs)
    _check_names(learner, features)
    booster = learner.section("gradient_booster")
    name = booster.text("name")
    known: Booster | None = next((known for known in get_args(Booster) if known == name), None)
    if known is None:
        raise ValueError(f"the booster {name[:40]!r} is not one of {', '.join(get_args(Booster))}")
    trees, rounds = (_check_linear if name == "gblinear" else _check_boosted)(booster, shape)
    return Model(
        booster=known,
        objective=learner.section("objective").text("name"),
        features=features,
        outputs=shape.outputs,
        trees=trees,
        rounds=rounds,
        version=_version(document.list_of("version")),
    )


def _version(numbers: Sequence[object]) -> tuple[int, int, int]:
    match numbers:
        case [int(major), int(minor), int(patch)] if min(major, minor, patch) >= 0:
            return major, minor, patch
    raise ValueError("its version is not three numbers")


def _check_base_score(text: str, outputs: int) -> None:
    if not _BASE_SCORE.fullmatch(text) or text.startswith("[") is not text.endswith("]"):
        raise ValueError(f"base_score is {text[:40]!r}, expected numbers")
    scores = [float(score) for score in text.strip("[]").split(",")]  # or a ValueError
    if not all(math.isfinite(score) for score in scores) or len(scores) not in (1, outputs):
        raise ValueError(f"base_score has {len(scores):,} numbers for {outputs:,} outputs, or one that is not finite")


def _check_names(learner: Section, features: int) -> None:
    for name in ("feature_names", "feature_types"):
        names = learner.list_of(name) if learner.has(name) else ()
        if len(names) not in (0, features) or not all(isinstance(each, str) for each in names):
            raise ValueError(f"{name} should have a text for each of {features:,} features, or none")
    for key, value in learner.section("attributes").items():
        if not isinstance(value, str):
            raise ValueError(f"the attribute {key[:40]!r} is not text")  # noqa: TRY004 - the bytes are wrong


def _check_linear(booster: Section, shape: Shape) -> tuple[int, int]:
    model = booster.section("model")
    weights, expected = model.length("weights"), (shape.features + 1) * shape.outputs
    if weights not in (0, expected):
        raise ValueError(
            f"it has {weights:,} weights; {shape.features:,} features, a bias and {shape.outputs:,} outputs"
            f" have {expected:,}"
        )
    rounds = model.value("boosted_rounds") if model.has("boosted_rounds") else 0
    if type(rounds) is not int or not 0 <= rounds <= _MOST_TREES:
        raise ValueError(f"boosted_rounds is {str(rounds)[:40]}")
    return 0, rounds


def _check_boosted(booster: Section, shape: Shape) -> tuple[int, int]:
    is_dart = booster.text("name") == "dart"
    model = (booster.section("gbtree") if is_dart else booster).section("model")
    param = model.section("gbtree_model_param")
    trees = [Section(tree, f"tree {number}") for number, tree in enumerate(model.list_of("trees"))]
    count = param.number("num_trees", _MOST_TREES)
    if count != len(trees):
        raise ValueError(f"it has {len(trees):,} trees, but says num_trees={count:,}")
    parallel = param.number("num_parallel_tree", count or _MOST_OUTPUTS, lowest=1, default=1)
    check_trees(trees, shape)
    if (size := sum(map(bytes_of_splits, trees))) > LARGEST_SPLITS_BYTES:
        raise ValueError(f"its categorical splits take {size:,} bytes; at most {LARGEST_SPLITS_BYTES:,} are loaded")
    sizes = [tree.section("tree_param").number("size_leaf_vector", _MOST_TREES) for tree in trees]
    is_vector = np.array(sizes, np.int64) > 1
    groups = _check_groups(model, is_vector, shape)
    for place in (booster, model):
        if place.has("weight_drop") and place.length("weight_drop") not in ((count,) if is_dart else (0, count)):
            raise ValueError(f"it has {count:,} trees, but {place.length('weight_drop'):,} in weight_drop")
    if is_dart and not (booster.has("weight_drop") or model.has("weight_drop")):
        raise ValueError("dart without weight_drop")
    if model.has("cats"):
        check_columns(model.section("cats"), shape.features)
    return count, _count_rounds(model, is_vector, groups, parallel, shape)


def _check_groups(model: Section, is_vector: Bools, shape: Shape) -> int:
    """Check which output each tree is for; how many of them trees are for."""
    groups = model.integers("tree_info")
    if len(groups) != len(is_vector):
        raise ValueError(f"it has {len(is_vector):,} trees, but {len(groups):,} in tree_info")
    if not len(groups):
        return 1
    limits = np.where(is_vector, 1, shape.outputs)
    if bad := np.flatnonzero((groups < 0) | (groups >= limits)).tolist():
        raise ValueError(
            f"tree {bad[0]} is for class or target {groups[bad[0]]} (tree_info); there are {limits[bad[0]]:,}"
        )
    return int(groups.max()) + 1


def _count_rounds(model: Section, is_vector: Bools, groups: int, parallel: int, shape: Shape) -> int:
    """Check that every round has the same trees, for XGBoost counts on it; return how many rounds there are.

    Models of XGBoost 1 do not say where each round begins.
    """
    trees = len(is_vector)
    if model.has("iteration_indptr"):
        starts = model.integers("iteration_indptr").astype(np.int64)
        of_rounds = np.diff(starts)
        if not len(starts) or starts[0] != 0 or starts[-1] != trees or (of_rounds <= 0).any():
            raise ValueError(f"iteration_indptr does not ascend from 0 to {trees:,}, the number of trees")
    else:
        if not trees or trees % (parallel * groups):
            raise ValueError(f"it has {trees:,} trees, which are no rounds of {parallel * groups:,}")
        starts = np.arange(0, trees + 1, parallel * groups)
        of_rounds = np.diff(starts)
    # Leaves are numbers, and a round has a tree for each output, or they are vectors.
    expected = parallel * np.where(is_vector[starts[:-1]], 1, shape.outputs)
    if bad := np.flatnonzero(of_rounds != expected).tolist():
        raise ValueError(
            f"round {bad[0]} has {of_rounds[bad[0]]:,} trees; num_parallel_tree={parallel:,} and {shape.outputs:,}"
            f" outputs make {expected[bad[0]]:,}"
        )
    return len(of_rounds)
