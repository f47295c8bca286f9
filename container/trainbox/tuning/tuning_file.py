"""`tuning.json`: written whole, read back by `--resume` and `--warm-start`; and who has its directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from trainbox.errors import RunError
from trainbox.files import read_regular
from trainbox.local.results.folder import remove
from trainbox.local.results.record import write_whole
from trainbox.tuning.records import TuningRecord

FILE_NAME = "tuning.json"
#: Of the directories of trials.
TRIAL = "trial-"
VERSION = 1
#: Thousands of trials.
_LARGEST_BYTES = 256 * 1024**2


def read_tuning(directory: Path) -> TuningRecord | None:
    """Return the record of the tuning job in a directory; None where there is none.

    Raises:
        RunError: The file cannot be read, or is not a record of ours.
    """
    path = directory / FILE_NAME
    try:
        record = msgspec.json.decode(read_regular(path, _LARGEST_BYTES), type=TuningRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not the record of a tuning job: {error}", hint="give another --out") from error
    if record.version != VERSION:
        raise RunError(f"{path} has the format {record.version}, expected {VERSION}", hint="give another --out")
    return record


def write_tuning(record: TuningRecord, directory: Path) -> None:
    """Write `tuning.json`, whole or not at all: one trial a line.

    Raises:
        RunError: It cannot be written.
    """
    fields = msgspec.json.decode(msgspec.json.encode(record), type=dict[str, msgspec.Raw])
    trials = b",\n  ".join(map(msgspec.json.encode, record.trials))
    lines = [
        b" " + msgspec.json.encode(name) + b": " + (b"[\n  " + trials + b"\n ]" if name == "trials" else bytes(value))
        for name, value in fields.items()
    ]
    write_whole(directory / FILE_NAME, b"{\n" + b",\n".join(lines) + b"\n}\n")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep every other `trainbox tune` away from a directory; the lock ends with this process, however it ends.

    Raises:
        RunError: The directory cannot be made, or another tuning job has it.
    """
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error.strerror}", hint="give another --out") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(
            f"another trainbox tune is at work in {out}", hint="wait for it, or give another --out"
        ) from None
    finally:
        os.close(descriptor)


def remove_tuning(out: Path) -> None:
    """Remove a tuning job with its trials; its record goes last, so that what a kill leaves can be overwritten again.

    Raises:
        RunError: Something of it cannot be removed.
    """
    try:
        for path in sorted(out.glob(f"{TRIAL}*[0-9]")):
            remove(path)
        for path in (out / "report.html", out / FILE_NAME):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{error.filename or out} cannot be removed: {error.strerror}") from error
