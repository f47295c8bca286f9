"""Which rank keeps the others waiting, whether for too long, and which are slow."""

import msgspec
import pytest

from trainbox.contract.cluster.progress import StepPhase
from trainbox.launcher.hang_rules import (
    SLOW_WINDOWS,
    HangLimits,
    RankStatus,
    describe,
    describe_slow,
    find_hanging,
    slow_ranks,
)

LIMITS = HangLimits(step=30.0, long=1200.0)


def at(rank: int, step: int, phase: StepPhase = StepPhase.COMPUTE, *, age: float = 40.0, **more: object) -> RankStatus:
    one = RankStatus(rank=rank, host="a", step=step, phase=phase, collectives=0, age=age, longest=1.0)
    return msgspec.structs.replace(one, **more)


def hanging_rank(*statuses: RankStatus, limits: HangLimits = LIMITS) -> int | None:
    found = find_hanging(statuses, limits)
    return None if found is None else found.rank


def test_nobody_hangs_who_has_made_a_step_in_time() -> None:
    assert hanging_rank() is None
    assert hanging_rank(at(0, 5, age=29.0), at(1, 5, age=29.9)) is None
    assert hanging_rank(at(0, 5, age=31.0)) == 0


def test_a_rank_that_has_ended_does_not_hang() -> None:
    assert hanging_rank(at(0, 5, StepPhase.DONE, age=1e6), at(1, 5, age=1.0)) is None
    assert hanging_rank(at(0, 5, StepPhase.DONE, age=1e6)) is None


@pytest.mark.parametrize(
    "statuses",
    [
        (at(1, 4), at(0, 5, age=50.0)),
        (at(1, 5, state="T"), at(0, 5, StepPhase.DATA)),
        (at(1, 5, state="D"), at(0, 5)),
        (at(1, 5, StepPhase.DATA), at(0, 5)),
        (at(1, 5, collectives=2), at(0, 5, collectives=3)),
        (at(1, 5, age=41.0), at(0, 5)),
    ],
    ids=["fewer steps", "stopped", "stuck in a device", "an earlier phase", "fewer collectives", "silent for longer"],
)
def test_the_rank_that_is_furthest_behind_is_named(statuses: tuple[RankStatus, ...]) -> None:
    assert hanging_rank(*statuses) == 1
    assert hanging_rank(*reversed(statuses)) == 1


def test_the_limit_grows_with_the_longest_step() -> None:
    assert hanging_rank(at(0, 5, age=99.0, longest=20.0), at(1, 5, age=99.0)) is None
    assert hanging_rank(at(0, 5, age=101.0, longest=20.0), at(1, 5, age=100.5)) == 0


@pytest.mark.parametrize("phase", [StepPhase.START, StepPhase.CHECKPOINT, StepPhase.EVALUATION])
def test_starting_saving_and_evaluating_have_a_limit_of_their_own(phase: StepPhase) -> None:
    assert hanging_rank(at(0, 5, phase, age=1199.0), at(1, 5, phase, age=1199.0)) is None
    assert hanging_rank(at(0, 5, phase, age=1201.0), at(1, 5, phase, age=1200.5)) == 0


@pytest.mark.parametrize("phase", [StepPhase.START, StepPhase.CHECKPOINT, StepPhase.EVALUATION])
def test_a_stopped_process_neither_starts_nor_saves_nor_evaluates_and_has_the_limit_of_a_step(phase: StepPhase) -> None:
    assert hanging_rank(at(0, 5, phase, state="T", stopped=31.0), at(1, 5)) == 0
    assert hanging_rank(at(0, 5, phase, state="t", stopped=29.0, age=300.0), at(1, 5, age=300.0)) is None
    assert hanging_rank(at(0, 5, phase, state="T", stopped=31.0, longest=20.0), at(1, 5)) is None


def test_who_waits_for_others_to_come_keeps_nobody_waiting() -> None:
    assert hanging_rank(at(0, 0, StepPhase.JOIN, age=1e6), at(1, 0, StepPhase.JOIN, age=1e6)) is None
    assert hanging_rank(at(0, 0, StepPhase.JOIN, age=1e6), at(1, 0, StepPhase.START, age=1201.0)) == 1


def test_who_waits_for_one_that_evaluates_for_all_does_not_hang() -> None:
    assert hanging_rank(at(0, 5, StepPhase.EVALUATION, age=300.0), at(1, 5, age=300.0)) is None
    assert hanging_rank(at(0, 5, StepPhase.EVALUATION, age=300.0), at(1, 5, age=300.0, state="T")) == 1
    assert hanging_rank(at(0, 5, StepPhase.EVALUATION, age=1201.0), at(1, 5, age=1201.0)) == 1


def test_a_limit_of_zero_never_looks() -> None:
    assert hanging_rank(at(0, 5, age=1e6), limits=HangLimits(step=0.0, long=1200.0)) is None


def test_what_is_said_of_a_rank_that_hangs() -> None:
    assert describe(at(1, 120)) == "made no progress for 40.0 s in COMPUTE after step 120"
    assert describe(at(1, 120, state="T")).endswith("(its process is stopped)")


def test_a_slow_rank_is_one_that_is_slow_for_several_windows_and_its_section_is_named() -> None:
    statuses = [at(0, 100, compute=0.2, data=0.001), at(1, 100, compute=0.3, data=0.001), at(2, 100, compute=0.21)]
    windows: dict[tuple[int, str], int] = {}
    for _ in range(SLOW_WINDOWS):
        windows = slow_ranks(statuses, windows)
    assert windows == {(1, "compute"): SLOW_WINDOWS}
    assert describe_slow(statuses, 1, "compute") == (
        "rank 1 on a is slow: it computes 0.300 s in a step, the fastest 0.200 s"
    )
    assert slow_ranks(statuses[:1], windows) == {}
    assert slow_ranks([at(0, 1, data=0.1), at(1, 1, data=0.9)], {}) == {(1, "data"): 1}
    assert slow_ranks([at(0, 1, data=0.001, compute=0.1), at(1, 1, data=0.004, compute=0.1)], {}) == {}
