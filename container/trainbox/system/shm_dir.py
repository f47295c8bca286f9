"""Directories that last as long as a process: in memory for what the processes of a job tell each other, or on disk.

A process that is killed leaves its own behind; the next one removes them.
"""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainbox.files import remove_tree

#: Memory: what ranks write there at every step must not wait for a disk.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the name is unique, and whoever makes it insists that it is new
_DISK = Path("/tmp")  # noqa: S108 - likewise
#: Before the id of the supervisor's process.
PREFIX = "trainbox-scratch-"


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Give the path of a directory that `supervise` makes if the plan asks for it; it is removed at the end.

    Those of supervisors that were killed are removed, too.
    """
    remove_abandoned()
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else _DISK
    path = parent / f"{PREFIX}{os.getpid()}-{time.time_ns():x}"
    try:
        yield path
    finally:
        if path.exists():
            _remove(path)


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Give a directory on the disk of the temporary files, which is removed at the end.

    Those of processes that were killed are removed, too.

    Args:
        prefix: Of its name, and of the others.

    Raises:
        OSError: It cannot be made.
    """
    import tempfile  # noqa: PLC0415 - five milliseconds of a supervisor's start, which needs none of it

    parent = Path(tempfile.gettempdir())
    remove_abandoned([parent], prefix)
    path = parent / f"{prefix}{os.getpid()}-{time.time_ns():x}"
    lock = make_scratch(path)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def make_scratch(path: Path) -> int:
    """Make the directory, locked (flock(2)) until this process ends, however it ends: its owner lives.

    The lock tells the truth across process namespaces, where a process id does not. Between the two steps another
    supervisor may take the directory for an abandoned one: then it is made again.

    Returns:
        The descriptor that holds the lock.

    Raises:
        OSError: It cannot be made, or exists.
    """
    while True:
        path.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(path, lock):
                return lock
            os.close(lock)


def remove_abandoned(parents: Sequence[Path] = (_MEMORY, _DISK), prefix: str = PREFIX) -> None:
    """Remove the directories whose owners have died; one that cannot be locked or is another user's stays."""
    for parent in parents:
        with contextlib.suppress(OSError):
            for name in os.listdir(parent):  # noqa: PTH208 - names: no job should wait for the rest
                if name.startswith(prefix):
                    _remove_if_abandoned(parent / name)


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid() and _is_at(path, lock):
                _remove(path)
        finally:
            os.close(lock)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open directory still has its name."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.path.samestat(found, os.fstat(descriptor))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        remove_tree(path)
