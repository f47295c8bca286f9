"""The hosts of a job tell each other what they have found: JSON lines over TCP to the first host, round by round.

With the standard library alone: a cluster without torch has disks and clocks, too. Every connection begins with the
handshake of `handshake`.
"""

import time
from typing import Protocol

import msgspec

from trainbox.clock import FROZEN_SECONDS, Clock, Patience, Sleep, describe_missed, wait_from
from trainbox.contract.peer_key import PeerKey
from trainbox.peers.handshake import Introduction, Reason, Refused, say_hello
from trainbox.peers.hub import Hub
from trainbox.peers.rounds import (
    LOOK_SECONDS,
    NEVER_CAME,
    OTHER_JOB,
    OTHER_VERSION,
    STOPPED,
    TAKEN,
    UNPROVED,
    Decide,
    Line,
    Lost,
    Peer,
    R,
    Share,
    T,
)
from trainbox.peers.wire import connect, describe
from trainbox.say import say

_CLOCK_TRIES = 5
_PAUSE_SECONDS = 0.05
#: For a try to connect.
_LONGEST_TRY_SECONDS = 10.0
#: For what the first host does between the last word of a round and its answer.
_MARGIN_SECONDS = 5.0
_REFUSALS: dict[Reason, str] = {
    "job": OTHER_JOB,
    "member": OTHER_JOB,
    "proof": UNPROVED,
    "taken": TAKEN,
    "version": OTHER_VERSION,
}


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


class Spoke:
    """Any other host: connected to the first one.

    Args:
        hosts: All hosts.
        host: This one.
        port: Where the first host listens.
        job: What tells this job from others.
        key: By which the hosts prove that they belong to it; None where the job has none.
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
        key: PeerKey | None,
        patience: float,
        clock: Clock,
        monotonic: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.skew = 0.0
        self._first = hosts[0]
        self._host = host
        self._port = port
        self._job = job
        self._key = key
        self._patience = patience
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._round = 0
        self._lines: list[Line] = []
        waiting = wait_from(monotonic(), patience)
        while True:
            waiting = waiting.look(monotonic(), pause=_LONGEST_TRY_SECONDS)
            try:
                self._introduction = self._connect()
            except OSError as error:
                if waiting.is_over:
                    reason = error.strerror or str(error)
                    raise self._lost(waiting, patience, f"{NEVER_CAME} (port {port}: {reason})") from None
                sleep(_PAUSE_SECONDS)
            else:
                return

    def settle(self, *, seconds: float) -> None:
        """Wait until the first host is there to talk, and set this clock beside that one."""
        self._introduce(seconds)
        self._peer = Peer(self._introduction.connection)
        self.skew = self._measure()

    def agree(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, seconds: float, share: Share[R]
    ) -> R:
        """Say something and wait for the answer."""
        del kind, decide, share
        self._round += 1
        limit = self._patience + seconds + _MARGIN_SECONDS
        mine = Line(round=self._round, value=msgspec.Raw(msgspec.json.encode(value)))
        line = self._ask(mine, limit, first_waits=seconds)
        try:
            return msgspec.json.decode(line.value, type=answer)
        except (ValueError, RecursionError):
            raise Lost(self._first, OTHER_VERSION) from None

    def close(self) -> None:
        """Let go."""
        self._introduction.connection.close()

    def _connect(self) -> Introduction:
        connection = connect(self._first, self._port)
        try:
            return Introduction(connection, say_hello(self._job, self._host, "health"), self._key)
        except OSError:
            connection.close()
            raise

    def _introduce(self, first_waits: float) -> None:
        """Wait until the first host has come to the handshake, and both have proved themselves."""
        waiting = wait_from(self._monotonic(), first_waits + _MARGIN_SECONDS)
        while True:
            waiting = self._look(waiting)
            if waiting.is_over:
                raise self._lost(waiting, first_waits, STOPPED)
            try:
                self._introduction.connection.settimeout(max(0.001, waiting.pause))
                if self._introduction.advance():
                    return
            except TimeoutError:
                continue
            except Refused as refused:
                raise Lost(self._first, _REFUSALS[refused.reason]) from None
            except ConnectionAbortedError as error:
                raise Lost(self._first, describe(error)) from None
            except OSError as error:
                self._connect_again(waiting, first_waits, error)

    def _connect_again(self, waiting: Patience, first_waits: float, broken: OSError) -> None:
        """Replace a connection that broke before the handshake: of too many callers the first host closes some."""
        self._introduction.connection.close()
        self._sleep(_PAUSE_SECONDS)
        try:
            self._introduction = self._connect()
        except TimeoutError:
            return  # it is overrun: the next look finds the connection closed, and comes back here
        except OSError:
            raise self._lost(waiting.look(self._monotonic()), first_waits, describe(broken)) from None

    def _look(self, waiting: Patience) -> Patience:
        waiting = waiting.look(self._monotonic(), pause=LOOK_SECONDS)
        if waiting.missed:
            say(f"health: {describe_missed(waiting.missed)}")
        return waiting

    def _ask(self, line: Line, seconds: float, *, first_waits: float) -> Line:
        try:
            self._peer.send(line)
        except OSError as error:
            raise Lost(self._first, describe(error)) from None
        return self._receive(seconds, first_waits=first_waits)

    def _receive(self, seconds: float, *, first_waits: float) -> Line:
        waiting = wait_from(self._monotonic(), seconds)
        while not self._lines:
            waiting = self._look(waiting)
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
            answer = self._ask(Line(clock=asked), _MARGIN_SECONDS, first_waits=_MARGIN_SECONDS)
            answered = self._clock()
            if answer.clock is not None:
                tries.append((answered - asked, (asked + answered) / 2 - answer.clock))
        return min(tries)[1] if tries else 0.0


def meet(
    hosts: tuple[str, ...],
    host: str,
    port: int,
    job: str,
    *,
    key: PeerKey | None,
    patience: float,
    clock: Clock = time.time,
) -> Exchange:
    """How this host talks to the others.

    Args:
        hosts: All hosts of the job.
        host: This one.
        port: Where the first host listens.
        job: What tells this job from others; the same on all hosts.
        key: By which they prove that they belong to it; None where the job has none.
        patience: Seconds within which all are to come.
        clock: The time in seconds; a parameter so that a test can plant a skew.

    Raises:
        OSError: This is the first host, and it cannot listen.
        Lost: The first host does not come.
    """
    if len(hosts) == 1:
        return Alone(host)
    if host == hosts[0]:
        return Hub(hosts, port, job, key=key, patience=patience, clock=clock)
    return Spoke(hosts, host, port, job, key=key, patience=patience, clock=clock)
