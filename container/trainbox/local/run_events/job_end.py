"""Pure: how the hosts ended becomes what SageMaker would call it, and the exit code of `trainbox run`."""

import msgspec

from trainbox.local.backends.hosts import Ended, StopReason
from trainbox.local.results.record import SecondaryStatus, Status

#: API DescribeTrainingJob: FailureReason.
LONGEST_REASON = 1024


class JobEnd(msgspec.Struct, frozen=True):
    """The end of a job, in SageMaker's words."""

    status: Status
    secondary_status: SecondaryStatus
    exit_code: int
    failure_reason: str | None = None


def conclude(
    ended: Ended, failure: str, *, interrupt_exit_code: int | None = None, was_stopped: bool = False
) -> JobEnd:
    """Name the end of a job.

    Args:
        ended: How the hosts ended.
        failure: What the host that failed wrote into `output/failure`.
        interrupt_exit_code: 130 after Ctrl-C, 143 after SIGTERM.
        was_stopped: Whether somebody else has stopped a host: the hosts have left well, and not trained to the end.
    """
    codes = {host.name: host.exit_code for host in ended.hosts}
    if ended.failed is not None:
        code = codes[ended.failed]
        reason = failure_reason(failure, code)
        return JobEnd("Failed", "Failed", interrupt_exit_code or code, reason)
    if ended.stop is None:
        return JobEnd("Stopped", "Stopped", 0) if was_stopped else JobEnd("Completed", "Completed", 0)
    # SageMaker ignores how a stopped container leaves. A person who drills the stop wants to know: 0 only if all did.
    code = next((code for code in codes.values() if code), 0)
    return JobEnd("Stopped", _secondary(ended.stop), interrupt_exit_code or code)


def _secondary(stop: StopReason) -> SecondaryStatus:
    return "MaxRuntimeExceeded" if stop == "max-run" else "Stopped"


def failure_reason(failure: str, exit_code: int) -> str:
    """`FailureReason`: whose fault it is, the failure file, the exit code; 1,024 characters in all.

    SageMaker writes `AlgorithmError: ` before every failure file; here it is left out where the file says itself whose
    fault it is.
    """
    failure = failure.strip()
    before = "" if failure.startswith(("ClientError: ", "AlgorithmError: ")) else "AlgorithmError: "
    after = f", exit code: {exit_code}"
    return before + failure[: LONGEST_REASON - len(before) - len(after)] + after
