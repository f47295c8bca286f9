"""The connection for data between the leader and one member: messages one after the other, with a deadline.

Deadlines:

- `timeout`: seconds without any progress after which the other member is `Overdue`. It is alive, or its heartbeats
  would have ended the wait. Time in which this process itself did not run is left out (`clock.Patience`).
- 1 s between two looks at the clock, by which a process notices that it was stopped itself.
- 60 s between two lines of the log about the same wait.

The alarm of the heartbeats ends a wait at once, but for what has arrived already: a member that fails has sent its data
before its reason to leave, and a busy receiver may read the reason first.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Collection, Sequence

from trainbox.clock import Clock, Patience, describe_missed, wait_from
from trainbox.comm.framing import CHUNK_BYTES, Frame, FrameReader, MessageKind, encode_header
from trainbox.comm.sockets import hang_up, send_at_once
from trainbox.errors import PeerError
from trainbox.log_lines import emit

LARGEST_BYTES = 4 * 1024 * 1024 * 1024
LOOK_SECONDS = 1.0
_SECONDS_BETWEEN_LINES = 60.0

#: Given descriptors with their events, and seconds: waits, and returns those that have theirs.
Poll = Callable[[Sequence[tuple[int, int]], float], Collection[int]]


class LoggedWait:
    """A bounded wait for others that writes to the log from time to time.

    Args:
        seconds: Of the whole wait; time in which this process itself does not run is left out.
        clock: The time in seconds.
        interval: Seconds between two lines.
    """

    def __init__(self, seconds: float, clock: Clock, interval: float) -> None:
        self._clock = clock
        self._interval = interval
        self._line_at = interval
        self.patience = wait_from(clock(), seconds)

    def look(self, pause: float) -> Patience:
        """Return the wait as it is now; `pause` is how long the next step may take."""
        self.patience = self.patience.look(self._clock(), pause=pause)
        if self.patience.missed:
            emit(describe_missed(self.patience.missed))
        return self.patience

    def report(self, whom: str, note: str = "") -> None:
        """Write a line if one is due."""
        if self.patience.waited >= self._line_at:
            self._line_at += self._interval
            emit(f"waiting for {whom} ({note}{self.patience.waited:.0f} of {self.patience.seconds:g} s)")


class Overdue(PeerError):  # noqa: N818 - it says what the other member is
    """A member is connected, and neither sends what is expected nor takes what is sent."""


class DataConnection:
    """The connection for data with one other member.

    Args:
        member: Its name.
        connection: Its socket, which belongs to this from now on.
        timeout: Seconds to wait for a member that lives and makes no progress.
        alarm: A socket that can be read from as soon as waiting has become useless.
        check: Raises then.
        clock: The time in seconds.
        poll: Waits for events, in seconds of that clock.
    """

    def __init__(
        self,
        member: str,
        connection: socket.socket,
        *,
        timeout: float,
        alarm: socket.socket | None = None,
        check: Callable[[], None] | None = None,
        clock: Clock = time.monotonic,
        poll: Poll | None = None,
    ) -> None:
        send_at_once(connection)
        connection.setblocking(False)
        self.member = member
        self.timeout = timeout
        self._connection = connection
        self._reader = FrameReader(connection)
        self._alarm = alarm
        self._check = check
        self._clock = clock
        self._poll = poll or poll_events
        #: The last wait, which knows how long this process itself did not run meanwhile.
        self.wait = LoggedWait(timeout, clock, _SECONDS_BETWEEN_LINES)

    def allow(self, timeout: float) -> None:
        """Set another timeout, and measure anew how long this process itself does not run."""
        self.timeout = timeout
        self.wait = LoggedWait(timeout, self._clock, _SECONDS_BETWEEN_LINES)

    def fileno(self) -> int:
        """Return the descriptor, to wait for several connections at once."""
        return self._connection.fileno()

    def read(self, *, largest: int) -> Frame | None:
        """Read once, without waiting; see `FrameReader.read`."""
        return self._reader.read(largest=largest)

    def send(self, call: int, kind: MessageKind, content: bytes = b"") -> None:
        """Send a message, and wait until the connection has taken all of it.

        Raises:
            OSError: The connection is gone.
            PeerError: A member is lost.
            Overdue: This member does not read.
        """
        for part in (encode_header(call, kind, len(content)), content):
            rest = memoryview(part)
            while rest:
                sent = 0
                with contextlib.suppress(BlockingIOError):
                    sent = self._connection.send(rest[:CHUNK_BYTES])
                rest = rest[sent:]
                if not sent:
                    self._wait(select.POLLOUT, kind)

    def receive(self, kind: MessageKind, *, largest: int) -> Frame:
        """Wait for the next message.

        Args:
            kind: What the caller waits for, for the log.
            largest: The most bytes of content.

        Raises:
            OSError: The connection is gone, or what arrives is no message of ours, or a larger one.
            PeerError: A member is lost.
            Overdue: This member sends nothing.
        """
        while True:
            try:
                frame = self._reader.read(largest=largest)
            except BlockingIOError:
                self._wait(select.POLLIN, kind)
            else:
                if frame is not None:
                    return frame

    def close(self) -> None:
        """Close the connection; what was sent still arrives."""
        hang_up(self._connection)

    def _wait(self, event: int, kind: MessageKind) -> None:
        """Wait until the connection is ready. What has arrived already is worth more than the news of a loss."""
        events = [(self.fileno(), event)]
        if self._alarm is not None:
            events.append((self._alarm.fileno(), select.POLLIN))
        self.wait = LoggedWait(self.timeout, self._clock, _SECONDS_BETWEEN_LINES)
        ready: Collection[int] = ()
        while not ready:
            patience = self.wait.look(LOOK_SECONDS)
            if patience.is_over:
                raise Overdue(
                    f"{self.member} is alive but has not reached {kind} for {patience.waited:.0f} s;"
                    " the other processes are waiting",
                    hint=f"the log of {self.member} shows what it is doing",
                )
            self.wait.report(self.member, f"{kind}; ")
            ready = self._poll(events, patience.pause)
        self.wait.look(LOOK_SECONDS)
        if self.fileno() not in ready and self._check is not None:
            self._check()


def poll_events(events: Sequence[tuple[int, int]], seconds: float) -> list[int]:
    """Wait for some seconds until descriptors have their events; return those that have."""
    poll = select.poll()
    for descriptor, event in events:
        poll.register(descriptor, event)
    # Rounded up: to wake too early would be to wait without a pause.
    return [descriptor for descriptor, _ in poll.poll(int(seconds * 1000) + (seconds > 0))]
