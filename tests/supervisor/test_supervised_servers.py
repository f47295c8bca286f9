"""Children of a server under the supervisor: killed and replaced, given up, never ready, drained. Real processes."""

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.trees import is_alive
from tests.support.waiting import LIMIT
from trainbox.errors import ProgramError
from trainbox.supervisor.failure_reason import explain_exit
from trainbox.supervisor.outcome import Change, Outcome
from trainbox.supervisor.plan import Child, Plan
from trainbox.supervisor.restart_policy import NEVER_RESTART, Readiness, RestartPolicy
from trainbox.supervisor.supervise import supervise
from trainbox.system.procfs import LOOK_SECONDS
from trainbox.system.subreaper import children

pytestmark = pytest.mark.process

#: Soon enough for a test, and never too often.
ALWAYS = RestartPolicy(limit=100, first_pause_seconds=0.01, longest_pause_seconds=0.01)
#: Says that it is ready, and serves until it is asked to leave.
SERVES = """
echo $$ >> $NAME.pids
trap 'echo $NAME drained; exit 0' TERM
touch $NAME.ready
while :; do sleep 0.01; done
"""


class Server(msgspec.Struct, frozen=True):
    """How the supervision of a server went."""

    outcome: Outcome
    changes: tuple[Change, ...]
    log: str

    def states(self, name: str) -> list[str]:
        """What became of one child."""
        return [change.state for change in self.changes if change.name == name]


@pytest.fixture
def serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Server]:
    """Supervise shell scripts as workers, and another that does something to them beside them."""

    def child(name: str, script: str, readiness: Readiness | None = None, hang_seconds: float = 0.0) -> Child:
        return Child(
            name,
            ("/bin/sh", "-c", script),
            environment={"PATH": os.environ["PATH"], "NAME": name, "SUPERVISOR": str(os.getpid())},
            directory=tmp_path,
            hang_seconds=hang_seconds,
            readiness=readiness,
        )

    def serving(
        workers: Sequence[tuple[str, str]],
        meanwhile: str = "",
        *,
        policy: RestartPolicy = ALWAYS,
        ready: float | None = None,
        hang: float = 0.0,
        limit: float = float("inf"),
        on_change: Callable[[Change], None] = lambda _change: None,
        **time: Any,
    ) -> Server:
        changes: list[Change] = []

        def note(change: Change) -> None:
            changes.append(change)
            with (tmp_path / "changes").open("a") as file:
                file.write(f"{change.name} {change.state}\n")
            on_change(change)

        made = tuple(
            child(name, script, Readiness(tmp_path / f"{name}.ready", ready, 0.01) if ready else None, hang)
            for name, script in workers
        )
        beside = (child("meanwhile", f"{meanwhile}\nexec sleep 1000"),) if meanwhile else ()
        plan = Plan(made, LIMIT, sidecars=beside, limit_seconds=limit, restart=policy)
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            outcome = supervise(plan, stdout=out.fileno(), stderr=err.fileno(), on_change=note, **time)
        return Server(outcome, tuple(changes), capsys.readouterr().err)

    return serving


def until(condition: str) -> str:
    return f"until {condition}; do sleep 0.01; done\n"


BOTH_READY = until("test -e a.ready && test -e b.ready")
STOP = "kill -TERM $SUPERVISOR\n"


def test_a_worker_that_is_killed_comes_back_and_all_are_drained_in_the_end(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    both, again = until("test $(grep -c ready changes) = 2"), until("test $(grep -c ready changes) = 3")
    meanwhile = f"{both}kill -KILL $(cat b.pids)\n{again}{STOP}"
    server = serve([("a", SERVES), ("b", SERVES)], meanwhile, ready=LIMIT)
    assert (server.outcome.code, server.outcome.stopped_by, server.outcome.restarts) == (0, signal.SIGTERM, 1)
    assert sorted((exit_.name, exit_.code) for exit_ in server.outcome.exits) == [("a", 0), ("b", 0)]
    assert server.states("a") == ["started", "ready", "ended"]
    assert server.states("b") == ["started", "ready", "ended", "started", "ready", "ended"]
    assert "trainbox: b (exit code 137): killed by SIGKILL; restart 1 of 100 within 60 s, in 0.0 s\n" in server.log
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["a drained", "b drained"]
    pids = [int(pid) for name in "ab" for pid in (tmp_path / f"{name}.pids").read_text().split()]
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("code", [7, 0])
def test_a_worker_that_ends_too_often_ends_the_server_with_a_reason(
    serve: Callable[..., Server], tmp_path: Path, code: int
) -> None:
    policy = msgspec.structs.replace(ALWAYS, limit=3)
    server = serve([("a", SERVES), ("b", f"{until('test -e a.ready')}echo no port >&2; exit {code}")], policy=policy)
    failure = server.outcome.first_failure
    assert failure is not None
    assert (failure.name, failure.gave_up) == ("b", "ended 4 times within 60 s")
    assert (server.outcome.code, server.outcome.restarts, server.outcome.stopped_by) == (code or 1, 3, 0)
    assert server.states("b") == ["started", "ended"] * 4
    assert "trainbox: b ended 4 times within 60 s: stopping the other processes of this host\n" in server.log
    assert explain_exit(failure, tmp_path).cause.startswith("ended 4 times within 60 s, the last time: ")
    assert [(exit_.name, exit_.code) for exit_ in server.outcome.exits] == [("b", code), ("a", 0)]
    assert (tmp_path / "out").read_text() == "a drained\n"


#: On which an hour is a third of a second.
SPEED = 10_000.0


class QuickPoller(selectors.DefaultSelector):
    """Waits in seconds of a clock that is `SPEED` times as fast."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / SPEED)


@pytest.mark.parametrize(
    ("policy", "ends"), [(NEVER_RESTART, 1), (RestartPolicy(limit=1, window_seconds=1e9), 2)], ids=["job", "server"]
)
def test_a_worker_that_is_never_ready_is_named_and_has_ended_like_any_other(
    serve: Callable[..., Server], policy: RestartPolicy, ends: int
) -> None:
    server = serve(
        [("a", "exec sleep 1000")],
        policy=policy,
        ready=3600,
        clock=lambda: time.monotonic() * SPEED,
        poller=QuickPoller,
    )
    failure = server.outcome.first_failure
    assert failure is not None
    assert (failure.name, failure.code, failure.unready) == ("a", 137, "was not ready within 3600 s")
    assert server.states("a") == ["started", "ended"] * ends
    assert bool(failure.gave_up) == (ends > 1)
    assert ("a (exit code 137): was not ready within 3600 s" in server.log) == (ends > 1)


def test_what_an_earlier_life_has_said_does_not_make_a_worker_ready(serve: Callable[..., Server]) -> None:
    lives = "test -e lives && exec sleep 1000; touch lives a.ready; exit 1"
    policy = RestartPolicy(limit=1, window_seconds=1e9)
    quickly = {"clock": lambda: time.monotonic() * SPEED, "poller": QuickPoller}
    failure = serve([("a", lives)], policy=policy, ready=3600, **quickly).outcome.first_failure
    assert failure is not None
    assert failure.unready == "was not ready within 3600 s"


def test_the_limit_of_a_plan_ends_a_server_for_good(serve: Callable[..., Server]) -> None:
    quickly = {"clock": lambda: time.monotonic() * SPEED, "poller": QuickPoller}
    server = serve([("a", "exec sleep 1000")], limit=3600, **quickly)
    assert (server.outcome.code, server.outcome.killed_after_grace, server.outcome.restarts) == (137, True, 0)


class StopsWhileAllWait(selectors.DefaultSelector):
    """Asks the supervisor to stop once it waits for longer than any child takes; it must not spin until then."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        assert self.turns < 1000
        if timeout is not None and timeout > 1000:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().select(timeout)


def test_a_stop_ends_the_wait_for_a_restart(serve: Callable[..., Server]) -> None:
    hour = RestartPolicy(limit=1, first_pause_seconds=3600, longest_pause_seconds=3600)
    server = serve([("a", "exit 3")], policy=hour, poller=StopsWhileAllWait)
    assert (server.outcome.code, server.outcome.stopped_by, server.outcome.exits) == (0, signal.SIGTERM, ())
    assert server.states("a") == ["started", "ended"]


def test_a_worker_that_ends_while_the_server_is_drained_is_not_replaced(serve: Callable[..., Server]) -> None:
    leaves = f"trap '{until('test -e told')} exit 3' TERM; touch a.ready\nwhile :; do sleep 0.01; done"
    other = "trap 'touch told; exit 0' TERM; touch b.ready\nwhile :; do sleep 0.01; done"
    server = serve([("a", leaves), ("b", other)], f"{BOTH_READY}{STOP}")
    assert (server.outcome.code, server.outcome.restarts, server.outcome.stopped_by) == (3, 0, signal.SIGTERM)
    assert server.states("a") == server.states("b") == ["started", "ended"]


def test_what_a_dead_worker_has_started_ends_with_it(serve: Callable[..., Server], tmp_path: Path) -> None:
    starts = f"sleep 1000 & echo $! >> helpers\n{SERVES}"
    gone = until("! kill -0 $(head -n 1 helpers) 2>/dev/null")
    came_back = until("test $(wc -l < a.pids) = 2")
    meanwhile = f"{until('test -e a.ready')}kill -KILL $(cat a.pids)\n{came_back}{gone}{STOP}"
    server = serve([("a", starts)], meanwhile)
    assert (server.outcome.code, server.outcome.restarts) == (0, 1)
    assert not [pid for pid in map(int, (tmp_path / "helpers").read_text().split()) if is_alive(pid)]


def test_restarts_leave_no_descriptor_and_no_line_open(serve: Callable[..., Server], tmp_path: Path) -> None:
    open_ = []
    server = serve(
        [("a", "printf 'a line without end'; exit 1")],
        policy=msgspec.structs.replace(ALWAYS, limit=20),
        on_change=lambda _change: open_.append(len(list(Path("/proc/self/fd").iterdir()))),
    )
    assert server.outcome.restarts == 20
    assert max(open_) - min(open_) < 20  # the pipes of a life that is over may be read to their end in the next one
    assert (tmp_path / "out").read_text().splitlines() == ["a line without end"] * 21


def test_a_worker_that_cannot_be_started_any_more_ends_the_server_with_that_reason(tmp_path: Path) -> None:
    script = tmp_path / "worker.sh"
    script.write_text('#!/bin/sh\nrm "$0"\nexit 1\n')
    script.chmod(0o755)
    before = children()
    policy = msgspec.structs.replace(ALWAYS, limit=3)
    worker = Child("worker", (str(script),), environment=dict(os.environ), directory=tmp_path)
    with pytest.raises(ProgramError, match=r"worker\.sh' cannot be started in .*: No such file or directory"):
        supervise(Plan((worker,), 0, restart=policy))
    assert children() == before


def test_a_worker_that_is_stopped_in_a_later_life_is_replaced_too(serve: Callable[..., Server]) -> None:
    lives = f"""
    case $(cat lives 2>/dev/null) in
      '') echo 1 > lives; exit 1;;
      1) echo 2 > lives; kill -STOP $$;;
    esac
    {SERVES}"""
    # Longer than from one look at who is stopped to the next: between its lives there is nobody to look at.
    policy = RestartPolicy(limit=2, first_pause_seconds=1.5 * LOOK_SECONDS, longest_pause_seconds=1.5 * LOOK_SECONDS)
    server = serve([("a", lives)], f"{until('test -e a.ready')}{STOP}", hang=0.5, policy=policy)
    assert (server.outcome.code, server.outcome.restarts) == (0, 2)
    assert "a (exit code 137): was stopped (SIGSTOP) for " in server.log
