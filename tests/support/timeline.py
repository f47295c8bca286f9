"""Time that a test moves: members with heartbeats, connected by pairs of sockets, in one thread."""

import contextlib
import select
import socket
from collections.abc import Sequence

import msgspec

from trainbox.comm.heartbeat import HeartbeatMonitor
from trainbox.errors import PeerError

#: Shorter than any interval of heartbeats here; a power of two, so that sums of it are exact.
STEP = 0.125


class Timeline:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def poll_at_once(events: Sequence[tuple[int, int]], _seconds: float) -> list[int]:
    """Those that have their events; nothing is waited for."""
    poll = select.poll()
    for descriptor, event in events:
        poll.register(descriptor, event)
    return [descriptor for descriptor, _ in poll.poll(0)]


class Loss(msgspec.Struct, frozen=True):
    """What a member has found, and when."""

    after: float
    message: str
    exit_code: int


class Star(Timeline):
    """The heartbeats of a leader and its members.

    Args:
        names: The leader first.
        limit: Seconds of silence.
    """

    def __init__(self, *names: str, limit: float) -> None:
        super().__init__()
        self.leader = names[0]
        self.monitors = {
            name: HeartbeatMonitor(name, limit=limit, clock=self.clock, poll=poll_at_once) for name in names
        }
        self.ends: dict[str, socket.socket] = {}
        #: Those that do not run.
        self.frozen: set[str] = set()
        self.ended: set[str] = set()
        self.found: dict[str, Loss] = {}
        self._started = self.now
        for name in names[1:]:
            ours, self.ends[name] = socket.socketpair()
            self.monitors[self.leader].add(name, ours)
            self.monitors[name].add(self.leader, self.ends[name])

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now - self._started

    def run(self, seconds: float) -> None:
        """Let all that are not frozen have their turns for so long."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP
            for name, monitor in list(self.monitors.items()):
                if name not in self.frozen | self.ended:
                    self._turn(name, monitor)

    def die(self, name: str) -> None:
        """A process is gone, and its connections with it: no word was said."""
        self.monitors.pop(name).close()

    def deafen(self, name: str) -> None:
        """What was sent to a member never arrives: its network was gone as well."""
        with contextlib.suppress(BlockingIOError):
            while self.ends[name].recv(65536):
                pass

    def _turn(self, name: str, monitor: HeartbeatMonitor) -> None:
        if not monitor.turn():
            self.ended.add(name)
        try:
            monitor.check()
        except PeerError as error:
            self.found.setdefault(name, Loss(self.elapsed, error.message, error.exit_code))

    def close(self) -> None:
        for monitor in self.monitors.values():
            monitor.close()
