"""Files that somebody else has put there: opened without following links, read up to a limit, removed at any depth.

What a job leaves may be made to harm whoever looks at it: a link to another file, a FIFO that nobody writes to, a tree
that is nested deeper than Python calls, a program that runs as its owner.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Without O_NONBLOCK the open of a FIFO waits for somebody who writes.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_CHUNK_BYTES = 1024 * 1024


def open_regular(path: Path | str, *, directory: int | None = None) -> int:
    """Open a regular file to read; a link, a FIFO, a socket, a device or a directory is refused.

    Args:
        path: Where it is. Links on the way there are followed: `read_below` follows none.
        directory: An open directory that a relative path begins at.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, _READ, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return descriptor


def read_regular(path: Path, most: int) -> bytes:
    """Return the first `most` bytes of a regular file.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    return _read(open_regular(path), most)


def read_below(root: Path, place: str, most: int) -> bytes:
    """Return the first `most` bytes of a regular file below a directory; no link on the way there is followed.

    Args:
        root: A directory of ours.
        place: Relative to it: all of this may be somebody else's.
        most: The rest of a longer file is left out.

    Raises:
        OSError: It cannot be read, is no regular file, or a link leads to it.
    """
    *above, name = PurePosixPath(place).parts
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in above:
            there = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = there
        return _read(open_regular(name, directory=here), most)
    finally:
        os.close(here)


def _read(descriptor: int, most: int) -> bytes:
    found = bytearray()
    try:
        while len(found) < most and (chunk := os.read(descriptor, min(_CHUNK_BYTES, most - len(found)))):
            found += chunk
    finally:
        os.close(descriptor)
    return bytes(found)


def permission_hint(error: OSError) -> str:
    """Return what to do about a file that may not be used; empty if that is not why it cannot be."""
    return f"allow uid {os.geteuid()} to use it" if error.errno in (errno.EACCES, errno.EPERM) else ""


def walk_below(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a directory with what lstat(2) says of it, a directory before its entries; follows no link.

    Raises:
        OSError: A directory cannot be read, or its path is longer than Linux allows.
    """
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                path = Path(entry.path)
                yield path, found
                if stat.S_ISDIR(found.st_mode):
                    pending.append(path)


def disarm(root: Path) -> None:
    """Take the set-user-ID and set-group-ID bits from all files below a directory, and open directories closed to us.

    The bits of a directory are no right, only the group of what is made in it.

    Raises:
        OSError: Something is somebody else's, or cannot be read.
    """
    for path, found in walk_below(root):
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISREG(found.st_mode) and mode & _SET_IDS:
            path.chmod(mode & ~_SET_IDS)
        elif stat.S_ISDIR(found.st_mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            path.chmod(mode | stat.S_IRWXU)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is below it, however deep, and however its permissions were set.

    Each directory is reached from the one above, so no path is too long; only one is open at a time.

    Raises:
        OSError: Something cannot be removed, or is being moved meanwhile.
    """
    here = _enter(str(path), None)
    #: The name of each directory on the way here, the one above it, and what else is to be removed in that.
    above: list[tuple[str, os.stat_result, list[str]]] = []
    try:
        left = _remove_files(here)
        while left or above:
            if left:
                name, found = left.pop(), os.fstat(here)
                here = _replace(here, _enter(name, here))
                above.append((name, found, left))
                left = _remove_files(here)
            else:
                name, found, left = above.pop()
                here = _replace(here, os.open("..", _DIRECTORY, dir_fd=here))
                if not os.path.samestat(found, os.fstat(here)):
                    raise OSError(errno.ESTALE, "was moved while it was removed", str(path))
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)
    path.rmdir()


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _enter(name: str, directory: int | None) -> int:
    """Open a directory, and give us back what a script has taken from us."""
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=directory)
        descriptor = os.open(name, _DIRECTORY, dir_fd=directory)
    if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(PermissionError):  # not ours; perhaps it need not be
            os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor


def _remove_files(directory: int) -> list[str]:
    """Remove what is no directory; the names of those that are."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory]


def keep_out_of_git(directory: Path) -> None:
    """Make a directory whose content git ignores, as the caches of pytest and mypy; what is there already stays."""
    with contextlib.suppress(OSError):  # whoever writes below it says why it cannot be written
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".gitignore").open("x") as file:
            file.write("*\n")
