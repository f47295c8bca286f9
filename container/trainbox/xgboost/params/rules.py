"""What goes with what: the checks of hyperparameters that more than one of them decides."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from trainbox.xgboost.params.catalogue import ALONE, METRICS, OBJECTIVES, OF_TWO, is_well_formed, split
from trainbox.xgboost.params.declaration import RETIRED_OBJECTIVE, Declaration

#: Names of SageMaker's built-in and of XGBoost for the same thing, and the name used here.
ALIASES = {"learning_rate": "eta", "min_split_loss": "gamma", "reg_lambda": "lambda", "reg_alpha": "alpha"}

#: The updaters that grow a tree, by the tree method that each is; the others work on a tree that has grown.
GROWERS = {"grow_quantile_histmaker": "hist", "grow_histmaker": "approx", "grow_colmaker": "exact"}
_LATER = ("prune", "refresh")
LINEAR = ("shotgun", "coord_descent")
#: What XGBoost has given up, and what it has instead.
RETIRED_UPDATERS = {"grow_skmaker": "grow_histmaker", "grow_local_histmaker": "grow_histmaker", "sync": ""}
_ANY_ORDER = ("cyclic", "shuffle")
#: Numbers of single precision.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38


class ReadCondition(msgspec.Struct, frozen=True):
    """Hyperparameters that XGBoost reads in some cases alone.

    Args:
        names: The hyperparameters.
        applies: Whether they are read.
        words: When that is, in words.
    """

    names: tuple[str, ...]
    applies: Callable[[Declaration], bool]
    words: str


def objective(params: Declaration) -> str:
    """The objective by its name of today."""
    return "reg:squarederror" if params.objective == RETIRED_OBJECTIVE else str(params.objective)


def updaters(params: Declaration) -> tuple[str, ...]:
    """The updaters by their names of today."""
    return tuple(filter(None, (RETIRED_UPDATERS.get(name, name) for name in params.updater)))


def device(params: Declaration) -> str:
    """Where XGBoost runs, with the names of the past understood: cpu, cuda or cuda:N."""
    is_gpu = params.tree_method == "gpu_hist" or bool(params.use_dask_gpu_training)
    return "cuda" if is_gpu and params.device == "cpu" else params.device


def method(params: Declaration) -> str:
    """How splits are found, whether `tree_method` or `updater` says it: hist, approx or exact; linear has none."""
    if params.booster == "gblinear":
        return "linear"
    named = [GROWERS[name] for name in updaters(params) if name in GROWERS]
    if named:
        return named[0]
    return "hist" if params.tree_method in {"auto", "gpu_hist"} else params.tree_method


def is_binned(params: Declaration) -> bool:
    """Whether all that is read of a feature is its bin."""
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

#: A hyperparameter that is in several rules is read where all of them say so.
RULES = (
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
_PROMISES = frozenset(
    {
        *("num_class", "quantile_alpha", "expectile_alpha"),
        *("monotone_constraints", "interaction_constraints", "categorical_features", "categorical"),
    }
)


def is_read(name: str, params: Declaration) -> bool:
    """Whether what a hyperparameter says is read at all, by its attribute."""
    return all(rule.applies(params) for rule in RULES if name in rule.names)


def find_problems(params: Declaration) -> list[str]:
    """All that is wrong with hyperparameters whose types and ranges are right."""
    checks: tuple[Callable[[Declaration], Iterator[str]], ...] = (
        _check_values,
        _check_names,
        _check_rules,
        _check_objective,
        _check_labels,
        _check_trees,
        _check_bins,
        _check_several_outputs,
        _check_updaters,
        _check_metrics,
    )
    return [problem for check in checks for problem in check(params)]


def find_multi_process_problems(params: Declaration) -> list[str]:
    """All that XGBoost cannot do, or does wrongly without a word, where the rows lie with several members.

    Found by training on two members: `exact` is refused by XGBoost itself and `prune` breaks XGBoost 3.2; the others
    run, and learn from a member's own rows what they ought to learn from all.
    """
    cannot = {
        "tree_method=exact needs all rows in one place": method(params) == "exact",
        "booster=gblinear leaves each member with a model of its own": params.booster == "gblinear",
        "objective survival:cox compares each row with all others": objective(params) == "survival:cox",
        "lambdarank_unbiased=true estimates a bias for each member": params.lambdarank_unbiased,
        "the updater 'prune' does not work": "prune" in params.updater and method(params) != "exact",
        "bins=quantiles needs all rows in one place": params.bins == "quantiles" and is_binned(params),
    }
    tuned = (params.tuning_objective_metric or "").rpartition(":")[2]
    metrics = [name for name in dict.fromkeys((*params.eval_metric, tuned)) if split(name)[0] in ALONE]
    return [what for what, is_so in cannot.items() if is_so] + [
        f"eval_metric {name} needs all rows" for name in metrics
    ]


def given(params: Declaration) -> dict[str, Any]:
    """What differs from the defaults, by attribute; not what a script has added."""
    return {
        field.name: value
        for field in msgspec.structs.fields(Declaration)
        if not field.required and (value := getattr(params, field.name)) != field.default
    }


def name_of(attribute: str) -> str:
    """The hyperparameter's own name: `lambda` for the attribute `lambda_`."""
    return next(field.encode_name for field in msgspec.structs.fields(Declaration) if field.name == attribute)


# ---- the checks ----


def _check_values(params: Declaration) -> Iterator[str]:
    for attribute, value in given(params).items():
        for number in _numbers(value):
            if not math.isfinite(number):
                yield f"{name_of(attribute)} is {number:g}: give a finite number"
            elif number and not _SMALLEST <= abs(number) <= _LARGEST:
                limits = f"from {_SMALLEST:g} to {_LARGEST:g}, and 0"
                yield f"{name_of(attribute)} is {number:g}: XGBoost reads numbers {limits}"


def _numbers(value: object) -> Iterator[float]:
    """Those of a value, or of the values in it."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
    yield from (each for each in values if isinstance(each, float))


def _check_names(params: Declaration) -> Iterator[str]:
    named = {name_of(attribute) for attribute in given(params)}
    for other, name in ALIASES.items():
        if other in named and name in named:
            yield f"{name} and {other} are one and the same"


def _check_rules(params: Declaration) -> Iterator[str]:
    for attribute, words in _unmet(params):
        if attribute in _PROMISES:
            yield f"{name_of(attribute)} goes with {words} alone"


def find_unread(params: Declaration) -> Iterator[str]:
    """What is given and read by nothing in this case; the built-in takes it too, so a job from there goes on."""
    for attribute, words in _unmet(params):
        if attribute not in _PROMISES:
            yield f"{name_of(attribute)} is not read: it goes with {words} alone"


def _unmet(params: Declaration) -> Iterator[tuple[str, str]]:
    for attribute in given(params):
        unmet = [rule for rule in RULES if ALIASES.get(attribute, attribute) in rule.names and not rule.applies(params)]
        if unmet:
            yield attribute, unmet[0].words


def _check_objective(params: Declaration) -> Iterator[str]:
    name = objective(params)
    for wanted, attribute in (
        ("multi:", "num_class"),
        ("reg:quantile", "quantile_alpha"),
        ("reg:exp", "expectile_alpha"),
    ):
        if name.startswith(wanted) and not getattr(params, attribute):
            yield f"objective {name} needs {attribute}"
    for attribute in ("quantile_alpha", "expectile_alpha"):
        values = getattr(params, attribute)
        if list(values) != sorted(set(values)):
            yield f"{attribute} is {', '.join(map(str, values))}: give each once, in ascending order"
    wanted, first = OBJECTIVES[name].base_score, params.base_score
    if first is not None and wanted == "a share" and not 0 < first < 1:
        yield f"base_score is {first:g}: for objective {name} it is a probability, between 0 and 1"
    if first is not None and wanted == "positive" and first <= 0:
        yield f"base_score is {first:g}: for objective {name} it must be above 0"


def _check_labels(params: Declaration) -> Iterator[str]:
    name, columns = objective(params), params.label_columns
    if name == "survival:aft" and columns != 2:  # noqa: PLR2004 - written out right here
        yield "objective survival:aft needs label_columns=2: the lower and the upper bound"
    elif columns > 1 and name != "survival:aft" and not OBJECTIVES[name].several:
        yield f"label_columns is {columns}, but objective {name} learns one column"


def _check_trees(params: Declaration) -> Iterator[str]:
    if params.process_type == "update":
        yield "process_type=update works on the trees of a model given, and a job here is given none: leave it out"
    if method(params) == "exact" and device(params) != "cpu" and not params.updater:
        yield f"tree_method=exact grows on a processor only, and device is {device(params)}: use hist or approx"
    if method(params) == "exact" and params.max_depth == 0:
        yield "max_depth=0 is no limit, which tree_method=exact does not have"
    if params.external_memory == "on" and not is_binned(params):
        yield "external_memory=on needs tree_method=hist, and no updater 'refresh'"
    if params.monotone_constraints is not None and "refresh" in params.updater:
        yield "monotone_constraints does not go with the updater 'refresh', which sets leaves anew"
    if params.feature_weights is not None and not any(_values(params.feature_weights)):
        yield "feature_weights leaves no feature to draw: give one a weight above 0"
    if params.dsplit == "col":
        yield "dsplit=col is no more: XGBoost splits rows over hosts, never columns; leave it out"


def _check_bins(params: Declaration) -> Iterator[str]:
    if params.bins != "quantiles" or not is_binned(params):
        return
    cannot = (
        ("categorical_features", bool(params.categorical_features)),
        ("csv_weights=1", params.csv_weights),
        ("external_memory=on", params.external_memory == "on"),
        (f"device={device(params)}", device(params) != "cpu"),
    )
    for what, is_so in cannot:
        if is_so:
            yield f"bins=quantiles does not go with {what}"


def _values(weights: Sequence[float] | Mapping[str, float]) -> Iterable[float]:
    """The weights; those of features that are not named are 1."""
    return [*weights.values(), 1.0] if isinstance(weights, Mapping) else weights


def _check_several_outputs(params: Declaration) -> Iterator[str]:
    if params.multi_strategy == "one_output_per_tree":
        return
    cannot = (
        ("tree_method=" + method(params), method(params) != "hist"),
        ("booster=dart", params.booster == "dart"),
        ("an updater", bool(params.updater)),
    )
    for what, is_so in cannot:
        if is_so:
            yield f"multi_strategy=multi_output_tree does not go with {what}"


def _check_updaters(params: Declaration) -> Iterator[str]:
    names = updaters(params)
    if "distcol" in names:
        yield "updater distcol is no more: XGBoost splits rows over hosts, never columns; take tree_method=exact"
    elif params.booster == "gblinear":
        yield from _check_linear(params, names)
    elif names:
        unknown = [name for name in names if name not in {*GROWERS, *_LATER}]
        for name in unknown:
            yield f"updater {name} is unknown{_suggest(name, (*GROWERS, *_LATER, *RETIRED_UPDATERS))}"
        if not unknown and (names[0] not in GROWERS or len({*names} & {*GROWERS}) > 1):
            yield f"updater is {','.join(names)}: begin with one that grows trees ({' or '.join(GROWERS)}), no other"
        elif params.tree_method not in {"auto", "gpu_hist", method(params)}:
            yield f"updater {names[0]} is tree_method={method(params)}, but tree_method is {params.tree_method}"


def _check_linear(params: Declaration, names: tuple[str, ...]) -> Iterator[str]:
    if len(names) > 1 or not {*names} <= {*LINEAR}:
        yield f"updater is {','.join(names)}: with booster=gblinear give one, {' or '.join(LINEAR)}"
    elif names == ("shotgun",) and params.feature_selector not in _ANY_ORDER:
        yield f"feature_selector={params.feature_selector} needs updater=coord_descent"


# ---- metrics ----


def _check_metrics(params: Declaration) -> Iterator[str]:
    wanted = dict.fromkeys(params.eval_metric, "eval_metric")
    if params.tuning_objective_metric is not None:
        channel, _, name = params.tuning_objective_metric.rpartition(":")
        if channel not in {"", "validation", "train"}:
            yield f"_tuning_objective_metric is {params.tuning_objective_metric}: name a metric of train or validation"
        wanted.setdefault(name, "_tuning_objective_metric")
    for name, source in wanted.items():
        problem = _find_metric_problem(name, params)
        if problem:
            yield f"{source} {name} {problem}"


def _find_metric_problem(name: str, params: Declaration) -> str:
    """What is wrong with a metric, as the end of a sentence; empty where nothing is."""
    kind, _ = split(name)
    if kind not in METRICS:
        return f"is unknown{_suggest(kind, METRICS)}"
    if not is_well_formed(name):
        return f"is not how {kind} is written: {_describe_spelling(kind)}"
    return _find_mismatch(kind, params)


def _find_mismatch(kind: str, params: Declaration) -> str:
    metric, name = METRICS[kind], objective(params)
    groups = metric.suffix == "place" and params.group_column is not None and name.startswith(("reg:", "count:"))
    if not name.startswith(metric.only) and not groups:
        return f"is for {metric.words}, and the objective is {name}"
    if kind in OF_TWO and (params.num_class or 2) > 2:  # noqa: PLR2004 - two classes
        return f"is for two classes: of {params.num_class}, take an average such as {kind.partition('_')[0]}_macro"
    if params.label_columns > 1 and name != "survival:aft" and not metric.several:
        return "judges one label column"
    if len(params.quantile_alpha + params.expectile_alpha) > 1 and not kind.endswith("tile"):
        return f"judges one prediction for a row, and {name} makes several"
    return ""


def _describe_spelling(kind: str) -> str:
    return {
        "": f"{kind}, and nothing behind it",
        "number": f"{kind}, or {kind}@ and a number such as {kind}@0.7",
        "place": f"{kind}, or {kind}@ and a number of rows such as {kind}@10",
        "required": f"{kind}@ and a number such as {kind}@0.15",
    }[METRICS[kind].suffix]


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" - did you mean '{close[0]}'?" if close else f", known are {', '.join(known)}"
