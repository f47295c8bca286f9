"""Finds and ends what the processes of a job left behind, as the end of a container would."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from trainbox.launch.orphans import children

_PR_SET_CHILD_SUBREAPER = 36
#: Each round ends what the last one orphaned; a process that forks without end is given up on after this.
_SECONDS = 10.0


@contextmanager
def orphans_come_here() -> Iterator[None]:
    """While entered, what the death of a supervisor orphans becomes a child of this process (prctl(2)); Linux only."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def end_orphans(*, but: Collection[int]) -> int:
    """Kill all children except those given, and theirs in turn; return how many there were."""
    deadline = time.monotonic() + _SECONDS
    ended = 0
    while (left := children(zombies=True).difference(but)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
                ended += 1
    return ended
