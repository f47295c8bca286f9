"""Hang detection: read the progress of the ranks, end the one that hangs, keep all stacks, name slow ranks."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainbox.clock import AwakeClock, Silence
from trainbox.contract.cluster import progress
from trainbox.contract.job import Job
from trainbox.launcher import hang_rules
from trainbox.launcher.coordination import Alarm, CoordinationStore
from trainbox.launcher.ranks.processes import RankProcesses
from trainbox.launcher.ranks.program import STACKS_SIGNAL
from trainbox.launcher.ranks.variables import hang_directory, stacks_file
from trainbox.system.procfs import StoppedProcesses, process_state

_EXCHANGE_SECONDS = 0.5
#: From one look at slow ranks to the next.
WINDOW_SECONDS = 30.0
#: How long all ranks may take to write their stacks.
_STACKS_SECONDS = 0.2


class HangDetector:
    """Watches the progress of the ranks of this host, and on the first host that of all.

    Args:
        job: The contract.
        coordination: All hosts.
        processes: The ranks of this host.
        note: Logs a line.
        window_seconds: From one look at slow ranks to the next.
        clock: The time in seconds.
        state: Returns the state of a process, the letter of /proc/PID/stat.
    """

    def __init__(
        self,
        job: Job,
        coordination: CoordinationStore,
        processes: RankProcesses,
        note: Callable[[str], None],
        *,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        state: Callable[[int], str] = process_state,
    ) -> None:
        settings = job.settings
        self.limits = hang_rules.HangLimits(step=settings.hang_seconds, long=settings.start_seconds)
        self._clock = AwakeClock(clock)
        self._state = state
        self.coordination = coordination
        self.processes = processes
        self.note = note
        self.directory = hang_directory(job)
        #: Global rank by local rank.
        self.ranks: Mapping[int, int] = {}
        self._file = Path()
        self._exchange_at = 0.0
        self._window_seconds = window_seconds
        self._window_at = 0.0
        self._slow: dict[tuple[int, str], int] = {}
        #: For how long the processes of ranks have been stopped, and ranks have made no mark.
        self._stopped = StoppedProcesses(self._clock)
        self._marks = Silence[int](self._clock)

    def begin(self, ranks: Mapping[int, int], file: Path) -> None:
        """Begin an attempt.

        Args:
            ranks: The global rank of each local rank.
            file: Where the ranks report their progress.
        """
        self.ranks = ranks
        self._file = file
        self._slow = {}
        self._stopped = StoppedProcesses(self._clock)
        self._marks = Silence[int](self._clock)
        self._exchange_at = 0.0
        self._window_at = self._clock() + self._window_seconds

    def step(self, local_rank: int) -> int | None:
        """Return the steps a rank has finished; None where it has reported none, or has yet to resume."""
        slot = progress.read(self._file)[local_rank]
        return slot.step if slot.beat and slot.phase is not progress.StepPhase.JOIN else None

    def has_nothing_to_save(self, local_rank: int) -> bool:
        """Whether a rank reports that it has yet to finish a step of this attempt."""
        slot = progress.read(self._file)[local_rank]
        return bool(slot.beat) and slot.phase in {progress.StepPhase.JOIN, progress.StepPhase.START}

    def statuses(self) -> list[hang_rules.RankStatus]:
        """Return where the running ranks of this host are that report it, or whose process is stopped."""
        slots = progress.read(self._file)
        states = {local: self._state(self.processes.all[local].pid) for local in self.processes.alive}
        ages = self._marks.seconds({local: slots[local].beat for local in states})
        stopped = self._stopped.seconds(states)
        return [
            hang_rules.rank_status(
                slots[local],
                rank=self.ranks[local],
                host=self.coordination.host,
                state=state,
                stopped=stopped[local],
                age=ages[local] if slots[local].beat else stopped[local],  # of silence alone nothing follows
            )
            for local, state in states.items()
            if slots[local].beat or stopped[local]
        ]

    # -- hangs -----------------------------------------------------------------------------------------------------

    def find_hanging(self) -> Alarm | None:
        """Find the rank that keeps the job waiting: on the first host, to which the others report."""
        now = self._clock()
        if len(self.coordination.hosts) > 1:
            if now < self._exchange_at:
                return None
            self._exchange_at = now + _EXCHANGE_SECONDS
            self.coordination.publish_statuses(self.statuses())
            if not self.coordination.is_first or not self.coordination.has_recent_heartbeats():
                return None
            found = self.coordination.statuses()
        else:
            found = self.statuses()
        self._warn_of_slow(found, now)
        hanging = hang_rules.find_hanging(found, self.limits)
        if hanging is None:
            return None
        return Alarm(hanging.host, hanging=hanging.rank, why=hang_rules.describe(hanging))

    def end_hanging(self, alarm: Alarm) -> None:
        """Keep the stacks of all ranks of this host, then kill the hanging one if it is on this host."""
        self._dump()
        for local_rank, rank in self.ranks.items():
            if rank == alarm.hanging:
                self.processes.kill(local_rank, alarm.why)
                self.processes.turn(1.0)

    def _dump(self) -> None:
        for local_rank in self.processes.alive:
            self.processes.send(local_rank, STACKS_SIGNAL)
        self.processes.turn(_STACKS_SECONDS)
        with contextlib.suppress(OSError):  # a full disk must not keep the job from starting again
            self.directory.mkdir(parents=True, exist_ok=True)
            for local_rank, rank in self.ranks.items():
                pid = self.processes.all[local_rank].pid
                stacks = stacks_file(self._file.parent, local_rank)
                text = stacks.read_text(errors="replace") if stacks.exists() else ""
                text = text or f"no stacks: the process is in state {process_state(pid)} ({_waits_in(pid)})\n"
                (self.directory / f"rank-{rank}.txt").write_text(text)

    # -- slow ranks ------------------------------------------------------------------------------------------------

    def _warn_of_slow(self, statuses: list[hang_rules.RankStatus], now: float) -> None:
        if now < self._window_at:
            return
        self._window_at = now + self._window_seconds
        self._slow = hang_rules.slow_ranks(statuses, self._slow)
        for (rank, phase), windows in self._slow.items():
            if windows == hang_rules.SLOW_WINDOWS:
                self.note(f"WARNING: {hang_rules.describe_slow(statuses, rank, phase)}")


def _waits_in(pid: int) -> str:
    """Return the kernel function that a process waits in, where the kernel tells it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip("0") or "not known where it waits"
    except OSError:
        return "not known where it waits"
