"""Rendezvous: the leader accepts connections, the members connect, and connections from elsewhere are rejected.

Each member connects twice: once for the signs of life, and once for what the members tell each other. Both begin with
the handshake of `handshake`.
"""

import contextlib
import select
import socket
import time
from collections.abc import Mapping

from trainbox.clock import Clock, Patience, Sleep, describe_missed, wait_from
from trainbox.contract.peer_key import PEER_KEY_VARIABLE, SAME_KEY_HINT
from trainbox.errors import PeerError, Stopped
from trainbox.peers.acceptor import GREETING_SECONDS, LONGEST_PAUSE_SECONDS, Acceptor, Service
from trainbox.peers.handshake import Introduction, Reason, Refused, Role, say_hello
from trainbox.peers.lifeline import LONGEST_WORD_BYTES, Lifeline, Loss, Word
from trainbox.peers.members import Members
from trainbox.peers.wire import Wire, connect
from trainbox.say import say

_PAUSE_SECONDS = 0.05
#: For a try to reach the leader: to connect, to be answered, and to wait for the next.
_LONGEST_TRY_SECONDS = 10.0
_MOST_NAMES = 5
_SECONDS_BETWEEN_LINES = 10.0
_NEVER_CAME_HINT = "did it fail to start? See its log; the job's security group must allow traffic in it"
#: Where the leader is there, and rejects this member, what to do about it.
_REJECTED_HINTS: Mapping[Reason, str] = {
    "taken": f"does the host run twice? Without {PEER_KEY_VARIABLE} anybody on the network can take the name of a host",
    "proof": SAME_KEY_HINT,
    "version": "all hosts must run the same image",
}
#: Trying again does not change these.
_FINAL: frozenset[Reason] = frozenset({"proof", "version"})


class Door:
    """The leader's side: open until all have come.

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
        self._came: dict[Role, dict[str, socket.socket]] = {"life": {}, "data": {}}
        service = Service(members.job, frozenset(members.names[1:]), frozenset(self._came), members.key)
        try:
            self._acceptor = Acceptor(members.address, port, service, clock=clock)
        except OSError as error:
            raise PeerError(
                f"port {port} of {members.address} cannot be opened for the members of the job: {error.strerror}",
                hint="the variable MASTER_PORT names another",
            ) from None

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
            if waiting.look(LONGEST_PAUSE_SECONDS).is_over:
                raise self._lifeline.lose(self._explain(waiting, missing))
            waiting.say(_some(missing))
            self._turn(waiting.patience)
            self._lifeline.check()
        data, self._came["data"] = self._came["data"], {}
        return {name: data[name] for name in self._members.names[1:]}

    def close(self) -> None:
        """Reject whoever has not come by now."""
        self._acceptor.close()
        for connection in self._came["data"].values():
            connection.close()

    def _missing(self) -> list[str]:
        came = self._came["life"].keys() & self._came["data"].keys()
        return [name for name in self._members.names[1:] if name not in came]

    def _turn(self, patience: Patience) -> None:
        poll = select.poll()
        for source in (*self._acceptor.sources(), self._lifeline.alarm.fileno()):
            poll.register(source, select.POLLIN)
        ready = [source for source, _ in poll.poll(patience.pause * 1000)]
        for arrival in self._acceptor.turn(ready):
            self._came[arrival.role][arrival.member] = arrival.connection
            if arrival.role == "life":
                self._lifeline.add(arrival.member, Wire(arrival.connection, Word, longest=LONGEST_WORD_BYTES))

    def _explain(self, waiting: "_Waiting", missing: list[str]) -> Loss:
        """Name those that have not come, and who called in their names without a proof."""
        how = f"within {waiting.patience.seconds:g} s"
        unproved = [f"{self._acceptor.unproved[name]} as {name}" for name in missing if name in self._acceptor.unproved]
        if not unproved:
            return waiting.loss(self._members.name, _some(missing), how)
        how += f"; refused without a proof: {_some(unproved)}"
        return waiting.loss(self._members.name, _some(missing), how, hint=SAME_KEY_HINT)


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

    def loss(self, me: str, missing: str, how: str, *, hint: str = _NEVER_CAME_HINT) -> Loss:
        """Who is to blame for those who have not come: this one, if it was away for as long as the others wait."""
        if self.patience.was_absent:
            absent = self.patience.missed_in_all
            return Loss(me, f"is lost: it did not run for {absent:.0f} s while the members were to meet")
        return Loss(missing, f"never came ({how})", hint)


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
        PeerError: The leader is not there, or rejects this member, or somebody else is there.
    """
    caller = _Caller(members, port, lifeline, _Waiting(patience, clock), sleep)
    lifeline.add(members.names[0], Wire(caller.call("life"), Word, longest=LONGEST_WORD_BYTES))
    return caller.call("data")


class _Caller:
    """Tries until it is let in, or its patience is at an end."""

    def __init__(self, members: Members, port: int, lifeline: Lifeline, waiting: _Waiting, sleep: Sleep) -> None:
        self._members = members
        self._port = port
        self._lifeline = lifeline
        self._waiting = waiting
        self._sleep = sleep

    def call(self, role: Role) -> socket.socket:
        """Return a connection to the leader on which both have proved themselves."""
        while True:
            self._lifeline.check()
            is_over = self._waiting.look(_LONGEST_TRY_SECONDS).is_over  # before: a last try may still be let in
            try:
                return self._try(role)
            except OSError as error:
                if is_over or (isinstance(error, Refused) and error.reason in _FINAL):
                    raise self._missed(error) from None
                self._waiting.say(self._members.names[0])
                self._sleep(_PAUSE_SECONDS)

    def _try(self, role: Role) -> socket.socket:
        members = self._members
        with contextlib.ExitStack() as stack:
            connection = connect(members.address, self._port)
            stack.callback(connection.close)
            connection.settimeout(GREETING_SECONDS)
            introduction = Introduction(connection, say_hello(members.job, members.name, role), members.key)
            while not introduction.advance():
                pass
            stack.pop_all()
        return connection

    def _missed(self, error: OSError) -> PeerError | Stopped:
        leader, patience = self._members.names[0], self._waiting.patience
        where = f"port {self._port} of {self._members.address}"
        if isinstance(error, Refused) and error.reason in _REJECTED_HINTS and not patience.was_absent:
            why = f"rejects {self._members.name}: {error} ({where})"
            return self._lifeline.error(Loss(leader, why, _REJECTED_HINTS[error.reason]))
        how = f"within {patience.seconds:g} s; {where}: {error.strerror or error}"
        return self._lifeline.error(self._waiting.loss(self._members.name, leader, how))
