"""Started processes and their output: read as it arrives, relayed in whole lines, the last part kept."""

import contextlib
import fcntl
import os
import selectors
from typing import TYPE_CHECKING

from trainbox.supervisor.loop.spawn import spawn
from trainbox.supervisor.outcome import Exit
from trainbox.supervisor.plan import Child
from trainbox.system.relay import Lines, Sink

if TYPE_CHECKING:
    from trainbox.supervisor.loop.asked import Asked

_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_MOST_READS = 64


class Process:
    """A child or sidecar that was started, and its two streams.

    Args:
        child: What to start.
        is_sidecar: Whether it is one.

    Raises:
        ProgramError: It cannot be started.
    """

    def __init__(self, child: Child, *, is_sidecar: bool) -> None:
        self.child = child
        self.is_sidecar = is_sidecar
        self.started = spawn(child)
        self.streams = (Lines(), Lines())
        self.why_killed = ""
        #: Why it was killed, where it was because it was not ready in time.
        self.unready = ""
        #: Its wait status once it has ended.
        self.status: int | None = None
        #: Who of its processes has heard of a stop, once it was asked to leave.
        self.asked: Asked | None = None

    def exit(self, status: int) -> Exit:
        """Return how it ended, with the exit code of a shell."""
        code = os.waitstatus_to_exitcode(status)
        out, err = (stream.end().decode(errors="replace") for stream in self.streams)
        return Exit(
            self.child.name,
            code if code >= 0 else 128 - code,
            max(0, -code),
            stderr=err,
            stdout=out,
            hung=self.why_killed,
            unready=self.unready,
        )


class Streams:
    """The output of all processes.

    Args:
        selector: What waits for it.
        sinks: Where it goes.
        several: Whether more than one child writes.
    """

    def __init__(self, selector: selectors.BaseSelector, sinks: tuple[Sink, Sink], *, several: bool) -> None:
        self._selector = selector
        self._sinks = sinks
        self._several = several
        self._open = 0

    def add(self, process: Process) -> None:
        """Register the streams of a process."""
        for pipe, lines, sink in zip(process.started.streams, process.streams, self._sinks, strict=True):
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError):  # beyond what this user may have: the default does, more slowly
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._selector.register(pipe, selectors.EVENT_READ, (process, lines, sink))
            self._open += not process.is_sidecar

    def relay(self, key: selectors.SelectorKey) -> bool:
        """Relay what one stream has; return whether there may be more."""
        process, lines, sink = key.data
        try:
            chunk = os.read(key.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            _write(process, sink, lines.feed(chunk))
            return True
        self._selector.unregister(key.fileobj)
        self._open -= not process.is_sidecar
        _write(process, sink, lines.close())
        if self._open and self._several:
            sink.end_line()  # another process writes here: its next line must not be glued to this last one
        return False

    def _relay_all(self, key: selectors.SelectorKey) -> None:
        """Relay what one stream has by now; bounded, since a leftover process may write for ever."""
        for _ in range(_MOST_READS):
            if not self.relay(key):
                return

    def relay_rest(self, process: Process) -> None:
        """Relay what a process wrote before it ended, so that its last lines are known."""
        for pipe in process.started.streams:
            if pipe in self._selector.get_map():
                self._relay_all(self._selector.get_key(pipe))

    def remove(self, process: Process) -> None:
        """Relay what a process has written, and unregister it: another one takes its place."""
        self.relay_rest(process)
        for pipe, lines, sink in zip(process.started.streams, process.streams, self._sinks, strict=True):
            if pipe in self._selector.get_map():  # what it has started still has the other end
                self._selector.unregister(pipe)
                self._open -= not process.is_sidecar
                _write(process, sink, lines.close())
            sink.end_line()
            os.close(pipe)

    def drain(self) -> None:
        """Relay the rest of all pipes without waiting for their end: an escaped process may keep them open."""
        for key in tuple(self._selector.get_map().values()):
            if key.data is None:
                continue
            self._relay_all(key)
            process, lines, sink = key.data
            _write(process, sink, lines.close())


def _write(process: Process, sink: Sink, ready: bytes) -> None:
    """Write the output of a sidecar on separate lines, even if a child has left a line open."""
    if ready and process.is_sidecar:
        sink.end_line()
    sink.write(ready)
    if ready and process.is_sidecar:
        sink.end_line()
