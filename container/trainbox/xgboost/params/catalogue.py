"""Every objective and every metric of XGBoost, and which metrics fit which objectives."""

import re
from typing import Literal

import msgspec

Goal = Literal["maximize", "minimize"]


class ObjectiveKind(msgspec.Struct, frozen=True):
    """An objective of XGBoost.

    Args:
        metric: What is evaluated where no metric is asked for.
        base_score: Which first predictions it takes.
        several: Whether it learns several label columns at once.
    """

    metric: str
    base_score: Literal["any", "a share", "positive"] = "any"
    several: bool = False


class MetricKind(msgspec.Struct, frozen=True):
    """A metric without its suffix: `ndcg` of `ndcg@10-`.

    Args:
        goal: Which way is better.
        only: How the names of the objectives begin that it can judge.
        words: Those objectives in words, for a message.
        is_computed_here: Whether it is computed here because XGBoost does not know it.
        suffix: What may stand behind `@`, and `required` where it must.
        several: Whether it can judge several label columns at once.
    """

    goal: Goal
    only: tuple[str, ...]
    words: str
    is_computed_here: bool = False
    suffix: Literal["", "number", "place", "required"] = ""
    several: bool = False


OBJECTIVES = {
    "reg:squarederror": ObjectiveKind("rmse", several=True),
    "reg:squaredlogerror": ObjectiveKind("rmsle", several=True),
    "reg:logistic": ObjectiveKind("rmse", base_score="a share", several=True),
    "reg:pseudohubererror": ObjectiveKind("mphe", several=True),
    "reg:absoluteerror": ObjectiveKind("mae", several=True),
    "reg:quantileerror": ObjectiveKind("quantile"),
    "reg:expectileerror": ObjectiveKind("expectile"),
    "reg:gamma": ObjectiveKind("gamma-deviance", base_score="positive", several=True),
    "reg:tweedie": ObjectiveKind("tweedie-nloglik", base_score="positive", several=True),
    "count:poisson": ObjectiveKind("poisson-nloglik", base_score="positive", several=True),
    "binary:logistic": ObjectiveKind("logloss", base_score="a share", several=True),
    "binary:logitraw": ObjectiveKind("logloss", several=True),
    "binary:hinge": ObjectiveKind("error", several=True),
    "multi:softmax": ObjectiveKind("mlogloss"),
    "multi:softprob": ObjectiveKind("mlogloss"),
    "rank:ndcg": ObjectiveKind("ndcg"),
    "rank:map": ObjectiveKind("map"),
    "rank:pairwise": ObjectiveKind("ndcg"),
    "survival:cox": ObjectiveKind("cox-nloglik", base_score="positive"),
    "survival:aft": ObjectiveKind("aft-nloglik", base_score="positive"),
}

_EACH_ROW = ("reg:", "count:", "binary:", "rank:", "survival:cox")
_CLASSES = ("binary:", "multi:")
_AMOUNTS = ("reg:", "count:", "binary:logistic", "binary:hinge")


def _by_row(suffix: Literal["", "number"] = "", goal: Goal = "minimize") -> MetricKind:
    return MetricKind(goal, _EACH_ROW, "every objective but multi:* and survival:aft", suffix=suffix, several=True)


def _by_class() -> MetricKind:
    return MetricKind("maximize", _CLASSES, "binary:* and multi:*", is_computed_here=True)


def _of_two() -> MetricKind:
    return MetricKind("maximize", _CLASSES, "two classes", is_computed_here=True)


def _of_amount(goal: Goal) -> MetricKind:
    return MetricKind(
        goal, _AMOUNTS, "reg:*, count:*, binary:logistic and binary:hinge", is_computed_here=True, several=True
    )


def _by_group() -> MetricKind:
    return MetricKind("maximize", ("rank:", "binary:"), "rank:* and binary:*, or with group_column", suffix="place")


def _of_curve() -> MetricKind:
    return MetricKind("maximize", (*_CLASSES, "rank:", "reg:logistic"), "binary:*, multi:*, rank:* and reg:logistic")


def _of(objective: str, goal: Goal = "minimize") -> MetricKind:
    return MetricKind(goal, (objective,), objective + "*" * objective.endswith(":"))


METRICS = {
    "accuracy": _by_class(),
    "aft-nloglik": _of("survival:aft"),
    "ams": MetricKind("maximize", ("binary:",), "binary:*", suffix="required"),
    "auc": _of_curve(),
    "aucpr": _of_curve(),
    "balanced_accuracy": _by_class(),
    "cox-nloglik": _of("survival:cox"),
    "error": _by_row("number"),
    "expectile": _of("reg:expectileerror"),
    "f1": _by_class(),
    "f1_binary": _of_two(),
    "f1_macro": _by_class(),
    "gamma-deviance": _by_row(),
    "gamma-nloglik": _by_row(),
    # The share of rows whose prediction lies between their bounds: more is better, though the built-in minimizes it.
    "interval-regression-accuracy": _of("survival:aft", "maximize"),
    "logloss": _by_row(),
    "mae": _by_row(),
    "map": _by_group(),
    "mape": _by_row(),
    "merror": _of("multi:"),
    "mlogloss": _of("multi:"),
    "mphe": _by_row(),
    "mse": _of_amount("minimize"),
    "ndcg": _by_group(),
    "poisson-nloglik": _by_row(),
    "pre": _by_group(),
    "precision": _of_two(),
    "precision_macro": _by_class(),
    "precision_micro": _by_class(),
    "quantile": _of("reg:quantileerror"),
    "r2": _of_amount("maximize"),
    "recall": _of_two(),
    "recall_macro": _by_class(),
    "recall_micro": _by_class(),
    "rmse": _by_row(),
    "rmsle": _by_row(),
    "tweedie-nloglik": _by_row("number"),
}

#: Metrics of two classes alone: of more than two, scikit-learn asks which average is meant.
OF_TWO = frozenset(name for name, kind in METRICS.items() if kind.words == "two classes")
#: What XGBoost refuses to compute over several members, because it needs all rows at once.
ALONE = frozenset({"ams", "cox-nloglik"})

_FULL = re.compile(r"(?P<kind>[^@]+?)(?:@(?P<suffix>[^@]*?))?(?P<minus>-?)")
_PLACE = re.compile(r"[1-9][0-9]*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+")


def split(name: str) -> tuple[str, str]:
    """Split the name of a metric into its kind and the suffix after `@`.

    >>> split("validation:ndcg@10-")
    ('ndcg', '10')
    """
    found = _FULL.fullmatch(name.rpartition(":")[2])
    return (found["kind"], found["suffix"] or "") if found else (name, "")


def goal(name: str) -> Goal:
    """Return whether a metric is maximized or minimized, by its name with or without channel and suffix.

    >>> goal("validation:error@0.7")
    'minimize'
    """
    return METRICS[split(name)[0]].goal


def is_well_formed(name: str) -> bool:
    """Whether the suffix is valid for the kind of metric, which is known."""
    found = _FULL.fullmatch(name)
    if found is None:
        return False
    wanted = METRICS[found["kind"]].suffix
    if found["minus"] and wanted != "place":
        return False
    if found["suffix"] is None:
        return wanted != "required"
    pattern = {"": None, "place": _PLACE}.get(wanted, _NUMBER)
    return pattern is not None and pattern.fullmatch(found["suffix"]) is not None
