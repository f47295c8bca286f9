"""How members find each other: the leader opens a door, the others knock, and whoever is not of the job stays outside.

Each comes twice: with a connection for the signs of life, and with one for what the members tell each other.
"""

import contextlib
import select
import socket
import time
from typing import Literal

from trainbox.clock import Clock, Patience, Sleep, describe_missed, wait_from
from trainbox.errors import PeerError, Stopped
from trainbox.peers.lifeline import LONGEST_WORD_BYTES, Lifeline, Loss, Word
from trainbox.peers.members import Members
from trainbox.peers.wire import Wire, connect, listen
from trainbox.say import say

Role = Literal["life", "data"]

_PAUSE_SECONDS = 0.05
_TURN_SECONDS = 1.0
#: A visitor who has not said who it is by then, and an answer that has not come: a stranger.
_GREET_SECONDS = 5.0
#: For a try to reach the leader: to connect, to be answered, and to wait for the next.
_LONGEST_TRY_SECONDS = 10.0
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
        clock: The time in seconds.

    Raises:
        PeerError: The port is taken.
    """

    def __init__(self, members: Members, port: int, lifeline: Lifeline, *, clock: Clock = time.monotonic) -> None:
        self._members = members
        self._lifeline = lifeline
        self._clock = clock
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
        waiting = _Waiting(patience, self._clock)
        while missing := self._missing():
            if waiting.look(_TURN_SECONDS).is_over:
                raise self._lifeline.lose(waiting.loss(self._members.name, _some(missing), f"within {patience:g} s"))
            waiting.say(_some(missing))
            self._turn(waiting.patience)
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

    def _turn(self, patience: Patience) -> None:
        poll = select.poll()
        for source in (self._listener.fileno(), self._lifeline.alarm.fileno(), *self._visitors):
            poll.register(source, select.POLLIN)
        for source, _ in poll.poll(patience.pause * 1000):
            if source == self._listener.fileno():
                self._open()
            elif source in self._visitors:
                self._hear(source)
        self._show_out(patience.now)

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            wire = Wire(connection, Word, longest=LONGEST_WORD_BYTES)
            self._visitors[connection.fileno()] = (wire, self._clock())

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

    def _show_out(self, now: float) -> None:
        """Strangers who say nothing, and the oldest where there are too many: they must not use up all descriptors.

        Args:
            now: Before what has come was read: this process itself may have been stopped since.
        """
        latest = now - _GREET_SECONDS
        crowd = len(self._visitors) - _MOST_VISITORS
        for place, (source, (wire, since)) in enumerate(tuple(self._visitors.items())):
            if since < latest or place < crowd:
                del self._visitors[source]
                wire.close()


class _Waiting:
    """A wait for others, not in silence."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock = clock
        self.patience = wait_from(clock(), seconds)
        self._spoken = self.patience.started

    def look(self, pause: float) -> Patience:
        """The wait as it is now, given how long the next turn may take."""
        self.patience = self.patience.look(self._clock(), pause=pause)
        if self.patience.missed:
            say(describe_missed(self.patience.missed))
        return self.patience

    def say(self, whom: str) -> None:
        """One line every ten seconds."""
        now = self.patience.now
        if now - self._spoken >= _SECONDS_BETWEEN_LINES:
            self._spoken = now
            say(f"waiting for {whom} ({self.patience.waited:.0f} of {self.patience.seconds:g} s)")

    def loss(self, me: str, missing: str, how: str) -> Loss:
        """Who is to blame for those who have not come: this one, if it was away for as long as the others wait."""
        if self.patience.was_absent:
            absent = self.patience.missed_in_all
            return Loss(me, f"is lost: it did not run for {absent:.0f} s while the members were to meet")
        return Loss(missing, f"never came ({how})", _NEVER_CAME_HINT)


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def knock(
    members: Members,
    port: int,
    lifeline: Lifeline,
    *,
    patience: float,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> socket.socket:
    """Go to the leader, which may come later.

    Args:
        members: All; this one does not lead.
        port: Where the leader listens.
        lifeline: Takes the connection for the signs of life.
        patience: Seconds to try.
        clock: The time in seconds.
        sleep: Waits between two tries.

    Returns:
        The connection for data.

    Raises:
        PeerError: The leader is not there, or somebody else is.
    """
    caller = _Caller(members, port, lifeline, _Waiting(patience, clock), sleep)
    wire, words = caller.call("life")
    lifeline.add(members.names[0], wire, words)
    return caller.call("data")[0].connection


class _Caller:
    """Tries until it is let in, or its patience is at an end."""

    def __init__(self, members: Members, port: int, lifeline: Lifeline, waiting: _Waiting, sleep: Sleep) -> None:
        self._members = members
        self._port = port
        self._lifeline = lifeline
        self._waiting = waiting
        self._sleep = sleep

    def call(self, role: Role) -> tuple[Wire[Word], list[Word]]:
        """A connection to the leader, and what has come on it behind the answer."""
        while True:
            self._lifeline.check()
            is_over = self._waiting.look(_LONGEST_TRY_SECONDS).is_over  # before: a last try may still be let in
            try:
                return self._try(role)
            except OSError as error:
                if is_over:
                    raise self._missed(error) from None
                self._waiting.say(self._members.names[0])
                self._sleep(_PAUSE_SECONDS)

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

    def _missed(self, error: OSError) -> PeerError | Stopped:
        leader = self._members.names[0]
        where = f"port {self._port} of {self._members.address}: {error.strerror or error}"
        how = f"within {self._waiting.patience.seconds:g} s; {where}"
        return self._lifeline.error(self._waiting.loss(self._members.name, leader, how))
