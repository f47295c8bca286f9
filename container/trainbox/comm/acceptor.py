"""Accepts connections for a leader: each caller has to pass the handshake first, within narrow limits.

Everybody who reaches the port can connect. Before a caller has proved itself it can use up little: 4 KiB,
`HANDSHAKE_SECONDS` and one of `MAX_CALLERS` connections. Beyond these limits, and where no file descriptor is left, the
oldest caller is closed.
"""

import contextlib
import errno
import resource
import select
import socket
import time
from collections.abc import Collection

import msgspec

from trainbox.clock import Clock
from trainbox.comm.handshake import (
    Accepted,
    Challenge,
    HandshakeReader,
    Hello,
    Message,
    OtherVersion,
    Proof,
    Reason,
    Refused,
    Rejection,
    Role,
    encode,
    is_proved,
    make_nonce,
    prove,
)
from trainbox.comm.members import Members
from trainbox.comm.sockets import hang_up, listen, send_at_once
from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE
from trainbox.log_lines import emit

#: Timeout of the whole handshake of one caller.
HANDSHAKE_SECONDS = 5.0
#: Callers whose handshake is under way at once.
MAX_CALLERS = 256
#: They use at most this part of the file descriptors that the process may open.
_SHARE_OF_FILES = 4
#: Connections that may wait in the kernel, besides those of the members.
_BACKLOG = 128
#: Connections accepted before those that were accepted earlier are read again.
_MAX_AT_ONCE = 16
#: The owner calls `turn` at least this often.
LONGEST_PAUSE_SECONDS = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Lines of the log about rejected callers, who must not be able to fill it.
_MAX_REPORTS = 100


class Arrival(msgspec.Struct, frozen=True, eq=False):
    """A member that has proved itself; its connection, which does not block, belongs to the receiver."""

    member: str
    role: Role
    connection: socket.socket


class _Caller:
    """A connection whose other side has not proved yet who it is."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.connection = connection
        self.address = address
        self.reader = HandshakeReader(connection)
        self.hello: Hello | None = None
        self.nonce = b""
        #: Seconds that this process has waited for it; time in which this process did not run does not count.
        self.waited = 0.0


class Acceptor:
    """A listening socket, and the callers whose handshake is under way.

    Args:
        members: All; the first listens here, on its address.
        port: Where to listen.
        roles: Each of the others may connect once for each role.
        clock: The time in seconds.

    Raises:
        OSError: The port is taken, or the address is not this machine's.
    """

    def __init__(self, members: Members, port: int, roles: frozenset[Role], *, clock: Clock = time.monotonic) -> None:
        self._members = members
        self._roles = roles
        self._clock = clock
        self._looked = clock()
        self._callers: dict[int, _Caller] = {}
        self._arrived: set[tuple[str, Role]] = set()
        #: By member: the address of a caller that claimed to be it without a valid proof.
        self.unproved: dict[str, str] = {}
        self._reports: set[str] = set()
        #: No file descriptor is left: polling the listening socket would return at once, again and again.
        self._is_deaf = False
        self._listener = listen(members.address, port, backlog=_BACKLOG + members.size * len(roles))
        self._listener.setblocking(False)

    @property
    def missing(self) -> list[str]:
        """The members that have not connected for all roles."""
        return [
            name for name in self._members.names[1:] if any((name, role) not in self._arrived for role in self._roles)
        ]

    def accept(self, seconds: float, *alarms: socket.socket) -> list[Arrival]:
        """Wait for callers for at most a second, or until an alarm; return the members that are accepted."""
        poll = select.poll()
        for source in (*self.sources(), *(alarm.fileno() for alarm in alarms)):
            poll.register(source, select.POLLIN)
        return self.turn([source for source, _ in poll.poll(seconds * 1000)])

    def sources(self) -> list[int]:
        """Return the descriptors to poll for reading."""
        self._looked = self._clock()
        listening = [] if self._is_deaf else [self._listener.fileno()]
        return [*listening, *self._callers]

    def turn(self, ready: Collection[int]) -> list[Arrival]:
        """Accept callers, read from those that have sent something, and close those whose time is over.

        Args:
            ready: Which of the descriptors can be read from.

        Returns:
            The members that have proved themselves by now.
        """
        # How long the poll took. More than the longest pause is time in which this process did not run.
        waited = min(self._clock() - self._looked, LONGEST_PAUSE_SECONDS)
        arrivals = [self._hear(source) for source in ready if source in self._callers]
        for caller in list(self._callers.values()):
            caller.waited += waited
            if caller.waited > HANDSHAKE_SECONDS:
                self._drop(caller)
        self._is_deaf = False
        if self._listener.fileno() in ready:
            self._accept()
        return [arrival for arrival in arrivals if arrival]

    def close(self) -> None:
        """Stop listening, and close all callers that are not accepted yet."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_MAX_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room(error)
                break
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # it has hung up already: the next read finds that
                send_at_once(connection)
            self._callers[connection.fileno()] = _Caller(connection, str(address[0]))
        for caller in list(self._callers.values())[: max(0, len(self._callers) - _max_callers())]:
            self._drop(caller)

    def _make_room(self, error: OSError) -> None:
        """Close the connection of the caller that has had the most time to prove itself."""
        self._report(f"cannot accept a connection ({error.strerror}): closing the oldest that has not proved itself")
        oldest = next(iter(self._callers.values()), None)
        if oldest:
            self._drop(oldest)
        else:
            self._is_deaf = True

    def _hear(self, source: int) -> Arrival | None:
        caller = self._callers[source]
        try:
            message = caller.reader.receive()
            return self._answer(caller, message) if message else None
        except BlockingIOError:
            return None
        except OtherVersion as other:
            self._report(f"rejected a connection from {caller.address}: {other}")
            self._refuse(caller, "version")
        except Refused as refused:
            self._refuse(caller, refused.reason)
        except OSError:  # no trainbox process, or gone
            self._drop(caller)
        return None

    def _answer(self, caller: _Caller, message: Message) -> Arrival | None:
        if isinstance(message, Hello) and caller.hello is None:
            self._challenge(caller, message)
            return None
        if caller.hello is None:
            raise ConnectionAbortedError("protocol error: no Hello")
        member, role = caller.hello.member, caller.hello.role
        if not isinstance(message, Proof) or not self._is_proved(caller, message):
            self._report_unproved(caller, member)
            raise Refused("proof")
        if (member, role) in self._arrived:
            self._report(f"rejected a second connection that claims to be {member}, from {caller.address}")
            raise Refused("taken")
        caller.connection.sendall(encode(Accepted()))
        self._arrived.add((member, role))
        del self._callers[caller.connection.fileno()]
        return Arrival(member, role, caller.connection)

    def _challenge(self, caller: _Caller, hello: Hello) -> None:
        if hello.job != self._members.job:
            raise Refused("job")
        if hello.member not in self._members.names[1:] or hello.role not in self._roles:
            raise Refused("member")
        caller.hello, caller.nonce = hello, make_nonce()
        proof = prove("leader", hello, caller.nonce, self._members.key)
        caller.connection.sendall(encode(Challenge(caller.nonce, proof)))

    def _is_proved(self, caller: _Caller, message: Proof) -> bool:
        assert caller.hello is not None  # noqa: S101 - it was challenged
        return is_proved(message.proof, "member", caller.hello, caller.nonce, self._members.key)

    def _report_unproved(self, caller: _Caller, member: str) -> None:
        self.unproved[member] = caller.address
        second = "a second" if any(member == arrived for arrived, _ in self._arrived) else "a"
        why = f"no valid proof ({PEER_KEY_VARIABLE} differs, or it is not of this job)"
        self._report(f"rejected {second} connection that claims to be {member}, from {caller.address}: {why}")

    def _report(self, line: str) -> None:
        """Write each line once."""
        if line not in self._reports and len(self._reports) < _MAX_REPORTS:
            self._reports.add(line)
            emit(line)

    def _refuse(self, caller: _Caller, reason: Reason) -> None:
        with contextlib.suppress(OSError):
            caller.connection.sendall(encode(Rejection(reason)))
        self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        del self._callers[caller.connection.fileno()]
        hang_up(caller.connection)


def _max_callers() -> int:
    """Return how many callers there may be at once: a part of the files that this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = MAX_CALLERS if files == resource.RLIM_INFINITY else files // _SHARE_OF_FILES
    return max(_MAX_AT_ONCE, min(MAX_CALLERS, most))
