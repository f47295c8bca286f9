"""Processes that the script leaves behind become ours, so that they can be reaped and ended."""

import contextlib
import os
import signal
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from trainbox.system.procfs import read_stat, read_stats

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
    try:
        ours = _listed_children()
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        ours = {pid for pid, stat in read_stats() if stat.parent == os.getpid()}
    return ours if zombies else living(ours)


def living(pids: Collection[int]) -> set[int]:
    """Those that have not ended."""
    return {pid for pid in pids if not read_stat(pid).has_ended}


def _listed_children() -> set[int]:
    """As the kernel lists them: some microseconds, where a look at all processes takes as long as many forks.

    Raises:
        OSError: It does not.
    """
    ours: set[int] = set()
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - names, not paths
        ours.update(map(int, Path("/proc/self/task", thread, "children").read_bytes().split()))
    return ours


def kill_all(pids: Collection[int]) -> None:
    """Kill children with their process groups: the kernel does not let a fork slip through while it kills a group.

    The groups must be none of ours: those of `spawn` are not, and nobody can join a group of another session.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(pid)
            if group != os.getpgrp():
                os.killpg(group, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


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
