"""`job.json`: what became of a job, written whole, read back by the next attempt."""

import re
from pathlib import Path
from typing import Literal

import msgspec

from trainbox import atomic_write
from trainbox.errors import RunError
from trainbox.files import permission_hint, read_regular

FILE_NAME = "job.json"
#: Below the result's directory: the trees of the hosts while they run.
WORK = ".trainbox"
#: A result that is whole, on its way to its place: its record counts already.
COMMITTED = f"{WORK}/committed"
#: Ten million values of metrics.
_LARGEST_BYTES = 1024**3
_EARLIER = re.compile(r"job\.attempt-(\d+)\.json")

#: API DescribeTrainingJob: TrainingJobStatus and SecondaryStatus, those a local job can have.
Status = Literal["InProgress", "Completed", "Failed", "Stopped"]
SecondaryStatus = Literal["Training", "Completed", "Failed", "Stopped", "MaxRuntimeExceeded"]


class Seconds(msgspec.Struct, frozen=True):
    """How long each phase took."""

    prepare: float = 0.0
    train: float = 0.0
    collect: float = 0.0


class HostRecord(msgspec.Struct, frozen=True):
    """How one host ended; `log` is relative to the result's directory."""

    name: str
    exit_code: int
    log: str


class ModelRecord(msgspec.Struct, frozen=True):
    """The archive SageMaker would upload, relative to the result's directory."""

    archive: str
    bytes: int
    files: int


class Clash(msgspec.Struct, frozen=True):
    """A file that hosts wrote with different content: whose kept the name, and under which names the others lie."""

    path: str
    kept: str
    others: tuple[str, ...]


class Curve(msgspec.Struct, frozen=True):
    """The values of one metric, in the order logged."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


class Attempt(msgspec.Struct, frozen=True):
    """One start of the job; SageMaker's spot restarts are attempts of one job, too."""

    attempt: int
    started: str
    status: Status
    secondary_status: SecondaryStatus
    exit_code: int | None
    seconds: Seconds


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `trainbox run` knows about a job; no value whose name says secret is in it."""

    job_name: str
    status: Status = "InProgress"
    secondary_status: SecondaryStatus = "Training"
    #: Of `trainbox run` itself: 0, the code of the host that failed first, 130 after Ctrl-C.
    exit_code: int | None = None
    failure_reason: str | None = None
    attempt: int
    started: str
    seconds: Seconds = Seconds()
    script: str
    hyperparameters: dict[str, str] = {}
    environment: dict[str, str] = {}
    channels: dict[str, str] = {}
    hosts: tuple[HostRecord, ...] = ()
    #: The attempt whose model, archive and output lie in the directory: not this one where this one ended worse.
    result: int | None = None
    model: ModelRecord | None = None
    clashes: tuple[Clash, ...] = ()
    #: By name, over all attempts: what an earlier one logged beyond the step the next began at is left out.
    metrics: dict[str, Curve] = {}
    #: The selected values, from the line `[metrics] final …`.
    final: dict[str, float] = {}
    earlier_attempts: tuple[Attempt, ...] = ()

    def as_attempt(self) -> Attempt:
        """This record, shortened, for the next attempt's `earlier_attempts`."""
        return Attempt(
            attempt=self.attempt,
            started=self.started,
            status=self.status,
            secondary_status=self.secondary_status,
            exit_code=self.exit_code,
            seconds=self.seconds,
        )


def read_record(directory: Path) -> JobRecord | None:
    """Return the record in a result's directory; None where there is none, or only a torn one.

    Where the file is torn, as after a power failure, the record of the attempt before counts.

    Raises:
        RunError: The file is not a record of ours.
    """
    try:
        return _read(directory / COMMITTED / FILE_NAME) or _read(directory / FILE_NAME)
    except (ValueError, RecursionError):  # torn within a character it is no DecodeError
        earlier = _earlier_records(directory)
        return _read(earlier[-1]) if earlier else None


def _read(path: Path) -> JobRecord | None:
    try:
        return msgspec.json.decode(read_regular(path, _LARGEST_BYTES), type=JobRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", hint=permission_hint(error)) from error
    except msgspec.ValidationError as error:
        raise RunError(f"{path} is no record of a job: {error}", hint="give another --out") from error


def _earlier_records(directory: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _EARLIER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def keep_record(record: JobRecord, directory: Path) -> None:
    """Write the record of an attempt as `job.attempt-N.json`, before `job.json` becomes that of the next."""
    write_record(record, directory, name=f"job.attempt-{record.attempt}.json")


def write_record(record: JobRecord, directory: Path, *, name: str = FILE_NAME) -> None:
    """Write `job.json`, whole or not at all: one key a line, so that a curve of 10,000 values is no 10,000 lines."""
    fields = msgspec.json.decode(msgspec.json.encode(record), type=dict[str, msgspec.Raw])
    lines = [b" " + msgspec.json.encode(name) + b": " + bytes(value) for name, value in fields.items()]
    write_whole(directory / name, b"{\n" + b",\n".join(lines) + b"\n}\n")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its name never shows a half of it.

    Raises:
        RunError: It cannot be written, for want of space or permission.
    """
    try:
        atomic_write.write(path, content)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}", hint="free some space or give another --out"
        ) from error
