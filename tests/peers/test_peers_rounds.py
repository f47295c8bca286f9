"""How long the first host waits in a round: arithmetic."""

import pytest

from trainbox.clock import AFTERWARDS_SECONDS
from trainbox.peers.rounds import LOOK_SECONDS, Round

NOW = 1000.0
HERE = NOW - 50


def begun(*, seconds: float = 20.0, connect: float = 5.0) -> Round:
    return Round(NOW, seconds, NOW + connect, due=NOW).look(NOW)


def test_when_all_have_spoken_nobody_is_waited_for() -> None:
    assert begun().left(NOW, []) == 0


def test_a_host_that_is_here_has_the_time_of_the_round_and_one_that_is_not_that_of_coming() -> None:
    assert begun().left(NOW, [HERE]) == 20
    assert begun().left(NOW, [None]) == 5
    assert begun().left(NOW, [None, HERE]) == 20
    assert begun().left(NOW + 5, [None]) == 0
    assert begun().left(NOW + 20.5, [HERE]) == -0.5


def test_a_host_that_comes_late_has_the_whole_time_from_then_on() -> None:
    assert begun().left(NOW + 4, [NOW + 4]) == 20


def test_looks_at_the_clock_that_come_in_time_change_nothing() -> None:
    current = begun()
    for second in range(20):
        current = current.look(NOW + second * LOOK_SECONDS)
    assert (current.absent, current.left(NOW + 19, [HERE])) == (0, 1)


@pytest.mark.parametrize("gap", [1.0, 19.0, 21.0, 86400.0])
def test_when_the_first_host_was_itself_stopped_the_others_have_as_much_longer(gap: float) -> None:
    woken = NOW + LOOK_SECONDS + gap
    current = begun().look(woken)
    assert current.absent == gap
    assert current.left(woken, [HERE]) == 19
    assert current.left(woken, [None]) == 4


def test_after_a_stop_at_the_end_of_a_round_the_others_have_a_moment_to_be_heard() -> None:
    current = begun()
    for second in range(20):
        current = current.look(NOW + second)
    current = current.look(NOW + 500)
    assert current.left(NOW + 500, [HERE]) == AFTERWARDS_SECONDS
    assert current.look(NOW + 501).left(NOW + 501, [HERE]) == 0


def test_stops_add_up() -> None:
    current, now = begun(), NOW
    for _ in range(3):
        now += LOOK_SECONDS + 10
        current = current.look(now)
    assert (current.absent, current.left(now, [HERE])) == (30, 17)
