"""End leftover processes of the children: SIGTERM, then SIGKILL."""

import contextlib
import os
import signal
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from trainbox.clock import Clock
from trainbox.log_lines import emit
from trainbox.supervisor.loop.deadlines import plan_sweep
from trainbox.system import subreaper as orphans


def end_leftovers(
    others: AbstractSet[int], heard: AbstractSet[int], *, clock: Clock, turn: Callable[[float], None]
) -> int:
    """End every child of this process but `others`, adopted orphans among them.

    Args:
        others: Children that are not ours to end.
        heard: Those that were asked to leave before.
        clock: The time in seconds.
        turn: Relays output and reaps, until a moment of the clock.

    Returns:
        How many there were.
    """
    known: set[int] = set()
    renewals = 0
    killing_since: float | None = None
    since = clock()
    turn(since)
    # Also those that have just ended: each may have forked another before, which a look at the living would miss.
    while left := orphans.children(zombies=True) - others:
        sweep = plan_sweep(left, known, renewals=renewals, since=since, now=clock(), killing_since=killing_since)
        if sweep is None:
            emit(f"{len(left)} process(es) that the script had left behind cannot be ended: {sorted(left)}")
            break
        killing_since = sweep.killing_since
        renewals += not left <= known
        known |= orphans.living(left)
        for pid in sweep.ask - heard:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        orphans.kill_all(sweep.kill)
        turn(clock() + sweep.wait)
    return len(known)
