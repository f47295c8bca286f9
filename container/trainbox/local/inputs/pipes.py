"""The writer of a job's pipes: a process of its own, which ends with the job, however that ends."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from trainbox.errors import RunError
from trainbox.local.backends import namespace
from trainbox.local.backends.hosts import HostListener, StopReason
from trainbox.local.inputs import pipe_writer
from trainbox.local.plan import RunPlan

#: Below the work directory: what to write into which pipe.
_ORDERS = "pipes.json"


class _Watching:
    """A listener that hears of the writer, too."""

    def __init__(self, listener: HostListener, said: IO[bytes]) -> None:
        self._listener = listener
        self._said = said

    def started(self, host: str) -> None:
        self._listener.started(host)

    def stopping(self, reason: StopReason) -> None:
        self._listener.stopping(reason)

    def output(self, host: str, data: bytes) -> None:
        self._listener.output(host, data)

    def note(self, text: str) -> None:
        self._listener.note(text)

    def tick(self) -> None:
        self._listener.tick()
        self.check()

    def check(self) -> None:
        """Refuse to go on without the data.

        Raises:
            RunError: The writer cannot go on, or has gone.
        """
        if select.select([self._said], [], [], 0)[0]:
            problem = os.read(self._said.fileno(), 4096).decode(errors="replace").strip()
            raise RunError(problem or "the writer of the pipes was killed", hint="start the job again")


@contextlib.contextmanager
def pipes_written(plan: RunPlan, listener: HostListener) -> Iterator[HostListener]:
    """While entered, the pipes of all hosts are written; gives the listener for whoever runs the hosts.

    Raises:
        RunError: The writer cannot be started, or a file cannot be read.
    """
    orders = [
        {
            "name": f"{place.rpartition('/')[2]} of {host.name}",
            "stem": str(host.tree / place),
            "pieces": [
                ["text", each.text] if each.path is None else ["file", str(each.path)] for each in stream.pieces
            ],
            "wrapped": stream.wrapped,
        }
        for host in plan.hosts
        for place, stream in host.streams.items()
    ]
    if not orders:
        yield listener
        return
    try:
        (plan.work / _ORDERS).write_text(json.dumps(orders), encoding="utf-8")
        process, alive = _start(str(plan.work / _ORDERS))
    except OSError as error:
        raise RunError(f"the pipes cannot be written: {error.strerror}: {error.filename}") from error
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    watching = _Watching(listener, process.stdout)
    try:
        yield watching
        watching.check()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(alive)


def _start(orders: str) -> tuple["subprocess.Popen[bytes]", int]:
    # As for a host: stdin ends with `trainbox run`, which the writer must not outlive.
    stdin, alive = os.pipe()
    command = [sys.executable, "-I", "-S", pipe_writer.__file__, orders]
    try:
        process = subprocess.Popen(
            namespace.started_in(namespace.spec("none", ()), command),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        os.close(alive)
        raise
    finally:
        os.close(stdin)
    return process, alive
