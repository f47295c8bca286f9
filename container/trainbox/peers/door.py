"""How members find each other: the leader opens a door, the others knock, and whoever is not of the job stays outside.

Each comes twice: with a connection for the signs of life, and with one for what the members tell each other.
"""

import contextlib
import select
import socket
import time
from typing import Literal

from trainbox.errors import PeerError
from trainbox.peers.lifeline import LONGEST_WORD_BYTES, Lifeline, Loss, Word
from trainbox.peers.members import Members
from trainbox.peers.wire import Wire, connect, listen
from trainbox.say import say

Role = Literal["life", "data"]

_PAUSE_SECONDS = 0.05
#: A visitor who has not said who it is by then, and an answer that has not come: a stranger.
_GREET_SECONDS = 5.0
_MOST_VISITORS = 256
_BACKLOG = 128
_MOST_NAMES = 5
_SECONDS_BETWEEN_LINES = 10.0
_NEVER_CAME_HINT = "did it fail to start? See its log; the job's security group must allow traffic in it"


class Door:
    """The leader's: open until all have come.

    Args:
        members: All; this one leads.
        port: Where to listen, on the address of the leader.
        lifeline: Takes the connections for the signs of life.

    Raises:
        PeerError: The port is taken.
    """

    def __init__(self, members: Members, port: int, lifeline: Lifeline) -> None:
        self._members = members
        self._lifeline = lifeline
        self._visitors: dict[int, tuple[Wire[Word], float]] = {}
        self._came: dict[Role, dict[str, socket.socket]] = {"life": {}, "data": {}}
        try:
            self._listener = listen(members.address, port, backlog=_BACKLOG + 2 * members.size)
        except OSError as error:
            raise PeerError(
                f"port {port} of {members.address} cannot be opened for the members of the job: {error.strerror}",
                hint="the variable MASTER_PORT names another",
            ) from None
        self._listener.setblocking(False)

    def welcome(self, patience: float) -> dict[str, socket.socket]:
        """Wait for all others.

        Args:
            patience: Seconds for all of them together.

        Returns:
            The connections for data, in the order of the members, whoever came first.

        Raises:
            PeerError: Some have not come, or one was lost meanwhile.
        """
        clock = _Patience(patience)
        while missing := self._missing():
            if clock.is_over:
                raise self._lifeline.lose(Loss(_some(missing), f"never came (within {patience:g} s)", _NEVER_CAME_HINT))
            clock.say(_some(missing))
            self._turn(min(clock.left, 1.0))
            self._lifeline.check()
        data, self._came["data"] = self._came["data"], {}
        return {name: data[name] for name in self._members.names[1:]}

    def close(self) -> None:
        """Whoever has not come now will not be let in."""
        for wire, _ in self._visitors.values():
            wire.close()
        for connection in self._came["data"].values():
            connection.close()
        self._listener.close()

    def _missing(self) -> list[str]:
        came = self._came["life"].keys() & self._came["data"].keys()
        return [name for name in self._members.names[1:] if name not in came]

    def _turn(self, seconds: float) -> None:
        poll = select.poll()
        for source in (self._listener.fileno(), self._lifeline.alarm.fileno(), *self._visitors):
            poll.register(source, select.POLLIN)
        for source, _ in poll.poll(seconds * 1000):
            if source == self._listener.fileno():
                self._open()
            elif source in self._visitors:
                self._hear(source)
        self._show_out()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            wire = Wire(connection, Word, longest=LONGEST_WORD_BYTES)
            self._visitors[connection.fileno()] = (wire, time.monotonic())

    def _hear(self, source: int) -> None:
        wire, _ = self._visitors[source]
        try:
            words = wire.receive()
        except BlockingIOError:
            return
        except OSError:
            words = [Word()]  # the greeting of nobody
        if words:
            del self._visitors[source]
            self._greet(wire, *words)

    def _greet(self, wire: Wire[Word], greeting: Word, *further: Word) -> None:
        role, name = greeting.role, greeting.member
        known = greeting.job == self._members.job and name in self._members.names[1:]
        if not known or not role or name in self._came[role]:
            wire.close()
            return
        with contextlib.suppress(OSError):  # it shows when it is read from
            wire.send(Word(job=self._members.job, member=self._members.name))
        self._came[role][name] = wire.connection
        if role == "life":
            self._lifeline.add(name, wire, further)

    def _show_out(self) -> None:
        """Strangers who say nothing, and the oldest where there are too many: they must not use up all descriptors."""
        latest = time.monotonic() - _GREET_SECONDS
        crowd = len(self._visitors) - _MOST_VISITORS
        for place, (source, (wire, since)) in enumerate(tuple(self._visitors.items())):
            if since < latest or place < crowd:
                del self._visitors[source]
                wire.close()


class _Patience:
    """Seconds to wait, not in silence."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = self._spoken = time.monotonic()

    @property
    def left(self) -> float:
        return self._started + self.seconds - time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.left <= 0

    def say(self, whom: str) -> None:
        """One line every ten seconds."""
        now = time.monotonic()
        if now - self._spoken >= _SECONDS_BETWEEN_LINES:
            self._spoken = now
            say(f"waiting for {whom} ({now - self._started:.0f} of {self.seconds:g} s)")


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def knock(members: Members, port: int, lifeline: Lifeline, *, patience: float) -> socket.socket:
    """Go to the leader, which may come later.

    Args:
        members: All; this one does not lead.
        port: Where the leader listens.
        lifeline: Takes the connection for the signs of life.
        patience: Seconds to try.

    Returns:
        The connection for data.

    Raises:
        PeerError: The leader is not there, or somebody else is.
    """
    caller = _Caller(members, port, lifeline, patience)
    wire, words = caller.call("life")
    lifeline.add(members.names[0], wire, words)
    return caller.call("data")[0].connection


class _Caller:
    """Tries until it is let in, or its patience is at an end."""

    def __init__(self, members: Members, port: int, lifeline: Lifeline, patience: float) -> None:
        self._members = members
        self._port = port
        self._lifeline = lifeline
        self._patience = _Patience(patience)

    def call(self, role: Role) -> tuple[Wire[Word], list[Word]]:
        """A connection to the leader, and what has come on it behind the answer."""
        while True:
            self._lifeline.check()
            try:
                return self._try(role)
            except OSError as error:
                if self._patience.is_over:
                    raise self._missed(error) from None
                self._patience.say(self._members.names[0])
                time.sleep(_PAUSE_SECONDS)

    def _try(self, role: Role) -> tuple[Wire[Word], list[Word]]:
        members = self._members
        wire = Wire(connect(members.address, self._port), Word, longest=LONGEST_WORD_BYTES)
        with contextlib.ExitStack() as stack:
            stack.callback(wire.close)
            wire.connection.settimeout(_GREET_SECONDS)
            wire.send(Word(job=members.job, member=members.name, role=role))
            while not (words := wire.receive()):
                pass
            if (words[0].job, words[0].member) != (members.job, members.names[0]):
                raise ConnectionAbortedError("another job listens there")
            stack.pop_all()
        return wire, words[1:]

    def _missed(self, error: OSError) -> PeerError:
        leader = self._members.names[0]
        where = f"port {self._port} of {self._members.address}: {error.strerror or error}"
        return PeerError(f"{leader} never came (within {self._patience.seconds:g} s; {where})", hint=_NEVER_CAME_HINT)
