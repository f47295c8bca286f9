"""What a job tells while it runs: typed events, in order, to the listener that `run_job` was given."""

from pathlib import Path
from typing import Literal, Protocol

import msgspec

from trainbox.contract.finding import Finding
from trainbox.workbench.outcome import JobOutcome

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
    """A job begins: the first event."""

    job_name: str
    attempt: int
    #: The directory of the result.
    out: Path
    #: The names of all hosts.
    hosts: tuple[str, ...]


class StatusChanged(msgspec.Struct, frozen=True):
    """The job has come to another phase, in SageMaker's words."""

    status: JobStatus
    secondary_status: SecondaryJobStatus


class HostStarted(msgspec.Struct, frozen=True):
    """A host runs."""

    host: str


class LinesWritten(msgspec.Struct, frozen=True):
    """A host has written lines; `data` has them whole, but for a line of more than 1 MiB and the last one."""

    host: str
    data: bytes

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines as text, without their newlines."""
        return tuple(self.data.decode(errors="replace").removesuffix("\n").split("\n"))


class MetricLogged(msgspec.Struct, frozen=True):
    """A metric was found in a line; `step` is None for a selected value (`[metrics] final …`)."""

    host: str
    name: str
    value: float
    step: int | None


class FindingReported(msgspec.Struct, frozen=True):
    """A health check of the job has found something."""

    host: str
    finding: Finding


class NoteGiven(msgspec.Struct, frozen=True):
    """A choice that was made, or something a person should know, in one sentence."""

    text: str


class TimePassed(msgspec.Struct, frozen=True):
    """A moment has passed in which the hosts run: a display can be drawn anew."""


class HostEnded(msgspec.Struct, frozen=True):
    """A host has ended, and nothing more comes from it; `reason` says why, as far as it could not say so itself."""

    host: str
    exit_code: int
    reason: str = ""


class JobEnded(msgspec.Struct, frozen=True):
    """The job has ended, and its record and result are written: the last event."""

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
    | HostEnded
    | JobEnded
)


class Listener(Protocol):
    """Hears the events of a job, in the thread that runs it."""

    def on_event(self, event: Event) -> None:
        """Something has happened; what this raises ends the job."""


class NobodyListens:
    """A listener that hears nothing."""

    def on_event(self, event: Event) -> None:
        """Nothing is done."""
