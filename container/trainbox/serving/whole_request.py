"""A request that has come whole, answered without a task of its own.

What uvicorn does for each request of an ASGI application takes longer than to predict a row: a task, an event, a timer,
and messages for the parts of an answer. A request of one row comes with its head in one packet, and its answer goes out
in one.
"""

import functools
from collections.abc import Callable
from typing import Protocol, Self, TypeAlias

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from trainbox.serving.responder import Response

#: Takes the headers of a request and its body; whether it answers that. Otherwise, the ASGI application must.
AnswerWhole: TypeAlias = Callable[[list[tuple[bytes, bytes]], bytes, "WholeRequest"], bool]


class _Connection(Protocol):
    def end_whole(self, content: bytes, *, closes: bool) -> None:
        """Send the answer."""


class WholeRequest:
    """A request in progress, as uvicorn knows one (its `RequestResponseCycle`).

    Args:
        connection: That it has come through.
    """

    more_body = False

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    @property
    def message_event(self) -> Self:
        """What uvicorn sets when the client leaves."""
        return self

    def set(self) -> None:
        """Nobody waits for that."""

    def answer(self, response: Response, request_id: str, *, closes: bool) -> None:
        """Send an answer, unless the client has left.

        Args:
            response: The answer; it is sent at once.
            request_id: For its header.
            closes: Whether the connection ends with it.
        """
        self.response_complete = True
        if self.disconnected:
            return
        body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        head = _head(int(response.status), response.headers)
        end = b"connection: close\r\n" if closes or not self.keep_alive else b""
        content = b"%bcontent-length: %d\r\nx-trainbox-request-id: %b\r\n%b\r\n%b"
        self._connection.end_whole(content % (head, len(body), request_id.encode(), end, body), closes=bool(end))


@functools.lru_cache(maxsize=64)
def _head(status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Return the beginning of an answer, in the bytes that uvicorn gives it."""
    lines = [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in headers]
    return STATUS_LINE[status] + b"".join(lines)
