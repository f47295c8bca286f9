"""What runs beside the children of a plan: it ends with them, and decides nothing. Real processes."""

import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import is_alive
from trainbox.contract.environment import Machine
from trainbox.contract.job import read_job
from trainbox.errors import ProgramError
from trainbox.supervisor.loop.deadlines import LAST_WORDS_SECONDS
from trainbox.supervisor.outcome import Outcome
from trainbox.supervisor.plan import AGENT, WATCH, Child, Plan, plan
from trainbox.supervisor.program.choice import Program
from trainbox.supervisor.supervise import supervise
from trainbox.system.subreaper import children

pytestmark = pytest.mark.process

#: Longer than any of these tests may take; in place of the shell, so that it is one process.
FOREVER = "exec sleep 1000"
STOPS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """Run a shell script beside others; the streams go to files."""

    def child(name: str, script: str) -> Child:
        return Child(name, ("/bin/sh", "-c", script), environment={"PATH": os.environ["PATH"]}, directory=tmp_path)

    def running(
        script: str,
        *sidecars: str,
        grace: float = 100.0,
        limit: float = float("inf"),
        **time: Any,
    ) -> Outcome:
        beside = tuple(child(f"sidecar {place}", one) for place, one in enumerate(sidecars))
        scripts = (child("script", script),)
        planned = Plan(scripts, grace, limit_seconds=limit, sidecars=beside, scratch=tmp_path / "scratch")
        with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
            return supervise(planned, stdout=out.fileno(), stderr=err.fileno(), **time)

    return running


def waits_for(file: str) -> str:
    return f"until test -e {file}; do sleep 0.01; done"


def test_a_sidecar_ends_with_the_script_and_is_none_of_what_it_left(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run(waits_for("pid"), f"echo $$ > part; mv part pid; trap '' TERM; {FOREVER}")
    assert (outcome.code, outcome.leftovers, len(outcome.exits)) == (0, 0, 1)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_the_end_of_a_sidecar_does_not_end_the_script(
    run: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(f"{waits_for('gone')}; sleep 0.3", "touch gone; exit 7", "exit 0")
    assert outcome.code == 0
    assert capsys.readouterr().err == ("trainbox: sidecar 0 has ended with exit code 7: the job goes on without it\n")


def test_a_sidecar_that_cannot_be_started_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = Child("the sidecar", (str(tmp_path / "missing"),), environment={}, directory=tmp_path)
    script = Child("script", ("/bin/true",), environment={}, directory=tmp_path)
    assert supervise(Plan((script,), 0, sidecars=(missing,))).code == 0
    said = capsys.readouterr().err
    assert said.startswith(f"trainbox: the sidecar is not there: '{missing.argv[0]}' cannot be started in ")


def test_where_the_script_has_failed_a_sidecar_has_a_last_word(run: Callable[..., Outcome], tmp_path: Path) -> None:
    says = "trap 'echo last; exit 0' TERM; touch ready; while :; do sleep 0.01; done"
    assert run(f"{waits_for('ready')}; exit 3", says).code == 3
    assert (tmp_path / "out").read_text() == "last\n"
    (tmp_path / "ready").unlink()
    (tmp_path / "scratch").rmdir()
    assert run(waits_for("ready"), says).code == 0
    assert (tmp_path / "out").read_text() == ""


def test_one_that_does_not_leave_holds_up_a_failed_job_for_a_bounded_time(run: Callable[..., Outcome]) -> None:
    outcome = run(f"{waits_for('ready')}; exit 3", f"trap '' TERM; touch ready; {FOREVER}")
    assert (outcome.code, outcome.leftovers) == (3, 0)
    assert outcome.seconds >= LAST_WORDS_SECONDS


#: On which an hour is a third of a second.
SPEED = 10_000.0


def quick_clock() -> float:
    return time.monotonic() * SPEED


class QuickPoller(selectors.DefaultSelector):
    """Waits in seconds of `quick_clock`."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / SPEED)


QUICKLY = {"clock": quick_clock, "poller": QuickPoller}


def test_a_script_that_does_not_leave_is_killed_when_the_clock_says_that_the_grace_is_over(
    run: Callable[..., Outcome],
) -> None:
    outcome = run(f"trap '' TERM; kill -TERM {os.getpid()}; {FOREVER}", grace=3600, **QUICKLY)
    assert (outcome.code, outcome.stopped_by, outcome.killed_after_grace) == (137, signal.SIGTERM, True)
    assert outcome.seconds >= 3600


def test_the_limit_of_the_job_ends_a_script_that_nobody_stops(run: Callable[..., Outcome]) -> None:
    outcome = run(FOREVER, limit=3600, **QUICKLY)
    assert (outcome.code, outcome.stopped_by, outcome.killed_after_grace) == (137, 0, True)


def test_a_process_left_behind_that_does_not_leave_is_killed(run: Callable[..., Outcome], tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; echo $$ > pid; {FOREVER}"
    outcome = run(f'(setsid sh -c "{stubborn}" &); until test -s pid; do sleep 0.01; done', **QUICKLY)
    assert (outcome.code, outcome.leftovers) == (0, 1)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_request_to_stop_is_not_for_sidecars(run: Callable[..., Outcome], tmp_path: Path) -> None:
    stopped = "trap 'sleep 0.3; touch leaving; sleep 0.3; exit 0' TERM; touch ready; while :; do sleep 0.01; done"
    asks = f"{waits_for('ready')}; kill -TERM {os.getpid()}; {waits_for('leaving')}; echo saw it leave; {FOREVER}"
    outcome = run(stopped, f"trap 'echo asked' TERM; {asks}")
    assert (outcome.code, outcome.stopped_by) == (0, signal.SIGTERM)
    assert (tmp_path / "out").read_text() == "saw it leave\n"


def test_the_words_of_a_sidecar_stand_on_lines_of_their_own(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """Also below the last line of a script that has closed its output without ending it."""
    run(
        f"printf open; exec >&- 2>&-; {waits_for('said')}",
        "sleep 0.3; echo one; printf two; touch said; exec sleep 1000",
    )
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines in (["open", "one"], ["open", "one", "two"])


def test_the_last_line_of_a_script_stays_open_beside_a_silent_sidecar(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    run("printf open", FOREVER)
    assert (tmp_path / "out").read_text() == "open"


def test_the_directory_they_share_is_made_for_its_owner_alone(run: Callable[..., Outcome], tmp_path: Path) -> None:
    assert run("true").code == 0
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ProgramError, match="cannot be made: File exists"):
        run("true")


def test_a_child_that_cannot_be_started_leaves_no_sidecar(tmp_path: Path) -> None:
    bad = Child("script", (str(tmp_path / "missing"),), environment={}, directory=tmp_path)
    good = Child("sidecar", ("/bin/sleep", "1000"), environment={}, directory=tmp_path)
    before = children()
    with pytest.raises(ProgramError):
        supervise(Plan((bad,), 0, sidecars=(good,)))
    assert children() == before


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["plain", "torchrun"])
@pytest.mark.parametrize("gpus", [0, 2])
def test_the_gpus_of_a_host_are_watched_whoever_starts_the_script(tmp_path: Path, launcher: str, gpus: int) -> None:
    (tmp_path / "input/config").mkdir(parents=True)
    (tmp_path / "input/config/resourceconfig.json").write_text('{"current_host": "a", "hosts": ["a"]}')
    env = {"TRAINBOX_LAUNCHER": launcher, "TRAINBOX_BACKEND": "gloo"}
    program = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/code"))
    scratch = Path("/dev/shm/here")
    planned = plan(
        read_job(tmp_path, env), program, env=env, machine=Machine(gpus=gpus, modules=("torch",)), scratch=scratch
    )
    assert [child.name for child in planned.children] == [AGENT if launcher == "torchrun" else "script"]
    assert [sidecar.name for sidecar in planned.sidecars] == ([WATCH] if gpus else [])
    assert planned.scratch == (scratch if gpus or launcher == "torchrun" else None)
    for sidecar in planned.sidecars:
        assert sidecar.argv[1:] == ("-P", "-m", "trainbox.health", "--watch", "--into", str(scratch))


@pytest.mark.parametrize("ignore", [True, False])
def test_stops_after_the_end_of_a_plan_are_ignored_where_only_its_report_is_left(
    run: Callable[..., Outcome], ignore: bool
) -> None:
    came: list[int] = []
    former = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPS}
    try:
        assert run("exit 7", ignore_stops=ignore).code == 7
        for number in STOPS:
            os.kill(os.getpid(), number)
        assert came == ([] if ignore else list(STOPS))
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_where_there_is_no_proc_a_stop_goes_to_all_of_the_process_group(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainbox.supervisor.loop.asked.read_stats", lambda: iter(()))
    outcome = run(f"trap 'exit 7' TERM; sleep 1000 & kill -TERM {os.getpid()}; wait")
    assert (outcome.code, outcome.stopped_by) == (7, signal.SIGTERM)
