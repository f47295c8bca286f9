"""The first host's side of the rounds: it listens, collects what all others say, decides, and answers."""

import select
import time
from collections.abc import Iterable

import msgspec

from trainbox.clock import Clock, Patience, describe_missed, wait_from
from trainbox.contract.peer_key import PeerKey
from trainbox.peers.acceptor import GREETING_SECONDS, Acceptor, Service
from trainbox.peers.rounds import (
    LOOK_SECONDS,
    NEVER_CAME,
    OTHER_VERSION,
    STOPPED,
    UNPROVED,
    Decide,
    Line,
    Peer,
    R,
    Share,
    T,
)
from trainbox.peers.wire import describe
from trainbox.say import say

#: At what has come when the time is over: somebody who never stops talking must not hold up the others.
_MOST_LOOKS = 1000


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
        key: By which they prove that they belong to it; None where the job has none.
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
        key: PeerKey | None,
        patience: float,
        clock: Clock,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._hosts = hosts
        self._clock = clock
        self._monotonic = monotonic
        self._until = monotonic() + patience
        self._round = 0
        self._peers: dict[str, Peer] = {}
        #: Since when each is here.
        self._since: dict[str, float] = {}
        #: Why a host that has come is lost.
        self._gone: dict[str, str] = {}
        self._values: dict[str, msgspec.Raw] = {}
        service = Service(job, frozenset(hosts[1:]), frozenset({"health"}), key)
        self._acceptor = Acceptor(hosts[0], port, service, clock=monotonic)

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
        for host in list(self._peers):
            self._tell(host, Line(round=self._round, value=msgspec.Raw(msgspec.json.encode(share(decided, host)))))
        return decided

    def close(self) -> None:
        """Let go of all."""
        self._acceptor.close()
        for peer in self._peers.values():
            peer.connection.close()

    def _collect(self, seconds: float) -> None:
        """Hear all who have something to say in this round, until nobody is waited for any more."""
        waiting = wait_from(self._monotonic(), seconds)
        looks_left = _MOST_LOOKS
        greeted_by: float | None = None
        while True:
            waiting = waiting.look(self._monotonic(), pause=LOOK_SECONDS)
            if waiting.missed:
                say(f"health: {describe_missed(waiting.missed)}")
            left = seconds_left(waiting, self._until, self._missing())
            # What is there already is heard though the time is over: this host itself may have come late to the round.
            looks_left -= left <= 0
            if left <= 0 and self._acceptor.is_engaged:
                greeted_by = greeted_by or waiting.now + GREETING_SECONDS
                left = greeted_by - waiting.now
            ready = self._look(max(0.0, min(left, LOOK_SECONDS)))
            if left <= 0 and not (ready and looks_left > 0):
                break
        self._until += waiting.missed_in_all

    def _look(self, seconds: float) -> bool:
        """Wait for some seconds for anybody to say something; whether somebody has."""
        peers = {peer.connection.fileno(): host for host, peer in self._peers.items()}
        poll = select.poll()
        for source in (*self._acceptor.sources(), *peers):
            poll.register(source, select.POLLIN)
        ready = [source for source, _ in poll.poll(seconds * 1000)]
        for source in ready:
            if source in peers:
                self._hear(peers[source])
        for arrival in self._acceptor.turn(ready):
            self._peers[arrival.member] = Peer(arrival.connection)
            self._since[arrival.member] = self._monotonic()
        return bool(ready)

    def _missing(self) -> list[float | None]:
        return [
            self._since.get(host) for host in self._hosts[1:] if host not in self._values and host not in self._gone
        ]

    def _collected(self, value: T, kind: type[T]) -> tuple[dict[str, T], dict[str, str]]:
        """In the order of the hosts, whoever spoke first."""
        said = {self._hosts[0]: value}
        silent = {}
        for host in self._hosts[1:]:
            if host not in self._values:
                silent[host] = self._why_silent(host)
                continue
            try:
                said[host] = msgspec.json.decode(self._values[host], type=kind)
            except (ValueError, RecursionError):
                silent[host] = OTHER_VERSION
        return said, silent

    def _why_silent(self, host: str) -> str:
        if host in self._gone:
            return self._gone[host]
        if host in self._peers:
            return STOPPED
        return UNPROVED if host in self._acceptor.unproved else NEVER_CAME

    def _hear(self, host: str) -> None:
        peer = self._peers[host]
        try:
            for line in peer.receive():
                if line.clock is not None:
                    peer.send(Line(clock=self._clock()))
                elif line.round == self._round:
                    self._values[host] = line.value
        except OSError as error:
            self._drop(host, describe(error))

    def _tell(self, host: str, line: Line) -> None:
        try:
            self._peers[host].send(line)
        except OSError as error:
            self._drop(host, f"does not take what it is sent: {describe(error)}")

    def _drop(self, host: str, reason: str) -> None:
        self._peers.pop(host).connection.close()
        self._gone[host] = reason
