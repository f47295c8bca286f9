"""The children of a server: which are not ready yet, and which are started again; empty for a plan that has neither."""

from collections.abc import Iterator

import msgspec

from trainbox.clock import Patience, wait_from
from trainbox.log_lines import emit
from trainbox.supervisor.loop.deadlines import NEVER
from trainbox.supervisor.loop.streams import Process
from trainbox.supervisor.outcome import Exit
from trainbox.supervisor.plan import Child
from trainbox.supervisor.restart_policy import NEVER_RESTART, RestartPolicy, plan_restart
from trainbox.system.memory import read_memory


class Look(msgspec.Struct, frozen=True):
    """The result of a look at children that were not ready."""

    ready: tuple[Process, ...] = ()
    #: Those that were not ready in time, with what they had.
    late: tuple[tuple[Process, float], ...] = ()
    #: When to look again, by the clock.
    again: float = NEVER


_NOBODY = Look()


class Starts:
    """Children that were started and are not ready yet."""

    def __init__(self) -> None:
        self._waiting: dict[Process, Patience] = {}

    def add(self, process: Process, now: float) -> None:
        """Add a started child; one without a `Readiness` is not waited for."""
        if process.child.readiness is not None:
            self._waiting[process] = wait_from(now, process.child.readiness.timeout_seconds)

    def forget(self, process: Process) -> None:
        """Remove a child that has ended."""
        self._waiting.pop(process, None)

    def look(self, now: float) -> Look:
        """Check whether each child is ready. Time in which this process itself did not run does not count."""
        if not self._waiting:
            return _NOBODY
        ready, late, again = [], [], NEVER
        for process, patience in tuple(self._waiting.items()):
            readiness = process.child.readiness
            if readiness is None or readiness.is_ready(process.started.pid):
                ready.append(process)
                continue
            waited = self._waiting[process] = patience.look(now, pause=readiness.period_seconds)
            if waited.is_over:
                late.append((process, readiness.timeout_seconds))
            else:
                again = min(again, now + waited.pause)
        for process in (*ready, *(process for process, _ in late)):
            del self._waiting[process]
        return Look(tuple(ready), tuple(late), again)


class Restarts:
    """Children that have ended and are started again.

    Args:
        policy: Of their plan.
    """

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._moments: dict[str, tuple[float, ...]] = {}
        self._due: dict[str, tuple[float, Child]] = {}
        self._memory_kills = (read_memory().kills or 0) if policy.limit else 0
        #: How often a child was started again.
        self.count = 0

    @property
    def next_at(self) -> float:
        """Return when the next child is due, by the clock."""
        return min((at for at, _ in self._due.values()), default=NEVER)

    def plan(self, exit_: Exit, child: Child, now: float) -> Exit | None:
        """Decide about a child that has ended, and explain why it has.

        Returns:
            None where it is started again, else how it ended for good.
        """
        if not self._policy.limit or exit_.code in self._policy.final_codes:
            return exit_
        if not self.delay(child, self._explain(exit_, child), now):
            times = f"ended {self._policy.limit + 1} times within {self._policy.window_seconds:g} s"
            return msgspec.structs.replace(exit_, gave_up=times)
        return None

    def delay(self, child: Child, why: str, now: float) -> bool:
        """Plan the next start of a child.

        Args:
            child: Which.
            why: It does not run, in words.
            now: The time.

        Returns:
            Whether it has one: else the limit is reached.
        """
        restart = plan_restart(self._policy, self._moments.get(child.name, ()), now)
        if restart is None:
            emit(f"{why}; no restart is left of {self._policy.limit} within {self._policy.window_seconds:g} s")
            return False
        number = f"{len(restart.moments)} of {self._policy.limit} within {self._policy.window_seconds:g} s"
        emit(f"{why}; restart {number}, in {restart.at - now:.1f} s")
        self._moments[child.name] = restart.moments
        self._due[child.name] = restart.at, child
        self.count += 1
        return True

    def take_due(self, now: float) -> Iterator[Child]:
        """Return the children whose pause is over."""
        for name, (at, child) in tuple(self._due.items()):
            if now >= at:
                del self._due[name]
                yield child

    def end(self) -> None:
        """Drop all planned starts: the plan ends."""
        self._due.clear()
        self._policy = NEVER_RESTART

    def _explain(self, exit_: Exit, child: Child) -> str:
        """`serve.py:14 in main (exit code 1, worker 2): ValueError: …`."""
        from trainbox.supervisor import failure_reason as reason  # noqa: PLC0415 - it knows tracebacks by many expressions

        memory = read_memory()
        kills, self._memory_kills = (memory.kills or 0) - self._memory_kills, memory.kills or 0
        found = reason.explain_exit(exit_, child.directory, memory_kills=kills, memory_limit=memory.limit_bytes)
        return f"{found.where}: {found.cause}"
