"""Run a `Plan` as PID 1 and return its `Outcome`."""

import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainbox.clock import Clock
from trainbox.errors import ProgramError
from trainbox.supervisor.loop.supervision import Supervision
from trainbox.supervisor.outcome import Change, Outcome
from trainbox.supervisor.plan import Plan
from trainbox.system import subreaper as orphans
from trainbox.system.memory import read_memory
from trainbox.system.relay import Sink
from trainbox.system.shm_dir import make_scratch

if TYPE_CHECKING:
    from trainbox.diagnostics.finding import Finding


def supervise(
    plan: Plan,
    *,
    stdout: int = 1,
    stderr: int = 2,
    clock: Clock = time.monotonic,
    poller: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector,
    ignore_stops: bool = False,
    on_change: Callable[[Change], None] = lambda _change: None,
) -> Outcome:
    """Run every child of a plan to its end, and its sidecars as long as that.

    Args:
        plan: What to run.
        stdout: The file descriptor that the children's stdout goes to.
        stderr: Likewise.
        clock: The time in seconds.
        poller: What waits for output and signals, in seconds of that clock.
        ignore_stops: Ignore SIGTERM and SIGINT from the end of the plan on, where only its report is left to do; by
            default their former handlers come back. No signal arrives between the two.
        on_change: Called in the loop for each child that has started, is ready or has ended; it must return at once.

    Raises:
        ProgramError: A child could not be started; those that were have been ended.
    """
    started = clock()
    before = read_memory()
    sinks = (Sink(stdout), Sink(stderr))
    orphans.adopt_orphans()
    if plan.scratch is not None:
        _make(plan.scratch)
    with Supervision(plan, sinks, clock, poller(), ignore_stops=ignore_stops, on_change=on_change) as running:
        running.start()
        running.run()
    after = read_memory()
    return Outcome(
        exits=tuple(running.exits),
        stopped_by=running.stopped_by,
        killed_after_grace=running.killed,
        memory_kills=(after.kills or 0) - (before.kills or 0),
        memory_limit=after.limit_bytes,
        leftovers=running.leftovers,
        seconds=clock() - started,
        ends_line=all(sink.ends_line for sink in sinks),
        lost_output=tuple(str(sink.lost.strerror) for sink in sinks if sink.lost),
        findings=_read_findings(plan),
        restarts=running.restarts.count,
    )


def _read_findings(plan: Plan) -> "tuple[Finding, ...]":
    if plan.scratch is None or not plan.sidecars:
        return ()
    from trainbox.diagnostics.monitor_protocol import read_findings  # noqa: PLC0415 - it needs sockets, which no other job does

    return read_findings(plan.scratch)


def _make(scratch: Path) -> None:
    try:
        make_scratch(scratch)
    except OSError as error:
        raise ProgramError(
            f"the directory {scratch} cannot be made: {error.strerror}",
            hint="processes of a host meet in /dev/shm or /tmp: mount one of them writable (docker run --tmpfs /tmp)",
        ) from error
