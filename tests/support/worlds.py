"""Starts the ranks of a job by hand, as torchrun would: one process each, told by variables which one it is."""

import atexit
import contextlib
import functools
import json
import os
import select
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
#: Of one message: the environment of the ranks is most of it.
_MESSAGE_BYTES = 1 << 17

#: Imports what all ranks of all tests need once, which takes seconds, then becomes each of them in milliseconds.
#: Nothing that a process of its own draws at random may be the same in two of them.
_FORK = """
import gc, json, os, random, runpy, socket, sys
gc.disable()
import numpy, torch, torch._dynamo, torch.distributed.fsdp, torch.distributed.checkpoint
import torch._inductor.compile_fx, torch.export.pt2_archive._package  # what torch.export comes to need
import trainbox.torch.training
gc.collect(); gc.freeze(); gc.enable()
door, begun = socket.socket(fileno=int(sys.argv[1])), 0
while True:
    message, descriptors, _, _ = socket.recv_fds(door, MESSAGE_BYTES, 64)
    if not message: os._exit(0)
    if not os.fork(): break
    for descriptor in descriptors: os.close(descriptor)
    while begun and os.waitpid(-1, os.WNOHANG)[0]: begun -= 1
    begun += 1
door.close()
answers, *logs = descriptors
told = json.loads(message)
size = len(logs)
os.chdir(told["directory"])
os.environ.clear()
os.environ.update(told["environment"])
random.seed(); numpy.random.seed()
pids = []
for rank in range(size):
    pids.append(os.fork())
    if not pids[-1]: break
else:
    os.write(answers, (" ".join(map(str, pids)) + "\\n").encode())
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.write(answers, (" ".join(map(str, ended)) + "\\n").encode())
    os._exit(0)
os.setsid()
os.close(answers)
os.dup2(logs[rank], 1); os.dup2(logs[rank], 2)
place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
os.environ.update({name: str(value) for name, value in place.items()})
sys.argv = told["command"]
runpy.run_path(sys.argv[0], run_name="__main__")
""".replace("MESSAGE_BYTES", str(_MESSAGE_BYTES))


@functools.cache
def _door() -> socket.socket:
    """To the process that forks ranks, one for all tests of this process; it ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # OpenMP reads how many threads to have as torch is loaded.
        process = subprocess.Popen(
            [sys.executable, "-c", _FORK, str(theirs.fileno())],
            env={**_own_environment(), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


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
        shared = {"TRAINBOX_ROOT": str(root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        told = {
            "command": [str(each) for each in command],
            "directory": str(Path.cwd()),
            "environment": {**_own_environment(), **shared, "OMP_NUM_THREADS": "1", **(environment or {})},
        }
        said, answers = os.pipe()
        self._said = os.fdopen(said)
        socket.send_fds(_door(), [json.dumps(told).encode()], [answers, *(log.fileno() for log in self.logs)])
        os.close(answers)
        self.pids = [int(pid) for pid in self._said.readline().split()]
        assert self.pids, "the process that forks ranks has ended"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in () if self._have_ended() else self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._said.read()
        self._said.close()
        for log in self.logs:
            log.close()

    def _have_ended(self, seconds: float = 0.0) -> bool:
        """Their codes can be read, or nothing more can be."""
        return bool(select.select([self._said], [], [], seconds)[0])

    def log(self, rank: int) -> str:
        """What a rank has written so far."""
        size = os.fstat(self.logs[rank].fileno()).st_size
        return os.pread(self.logs[rank].fileno(), size, 0).decode(errors="replace")

    def _all(self) -> str:
        return "\n".join(self.log(rank) for rank in range(len(self.pids)))

    def wait(self) -> list[int]:
        """Exit codes of all ranks."""
        assert self._have_ended(SECONDS), self._all()
        return [int(code) for code in self._said.readline().split()]

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + SECONDS
        while not ready():
            assert time.monotonic() < end and not self._have_ended(), self._all()  # noqa: PT018 - one reason to give up
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
