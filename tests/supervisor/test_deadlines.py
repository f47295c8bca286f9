"""Who is ended when, as arithmetic: no process, no wait."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.supervisor.loop.deadlines import (
    KILL_SECONDS,
    LAST_WORDS_SECONDS,
    LEFTOVER_GRACE_SECONDS,
    MOST_RENEWALS,
    NEVER,
    PEER_GRACE_SECONDS,
    Deadline,
    Stage,
    Sweep,
    plan_sweep,
    seconds_until,
    sidecar_stages,
)

NOW = 1000.0
ASKING = NOW + LEFTOVER_GRACE_SECONDS
END = ASKING + LEFTOVER_GRACE_SECONDS


def test_children_that_nobody_stops_have_as_long_as_the_plan_says() -> None:
    deadline = Deadline().after_start(NOW, 60)
    assert not deadline.is_over(NOW + 59.999)
    assert deadline.is_over(NOW + 60)
    assert not Deadline().is_over(1e18)


@pytest.mark.parametrize("grace", [0.0, 0.5, 110.0, 86400.0])
def test_after_a_stop_they_have_the_grace_and_no_more(grace: float) -> None:
    deadline = Deadline().after_start(NOW, 1e9).after_stop(NOW + 7, grace)
    assert deadline.is_over(NOW + 7 + grace)
    assert grace == 0 or not deadline.is_over(NOW + 7 + grace - 0.001)


def test_a_stop_gives_time_to_save_though_the_limit_of_the_job_is_near() -> None:
    assert Deadline().after_start(NOW, 10).after_stop(NOW + 9, 30).kill_at == NOW + 39


def test_the_failure_of_one_never_gives_the_others_longer() -> None:
    assert Deadline().after_failure(NOW).kill_at == NOW + PEER_GRACE_SECONDS
    assert Deadline(NOW + 1).after_failure(NOW).kill_at == NOW + 1


@pytest.mark.parametrize(
    ("moment", "waits"),
    [(NEVER, None), (NOW + 2.5, 2.5), (NOW, 0.0), (NOW - 60, 0.0)],
    ids=["never", "2.5", "0", "-60"],
)
def test_a_wait_is_never_negative_and_without_a_deadline_without_end(moment: float, waits: float | None) -> None:
    assert seconds_until(moment, NOW) == waits


def test_sidecars_are_killed_at_once_and_after_a_failure_have_last_words() -> None:
    kill = Stage(signal.SIGKILL, KILL_SECONDS)
    assert sidecar_stages(last_words=False) == (kill,)
    assert sidecar_stages(last_words=True) == (Stage(signal.SIGTERM, LAST_WORDS_SECONDS), kill)


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_nothing_left_is_nothing_to_do_at_any_time() -> None:
    assert {plan_sweep(set(), {1}, renewals=0, since=NOW, now=now) for now in (NOW, ASKING, END)} == {None}


def test_what_is_left_is_asked_once_and_then_waited_for() -> None:
    assert plan_sweep({1, 2}, set(), renewals=0, since=NOW, now=NOW) == Sweep(ask=frozenset({1, 2}), wait=0.1)
    # The second has left, and a third is an orphan since.
    assert plan_sweep({1, 3}, {1, 2}, renewals=1, since=NOW, now=NOW + 1) == Sweep(ask=frozenset({3}), wait=0.1)
    assert plan_sweep({1}, {1}, renewals=1, since=NOW, now=ASKING - 0.0625) == Sweep(wait=0.0625)


def test_what_does_not_leave_in_time_is_killed_all_of_it_again_and_again() -> None:
    everything = Sweep(kill=frozenset({1, 2}), wait=0.1, killing_since=ASKING)
    assert plan_sweep({1, 2}, {1, 2}, renewals=1, since=NOW, now=ASKING) == everything
    again = plan_sweep({1, 2}, {1, 2}, renewals=1, since=NOW, now=ASKING + 1, killing_since=ASKING)
    assert again == everything


def test_one_that_forks_instead_of_leaving_is_killed_before_the_grace_is_over_and_without_a_pause() -> None:
    asked = plan_sweep({22}, {21}, renewals=MOST_RENEWALS, since=NOW, now=NOW + 0.1)
    killed = plan_sweep({23}, {21, 22}, renewals=MOST_RENEWALS + 1, since=NOW, now=NOW + 0.1)
    assert (asked, killed) == (
        Sweep(ask=frozenset({22}), wait=0.1),
        Sweep(kill=frozenset({23}), killing_since=NOW + 0.1),
    )
    # Nor is anything asked again.
    again = plan_sweep({24}, {24}, renewals=0, since=NOW, now=NOW + 0.2, killing_since=NOW + 0.1)
    assert again == Sweep(kill=frozenset({24}), wait=0.1, killing_since=NOW + 0.1)


def test_what_not_even_sigkill_ends_is_given_up() -> None:
    assert plan_sweep({1}, {1}, renewals=1, since=NOW, now=END - 0.01, killing_since=ASKING) is not None
    assert plan_sweep({1}, {1}, renewals=1, since=NOW, now=END, killing_since=ASKING) is None


def test_a_supervisor_that_was_itself_stopped_for_longer_than_all_of_that_kills_all_the_same() -> None:
    late = plan_sweep({1}, {1}, renewals=1, since=NOW, now=END + 3600)
    assert late == Sweep(kill=frozenset({1}), wait=0.1, killing_since=END + 3600)


@given(st.lists(st.tuples(st.sets(st.integers(1, 9)), st.floats(0, 0.2))))
def test_whatever_is_left_the_sweep_ends(looks: list[tuple[set[int], float]]) -> None:
    """A clock that goes on by what is waited for, and by a little for the work."""
    now, renewals, known = NOW, 0, set[int]()
    killing: float | None = None
    for left, work in [*looks, *[({1, 2}, 0.0)] * 300]:
        sweep = plan_sweep(left, known, renewals=renewals, since=NOW, now=now, killing_since=killing)
        if sweep is None:
            break
        assert not sweep.ask & known
        assert sweep.kill == (left if sweep.killing_since else set())
        killing = sweep.killing_since
        renewals += not left <= known
        known |= left
        now += sweep.wait + work
    else:
        pytest.fail("it has no end")
