"""When a child is started again, and when it counts as ready: values of a plan, and pure decisions over a clock.

A training job restarts nothing here: the first child that fails ends the others. A server replaces a worker that ends,
after a pause that doubles, and fails once one worker ends too often.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from trainbox.errors import ProgramError

#: A pause doubles no more often than this: 2^n must stay a float.
_MOST_DOUBLINGS = 30


class RestartPolicy(msgspec.Struct, frozen=True):
    """How often a child that has ended, for whatever reason, is started again, and after which pause."""

    #: Restarts of one child within the window. 0 never restarts: a child that fails ends the plan.
    limit: int = 0
    window_seconds: float = 60.0
    #: Before the first restart within the window; each further one doubles it.
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 10.0
    #: Exit codes that another start would not change; each ends the plan at once.
    final_codes: frozenset[int] = frozenset()


NEVER_RESTART = RestartPolicy()


class Restart(msgspec.Struct, frozen=True):
    """A restart that is planned."""

    at: float
    #: When each restart of this child within the window was planned, this one last.
    moments: tuple[float, ...]


def plan_restart(policy: RestartPolicy, moments: Sequence[float], now: float) -> Restart | None:
    """Decide whether a child that has ended is started again, and when.

    Args:
        policy: Of its plan.
        moments: When its earlier restarts were planned.
        now: The time.

    Returns:
        None where the limit is reached: the plan fails.
    """
    recent = tuple(moment for moment in moments if moment > now - policy.window_seconds)
    if len(recent) >= policy.limit:
        return None
    pause = policy.first_pause_seconds * 2.0 ** min(len(recent), _MOST_DOUBLINGS)
    return Restart(now + min(pause, policy.longest_pause_seconds), (*recent, now))


class Readiness(msgspec.Struct, frozen=True):
    """How a child reports that it is ready, and how long it may take."""

    #: A file that the child makes, which is removed before each start; or a function of the child's process id, which
    #: must answer at once (the supervisor waits for it), and whose OSError means no.
    probe: Path | Callable[[int], bool]
    #: One that is not ready by then is killed, and has ended like any other.
    timeout_seconds: float
    #: From one look to the next.
    period_seconds: float = 0.1

    def is_ready(self, pid: int) -> bool:
        """Ask now."""
        try:
            return self.probe.exists() if isinstance(self.probe, Path) else self.probe(pid)
        except OSError:  # of a connection that is refused, a file that is not there yet
            return False

    def forget(self) -> None:
        """Remove what an earlier process has left, so that it does not speak for the next one.

        Raises:
            ProgramError: It cannot be removed.
        """
        if isinstance(self.probe, Path):
            try:
                self.probe.unlink(missing_ok=True)
            except OSError as error:
                raise ProgramError(f"{self.probe} cannot be removed before a start: {error.strerror}") from error
