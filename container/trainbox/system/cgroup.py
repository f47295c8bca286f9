"""Limits: those that this process runs under, its own (`ulimit`) and its cgroup's, and those of what it unpacks."""

import os
import resource
from collections.abc import Collection
from pathlib import Path
from typing import Literal

Resource = Literal["memory", "threads", "open files"]

#: Of an archive. How many bytes is a setting: `trainbox_source_bytes`.
ARCHIVE_MEMBERS = 100_000
#: Folders in each other; a path that is deeper cannot be walked by all tools.
ARCHIVE_DEPTH = 100
#: Linux allows 255 bytes in a name and 4,096 in a path, of which the code directory has its part.
ARCHIVE_NAME_BYTES = 255
ARCHIVE_PATH_BYTES = 3072
#: The header of a header, which holds a long name or pax records, is read whole.
ARCHIVE_HEADER_BYTES = 1024 * 1024

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
#: cgroup v1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 60
_MIB = 1024 * 1024


def describe_limits(about: Collection[Resource], *, root: Path = _CGROUP_ROOT, membership: Path = _MEMBERSHIP) -> str:
    """The limits that are set, in words: `memory of the container 512 MiB (510 in use)`; empty where there is none.

    Args:
        about: What they limit.
        root: Where cgroups are mounted.
        membership: Which cgroup this process belongs to.
    """
    found: list[str | None] = []
    if "memory" in about:
        limit = _read_limit("memory", ("memory.max", "memory.limit_in_bytes"), root, membership)
        used = _read_limit("memory", ("memory.current", "memory.usage_in_bytes"), root, membership)
        in_use = "" if used is None else f" ({used // _MIB:,} in use)"
        found.append(None if limit is None else f"memory of the container {limit // _MIB:,} MiB{in_use}")
        found.append(_of_process(resource.RLIMIT_AS, "address space (RLIMIT_AS)", _MIB, " MiB"))
        found.append(_of_process(resource.RLIMIT_DATA, "data (RLIMIT_DATA)", _MIB, " MiB"))
    if "threads" in about:
        tasks = _read_limit("pids", ("pids.max",), root, membership)
        found.append(None if tasks is None else f"processes and threads of the container (pids.max) {tasks:,}")
        found.append(_of_process(resource.RLIMIT_NPROC, "processes and threads of this user (RLIMIT_NPROC)"))
    if "open files" in about:
        found.append(_of_process(resource.RLIMIT_NOFILE, "open files (RLIMIT_NOFILE)"))
    return ", ".join(text for text in found if text)


def _of_process(kind: int, name: str, unit: int = 1, spoken: str = "") -> str | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else f"{name} {soft // unit:,}{spoken}"


def _read_limit(controller: str, names: tuple[str, ...], root: Path, membership: Path) -> int | None:
    """A number of this process's own cgroup, in the file that version 2 or version 1 has; None where nothing limits."""
    for directory in cgroup_directories(controller, root, membership):
        for name in names:
            text = read_text(directory / name)
            if text is not None:
                return parse_limit(text)
    return None


def cgroup_directories(controller: str, root: Path, membership: Path) -> list[Path]:
    """Where a controller's files may lie: in a container its own cgroup is mounted as the root, elsewhere below it."""
    found: list[Path] = []
    for line in (read_text(membership) or "").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers == "":
            found += [root / path.lstrip("/"), root]
        elif controller in controllers.split(","):
            found += [root / controller / path.lstrip("/"), root / controller]
    return found


def read_text(path: Path) -> str | None:
    """The text of one of the kernel's files; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def parse_limit(text: str | None) -> int | None:
    """The number in one of these files; None where there is no file, or no limit."""
    if text is None or not text.strip().isdigit():
        return None
    number = int(text)
    return number if number < _NO_LIMIT else None


def read_cpus(root: Path = _CGROUP_ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Return how many processors this process may use at once, 1 at least: by its affinity and its cgroup's quota.

    Sources: kernel documentation, admin-guide/cgroup-v2 (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    usable = len(os.sched_getaffinity(0))
    for directory in cgroup_directories("cpu", root, membership):
        words = (read_text(directory / "cpu.max") or "").split()
        words = words or [
            (read_text(directory / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):  # noqa: PLR2004 - quota and period
            return max(1, min(usable, -(-int(words[0]) // int(words[1]))))
    return usable
