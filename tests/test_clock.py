"""Waits for others, and their silence, count only the time in which this process ran: arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.clock import (
    AFTERWARDS_SECONDS,
    FROZEN_SECONDS,
    GAP_SECONDS,
    MOST_STOPS,
    AwakeClock,
    Silence,
    describe_missed,
    missed,
    wait_from,
)

NOW = 1000.0


@pytest.mark.parametrize(
    ("late", "expected"), [(-5.0, 0.0), (0.0, 0.0), (0.875, 0.0), (FROZEN_SECONDS, 1.0), (7.5, 7.5), (1e9, 1e9)]
)
def test_less_than_a_second_is_a_busy_machine_and_more_is_a_process_that_was_stopped(
    late: float, expected: float
) -> None:
    assert missed(NOW, NOW + late) == expected


def test_a_wait_is_over_at_its_end_and_not_before() -> None:
    waiting = wait_from(NOW, 30)
    for moment in range(30):
        waiting = waiting.look(NOW + moment, pause=1)
        assert not waiting.is_over
        assert (waiting.pause, waiting.waited) == (1, moment)
    assert waiting.look(NOW + 29.75, pause=1).pause == 0.25
    assert waiting.look(NOW + 30, pause=1).is_over


def test_a_wait_of_no_time_is_over_at_the_first_look() -> None:
    waiting = wait_from(NOW, 0).look(NOW)
    assert (waiting.is_over, waiting.was_absent) == (True, False)


@pytest.mark.parametrize("gap", [1.0, 31.0, 3600.0])
def test_a_stop_of_this_process_moves_the_end_by_as_long(gap: float) -> None:
    waiting = wait_from(NOW, 30).look(NOW, pause=1)
    waiting = waiting.look(NOW + 1 + gap)
    assert (waiting.missed, waiting.waited, waiting.is_over) == (gap, 1, False)
    assert not waiting.look(NOW + 29.9 + gap).is_over
    assert waiting.look(NOW + 30 + gap).is_over


def test_after_a_stop_at_the_very_end_the_others_have_a_moment_to_be_heard() -> None:
    waiting = wait_from(NOW + 29.5, 0.5).look(NOW + 29.5, pause=1)
    waiting = waiting.look(NOW + 100)
    assert (waiting.is_over, waiting.pause) == (False, AFTERWARDS_SECONDS)
    assert waiting.look(NOW + 100 + AFTERWARDS_SECONDS).is_over


@pytest.mark.parametrize(("gap", "absent"), [(29.0, False), (30.0, True), (86400.0, True)])
def test_who_was_away_for_as_long_as_the_others_wait_was_absent(gap: float, absent: bool) -> None:
    assert wait_from(NOW, 30).look(NOW, pause=1).look(NOW + 1 + gap).was_absent == absent


def test_a_wait_whose_every_look_comes_late_ends_all_the_same() -> None:
    """As where each look asks for a name, which takes ten seconds."""
    waiting, now = wait_from(NOW, 30).look(NOW, pause=1), NOW
    while not waiting.is_over:
        now += 12
        waiting = waiting.look(now, pause=1)
    assert (waiting.stops, now) == (MOST_STOPS, NOW + 96)


@given(st.floats(0.5, 100), st.lists(st.floats(0, 50), max_size=40))
def test_whatever_the_stops_others_never_have_less_time_and_a_wait_ends(seconds: float, pauses: list[float]) -> None:
    waiting = wait_from(NOW, seconds).look(NOW, pause=1)
    now, ran = NOW, 0.0
    for pause in [*pauses, *[1.0] * 200]:
        ran += 1.0 if pause - 1 >= FROZEN_SECONDS and waiting.stops < MOST_STOPS else pause
        now += pause
        waiting = waiting.look(now, pause=1)
        if waiting.is_over:
            assert ran >= seconds - 1e-6
            return
        assert 0 <= waiting.pause <= 1 + 1e-6
    pytest.fail("it has no end")


def test_what_was_missed_is_said_in_one_line() -> None:
    assert describe_missed(12.34) == (
        "this process did not run for 12.3 s: it was stopped, or its machine was too busy"
    )


class Moved:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_clock_leaves_out_what_its_process_has_slept_through_and_says_how_much() -> None:
    real = Moved()
    clock = AwakeClock(real)
    began = clock()
    for _ in range(3):
        real.now += GAP_SECONDS - 1.0  # a busy machine
        clock()
    assert clock() - began == 3 * (GAP_SECONDS - 1.0)
    assert clock.pause == 0.0
    real.now += 60.0
    assert clock() - began == 3 * (GAP_SECONDS - 1.0)
    assert (clock.pause, clock.paused_until) == (60.0, real.now)


def test_the_seconds_of_a_value_begin_when_it_changes() -> None:
    clock = Moved()
    silence = Silence[str](clock)
    assert silence.seconds({"a": 1, "b": 1}) == {"a": 0.0, "b": 0.0}
    clock.now += 3.0
    assert silence.seconds({"a": 1, "b": 2, "c": 1}) == {"a": 3.0, "b": 0.0, "c": 0.0}
    clock.now += 3.0
    assert silence.seconds({"a": 1, "c": 1}) == {"a": 6.0, "c": 3.0}
    assert silence.seconds({"b": 2}) == {"b": 0.0}, "it was not looked at meanwhile"


def test_who_was_stopped_itself_has_not_seen_others_be_silent() -> None:
    real = Moved()
    silence = Silence[str](AwakeClock(real))
    silence.seconds({"a": 1})
    real.now += 1.0
    silence.seconds({"a": 1})
    real.now += 600.0
    assert silence.seconds({"a": 1}) == {"a": 1.0}
