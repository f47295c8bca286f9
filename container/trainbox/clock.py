"""Time as a parameter: what decides takes `now`, what waits takes a `Clock`, and a test moves a clock of its own.

A process can be stopped at any moment (SIGSTOP, a paused container, a machine that swaps) and does not notice. It sees
it afterwards: it was to look at its clock again by some moment, and has not. Others that were silent meanwhile have
done nothing wrong, so a wait for them counts only the time in which this process ran.
"""

from collections.abc import Callable

import msgspec

#: Seconds since some moment; in production `time.monotonic`.
Clock = Callable[[], float]
#: Waits for so many seconds; in production `time.sleep`.
Sleep = Callable[[float], None]

#: A process that runs this much later than it was to was stopped; less is a busy machine.
FROZEN_SECONDS = 1.0
#: What others have at least after this process was stopped: they may have been, too.
AFTERWARDS_SECONDS = 1.0


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
    #: When it is over, if this process is not stopped.
    until: float
    #: The last look at the clock, and when the next is due at the latest.
    now: float
    due: float
    #: How long this process did not run just before the last look, and all in all.
    missed: float = 0.0
    missed_in_all: float = 0.0

    def look(self, now: float, *, pause: float = float("inf")) -> "Patience":
        """The same wait at a later moment.

        Args:
            now: The time.
            pause: How long the caller wants to wait at most before it looks again.
        """
        gap = missed(self.due, now)
        until = max(self.until + gap, now + AFTERWARDS_SECONDS) if gap else self.until
        return msgspec.structs.replace(
            self, until=until, now=now, due=now + pause, missed=gap, missed_in_all=self.missed_in_all + gap
        )

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
    return Patience(seconds, started=now, until=now + seconds, now=now, due=now)


def describe_missed(seconds: float) -> str:
    """For the log."""
    return f"this process did not run for {seconds:.1f} s: it was stopped, or its machine was too busy"
