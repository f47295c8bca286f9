"""Pure: which rank keeps the others waiting, whether it has done so for too long, and which are slow."""

from collections.abc import Mapping, Sequence

import msgspec

from trainbox.elastic.progress import Section, Slot
from trainbox.procfs import is_stopped

#: How many of the longest steps a step may take before it counts as hanging.
STEPS_PER_LIMIT = 5
#: Sections whose length has nothing to do with that of a step.
_LONG = frozenset({Section.START, Section.CHECKPOINT, Section.EVALUATION})
#: A rank that takes more than 1/0.8 of the time of the fastest is slow.
SLOW_SCORE = 0.8
SLOW_WINDOWS = 3
#: Below so many seconds, and below this part of a step, a difference is noise, or not worth a line.
_LEAST_SECONDS = 0.001
_LEAST_SHARE = 0.05


class Limits(msgspec.Struct, frozen=True):
    """Seconds without a mark."""

    #: In a step; 0 never looks.
    step: float
    #: While starting, saving, evaluating; not for a process that is stopped, which does none of that.
    long: float


class Standing(msgspec.Struct, frozen=True):
    """Where a rank is."""

    rank: int
    host: str
    step: int
    section: Section
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


def standing(slot: Slot, *, rank: int, host: str, state: str, stopped: float, age: float) -> Standing:
    """What a slot says, so many seconds after its last mark."""
    return Standing(
        rank=rank,
        host=host,
        step=slot.step,
        section=slot.section,
        collectives=slot.collectives,
        age=age,
        longest=slot.longest,
        state=state,
        stopped=stopped,
        compute=slot.compute,
        data=slot.data,
    )


def find_hanging(standings: Sequence[Standing], limits: Limits) -> Standing | None:
    """The rank that keeps all others waiting longer than it may, if there is one.

    Of ranks that have never made a mark only those are among the standings whose process is stopped: of the others
    nothing is known. For one of them those wait that have yet to join; torch's own limit ends that.

    Args:
        standings: All ranks of the job.
        limits: How long each section may take.
    """
    if not limits.step or not standings:
        return None
    limit = max(limits.step, STEPS_PER_LIMIT * max(one.longest for one in standings))
    running = [one for one in standings if one.section not in {Section.JOIN, Section.DONE} or one.stopped > limit]
    if not running:
        return None
    behind = min(running, key=_place)
    # Seen for the limit, not at one look: a profiler or a debugger stops a process for moments.
    if behind.age <= _limit(behind, limit, limits.long) and behind.stopped <= limit:
        return None
    # One that saves or evaluates for all makes the others wait by right; a stopped process does not wait for anybody.
    excused = any(one.section in _LONG and one.age <= limits.long for one in running if one is not behind)
    return None if excused and not is_stopped(behind.state) else behind


def _limit(one: Standing, step: float, long: float) -> float:
    return max(step, long) if one.section in _LONG else step


def _place(one: Standing) -> tuple[int, bool, Section, int, float]:
    """The smallest is furthest behind."""
    return one.step, not (is_stopped(one.state) or one.state == "D"), one.section, one.collectives, -one.age


def describe(one: Standing) -> str:
    """What is said of a rank that hangs, after its name."""
    stopped = " (its process is stopped)" if is_stopped(one.state) else ""
    return f"made no progress for {one.age:.1f} s in {one.section.name} after step {one.step}{stopped}"


def slow_ranks(standings: Sequence[Standing], before: Mapping[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    """For how many windows in a row each rank has been slow in a section.

    Args:
        standings: All ranks, at the end of a window.
        before: The answer of the window before.
    """
    slow: dict[tuple[int, str], int] = {}
    step = max((one.compute + one.data for one in standings), default=0.0)  # the others wait for this one
    for section in ("compute", "data"):
        seconds = {one.rank: float(getattr(one, section)) for one in standings if one.step}
        if len(seconds) < 2:  # noqa: PLR2004 - nobody to compare with
            continue
        best = max(min(seconds.values()), _LEAST_SECONDS)
        for rank, mine in seconds.items():
            if best < SLOW_SCORE * mine and mine - best > _LEAST_SHARE * step:
                slow[rank, section] = before.get((rank, section), 0) + 1
    return slow


def describe_slow(standings: Sequence[Standing], rank: int, section: str) -> str:
    """The warning about one slow rank."""
    mine = next(one for one in standings if one.rank == rank)
    best = min(float(getattr(one, section)) for one in standings if one.step)
    doing = "computes" if section == "compute" else "waits for data"
    return (
        f"rank {rank} on {mine.host} is slow: it {doing} {getattr(mine, section):.3f} s in a step,"
        f" the fastest {best:.3f} s"
    )
