"""Rendezvous: the leader listens, members connect; connections from other jobs are rejected.

A process of a script connects twice, for heartbeats and for data; a host of the health checks once. Each connection
begins with the handshake of `handshake`.

Deadlines:

- `timeout` (the setting `trainbox_peer_timeout_seconds`): seconds that the leader waits for all members, from the
  moment it listens, and that a member tries to reach the leader, from its first try. Time in which this process itself
  did not run is left out; if it was away for as long as all wait, it names itself and nobody else.
- 2 s for a try to connect, and 5 s (`acceptor.HANDSHAKE_SECONDS`) for the handshake; 0.05 s until the next try.
- Every 10 s of waiting are one line of the log.

A member whose key or protocol differs does not try again. One whose name is taken, or that meets another job, does:
the process that listens there may be of an earlier attempt, and end.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from trainbox.clock import Clock, Patience, Sleep
from trainbox.comm.acceptor import HANDSHAKE_SECONDS, LONGEST_PAUSE_SECONDS, Acceptor, Arrival
from trainbox.comm.data_connection import LoggedWait
from trainbox.comm.framing import Loss
from trainbox.comm.handshake import MemberHandshake, Reason, Refused, Role, make_hello
from trainbox.comm.heartbeat import HeartbeatMonitor
from trainbox.comm.members import Members
from trainbox.comm.sockets import connect, describe
from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE, SAME_KEY_HINT
from trainbox.errors import PeerError, Stopped

#: A try to reach the leader takes at most so long: to connect, to pass the handshake, and to wait for the next.
_LONGEST_TRY_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_SECONDS_BETWEEN_LINES = 10.0
_MAX_NAMES = 5
_ABSENT_HINT = "did it fail to start? See its log; the job's security group must allow traffic in it"
#: By reason, where the leader is there and rejects this member: what to do about it.
_REJECTED_HINTS: Mapping[Reason, str] = {
    "taken": f"does the host run twice? Without {PEER_KEY_VARIABLE} anybody on the network can take the name of a host",
    "proof": SAME_KEY_HINT,
    "version": "all hosts must run the same image",
}
#: Trying again does not change these.
_FINAL: frozenset[Reason] = frozenset({"proof", "version"})


def begin_wait(timeout: float, clock: Clock) -> LoggedWait:
    """Return the wait for a rendezvous."""
    return LoggedWait(timeout, clock, _SECONDS_BETWEEN_LINES)


def accept_next(acceptor: Acceptor, waiting: LoggedWait, *alarms: socket.socket) -> list[Arrival]:
    """Wait for members for a second at most; return those that are accepted."""
    waiting.report(list_names(acceptor.missing))
    return acceptor.accept(waiting.patience.pause, *alarms)


def accept_members(
    members: Members, port: int, monitor: HeartbeatMonitor, *, timeout: float, clock: Clock = time.monotonic
) -> dict[str, socket.socket]:
    """Wait for all members of a script.

    Args:
        members: All; this one leads.
        port: Where to listen.
        monitor: Gets the connections for heartbeats.
        timeout: Seconds for all of them together.
        clock: The time in seconds.

    Returns:
        The connections for data, in the order of the members.

    Raises:
        PeerError: The port is taken, some members have not joined, or one was lost meanwhile.
        Stopped: A member has left because the job is stopped.
    """
    came: dict[str, socket.socket] = {}
    waiting = begin_wait(timeout, clock)
    try:
        acceptor = Acceptor(members, port, frozenset({"heartbeat", "data"}), clock=clock)
    except OSError as error:
        raise PeerError(
            f"port {port} of {members.address} cannot be opened for the members of the job: {error.strerror}",
            hint="the variable MASTER_PORT names another",
        ) from None
    with contextlib.closing(acceptor), contextlib.ExitStack() as stack:
        while acceptor.missing:
            if waiting.look(LONGEST_PAUSE_SECONDS).is_over:
                raise monitor.lose(_explain_missing(members.name, acceptor, waiting.patience))
            for arrival in accept_next(acceptor, waiting, monitor.alarm):
                if arrival.role == "heartbeat":
                    monitor.add(arrival.member, arrival.connection)
                else:
                    came[arrival.member] = stack.enter_context(arrival.connection)
            monitor.check()
        stack.pop_all()
    return {name: came[name] for name in members.names[1:]}


def _explain_missing(me: str, acceptor: Acceptor, patience: Patience) -> Loss:
    """Name the members that have not joined, and the callers that claimed to be them without a valid proof."""
    how = f"within {patience.seconds:g} s"
    missing = acceptor.missing
    unproved = [f"{acceptor.unproved[name]} as {name}" for name in missing if name in acceptor.unproved]
    if not unproved:
        return _absence(me, list_names(missing), how, patience, _ABSENT_HINT)
    how += f"; rejected without a valid proof: {list_names(unproved)}"
    return _absence(me, list_names(missing), how, patience, SAME_KEY_HINT)


def _absence(me: str, missing: str, how: str, patience: Patience, hint: str) -> Loss:
    """Name the missing, or this member if it was away for as long as the others wait."""
    if patience.was_absent:
        return Loss(me, f"is lost: it did not run for {patience.missed_in_all:.0f} s during the rendezvous")
    return Loss(missing, f"did not join ({how})", hint)


def list_names(names: Sequence[str]) -> str:
    """Return some names as text, the first five in full."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def connect_as(
    members: Members,
    port: int,
    role: Role,
    waiting: LoggedWait,
    *,
    final: frozenset[Reason] = _FINAL,
    check: Callable[[], None] | None = None,
    sleep: Sleep = time.sleep,
) -> socket.socket:
    """Try to reach the leader until it accepts, or the time is over.

    Args:
        members: All; this one does not lead.
        port: Where the leader listens.
        role: Of the connection.
        waiting: How long to try.
        final: Reasons of a refusal after which there is no other try.
        check: Raises when trying has become useless.
        sleep: Waits between two tries.

    Returns:
        A connection on which both have proved themselves.

    Raises:
        Refused: The leader rejects this member, or this member the leader.
        OSError: The leader cannot be reached.
    """
    while True:
        if check is not None:
            check()
        is_over = waiting.look(_LONGEST_TRY_SECONDS).is_over  # before: a last try may still be accepted
        try:
            return _try(members, port, role)
        except OSError as error:
            if is_over or (isinstance(error, Refused) and error.reason in final):
                raise
            waiting.report(members.names[0])
            sleep(_PAUSE_SECONDS)


def _try(members: Members, port: int, role: Role) -> socket.socket:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(connect(members.address, port))
        connection.settimeout(HANDSHAKE_SECONDS)
        handshake = MemberHandshake(connection, make_hello(members.job, members.name, role), members.key)
        while not handshake.advance():
            pass
        stack.pop_all()
    return connection


def connect_to_leader(
    members: Members,
    port: int,
    monitor: HeartbeatMonitor,
    *,
    timeout: float,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> socket.socket:
    """Connect to the leader of a script, which may start later.

    Args:
        members: All; this one does not lead.
        port: Where the leader listens.
        monitor: Gets the connection for heartbeats.
        timeout: Seconds to try.
        clock: The time in seconds.
        sleep: Waits between two tries.

    Returns:
        The connection for data.

    Raises:
        PeerError: The leader is not there, or rejects this member, or another program listens there.
        Stopped: The leader has left because the job is stopped.
    """
    waiting = begin_wait(timeout, clock)
    reach = partial(connect_as, members, port, waiting=waiting, check=monitor.check, sleep=sleep)
    try:
        monitor.add(members.names[0], reach("heartbeat"))
        return reach("data")
    except OSError as error:
        raise _explain_unreached(members, port, error, waiting.patience, monitor) from None


def _explain_unreached(
    members: Members, port: int, error: OSError, patience: Patience, monitor: HeartbeatMonitor
) -> PeerError | Stopped:
    leader, where = members.names[0], f"port {port} of {members.address}"
    if isinstance(error, Refused) and error.reason in _REJECTED_HINTS and not patience.was_absent:
        why = f"rejects {members.name}: {error} ({where})"
        return monitor.error(Loss(leader, why, _REJECTED_HINTS[error.reason]))
    how = f"within {patience.seconds:g} s; {where}: {describe(error)}"
    return monitor.error(_absence(members.name, leader, how, patience, _ABSENT_HINT))
