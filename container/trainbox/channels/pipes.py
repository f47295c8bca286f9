"""Pipe mode: SageMaker streams the files of a channel, joined, through a FIFO `<path>_0`; one more for each epoch.

The first is read to its end, once; whoever wants the rows again keeps them. The others are never opened: SageMaker
fills a pipe when it is opened, and not before.
"""

import io
import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainbox.channels.streams import Stream, reading
from trainbox.errors import DataError

_POLL_SECONDS = 0.1


def first_pipe(path: Path) -> Path:
    """The FIFO of the first epoch of a channel."""
    return Path(f"{path}_0")


@contextmanager
def open_pipe(path: Path, shown: str, patience: float) -> Iterator[Stream]:
    """The bytes of a FIFO; a regular file of the same name will do too.

    Args:
        path: The FIFO.
        shown: How messages name it.
        patience: How long, in seconds, to wait for the FIFO to be there, and then for a writer. Between two bytes
            there is no limit: a source may be slow, and one that is gone ends the stream.

    Raises:
        DataError: It does not appear, or nobody writes to it.
    """
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise DataError(
                f"{path}: the pipe of the channel did not appear within {patience:g} s",
                hint="is the channel in Pipe mode? A pipe can be read once: has another process taken it away?",
            )
        time.sleep(_POLL_SECONDS)
    with reading(shown):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with io.FileIO(descriptor, "rb") as raw:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                _await_writer(descriptor, path, patience)
                os.set_blocking(descriptor, True)
            yield Stream(raw, shown)


def _await_writer(descriptor: int, path: Path, patience: float) -> None:
    """Wait until a writer has opened the FIFO, even if it has closed it again without a word.

    Opened for reading without waiting, a FIFO reads as ended before the first writer comes; `poll` tells the two apart.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(patience * 1000):
        raise DataError(
            f"{path}: nobody wrote to the pipe within {patience:g} s", hint="is the channel's data still there?"
        )
