"""The health checks before the script, in a child with a hard deadline, and what follows from their findings."""

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.contract.credentials.peer_key import as_handed_on
from trainbox.contract.failures.diagnosis import DiagnosedError, Diagnosis, diagnose_error
from trainbox.contract.job import Job
from trainbox.errors import PreflightError, Stopped
from trainbox.log_lines import emit
from trainbox.supervisor.outcome import Outcome
from trainbox.supervisor.plan import Child, Plan
from trainbox.supervisor.supervise import supervise
from trainbox.system.shm_dir import scratch_directory

_DIAGNOSIS = "diagnosis.json"
_GRACE_SECONDS = 5.0
#: All checks have deadlines of their own, and end within these; what hangs beside them (a disk that the report goes to)
#: shall not hang the job.
_LIMIT_SECONDS = 900.0


def check(job: Job, planned: Plan, env: Mapping[str, str]) -> None:
    """Run the checks that the plan asks for; the hosts of a job come to the same diagnosis.

    Args:
        job: The contract, read.
        planned: What is to run afterwards.
        env: The environment of the supervisor.

    Raises:
        DiagnosedError: A part of the cluster must be repaired, the request or the image must change, the checks
            themselves broke, or a signal ended them.
    """
    emit(f"checking the health of this job's hosts ({planned.preflight}; trainbox_preflight=off leaves it out)")
    with scratch_directory() as scratch:
        outcome = supervise(plan_checks(job, planned, env=env, scratch=scratch))
        left = scratch / _DIAGNOSIS
        reported = msgspec.json.decode(left.read_bytes(), type=Diagnosis) if left.exists() else None
    diagnosis = judge(outcome, reported)
    if diagnosis is not None:
        raise DiagnosedError(diagnosis)


def plan_checks(job: Job, planned: Plan, *, env: Mapping[str, str], scratch: Path) -> Plan:
    """Pure: plan the program of the checks."""
    argv = (
        *(sys.executable, "-P", "-m", "trainbox.health", "--preflight", f"--{planned.preflight}"),
        *("--processes", str(planned.processes), "--failure", str(scratch / _DIAGNOSIS)),
        *(("--strict",) if job.settings.preflight_strict else ()),
    )
    child = Child(
        "preflight",
        argv=argv,
        environment={**env, **as_handed_on(job.peer_key), "PYTHONUNBUFFERED": "1"},
        directory=job.layout.root,
        hang_seconds=job.settings.hang_seconds,
    )
    return Plan(
        children=(child,),
        grace_seconds=_GRACE_SECONDS,
        scratch=scratch,
        limit_seconds=job.settings.peer_timeout_seconds + _LIMIT_SECONDS,
    )


def judge(outcome: Outcome, reported: Diagnosis | None) -> Diagnosis | None:
    """Pure: return the diagnosis of a job that cannot go on; None where it can.

    Args:
        outcome: How the checks ended.
        reported: What they report.
    """
    if outcome.stopped_by:
        return diagnose_error(Stopped("stopped by a signal during the checks before the script"))
    if not outcome.code:
        return None
    if reported is not None and reported.exit_code == outcome.code:
        return reported
    why = f"ended with exit code {outcome.code}"
    if outcome.exits[0].hung:
        why = f"did not end: their process {outcome.exits[0].hung}"
    elif outcome.killed_after_grace:
        why = f"did not end within {outcome.seconds:.0f} s"
    hint = "their own lines are in the log; trainbox_preflight=off starts the script without them"
    return diagnose_error(PreflightError(f"the checks before the script {why}", hint=hint))
