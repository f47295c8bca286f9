"""The directory of one checkpoint, as files: list them, lock it against other processes, remove it."""

import fcntl
import os
import shutil
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

from trainbox.checkpoint.manifest import MANIFEST, NOT_UPLOADED, UPLOADED, UPLOADING
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit


def walk(root: Path) -> tuple[list[Path], list[Path]]:
    """All directories and plain files of a tree, but for the marks of SageMaker's agent; a link is an error."""
    directories, files = [root], []
    for directory in directories:  # grows while it is walked
        for path in sorted(directory.iterdir()):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                directories.append(path)
            elif not stat.S_ISREG(mode):
                raise CheckpointError(
                    f"{path} is neither a plain file nor a directory", hint="copy the file, do not link it"
                )
            elif path == root / MANIFEST:
                raise CheckpointError(f"a checkpoint must not bring a {MANIFEST} of its own", hint="use another name")
            elif not path.name.endswith((UPLOADING, UPLOADED, NOT_UPLOADED)):
                files.append(path)
    return directories, files


def lock(directory: Path, stack: ExitStack) -> bool | None:
    """Lock a directory until the stack ends: True if ours, False if another's or gone, None if nobody can tell.

    The kernel frees the lock of a process that dies, and the lock follows a rename. A process id in the name would
    not do: in containers the same few ids come again after each restart.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # e.g. NFS, which locks no directories
        return None
    return True


def is_being_uploaded(directory: Path) -> bool:
    """Whether SageMaker's agent is reading one of the files: it should not vanish under its hands."""
    marks = {str(path) for path in directory.rglob("*.sagemaker-upload*")}
    return any(mark.removesuffix(UPLOADING) + UPLOADED not in marks for mark in marks if mark.endswith(UPLOADING))


def remove(path: Path) -> None:
    """Remove a checkpoint; log it if something of it is left."""
    with suppress(OSError):
        (path / MANIFEST).unlink()  # first: what is left without it counts for nothing
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        emit(f"cannot remove all of {path}; it takes space but does no harm")
