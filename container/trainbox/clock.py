"""Time as a parameter: what decides takes `now`, what waits takes a `Clock`, and a test moves a clock of its own.

A process can be stopped at any moment (SIGSTOP, a paused container, a machine that swaps) and does not notice. It sees
it afterwards: it was to look at its clock again by some moment, and has not. Others that were silent meanwhile have
done nothing wrong, so a wait for them counts only the time in which this process ran.

`missed` decides what was such a stop. A `Patience` is a wait whose end it moves; an `AwakeClock` leaves it out
where nobody knows when the next look comes; `Silence` says how long something has stayed the same by such a clock.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)

#: Seconds since some moment; in production `time.monotonic`.
Clock = Callable[[], float]
#: Waits for so many seconds; in production `time.sleep`.
Sleep = Callable[[float], None]

#: A process that runs this much later than it was to was stopped; less is a busy machine.
FROZEN_SECONDS = 1.0
#: What others have at least after this process was stopped: they may have been, too.
AFTERWARDS_SECONDS = 1.0
#: One that seems to be stopped again and again within one wait is slow at what it does between two looks.
MOST_STOPS = 5
#: A process that asks an `AwakeClock` more rarely than this was stopped itself, or its container was.
GAP_SECONDS = 5.0


def missed(expected: float, now: float, *, tolerated: float = FROZEN_SECONDS) -> float:
    """How long this process did not run.

    Args:
        expected: When it was to look at its clock again at the latest.
        now: When it has.
        tolerated: What is less counts as nothing.
    """
    late = now - expected
    return late if late >= tolerated else 0.0


class Patience(msgspec.Struct, frozen=True):
    """A bounded wait for others, which counts only the time in which this process ran."""

    #: Of the whole wait.
    seconds: float
    started: float
    #: The last look at the clock, and when the next is due at the latest.
    now: float
    due: float
    #: How long this process did not run just before the last look, and all in all.
    missed: float = 0.0
    missed_in_all: float = 0.0
    #: How often that was; no more than `MOST_STOPS` count, so that every wait ends.
    stops: int = 0
    #: After a stop nobody is given up before.
    not_before: float = float("-inf")

    def look(self, now: float, *, pause: float = float("inf")) -> "Patience":
        """The same wait at a later moment.

        Args:
            now: The time.
            pause: How long the caller wants to wait at most before it looks again.
        """
        gap = missed(self.due, now) if self.stops < MOST_STOPS else 0.0
        return msgspec.structs.replace(
            self,
            now=now,
            due=now + pause,
            missed=gap,
            missed_in_all=self.missed_in_all + gap,
            stops=self.stops + bool(gap),
            not_before=now + AFTERWARDS_SECONDS if gap else self.not_before,
        )

    def postpone(self, moment: float) -> float:
        """A deadline of the others, moved by the time in which this process did not run."""
        return max(moment + self.missed_in_all, self.not_before)

    @property
    def until(self) -> float:
        """When the wait is over, if this process is not stopped again."""
        return self.postpone(self.started + self.seconds)

    @property
    def pause(self) -> float:
        """For how long to wait now."""
        return max(0.0, min(self.due, self.until) - self.now)

    @property
    def is_over(self) -> bool:
        """Whether the others have had their time."""
        return self.now >= self.until

    @property
    def was_absent(self) -> bool:
        """Whether this process did not run for so long that others, who wait as long, have given it up."""
        return 0.0 < self.missed_in_all >= self.seconds

    @property
    def waited(self) -> float:
        """How long this process has waited."""
        return self.now - self.started - self.missed_in_all


def wait_from(now: float, seconds: float) -> Patience:
    """The wait that begins now."""
    return Patience(seconds, started=now, now=now, due=now)


def describe_missed(seconds: float) -> str:
    """For the log."""
    return f"this process did not run for {seconds:.1f} s: it was stopped, or its machine was too busy"


class AwakeClock:
    """A clock that leaves out the time in which this process did not run; to be asked every `GAP_SECONDS` at least.

    Args:
        clock: The time in seconds, with everything in it.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = clock()
        self._left_out = 0.0
        #: Seconds of the last pause, and when it ended, by the clock with everything in it.
        self.pause = 0.0
        self.paused_until = float("-inf")

    def __call__(self) -> float:
        """The time in seconds."""
        now = self._clock()
        gap, self._asked_at = missed(self._asked_at, now, tolerated=GAP_SECONDS), now
        if gap:
            self._left_out += gap
            self.pause, self.paused_until = gap, now
        return now - self._left_out


class Silence(Generic[K]):
    """For how many seconds each of some values has stayed the same.

    Args:
        clock: The time in seconds; that in which this process ran, if it must not blame others for its own pauses.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[K, tuple[object, float]] = {}

    def seconds(self, values: Mapping[K, object]) -> dict[K, float]:
        """Look at all values; the seconds for which each has been what it is now, as far as it was looked at."""
        now = self._clock()
        before = self._since
        self._since = {
            key: before[key] if key in before and before[key][0] == value else (value, now)
            for key, value in values.items()
        }
        return {key: now - since for key, (_, since) in self._since.items()}
