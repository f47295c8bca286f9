"""What follows from the end of an attempt: whether all ranks start again, and what is said where they do not."""

import signal

import pytest

from trainbox.diagnostics.cause import Cause
from trainbox.diagnostics.verdict import RankFailure
from trainbox.launcher.attempt_verdict import (
    WINDOW_SECONDS,
    RestartDecision,
    RestartHistory,
    decide,
    restarted,
    rule,
)
from trainbox.launcher.attribution import AttemptReport


def raised(kind: str, text: str = "", *, step: int | None = None) -> RankFailure:
    cause = Cause(text=f"{kind}: {text}")
    return RankFailure(rank=0, host="a", code=1, signal=0, cause=cause, family=(kind, "builtins.Exception"), step=step)


def killed(number: int) -> RankFailure:
    return RankFailure(rank=0, host="a", code=128 + number, signal=number, cause=None)


def exited(code: int, step: int | None = None) -> RankFailure:
    return RankFailure(rank=0, host="a", code=code, signal=0, cause=None, step=step)


@pytest.mark.parametrize(
    "failure",
    [
        RankFailure(0, "a", 1, 0, None, family=("builtins.ModuleNotFoundError", "builtins.ImportError")),
        RankFailure(0, "a", 1, 0, None, family=("builtins.TabError", "builtins.SyntaxError")),
        raised("torch.OutOfMemoryError"),
        RankFailure(0, "a", 7, 0, None, family=("trainbox.errors.DataError", "trainbox.errors.TrainboxError")),
        exited(2),
        exited(64),
        exited(78),
    ],
)
def test_what_fails_every_time_is_not_started_again(failure: RankFailure) -> None:
    decision = decide(failure, RestartHistory(), max_restarts=3, now=0.0)
    assert not decision.restart
    assert decision.because


def test_the_same_exception_at_the_same_step_is_started_again_once() -> None:
    first = raised("builtins.ValueError", "x", step=7)
    before = RestartHistory((1.0,), first)
    assert decide(first, RestartHistory(), max_restarts=3, now=0.0).restart
    assert not decide(first, before, max_restarts=3, now=2.0).restart
    assert decide(raised("builtins.ValueError", "x", step=8), before, max_restarts=3, now=2.0).restart
    assert decide(raised("builtins.KeyError", "x", step=7), before, max_restarts=3, now=2.0).restart
    assert not decide(raised("builtins.ValueError", "other words", step=7), before, max_restarts=3, now=2.0).restart


def test_where_no_steps_are_known_the_words_decide() -> None:
    before = RestartHistory((1.0,), raised("builtins.ValueError", "x"))
    assert not decide(raised("builtins.ValueError", "x"), before, max_restarts=3, now=2.0).restart
    assert decide(raised("builtins.ValueError", "y"), before, max_restarts=3, now=2.0).restart


def test_a_kill_may_strike_again_and_again_until_the_window_is_full() -> None:
    dead = killed(signal.SIGKILL)
    assert decide(dead, RestartHistory((1.0, 2.0), dead), max_restarts=3, now=3.0).restart
    assert not decide(dead, RestartHistory((1.0, 2.0, 3.0), dead), max_restarts=3, now=4.0).restart
    assert decide(dead, RestartHistory((1.0, 2.0, 3.0), dead), max_restarts=3, now=1.5 + WINDOW_SECONDS).restart
    assert not decide(dead, RestartHistory(), max_restarts=0, now=0.0).restart


def test_the_same_words_days_later_are_no_repetition_where_no_steps_are_known() -> None:
    before = RestartHistory((1.0,), raised("builtins.OSError", "busy"))
    assert decide(raised("builtins.OSError", "busy"), before, max_restarts=3, now=1.5 + WINDOW_SECONDS).restart
    stepped = RestartHistory((1.0,), raised("builtins.OSError", "busy", step=7))
    assert not decide(
        raised("builtins.OSError", "busy", step=7), stepped, max_restarts=3, now=1.5 + WINDOW_SECONDS
    ).restart


def killed_at(step: int | None) -> RankFailure:
    return RankFailure(0, "a", 137, signal.SIGKILL, None, step=step)


def decisions(steps: list[int | None], *, max_restarts: int) -> list[RestartDecision]:
    """What is decided at each of several kills, so far apart that the window never fills."""
    history, found = RestartHistory(), []
    for number, step in enumerate(steps):
        now = number * 2 * WINDOW_SECONDS
        found.append(decide(killed_at(step), history, max_restarts=max_restarts, now=now))
        history = restarted(history, killed_at(step), now)
    return found


def test_restarts_that_get_no_further_end_however_far_apart_they_are() -> None:
    *before, last = decisions([10, 10, 9, 10], max_restarts=2)
    assert all(decision.restart for decision in before)
    assert last == RestartDecision(False, "restarts got no further than step 10")
    assert not decisions([10, None, None, 10], max_restarts=2)[-1].restart  # it did not even come to its first step


def test_restarts_that_get_further_or_say_no_step_go_on() -> None:
    assert all(decision.restart for decision in decisions([10, 10, 9, 11, 11, 11, 12], max_restarts=2))
    assert all(decision.restart for decision in decisions([None] * 9, max_restarts=2))


def failure(code: int, number: int = 0, *, family: tuple[str, ...] = ()) -> RankFailure:
    return RankFailure(2, "b", code, number, None, family=family)


@pytest.mark.parametrize(
    ("root", "stopping", "expected"),
    [
        (failure(143, signal.SIGTERM), signal.SIGTERM, (143, signal.SIGTERM, False)),
        (failure(1, family=("builtins.ConnectionError",)), signal.SIGTERM, (143, signal.SIGTERM, False)),
        (failure(1, family=("builtins.KeyboardInterrupt",)), signal.SIGINT, (130, signal.SIGINT, False)),
        (failure(1, family=("builtins.ValueError",)), signal.SIGTERM, (1, 0, False)),
        (failure(137, signal.SIGKILL), signal.SIGTERM, (137, 0, False)),
        (failure(143, signal.SIGTERM), 0, (143, 0, True)),
        (failure(137, signal.SIGKILL), 0, (137, 0, True)),
    ],
)
def test_a_stop_of_one_host_is_a_stop_of_all_unless_a_rank_failed_by_itself(
    root: RankFailure, stopping: int, expected: tuple[int, int, bool]
) -> None:
    reports = [AttemptReport("a", stopping=stopping), AttemptReport("b", failures=(root,))]
    verdict = rule(reports, (), RestartHistory(), max_restarts=3, now=0.0).verdict
    assert (verdict.diagnosis.exit_code, verdict.stopped, verdict.restart) == expected
    assert verdict.failure is root
