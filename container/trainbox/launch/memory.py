"""What the kernel's cgroup says about memory, to tell a process killed for it from one killed for anything else."""

from pathlib import Path

import msgspec

_CGROUP_ROOT = Path("/sys/fs/cgroup")
#: cgroup v1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 60


class Memory(msgspec.Struct, frozen=True):
    """One reading."""

    #: How many processes the kernel has killed for memory in this cgroup; `None` where it cannot be told.
    kills: int | None = None
    limit_bytes: int | None = None


def read_memory(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> Memory:
    """Read the counters of this process's own cgroup, version 2 or 1.

    Sources: kernel documentation, admin-guide/cgroup-v2 (`memory.events`) and cgroup-v1/memory (`memory.oom_control`).
    """
    for directory in _directories(root, membership):
        for events, limit in (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes")):
            counters = _read(directory / events)
            if counters is not None:
                return Memory(_field(counters, "oom_kill"), _limit(_read(directory / limit)))
    return Memory()


def _directories(root: Path, membership: Path) -> list[Path]:
    """Where the counters may lie: in a container its own cgroup is mounted as the root, elsewhere it lies below."""
    found: list[Path] = []
    for line in (_read(membership) or "").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers == "":
            found += [root / path.lstrip("/"), root]
        elif "memory" in controllers.split(","):
            found += [root / "memory" / path.lstrip("/"), root / "memory"]
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None


def _limit(text: str | None) -> int | None:
    if text is None or not text.strip().isdigit():
        return None
    limit = int(text)
    return limit if limit < _NO_LIMIT else None
