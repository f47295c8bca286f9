"""How long the first host waits in a round: arithmetic."""

import pytest

from trainbox.clock import AFTERWARDS_SECONDS, Patience, wait_from
from trainbox.peers.hub import seconds_left
from trainbox.peers.rounds import LOOK_SECONDS

NOW = 1000.0
HERE = NOW - 50


CONNECT_UNTIL = NOW + 5


def begun() -> Patience:
    return look(wait_from(NOW, 20), NOW)


def look(waiting: Patience, now: float) -> Patience:
    return waiting.look(now, pause=LOOK_SECONDS)


def left(waiting: Patience, *missing: float | None) -> float:
    return seconds_left(waiting, CONNECT_UNTIL, missing)


def test_when_all_have_spoken_nobody_is_waited_for() -> None:
    assert left(begun()) == 0


def test_a_host_that_is_here_has_the_time_of_the_round_and_one_that_is_not_that_of_coming() -> None:
    assert left(begun(), HERE) == 20
    assert left(begun(), None) == 5
    assert left(begun(), None, HERE) == 20
    assert left(running(5), None) == 0
    assert left(look(running(20), NOW + 20.5), HERE) == -0.5


def test_a_host_that_comes_late_has_the_whole_time_from_then_on() -> None:
    assert left(running(4), NOW + 4) == 20


def running(seconds: int) -> Patience:
    """A round in which the first host has looked at its clock in time."""
    waiting = begun()
    for second in range(seconds + 1):
        waiting = look(waiting, NOW + second * LOOK_SECONDS)
    assert waiting.missed_in_all == 0
    return waiting


@pytest.mark.parametrize("gap", [1.0, 19.0, 21.0, 86400.0])
def test_when_the_first_host_was_itself_stopped_the_others_have_as_much_longer(gap: float) -> None:
    woken = look(begun(), NOW + LOOK_SECONDS + gap)
    assert woken.missed_in_all == gap
    assert left(woken, HERE) == 19
    assert left(woken, None) == 4


def test_after_a_stop_at_the_end_of_a_round_the_others_have_a_moment_to_be_heard() -> None:
    woken = look(running(19), NOW + 500)
    assert left(woken, HERE) == AFTERWARDS_SECONDS
    assert left(look(woken, NOW + 501), HERE) == 0


def test_stops_add_up() -> None:
    waiting, now = begun(), NOW
    for _ in range(3):
        now += LOOK_SECONDS + 10
        waiting = look(waiting, now)
    assert (waiting.missed_in_all, left(waiting, HERE)) == (30, 17)
