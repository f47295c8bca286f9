"""Report how a job ended: the last lines of its log, its failure file and its exit code."""

import contextlib
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.ending import ending
from trainbox.contract.failures.failure import (
    Mark,
    compose,
    hide_in_failure,
    mark_failure,
    release_failure,
    write_failure,
)
from trainbox.contract.job import Job
from trainbox.contract.layout import Layout
from trainbox.errors import PREFIX
from trainbox.files import walk_below
from trainbox.log_lines import emit
from trainbox.supervisor.outcome import Outcome
from trainbox.supervisor.program.choice import Program

if TYPE_CHECKING:
    from trainbox.diagnostics.verdict import Verdict


def report(outcome: Outcome, verdict: "Verdict | None", program: Program, job: Job) -> Diagnosis | None:
    """Log how the job ended; return the diagnosis of a failed one."""
    if not outcome.ends_line:
        _begin_line()
    for reason in outcome.lost_output:
        emit(f"output was lost: {reason}")
    if outcome.leftovers:
        emit(f"ended {outcome.leftovers} process(es) that the script had left behind")
    if not job.has_checkpoint_config and job.name and (lost := _count(job.checkpoints_dir)[0]):
        emit(
            f"WARNING: {lost} checkpoint file(s) in {job.checkpoints_dir} are not uploaded: the request has no"
            " CheckpointConfig (checkpoint_s3_uri of the SDK v2)"
        )
    files, size = _count(job.layout.model_dir)
    diagnosis = _diagnose(outcome, verdict, program, job)
    code = diagnosis.exit_code if diagnosis else exit_code(outcome, job)
    emit(ending(code, outcome.seconds, outcome.stopped_by, files=files, size=size))
    if diagnosis:
        return diagnosis
    with contextlib.suppress(OSError):
        release_failure(job.layout.failure_file)
    if not outcome.stopped_by and not files and job.is_first_host:
        emit(f"WARNING: {job.layout.model_dir} is empty: the job will have no model. Save it to trainbox.model_dir()")
    return None


def exit_code(outcome: Outcome, job: Job) -> int:
    """Return the exit code of a job that has not failed."""
    return job.settings.stop_exit_code if outcome.stopped_by else 0


def _diagnose(outcome: Outcome, verdict: "Verdict | None", program: Program, job: Job) -> Diagnosis | None:
    if not outcome.code:
        return None
    from trainbox.supervisor import failure_reason as reason  # noqa: PLC0415 - it knows tracebacks by many expressions

    return reason.diagnose(outcome, job, program.directory, verdict)


def _begin_line() -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write("\n")
        sys.stderr.flush()


def _count(directory: Path) -> tuple[int, int]:
    """Count the files below a directory and their bytes, without those that cannot be read."""
    sizes: list[int] = []
    with contextlib.suppress(OSError):
        for _, found in walk_below(directory):
            if not stat.S_ISDIR(found.st_mode):
                sizes.append(found.st_size)
    return len(sizes), sum(sizes)


def fail(
    diagnosis: Diagnosis, layout: Layout, hidden: tuple[str, ...], earlier: Mark | None, outcome: Outcome | None
) -> int:
    """Write the failure file unless the script has, and end the log with the same text; return the exit code.

    Where the script has logged the same text (`errors.end_as_declared`) it is not logged again.

    Args:
        diagnosis: Why the job has failed.
        layout: Where its files are.
        hidden: Values to leave out.
        earlier: The failure file that was there when this job began.
        outcome: How the script ended, where it was started.
    """
    text = compose(diagnosis, hidden)
    try:
        # EventBridge rules match how it begins, so ours comes before what the script has written.
        is_hardware = diagnosis.kind == "hardware"
        is_ours = write_failure(layout.failure_file, text, before=is_hardware, earlier=earlier)
        # What the script has written there, or what ours was put before.
        found = hide_in_failure(layout.failure_file, hidden)
        if not is_ours:
            emit(f"{layout.failure_file} was written by the script and stays as it is; seen from here: {text}")
            text = found
    except OSError as error:
        is_stale = earlier is not None and earlier == mark_failure(layout.failure_file)
        stale = " and still holds the reason of an earlier job" if is_stale else ""
        emit(f"{layout.failure_file} cannot be written{stale}: {error.strerror}")
    words = f"FAILED: {text}"
    if outcome is None or not _has_said(outcome, words.partition("\n")[0]):
        emit(words)
    return diagnosis.exit_code


def _has_said(outcome: Outcome, words: str) -> bool:
    """Whether the process that failed first ended its log with this line."""
    failure = outcome.first_failure
    return failure is not None and f"{PREFIX}{words}\n" in failure.stderr
