"""Ranges as SageMaker takes them; what it would refuse."""

import math
from collections.abc import Iterable

from trainbox.errors import RunError
from trainbox.tuning.printed.tuning_job_spec import TuningJobSpec
from trainbox.tuning.search_space import CategoricalRange, ContinuousRange, IntegerRange, ParameterRange

#: API CategoricalParameterRange: Values.
_MOST_VALUES = 30
#: API HyperParameterTuningJobConfig: RandomSeed.
_LARGEST_SEED = 2**31 - 1


def check_search(spec: TuningJobSpec) -> None:
    """Refuse a search that SageMaker would refuse.

    Raises:
        RunError: It has no way to say it; the message names what.
    """
    if not 0 <= spec.search.seed <= _LARGEST_SEED:
        raise RunError(f"--print: the seed {spec.search.seed} is not from 0 to {_LARGEST_SEED}, as SageMaker takes it")
    if spec.search.strategy == "Hyperband" and spec.search.early_stopping:
        raise RunError("--print: SageMaker has no early stopping with Hyperband", hint="leave --early-stop out")


def remote_ranges(spec: TuningJobSpec) -> tuple[ParameterRange, ...]:
    """Pure: the ranges of a search; a grid has categories only, so a whole number is written as its values.

    Raises:
        RunError: SageMaker has no such range.
    """
    found = tuple(_as_categories(each) if spec.search.strategy == "Grid" else each for each in spec.search.ranges)
    for each in found:
        if isinstance(each, CategoricalRange):
            _check_count(each.name, len(each.values))
    return found


def number_of_trials(spec: TuningJobSpec, ranges: Iterable[ParameterRange]) -> int:
    """Pure: how many trials SageMaker is asked for; a grid has as many as it has points, no more and no fewer."""
    if spec.search.strategy != "Grid":
        return spec.search.max_trials
    return math.prod(len(each.values) for each in ranges if isinstance(each, CategoricalRange))


def _as_categories(given: ParameterRange) -> CategoricalRange:
    match given:
        case CategoricalRange():
            return given
        case IntegerRange():
            _check_count(given.name, given.high - given.low + 1)
            return CategoricalRange(given.name, tuple(str(value) for value in range(given.low, given.high + 1)))
        case ContinuousRange():
            raise RunError(
                f"--print: {given.name} is continuous, and a grid of SageMaker takes categories only",
                hint=f"give --choice {given.name}=VALUE,VALUE",
            )


def _check_count(name: str, count: int) -> None:
    if count > _MOST_VALUES:
        raise RunError(f"--print: {name} has {count} values, SageMaker takes {_MOST_VALUES} at most")
