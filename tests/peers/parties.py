"""Members of a job as processes of their own; the leader has an address in 127/8 that no other test has."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, Self

import msgspec

_NUMBERS = itertools.count()
#: Longer than any test needs: only members that hang meet it.
SECONDS = 60.0
#: What a member gives for the last word of the sentence "I am …": whoever started it waits for that.
READY = "ready"
PORT = 29471
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "COVERAGE_")

#: What every member's program begins with: `circle` is what it has joined, `ready` says that the fault may come.
_HEAD = """
import json, os, sys, time
from trainbox.errors import TrainboxError
from trainbox.peers import Members, join
told = json.loads(sys.argv[1])
members = Members(tuple(told["names"]), told["name"], told["address"], told["job"])
def ready(): print("ready", flush=True)
def act():
    with join(members, patience=told["patience"], limit=told["limit"], port=told["port"]) as circle:
        body(circle)
"""
#: What it ends with: as the toolkit does it for a script.
_TAIL = """
import trainbox.toolkit
sys.excepthook = trainbox.toolkit._end_as_declared
act()
"""


class Ended(msgspec.Struct, frozen=True):
    """How a member has ended: by a signal n its code is -n."""

    code: int
    stdout: str
    stderr: str
    #: From the moment that is asked about.
    seconds: float


class Party:
    """Some members, each running the same program; leaving the block kills those that still run.

    Args:
        size: How many.
        body: The lines of a function `body(circle)`.
        limit: Seconds of silence.
        patience: Seconds to wait for others.
        job: The name of the job.
        like: Another party, whose place this one wants.
    """

    def __init__(
        self,
        size: int,
        body: str,
        *,
        limit: float = 20.0,
        patience: float = 30.0,
        job: str = "job",
        head: str = "",
        like: "Party | None" = None,
    ) -> None:
        process, number = os.getpid() % 250, next(_NUMBERS) % 250
        self.names = [f"algo-{number}" for number in range(1, size + 1)]
        self.address: str = like.address if like else f"127.{process + 1}.{number + 1}.1"
        indented = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        self._program = f"{head}\n{_HEAD}\ndef body(circle):\n{indented}\n{_TAIL}"
        self._told: dict[str, Any] = {"limit": limit, "patience": patience, "job": job, "port": PORT}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
        self._ended: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for files in self._files.values():
            for file in files:
                file.close()

    def start(self, *names: str) -> Self:
        """Start some members, or all."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        for name in names or self.names:
            told = {**self._told, "names": self.names, "name": name, "address": self.address}
            # A pipe would fill up.
            self._files[name] = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 - see __exit__
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", self._program, json.dumps(told)],
                env={**kept, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=self._files[name][0],
                stderr=self._files[name][1],
                start_new_session=True,
            )
        return self

    def until_ready(self, *names: str) -> None:
        """Wait until all that were started have said so."""
        end = time.monotonic() + SECONDS
        for name in names or tuple(self._processes):
            while READY not in self.stdout(name):
                if time.monotonic() > end or self._has_ended(name):
                    raise AssertionError(f"{name}: {self.stdout(name)}\n{self.stderr(name)}")
                time.sleep(0.01)

    def signal(self, number: signal.Signals, name: str) -> float:
        """Send it to one member and what it has started; gives the moment."""
        moment = time.monotonic()
        os.killpg(self._processes[name].pid, number)
        return moment

    def finish(self, *names: str, since: float | None = None, within: float = SECONDS) -> dict[str, Ended]:
        """Wait for the end of some members, or of all that were started."""
        begun = time.monotonic()
        waited_for: Sequence[str] = names or tuple(self._processes)
        while missing := [name for name in waited_for if not self._has_ended(name)]:
            if time.monotonic() - begun > within:
                shown = "\n".join(f"{name}: {self.stdout(name)}\n{self.stderr(name)}" for name in waited_for)
                raise AssertionError(f"{missing} did not end within {within} s:\n{shown}")
            time.sleep(0.005)
        return {
            name: Ended(
                self._processes[name].returncode,
                self.stdout(name),
                self.stderr(name),
                self._ended[name] - (begun if since is None else since),
            )
            for name in waited_for
        }

    def stdout(self, name: str) -> str:
        """What a member has written so far."""
        return _content(self._files[name][0])

    def stderr(self, name: str) -> str:
        """Likewise."""
        return _content(self._files[name][1])

    def pid(self, name: str) -> int:
        """Of a member's process."""
        return self._processes[name].pid

    def _has_ended(self, name: str) -> bool:
        if self._processes[name].poll() is None:
            return False
        self._ended.setdefault(name, time.monotonic())
        return True


def _content(file: IO[bytes]) -> str:
    descriptor = file.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
