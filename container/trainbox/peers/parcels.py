"""What two members hand each other in bulk: bytes with their length in front, each with the call that it belongs to."""

import contextlib
import io
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from trainbox.clock import Clock, describe_missed, wait_from
from trainbox.errors import PeerError
from trainbox.peers.wire import CLOSED, send_at_once
from trainbox.say import say

Verb = Literal["gather", "send", "taken", "share"]

CHUNK_BYTES = 4 * 1024 * 1024
LARGEST_BYTES = 4 * 1024 * 1024 * 1024
#: How long to wait without a word.
_QUIET_SECONDS = 60.0
#: Given descriptors with their events, and seconds: whether one has come.
Poll = Callable[[Sequence[tuple[int, int]], float], bool]
_SIZE = struct.Struct("!I")
_LARGEST_LABEL_BYTES = 1024


class _Label(msgspec.Struct, frozen=True):
    """What stands in front of a parcel."""

    #: Counts the calls: all members make the same ones in the same order.
    call: int
    verb: Verb
    length: int


class Line:
    """The connection to one other member.

    Args:
        member: Its name.
        connection: It belongs to this from now on.
        alarm: A socket that can be read from as soon as waiting has become useless.
        check: Raises then.
        longest: Seconds to wait for a member that lives, and does nothing.
        clock: The time in seconds.
        poll: Waits for one of some events, in seconds of that clock.
    """

    def __init__(
        self,
        member: str,
        connection: socket.socket,
        alarm: socket.socket,
        check: Callable[[], None],
        *,
        longest: float,
        clock: Clock = time.monotonic,
        poll: Poll | None = None,
    ) -> None:
        send_at_once(connection)
        connection.setblocking(False)
        self.member = member
        self._connection = connection
        self._alarm = alarm
        self._check = check
        self.longest = longest
        self._clock = clock
        self._poll = poll or poll_events

    def send(self, call: int, verb: Verb, content: bytes = b"") -> None:
        """Hand something over.

        Raises:
            OSError: The connection is gone.
            PeerError: A member is lost, or this one does not take it.
        """
        label = msgspec.json.encode(_Label(call, verb, len(content)))
        for part in (_SIZE.pack(len(label)) + label, content):
            rest = memoryview(part)
            while rest:
                sent = 0
                with contextlib.suppress(BlockingIOError):
                    sent = self._connection.send(rest[:CHUNK_BYTES])
                rest = rest[sent:]
                if not sent:
                    self._wait(select.POLLOUT, verb)

    def receive(self, call: int, verb: Verb, *, largest: int) -> bytes:
        """Take what the other hands over.

        Raises:
            OSError: The connection is gone.
            PeerError: A member is lost; this one hands over nothing, something else, or more than `largest` bytes.
        """
        (size,) = _SIZE.unpack(self._read(_SIZE.size, verb))
        try:
            label = msgspec.json.decode(self._read(min(size, _LARGEST_LABEL_BYTES), verb), type=_Label)
        except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
            raise PeerError(f"{self.member} says what this version of trainbox does not understand") from None
        if (label.call, label.verb) != (call, verb):
            raise PeerError(
                f"{self.member} is at its call {label.call} ({label.verb}), and this one at call {call} ({verb})",
                hint="all members must run the same script with the same hyperparameters",
            )
        if label.length > largest:
            raise PeerError(f"{self.member} hands over {label.length:,} bytes; at most {largest:,} are taken")
        return self._read(label.length, verb)

    def close(self) -> None:
        """Hang up; what was sent still arrives."""
        self._connection.close()

    def _read(self, length: int, verb: Verb) -> bytes:
        taken = io.BytesIO()
        while (left := length - taken.tell()) > 0:
            chunk = None
            with contextlib.suppress(BlockingIOError):
                chunk = self._connection.recv(min(left, CHUNK_BYTES))
            if chunk is None:
                self._wait(select.POLLIN, verb)
            elif chunk:
                taken.write(chunk)
            else:
                raise ConnectionResetError(CLOSED)
        return taken.getvalue()

    def _wait(self, event: int, verb: Verb) -> None:
        """Until the other moves."""
        events = ((self._connection.fileno(), event), (self._alarm.fileno(), select.POLLIN))
        waiting = wait_from(self._clock(), self.longest).look(self._clock(), pause=_QUIET_SECONDS)
        while not self._poll(events, waiting.pause):
            waiting = waiting.look(self._clock(), pause=_QUIET_SECONDS)
            if waiting.missed:
                say(describe_missed(waiting.missed))
            if waiting.is_over:
                raise PeerError(
                    f"{self.member} lives, but has not come to what the others do ({verb}) for {waiting.waited:.0f} s",
                    hint=f"the log of {self.member} shows where it is",
                )
            say(f"waiting for {self.member} ({verb}; {waiting.waited:.0f} of {self.longest:g} s)")
        self._check()


def poll_events(events: Sequence[tuple[int, int]], seconds: float) -> bool:
    """Wait for some seconds until one of some descriptors has its event; whether it has."""
    poll = select.poll()
    for descriptor, event in events:
        poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))
