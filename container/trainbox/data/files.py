"""The data files of a channel, in the order in which they are read; or its pipe.

In Pipe mode SageMaker streams the files of a channel, joined, through a FIFO `<path>_0`; one more for each epoch. The
first is read to its end, once. The others are never opened: SageMaker fills a pipe when it is opened, not before.
"""

import io
import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainbox.contract.text import printable, short, some
from trainbox.data.formats.byte_stream import ByteStream, translate_read_errors
from trainbox.data.resource_errors import translate_resource_errors
from trainbox.errors import DataError
from trainbox.log_lines import emit

_DEEPEST = 100
_POLL_SECONDS = 0.1


def find_files(channel_dir: Path) -> tuple[Path, ...]:
    """Return the data files below a channel's directory, sorted by their relative path.

    The order of the paths is the order of the rows, independent of the file system: with sampling, a model depends on
    it. Files that other programs write next to the data are skipped, with a log line: manifests, hidden files,
    and names that begin with `_` (Spark's `_SUCCESS` and `_temporary`, Delta's `_delta_log`).

    Args:
        channel_dir: The channel's directory, or one file.

    Raises:
        DataError: There is no such directory; a link is broken or circular; a FIFO is among the files.
    """
    data, notes = list_files(channel_dir)
    for note in notes:
        emit(note)
    return data


def list_files(channel_dir: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the data files, and notes for the log."""
    shown = short(str(channel_dir), 200)
    try:
        with translate_resource_errors(shown):
            return _list_files(channel_dir)
    except OSError as error:  # a name too long for Linux, a folder that may not be read
        raise DataError(f"{shown} cannot be listed: {error.strerror}", hint="check the channel's path") from error


def _list_files(channel_dir: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    if channel_dir.is_file():
        return (channel_dir,), ()
    if not channel_dir.is_dir():
        pipe = Path(f"{channel_dir}_0").exists()
        raise DataError(
            f"{channel_dir} is not a directory" + (": the channel is in Pipe mode" if pipe else ""),
            hint="read the job's own Channel (current_job().channels), or use input mode File or FastFile"
            if pipe
            else "check the channel's name and path",
        )
    found = sorted(_walk(channel_dir, ()), key=lambda path: path.relative_to(channel_dir).as_posix())
    data = tuple(path for path in found if not _is_marker(path.relative_to(channel_dir)))
    names = [path.relative_to(channel_dir) for path in found]
    ignored = [printable(name.as_posix()) for name in names if _is_marker(name)]
    text = f"{channel_dir.name}: ignored {some(ignored)} (not data: hidden, *-manifest, or a name that begins with _)"
    return data, (text,) if ignored else ()


def display_path(path: Path, channel_dir: Path) -> str:
    """Return the path of a file from the channel's name on, for messages, as printable text."""
    below = "" if path == channel_dir else f"/{path.relative_to(channel_dir).as_posix()}"
    return printable(f"{channel_dir.name}{below}")


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield every file below `folder`, through links too: the rows of a linked folder would be lost silently."""
    if len(above) > _DEEPEST:
        raise DataError(f"{above[0]} has more than {_DEEPEST} folders within each other", hint="put the files higher")
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder} links back to {real}, which contains it", hint="remove the link")
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.is_file():
            yield entry
        else:
            raise DataError(f"{entry} is not a file that can be read (a broken link or a pipe)", hint="remove it")


def _is_marker(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts) or path.name.endswith("-manifest")


def first_pipe(path: Path) -> Path:
    """Return the FIFO of the first epoch of a channel."""
    return Path(f"{path}_0")


@contextmanager
def open_pipe(path: Path, shown: str, timeout: float) -> Iterator[ByteStream]:
    """Open a FIFO, or a regular file of the same name.

    Args:
        path: The FIFO.
        shown: Its name in messages.
        timeout: Seconds to wait for the FIFO to appear, and then for a writer. There is no limit between two bytes:
            a writer may be slow, and the end of one ends the stream.

    Raises:
        DataError: It does not appear, or nobody writes to it.
    """
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: the pipe of the channel did not appear within {timeout:g} s",
                hint="is the channel in Pipe mode? A pipe can be read once: has another process taken it away?",
            )
        time.sleep(_POLL_SECONDS)
    with translate_read_errors(shown):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with io.FileIO(descriptor, "rb") as raw:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                _await_writer(descriptor, path, timeout)
                os.set_blocking(descriptor, True)
            yield ByteStream(raw, shown)


def _await_writer(descriptor: int, path: Path, timeout: float) -> None:
    """Wait until a writer has opened the FIFO, even if it has closed it again without writing.

    Opened for reading without waiting, a FIFO is at its end before the first writer opens it; `poll` tells the two
    apart.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise DataError(
            f"{path}: nobody wrote to the pipe within {timeout:g} s", hint="is the channel's data still there?"
        )
