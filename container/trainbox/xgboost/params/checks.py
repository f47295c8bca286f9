"""Checks that involve several hyperparameters."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from trainbox.xgboost.params.catalogue import ALONE, METRICS, OBJECTIVES, OF_TWO, is_well_formed, split
from trainbox.xgboost.params.declaration import Declaration
from trainbox.xgboost.params.rules import (
    ALIASES,
    GROWERS,
    NEVER_IGNORED,
    RETIRED_UPDATERS,
    device,
    find_unmet,
    given,
    is_binned,
    method,
    name_of,
    objective,
    updaters,
)

_LATER = ("prune", "refresh")
LINEAR = ("shotgun", "coord_descent")
_ANY_ORDER = ("cyclic", "shuffle")
#: Numbers of single precision.
_SMALLEST, _LARGEST = 1.2e-38, 3.4e38


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
            yield f"{name} and {other} are the same hyperparameter"


def _check_rules(params: Declaration) -> Iterator[str]:
    for attribute, words in find_unmet(params):
        if attribute in NEVER_IGNORED:
            yield f"{name_of(attribute)} applies only with {words}"


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
        yield "dsplit=col was removed from XGBoost, which splits rows over hosts, never columns; leave it out"


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
        yield "updater distcol was removed from XGBoost, which never splits columns over hosts; use tree_method=exact"
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
        return f"is for two classes: of {params.num_class}, use an average such as {kind.partition('_')[0]}_macro"
    if params.label_columns > 1 and name != "survival:aft" and not metric.several:
        return "scores one label column"
    if len(params.quantile_alpha + params.expectile_alpha) > 1 and not kind.endswith("tile"):
        return f"scores one prediction for a row, and {name} makes several"
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
