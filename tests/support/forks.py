"""Processes that have imported torch, XGBoost and scikit-learn already: forked from one server for each worker.

To import them takes a script longer than the work of a test. Leaving the block of the session ends the server.
"""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support.waiting import LIMIT

#: What a job must not have of the environment of the tests.
FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "TORCHELASTIC_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "COVERAGE_")
#: Runs the file that is the first argument, as Python would.
RUN_SCRIPT = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')\n"
_SERVER = Path(__file__).with_name("fork_server.py")
#: To import everything, on a machine that does much else.
_START_LIMIT = 2 * LIMIT


class Fork:
    """A process, the leader of a session of its own."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        assert select.select([answers], [], [], _START_LIMIT)[0], "the fork server does not answer"
        told = answers.readline()
        assert told, "the fork server has ended"
        self.pid = int(told)
        self._code: int | None = None

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether it has, or does within some seconds."""
        return self._code is not None or bool(select.select([self._answers], [], [], seconds)[0])

    def wait(self) -> int | None:
        """Its exit code, -n for signal n; `None` where it goes on for longer than any test needs."""
        if self._code is None and self.has_ended(LIMIT):
            told = self._answers.readline()
            assert told, "the fork server has ended"
            self._code = int(told)
            self._answers.close()
        return self._code

    def signal(self, number: signal.Signals) -> None:
        """To the whole group; SIGTERM to the process alone, as a supervisor tells one that catches it."""
        (os.kill if number == signal.SIGTERM else os.killpg)(self.pid, number)

    def end(self) -> None:
        """Kill what still runs of it."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
        self.wait()


def own_environment() -> dict[str, str]:
    """What this process has, but for what would tell a job something; and one thread for each process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def fork(
    code: str,
    *,
    argv: Sequence[str | Path],
    environment: Mapping[str, str],
    directory: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> Fork:
    """Start a process.

    Args:
        code: Its program.
        argv: Of it.
        environment: All of its variables.
        directory: Where it runs.
        stdout: A file for it.
        stderr: Likewise; may be the same.
    """
    order = {
        "code": code,
        "argv": [str(each) for each in argv],
        "environment": dict(environment),
        "directory": str(directory),
    }
    told, answers = os.pipe()
    orders, _ = _server()
    socket.send_fds(orders, [json.dumps(order).encode()], [answers, stdout.fileno(), stderr.fileno()])
    os.close(answers)
    return Fork(os.fdopen(told))


def content(file: IO[bytes]) -> str:
    """What has been written to a file so far."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


@contextlib.contextmanager
def served() -> Iterator[None]:
    """The server that the first fork starts is ended at the end of the block."""
    try:
        yield
    finally:
        if _server.cache_info().currsize:
            orders, process = _server()
            _server.cache_clear()
            orders.close()
            process.wait()


@functools.cache
def _server() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # OpenMP reads how many threads to have as torch is loaded.
        process = subprocess.Popen(
            [sys.executable, _SERVER, str(theirs.fileno())],
            env={**own_environment(), "PYTHONFAULTHANDLER": "1"},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process
