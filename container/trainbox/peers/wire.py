"""A TCP connection on which each side says lines of JSON; what has become of one, in words."""

import contextlib
import socket
from typing import Generic, TypeVar

import msgspec

L = TypeVar("L")

CLOSED = "the connection was closed"

LONGEST_LINE_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_MOST_DRAINED = 64
_TRY_SECONDS = 2.0


def describe(error: OSError) -> str:
    """What has become of a connection.

    A process that is killed ends its connections with a FIN, and with a RST those on which it had not read everything:
    which one, is chance.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return str(error)


class Wire(Generic[L]):
    """One connection.

    Args:
        connection: It belongs to this from now on.
        kind: The type of a line, the same on both sides.
        longest: The most bytes of a line.
    """

    def __init__(self, connection: socket.socket, kind: type[L], *, longest: int = LONGEST_LINE_BYTES) -> None:
        send_at_once(connection)
        self.connection = connection
        self._decoder = msgspec.json.Decoder(kind)
        self._longest = longest
        self._read = bytearray()
        self._unsent = bytearray()

    def send(self, line: L) -> None:
        """Say something, as long as the connection's timeout has it.

        Raises:
            OSError: The connection is gone, or the other side does not take it.
        """
        self.connection.sendall(msgspec.json.encode(line) + b"\n")

    def post(self, line: L) -> None:
        """Say something on a connection that does not block: what cannot go out yet waits for `flush`.

        Raises:
            OSError: The connection is gone.
        """
        self._unsent += msgspec.json.encode(line) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Let go out what can now.

        Raises:
            OSError: The connection is gone.
        """
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self.connection.send(self._unsent)]

    @property
    def is_behind(self) -> bool:
        """Whether something that was posted is still here."""
        return bool(self._unsent)

    def receive(self) -> list[L]:
        """The lines that have come whole; reads once, and blocks only if nothing has come.

        Raises:
            OSError: The connection is gone, or what comes is none of our lines.
        """
        chunk = self.connection.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError(CLOSED)
        self._read += chunk
        if len(self._read) > self._longest:
            raise ConnectionAbortedError("a line without an end")
        if b"\n" not in chunk:
            return []
        *whole, self._read = self._read.split(b"\n")
        try:
            return [self._decoder.decode(line) for line in whole]
        except (ValueError, RecursionError):  # text that is not UTF-8 is no DecodeError
            raise ConnectionAbortedError("it speaks another language") from None

    def close(self) -> None:
        """Hang up."""
        hang_up(self.connection)


def hang_up(connection: socket.socket) -> None:
    """Close a connection so that what was said last still arrives."""
    # What is left unread would make a RST of the FIN, and that may overtake what was said last.
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        for _ in range(_MOST_DRAINED):
            if not connection.recv(_CHUNK_BYTES):
                break
    connection.close()


def send_at_once(connection: socket.socket) -> None:
    """Let small messages not wait for more, where a connection would (TCP does)."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """A listening socket on the address that a name has, and on no other.

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
    """A connection to whoever listens there.

    Raises:
        OSError: Nobody does.
    """
    connection = socket.create_connection((host, port), timeout=_TRY_SECONDS)
    if connection.getsockname() == connection.getpeername():
        # Where nobody listens yet, Linux may give the client just the port that it calls: it then talks to itself.
        connection.close()
        raise ConnectionRefusedError("nobody listens")
    return connection
