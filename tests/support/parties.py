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
from pathlib import Path
from typing import Any, Self

import msgspec

_NUMBERS = itertools.count()
#: Longer than any test needs: only members that hang meet it.
SECONDS = 60.0
PORT = 29471
_FOREIGN = ("SAGEMAKER_", "TRAINBOX_", "SM_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "COVERAGE_")
_READY = "ready"

#: Imports what all members need once, then becomes each that is asked for: a third of the time that processes of their
#: own take. It says who has begun, and how each has ended.
_FORK = """
import json, os, select, sys
orders = open(0, "rb", buffering=0)  # else select would not see what has been read ahead
head, body = json.loads(orders.readline())
exec(head)
names = {}
while True:
    if select.select([0], [], [], 0.005)[0]:
        order = orders.readline()
        if not order: os._exit(0)
        told = json.loads(order)
        pid = os.fork()
        if not pid: break
        names[pid] = told["name"]
        os.write(1, f"began {told['name']} {pid}\\n".encode())
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        continue
    if pid: os.write(1, f"ended {names.pop(pid)} {os.waitstatus_to_exitcode(status)}\\n".encode())
os.setsid()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, kind in ((1, "stdout"), (2, "stderr")):
    os.dup2(os.open(told[kind], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
exec(body)
"""

#: What every member's program begins with.
_HEAD = """
import json, os, sys, time
import trainbox.toolkit
from trainbox.peers import Members, join
"""
#: `circle` is what it has joined; `ready` says that the fault may come. An error ends it as the toolkit has it.
_BODY = """
sys.excepthook = trainbox.toolkit._end_as_declared
members = Members(tuple(told["names"]), told["name"], told["address"], told["job"])
def ready(): print("ready", flush=True)
def body(circle):
BODY
with join(members, patience=told["patience"], limit=told["limit"], port=told["port"]) as circle:
    body(circle)
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
        head: Lines before it, for what takes long to import: all members share that.
        limit: Seconds of silence.
        patience: Seconds to wait for others.
    """

    def __init__(self, size: int, body: str, *, head: str = "", limit: float = 20.0, patience: float = 30.0) -> None:
        process, number = os.getpid() % 250, next(_NUMBERS) % 250
        self.names = [f"algo-{number}" for number in range(1, size + 1)]
        self.address = f"127.{process + 1}.{number + 1}.1"
        self._told: dict[str, Any] = {"limit": limit, "patience": patience, "job": "job", "port": PORT}
        indented = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        self._program = json.dumps((_HEAD + head, _BODY.replace("BODY", indented)))
        self._pids: dict[str, int] = {}
        self._ended: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self._starter = subprocess.Popen(
            [sys.executable, "-c", _FORK],
            env={**kept, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ask(self._program)
        return self

    def __exit__(self, *_: object) -> None:
        self._listen()
        for name in self._pids.keys() - self._ended.keys():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pids[name], signal.SIGKILL)
        self._starter.communicate()
        self._directory.cleanup()

    def start(self, *names: str) -> Self:
        """Start some members, or all."""
        for name in names or self.names:
            files = {kind: str(self._file(name, kind)) for kind in ("stdout", "stderr")}
            self._ask(json.dumps({**self._told, **files, "names": self.names, "name": name, "address": self.address}))
        while self._pids.keys() != {*self._pids, *(names or self.names)}:
            self._listen()
            assert self._starter.poll() is None
            time.sleep(0.005)
        return self

    def until_ready(self) -> None:
        """Wait until all that were started have said so."""
        end = time.monotonic() + SECONDS
        for name in self._pids:
            while _READY not in self.stdout(name):
                self._listen()
                if time.monotonic() > end or name in self._ended:
                    raise AssertionError(f"{name}: {self.stdout(name)}\n{self.stderr(name)}")
                time.sleep(0.01)

    def pid(self, name: str) -> int:
        """The process id of a member that was started."""
        return self._pids[name]

    def signal(self, number: signal.Signals, name: str) -> float:
        """Send it to one member; gives the moment."""
        moment = time.monotonic()
        os.killpg(self._pids[name], number)
        return moment

    def finish(self, *names: str, since: float | None = None) -> dict[str, Ended]:
        """Wait for the end of some members, or of all that were started, and give how long it took since a moment."""
        begun = time.monotonic()
        waited_for = names or tuple(self._pids)
        while missing := {*waited_for} - self._ended.keys():
            self._listen()
            if time.monotonic() - begun > SECONDS:
                shown = "\n".join(f"{name}: {self.stdout(name)}\n{self.stderr(name)}" for name in waited_for)
                raise AssertionError(f"{missing} did not end within {SECONDS} s:\n{shown}")
            time.sleep(0.005)
        return {
            name: Ended(
                self._ended[name][0],
                self.stdout(name),
                self.stderr(name),
                self._ended[name][1] - (begun if since is None else since),
            )
            for name in waited_for
        }

    def stdout(self, name: str) -> str:
        """What a member has written so far."""
        return self._content(name, "stdout")

    def stderr(self, name: str) -> str:
        """Likewise."""
        return self._content(name, "stderr")

    def _content(self, name: str, kind: str) -> str:
        path = self._file(name, kind)
        return path.read_text(errors="replace") if path.exists() else ""

    def _file(self, name: str, kind: str) -> Path:
        return Path(self._directory.name, f"{name}.{kind}")

    def _ask(self, line: str) -> None:
        assert self._starter.stdin is not None
        self._starter.stdin.write(line.encode() + b"\n")
        self._starter.stdin.flush()

    def _listen(self) -> None:
        """Take in who has begun, and who has ended."""
        assert self._starter.stdout is not None
        os.set_blocking(self._starter.stdout.fileno(), False)
        while line := self._starter.stdout.readline().decode():
            what, name, number = line.split()
            if what == "began":
                self._pids[name] = int(number)
            else:
                self._ended[name] = (int(number), time.monotonic())
