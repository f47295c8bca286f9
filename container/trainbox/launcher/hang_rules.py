"""Pure: the rules of hang detection: which rank keeps the others waiting for too long, and which ranks are slow."""

from collections.abc import Mapping, Sequence

import msgspec

from trainbox.contract.cluster.progress import ProgressSlot, StepPhase
from trainbox.system.procfs import is_stopped

#: How many of the longest steps a step may take before it counts as hanging.
STEPS_PER_LIMIT = 5
#: Phases whose length is independent of that of a step.
_LONG = frozenset({StepPhase.START, StepPhase.CHECKPOINT, StepPhase.EVALUATION})
#: A rank that takes more than 1/0.8 of the time of the fastest is slow.
SLOW_SCORE = 0.8
SLOW_WINDOWS = 3
#: Below so many seconds, and below this part of a step, a difference is noise, or not worth a line.
_LEAST_SECONDS = 0.001
_LEAST_SHARE = 0.05


class HangLimits(msgspec.Struct, frozen=True):
    """Limits for the seconds in which a rank makes no mark."""

    #: In a step; 0 never looks.
    step: float
    #: While starting, saving, evaluating; not for a process that is stopped, which does none of that.
    long: float


class RankStatus(msgspec.Struct, frozen=True):
    """How far a rank is."""

    rank: int
    host: str
    step: int
    phase: StepPhase
    collectives: int
    #: Seconds since its last mark.
    age: float
    longest: float
    #: The letter of /proc/PID/stat.
    state: str = "S"
    #: Seconds for which its process has been stopped by now; 0.0 where it is not.
    stopped: float = 0.0
    compute: float = 0.0
    data: float = 0.0


def rank_status(slot: ProgressSlot, *, rank: int, host: str, state: str, stopped: float, age: float) -> RankStatus:
    """Return the status of a rank from its slot, `age` seconds after its last mark."""
    return RankStatus(
        rank=rank,
        host=host,
        step=slot.step,
        phase=slot.phase,
        collectives=slot.collectives,
        age=age,
        longest=slot.longest,
        state=state,
        stopped=stopped,
        compute=slot.compute,
        data=slot.data,
    )


def find_hanging(statuses: Sequence[RankStatus], limits: HangLimits) -> RankStatus | None:
    """Find the rank that keeps all others waiting for too long, if there is one.

    Ranks that have never made a mark are among the statuses only if their process is stopped: nothing is known of the
    others. Ranks that have yet to join may wait for one of those; torch's own timeout ends that.

    Args:
        statuses: All ranks of the job.
        limits: How long each phase may take.
    """
    if not limits.step or not statuses:
        return None
    limit = max(limits.step, STEPS_PER_LIMIT * max(one.longest for one in statuses))
    running = [one for one in statuses if one.phase not in {StepPhase.JOIN, StepPhase.DONE} or one.stopped > limit]
    if not running:
        return None
    behind = min(running, key=_place)
    # Stopped for the whole limit, not at one look: a profiler or a debugger stops a process for moments.
    if behind.age <= _limit(behind, limit, limits.long) and behind.stopped <= limit:
        return None
    # The others may wait for a rank that saves or evaluates for all; a stopped process does not wait for another.
    excused = any(one.phase in _LONG and one.age <= limits.long for one in running if one is not behind)
    return None if excused and not is_stopped(behind.state) else behind


def _limit(one: RankStatus, step: float, long: float) -> float:
    return max(step, long) if one.phase in _LONG else step


def _place(one: RankStatus) -> tuple[int, bool, StepPhase, int, float]:
    """The sort key of progress: the smallest is furthest behind."""
    return one.step, not (is_stopped(one.state) or one.state == "D"), one.phase, one.collectives, -one.age


def describe(one: RankStatus) -> str:
    """Describe a rank that hangs: what follows its name."""
    stopped = " (its process is stopped)" if is_stopped(one.state) else ""
    return f"made no progress for {one.age:.1f} s in {one.phase.name} after step {one.step}{stopped}"


def slow_ranks(statuses: Sequence[RankStatus], before: Mapping[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    """Count for how many windows in a row each rank has been slow in a phase.

    Args:
        statuses: All ranks, at the end of a window.
        before: The result of the window before.
    """
    slow: dict[tuple[int, str], int] = {}
    step = max((one.compute + one.data for one in statuses), default=0.0)  # the others wait for this one
    for phase in ("compute", "data"):
        seconds = {one.rank: float(getattr(one, phase)) for one in statuses if one.step}
        if len(seconds) < 2:  # noqa: PLR2004 - nothing to compare with
            continue
        best = max(min(seconds.values()), _LEAST_SECONDS)
        for rank, mine in seconds.items():
            if best < SLOW_SCORE * mine and mine - best > _LEAST_SHARE * step:
                slow[rank, phase] = before.get((rank, phase), 0) + 1
    return slow


def describe_slow(statuses: Sequence[RankStatus], rank: int, phase: str) -> str:
    """Return the warning about a slow rank."""
    mine = next(one for one in statuses if one.rank == rank)
    best = min(float(getattr(one, phase)) for one in statuses if one.step)
    doing = "computes" if phase == "compute" else "waits for data"
    return (
        f"rank {rank} on {mine.host} is slow: it {doing} {getattr(mine, phase):.3f} s in a step,"
        f" the fastest {best:.3f} s"
    )
