"""The directory of a result: may this run have it, whose is it now, and where the logs of earlier attempts go."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainbox.errors import RunError
from trainbox.files import open_regular, remove_tree
from trainbox.local.results.record import FILE_NAME, WORK, JobRecord, read_record

#: All that a run which was killed leaves before its first record is whole.
_UNBORN = frozenset({f".{FILE_NAME}.part"})
#: What a first attempt leaves when it is killed; a torn record among these is nothing to protect.
_FIRST = frozenset({*_UNBORN, FILE_NAME, WORK, "checkpoints", "logs"})
_END_BYTES = 64 * 1024


def read_previous(out: Path, *, resume: bool) -> JobRecord | None:
    """The record of the attempt before this one, or None where this is the first.

    Raises:
        RunError: The directory cannot be used, holds something else, or holds a result that nobody asked to resume.
    """
    _check_writable(out)
    record = read_record(out)
    if record is None and out.is_dir() and not _is_free({path.name for path in out.iterdir()}):
        raise RunError(f"{out} holds something else than a result of trainbox run", hint="give another --out")
    if record is not None and not resume:
        raise RunError(
            f"{out} holds the result of job {record.job_name!r} ({record.status})",
            hint="--resume starts its next attempt on the same checkpoints, --overwrite a new job in its place;"
            " another --out or --job-name keeps both",
        )
    return record


def _is_free(names: set[str]) -> bool:
    return names <= _UNBORN or (FILE_NAME in names and names <= _FIRST)


def _check_writable(out: Path) -> None:
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not existing.is_dir():
        raise RunError(f"{out} cannot be the result's directory: {existing} is no directory", hint="give another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"{out} cannot be written: no permission in {existing}", hint="give another --out")


@contextmanager
def claimed(out: Path, previous: JobRecord | None) -> Iterator[None]:
    """Keep every other `trainbox run` away from a directory; the lock ends with this process, however it ends.

    Raises:
        RunError: Another run has it, or had it since the request was read.
    """
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # for its user alone, with any umask
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error.strerror}", hint="give another --out") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another trainbox run is at work in {out}", hint="wait for it, or give another --out"
            ) from None
        if read_record(out) != previous:
            raise RunError(f"another trainbox run has just used {out}", hint="start this one again")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(directory: Path) -> Iterator[int]:
    """Give a descriptor for hosts to inherit: the directory is held until this block and all of them have ended."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(directory: Path) -> bool:
    """Whether hosts that have inherited such a descriptor live."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def keep_earlier_logs(out: Path, attempt: int) -> None:
    """`logs/HOST.log` of the attempt before this one becomes `logs/HOST.attempt-N.log`.

    Raises:
        RunError: No permission.
    """
    for path in sorted((out / "logs").glob("*.log")):
        if ".attempt-" not in path.name:
            try:
                path.rename(path.with_name(f"{path.stem}.attempt-{attempt - 1}.log"))
            except OSError as error:
                raise RunError(f"{path} cannot be renamed: {error.strerror}") from error


def logs_of_last(out: Path, attempt: int) -> dict[str, Path]:
    """The logs of the attempt that ran last, by host; a kill may have come between their new names and its record."""
    renamed = f".attempt-{attempt}.log"
    return {
        path.name.removesuffix(renamed).removesuffix(".log"): path
        for path in sorted((out / "logs").glob("*.log"))
        if path.name.endswith(renamed) or ".attempt-" not in path.name
    }


def last_bytes(log: Path) -> bytes:
    """The end of a log, in which a host says how it ended; nothing where there is no such file any more."""
    with suppress(OSError), os.fdopen(open_regular(log), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        return file.read()
    return b""


def remove(path: Path) -> None:
    """Remove a tree of ours, however a script has nested it, or taken the permission to do so away."""
    if path.is_symlink() or path.exists():
        remove_tree(path)
