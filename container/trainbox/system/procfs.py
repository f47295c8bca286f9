"""What the kernel says of processes in /proc/PID, and which of them are stopped: proc(5)."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from trainbox.clock import Clock, Silence

#: From one look at the state of a process to the next.
LOOK_SECONDS = 0.5


class Stat(msgspec.Struct, frozen=True):
    """One process; of one that is gone only that."""

    #: A letter; `X` for a process that is gone.
    state: str = "X"
    parent: int = 0
    session: int = 0
    #: The name of its main thread, of at most 15 characters.
    name: str = ""
    #: When it started, in ticks since the system did: tells it from another that gets its number later.
    born: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, or waits to be reaped."""
        return self.state in "XZ"


def read_stat(pid: int) -> Stat:
    """What a process is and does now."""
    try:
        # pid (name) state ppid pgrp session … starttime, and the name may hold anything
        before, _, after = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
    except OSError:
        return Stat()
    fields = after.split()
    parent, session, born = (int(fields[place]) for place in (1, 3, 19))
    name = before.partition(b"(")[2].decode(errors="replace")
    return Stat(fields[0].decode(), parent, session, name, born)


def read_start(pid: int) -> float | None:
    """When a process started, in seconds since the epoch, the same whoever asks; None where that cannot be told."""
    born = read_stat(pid).born
    try:
        booted = Path("/proc/stat").read_bytes().partition(b"\nbtime ")[2].split(maxsplit=1)
    except OSError:
        return None
    return int(booted[0]) + born / os.sysconf("SC_CLK_TCK") if born and booted else None


def read_stats() -> Iterator[tuple[int, Stat]]:
    """Every process of the system, by its id; none where there is no /proc."""
    for directory in Path("/proc").glob("[0-9]*"):
        yield int(directory.name), read_stat(int(directory.name))


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal now; false for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False
    caught = status.partition(b"\nSigCgt:")[2].partition(b"\n")[0].strip()
    return bool(int(caught or b"0", 16) >> (number - 1) & 1)


def read_program(pid: int) -> tuple[str, str]:
    """The names of the executable file and of the program as it was called; empty where they cannot be read."""
    names = ["", ""]
    with contextlib.suppress(OSError):
        names[0] = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
    with contextlib.suppress(OSError):
        called = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
        names[1] = called.decode(errors="replace").rpartition("/")[2]
    return names[0], names[1]


def process_state(pid: int) -> str:
    """The letter for what a process does; `X` where it is gone."""
    return read_stat(pid).state


def is_stopped(state: str) -> bool:
    """Whether a process in this state continues only when it is sent SIGCONT; `t`, held by a debugger, is not meant."""
    return state == "T"


class StoppedProcesses:
    """Finds processes that have been stopped (SIGSTOP) at every look for longer than they may be.

    Args:
        clock: As of `Silence`.
    """

    def __init__(self, clock: Clock) -> None:
        self._silence = Silence[int](clock)

    def seconds(self, pids: Mapping[int, str]) -> dict[int, float]:
        """Seconds for which each process has been stopped, by its state; 0.0 for one that is not."""
        stopped = {pid: is_stopped(state) for pid, state in pids.items()}
        return {pid: seconds * stopped[pid] for pid, seconds in self._silence.seconds(stopped).items()}

    def find(self, limits: Mapping[int, float]) -> dict[int, float]:
        """Those that have been stopped for longer than their limit, which 0 switches off, and for how many seconds."""
        seconds = self.seconds({pid: process_state(pid) for pid in limits})
        return {pid: seconds[pid] for pid, limit in limits.items() if 0 < limit < seconds[pid]}
