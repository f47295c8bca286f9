"""The agent's eyes on how far the ranks are: hangs, slow ranks and rehearsed faults."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trainbox.contract.drills import SIGNALS, Drill
from trainbox.contract.job import Job
from trainbox.elastic import hang, progress
from trainbox.elastic.council import Alarm, Council
from trainbox.elastic.rank import STACKS_SIGNAL
from trainbox.elastic.ranks import Ranks
from trainbox.elastic.variables import hang_directory, stacks_file

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
    ) -> None:
        settings = job.settings
        self.limits = hang.Limits(step=settings.hang_seconds, long=settings.start_seconds)
        self.council = council
        self.processes = ranks
        self.note = note
        self.directory = hang_directory(job)
        #: Global rank by local rank.
        self.ranks: Mapping[int, int] = {}
        self._file = Path()
        self._drills = set(settings.drills)
        self._exchange_at = 0.0
        self._window_seconds = window_seconds
        self._window_at = 0.0
        self._slow: dict[tuple[int, str], int] = {}
        #: Since when the process of a local rank has been stopped, at every look at it.
        self._stopped_since: dict[int, float] = {}

    def begin(self, ranks: Mapping[int, int], file: Path) -> None:
        """A new attempt, with new slots."""
        self.ranks = ranks
        self._file = file
        self._slow = {}
        self._stopped_since = {}
        self._exchange_at = 0.0
        self._window_at = time.monotonic() + self._window_seconds

    def step(self, local_rank: int) -> int | None:
        """Steps that a rank says it has finished; None where it says nothing, and before it knows where it resumes."""
        slot = progress.read(self._file)[local_rank]
        return slot.step if slot.beat and slot.section is not progress.Section.JOIN else None

    def has_nothing_to_save(self, local_rank: int) -> bool:
        """Whether a rank says that in this attempt it has yet to finish a step."""
        slot = progress.read(self._file)[local_rank]
        return bool(slot.beat) and slot.section in {progress.Section.JOIN, progress.Section.START}

    def standings(self) -> list[hang.Standing]:
        """Where the ranks of this host are that run and say so."""
        now = time.monotonic()
        states = {local_rank: _state(self.processes.all[local_rank].pid) for local_rank in self.processes.alive}
        stopped = [local_rank for local_rank, state in states.items() if hang.is_stopped(state)]
        self._stopped_since = {local_rank: self._stopped_since.get(local_rank, now) for local_rank in stopped}
        return [
            hang.standing(
                slot,
                rank=self.ranks[local_rank],
                host=self.council.host,
                state=states[local_rank],
                stopped=now - self._stopped_since.get(local_rank, now),
                now=now,
            )
            for local_rank, slot in enumerate(progress.read(self._file))
            if slot.beat and local_rank in states
        ]

    # -- rehearsed faults ------------------------------------------------------------------------------------------

    def rehearse(self) -> None:
        """Do to a rank of this host what the request asks for at the step it has reached, once."""
        for drill in tuple(self._drills):
            local_rank = next((local for local, rank in self.ranks.items() if rank == drill.rank), None)
            if local_rank is not None and (self.step(local_rank) or -1) >= drill.step:
                self._drills.discard(drill)
                self._do(drill, local_rank)

    def _do(self, drill: Drill, local_rank: int) -> None:
        self.note(f"rehearsing: {drill}")
        self.processes.send(local_rank, SIGNALS[drill.fault])

    # -- hangs -----------------------------------------------------------------------------------------------------

    def find_hanging(self) -> Alarm | None:
        """The rank that keeps the job waiting, seen by the first host; the others only tell where their ranks are."""
        now = time.monotonic()
        if len(self.council.hosts) > 1:
            if now < self._exchange_at:
                return None
            self._exchange_at = now + _EXCHANGE_SECONDS
            self.council.publish(self.standings())
            if not self.council.is_first:
                return None
            found = self.council.standings()
        else:
            found = self.standings()
        self._warn_of_slow(found, now)
        hanging = hang.find_hanging(found, self.limits)
        if hanging is None:
            return None
        return Alarm(hanging.host, hanging=hanging.rank, why=hang.describe(hanging))

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
                text = text or f"no stacks: the process is in state {_state(pid)} ({_waits_in(pid)})\n"
                (self.directory / f"rank-{rank}.txt").write_text(text)

    # -- slow ranks ------------------------------------------------------------------------------------------------

    def _warn_of_slow(self, standings: list[hang.Standing], now: float) -> None:
        if now < self._window_at:
            return
        self._window_at = now + self._window_seconds
        self._slow = hang.slow_ranks(standings, self._slow)
        for (rank, section), windows in self._slow.items():
            if windows == hang.SLOW_WINDOWS:
                self.note(f"WARNING: {hang.describe_slow(standings, rank, section)}")


def _state(pid: int) -> str:
    """The letter for what a process does; `X` where it has ended: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "X"


def _waits_in(pid: int) -> str:
    """The kernel function that a process waits in, where the kernel tells it."""
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip("0") or "not known where it waits"
    except OSError:
        return "not known where it waits"
