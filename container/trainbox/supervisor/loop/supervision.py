"""The event loop of a plan: start, relay, forward signals, reap.

A correct PID 1: it passes a stop on, once, to those who can save something (`stops`), kills what is left when the
grace is over, reaps orphans and leaves no process behind. The supervisor has one thread and no lock: the signal handler
passes on at once, also while a slow reader of our output keeps a write waiting.

A job and a server differ in their plans: a job ends with the first child that fails; a server starts a child that has
ended again (`restart_policy`), and waits until its children are ready.
"""

import contextlib
import os
import selectors
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Self

from trainbox.clock import AwakeClock, Clock
from trainbox.errors import ProgramError
from trainbox.log_lines import emit
from trainbox.supervisor.loop.asked import LOOK_SECONDS as ASKED_LOOK_SECONDS
from trainbox.supervisor.loop.asked import Asked, Tree
from trainbox.supervisor.loop.deadlines import NEVER, Deadline, seconds_until, sidecar_stages
from trainbox.supervisor.loop.leftovers import end_leftovers
from trainbox.supervisor.loop.signals import Signals
from trainbox.supervisor.loop.streams import Process, Streams
from trainbox.supervisor.loop.workers import Restarts, Starts
from trainbox.supervisor.outcome import Change, ChildState, Exit
from trainbox.supervisor.plan import Child, Plan
from trainbox.system import subreaper as orphans
from trainbox.system.procfs import LOOK_SECONDS, StoppedProcesses, read_stat
from trainbox.system.relay import Sink


class Supervision:
    """The state of one run, between the signal handler and the loop.

    Args:
        plan: What to run.
        sinks: Where the stdout and the stderr of its children go.
        clock: The time in seconds.
        poller: What waits for output and signals, in seconds of that clock.
        ignore_stops: As of `supervise`.
        on_change: Likewise.
    """

    def __init__(
        self,
        plan: Plan,
        sinks: tuple[Sink, Sink],
        clock: Clock,
        poller: selectors.BaseSelector,
        *,
        ignore_stops: bool,
        on_change: Callable[[Change], None],
    ) -> None:
        self.plan = plan
        self._clock = clock
        self._on_change = on_change
        self.processes: dict[int, Process] = {}
        #: Children that have not ended, nor what they started and a stop waits for.
        self.alive: set[int] = set()
        #: Those the request to stop has not been sent to.
        self.unasked: set[int] = set()
        #: Sidecars that run.
        self.sidecars: set[int] = set()
        #: Children that were here before: whoever started us with `exec` may have had some. They are not ours to end.
        self.others = orphans.children()
        self.exits: list[Exit] = []
        self.stopped_by = 0
        self._is_starting = False
        self.killed = False
        self.leftovers = 0
        self._deadline = Deadline()
        self._stopped = StoppedProcesses(AwakeClock(clock))
        self._look_at = float("-inf")
        self._starts = Starts()
        self.restarts = Restarts(plan.restart)
        self._selector = poller
        self._signals = Signals(poller, self._on_stop, ignore_stops=ignore_stops)
        self._streams = Streams(poller, sinks, several=len(plan.children) > 1)

    def __enter__(self) -> Self:
        self._signals.install()
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, also when a child could not be started or the loop raised."""
        self._kill()
        self._end_sidecars()
        self._reap_everything()
        self._signals.restore()

    def start(self) -> None:
        """Start every child and sidecar.

        Raises:
            ProgramError: A child cannot be started.
        """
        self._deadline = self._deadline.after_start(self._clock(), self.plan.limit_seconds)
        for child in self.plan.children:
            self._start(child, into=self.alive)
        for child in self.plan.sidecars:
            try:
                self._start(child, into=self.sidecars)
            except ProgramError as error:
                emit(f"{child.name} is not there: {error}")

    def _start(self, child: Child, *, into: set[int]) -> None:
        """Start a process; a stop that comes meanwhile must not take it for one that a child has left behind."""
        self._is_starting = True
        try:
            if child.readiness:
                child.readiness.forget()
            process = Process(child, is_sidecar=into is self.sidecars)
            pid = process.started.pid
            self.processes[pid] = process
            if not process.is_sidecar:
                self.unasked.add(pid)
            into.add(pid)
            self._streams.add(process)
            self._starts.add(process, self._clock())
            self._tell(process, "started")
        finally:
            self._is_starting = False
            if self.stopped_by:
                self._ask(self.alive, self.stopped_by)

    def run(self) -> None:
        """Relay and reap until every child has left, then end what they left behind."""
        while self.alive or (self.restarts.next_at < NEVER and not self._is_ending):
            due = self._restart()  # first: who is started now is looked at, too
            looks = (due, self._end_stopped(), self._look_at_asked(), self._look_at_starts())
            self._turn(min(self._deadline.kill_at, *looks))
            if self._deadline.is_over(self._clock()):
                self._kill()
        self._end_sidecars(last_words=any(exit_.code for exit_ in self.exits))
        heard = {pid for process in self.processes.values() if process.asked for pid in process.asked.heard}
        self.leftovers = end_leftovers(self.others, heard, clock=self._clock, turn=self._turn)
        self._streams.drain()

    # -- signals ---------------------------------------------------------------------------------------------------

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Forward the first stop; a second Ctrl-C kills the children at once."""
        if not self.stopped_by:
            self.stopped_by = number
            self._deadline = self._deadline.after_stop(self._clock(), self.plan.grace_seconds)
            if not self._is_starting:
                self._ask(self.alive, number)
        elif number == signal.SIGINT:
            self._kill()

    def _ask(self, pids: Iterable[int], number: int) -> None:
        """Ask children to leave, once: the handler may run between any two lines of `start`, which asks too."""
        asked = [pid for pid in tuple(pids) if self._is_first_to_ask(pid)]
        tree = Tree(self.processes, self.others, min(asked)) if asked and number == signal.SIGTERM else None
        for pid in asked:
            if tree and not tree.is_blind:
                self.processes[pid].asked = hears = Asked(pid, tree.of(pid))
                hears.ask()
            else:
                self._send(pid, number)
                self._send(pid, signal.SIGCONT)  # one that is stopped hears nothing, and could not save

    def _is_first_to_ask(self, pid: int) -> bool:
        try:
            self.unasked.remove(pid)  # one step, which no signal can come into
        except KeyError:
            return False
        return True

    def _kill(self) -> None:
        self.killed = self.killed or bool(self.alive)
        self._deadline = Deadline()
        self.restarts.end()
        for pid in tuple(self.alive):
            process = self.processes[pid]
            if process.status is None:
                self._send(pid, signal.SIGKILL)
            if process.asked:
                process.asked.kill()

    def _look_at_asked(self) -> float:
        """Note which processes have ended after a stop; return when to look again, by the clock."""
        now = self._clock()
        waiting = False
        for pid in tuple(self.alive):
            asked = self.processes[pid].asked
            if asked:
                asked.look(now)
                waiting = waiting or asked.is_waiting
                self._settle(pid)
        if not self.alive and self._is_ending:
            return now
        return now + ASKED_LOOK_SECONDS if waiting else float("inf")

    def _end_stopped(self) -> float:
        """Kill children that were stopped (SIGSTOP) for too long; return when to look again, by the monotonic clock."""
        now = self._clock()
        if now < self._look_at:  # a script that writes much has many turns between two looks
            return self._look_at
        running = {pid: process for pid in self.alive if (process := self.processes[pid]).status is None}
        limits = {pid: process.child.hang_seconds for pid, process in running.items()}
        for pid, seconds in self._stopped.find(limits).items():
            self.processes[pid].why_killed = f"was stopped (SIGSTOP) for {seconds:.1f} s and was ended"
            self._send(pid, signal.SIGKILL)
        self._look_at = now + LOOK_SECONDS if any(limits.values()) else float("inf")
        return self._look_at

    def _send(self, pid: int, number: int) -> None:
        # PermissionError: nobody in the group is ours to signal any more (sudo).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    # -- the loop --------------------------------------------------------------------------------------------------

    def _turn(self, until: float) -> None:
        """Wait for one batch of output and of ended processes, at most until a moment of the clock."""
        for key, _ in self._selector.select(seconds_until(until, self._clock())):
            if key.data is None:
                self._signals.clear()
            else:
                self._streams.relay(key)
        for pid, status in orphans.ended():
            self._note_end(pid, status)

    def _note_end(self, pid: int, status: int) -> None:
        for other in tuple(self.processes.values()):
            if other.asked:
                other.asked.note_end(pid, status)
        process = self.processes.get(pid)
        if process is None:
            return  # an orphan
        process.status = status
        self._streams.relay_rest(process)
        if process.is_sidecar:
            self.sidecars.discard(pid)
            exit_ = process.exit(status)
            if exit_.code and self.alive:
                emit(f"{exit_.name} has ended with exit code {exit_.code}: the job goes on without it")
            return
        self._settle(pid)

    def _settle(self, pid: int) -> None:
        """Note ended children: after a stop also the descendants that were signalled must have ended."""
        process = self.processes[pid]
        status, asked = process.status, process.asked
        if status is None or pid not in self.alive or (asked and asked.is_waiting):
            return
        self._streams.relay_rest(process)
        self.alive.discard(pid)
        if asked and asked.status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM:
            status = asked.status  # it died of our signal: what counts is how the program did that it had started
        self._starts.forget(process)
        self._tell(process, "ended")
        exit_ = process.exit(status)
        is_first = not any(earlier.has_failed for earlier in self.exits)  # the others end because we asked them to
        if is_first and not self.stopped_by:
            ended = self.restarts.plan(exit_, process.child, self._clock())
            if ended is None:
                self._make_room(process)
                return
            exit_ = ended
        self.exits.append(exit_)
        if exit_.has_failed and is_first and self.alive and not self.stopped_by:
            how = exit_.gave_up or f"failed with exit code {exit_.code}"
            emit(f"{exit_.name} {how}: stopping the other processes of this host")
            self._deadline = self._deadline.after_failure(self._clock())
            self._ask(self.alive, signal.SIGTERM)

    # -- children of a server --------------------------------------------------------------------------------------

    @property
    def _is_ending(self) -> bool:
        """Whether the plan was stopped or has failed: nothing is started again."""
        return bool(self.stopped_by) or any(exit_.has_failed for exit_ in self.exits)

    def _look_at_starts(self) -> float:
        """Note which children are ready, and kill those that are late; return when to look again, by the clock."""
        if self._is_ending:
            return NEVER
        look = self._starts.look(self._clock())
        for process in look.ready:
            emit(f"{process.child.name} is ready")
            self._tell(process, "ready")
        for process, seconds in look.late:
            process.unready = f"was not ready within {seconds:g} s"
            self._send(process.started.pid, signal.SIGKILL)
        return look.again

    def _restart(self) -> float:
        """Start the children whose pause is over; return when the next is due, by the clock."""
        if self._is_ending:
            self.restarts.end()
        for child in self.restarts.take_due(self._clock()):
            try:
                self._start(child, into=self.alive)
                self._look_at = float("-inf")  # at who is stopped: there may have been nobody to look at
            except ProgramError as error:
                if not self.restarts.delay(child, f"{child.name} cannot be started: {error}", self._clock()):
                    raise
        return self.restarts.next_at

    def _make_room(self, process: Process) -> None:
        """Forget a child that is started again, and kill the processes it has left behind in its session."""
        pid = process.started.pid
        del self.processes[pid]
        self.unasked.discard(pid)
        left = orphans.children() - self.others - self.processes.keys()
        orphans.kill_all({one for one in left if read_stat(one).session == pid})
        self._streams.remove(process)

    def _tell(self, process: Process, state: ChildState) -> None:
        if not process.is_sidecar:
            self._on_change(Change(process.child.name, process.started.pid, state))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end_sidecars(self, *, last_words: bool = False) -> None:
        """End the sidecars; one that waits in a driver, which SIGKILL does not end, is left to the kernel.

        Args:
            last_words: Whether they may say something before: why the children have failed.
        """
        for stage in sidecar_stages(last_words=last_words):
            until = self._clock() + stage.seconds
            for pid in tuple(self.sidecars):
                self._send(pid, stage.signal)
            while self.sidecars and self._clock() < until:
                self._turn(until)
        self.others |= self.sidecars

    def _reap_everything(self) -> None:
        for pid in tuple(self.alive):
            with contextlib.suppress(ChildProcessError):  # it has been reaped before
                os.waitpid(pid, 0)
        for process in self.processes.values():
            for pipe in process.started.streams:
                os.close(pipe)
