"""The reason that a person reads first, where a job was stopped or what runs the ranks has failed. All pure."""

import signal
from pathlib import Path

import msgspec
import pytest

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose
from trainbox.contract.job import Job, read_job
from trainbox.diagnostics.verdict import RankFailure, Verdict
from trainbox.supervisor.failure_reason import diagnose
from trainbox.supervisor.outcome import Exit, Outcome
from trainbox.supervisor.plan import AGENT

SERVER = "AlgorithmError: the fork server (process 7), which starts the ranks, was killed by SIGKILL"
STOPPED = "stopped by SIGTERM: rank 1 ended at once: it had no handler for it, or not yet"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text('{"current_host": "a", "hosts": ["a", "b"]}')
    return read_job(tmp_path, {"SAGEMAKER_PROGRAM": "train.py"})


def ended(
    name: str, number: int = 0, *, code: int = 0, stopped_by: int = 0, hung: str = "", memory_kills: int = 0
) -> Outcome:
    exit_ = Exit(name, code or 128 + number, number, stderr="RuntimeError: of a rank", stdout="", hung=hung)
    return Outcome((exit_,), stopped_by, False, memory_kills, None, 0, 12.34)


def on(host: str, job: Job) -> Job:
    return msgspec.structs.replace(job, current_host=host)


def test_what_broke_beneath_the_ranks_of_a_host_is_said_by_it_and_repeated_by_the_others(job: Job) -> None:
    verdict = Verdict(Diagnosis("algorithm", SERVER, 137, hint="look for memory", host="b"))
    here = diagnose(ended(AGENT, code=137), on("b", job), Path(), verdict)
    there = diagnose(ended(AGENT, code=5), job, Path(), verdict)
    assert [(one.kind, one.exit_code) for one in (here, there)] == [("algorithm", 137), ("peer", 137)]
    assert compose(here) == f"{SERVER}\nat the ranks of b\nhint: look for memory"
    assert compose(there) == f"PEER b: {SERVER}\nat the ranks of a\nhint: look for memory"


def test_a_host_that_stood_still_itself_is_no_peer_of_its_own(job: Job) -> None:
    verdict = Verdict(Diagnosis("hang", "this host did not run for 30 s", 5, host="a"))
    found = diagnose(ended(AGENT, code=5), job, Path(), verdict)
    assert (found.cause, found.exit_code) == ("this host did not run for 30 s", 5)


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_stopped_job_says_on_every_host_that_it_was_stopped(job: Job, host: str) -> None:
    failure = RankFailure(1, "b", 143, signal.SIGTERM, None)
    verdict = Verdict(Diagnosis("stopped", STOPPED, 143), failure, lost=("b",))
    found = diagnose(ended(AGENT, code=143), on(host, job), Path(), verdict)
    assert (verdict.stopped, found.exit_code) == (signal.SIGTERM, 143)
    assert compose(found).startswith(f"{STOPPED}\nat the ranks of {host}\nhint: ask trainbox.stop_requested()")
    assert compose(found).endswith("a stop is heard from session() on: open it before what takes long")


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (
            ended(AGENT, signal.SIGKILL),
            "AlgorithmError: the agent, which starts the ranks, was killed by SIGKILL; its ranks ended with it",
        ),
        (
            ended(AGENT, signal.SIGKILL, hung="was stopped (SIGSTOP) for 31 s and was ended"),
            "AlgorithmError: the agent, which starts the ranks, was stopped (SIGSTOP) for 31 s and was ended",
        ),
        (ended(AGENT, signal.SIGTERM, stopped_by=signal.SIGTERM), "stopped by SIGTERM before the ranks were started"),
        (
            ended(AGENT, signal.SIGKILL, memory_kills=1),
            "out of memory: the kernel killed a process of this job",
        ),
    ],
    ids=["killed", "frozen", "asked to stop while it imports", "out of memory"],
)
def test_an_agent_that_ends_without_a_verdict_is_named_and_not_what_its_ranks_have_said(
    job: Job, outcome: Outcome, cause: str
) -> None:
    first, where, *_ = compose(diagnose(outcome, job, Path())).splitlines()
    assert first.startswith(cause)
    code = outcome.exits[0].code
    assert where == f"at the ranks of a (exit code {code}, agent, a)"


@pytest.mark.parametrize(
    ("error", "code", "kind", "cause"),
    [
        ("PeerError: b has given up: no rows", 7, "peer", "AlgorithmError: PeerError: b has given up: no rows"),
        ("PeerError: b has given up: x", 130, "peer", "AlgorithmError: PeerError: b has given up: x"),
        ("Stopped: b was stopped", 143, "stopped", "ClientError: Stopped: b was stopped"),
    ],
)
def test_the_exit_code_of_a_peer_is_no_signal_here(job: Job, error: str, code: int, kind: str, cause: str) -> None:
    said = f'Traceback (most recent call last):\n  File "a.py", line 1, in main\ntrainbox.errors.{error}\n'
    outcome = ended("script", code=code)
    outcome = msgspec.structs.replace(outcome, exits=(msgspec.structs.replace(outcome.exits[0], stderr=said),))
    found = diagnose(outcome, job, Path())
    assert (found.kind, found.cause, found.exit_code) == (kind, cause, code)


@pytest.mark.parametrize(("name", "who"), [("script", "the script"), ("rank 3", "the script of rank 3")])
def test_a_script_that_stood_still_is_said_to_have_and_how_to_allow_it(job: Job, name: str, who: str) -> None:
    outcome = ended(name, signal.SIGKILL, hung="was stopped (SIGSTOP) for 31 s and was ended")
    first, where, hint = compose(diagnose(outcome, job, Path())).splitlines()
    assert first == f"{who} was stopped (SIGSTOP) for 31 s and was ended"
    assert where.startswith("at the script (exit code 137, ")
    assert "trainbox_hang_seconds=0" in hint


def test_of_a_script_that_a_stop_ended_only_what_was_seen_is_said(job: Job) -> None:
    outcome = ended("script", signal.SIGTERM, stopped_by=signal.SIGTERM)
    first, *rest = compose(diagnose(outcome, job, Path())).splitlines()
    assert first == "stopped: SIGTERM ended the script 12.3 s after its start: it had no handler for it, or not yet"
    assert "hint: ask trainbox.stop_requested()" in rest[-1]
    assert "with trainbox.torch a stop is heard from session() on" in rest[-1]
    bundled = msgspec.structs.replace(job, settings=msgspec.structs.replace(job.settings, program=None))
    assert compose(diagnose(outcome, bundled, Path())).splitlines() == [
        "stopped: SIGTERM ended the script 12.3 s after its start, while it was starting or leaving",
        "at the script (exit code 143, a)",
    ]
