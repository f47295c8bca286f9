"""Connections that the supervisor answers itself, while there is no worker: 503, with the reason."""

import contextlib
import json
import socket
from collections.abc import Callable

import msgspec

#: As many at a time; one more takes the place of the oldest.
MOST = 512
_HEAD_SECONDS = 5.0
_LINGER_SECONDS = 1.0
_MOST_HEAD_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024


class _Refused(msgspec.Struct):
    connection: socket.socket
    until: float
    head: bytes = b""
    is_answered: bool = False


class Refusals:
    """The connections that are being refused.

    Args:
        reason: Why, now.
        register: Watches a socket and calls a function when it can be read.
        unregister: The opposite.
    """

    def __init__(
        self,
        reason: Callable[[], str],
        register: Callable[[socket.socket, Callable[[], None]], None],
        unregister: Callable[[socket.socket], object],
    ) -> None:
        self._reason = reason
        self._register = register
        self._unregister = unregister
        self._open: dict[int, _Refused] = {}

    def add(self, connection: socket.socket, now: float) -> None:
        """Refuse whatever a connection asks for."""
        if len(self._open) >= MOST:
            self._close(next(iter(self._open)))
        number = connection.fileno()
        connection.setblocking(False)
        self._open[number] = _Refused(connection, now + _HEAD_SECONDS)
        self._register(connection, lambda: self._read(number, now))

    def _read(self, number: int, now: float) -> None:
        """Wait for the head of a request, answer it, and read on: to close at once would take back the answer."""
        refused = self._open[number]
        try:
            content = refused.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._close(number)
        elif not refused.is_answered:
            refused.head += content
            if b"\r\n\r\n" in refused.head or len(refused.head) > _MOST_HEAD_BYTES:
                refused.is_answered, refused.until = True, now + _HEAD_SECONDS + _LINGER_SECONDS
                with contextlib.suppress(OSError):
                    refused.connection.send(answer(self._reason(), is_head=refused.head.startswith(b"HEAD ")))
                    refused.connection.shutdown(socket.SHUT_WR)

    def close_late(self, now: float) -> float:
        """Close those that take too long; when the next one does."""
        for number, refused in tuple(self._open.items()):
            if now >= refused.until:
                self._close(number)
        return min((refused.until for refused in self._open.values()), default=float("inf"))

    def _close(self, number: int) -> None:
        connection = self._open.pop(number).connection
        self._unregister(connection)
        connection.close()


def answer(reason: str, *, is_head: bool = False) -> bytes:
    """Return the bytes of an answer 503."""
    body = json.dumps({"error": reason}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)
