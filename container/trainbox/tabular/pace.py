"""How far a long job is, and how long the rest will take."""

import time
from collections.abc import Callable

from trainbox.log_lines import emit


class RemainingTime:
    """Says how far the work is, and about how long the rest takes at the pace so far.

    Args:
        total: How much there is to do.
        done: How much of it was done before this process began.
        unit: What is counted, as "trees".
        least: Seconds from one line to the next, at least.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, total: int, done: int, unit: str, *, least: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._first, self._unit = total, done, unit
        self._least, self._clock = least, clock
        self._began = self._said = clock()

    def tell(self, done: int) -> None:
        """Say it, unless all is done or something was said just now."""
        now = self._clock()
        if done >= self._total or done <= self._first or now - self._said < self._least:
            return
        self._said = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        emit(f"{done:,} of {self._total:,} {self._unit}, about {spoken(left)} left")


def spoken(seconds: float) -> str:
    """A time as a person says it.

    >>> spoken(59.6), spoken(3725)
    ('1 min 0 s', '1 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
