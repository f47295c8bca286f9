"""The events of a job: typed values, sent in order to the listener of `run_job`."""

from pathlib import Path
from typing import Literal, Protocol

import msgspec

from trainbox.diagnostics.finding import Finding
from trainbox.local.results.outcome import JobOutcome

#: API DescribeTrainingJob: TrainingJobStatus and SecondaryStatus, with those of a job that runs.
JobStatus = Literal["InProgress", "Stopping", "Completed", "Failed", "Stopped"]
SecondaryJobStatus = Literal[
    "Starting",
    "Downloading",
    "Training",
    "Stopping",
    "Uploading",
    "Completed",
    "Failed",
    "Stopped",
    "MaxRuntimeExceeded",
]


class JobStarted(msgspec.Struct, frozen=True):
    """The job starts; the first event."""

    job_name: str
    attempt: int
    #: The directory of the result.
    out: Path
    #: The names of all hosts.
    hosts: tuple[str, ...]


class StatusChanged(msgspec.Struct, frozen=True):
    """The job enters another phase, named as DescribeTrainingJob names it."""

    status: JobStatus
    secondary_status: SecondaryJobStatus


class HostStarted(msgspec.Struct, frozen=True):
    """A host was started."""

    host: str


class LinesWritten(msgspec.Struct, frozen=True):
    """A host wrote lines; `data` holds whole lines, except for lines above 1 MiB and the last one."""

    host: str
    data: bytes

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines as text, without their newlines."""
        return tuple(self.data.decode(errors="replace").removesuffix("\n").split("\n"))


class MetricLogged(msgspec.Struct, frozen=True):
    """A line has the value of a metric; `step` is None for a final value (`[metrics] final …`)."""

    host: str
    name: str
    value: float
    step: int | None


class FindingReported(msgspec.Struct, frozen=True):
    """A health check of the job reported a finding."""

    host: str
    finding: Finding


class NoteGiven(msgspec.Struct, frozen=True):
    """A choice made for the user, or a warning, in one sentence."""

    text: str


class TimePassed(msgspec.Struct, frozen=True):
    """About 0.1 s passed while the hosts run; a display can be redrawn."""


class HostFinished(msgspec.Struct, frozen=True):
    """A host ended, and all its output was sent; `reason` is set if it could not report the reason itself."""

    host: str
    exit_code: int
    reason: str = ""


class JobFinished(msgspec.Struct, frozen=True):
    """The job ended, and its record and result are written; the last event."""

    outcome: JobOutcome


Event = (
    JobStarted
    | StatusChanged
    | HostStarted
    | LinesWritten
    | MetricLogged
    | FindingReported
    | NoteGiven
    | TimePassed
    | HostFinished
    | JobFinished
)


class Listener(Protocol):
    """Receives the events of a job, in the thread that runs it."""

    def on_event(self, event: Event) -> None:
        """Handle one event; an exception ends the job."""


class SilentListener:
    """A listener that ignores all events."""

    def on_event(self, event: Event) -> None:
        """Do nothing."""
