"""Time that a test moves: members with a lifeline each, connected by pairs of sockets, in one thread."""

import contextlib
import select
import socket
from collections.abc import Sequence

import msgspec

from trainbox.errors import PeerError
from trainbox.peers.lifeline import LONGEST_WORD_BYTES, Lifeline, Word
from trainbox.peers.wire import Wire

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


def poll_at_once(descriptors: Sequence[int], _seconds: float) -> list[int]:
    """What can be read from; nothing is waited for."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(0)]


class Loss(msgspec.Struct, frozen=True):
    """What a member has found, and when."""

    after: float
    message: str
    exit_code: int


class Star(Timeline):
    """The lifelines of a leader and its members.

    Args:
        names: The leader first.
        limit: Seconds of silence.
    """

    def __init__(self, *names: str, limit: float) -> None:
        super().__init__()
        self.leader = names[0]
        self.lives = {name: Lifeline(name, limit=limit, clock=self.clock, poll=poll_at_once) for name in names}
        self.wires: dict[str, tuple[Wire[Word], Wire[Word]]] = {}
        #: Those that do not run.
        self.frozen: set[str] = set()
        self.ended: set[str] = set()
        self.found: dict[str, Loss] = {}
        self._started = self.now
        for name in names[1:]:
            ours, theirs = (Wire(end, Word, longest=LONGEST_WORD_BYTES) for end in socket.socketpair())
            self.wires[name] = (ours, theirs)
            self.lives[self.leader].add(name, ours)
            self.lives[name].add(self.leader, theirs)

    def run(self, seconds: float) -> None:
        """Let all that are not frozen have their turns for so long."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP
            for name, life in list(self.lives.items()):
                if name not in self.frozen | self.ended:
                    self._turn(name, life)

    def die(self, name: str) -> None:
        """A process is gone, and its connections with it: no word was said."""
        self.lives.pop(name).close()

    def deafen(self, name: str) -> None:
        """What has been said to a member never comes: its network was gone as well."""
        connection = self.wires[name][1].connection
        with contextlib.suppress(BlockingIOError):
            while connection.recv(65536):
                pass

    def _turn(self, name: str, life: Lifeline) -> None:
        if not life.turn():
            self.ended.add(name)
        try:
            life.check()
        except PeerError as error:
            self.found.setdefault(name, Loss(self.now - self._started, error.message, error.exit_code))

    def close(self) -> None:
        for life in self.lives.values():
            life.close()
