"""Which TCP sockets a job listens on, as the kernel tells: each with its program, its address and its port."""

import contextlib
import ipaddress
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from trainbox.system.procfs import read_stats

_LISTENS = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_LOOK_SECONDS = 0.01
#: What the command of a program has in it, the first that fits.
_PROGRAMS = {
    "trainbox.health.collective_ranks": "health ranks",
    "trainbox.health": "health",
    "trainbox.supervisor": "supervisor",
    "tracker.py": "tracker",
}
_ELASTIC = "trainbox.launcher"


class Listener(msgspec.Struct, frozen=True, order=True):
    """One socket."""

    program: str
    address: str
    port: int


class Listening:
    """Notes every socket that some processes, and all that they start, listen on, until the block ends."""

    def __init__(self) -> None:
        self._roots: set[int] = set()
        self._known: set[str] = set()
        self._found: set[Listener] = set()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def follow(self, *pids: int) -> None:
        """From now on these, too."""
        self._roots = {*self._roots, *pids}
        self._known = set()

    @property
    def found(self) -> frozenset[Listener]:
        """All that have listened so far."""
        return frozenset(self._found)

    def _run(self) -> None:
        while not self._ends.wait(_LOOK_SECONDS):
            listening = dict(_read_listening())
            # To ask whose a socket is takes long: only of those that are new.
            if new := listening.keys() - self._known:
                ours = _find_owners(self._roots, new)
                self._known |= new
                for inode, program in ours.items():
                    self._found = {*self._found, Listener(program, *listening[inode])}


def listeners(*pids: int) -> frozenset[Listener]:
    """What these processes, and all that they have started, listen on now."""
    listening = dict(_read_listening())
    return frozenset(
        Listener(program, *listening[inode]) for inode, program in _find_owners(set(pids), listening.keys()).items()
    )


def _read_listening() -> Iterator[tuple[str, tuple[str, int]]]:
    """Each listening socket of this network namespace, by its inode: proc_net_tcp of the kernel's documentation."""
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTENS:
                yield rest[5], _parse_address(local)


def _parse_address(local: str) -> tuple[str, int]:
    """`0100007F:1F90`: words in the order of the machine."""
    address, port = local.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return str(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))), int(port, 16)


def _find_owners(roots: set[int], inodes: Iterable[str]) -> dict[str, str]:
    """The program of each of these sockets that belongs to these processes or to what they have started."""
    parents = {pid: stat.parent for pid, stat in read_stats()}
    ours = {pid for pid in parents if roots.intersection(_line(pid, parents))}
    targets = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, str] = {}
    for pid in sorted(ours):  # a parent before what it has forked, which inherits
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = targets.get(str(descriptor.readlink()))
                    if inode is not None:
                        owners.setdefault(inode, _name(pid, parents))
    return owners


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid:
        yield pid
        pid = parents.get(pid, 0)


def _name(pid: int, parents: dict[int, int]) -> str:
    command = _command(pid)
    if _ELASTIC in command:  # ranks are forked from it
        return "rank" if _ELASTIC in _command(parents.get(pid, 0)) else "agent"
    return next((name for part, name in _PROGRAMS.items() if part in command), "script")


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""
