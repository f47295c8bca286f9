"""TCP sockets between the processes of a job: listen on one address, connect, close without losing what was sent."""

import contextlib
import datetime as dt
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

CLOSED = "the connection was closed"

_CHUNK_BYTES = 64 * 1024
#: Reads of the remaining bytes when a connection is closed.
_MAX_DRAINED = 64
_CONNECT_SECONDS = 2.0
#: Of a store: libuv, which serves it, sets its own when it takes the socket over.
_STORE_BACKLOG = 2048


def describe(error: OSError) -> str:
    """Return what happened to a connection, in words.

    A process that is killed ends its connections with a FIN, and with a RST those on which it had not read everything.
    Which of the two is chance, so both read the same.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return error.strerror or str(error)


def hang_up(connection: socket.socket) -> None:
    """Close a connection so that what was sent last still arrives."""
    # Unread bytes would turn the FIN into a RST, which may overtake what was sent last.
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        for _ in range(_MAX_DRAINED):
            if not connection.recv(_CHUNK_BYTES):
                break
    connection.close()


def send_at_once(connection: socket.socket) -> None:
    """Turn off the delay of small messages (Nagle's algorithm) where the connection is TCP."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a socket that listens on the address of a host name, and on no other address.

    Raises:
        OSError: The port is taken, or the name is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def connect(host: str, port: int) -> socket.socket:
    """Return a connection to the process that listens there.

    Raises:
        OSError: None does.
    """
    connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    if connection.getsockname() == connection.getpeername():
        # Where no process listens yet, Linux may give the client the very port that it calls: it then talks to itself.
        connection.close()
        raise ConnectionRefusedError("no process listens")
    return connection


def serve_store(host: str, port: int, *, timeout: dt.timedelta, shared: bool = False) -> "TCPStore":
    """Return the server of a torch store on one address; `TCPStore` alone listens on every address of the host.

    Args:
        host: A name or an address of this host.
        port: Where to listen; 0 takes any that is free.
        timeout: How long a call waits for a key.
        shared: Whether another `TCPStore` of this process with the same port is the same store (`multi_tenant`), as
            torch's `env://` asks for.

    Raises:
        OSError: The port is taken, or the name is not this machine's.
    """
    from torch._C._distributed_c10d import TCPStore  # noqa: PLC0415 - members without torch have connections, too

    listener = listen(host, port, backlog=_STORE_BACKLOG)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        multi_tenant=shared,
        master_listen_fd=listener.detach(),  # the store closes it
    )
