"""The outcome of a job: its status as SageMaker names it, and the paths of its results."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trainbox.local.results.record import Curve, JobRecord, SecondaryStatus, Status
from trainbox.local.results.result import MODEL, OUTPUT


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a job."""

    job_name: str
    attempt: int
    #: API DescribeTrainingJob: TrainingJobStatus, SecondaryStatus, FailureReason.
    status: Status
    secondary_status: SecondaryStatus
    failure_reason: str | None = None
    #: Whether the log of the one host ends with that reason.
    is_reason_in_log: bool = False
    #: 0, the code of the host that failed first, or 128 and the number of the signal that asked for the end.
    exit_code: int
    #: The directory of the result, which has `job.json` and `logs`.
    out: Path
    #: `model.tar.gz`, as SageMaker uploads it, and what is in it; None where the job left no model.
    model_archive: Path | None = None
    model: Path | None = None
    #: The content of `/opt/ml/output` of all hosts, with the failure file.
    output: Path | None = None
    checkpoints: Path
    #: By name, in the order logged.
    metrics: Mapping[str, Curve] = {}
    #: The selected values, from the line `[metrics] final …`.
    final_metrics: Mapping[str, float] = {}


def outcome_of(record: JobRecord, out: Path) -> JobOutcome:
    """Return the outcome of a job whose record is written.

    Args:
        record: Of the attempt.
        out: The directory of the result.
    """
    is_kept = record.result == record.attempt
    output = out / (OUTPUT if is_kept else f"{OUTPUT}.attempt-{record.attempt}")
    return JobOutcome(
        job_name=record.job_name,
        attempt=record.attempt,
        status=record.status,
        secondary_status=record.secondary_status,
        failure_reason=record.failure_reason,
        exit_code=record.exit_code or 0,
        out=out,
        model_archive=out / record.model.archive if record.model is not None else None,
        model=out / MODEL if record.model is not None else None,
        output=output if output.is_dir() else None,
        checkpoints=out / "checkpoints",
        metrics=record.metrics,
        final_metrics=record.final,
    )
