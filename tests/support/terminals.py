"""A program on a terminal of its own."""

import contextlib
import os
import pty
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import LIMIT

_CHUNK_BYTES = 65_536


def run_on_terminal(argv: Sequence[str], *, directory: Path, environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a program whose stdin, stdout and stderr are a terminal; gives its exit code and all that it has shown."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(argv, cwd=directory, env=environment, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while select.select([leader], [], [], LIMIT)[0] and (chunk := os.read(leader, _CHUNK_BYTES)):
                shown += chunk
        return process.wait(timeout=LIMIT), shown
    finally:
        os.close(leader)
        process.kill()
        process.wait()
