"""How a trial ended, by the outcome of its job."""

import re
from pathlib import Path

import msgspec

from trainbox.contract.text import some
from trainbox.local.results.folder import last_bytes
from trainbox.local.results.outcome import JobOutcome
from trainbox.local.results.record import Curve, JobRecord
from trainbox.tuning.records import TrialRecord
from trainbox.tuning.search_space import Objective

#: How a log writes a value that is none: of Python, C, and metric lines of trainbox.
_NO_NUMBER = re.compile(rb"\b(?:nan|inf|infinity|infinite|not-a-number)\b", re.IGNORECASE)


def objective_of(job: JobOutcome | JobRecord, name: str) -> float | None:
    """Return the last value of the objective, as SageMaker takes it; None where there is none."""
    final = job.final_metrics if isinstance(job, JobOutcome) else job.final
    if name in final:
        return final[name]
    curve = job.metrics.get(name)
    return curve.values[-1] if curve is not None and curve.values else None


def curve_of(job: JobOutcome | JobRecord, name: str) -> Curve:
    """Return the values of the objective, by step."""
    return job.metrics.get(name, Curve((), ()))


def end_trial(
    trial: TrialRecord,
    job: JobOutcome | JobRecord,
    objective: Objective,
    seconds: float,
    *,
    is_stopped_early: bool,
    is_interrupted: bool,
) -> TrialRecord:
    """Return the record of a trial that has ended.

    Args:
        trial: Its record so far.
        job: What became of its job.
        objective: What is tuned.
        seconds: How long it took.
        is_stopped_early: Whether early stopping asked for its end.
        is_interrupted: Whether it was asked to end with the tuning job.
    """
    value = objective_of(job, objective.name)
    is_stopped = job.status == "Stopped" and job.secondary_status == "Stopped"
    reason = job.failure_reason or ""
    if job.status == "Stopped" and job.secondary_status == "MaxRuntimeExceeded":
        reason = "MaxRuntimeExceeded"
    if value is None and job.status != "Failed" and not (is_stopped and is_interrupted):
        reason = ": ".join(filter(None, [reason, _no_objective(job, objective.name)]))
    return msgspec.structs.replace(
        trial,
        status="Failed" if job.status == "InProgress" else job.status,
        objective=value,
        is_stopped_early=is_stopped and is_stopped_early,
        is_interrupted=is_stopped and is_interrupted and not is_stopped_early,
        failure_reason=reason,
        seconds=round(seconds, 3),
    )


def break_off(trial: TrialRecord, reason: str, seconds: float, *, is_interrupted: bool) -> TrialRecord:
    """Return the record of a trial whose job could not be started, or not be kept.

    Args:
        trial: Its record so far.
        reason: Why.
        seconds: How long it took.
        is_interrupted: Whether it ends with the tuning job, and goes on with it.
    """
    return msgspec.structs.replace(
        trial,
        status="Stopped" if is_interrupted else "Failed",
        is_interrupted=is_interrupted,
        failure_reason=reason,
        seconds=round(seconds, 3),
    )


def _no_objective(job: JobOutcome | JobRecord, name: str) -> str:
    logged = [*job.metrics]
    found = f"it logged {some(logged)}" if logged else "it logged no metric"
    return f"the objective {name!r} is not in its log ({found})"


def has_failed(trial: TrialRecord) -> bool:
    """Return whether a trial that has ended taught nothing: it failed, or never logged the objective."""
    return trial.status == "Failed" or (trial.objective is None and not trial.is_interrupted)


def mentions_no_number(out: Path) -> bool:
    """Return whether a log of a trial ends with a value that is not finite: the objective may have been one.

    Args:
        out: The directory of its result.
    """
    return any(_NO_NUMBER.search(last_bytes(log)) for log in sorted((out / "logs").glob("*.log")))
