"""A directory in memory for what agent, ranks and companions tell each other while they run."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

#: Memory: what ranks write there at every step must not wait for a disk.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the name is unique, and whoever makes it insists that it is new
_DISK = Path("/tmp")  # noqa: S108 - likewise


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """The path of a directory that `supervise` makes if the plan asks for it; it is removed at the end."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else _DISK
    path = parent / f"trainbox-{os.getpid()}-{time.time_ns():x}"
    try:
        yield path
    finally:
        if path.exists():
            import shutil  # noqa: PLC0415 - a job without agent and GPUs has nothing to remove

            shutil.rmtree(path, ignore_errors=True)
