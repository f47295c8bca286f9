"""The user's source: which files belong to it, and their copy for one host, as the cloud would unpack it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from trainbox.errors import RunError

#: What no job needs: version control, caches, and the results of earlier runs.
LEFT_OUT = frozenset(
    {
        *(".git", ".hg", ".svn", "trainbox-out", "node_modules", "__pycache__", ".ipynb_checkpoints"),
        *(".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    }
)
#: Far above any source, far below a data set that lies beside it by accident.
LARGEST_BYTES = 1024**3


class Source(msgspec.Struct, frozen=True):
    """A directory of source, and the files in it (relative, sorted) that go to the hosts."""

    directory: Path
    files: tuple[str, ...]
    bytes: int


def survey(directory: Path, *, leave_out: Path, limit: int = LARGEST_BYTES) -> Source:
    """List the files of a source directory, without caches, virtual environments and `leave_out`.

    Raises:
        RunError: It holds more than any source does: a home directory, or data beside the script.
    """
    files, size = [], 0
    for path in walk(directory, leave_out):
        files.append(path.relative_to(directory).as_posix())
        size += path.lstat().st_size
        if size > limit:
            raise RunError(
                f"the source directory {directory} holds more than {limit / 1e9:.1f} GB, and each host gets a copy",
                hint="put the script into a directory of its own, and pass data as a --channel",
            )
    return Source(directory=directory, files=tuple(sorted(files)), bytes=size)


def walk(directory: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """The files and links of a source directory, in no order.

    Raises:
        RunError: A directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise RunError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, directories, names in os.walk(directory, onerror=refuse):
        here = Path(parent)
        links = [name for name in directories if (here / name).is_symlink()]
        directories[:] = [
            name
            for name in directories
            if name not in LEFT_OUT
            and name not in links
            and here / name != leave_out
            and not (here / name / "pyvenv.cfg").exists()
            and not _is_result(here / name)
        ]
        for name in (*names, *links):
            path = here / name
            # A socket or a FIFO is no source, and reading it could take for ever.
            if path.is_symlink() or path.is_file():
                yield path


def _is_result(directory: Path) -> bool:
    """Whether an earlier run or search left its result here: models and logs are no source."""
    is_job = (directory / "job.json").is_file() and (directory / "logs").is_dir()
    return is_job or (directory / "tuning.json").is_file()


def copy_source(source: Source, target: Path) -> None:
    """Copy the files for one host; a link that leads out of the source leads to the same place from the copy."""
    target.mkdir(parents=True, exist_ok=True)
    for name in source.files:
        original, copy = source.directory / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original.is_symlink():
            inside = original.resolve().is_relative_to(source.directory.resolve())
            copy.symlink_to(original.readlink() if inside else original.resolve())
        else:
            shutil.copy2(original, copy)
