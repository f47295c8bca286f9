"""The hosts of a job tell each other what they have found: JSON lines over TCP to the first host, round by round.

In each round every host says one thing, the first host decides something from all of it, and all get the answer. With
the standard library alone: a cluster without torch has disks and clocks, too.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import msgspec

from trainbox.clock import FROZEN_SECONDS, Clock, Patience, Sleep, describe_missed, wait_from
from trainbox.peers.wire import Wire, connect, describe, listen
from trainbox.say import say

T = TypeVar("T")
R = TypeVar("R")
#: Given what each host said and why others said nothing; returns what all are told.
Decide = Callable[[Mapping[str, T], Mapping[str, str]], R]
Share = Callable[[R, str], R]

#: Between two looks at the clock, in which a host notices that it was itself stopped.
LOOK_SECONDS = 1.0
_CLOCK_TRIES = 5
_PAUSE_SECONDS = 0.05
#: For a try to connect.
_LONGEST_TRY_SECONDS = 10.0
#: For what the first host does between the last word of a round and its answer.
_MARGIN_SECONDS = 5.0
#: A host that does not take its answer for so long is frozen; it must not hold up the others.
_SEND_SECONDS = 5.0
#: Connections that may wait while the first host is at its own checks: strangers shall not keep the hosts out.
_BACKLOG = 128
#: At what has come when the time is over: somebody who never stops talking must not hold up the others.
_MOST_LOOKS = 1000
NEVER_CAME = "never arrived"
STOPPED = "stopped answering"
OTHER_VERSION = "says what this version of trainbox does not understand"


class Lost(Exception):  # noqa: N818 - it says what happened to the other host
    """The first host does not answer, or no more."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host
        self.reason = reason


class Exchange(Protocol):
    """How the hosts agree; the same calls in the same order on every host."""

    #: This host's clock minus the first host's, in seconds; known once it is settled.
    skew: float

    def settle(self, *, seconds: float) -> None:
        """Find the first host at its end of the line, which may take it so many seconds.

        Raises:
            Lost: The first host does not answer.
        """

    def agree(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, seconds: float, share: Share[R]
    ) -> R:
        """One round.

        Args:
            value: What this host says.
            kind: Its type, the same on all hosts.
            decide: Runs on the first host alone.
            answer: The type of what it returns.
            seconds: How long the first host waits for those that have come.
            share: What of the answer a host is told, given its name; the first host has all of it.

        Raises:
            Lost: The first host does not answer.
        """

    def close(self) -> None:
        """Let go of the others."""


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line, of either side."""

    #: The client's greeting: which job, which host.
    job: str = ""
    host: str = ""
    #: The first host's time, asked for and answered.
    clock: float | None = None
    round: int = 0
    value: msgspec.Raw = msgspec.Raw()


class Alone:
    """The only host of its job."""

    skew = 0.0

    def __init__(self, host: str) -> None:
        self._host = host

    def settle(self, *, seconds: float) -> None:
        """There is nobody to find."""

    def agree(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, seconds: float, share: Share[R]
    ) -> R:
        """Decide from what this host says; there is nobody else."""
        del kind, answer, seconds, share
        return decide({self._host: value}, {})

    def close(self) -> None:
        """Nothing is open."""


class _Peer(Wire[_Line]):
    """One connection."""

    def __init__(self, connection: socket.socket, since: float = 0.0) -> None:
        super().__init__(connection, _Line)
        connection.settimeout(_SEND_SECONDS)
        self.since = since
        self.host = ""


def seconds_left(waiting: Patience, connect_until: float, missing: Iterable[float | None]) -> float:
    """How long the first host still waits for somebody in a round; nobody is waited for at 0 and below.

    Args:
        waiting: The round, with how long a host that has come may take.
        connect_until: Until when those that have not come may.
        missing: Of each host that has not spoken in this round since when it is here, None if it has not come.
    """
    ends = [connect_until if since is None else max(waiting.started, since) + waiting.seconds for since in missing]
    return waiting.postpone(max(ends)) - waiting.now if ends else 0.0


class Hub:
    """The first host: it listens, collects and answers.

    Args:
        hosts: All hosts; this is the first.
        port: Where it listens, on the address that its own name has.
        job: What tells this job from others; the same on all hosts.
        patience: Seconds from now within which all others are to connect.
        clock: The time of day in seconds.
        monotonic: The time in seconds that waits are measured by.

    Raises:
        OSError: The port is taken, or the host's name is not its own address.
    """

    skew = 0.0

    def __init__(
        self,
        hosts: tuple[str, ...],
        port: int,
        job: str,
        *,
        patience: float,
        clock: Clock,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._hosts = hosts
        self._job = job
        self._clock = clock
        self._monotonic = monotonic
        self._until = monotonic() + patience
        self._round = 0
        self._peers: dict[str, _Peer] = {}
        #: Why a host that has come is no more.
        self._gone: dict[str, str] = {}
        self._values: dict[str, msgspec.Raw] = {}
        self._listener = listen(hosts[0], port, backlog=_BACKLOG + len(hosts))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def settle(self, *, seconds: float) -> None:
        """The others set their clocks beside this one."""

    def agree(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, seconds: float, share: Share[R]
    ) -> R:
        """Collect what the others say, decide, and answer those who are still there."""
        del answer
        self._round += 1
        self._values = {}
        self._collect(seconds)
        said, silent = self._collected(value, kind)
        decided = decide(said, silent)
        for host, peer in list(self._peers.items()):
            self._tell(peer, _Line(round=self._round, value=msgspec.Raw(msgspec.json.encode(share(decided, host)))))
        return decided

    def close(self) -> None:
        """Let go of all."""
        # Those that have not said who they are, too.
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                key.data.connection.close()
        self._selector.close()
        self._listener.close()

    def _collect(self, seconds: float) -> None:
        """Hear all who have something to say in this round, until nobody is waited for any more."""
        waiting = wait_from(self._monotonic(), seconds)
        looks_left = _MOST_LOOKS
        while True:
            waiting = waiting.look(self._monotonic(), pause=LOOK_SECONDS)
            if waiting.missed:
                say(f"health: {describe_missed(waiting.missed)}")
            left = seconds_left(waiting, self._until, self._missing())
            ready = self._selector.select(max(0.0, min(left, LOOK_SECONDS)))
            for key, _ in ready:
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            # What is there already is heard though the time is over: this host itself may have come late to the round.
            looks_left -= left <= 0
            if left <= 0 and (not ready or not looks_left):
                break
        self._until += waiting.missed_in_all

    def _missing(self) -> list[float | None]:
        return [
            self._peers[host].since if host in self._peers else None
            for host in self._hosts[1:]
            if host not in self._values and host not in self._gone
        ]

    def _collected(self, value: T, kind: type[T]) -> tuple[dict[str, T], dict[str, str]]:
        """In the order of the hosts, whoever spoke first."""
        said = {self._hosts[0]: value}
        silent = {}
        for host in self._hosts[1:]:
            if host not in self._values:
                silent[host] = self._gone.get(host) or (STOPPED if host in self._peers else NEVER_CAME)
                continue
            try:
                said[host] = msgspec.json.decode(self._values[host], type=kind)
            except (ValueError, RecursionError):
                silent[host] = OTHER_VERSION
        return said, silent

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._selector.register(connection, selectors.EVENT_READ, _Peer(connection, self._monotonic()))

    def _hear(self, peer: _Peer) -> None:
        try:
            for line in peer.receive():
                if not peer.host:
                    self._greet(peer, line)
                elif line.clock is not None:
                    peer.send(_Line(clock=self._clock()))
                elif line.round == self._round:
                    self._values[peer.host] = line.value
        except OSError as error:
            self._drop(peer, describe(error))

    def _greet(self, peer: _Peer, line: _Line) -> None:
        if line.job != self._job or line.host not in self._hosts[1:] or line.host in self._peers:
            raise ConnectionAbortedError("no host of this job")
        peer.host = line.host
        self._peers[peer.host] = peer
        peer.send(_Line(job=self._job, host=self._hosts[0]))

    def _tell(self, peer: _Peer, line: _Line) -> None:
        try:
            peer.send(line)
        except OSError as error:
            self._drop(peer, f"does not take what it is sent: {describe(error)}")

    def _drop(self, peer: _Peer, reason: str) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.host:
            del self._peers[peer.host]
            self._gone[peer.host] = reason


class Spoke:
    """Any other host: connected to the first one.

    Args:
        hosts: All hosts.
        host: This one.
        port: Where the first host listens.
        job: What tells this job from others.
        patience: Seconds to try, and those within which the first host waits for all others.
        clock: The time of day in seconds.
        monotonic: The time in seconds that waits are measured by.
        sleep: Waits between two tries.

    Raises:
        Lost: The first host cannot be reached.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        host: str,
        port: int,
        job: str,
        *,
        patience: float,
        clock: Clock,
        monotonic: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.skew = 0.0
        self._first = hosts[0]
        self._host = host
        self._job = job
        self._patience = patience
        self._clock = clock
        self._monotonic = monotonic
        self._round = 0
        self._lines: list[_Line] = []
        waiting = wait_from(monotonic(), patience)
        while True:
            waiting = waiting.look(monotonic(), pause=_LONGEST_TRY_SECONDS)
            try:
                self._peer = _Peer(connect(self._first, port))
                self._peer.send(_Line(job=job, host=host))
            except OSError as error:
                if waiting.is_over:
                    reason = error.strerror or str(error)
                    raise self._lost(waiting, patience, f"{NEVER_CAME} (port {port}: {reason})") from None
                sleep(_PAUSE_SECONDS)
            else:
                return

    def settle(self, *, seconds: float) -> None:
        """Wait until the first host is there to talk, and set this clock beside that one."""
        if self._receive(seconds + _MARGIN_SECONDS, first_waits=seconds).job != self._job:
            raise Lost(self._first, "it speaks another language")
        self.skew = self._measure()

    def agree(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, seconds: float, share: Share[R]
    ) -> R:
        """Say something and wait for the answer."""
        del kind, decide, share
        self._round += 1
        limit = self._patience + seconds + _MARGIN_SECONDS
        mine = _Line(round=self._round, value=msgspec.Raw(msgspec.json.encode(value)))
        line = self._ask(mine, limit, first_waits=seconds)
        try:
            return msgspec.json.decode(line.value, type=answer)
        except (ValueError, RecursionError):
            raise Lost(self._first, OTHER_VERSION) from None

    def close(self) -> None:
        """Let go."""
        self._peer.connection.close()

    def _ask(self, line: _Line, seconds: float, *, first_waits: float) -> _Line:
        try:
            self._peer.send(line)
        except OSError as error:
            raise Lost(self._first, describe(error)) from None
        return self._receive(seconds, first_waits=first_waits)

    def _receive(self, seconds: float, *, first_waits: float) -> _Line:
        waiting = wait_from(self._monotonic(), seconds)
        while not self._lines:
            waiting = waiting.look(self._monotonic(), pause=LOOK_SECONDS)
            if waiting.missed:
                say(f"health: {describe_missed(waiting.missed)}")
            if waiting.is_over:
                raise self._lost(waiting, first_waits, STOPPED)
            self._peer.connection.settimeout(max(0.001, waiting.pause))
            try:
                self._lines = self._peer.receive()
            except TimeoutError:
                continue
            except OSError as error:
                raise self._lost(waiting.look(self._monotonic()), first_waits, describe(error)) from None
        return self._lines.pop(0)

    def _lost(self, waiting: Patience, first_waits: float, reason: str) -> Lost:
        """Who is to blame that the first host is not there: this one, if it was away for as long as that waits."""
        if waiting.missed_in_all >= max(first_waits, FROZEN_SECONDS):
            return Lost(self._host, f"did not run for {waiting.missed_in_all:.0f} s; {self._first}: {reason}")
        return Lost(self._first, reason)

    def _measure(self) -> float:
        """Of several questions the one answered fastest tells most; the answer was given about half-way (RFC 5905)."""
        tries = []
        for _ in range(_CLOCK_TRIES):
            asked = self._clock()
            answer = self._ask(_Line(clock=asked), _MARGIN_SECONDS, first_waits=_MARGIN_SECONDS)
            answered = self._clock()
            if answer.clock is not None:
                tries.append((answered - asked, (asked + answered) / 2 - answer.clock))
        return min(tries)[1] if tries else 0.0


def meet(
    hosts: tuple[str, ...], host: str, port: int, job: str, *, patience: float, clock: Clock = time.time
) -> Exchange:
    """How this host talks to the others.

    Args:
        hosts: All hosts of the job.
        host: This one.
        port: Where the first host listens.
        job: What tells this job from others; the same on all hosts.
        patience: Seconds within which all are to come.
        clock: The time in seconds; a parameter so that a test can plant a skew.

    Raises:
        OSError: This is the first host, and it cannot listen.
        Lost: The first host does not come.
    """
    if len(hosts) == 1:
        return Alone(host)
    if host == hosts[0]:
        return Hub(hosts, port, job, patience=patience, clock=clock)
    return Spoke(hosts, host, port, job, patience=patience, clock=clock)
