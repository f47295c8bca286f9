"""Finds and ends what the processes of a job left behind, as the end of a container would."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from trainbox.system.subreaper import children

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
#: Each round ends what the last one orphaned; a process that forks without end is given up on after this.
_SECONDS = 10.0


class _Adoption:
    """Counts the jobs that adopt orphans: the kernel has one attribute for all threads of the process."""

    lock = threading.Lock()
    count = 0
    former = 0


@contextmanager
def orphans_come_here() -> Iterator[None]:
    """While entered, what the death of a supervisor orphans becomes a child of this process (prctl(2)); Linux only."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    with _Adoption.lock:
        if not _Adoption.count:
            found = ctypes.c_int()
            libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found))
            _Adoption.former = found.value
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _Adoption.count += 1
    try:
        yield
    finally:
        with _Adoption.lock:
            _Adoption.count -= 1
            if not _Adoption.count:
                libc.prctl(_PR_SET_CHILD_SUBREAPER, _Adoption.former)


class Marks(msgspec.Struct, frozen=True):
    """How the processes of a job are recognised among all children of this process."""

    #: The mount namespaces of its hosts, as `/proc/PID/ns/mnt` names them.
    namespaces: frozenset[str] = frozenset()
    #: The trees of its hosts, which hosts without a namespace have in their environment.
    trees: tuple[Path, ...] = ()

    def are_of(self, pid: int) -> bool:
        """Return whether a process has one of them; False for one that has ended."""
        if mount_namespace(pid) in self.namespaces:
            return True
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return any(b"TRAINBOX_ROOT=" + os.fsencode(tree) in variables for tree in self.trees)
        return False


def mount_namespace(pid: int) -> str:
    """Return the mount namespace of a process; empty if it is that of this process or cannot be read."""
    try:
        found, own = (str(Path(f"/proc/{each}/ns/mnt").readlink()) for each in (pid, "self"))
    except OSError:
        return ""
    return "" if found == own else found


def end_orphans(*, but: Collection[int], is_ours: Callable[[int], bool] = lambda _: True) -> int:
    """Kill all children except those given, and theirs in turn; return how many there were.

    Args:
        but: Children to leave alone.
        is_ours: Whether to kill another one.
    """
    deadline = time.monotonic() + _SECONDS
    ended = 0
    while time.monotonic() < deadline:
        left = {pid for pid in children(zombies=True).difference(but) if is_ours(pid)}
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
                ended += 1
    return ended
