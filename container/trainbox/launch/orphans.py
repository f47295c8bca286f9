"""Processes that the script leaves behind become ours, so that they can be reaped and ended."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

#: prctl(2)
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of processes whose parent dies; PID 1 is that already."""
    if os.getpid() != 1 and sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed in a container

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(*, zombies: bool = False) -> set[int]:
    """Every living child of this process, adopted orphans among them; none where there is no /proc.

    Args:
        zombies: Those that have ended and wait to be reaped, too.
    """
    ours = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            # pid (command) state ppid …, and the command may hold anything: proc(5)
            state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
            if int(parent) == os.getpid() and (zombies or state != b"Z"):
                ours.add(int(stat.parent.name))
    return ours


def ended() -> Iterator[tuple[int, int]]:
    """The children that have ended, adopted orphans among them: pid and wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status
