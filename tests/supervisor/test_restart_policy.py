"""When a child of a server is started again, when it counts as ready, and why it ended: arithmetic, no process."""

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.clock import AFTERWARDS_SECONDS
from trainbox.contract.failures.failure import compose
from trainbox.errors import ProgramError
from trainbox.supervisor.failure_reason import explain_exit
from trainbox.supervisor.loop.spawn import Started
from trainbox.supervisor.loop.workers import Restarts, Starts
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.plan import Child, Plan
from trainbox.supervisor.restart_policy import NEVER_RESTART, Readiness, RestartPolicy, plan_restart

NOW = 1000.0
NEVER = float("inf")
TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/ml/model/code/inference.py", line 7, in model_fn
    raise ValueError("no weights")
ValueError: no weights
"""


def pauses(policy: RestartPolicy, ends: int, *, every: float = 0.0) -> list[float | None]:
    """What comes before each start of a child that ends again and again; None where it has none any more."""
    moments: tuple[float, ...] = ()
    now, found = NOW, list[float | None]()
    for _ in range(ends):
        restart = plan_restart(policy, moments, now)
        found.append(None if restart is None else restart.at - now)
        moments = moments if restart is None else restart.moments
        now += every
    return found


def test_a_plan_restarts_nothing_unless_it_says_so() -> None:
    assert Plan((), 0).restart == NEVER_RESTART
    assert pauses(NEVER_RESTART, 1) == [None]


def test_the_pause_doubles_up_to_the_longest_and_the_limit_ends_it() -> None:
    policy = RestartPolicy(limit=6, window_seconds=60, first_pause_seconds=1, longest_pause_seconds=8)
    assert pauses(policy, 7) == [1, 2, 4, 8, 8, 8, None]
    endless = RestartPolicy(limit=5000, window_seconds=NEVER, first_pause_seconds=1, longest_pause_seconds=8)
    assert pauses(endless, 1100)[-1] == 8


def test_a_child_that_lives_longer_than_the_window_begins_anew() -> None:
    policy = RestartPolicy(limit=2, window_seconds=60, first_pause_seconds=1)
    assert pauses(policy, 50, every=60) == [1] * 50
    assert pauses(policy, 5, every=29) == [1, 2, None, 2, 2]


@given(
    st.lists(st.floats(0, 200), max_size=40),
    st.integers(0, 6),
    st.floats(0.1, 100),
    st.floats(0.01, 50),
)
def test_no_window_has_more_restarts_than_the_limit_whenever_a_child_ends(
    lives: list[float], limit: int, window: float, first: float
) -> None:
    policy = RestartPolicy(limit, window, first, longest_pause_seconds=60)
    now, planned = NOW, list[float]()
    moments: tuple[float, ...] = ()
    for life in lives:
        now += life
        restart = plan_restart(policy, moments, now)
        if restart is None:
            assert len([moment for moment in planned if moment > now - window]) >= limit
            return
        assert min(first, 60) - 1e-6 <= restart.at - now <= 60 + 1e-6
        planned.append(now)
        moments, now = restart.moments, restart.at
        assert len([moment for moment in planned if moment > planned[-1] - window]) <= limit


# -- readiness ---------------------------------------------------------------------------------------------------------


class Running:
    """A process that has been started, for who only asks what it is."""

    def __init__(self, readiness: Readiness | None, pid: int = 7) -> None:
        self.child = Child("worker 1", (), environment={}, directory=Path(), readiness=readiness)
        self.started = Started(pid, (0, 0))


def starts(*running: Any) -> Starts:
    """Children that were all started at `NOW`."""
    made = Starts()
    for process in running:
        made.add(process, NOW)
    return made


def test_a_child_without_a_probe_is_not_waited_for() -> None:
    assert starts(Running(None)).look(NOW).again == NEVER


def test_a_child_is_ready_once_its_probe_says_so_and_is_asked_no_more() -> None:
    asked = []

    def probe(pid: int) -> bool:
        asked.append(pid)
        return len(asked) == 3

    process: Any = Running(Readiness(probe, 10, period_seconds=0.5))
    waiting = starts(process)
    looks = [waiting.look(NOW + step / 2) for step in range(4)]
    assert [(look.ready, look.again) for look in looks] == [
        ((), NOW + 0.5),
        ((), NOW + 1.0),
        ((process,), NEVER),
        ((), NEVER),
    ]
    assert asked == [7, 7, 7]


def test_one_that_is_not_ready_in_time_is_late_once() -> None:
    process: Any = Running(Readiness(lambda _pid: False, 2, period_seconds=0.5))
    waiting = starts(process)
    looks = [waiting.look(NOW + step / 2) for step in range(6)]
    assert [look.late for look in looks] == [(), (), (), (), ((process, 2),), ()]


def test_time_in_which_the_supervisor_did_not_run_is_held_against_nobody() -> None:
    process: Any = Running(Readiness(lambda _pid: False, 2, period_seconds=0.5))
    waiting = starts(process)
    waiting.look(NOW)
    assert not waiting.look(NOW + 3600).late  # its container was paused
    assert waiting.look(NOW + 3600.2).again <= NOW + 3600.7
    assert not waiting.look(NOW + 3600.4 + AFTERWARDS_SECONDS / 4).late
    assert waiting.look(NOW + 3602).late == ((process, 2),)


def test_one_that_has_ended_is_neither_ready_nor_late() -> None:
    process: Any = Running(Readiness(lambda _pid: True, 2))
    waiting = starts(process)
    waiting.forget(process)
    look = waiting.look(NOW + 10)
    assert (look.ready, look.late) == ((), ())


def test_a_file_says_that_a_child_is_ready_and_does_not_speak_for_the_next_one(tmp_path: Path) -> None:
    readiness = Readiness(tmp_path / "ready", 10)
    readiness.forget()
    assert not readiness.is_ready(7)
    (tmp_path / "ready").touch()
    assert readiness.is_ready(7)
    readiness.forget()
    assert not readiness.is_ready(7)


def test_a_file_of_an_earlier_process_that_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    with pytest.raises(ProgramError, match=r"ready cannot be removed before a start: Is a directory"):
        Readiness(tmp_path / "ready", 10).forget()


def test_a_probe_that_cannot_connect_says_no() -> None:
    def probe(_pid: int) -> bool:
        raise ConnectionRefusedError

    assert not Readiness(probe, 10).is_ready(7)


# -- who is due --------------------------------------------------------------------------------------------------------

CHILD = Child("worker 1", (), environment={}, directory=Path())
OTHER = Child("worker 2", (), environment={}, directory=Path())


def test_each_child_has_restarts_of_its_own_and_the_first_due_is_first(capsys: pytest.CaptureFixture[str]) -> None:
    restarts = Restarts(RestartPolicy(limit=2, first_pause_seconds=1))
    assert restarts.next_at == NEVER
    assert [restarts.delay(CHILD, "it ended", NOW) for _ in range(3)] == [True, True, False]
    assert restarts.delay(OTHER, "so did the other", NOW)
    assert (restarts.next_at, restarts.count) == (NOW + 1, 3)
    assert list(restarts.take_due(NOW + 0.5)) == []
    assert list(restarts.take_due(NOW + 1)) == [OTHER]
    assert list(restarts.take_due(NOW + 9)) == [CHILD]
    assert restarts.next_at == NEVER
    assert capsys.readouterr().err == (
        "trainbox: it ended; restart 1 of 2 within 60 s, in 1.0 s\n"
        "trainbox: it ended; restart 2 of 2 within 60 s, in 2.0 s\n"
        "trainbox: it ended; no restart is left of 2 within 60 s\n"
        "trainbox: so did the other; restart 1 of 2 within 60 s, in 1.0 s\n"
    )


def test_after_the_end_of_a_plan_nobody_is_due_or_started_again() -> None:
    restarts = Restarts(RestartPolicy(limit=2))
    restarts.delay(CHILD, "it ended", NOW)
    restarts.end()
    assert restarts.next_at == NEVER
    assert list(restarts.take_due(NOW + 9)) == []
    exit_ = ended(-signal.SIGKILL)
    assert restarts.plan(exit_, CHILD, NOW + 9) is exit_


# -- why it ended ------------------------------------------------------------------------------------------------------


def ended(code: int, stderr: str = "", **more: str) -> Exit:
    return Exit("worker 1", code if code >= 0 else 128 - code, max(0, -code), stderr=stderr, stdout="", **more)


@pytest.mark.parametrize(
    ("exit_", "memory_kills", "kind", "cause", "where"),
    [
        (ended(-signal.SIGKILL), 0, "signal", "killed by SIGKILL", "worker 1 (exit code 137)"),
        (
            ended(-signal.SIGKILL),
            1,
            "memory",
            "out of memory: the kernel killed a process of this job (limit 64 MiB)",
            "worker 1 (exit code 137)",
        ),
        (
            ended(1, TRACEBACK),
            0,
            "script",
            "ValueError: no weights",
            "inference.py:7 in model_fn (exit code 1, worker 1)",
        ),
        (
            ended(-signal.SIGSEGV, "Fatal Python error: Segmentation fault\n"),
            0,
            "signal",
            "killed by SIGSEGV; its last output: Fatal Python error: Segmentation fault",
            "worker 1 (exit code 139)",
        ),
        (ended(0), 0, "script", "it exited without being asked to", "worker 1 (exit code 0)"),
        (
            ended(-signal.SIGKILL, unready="was not ready within 60 s"),
            0,
            "hang",
            "was not ready within 60 s",
            "worker 1 (exit code 137)",
        ),
        (
            ended(-signal.SIGKILL, hung="was stopped (SIGSTOP) for 5.0 s and was ended"),
            0,
            "hang",
            "was stopped (SIGSTOP) for 5.0 s and was ended",
            "worker 1 (exit code 137)",
        ),
        (
            ended(7, "no port\n", gave_up="ended 4 times within 60 s"),
            0,
            "script",
            "ended 4 times within 60 s, the last time: no port",
            "worker 1 (exit code 7)",
        ),
    ],
    ids=["killed", "memory", "raised", "crashed", "left", "unready", "stopped", "too often"],
)
def test_the_end_of_a_worker_has_the_diagnosis_that_the_end_of_a_script_has(
    exit_: Exit, memory_kills: int, kind: str, cause: str, where: str
) -> None:
    code_dir = Path("/opt/ml/model/code")
    found = explain_exit(exit_, code_dir, memory_kills=memory_kills, memory_limit=64 * 2**20)
    assert (found.kind, found.cause, found.where) == (kind, cause, where)
    assert found.exit_code == (exit_.code or 1)
    assert compose(found).startswith(f"{cause}\nat {where}")


def test_a_plan_whose_child_left_too_often_with_code_0_has_failed() -> None:
    left = ended(0, gave_up="ended 3 times within 60 s")
    outcome = Outcome((ended(0), left), 0, False, 0, None, 0, 1.0)
    assert (outcome.first_failure, outcome.code) == (left, 1)
    assert Outcome((ended(0),), 0, False, 0, None, 0, 1.0).code == 0


def test_pauses_never_shrink_within_a_window() -> None:
    found = [pause for pause in pauses(RestartPolicy(limit=20), 20) if pause is not None]
    assert all(before <= after for before, after in pairwise(found))
