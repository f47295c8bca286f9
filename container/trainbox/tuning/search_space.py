"""The search space of a tuning job: what varies, between which values, and on which scale.

As in SageMaker's CreateHyperParameterTuningJob, `ParameterRanges`:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ParameterRanges.html
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal

import msgspec

#: API ContinuousParameterRange: ScalingType; `Auto` is linear here.
Scaling = Literal["Auto", "Linear", "Logarithmic", "ReverseLogarithmic"]
#: API HyperParameterTuningJobObjective: Type.
Goal = Literal["Maximize", "Minimize"]
#: API HyperParameterTuningJobConfig: Strategy.
Strategy = Literal["Bayesian", "Random", "Grid", "Hyperband"]


class ContinuousRange(msgspec.Struct, frozen=True, tag="continuous"):
    """A hyperparameter that is any number from `low` to `high`, both included."""

    name: str
    low: float
    high: float
    scaling: Scaling = "Auto"


class IntegerRange(msgspec.Struct, frozen=True, tag="integer"):
    """A hyperparameter that is a whole number from `low` to `high`, both included."""

    name: str
    low: int
    high: int
    scaling: Scaling = "Auto"


class CategoricalRange(msgspec.Struct, frozen=True, tag="categorical"):
    """A hyperparameter that is one of `values`, each as the script receives it."""

    name: str
    values: tuple[str, ...]


ParameterRange = ContinuousRange | IntegerRange | CategoricalRange


class Objective(msgspec.Struct, frozen=True):
    """What is tuned: a metric by its name, the regex that finds it in a log, and whether more is better."""

    name: str
    goal: Goal
    regex: str


class Resource(msgspec.Struct, frozen=True):
    """API HyperbandStrategyConfig: the fewest and the most epochs of a trial."""

    min: int = 1
    #: None: as many as the first trial that completes.
    max: int | None = None


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a tuning job searches."""

    strategy: Strategy = "Bayesian"
    objective: Objective
    ranges: tuple[ParameterRange, ...]
    max_trials: int
    max_parallel: int = 1
    seed: int = 0
    early_stopping: bool = False
    resource: Resource = Resource()


def is_better(value: float, other: float, goal: Goal) -> bool:
    """Return whether a value of the objective is better than another one."""
    return value > other if goal == "Maximize" else value < other


def count_points(ranges: Sequence[ParameterRange]) -> int | None:
    """Return how many points a search space has; None where one of its ranges is continuous."""
    counts = [_count(each) for each in ranges]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def _count(given: ParameterRange) -> int | None:
    match given:
        case CategoricalRange(values=values):
            return len(values)
        case IntegerRange(low=low, high=high):
            return high - low + 1
        case ContinuousRange():
            return None


def points(ranges: Sequence[ParameterRange]) -> Iterator[dict[str, str]]:
    """Yield all points of a search space without continuous ranges, the last range fastest."""
    names = [each.name for each in ranges]
    for values in product(*map(_values, ranges)):
        yield dict(zip(names, values, strict=True))


def _values(given: ParameterRange) -> Sequence[str]:
    match given:
        case CategoricalRange(values=values):
            return values
        case IntegerRange(low=low, high=high):
            return [str(value) for value in range(low, high + 1)]
        case ContinuousRange(name=name):
            raise ValueError(f"{name} is continuous: its values cannot be counted")


def is_within(values: Mapping[str, str], ranges: Sequence[ParameterRange]) -> bool:
    """Return whether a point has a value of each range."""
    return all(each.name in values and _has(each, values[each.name]) for each in ranges)


def _has(given: ParameterRange, text: str) -> bool:
    try:
        match given:
            case CategoricalRange(values=values):
                return text in values
            case IntegerRange(low=low, high=high):
                return low <= int(text) <= high
            case ContinuousRange(low=low, high=high):
                return low <= float(text) <= high
    except ValueError:
        return False
