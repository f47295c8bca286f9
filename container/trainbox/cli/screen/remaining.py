"""How long the rest of a job takes, at the speed of its steps so far."""

import time
from collections.abc import Mapping

from trainbox.clock import Clock

#: Hyperparameters that say how many steps a job has: the first one that is given counts, however `-` and `_` stand.
TOTALS = (
    *("num_round", "num_boost_round", "n_estimators", "max_steps", "num_steps", "total_steps", "num_iterations"),
    *("iterations", "max_iter", "epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs"),
)
#: Of bundled scripts that have a default for it.
DEFAULTS = {"pytorch_train": ("epochs", 10), "random_forest_train": ("n_estimators", 100)}
#: Of the bundled XGBoost script: it counts the rounds of all folds.
_FOLDS = ("_kfold", "_num_cv_round")
#: From the first step to the one that shows a speed.
_LEAST_STEPS = 2


def find_total(script: str, hyperparameters: Mapping[str, str]) -> int | None:
    """Return how many steps a job has, by its hyperparameters; None where these do not say.

    Args:
        script: The name of a bundled script, or another one.
        hyperparameters: Of the job.
    """
    given = {name.replace("-", "_").lower(): value for name, value in hyperparameters.items()}
    name = next((name for name in TOTALS if name in given), "")
    total = _number(given[name]) if name else DEFAULTS.get(script, ("", None))[1]
    if total is not None and script == "xgboost_train":
        for repeats in _FOLDS:
            total *= _number(given.get(repeats, "")) or 1
    return total


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


class Remaining:
    """Knows how long the rest takes, from the moments in which steps were logged.

    Args:
        total: How many steps there are; None where nobody knows.
        clock: The time in seconds.
    """

    def __init__(self, total: int | None, *, clock: Clock = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self._from_zero = False

    def note(self, step: int | None) -> None:
        """A step was logged, by its number: of all so far, or counted from 0."""
        if step is None or (self._last and step == self._last[0]):
            return
        now = self._clock()
        self._from_zero = self._from_zero or step == 0
        if self._first is None or self._last is None or step < self._last[0]:  # ranks have been started again
            self._first = step, now
        self._last = step, now

    def seconds(self) -> float | None:
        """How long the rest takes; None where nobody can tell yet, or the steps are not those of the total."""
        if self._total is None or self._first is None or self._last is None:
            return None
        (first, began), (last, reached) = self._first, self._last
        left = self._total - last - self._from_zero
        if last - first < _LEAST_STEPS - 1 or left <= 0:
            return None
        return max(0.0, (reached - began) / (last - first) * left - (self._clock() - reached))
