"""Starts the ranks of a job by hand, as torchrun would: one process each, told by variables which one it is."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

#: Longer than any test needs: only ranks that hang meet it.
SECONDS = 90.0
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "TORCHELASTIC_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "COVERAGE_")


#: Imports what all ranks need once, then becomes each of them: a third of the time that processes of their own take.
_FORK = """
import json, os, runpy, sys
import torch, torch.distributed, torch._dynamo
size, port, *logs = json.loads(os.environ.pop("RANKS"))
pids = []
for rank in range(size):
    pids.append(os.fork())
    if not pids[-1]: break
else:
    print(*pids, flush=True)
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
    os._exit(0)
os.setsid()
os.dup2(logs[rank], 1); os.dup2(logs[rank], 2)
place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Ranks:
    """The ranks of one attempt; leaving the block ends those that still run."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        root: Path,
        size: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A pipe would fill up.
        self.logs = [tempfile.TemporaryFile() for _ in range(size)]  # noqa: SIM115 - closed in __exit__
        told = [size, port, *(log.fileno() for log in self.logs)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        shared = {"TRAINBOX_ROOT": str(root), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **(environment or {})}
        self._starter = subprocess.Popen(
            [sys.executable, "-c", _FORK, *command],
            env={**kept, **shared, "RANKS": json.dumps(told)},
            stdout=subprocess.PIPE,
            pass_fds=told[2:],
            text=True,
        )
        assert self._starter.stdout is not None
        self._said = self._starter.stdout
        self.pids = [int(pid) for pid in self._said.readline().split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids if self._starter.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._said.close()
        self._starter.wait()
        for log in self.logs:
            log.close()

    def log(self, rank: int) -> str:
        """What a rank has written so far."""
        size = os.fstat(self.logs[rank].fileno()).st_size
        return os.pread(self.logs[rank].fileno(), size, 0).decode(errors="replace")

    def wait(self) -> list[int]:
        """Exit codes of all ranks."""
        self._starter.wait(SECONDS)
        return [int(code) for code in self._said.readline().split()]

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + SECONDS
        while not ready():
            if time.monotonic() > end or self._starter.poll() is not None:
                raise AssertionError("\n".join(self.log(rank) for rank in range(len(self.pids))))
            time.sleep(0.005)

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """To the group of each rank, as a supervisor does."""
        for rank in ranks:
            os.killpg(self.pids[rank], number)


def finish(command: Sequence[str | Path], *, root: Path, size: int = 2, **environment: str) -> list[str]:
    """Run all ranks to their good end; gives the log of each."""
    with Ranks(command, root=root, size=size, environment=environment) as ranks:
        codes = ranks.wait()
        logs = [ranks.log(rank) for rank in range(size)]
    assert codes == [0] * size, "\n".join(logs)
    return logs
