"""A cgroup of a test's own: processes in it are killed by the kernel beyond its memory."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually


@contextlib.contextmanager
def small_cgroup(mib: int) -> Iterator[list[str]]:
    """What to put before a command so that it runs with so much memory; skips the test where no cgroup can be made.

    Args:
        mib: The limit, in MiB; of a cgroup of version 1 or 2, below the one that we are in.
    """
    made = _make(mib)
    if made is None:
        pytest.skip("no memory cgroup can be made: the readings are proved in test_memory.py")
    try:
        yield ["sh", "-c", f'echo $$ > {made}/cgroup.procs && exec "$@"', "sh"]
    finally:
        eventually(lambda: _remove(made), "the cgroup is empty")


def _remove(group: Path) -> bool:
    """Whether it is gone; who has just ended may still be in it."""
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def _make(mib: int) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
            group = root / path.lstrip("/") / f"trainbox-test-{os.getpid()}"
            limit = group / ("memory.limit_in_bytes" if controllers else "memory.max")
            try:
                group.mkdir()
            except OSError:
                continue
            try:
                limit.write_text(str(mib << 20))
            except OSError:
                group.rmdir()
                continue
            return group
    return None
