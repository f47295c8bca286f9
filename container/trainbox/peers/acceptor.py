"""Accepts connections for a leader: each caller has to pass the handshake first, within narrow limits.

Whoever can reach the port may call. Until it has proved itself, a caller can use up little: bytes, seconds and
connections are bounded, the oldest caller goes first, and a process without file descriptors closes a caller's.
"""

import contextlib
import errno
import resource
import socket
import time
from collections.abc import Collection

import msgspec

from trainbox.clock import Clock
from trainbox.contract.peer_key import PEER_KEY_VARIABLE, PeerKey
from trainbox.peers.handshake import (
    Challenge,
    FrameReader,
    Hello,
    Message,
    OtherVersion,
    Proof,
    Reason,
    Refusal,
    Refused,
    Role,
    Welcome,
    encode,
    is_proved,
    make_nonce,
    prove,
)
from trainbox.peers.wire import hang_up, listen, send_at_once
from trainbox.say import say

#: For the whole handshake of one caller.
GREETING_SECONDS = 5.0
#: Callers whose handshake is under way.
MOST_CALLERS = 256
#: Beyond a part of the file descriptors of this process there are fewer.
_SHARE_OF_FILES = 4
#: Connections that may wait in the kernel while the leader is at work of its own, besides those of the members.
_BACKLOG = 128
#: Of connections that are taken before those that were taken earlier are heard again.
_MOST_AT_ONCE = 16
#: The caller looks for its callers at least that often.
LONGEST_PAUSE_SECONDS = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Lines of the log about strangers; who calls again and again must not fill it.
_MOST_REPORTS = 100


class Service(msgspec.Struct, frozen=True):
    """What a leader offers, and to whom."""

    job: str
    #: Who may connect, and for what; each once for each role.
    members: frozenset[str]
    roles: frozenset[Role]
    key: PeerKey | None


class Arrival(msgspec.Struct, frozen=True, eq=False):
    """A member that has proved itself; the connection, which does not block, belongs to the receiver."""

    member: str
    role: Role
    connection: socket.socket


class _Caller:
    """Somebody who has connected and has not proved yet who it is."""

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.connection = connection
        self.address = address
        self.reader = FrameReader(connection)
        self.hello: Hello | None = None
        self.nonce = b""
        #: How long this process has waited for it; time in which this process did not run does not count.
        self.waited = 0.0


class Acceptor:
    """A listening socket, and the callers whose handshake is under way.

    Its owner polls `sources`, and calls `turn` after at most a second, with what can be read from.

    Args:
        host: Where to listen: a name or address of this machine.
        port: Likewise.
        service: What the leader offers.
        clock: The time in seconds.

    Raises:
        OSError: The port is taken, or the name is not this machine's.
    """

    def __init__(self, host: str, port: int, service: Service, *, clock: Clock = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._looked = clock()
        self._callers: dict[int, _Caller] = {}
        self._arrived: set[tuple[str, Role]] = set()
        #: Of each member in whose name somebody has called who could not prove it: the address.
        self.unproved: dict[str, str] = {}
        self._reports: set[str] = set()
        #: No file descriptor is left: a poll of the listening socket would come back at once, again and again.
        self._is_deaf = False
        connections = len(service.members) * len(service.roles)
        self._listener = listen(host, port, backlog=_BACKLOG + connections)
        self._listener.setblocking(False)

    def sources(self) -> list[int]:
        """Return the descriptors to poll for reading."""
        self._looked = self._clock()
        listening = [] if self._is_deaf else [self._listener.fileno()]
        return [*listening, *self._callers]

    @property
    def is_engaged(self) -> bool:
        """Whether a handshake is under way with somebody who calls itself a member."""
        return any(caller.hello for caller in self._callers.values())

    def turn(self, ready: Collection[int]) -> list[Arrival]:
        """Take new callers, hear those that have said something, and close the connections of those that are late.

        Args:
            ready: Which of the descriptors can be read from.

        Returns:
            The members that have proved themselves by now.
        """
        # How long the poll took; what is beyond the longest pause is time in which this process did not run.
        waited = min(self._clock() - self._looked, LONGEST_PAUSE_SECONDS)
        arrivals = [self._hear(source) for source in ready if source in self._callers]
        for caller in list(self._callers.values()):
            caller.waited += waited
            if caller.waited > GREETING_SECONDS:
                self._drop(caller)
        self._is_deaf = False
        if self._listener.fileno() in ready:
            self._accept()
        return [arrival for arrival in arrivals if arrival]

    def close(self) -> None:
        """Stop listening; who has not arrived by now will not be let in."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room(error)
                break
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # it has hung up already, which shows when it is read from
                send_at_once(connection)
            self._callers[connection.fileno()] = _Caller(connection, str(address[0]))
        for caller in list(self._callers.values())[: max(0, len(self._callers) - _most_callers())]:
            self._drop(caller)

    def _make_room(self, error: OSError) -> None:
        """Close the connection of the caller who has had the longest time to prove itself."""
        self._report(f"a connection cannot be accepted: {error.strerror}; unknown callers are closed")
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
            self._report(f"a caller from {caller.address} is refused: {other}")
            self._refuse(caller, "version")
        except Refused as refused:
            self._refuse(caller, refused.reason)
        except OSError:  # a stranger
            self._drop(caller)
        return None

    def _answer(self, caller: _Caller, message: Message) -> Arrival | None:
        if isinstance(message, Hello) and caller.hello is None:
            self._challenge(caller, message)
            return None
        if caller.hello is None:
            raise ConnectionAbortedError("it does not greet")
        member, role = caller.hello.member, caller.hello.role
        if not isinstance(message, Proof) or not self._is_proved(caller, message):
            self._report_unproved(caller, member)
            raise Refused("proof")
        if (member, role) in self._arrived:
            self._report(f"somebody else greets as {member}: {caller.address}; refused")
            raise Refused("taken")
        caller.connection.sendall(encode(Welcome()))
        self._arrived.add((member, role))
        del self._callers[caller.connection.fileno()]
        return Arrival(member, role, caller.connection)

    def _challenge(self, caller: _Caller, hello: Hello) -> None:
        if hello.job != self._service.job:
            raise Refused("job")
        if hello.member not in self._service.members or hello.role not in self._service.roles:
            raise Refused("member")
        caller.hello, caller.nonce = hello, make_nonce()
        proof = prove("leader", hello, caller.nonce, self._service.key)
        caller.connection.sendall(encode(Challenge(caller.nonce, proof)))

    def _is_proved(self, caller: _Caller, message: Proof) -> bool:
        assert caller.hello is not None  # noqa: S101 - it was challenged
        return is_proved(message.proof, "member", caller.hello, caller.nonce, self._service.key)

    def _report_unproved(self, caller: _Caller, member: str) -> None:
        self.unproved[member] = caller.address
        who = "somebody else" if any(member == arrived for arrived, _ in self._arrived) else "somebody"
        why = f"{PEER_KEY_VARIABLE} differs, or it is a stranger"
        self._report(f"{who} greets as {member}: {caller.address}; refused without a proof ({why})")

    def _report(self, line: str) -> None:
        """Write each line once."""
        if line not in self._reports and len(self._reports) < _MOST_REPORTS:
            self._reports.add(line)
            say(line)

    def _refuse(self, caller: _Caller, reason: Reason) -> None:
        with contextlib.suppress(OSError):
            caller.connection.sendall(encode(Refusal(reason)))
        self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        del self._callers[caller.connection.fileno()]
        hang_up(caller.connection)


def _most_callers() -> int:
    """Return how many callers may be under way at once: a part of what this process may have open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = MOST_CALLERS if files == resource.RLIM_INFINITY else files // _SHARE_OF_FILES
    return max(_MOST_AT_ONCE, min(MOST_CALLERS, most))
