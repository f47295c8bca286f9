"""Pure: what is tuned: a metric of the command line, or one that the script declares."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from trainbox.contract.job_spec import MetricDefinition
from trainbox.contract.text import did_you_mean, some
from trainbox.errors import MetricError, RunError
from trainbox.local.metrics.defined_metrics import refuse
from trainbox.metrics import Metric
from trainbox.tuning.planning.declared import Declared
from trainbox.tuning.search_space import Goal, Objective

GOALS: Mapping[str, Goal] = {"maximize": "Maximize", "minimize": "Minimize"}
#: Names of metrics of which less is better, as a rule: nobody means to maximize one by saying nothing.
_ERRORS = re.compile(r"loss|err|rmse|mae|mse|mape|perplexity|deviance|nll|cost", re.IGNORECASE)
_VALIDATION = "validation:"
_HINT = "write --metric 'Test AUC=Test AUC: ([0-9.]+)'"


class ChosenObjective(msgspec.Struct, frozen=True):
    """The objective, and the choice made for the user, if one was made."""

    objective: Objective
    note: str = ""


def read_metrics(given: Sequence[str]) -> tuple[MetricDefinition, ...]:
    """Return the metrics of `--metric NAME=REGEX`.

    Raises:
        RunError: One is malformed.
    """
    found: list[MetricDefinition] = []
    for text in given:
        name, equals, regex = text.partition("=")
        if not name or not regex or not equals:
            raise RunError(f"--metric {text!r}: expected NAME=REGEX", hint=_HINT)
        if problem := refuse(regex):
            raise RunError(f"--metric {name}: {problem}", hint=_HINT)
        if name in {each.name for each in found}:
            raise RunError(f"--metric {name}: given twice", hint="give it once")
        found.append(MetricDefinition(name=name, regex=regex))
    return tuple(found)


def choose_objective(
    name: str | None, goal: str | None, definitions: Sequence[MetricDefinition], declared: Declared
) -> ChosenObjective:
    """Return what is tuned.

    Args:
        name: Of `--objective`; by default the one `--metric`, or the last validation metric that the script declares.
        goal: Of `--goal`; by default as declared.
        definitions: Those of `--metric`.
        declared: What the script declares.

    Raises:
        RunError: It cannot be told what is tuned, or whether more of it is better.
    """
    note = ""
    if name is None and len(definitions) > 1:
        raise RunError(f"--metric gives {len(definitions)} metrics", hint="say which is tuned: --objective NAME")
    if name is None and definitions:
        name = definitions[0].name
    elif name is None:
        name = _default(declared).name
        others = [each.name for each in declared.metrics if each.name != name]
        note = f"tuning {name!r}, the last metric of validation that the script declares" if others else ""
    regexes = {each.name: each.regex for each in definitions}
    metric = next((each for each in declared.metrics if each.name == name), None)
    if name in regexes:
        return ChosenObjective(Objective(name, _goal(name, goal, metric), regexes[name]), note)
    if metric is None:
        metric = _undeclared(name, goal, declared, list(regexes))
    return ChosenObjective(Objective(name, _goal(name, goal, metric), metric.regex), note)


def _default(declared: Declared) -> Metric:
    if not declared.metrics:
        why = f": {declared.problem}" if declared.problem else f"; {declared.script} declares no metrics"
        raise RunError(f"what is tuned is not said{why}", hint=_HINT)
    of_validation = [metric for metric in declared.metrics if metric.name.startswith(_VALIDATION)]
    return (of_validation or declared.metrics)[-1]


def _undeclared(name: str, goal: str | None, declared: Declared, defined: Sequence[str]) -> Metric:
    """A metric in trainbox's own metric lines, which any program can write."""
    known = [*defined, *(metric.name for metric in declared.metrics)]
    if known:
        like = did_you_mean(name, known)
        raise RunError(f"--objective {name}: there is no such metric{like}", hint=f"the metrics are {some(known)}")
    if goal is None:
        raise RunError(
            f"--objective {name}: {declared.script} does not declare it",
            hint=f"give its regex, --metric '{name}=…([0-9.]+)'; or --goal, if metric lines of trainbox have it",
        )
    try:
        return Metric(name, "maximize" if GOALS[goal] == "Maximize" else "minimize")
    except MetricError as error:
        raise RunError(f"--objective {name}: {error.message}", hint=f"give its regex: --metric '{name}=…'") from None


def _goal(name: str, goal: str | None, metric: Metric | None) -> Goal:
    if goal is not None:
        return GOALS[goal]
    if metric is not None:
        return GOALS[metric.goal]
    if _ERRORS.search(name):
        raise RunError(f"--metric {name}: is more of it better, or less?", hint="--goal minimize, or --goal maximize")
    return "Maximize"
