"""The agent's eyes on how far the ranks are: hangs, slow ranks and rehearsed faults."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainbox.clock import AwakeClock, Silence
from trainbox.contract.drills import SIGNALS, Drill
from trainbox.contract.job import Job
from trainbox.elastic import hang_rules, progress
from trainbox.elastic.coordination import Alarm, Council
from trainbox.elastic.rank_processes import Ranks
from trainbox.elastic.rank_program import STACKS_SIGNAL
from trainbox.elastic.variables import hang_directory, stacks_file
from trainbox.procfs import StoppedProcesses, process_state

_EXCHANGE_SECONDS = 0.5
#: From one look at slow ranks to the next.
WINDOW_SECONDS = 30.0
#: How long all ranks may take to write their stacks.
_STACKS_SECONDS = 0.2


class Watch:
    """What this host knows of the progress of its ranks, and through the council of all."""

    def __init__(
        self,
        job: Job,
        council: Council,
        ranks: Ranks,
        note: Callable[[str], None],
        *,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        state: Callable[[int], str] = process_state,
    ) -> None:
        settings = job.settings
        self.limits = hang_rules.Limits(step=settings.hang_seconds, long=settings.start_seconds)
        self._clock = AwakeClock(clock)
        self._state = state
        self.council = council
        self.processes = ranks
        self.note = note
        self.directory = hang_directory(job)
        #: Global rank by local rank.
        self.ranks: Mapping[int, int] = {}
        self._file = Path()
        #: Those that have yet to happen; and the ranks to which one has happened in this attempt.
        self._drills = list(settings.drills)
        self._struck: set[int] = set()
        self._exchange_at = 0.0
        self._window_seconds = window_seconds
        self._window_at = 0.0
        self._slow: dict[tuple[int, str], int] = {}
        #: For how long the processes of ranks have been stopped, and ranks have made no mark.
        self._stopped = StoppedProcesses(self._clock)
        self._marks = Silence[int](self._clock)

    def begin(self, ranks: Mapping[int, int], file: Path) -> None:
        """A new attempt, with new slots."""
        self.ranks = ranks
        self._file = file
        self._struck = set()
        self._slow = {}
        self._stopped = StoppedProcesses(self._clock)
        self._marks = Silence[int](self._clock)
        self._exchange_at = 0.0
        self._window_at = self._clock() + self._window_seconds

    def step(self, local_rank: int) -> int | None:
        """Steps that a rank says it has finished; None where it says nothing, and before it knows where it resumes."""
        slot = progress.read(self._file)[local_rank]
        return slot.step if slot.beat and slot.section is not progress.Section.JOIN else None

    def has_nothing_to_save(self, local_rank: int) -> bool:
        """Whether a rank says that in this attempt it has yet to finish a step."""
        slot = progress.read(self._file)[local_rank]
        return bool(slot.beat) and slot.section in {progress.Section.JOIN, progress.Section.START}

    def standings(self) -> list[hang_rules.Standing]:
        """Where the ranks of this host are that run and say so, or whose process is stopped."""
        slots = progress.read(self._file)
        states = {local: self._state(self.processes.all[local].pid) for local in self.processes.alive}
        ages = self._marks.seconds({local: slots[local].beat for local in states})
        stopped = self._stopped.seconds(states)
        return [
            hang_rules.standing(
                slots[local],
                rank=self.ranks[local],
                host=self.council.host,
                state=state,
                stopped=stopped[local],
                age=ages[local] if slots[local].beat else stopped[local],  # of silence alone nothing follows
            )
            for local, state in states.items()
            if slots[local].beat or stopped[local]
        ]

    # -- rehearsed faults ------------------------------------------------------------------------------------------

    def due(self, rank: int) -> int | None:
        """The step after which a rank of this host is to meet its next fault; None where it is to meet none."""
        return min((drill.step for drill in self._drills if drill.rank == rank), default=None)

    def rehearse(self) -> None:
        """Do to a rank of this host what the request asks for at the step it has reached, once."""
        if not self._drills:
            return
        for local_rank in self.processes.alive:
            step = self.step(local_rank)
            mine = [drill for drill in self._drills if drill.rank == self.ranks[local_rank]]
            reached = [drill for drill in mine if step is not None and step >= drill.step]
            # What is dead or stopped meets the next one in the next attempt.
            if reached and local_rank not in self._struck:
                drill = min(reached, key=lambda one: one.step)
                self._drills.remove(drill)
                self._struck.add(local_rank)
                self._do(drill, local_rank)

    def missed(self) -> tuple[str, ...]:
        """The faults that have not happened to ranks of this host, each with how far its rank came."""
        return tuple(
            f"'{drill}': rank {rank} {_came_to(self.step(local_rank))}"
            for local_rank, rank in self.ranks.items()
            for drill in self._drills
            if drill.rank == rank
        )

    def _do(self, drill: Drill, local_rank: int) -> None:
        self.note(f"rehearsing: {drill}")
        self.processes.send(local_rank, SIGNALS[drill.fault])

    # -- hangs -----------------------------------------------------------------------------------------------------

    def find_hanging(self) -> Alarm | None:
        """The rank that keeps the job waiting, seen by the first host; the others only tell where their ranks are."""
        now = self._clock()
        if len(self.council.hosts) > 1:
            if now < self._exchange_at:
                return None
            self._exchange_at = now + _EXCHANGE_SECONDS
            self.council.publish(self.standings())
            if not self.council.is_first or not self.council.hears_all():
                return None
            found = self.council.standings()
        else:
            found = self.standings()
        self._warn_of_slow(found, now)
        hanging = hang_rules.find_hanging(found, self.limits)
        if hanging is None:
            return None
        return Alarm(hanging.host, hanging=hanging.rank, why=hang_rules.describe(hanging))

    def end_hanging(self, alarm: Alarm) -> None:
        """Keep the stacks of all ranks of this host, then kill the one that hangs if it is here."""
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

    def _warn_of_slow(self, standings: list[hang_rules.Standing], now: float) -> None:
        if now < self._window_at:
            return
        self._window_at = now + self._window_seconds
        self._slow = hang_rules.slow_ranks(standings, self._slow)
        for (rank, section), windows in self._slow.items():
            if windows == hang_rules.SLOW_WINDOWS:
                self.note(f"WARNING: {hang_rules.describe_slow(standings, rank, section)}")


def _came_to(step: int | None) -> str:
    if step is None:
        return "reported no step (a session of trainbox.torch does)"
    return f"finished {step} step{'' if step == 1 else 's'} in all"


def _waits_in(pid: int) -> str:
    """The kernel function that a process waits in, where the kernel tells it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip("0") or "not known where it waits"
    except OSError:
        return "not known where it waits"
