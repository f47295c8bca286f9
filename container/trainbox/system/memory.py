"""What the kernel's cgroup says about memory, to tell a process killed for it from one killed for anything else."""

import os
from pathlib import Path

import msgspec

from trainbox.system.cgroup import cgroup_directories, parse_limit, read_text

_CGROUP_ROOT = Path("/sys/fs/cgroup")


class Memory(msgspec.Struct, frozen=True):
    """One reading."""

    #: How many processes the kernel has killed for memory in this cgroup; `None` where it cannot be told.
    kills: int | None = None
    limit_bytes: int | None = None


def read_memory(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> Memory:
    """Read the counters of this process's own cgroup, version 2 or 1.

    Sources: kernel documentation, admin-guide/cgroup-v2 (`memory.events`) and cgroup-v1/memory (`memory.oom_control`).
    """
    for directory in cgroup_directories("memory", root, membership):
        for events, limit in (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes")):
            counters = read_text(directory / events)
            if counters is not None:
                return Memory(_field(counters, "oom_kill"), parse_limit(read_text(directory / limit)))
    return Memory()


def read_available(
    root: Path = _CGROUP_ROOT,
    membership: Path = Path("/proc/self/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> int | None:
    """Return how much memory this process can still have: what the host has, and its cgroup; None if nothing says so.

    What the cgroup holds of files counts as available: the kernel gives it back first.
    """
    known = [kib * 1024 for kib in (_field(read_text(meminfo) or "", "MemAvailable:"),) if kib is not None]
    for directory in cgroup_directories("memory", root, membership):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = parse_limit(read_text(directory / limit)), parse_limit(read_text(directory / usage))
            if most is not None and used is not None:
                files = _field(read_text(directory / "memory.stat") or "", cached) or 0
                known.append(max(0, most - max(0, used - files)))
    return min(known, default=None)


def read_rss() -> int:
    """Return the memory that this process has, in bytes: proc(5); 0 where there is no /proc."""
    words = (read_text(Path("/proc/self/statm")) or "0 0").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value.removesuffix(" kB"))
    return None
