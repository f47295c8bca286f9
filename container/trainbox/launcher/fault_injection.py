"""Fault injection: kill or freeze ranks of this host at the steps that the request names (`trainbox_drill`)."""

from collections.abc import Callable, Iterable, Mapping

from trainbox.contract.fault_injection import SIGNALS, Drill
from trainbox.launcher.ranks.processes import RankProcesses


class FaultInjector:
    """The faults of a request; each is injected once.

    Args:
        drills: The faults.
        processes: The ranks of this host.
        step: Returns how many steps a local rank has finished; None where it has not reported any.
        note: Logs a line.
    """

    def __init__(
        self,
        drills: Iterable[Drill],
        processes: RankProcesses,
        step: Callable[[int], int | None],
        note: Callable[[str], None],
    ) -> None:
        self._pending = list(drills)
        self._processes = processes
        self._step = step
        self._note = note
        #: Global rank by local rank.
        self._ranks: Mapping[int, int] = {}
        #: The local ranks that have met a fault in this attempt.
        self._struck: set[int] = set()

    def begin(self, ranks: Mapping[int, int]) -> None:
        """Begin an attempt.

        Args:
            ranks: The global rank of each local rank.
        """
        self._ranks = ranks
        self._struck = set()

    def due(self, rank: int) -> int | None:
        """Return the step after which a rank of this host is to meet its next fault; None if there is none."""
        return min((drill.step for drill in self._pending if drill.rank == rank), default=None)

    def inject(self) -> None:
        """Inject the faults whose steps have been reached, at most one per rank and attempt."""
        if not self._pending:
            return
        for local_rank in self._processes.alive:
            step = self._step(local_rank)
            mine = [drill for drill in self._pending if drill.rank == self._ranks[local_rank]]
            reached = [drill for drill in mine if step is not None and step >= drill.step]
            # What is dead or stopped meets the next one in the next attempt.
            if reached and local_rank not in self._struck:
                drill = min(reached, key=lambda one: one.step)
                self._pending.remove(drill)
                self._struck.add(local_rank)
                self._note(f"rehearsing: {drill}")
                self._processes.send(local_rank, SIGNALS[drill.fault])

    def missed(self) -> tuple[str, ...]:
        """Return the faults of ranks of this host that were not injected, each with how far its rank came."""
        return tuple(
            f"'{drill}': rank {rank} {_how_far(self._step(local_rank))}"
            for local_rank, rank in self._ranks.items()
            for drill in self._pending
            if drill.rank == rank
        )


def _how_far(step: int | None) -> str:
    if step is None:
        return "reported no step (a session of trainbox.torch does)"
    return f"finished {step} step{'' if step == 1 else 's'} in all"
