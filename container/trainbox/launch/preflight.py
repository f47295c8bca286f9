"""The health checks before the script, in a child with a hard deadline, and what follows from what they find."""

import sys
from collections.abc import Mapping
from pathlib import Path

from trainbox.contract.job import Job
from trainbox.errors import ConfigurationError, HardwareError, PreflightError, Stopped, TrainboxError
from trainbox.launch.plan import Child, Plan
from trainbox.launch.scratch import scratch_directory
from trainbox.launch.supervise import Outcome, supervise
from trainbox.say import say

_REASON = "reason"
_HINT = "\nhint: "
_GRACE_SECONDS = 5.0
#: All checks have deadlines of their own, and end within these; what hangs beside them (a disk that the report goes to)
#: shall not hang the job.
_LIMIT_SECONDS = 900.0


def check(job: Job, planned: Plan, env: Mapping[str, str]) -> None:
    """Run the checks that the plan asks for; the hosts of a job come to the same judgement.

    Args:
        job: The contract, read.
        planned: What is to run afterwards.
        env: The environment of the supervisor.

    Raises:
        HardwareError: A part of the cluster must be repaired.
        ConfigurationError: The request or the image must change.
        PreflightError: The checks themselves broke.
        Stopped: A signal ended them.
    """
    say(f"checking the health of this job's hosts ({planned.preflight}; trainbox_preflight=off leaves it out)")
    with scratch_directory() as scratch:
        outcome = supervise(plan_checks(job, planned, env=env, scratch=scratch))
        reason = scratch / _REASON
        error = judge(outcome, reason.read_text(encoding="utf-8") if reason.exists() else "")
    if error is not None:
        raise error


def plan_checks(job: Job, planned: Plan, *, env: Mapping[str, str], scratch: Path) -> Plan:
    """Pure: the program of the checks as a plan."""
    argv = (
        *(sys.executable, "-P", "-m", "trainbox.health", "--preflight", f"--{planned.preflight}"),
        *("--processes", str(planned.processes), "--failure", str(scratch / _REASON)),
        *(("--strict",) if job.settings.preflight_strict else ()),
    )
    child = Child(
        "preflight",
        argv=argv,
        environment={**env, "PYTHONUNBUFFERED": "1"},
        directory=job.layout.root,
        hang_seconds=job.settings.hang_seconds,
    )
    return Plan(
        children=(child,),
        grace_seconds=_GRACE_SECONDS,
        scratch=scratch,
        limit_seconds=job.settings.peer_timeout_seconds + _LIMIT_SECONDS,
    )


def judge(outcome: Outcome, reason: str) -> TrainboxError | None:
    """Pure: why the job cannot go on; None where it can.

    Args:
        outcome: How the checks ended.
        reason: What they say is wrong, with a hint on its last line.
    """
    if outcome.stopped_by:
        return Stopped("stopped by a signal during the checks before the script")
    if not outcome.code:
        return None
    message, _, hint = reason.partition(_HINT)
    for kind in (HardwareError, ConfigurationError):
        if outcome.code == kind.exit_code and reason:
            return kind(message.removeprefix(f"{kind.fault}{kind.joint}"), hint=hint)
    why = f"ended with exit code {outcome.code}"
    if outcome.exits[0].hung:
        why = f"did not end: their process {outcome.exits[0].hung}"
    elif outcome.killed_after_grace:
        why = f"did not end within {outcome.seconds:.0f} s"
    return PreflightError(
        f"the checks before the script {why}",
        hint="their own lines are in the log; trainbox_preflight=off starts the script without them",
    )
