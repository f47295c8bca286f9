"""Members of a job as processes of their own; the leader has an address in 127/8 that no other test has."""

import signal
import tempfile
from pathlib import Path
from typing import IO, Any, Self

import msgspec

from tests.support.addresses import addresses
from tests.support.forks import Fork, content, fork, own_environment
from tests.support.waiting import eventually
from trainbox.diagnostics.cause import HINT, find_cause

PORT = 29471
_READY = "ready"

#: What every member's program begins with.
_HEAD = """
import json, os, sys, time
import trainbox.toolkit
from trainbox.contract.credentials.peer_key import PeerKey
from trainbox.comm import Members, join
"""
#: `communicator` is what it has joined; `ready` says that the fault may come. An error ends it as the toolkit has it.
_BODY = """
sys.excepthook = trainbox.errors.end_as_declared
members = Members(tuple(told["names"]), told["name"], told["address"], told["job"], PeerKey(bytes(32)))
def ready(): print("ready", flush=True)
def body(communicator):
BODY
with join(members, timeout=told["patience"], limit=told["limit"], port=told["port"]) as communicator:
    body(communicator)
"""


class Ended(msgspec.Struct, frozen=True):
    """How a member has ended: by a signal n its code is -n."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last error in its log, with its class and without its hint, however it was written."""
        cause = find_cause(self.stderr, Path.cwd())
        return cause.text.partition(HINT)[0] if cause else ""


class Party:
    """Some members, each running the same program; leaving the block kills those that still run.

    Args:
        size: How many.
        body: The lines of a function `body(communicator)`.
        head: Lines before it, for what takes long to import: all members share that.
        limit: Seconds of silence.
        patience: Seconds to wait for others.
    """

    def __init__(self, size: int, body: str, *, head: str = "", limit: float = 20.0, patience: float = 30.0) -> None:
        self.names = [f"algo-{number}" for number in range(1, size + 1)]
        (self.address,) = addresses(1)
        self.port = PORT
        self._told: dict[str, Any] = {"limit": limit, "patience": patience, "job": "job", "port": PORT}
        indented = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        self._program = _HEAD + head + _BODY.replace("BODY", indented)
        self._forks: dict[str, Fork] = {}
        self._files: dict[tuple[str, str], IO[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._forks.values():
            one.end()
        for file in self._files.values():
            file.close()

    def start(self, *names: str) -> Self:
        """Start some members, or all."""
        for name in names or self.names:
            for kind in ("stdout", "stderr"):
                self._files[name, kind] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
            told = {**self._told, "names": self.names, "name": name, "address": self.address}
            self._forks[name] = fork(
                f"told = {told!r}\n{self._program}",
                argv=[""],
                environment=own_environment(),
                directory=Path.cwd(),
                stdout=self._files[name, "stdout"],
                stderr=self._files[name, "stderr"],
            )
        return self

    def until_ready(self) -> None:
        """Wait until all that were started have said so."""
        for name, one in self._forks.items():
            eventually(
                lambda name=name: _READY in self.stdout(name),  # type: ignore[misc]
                f"{name} says {_READY}",
                logs=self._logs,
                ended=one.has_ended,
            )

    def pid(self, name: str) -> int:
        """The process id of a member that was started."""
        return self._forks[name].pid

    def signal(self, number: signal.Signals, name: str) -> None:
        """Send it to one member."""
        self._forks[name].signal(number)

    def finish(self, *names: str) -> dict[str, Ended]:
        """Wait for the end of some members, or of all that were started."""
        waited_for = names or tuple(self._forks)
        eventually(
            lambda: all(self._forks[name].has_ended() for name in waited_for),
            f"the end of {waited_for}",
            logs=self._logs,
        )
        return {name: Ended(self._forks[name].wait() or 0, self.stdout(name), self.stderr(name)) for name in waited_for}

    def stdout(self, name: str) -> str:
        """What a member has written so far."""
        return content(self._files[name, "stdout"])

    def stderr(self, name: str) -> str:
        """Likewise."""
        return content(self._files[name, "stderr"])

    def _logs(self) -> str:
        return "\n".join(f"{name}: {self.stdout(name)}\n{self.stderr(name)}" for name in self._forks)
