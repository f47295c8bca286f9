"""Searches in simulated order: no job runs, an objective is computed, and trials end in the order of their start."""

import math
from collections.abc import Callable, Mapping

from trainbox.tuning.search.search import TrialSearch
from trainbox.tuning.search_space import (
    CategoricalRange,
    ContinuousRange,
    IntegerRange,
    Objective,
    ParameterRange,
    SearchSettings,
    Strategy,
)

#: Four hyperparameters of XGBoost.
FOUR = (
    ContinuousRange("eta", 0.01, 0.3, "Logarithmic"),
    IntegerRange("max_depth", 3, 10),
    ContinuousRange("subsample", 0.5, 1.0),
    CategoricalRange("booster", ("gbtree", "dart")),
)
OBJECTIVE = Objective("score", "Maximize", "score=([0-9.]+)")


def four_parameters(values: Mapping[str, str]) -> float:
    """An objective that is 0 at its best: a bowl in three numbers, and a choice; 20 random points reach -0.47."""
    bowl = 2 * math.log(float(values["eta"]) / 0.08) ** 2
    bowl += 6 * ((int(values["max_depth"]) - 7) / 7) ** 2
    bowl += 6 * ((float(values["subsample"]) - 0.8) / 0.5) ** 2
    return -0.8 * (bowl + (values["booster"] == "gbtree"))


def settings(
    *ranges: ParameterRange, strategy: Strategy = "Bayesian", trials: int = 20, seed: int = 0, early_stop: bool = False
) -> SearchSettings:
    """The settings of a search for the largest score."""
    return SearchSettings(
        strategy=strategy,
        objective=OBJECTIVE,
        ranges=ranges or FOUR,
        max_trials=trials,
        seed=seed,
        early_stopping=early_stop,
    )


def simulate(
    given: SearchSettings, objective: Callable[[Mapping[str, str]], float], *, parallel: int = 1
) -> list[tuple[dict[str, str], float]]:
    """Run a search; return the points and their objectives in the order in which the trials ended."""
    search = TrialSearch(given)
    running: list[tuple[int, dict[str, str]]] = []
    done = []
    for number in range(1, given.max_trials + 1):
        point = search.ask(number)
        if point is None:
            break
        running.append((number, point))
        if len(running) == parallel:
            done.append(_end(search, *running.pop(0), objective))
    return [*done, *(_end(search, *each, objective) for each in running)]


def _end(
    search: TrialSearch, number: int, values: dict[str, str], objective: Callable[[Mapping[str, str]], float]
) -> tuple[dict[str, str], float]:
    value = objective(values)
    search.tell(number, value)
    return values, value
