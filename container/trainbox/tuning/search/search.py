"""The search of a tuning job: proposes points, none of them twice, and decides which trials are stopped early."""

import random
from collections.abc import Iterator, Mapping

from trainbox.local.results.record import Curve
from trainbox.tuning.search.early_stopping import is_behind, running_averages
from trainbox.tuning.search.optuna_study import OptunaStudy, resource_of
from trainbox.tuning.search_space import SearchSettings, count_points, points

#: Points that were tried already are asked for anew so often, before one that is left is chosen at random.
_MOST_ATTEMPTS = 20
#: Of a search space that is listed for what is left.
_MOST_LISTED = 1_000_000

Point = tuple[tuple[str, str], ...]


class TrialSearch:
    """Proposes the points of trials, and learns from what becomes of them; for one thread.

    Args:
        settings: What is searched, and how.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self._study = OptunaStudy(settings)
        self._tried: set[Point] = set()
        self._ended: list[Curve] = []
        self._curves: dict[int, tuple[list[int], list[float]]] = {}

    def ask(self, number: int) -> dict[str, str] | None:
        """Return the point of the next trial, as text; None where all points were tried.

        Args:
            number: Of the trial.
        """
        if self._settings.strategy != "Grid":
            for attempt in range(_MOST_ATTEMPTS):
                values = self._study.ask(number, attempt)
                if self._is_new(values):
                    self._start(number, values)
                    return values
                self._study.discard(number)
        left = self._left(number)
        if left is not None:
            self.resume(number, left)
        return left

    def _left(self, number: int) -> dict[str, str] | None:
        """Return a point that was not tried: of a grid the next one, else any."""
        count = count_points(self._settings.ranges)
        if count is None or count > _MOST_LISTED:
            return None
        left = self._new_points()
        if self._settings.strategy == "Grid":
            return next(left, None)
        listed = list(left)
        return random.Random(f"{self._settings.seed} {number}").choice(listed) if listed else None  # noqa: S311

    def _new_points(self) -> Iterator[dict[str, str]]:
        return (values for values in points(self._settings.ranges) if self._is_new(values))

    def _is_new(self, values: Mapping[str, str]) -> bool:
        return _point(values) not in self._tried

    def resume(self, number: int, values: Mapping[str, str]) -> None:
        """Take a trial that has its point already."""
        self._study.adopt(number, values)
        self._start(number, values)

    def _start(self, number: int, values: Mapping[str, str]) -> None:
        self._tried.add(_point(values))
        self._curves[number] = ([], [])

    def learn(self, values: Mapping[str, str], objective: float) -> None:
        """Take a result of another tuning job, whose point is not tried again."""
        self._tried.add(_point(values))
        self._study.learn(values, objective)

    def is_hopeless(self, number: int, step: int, value: float) -> bool:
        """Take a value of a running trial; return whether the trial is to be stopped.

        Args:
            number: Of the trial.
            step: Its epoch or round.
            value: Of the objective.
        """
        steps, values = self._curves[number]
        while steps and steps[-1] >= step:  # a trial that was resumed repeats the steps since its checkpoint
            steps.pop()
            values.pop()
        steps.append(step)
        values.append(value)
        if self._settings.strategy == "Hyperband":
            return self._study.is_hopeless(number, resource_of(step, steps[0]), value)
        goal = self._settings.objective.goal
        return self._settings.early_stopping and is_behind(step, value, self._ended, goal)

    def tell(self, number: int, objective: float | None, *, is_stopped_early: bool = False) -> None:
        """Take the end of a trial.

        Args:
            number: Of the trial.
            objective: Its value; None where it has failed.
            is_stopped_early: Whether it was stopped because it was hopeless.
        """
        steps, values = self._curves.pop(number)
        resource = resource_of(steps[-1], steps[0]) if steps else 0
        self._study.tell(number, objective, is_stopped_early=is_stopped_early, resource=resource)
        if objective is not None and steps:
            self._ended.append(running_averages(Curve(tuple(steps), tuple(values))))


def _point(values: Mapping[str, str]) -> Point:
    return tuple(sorted(values.items()))
