"""How long something has stayed the same, counted only while this process itself ran; processes that are stopped."""

import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: A process that asks for the time more rarely than this was stopped itself, or its container was.
GAP_SECONDS = 5.0
#: From one look at the state of a process to the next.
LOOK_SECONDS = 0.5
#: The process state in /proc of one that is stopped; `t`, that of one which a debugger holds, is not meant.
_STOPPED = "T"


class AwakeClock:
    """A monotonic clock that leaves out the time in which this process did not run.

    After SIGSTOP or `docker pause` a process must not blame others for what it did not hear meanwhile. The clock has to
    be asked at least every `GAP_SECONDS`.

    Args:
        clock: The time in seconds, with everything in it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = clock()
        self._left_out = 0.0
        #: Seconds of the last pause, and when it ended, by the clock with everything in it.
        self.pause = 0.0
        self.paused_until = float("-inf")

    def __call__(self) -> float:
        """The time in seconds."""
        now = self._clock()
        gap, self._asked_at = now - self._asked_at, now
        if gap > GAP_SECONDS:
            self._left_out += gap
            self.pause, self.paused_until = gap, now
        return now - self._left_out


class Silence(Generic[K]):
    """For how many seconds each of some values has stayed the same.

    Args:
        clock: The time in seconds; by default that in which this process ran.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or AwakeClock()
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


class StoppedProcesses:
    """Finds processes that have been stopped (SIGSTOP) at every look for longer than they may be.

    Args:
        clock: As of `Silence`.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._silence = Silence[int](clock)

    def seconds(self, pids: Mapping[int, str]) -> dict[int, float]:
        """Seconds for which each process has been stopped, by its state; 0.0 for one that is not."""
        stopped = {pid: is_stopped(state) for pid, state in pids.items()}
        return {pid: seconds * stopped[pid] for pid, seconds in self._silence.seconds(stopped).items()}

    def find(self, limits: Mapping[int, float]) -> dict[int, float]:
        """Those that have been stopped for longer than their limit, which 0 switches off, and for how many seconds."""
        seconds = self.seconds({pid: process_state(pid) for pid in limits})
        return {pid: seconds[pid] for pid, limit in limits.items() if 0 < limit < seconds[pid]}


def is_stopped(state: str) -> bool:
    """Whether a process in this state of /proc/PID/stat continues only when it is sent SIGCONT."""
    return state == _STOPPED


def process_state(pid: int) -> str:
    """The letter for what a process does; `X` where it has ended: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "X"
