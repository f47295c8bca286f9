"""Communicator: collectives of small values and bytes among the members of a job, and who of them is lost.

The members form a star: everything goes through the leader, over one connection for data with each of the others
(`data_connection`), next to one for heartbeats (`heartbeat`). The bulk of the work, the sums of gradients, is done by
the library that trains, over connections of its own.

Here all members are needed: a loss ends the work of all. The health checks go on without the lost ones (`tolerant`).

Deadlines, and what follows when one is over:

- `timeout` of `join` (the setting `trainbox_peer_timeout_seconds`): until all members have joined. The missing are
  named (`rendezvous`). The members wait 10 s longer, for it is the leader that knows who is missing.
- `limit` of `join` (`trainbox_hang_seconds`): seconds without a heartbeat. The silent member is lost (`heartbeat`).
- `call_timeout` (one hour): for a member that is alive and does not reach a collective that the others are in, since
  its part of the data may be larger. It is named. The leader counts; the members wait 10 s longer.
- 3 s: after a connection for data broke, the failure report that explains it may arrive over that for heartbeats.
- 60 s: the leader, when it is done, waits for the members to disconnect; 5 s: each waits until its goodbye is heard.
"""

import math
import select
import signal
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from trainbox.comm.data_connection import LARGEST_BYTES, DataConnection
from trainbox.comm.framing import MessageKind
from trainbox.comm.heartbeat import HeartbeatMonitor
from trainbox.comm.members import Members
from trainbox.comm.rendezvous import accept_members, connect_to_leader
from trainbox.errors import PeerError, Stopped, TrainboxError
from trainbox.log_lines import emit

T = TypeVar("T")

#: Of one value that is gathered, and of all of them together.
LARGEST_VALUE_BYTES = 16 * 1024 * 1024
_LARGEST_VALUES_BYTES = 256 * 1024 * 1024
REPORT_SECONDS = 3.0
SHUTDOWN_SECONDS = 60.0
_GOODBYE_SECONDS = 5.0
CALL_SECONDS = 3600.0
#: What members wait for the leader beyond the longest that it waits for them.
_MARGIN_SECONDS = 10.0
_SAME_SCRIPT_HINT = "all members must run the same script with the same hyperparameters"


class Communicator:
    """The members of a job, as one of them is connected to the others; a context manager.

    All members make the same calls in the same order, each in its main thread. Leaving the block normally says goodbye;
    leaving it by an exception tells the others why, and they raise.

    Args:
        members: All.
        monitor: The heartbeats.
        connections: By member: on the leader to all others, on the others to the leader; none where one is alone.
    """

    def __init__(self, members: Members, monitor: HeartbeatMonitor, connections: dict[str, DataConnection]) -> None:
        self.members = members
        self.rank = members.rank
        self.size = members.size
        #: Seconds without a heartbeat after which a member is lost; infinite where never.
        self.limit = monitor.limit
        self._leader = members.names[0]
        self._monitor = monitor
        self._connections = connections
        self._call = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.fail(error)
            else:
                self._send_goodbye()
        finally:
            self._monitor.close()
            for connection in self._connections.values():
                connection.close()

    # -- collectives -----------------------------------------------------------------------------------------------

    def gather(self, value: T, kind: type[T]) -> list[T]:
        """Give every member the values of all, by rank; also a barrier: none returns before all have called.

        Args:
            value: A small one: text, numbers (not-a-number, too), bytes, or a `msgspec.Struct` of such.
            kind: Its type, the same on all.

        Raises:
            PeerError: A member is lost, or sends something else.
            Stopped: A member has left because the job is stopped; likewise for the calls below.
        """
        mine = msgspec.msgpack.encode(value)
        _check_size(mine, LARGEST_VALUE_BYTES)
        self._begin_call()
        if self.members.is_first:
            others = [self._receive(name, "gather", LARGEST_VALUE_BYTES) for name in self.members.names[1:]]
            together = msgspec.msgpack.encode([mine, *others])
            for name in self._connections:
                self._send(name, "gather", together)
        else:
            self._send(self._leader, "gather", mine)
            together = self._receive(self._leader, "gather", _LARGEST_VALUES_BYTES)
        values = _decode(self._leader, together, list[bytes])
        if len(values) != self.size:
            raise PeerError(f"{self._leader} sent {len(values):,} values for {self.size:,} members")
        return [_decode(name, value, kind) for name, value in zip(self.members.names, values, strict=True)]

    def send_to_first(self, content: bytes, *, largest: int = LARGEST_BYTES) -> list[bytes] | None:
        """Gather bytes on the leader.

        Args:
            content: Of this member; when this returns, the leader has it.
            largest: The most bytes that the leader accepts from one member.

        Returns:
            On the leader what each member has sent, by rank; on the others None.

        Raises:
            PeerError: A member is lost, or sends more.
        """
        _check_size(content, largest)
        self._begin_call()
        if not self.members.is_first:
            self._send(self._leader, "send", content)
            self._receive(self._leader, "taken", 0)
            return None
        given = [content]
        for name in self._connections:
            given.append(self._receive(name, "send", largest))
            self._send(name, "taken")
        return given

    def share(self, content: bytes | None, root: int = 0, *, largest: int = LARGEST_BYTES) -> bytes:
        """Broadcast the bytes of one member to all.

        Args:
            content: On that member; what the others pass does not matter.
            root: Its rank.
            largest: The most bytes that a member accepts.

        Raises:
            PeerError: A member is lost, or sends more.
        """
        giver = self.members.names[root]
        if self.rank == root:
            if content is None:
                raise ValueError("the member whose bytes are broadcast passes none")
            _check_size(content, largest)
            shared = content
        self._begin_call()
        if self.members.is_first:
            if self.rank != root:
                shared = self._receive(giver, "share", largest)
                self._send(giver, "taken")
            for name in self._connections:
                if name != giver:
                    self._send(name, "share", shared)
        elif self.rank == root:
            self._send(self._leader, "share", shared)
            self._receive(self._leader, "taken", 0)
        else:
            shared = self._receive(self._leader, "share", largest)
        return shared

    # -- who is lost -----------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Tell the others why this member leaves, before it releases anything that they wait for.

        They leave with its exit code. Leaving the block by an exception does the same; the first report counts.
        """
        message = describe_error(error)
        exit_code = exit_code_of(error)
        if isinstance(error, BrokenPipeError) and _nobody_reads(1):
            message, exit_code = "its supervisor has ended: nobody reads its output", 0
        stopped = isinstance(error, Stopped)
        self._monitor.give_up(message, exit_code=exit_code, stopped=stopped, own=not isinstance(error, PeerError))

    def check(self) -> None:
        """Return only if no member is lost.

        Raises:
            PeerError: One is; the message says which, and how.
            Stopped: One has left because the job is stopped.
        """
        self._monitor.check()

    def lost(self, *, seconds: float) -> str | None:
        """Return which member is lost and how; None if none is.

        Args:
            seconds: How long to wait for the report, where something has broken.
        """
        try:
            self._monitor.wait(seconds)
        except (PeerError, Stopped) as error:
            return error.message
        return None

    def outlast(self, *, seconds: float) -> None:
        """Wait until all others have left, normally or not: for a leader that holds what they need for that."""
        self._monitor.await_end(seconds)

    # -- one call --------------------------------------------------------------------------------------------------

    def _begin_call(self) -> None:
        self._monitor.check()
        self._call += 1

    def _send(self, member: str, kind: MessageKind, content: bytes = b"") -> None:
        try:
            self._connections[member].send(self._call, kind, content)
        except OSError as error:
            raise self._broken(member, error) from None

    def _receive(self, member: str, kind: MessageKind, largest: int) -> bytes:
        try:
            frame = self._connections[member].receive(kind, largest=largest)
        except OSError as error:
            raise self._broken(member, error) from None
        call, found = frame.header.call, frame.header.kind
        if (call, found) != (self._call, kind):
            raise PeerError(
                f"{member} is in its call {call} ({found}), this process in call {self._call} ({kind})",
                hint=_SAME_SCRIPT_HINT,
            )
        return frame.content

    def _broken(self, member: str, error: OSError) -> PeerError | Stopped:
        """Explain a connection for data that broke: the heartbeats know more, if not yet then soon."""
        if isinstance(error, ConnectionAbortedError) and error.errno is None:  # of ours: what was read is unacceptable
            return PeerError(f"{member}: {error}", hint="all hosts must run the same image")
        try:
            self._monitor.wait(REPORT_SECONDS)
        except (PeerError, Stopped) as lost:
            return lost
        if member in self._monitor.left:
            return PeerError(
                f"{member} has left, but {self.members.name} is still waiting for it", hint=_SAME_SCRIPT_HINT
            )
        return self._monitor.lose_broken(member, error)

    def _send_goodbye(self) -> None:
        if self.members.is_first:
            slow = self._monitor.await_goodbyes(SHUTDOWN_SECONDS)
            if slow:
                emit(f"{', '.join(slow)} did not disconnect within {SHUTDOWN_SECONDS:g} s: leaving without")
        self._monitor.send_goodbye(_GOODBYE_SECONDS)


def describe_error(error: BaseException) -> str:
    """Return an error as one line."""
    if isinstance(error, SystemExit):
        return f"exit code {exit_code_of(error)}"
    message = error.message if isinstance(error, TrainboxError) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())


def exit_code_of(error: BaseException) -> int:
    """Return with which code Python ends for an error that nobody catches; `errors.end_as_declared` for ours."""
    if isinstance(error, TrainboxError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return (error.code or 0) & 0xFF
    return 1


def _nobody_reads(descriptor: int) -> bool:
    """Return whether this is a pipe whose last reader has closed it: poll(2), POLLERR."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _decode(member: str, value: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
        raise PeerError(
            f"{member} sent a value that this version of trainbox cannot read", hint="all hosts must run the same image"
        ) from None


def _check_size(content: bytes, largest: int) -> None:
    if len(content) > largest:
        raise PeerError(f"message of {len(content):,} bytes exceeds the limit of {largest:,} bytes")


def join(
    members: Members, *, timeout: float, limit: float, port: int, call_timeout: float = CALL_SECONDS
) -> Communicator:
    """Connect all members; return once all have joined. The module says what each deadline means.

    Args:
        members: All.
        timeout: Seconds to wait for the others (the setting `trainbox_peer_timeout_seconds`).
        limit: Seconds without a heartbeat after which a member is lost (`trainbox_hang_seconds`); 0 is never.
        port: Where the leader listens (`Job.port`).
        call_timeout: Seconds to wait in one call for a member that is alive.

    Raises:
        PeerError: Some did not join, and are named; or the leader cannot listen.
        Stopped: A member has left because the job is stopped.
    """
    monitor = HeartbeatMonitor(members.name, limit=limit or math.inf)
    connections: dict[str, DataConnection] = {}
    with ExitStack() as stack:
        communicator = stack.enter_context(Communicator(members, monitor, connections))
        sockets = {}
        if members.size > 1:
            monitor.start()
            sockets = (
                accept_members(members, port, monitor, timeout=timeout)
                if members.is_first
                else {members.names[0]: connect_to_leader(members, port, monitor, timeout=timeout)}
            )
        for name, opened in sockets.items():
            connections[name] = DataConnection(
                name, opened, timeout=timeout + _MARGIN_SECONDS, alarm=monitor.alarm, check=monitor.check
            )
        communicator.gather(members.name, str)
        for connection in connections.values():
            connection.timeout = call_timeout if members.is_first else call_timeout + _MARGIN_SECONDS
        stack.pop_all()
    return communicator
