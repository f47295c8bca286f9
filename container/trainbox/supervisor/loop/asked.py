"""Stop a child: find its processes, signal those that handle SIGTERM, and determine its exit status."""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Mapping

from trainbox.supervisor.loop.stops import Hearing, Member, decide
from trainbox.system.procfs import Stat, catches, is_stopped, read_program, read_stat, read_stats

#: How long those who do not catch the signal may take to leave by themselves once the others have: a `tee` still has
#: something to write, and a wrapper passes on the exit code of what it has waited for.
LINGER_SECONDS = 1.0
#: From one look at processes that are no children of ours to the next.
LOOK_SECONDS = 0.1
#: How long one without a handler may take to die of the signal: no time, unless it ignores it.
_DEATH_SECONDS = 0.5
_PAUSE_SECONDS = 0.001
_SHELLS = frozenset(
    {"sh", "ash", "bash", "rbash", "dash", "zsh", "ksh", "ksh93", "mksh", "yash", "fish", "csh", "tcsh"}
)
#: One executable for many programs, told apart by how they are called.
_MANY = frozenset({"busybox", "toybox", ""})
#: Torch's name for data loader workers. They have a handler, for their own sake: they have nothing to save.
_HELPERS = frozenset({"pt_data_worker"})


class Tree:
    """A snapshot of all processes of the system: the descendants of each child.

    Args:
        own: Children and sidecars that were started here.
        others: Children that are none of them.
        first: The child that orphans of no known session belong to.
    """

    def __init__(self, own: Collection[int], others: Collection[int], first: int) -> None:
        self._stats = {pid: stat for pid, stat in read_stats() if not stat.has_ended}
        self._below: dict[int, list[int]] = {}
        for pid, stat in self._stats.items():
            self._below.setdefault(stat.parent, []).append(pid)
        us = os.getpid()
        #: Whose parent has left them; they are ours now.
        self._orphans = {pid for pid in self._below.get(us, ()) if pid not in own and pid not in others}
        self._sessions = set(own)
        self._first = first

    @property
    def is_blind(self) -> bool:
        """Whether processes cannot be listed: there is no /proc."""
        return not self._stats

    def of(self, started: int) -> dict[int, Member]:
        """A child and all below it; an orphan belongs to the child whose session it is in, else to `first`."""
        if started not in self._stats:
            return {}
        members = {started: _member(started, self._stats[started], parent=0)}
        mine = [pid for pid in self._orphans if self._whose(pid) == started]
        open_ = [(pid, started) for pid in (*self._below.get(started, ()), *mine)]
        for pid, parent in open_:  # which grows
            members[pid] = _member(pid, self._stats[pid], parent=parent)
            open_ += [(child, pid) for child in self._below.get(pid, ())]
        return members

    def _whose(self, orphan: int) -> int:
        session = self._stats[orphan].session
        return session if session in self._sessions else self._first


def _member(pid: int, stat: Stat, *, parent: int) -> Member:
    executable, called = read_program(pid)
    name = called.lstrip("-") if executable in _MANY else executable
    return Member(
        parent=parent,
        born=stat.born,
        catches=stat.name not in _HELPERS and catches(pid, signal.SIGTERM),
        is_shell=name in _SHELLS,
        is_frozen=is_stopped(stat.state),
    )


class Asked:
    """A child that was asked to leave with SIGTERM.

    Args:
        started: Its process id.
        tree: It and all below it.
    """

    def __init__(self, started: int, tree: Mapping[int, Member]) -> None:
        self._tree = tree
        self.hearing: Hearing = decide(tree, started)
        #: Who is waited for, who has yet to hear, and everybody who has heard.
        self.awaited = set(self.hearing.awaited)
        self.later = set(self.hearing.later)
        self.heard: set[int] = set()
        self._caught = set(self.hearing.awaited)
        self._statuses: dict[int, int] = {}
        #: The last that caught the signal to leave.
        self._last = 0
        self._ask_at: float | None = None

    def ask(self) -> None:
        """Signal the processes that are due at once; continue stopped ones, which could not handle the signal."""
        for pid in self.hearing.first:
            self._tell(pid)
            if self.awaited and not self._tree[pid].catches:
                self._await_end(pid)
        for pid, member in self._tree.items():
            if member.is_frozen:
                self._send(pid, signal.SIGCONT)

    def _await_end(self, pid: int) -> None:
        """Wait for a shell to end before the program below it, whose end the shell might report as its own."""
        until = time.monotonic() + _DEATH_SECONDS
        while time.monotonic() < until:
            stat = read_stat(pid)
            if stat.has_ended or stat.born != self._tree[pid].born:
                return
            time.sleep(_PAUSE_SECONDS)

    def kill(self) -> None:
        """Kill the processes that are waited for or not signalled yet."""
        for pid in (*self.awaited, *self.later):
            self._send(pid, signal.SIGKILL)

    def note_end(self, pid: int, status: int) -> None:
        """Note that a child, the started one or an adopted orphan, has ended."""
        if pid in self._tree:
            self._statuses[pid] = status
            self._note_left(pid)

    def _note_left(self, pid: int) -> None:
        self.awaited.discard(pid)
        self.later.discard(pid)
        if pid in self._caught:
            self._last = pid

    @property
    def status(self) -> int | None:
        """Return the wait status of the last process that handled the signal, else of its waiting parent."""
        pid = self._last
        while pid and pid not in self._statuses:
            pid = self._tree[pid].parent
        return self._statuses.get(pid)

    def look(self, now: float) -> None:
        """Find descendants that have ended, and signal the others when they are due."""
        for pid in (*self.awaited, *self.later):
            if self._is_gone(pid):
                self._note_left(pid)
        if self.awaited or not self.later:
            self._ask_at = None
        elif self._ask_at is None:
            self._ask_at = now + LINGER_SECONDS
        elif now >= self._ask_at:
            self._ask_later()

    def _ask_later(self) -> None:
        for pid in tuple(self.later):
            if catches(pid, signal.SIGTERM):  # by now: it was starting
                self.awaited.add(pid)
                self._caught.add(pid)
            self.later.discard(pid)
            self._tell(pid)

    @property
    def is_waiting(self) -> bool:
        """Whether a descendant has not ended or was not signalled yet."""
        return bool(self.awaited or self.later)

    def _is_gone(self, pid: int) -> bool:
        stat = read_stat(pid)
        if stat.born != self._tree[pid].born:
            return True
        # Ours is about to be noted, and that of a parent that is about to die becomes ours.
        return stat.has_ended and stat.parent != os.getpid() and stat.parent not in self.heard

    def _tell(self, pid: int) -> None:
        self.heard.add(pid)
        self._send(pid, signal.SIGTERM)
        self._send(pid, signal.SIGCONT)

    def _send(self, pid: int, number: int) -> None:
        if read_stat(pid).born == self._tree[pid].born:
            # PermissionError: it has become somebody else's (sudo).
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
