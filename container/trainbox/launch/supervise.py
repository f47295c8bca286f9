"""Run a `Plan`: start, relay, forward signals, reap; how it ended is one `Outcome`.

A correct PID 1: it passes a stop on, once, to those who can save something (`stops`), kills what is left when the
grace is over, reaps orphans and leaves no process behind. The supervisor has one thread and no lock: the signal handler
passes on at once, also while a slow reader of our output keeps a write waiting.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from trainbox.clock import AwakeClock, Clock
from trainbox.errors import ProgramError
from trainbox.launch import orphans
from trainbox.launch.asked import LOOK_SECONDS as ASKED_LOOK_SECONDS
from trainbox.launch.asked import Asked, Tree
from trainbox.launch.deadlines import Deadline, companion_stages, plan_sweep, seconds_until
from trainbox.launch.memory import read_memory
from trainbox.launch.outcome import Exit, Outcome
from trainbox.launch.plan import Child, Plan
from trainbox.launch.relay import Sink
from trainbox.launch.streams import Process, Streams
from trainbox.procfs import LOOK_SECONDS, StoppedProcesses
from trainbox.say import say
from trainbox.scratch import make_scratch

if TYPE_CHECKING:
    from trainbox.contract.finding import Finding

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def supervise(
    plan: Plan,
    *,
    stdout: int = 1,
    stderr: int = 2,
    clock: Clock = time.monotonic,
    poller: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector,
    ignore_stops: bool = False,
) -> Outcome:
    """Run every child of a plan to its end, and its companions as long as that.

    Args:
        plan: What to run.
        stdout: The file descriptor that the children's stdout goes to.
        stderr: Likewise.
        clock: The time in seconds.
        poller: What waits for output and signals, in seconds of that clock.
        ignore_stops: Ignore SIGTERM and SIGINT from the end of the plan on, where only its report is left to do; by
            default their former handlers come back. No signal arrives between the two.

    Raises:
        ProgramError: A child could not be started; those that were have been ended.
    """
    started = clock()
    before = read_memory()
    sinks = (Sink(stdout), Sink(stderr))
    orphans.adopt_orphans()
    if plan.scratch is not None:
        _make(plan.scratch)
    with _Supervision(plan, sinks, clock, poller(), ignore_stops=ignore_stops) as running:
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
    )


def _read_findings(plan: Plan) -> "tuple[Finding, ...]":
    if plan.scratch is None or not plan.companions:
        return ()
    from trainbox.contract.lookout import read_findings  # noqa: PLC0415 - it needs sockets, which no other job does

    return read_findings(plan.scratch)


def _make(scratch: Path) -> None:
    try:
        make_scratch(scratch)
    except OSError as error:
        raise ProgramError(
            f"the directory {scratch} cannot be made: {error.strerror}",
            hint="processes of a host meet in /dev/shm or /tmp: mount one of them writable (docker run --tmpfs /tmp)",
        ) from error


class _Supervision:
    """The state of one run, between the signal handler and the loop."""

    def __init__(
        self,
        plan: Plan,
        sinks: tuple[Sink, Sink],
        clock: Clock,
        poller: selectors.BaseSelector,
        *,
        ignore_stops: bool,
    ) -> None:
        self.plan = plan
        self._clock = clock
        self._ignore_stops = ignore_stops
        self.processes: dict[int, Process] = {}
        #: Children that have not ended, nor what they started and a stop waits for.
        self.alive: set[int] = set()
        #: Those the request to stop has not been sent to.
        self.unasked: set[int] = set()
        #: Companions that run.
        self.companions: set[int] = set()
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
        self._selector = poller
        self._streams = Streams(poller, sinks, several=len(plan.children) > 1)

    def __enter__(self) -> Self:
        self._wakeup_read, self._wakeup_write = os.pipe()
        for end in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(end, False)
        self._selector.register(self._wakeup_read, selectors.EVENT_READ)
        self._old_wakeup = signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._on_stop) for number in _SIGNALS}
        # Without a handler SIGCHLD would not reach the wake-up pipe.
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind, also when a child could not be started or the loop raised."""
        self._kill()
        self._end_companions()
        self._reap_everything()
        # A child that ends this very moment would find no handler, which CPython complains of ("ignored due to race
        # condition"): ours does as little as the default.
        if self._old_handlers[signal.SIGCHLD] == signal.SIG_DFL:
            del self._old_handlers[signal.SIGCHLD]
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_IGN if self._ignore_stops and number in _SIGNALS else handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._selector.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def start(self) -> None:
        self._deadline = self._deadline.after_start(self._clock(), self.plan.limit_seconds)
        for child in self.plan.children:
            self._start(child, into=self.alive)
        for child in self.plan.companions:
            try:
                self._start(child, into=self.companions)
            except ProgramError as error:
                say(f"{child.name} is not there: {error}")

    def _start(self, child: Child, *, into: set[int]) -> None:
        """Start a process; a stop that comes meanwhile must not take it for one that a child has left behind."""
        self._is_starting = True
        try:
            process = Process(child, is_companion=into is self.companions)
            pid = process.started.pid
            self.processes[pid] = process
            if not process.is_companion:
                self.unasked.add(pid)
            into.add(pid)
            self._streams.add(process)
        finally:
            self._is_starting = False
            if self.stopped_by:
                self._ask(self.alive, self.stopped_by)

    def run(self) -> None:
        """Relay and reap until every child has left, then end what they left behind."""
        while self.alive:
            self._turn(min(self._deadline.kill_at, self._end_stopped(), self._look_at_asked()))
            if self._deadline.is_over(self._clock()):
                self._kill()
        self._end_companions(last_words=any(exit_.code for exit_ in self.exits))
        self._end_leftovers()
        self._streams.drain()

    # -- signals ---------------------------------------------------------------------------------------------------

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        """Pass on the first; a second Ctrl-C of an impatient person ends it at once."""
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
        for pid in tuple(self.alive):
            process = self.processes[pid]
            if process.status is None:
                self._send(pid, signal.SIGKILL)
            if process.asked:
                process.asked.kill()

    def _look_at_asked(self) -> float:
        """Note who has left after a stop; when to look again, by the clock."""
        now = self._clock()
        waiting = False
        for pid in tuple(self.alive):
            asked = self.processes[pid].asked
            if asked:
                asked.look(now)
                waiting = waiting or asked.is_waiting
                self._settle(pid)
        if not self.alive:
            return now
        return now + ASKED_LOOK_SECONDS if waiting else float("inf")

    def _end_stopped(self) -> float:
        """Kill children that have been stopped for longer than they may; when to look again, by the monotonic clock."""
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
                self._clear_wakeup()
            else:
                self._streams.relay(key)
        for pid, status in orphans.ended():
            self._note_end(pid, status)

    def _clear_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup_read, 4096):
                pass

    def _note_end(self, pid: int, status: int) -> None:
        for other in tuple(self.processes.values()):
            if other.asked:
                other.asked.note_end(pid, status)
        process = self.processes.get(pid)
        if process is None:
            return  # an orphan
        process.status = status
        self._streams.relay_rest(process)
        if process.is_companion:
            self.companions.discard(pid)
            exit_ = process.exit(status)
            if exit_.code and self.alive:
                say(f"{exit_.name} has ended with exit code {exit_.code}: the job goes on without it")
            return
        self._settle(pid)

    def _settle(self, pid: int) -> None:
        """A child has ended once its process has, and after a stop those below it that were told of it."""
        process = self.processes[pid]
        status, asked = process.status, process.asked
        if status is None or pid not in self.alive or (asked and asked.is_waiting):
            return
        self._streams.relay_rest(process)
        self.alive.discard(pid)
        if asked and asked.status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM:
            status = asked.status  # it died of our signal: what counts is how the program did that it had started
        exit_ = process.exit(status)
        self.exits.append(exit_)
        is_first = not any(earlier.code for earlier in self.exits[:-1])  # the others end because we asked them to
        if exit_.code and is_first and self.alive and not self.stopped_by:
            say(f"{exit_.name} failed with exit code {exit_.code}: stopping the other processes of this host")
            self._deadline = self._deadline.after_failure(self._clock())
            self._ask(self.alive, signal.SIGTERM)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _end_companions(self, *, last_words: bool = False) -> None:
        """Nobody needs them any more; one that not even SIGKILL ends, for it waits in a driver, is left to the kernel.

        Args:
            last_words: Whether they may say something before: why the children have failed.
        """
        for stage in companion_stages(last_words=last_words):
            until = self._clock() + stage.seconds
            for pid in tuple(self.companions):
                self._send(pid, stage.signal)
            while self.companions and self._clock() < until:
                self._turn(until)
        self.others |= self.companions

    def _end_leftovers(self) -> None:
        """Ask what the children left behind to leave, then make it."""
        known: set[int] = set()
        heard = {pid for process in self.processes.values() if process.asked for pid in process.asked.heard}
        renewals = 0
        killing_since: float | None = None
        since = self._clock()
        self._turn(since)
        # Also those that have just ended: each may have forked another before, which a look at the living would miss.
        while left := orphans.children(zombies=True) - self.others:
            sweep = plan_sweep(
                left, known, renewals=renewals, since=since, now=self._clock(), killing_since=killing_since
            )
            if sweep is None:
                say(f"{len(left)} process(es) that the script had left behind cannot be ended: {sorted(left)}")
                break
            killing_since = sweep.killing_since
            renewals += not left <= known
            known |= orphans.living(left)
            for pid in sweep.ask - heard:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)
            orphans.kill_all(sweep.kill)
            self._turn(self._clock() + sweep.wait)
        self.leftovers = len(known)

    def _reap_everything(self) -> None:
        for pid in tuple(self.alive):
            with contextlib.suppress(ChildProcessError):  # it has been reaped before
                os.waitpid(pid, 0)
        for process in self.processes.values():
            for pipe in process.started.streams:
                os.close(pipe)
