"""When XGBoost reads a hyperparameter, depending on the others; and current names for retired ones."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from trainbox.xgboost.params.declaration import RETIRED_OBJECTIVE, Declaration

#: Names of SageMaker's built-in and of XGBoost for the same thing, and the name used here.
ALIASES = {"learning_rate": "eta", "min_split_loss": "gamma", "reg_lambda": "lambda", "reg_alpha": "alpha"}

#: The updaters that grow a tree, by the tree method that each is; the others work on a tree that has grown.
GROWERS = {"grow_quantile_histmaker": "hist", "grow_histmaker": "approx", "grow_colmaker": "exact"}
#: What XGBoost has given up, and what it has instead.
RETIRED_UPDATERS = {"grow_skmaker": "grow_histmaker", "grow_local_histmaker": "grow_histmaker", "sync": ""}


class ReadCondition(msgspec.Struct, frozen=True):
    """Hyperparameters that XGBoost reads only under a condition.

    Args:
        names: The hyperparameters.
        applies: Whether they are read.
        words: When that is, in words.
    """

    names: tuple[str, ...]
    applies: Callable[[Declaration], bool]
    words: str


def objective(params: Declaration) -> str:
    """Return the current name of the objective."""
    return "reg:squarederror" if params.objective == RETIRED_OBJECTIVE else str(params.objective)


def updaters(params: Declaration) -> tuple[str, ...]:
    """Return the current names of the updaters."""
    return tuple(filter(None, (RETIRED_UPDATERS.get(name, name) for name in params.updater)))


def device(params: Declaration) -> str:
    """Return the device: cpu, cuda or cuda:N; retired names are translated."""
    is_gpu = params.tree_method == "gpu_hist" or bool(params.use_dask_gpu_training)
    return "cuda" if is_gpu and params.device == "cpu" else params.device


def method(params: Declaration) -> str:
    """Return the tree method that `tree_method` or `updater` selects: hist, approx, exact, or linear."""
    if params.booster == "gblinear":
        return "linear"
    named = [GROWERS[name] for name in updaters(params) if name in GROWERS]
    if named:
        return named[0]
    return "hist" if params.tree_method in {"auto", "gpu_hist"} else params.tree_method


def is_binned(params: Declaration) -> bool:
    """Whether training reads only the bins of features."""
    return method(params) == "hist" and "refresh" not in params.updater


def _learns(*names: str) -> Callable[[Declaration], bool]:
    return lambda params: objective(params).startswith(names)


def _grows(*methods: str) -> Callable[[Declaration], bool]:
    return lambda params: method(params) in methods


_TREES = (
    *("gamma", "max_depth", "min_child_weight", "max_delta_step", "subsample", "sampling_method", "num_parallel_tree"),
    *("colsample_bytree", "colsample_bylevel", "colsample_bynode", "tree_method", "monotone_constraints"),
    *("interaction_constraints", "categorical_features", "max_cat_to_onehot", "max_cat_threshold", "refresh_leaf"),
    *("feature_weights", "categorical"),
)
_HISTOGRAMS = (
    *("max_bin", "max_leaves", "grow_policy", "categorical_features", "colsample_bynode", "sampling_method"),
    *("categorical", "max_cat_to_onehot", "max_cat_threshold"),
)
_RANKING = (
    *("lambdarank_pair_method", "lambdarank_num_pair_per_sample", "lambdarank_normalization", "ndcg_exp_gain"),
    *("lambdarank_score_normalization", "lambdarank_unbiased", "lambdarank_bias_norm"),
)
_WEIGHING = ("binary:logistic", "binary:logitraw", "reg:logistic", "reg:squarederror", "reg:gamma")
_DROPOUT = ("rate_drop", "skip_drop", "one_drop", "sample_type", "normalize_type")

#: A hyperparameter with several conditions is read where all of them are met.
CONDITIONS = (
    ReadCondition(_TREES, _grows("hist", "approx", "exact"), "booster=gbtree or dart"),
    ReadCondition((*_HISTOGRAMS, "max_cached_hist_node"), _grows("hist", "approx"), "tree_method=hist or approx"),
    ReadCondition(("bins",), is_binned, "tree_method=hist"),
    ReadCondition(
        ("feature_weights",),
        lambda params: min(params.colsample_bytree, params.colsample_bylevel, params.colsample_bynode) < 1,
        "colsample_bytree, colsample_bylevel or colsample_bynode below 1",
    ),
    ReadCondition(_DROPOUT, lambda params: params.booster == "dart", "booster=dart"),
    ReadCondition(("feature_selector",), _grows("linear"), "booster=gblinear"),
    ReadCondition(
        ("top_k",),
        lambda params: params.feature_selector in {"greedy", "thrifty"},
        "feature_selector=greedy or thrifty",
    ),
    ReadCondition(("refresh_leaf",), lambda params: "refresh" in params.updater, "the updater 'refresh'"),
    ReadCondition(("num_class",), _learns("multi:"), "objective multi:*"),
    ReadCondition(("tweedie_variance_power",), _learns("reg:tweedie"), "objective reg:tweedie"),
    ReadCondition(("huber_slope",), _learns("reg:pseudohubererror"), "objective reg:pseudohubererror"),
    ReadCondition(("quantile_alpha",), _learns("reg:quantileerror"), "objective reg:quantileerror"),
    ReadCondition(("expectile_alpha",), _learns("reg:expectileerror"), "objective reg:expectileerror"),
    ReadCondition(
        ("aft_loss_distribution", "aft_loss_distribution_scale"), _learns("survival:aft"), "objective survival:aft"
    ),
    ReadCondition(_RANKING, _learns("rank:"), "objective rank:*"),
    ReadCondition(("lambdarank_bias_norm",), lambda params: params.lambdarank_unbiased, "lambdarank_unbiased=true"),
    ReadCondition(("scale_pos_weight",), _learns(*_WEIGHING), f"objective {', '.join(_WEIGHING)}"),
    ReadCondition(("num_cv_round",), lambda params: params.kfold is not None, "_kfold"),
)


#: What is asked of the model, and not how it is looked for: left out in silence it would be another model's.
NEVER_IGNORED = frozenset(
    {
        *("num_class", "quantile_alpha", "expectile_alpha"),
        *("monotone_constraints", "interaction_constraints", "categorical_features", "categorical"),
    }
)


def is_read(name: str, params: Declaration) -> bool:
    """Whether a hyperparameter, by its attribute, has an effect."""
    return all(condition.applies(params) for condition in CONDITIONS if name in condition.names)


def given(params: Declaration) -> dict[str, Any]:
    """Return the values that differ from the defaults, by attribute, without fields that a script added."""
    return {
        field.name: value
        for field in msgspec.structs.fields(Declaration)
        if not field.required and (value := getattr(params, field.name)) != field.default
    }


def name_of(attribute: str) -> str:
    """Return the hyperparameter's name: `lambda` for the attribute `lambda_`."""
    return next(field.encode_name for field in msgspec.structs.fields(Declaration) if field.name == attribute)


def find_unread(params: Declaration) -> Iterator[str]:
    """Return a log line for each value without effect, which is no error, as the built-in accepts it, too."""
    for attribute, words in find_unmet(params):
        if attribute not in NEVER_IGNORED:
            yield f"{name_of(attribute)} is not read: it applies only with {words}"


def find_unmet(params: Declaration) -> Iterator[tuple[str, str]]:
    """Return each hyperparameter that is given and not read, by its attribute, with the condition that is not met."""
    for attribute in given(params):
        name = ALIASES.get(attribute, attribute)
        unmet = [each for each in CONDITIONS if name in each.names and not each.applies(params)]
        if unmet:
            yield attribute, unmet[0].words
