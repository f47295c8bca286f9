"""Which jobs are checked before the script, how, and what follows from how the checks ended."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainbox.contract.environment import Machine
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.job import Job, read_job
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.plan import Child, Plan, plan
from trainbox.supervisor.preflight import judge, plan_checks
from trainbox.supervisor.program.choice import Program
from trainbox.supervisor.supervise import supervise

BROKEN = "AlgorithmError: the checks before the script"
UNSOUND = Diagnosis("hardware", "HARDWARE a - x: y", 78, hint="z", host="a")
PROGRAM = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/opt/ml/code"))


def job(*hosts: str, **settings: Any) -> Job:
    found = msgspec.structs.replace(read_job(Path("/nowhere"), {}), hosts=hosts or ("algo-1",), current_host="algo-1")
    return msgspec.structs.replace(found, settings=msgspec.structs.replace(found.settings, **settings))


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        (job(), 0, "off"),
        (job(), 1, "fast"),
        (job("algo-1", "algo-2"), 0, "fast"),
        (job(processes_per_host=2), 0, "fast"),
        (job("algo-1", "algo-2", studio_local_mode=True), 0, "off"),
        (job("algo-1", "algo-2", preflight="off"), 8, "off"),
        (job(preflight="full"), 0, "full"),
    ],
)
def test_several_processes_or_a_gpu_are_checked_unless_the_request_says_otherwise(
    given: Job, gpus: int, expected: str
) -> None:
    assert plan(given, PROGRAM, env={}, machine=Machine(gpus=gpus)).preflight == expected


def test_the_checks_are_told_what_is_going_to_run() -> None:
    given = job("algo-1", "algo-2", preflight="full", preflight_strict=True, processes_per_host=4)
    planned = plan_checks(given, plan(given, PROGRAM, env={}, machine=Machine()), env={"A": "b"}, scratch=Path("/s"))
    (child,) = planned.children
    assert child.argv[:4] == (sys.executable, "-P", "-m", "trainbox.health")
    assert child.argv[4:] == ("--preflight", "--full", "--processes", "4", "--failure", "/s/diagnosis.json", "--strict")
    assert child.environment["A"] == "b"
    assert planned.scratch == Path("/s")
    assert given.settings.peer_timeout_seconds < planned.limit_seconds < float("inf")


def outcome(code: int, *, hung: str = "", **more: Any) -> Outcome:
    exits = (Exit("preflight", code, max(0, code - 128), stderr="", stdout="", hung=hung),)
    usual = {"stopped_by": 0, "killed_after_grace": False, "memory_kills": 0, "memory_limit": None, "leftovers": 0}
    return Outcome(exits=exits, **{**usual, "seconds": 1.0, **more})


@pytest.mark.parametrize(
    ("ended", "said", "code", "cause"),
    [
        (outcome(78), None, 12, f"{BROKEN} ended with exit code 78"),
        (outcome(139), UNSOUND, 12, f"{BROKEN} ended with exit code 139"),
        (outcome(143, stopped_by=15), UNSOUND, 143, "ClientError: stopped by a signal"),
        (
            outcome(137, killed_after_grace=True, seconds=900.2),
            None,
            12,
            f"{BROKEN} did not end within 900 s",
        ),
        (
            outcome(137, hung="was stopped (SIGSTOP) for 31.0 s and was ended"),
            None,
            12,
            f"{BROKEN} did not end: their process was stopped (SIGSTOP) for 31.0 s",
        ),
    ],
)
def test_how_the_checks_ended_decides(ended: Outcome, said: Diagnosis | None, code: int, cause: str) -> None:
    found = judge(ended, said)
    assert found is not None
    assert found.exit_code == code
    assert found.cause.startswith(cause)


def test_what_the_checks_say_is_why_the_job_cannot_go_on() -> None:
    assert judge(outcome(78), UNSOUND) is UNSOUND


def test_sound_hosts_go_on() -> None:
    assert judge(outcome(0), None) is None


@pytest.mark.process
def test_a_child_is_killed_when_its_limit_is_over(tmp_path: Path) -> None:
    child = Child("sleeper", (sys.executable, "-c", "import time; time.sleep(1000)"), {}, tmp_path)
    ended = supervise(Plan((child,), grace_seconds=1.0, limit_seconds=0.3))
    assert (ended.code, ended.killed_after_grace, ended.stopped_by) == (137, True, 0)


@pytest.mark.process
def test_a_child_that_is_watched_is_killed_once_it_has_been_stopped_for_its_limit(tmp_path: Path) -> None:
    argv = ("sh", "-c", "kill -STOP $$; exit 3")
    frozen = Child("frozen", argv, {"PATH": os.defpath}, tmp_path, hang_seconds=0.3)
    ended = supervise(Plan((frozen,), grace_seconds=1.0))
    assert (ended.code, ended.killed_after_grace, ended.stopped_by) == (137, False, 0)
    assert re.fullmatch(r"was stopped \(SIGSTOP\) for [\d.]+ s and was ended", ended.exits[0].hung)
    argv = ("sh", "-c", "(sleep 1.5; kill -CONT $$) & kill -STOP $$; exit 3")
    for limit in (0.0, 1000.0):  # never, and not as long as a debugger may take
        stopped = Child("stopped", argv, {"PATH": os.defpath}, tmp_path, hang_seconds=limit)
        ended = supervise(Plan((stopped,), grace_seconds=1.0))
        assert (ended.code, ended.exits[0].hung) == (3, "")
