"""Communicator that goes on without lost members and reports them: for the hosts of the health checks.

In each round every host sends one value to the first host, the leader, which decides something from what it has got and
answers each host. Handshake, rendezvous and frames are those of the members of a script. There are no heartbeats: the
hosts are busy with checks that fork, and each round has a deadline that is short enough.

Deadlines, and what follows when one is over:

- `timeout` of `join_tolerant` (the setting `trainbox_peer_timeout_seconds`): until all hosts have joined. The leader
  goes on without the others, which `never arrived`. A member without a leader gives up.
- `timeout` of a round: seconds that the leader waits for the values of the hosts, from its own call on. A host without
  one has `stopped answering`. It stays connected, gets the answer, and may send its value in the next round.
- A connection that closes: its host is lost from then on, and named with the reason it gave, if it gave one.
- A member waits for the answer as long as the leader may take: its own part of the round, the wait for the others, and
  5 s; besides that the whole rendezvous in the first round, and at most 30 s in the following ones.
- 5 s for a host to take what the leader sends to it.

Time in which this process itself did not run is left out. A host that was away for as long as the leader waits names
itself. What has arrived is read even when the time is over, since this host may have been late itself.
"""

import contextlib
import math
import select
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from trainbox.clock import Clock, Sleep
from trainbox.comm.acceptor import LONGEST_PAUSE_SECONDS, Acceptor
from trainbox.comm.communicator import LARGEST_VALUE_BYTES, describe_error
from trainbox.comm.data_connection import (
    LOOK_SECONDS,
    DataConnection,
    LoggedWait,
    Overdue,
    Poll,
    poll_events,
)
from trainbox.comm.framing import Frame, MessageKind
from trainbox.comm.handshake import Refused
from trainbox.comm.member_loss import (
    NEVER_ARRIVED,
    OTHER_VERSION,
    REFUSALS,
    STOPPED_ANSWERING,
    UNPROVED,
    MemberLost,
    blame,
)
from trainbox.comm.members import Members
from trainbox.comm.rendezvous import accept_next, begin_wait, connect_as
from trainbox.comm.sockets import describe

T = TypeVar("T")
R = TypeVar("R")
#: Given what each host sent, and why others sent nothing; returns what all are told.
Decide = Callable[[Mapping[str, T], Mapping[str, str]], R]
#: Of a decision what one host is told, given its name.
Share = Callable[[R, str], R]

#: A host that does not take what is sent to it for so long is frozen; it must not hold up the others.
_SEND_SECONDS = 5.0
#: For what the leader does between the last value of a round and its answer; and for one that is busy besides, once it
#: has answered a first time.
_MARGIN_SECONDS = 5.0
_BUSY_SECONDS = 30.0
#: Reads after the time is over: a host that never stops sending must not hold up the others.
_MAX_LATE_READS = 1000
_CLOCK_TRIES = 5
#: Of a host that leaves, in characters.
_LONGEST_REASON = 2000


class TolerantCommunicator:
    """The hosts of a job, as one of them is connected to the others; a context manager.

    All hosts make the same calls in the same order. Leaving the block by an exception tells the others why.

    Args:
        members: All hosts; the first is the leader.
        connections: By host: on the leader to all that have joined, on the others to the leader.
        missing: On the leader: why the others have not joined.
        timeout: Seconds that the leader has waited for all to join.
        clock: The time of day in seconds.
        monotonic: The time in seconds that waits are measured by.
        poll: Waits for the hosts, in seconds of that clock.
    """

    def __init__(
        self,
        members: Members,
        connections: dict[str, DataConnection],
        missing: Mapping[str, str],
        *,
        timeout: float,
        clock: Clock,
        monotonic: Clock,
        poll: Poll | None = None,
    ) -> None:
        self.members = members
        self._connections = connections
        #: By host that is lost: why.
        self._lost = dict(missing)
        #: What the leader may take besides the round.
        self._slack = timeout
        self._clock = clock
        self._monotonic = monotonic
        self._poll = poll or poll_events
        self._call = 0
        self._values: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.leave(describe_error(error))
        for connection in self._connections.values():
            connection.close()

    def leave(self, reason: str) -> None:
        """Tell the others why this host takes no part any more."""
        for host in list(self._connections):
            self._connections[host].allow(0.0)  # a host that does not take it at once finds the connection closed
            self._send(host, "leave", reason[:_LONGEST_REASON].encode())

    def measure_skew(self, *, timeout: float) -> float:
        """Return this host's clock minus the leader's, in seconds.

        Of several questions the one answered fastest tells most; the answer was given about half-way (RFC 5905).

        Args:
            timeout: Of the round that follows: until then the leader may be busy.

        Raises:
            MemberLost: The leader does not answer.
        """
        if self.members.is_first:
            return 0.0
        tries = []
        for _ in range(_CLOCK_TRIES):
            asked = self._clock()
            answer = self._ask("clock", b"", "clock", timeout)
            answered = self._clock()
            tries.append((answered - asked, (asked + answered) / 2 - self._decode(answer, float)))
        return min(tries)[1]

    def decide(
        self, value: T, kind: type[T], decide: Decide[T, R], answer: type[R], *, timeout: float, share: Share[R]
    ) -> R:
        """Gather a value of every host, let the leader decide, and return the decision on all.

        Args:
            value: What this host sends.
            kind: Its type, the same on all hosts.
            decide: Runs on the leader alone.
            answer: The type of what it returns.
            timeout: Seconds that the leader waits for the values.
            share: What of the decision a host is told; the leader has all of it.

        Raises:
            MemberLost: The leader does not answer.
        """
        self._call += 1
        if not self.members.is_first:
            told = self._ask("gather", msgspec.msgpack.encode(value), "scatter", timeout)
            self._slack = min(self._slack, _BUSY_SECONDS)  # its rendezvous is over
            return self._decode(told, answer)
        self._values = {}
        self._gather(timeout)
        decided = decide(*self._sort(value, kind))
        for host in list(self._connections):
            self._send(host, "scatter", msgspec.msgpack.encode(share(decided, host)))
        return decided

    # -- the leader ------------------------------------------------------------------------------------------------

    def _gather(self, timeout: float) -> None:
        """Read from all hosts until none of them is waited for any more."""
        waiting = LoggedWait(timeout, self._monotonic, math.inf)
        late_reads = _MAX_LATE_READS
        while self._connections.keys() - self._values.keys():
            patience = waiting.look(LOOK_SECONDS)
            sources = {connection.fileno(): host for host, connection in self._connections.items()}
            ready = self._poll([(source, select.POLLIN) for source in sources], patience.pause)
            for source in ready:
                self._read(sources[source])
            if patience.is_over:
                late_reads -= 1
                if not ready or late_reads <= 0:
                    return

    def _read(self, host: str) -> None:
        try:
            frame = self._connections[host].read(largest=LARGEST_VALUE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(host, describe(error))
            return
        if frame is None:
            return
        if frame.header.kind == "clock":
            self._send(host, "clock", msgspec.msgpack.encode(self._clock()), call=frame.header.call)
        elif frame.header.kind == "leave":
            self._lose(host, _left(frame))
        elif (frame.header.call, frame.header.kind) == (self._call, "gather"):  # that of an earlier round is too late
            self._values[host] = frame.content

    def _sort(self, value: T, kind: type[T]) -> tuple[dict[str, T], dict[str, str]]:
        """Return what the hosts sent, and why others sent nothing, in the order of the hosts."""
        said, silent = {self.members.names[0]: value}, {}
        for host in self.members.names[1:]:
            if host not in self._values:
                silent[host] = self._lost.get(host, STOPPED_ANSWERING)
                continue
            try:
                said[host] = msgspec.msgpack.decode(self._values[host], type=kind)
            except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
                silent[host] = OTHER_VERSION
        return said, silent

    def _send(self, host: str, kind: MessageKind, content: bytes, *, call: int | None = None) -> None:
        try:
            self._connections[host].send(self._call if call is None else call, kind, content)
        except (OSError, Overdue) as error:
            why = describe(error) if isinstance(error, OSError) else f"for {_SEND_SECONDS:g} s"
            self._lose(host, f"does not take what it is sent: {why}")

    def _lose(self, host: str, reason: str) -> None:
        self._connections.pop(host).close()
        self._lost[host] = reason

    # -- the other hosts -------------------------------------------------------------------------------------------

    def _ask(self, kind: MessageKind, content: bytes, expected: MessageKind, timeout: float) -> Frame:
        """Send something to the leader, and wait for its answer."""
        leader = self.members.names[0]
        if leader not in self._connections:
            raise MemberLost(leader, self._lost[leader])
        connection = self._connections[leader]
        try:
            connection.allow(self._slack + 2 * timeout + _MARGIN_SECONDS)
            with contextlib.suppress(ConnectionError):  # if the leader has left, its reason may be there to be read
                connection.send(self._call, kind, content)
            while True:
                frame = connection.receive(expected, largest=LARGEST_VALUE_BYTES)
                if frame.header.kind == "leave":
                    raise MemberLost(leader, _left(frame))
                if (frame.header.call, frame.header.kind) == (self._call, expected):
                    return frame
        except Overdue:
            raise blame(self.members, connection.wait, timeout, STOPPED_ANSWERING) from None
        except OSError as error:
            raise blame(self.members, connection.wait, timeout, describe(error)) from None

    def _decode(self, frame: Frame, kind: type[T]) -> T:
        try:
            return msgspec.msgpack.decode(frame.content, type=kind)
        except (ValueError, RecursionError):
            raise MemberLost(self.members.names[0], OTHER_VERSION) from None


def _left(frame: Frame) -> str:
    return f"left: {frame.content.decode(errors='replace')[:_LONGEST_REASON]}"


def join_tolerant(
    members: Members,
    *,
    timeout: float,
    port: int,
    clock: Clock = time.time,
    monotonic: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> TolerantCommunicator:
    """Connect the hosts; return once all have joined, or the time is over. The module says what each deadline means.

    Args:
        members: All hosts.
        timeout: Seconds to wait for the others (the setting `trainbox_peer_timeout_seconds`).
        port: Where the leader listens.
        clock: The time of day in seconds; a parameter so that a test can plant a skew.
        monotonic: The time in seconds that waits are measured by.
        sleep: Waits between two tries.

    Raises:
        OSError: This is the leader, and it cannot listen.
        MemberLost: The leader does not arrive, or rejects this host.
    """
    connections: dict[str, DataConnection] = {}
    missing: Mapping[str, str] = {}
    if members.size > 1 and members.is_first:
        connections, missing = _accept(members, port, timeout, monotonic)
    elif members.size > 1:
        connections[members.names[0]] = _connect(members, port, timeout, monotonic, sleep)
    return TolerantCommunicator(members, connections, missing, timeout=timeout, clock=clock, monotonic=monotonic)


def _accept(
    members: Members, port: int, timeout: float, monotonic: Clock
) -> tuple[dict[str, DataConnection], dict[str, str]]:
    waiting = begin_wait(timeout, monotonic)
    connections = {}
    with contextlib.closing(Acceptor(members, port, frozenset({"health"}), clock=monotonic)) as acceptor:
        while acceptor.missing and not waiting.look(LONGEST_PAUSE_SECONDS).is_over:
            for arrival in accept_next(acceptor, waiting):
                connection = DataConnection(arrival.member, arrival.connection, timeout=_SEND_SECONDS, clock=monotonic)
                connections[arrival.member] = connection
        missing = {host: UNPROVED if host in acceptor.unproved else NEVER_ARRIVED for host in acceptor.missing}
    return connections, missing


def _connect(members: Members, port: int, timeout: float, monotonic: Clock, sleep: Sleep) -> DataConnection:
    waiting = begin_wait(timeout, monotonic)
    leader = members.names[0]
    try:
        connection = connect_as(members, port, "health", waiting, final=frozenset(REFUSALS), sleep=sleep)
    except Refused as refused:
        raise MemberLost(leader, REFUSALS[refused.reason]) from None
    except OSError as error:
        reason = f"{NEVER_ARRIVED} (port {port}: {describe(error)})"
        raise blame(members, waiting, timeout, reason) from None
    return DataConnection(leader, connection, timeout=_SEND_SECONDS, clock=monotonic)
