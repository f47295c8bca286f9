"""A body of any length on its way from the event loop to the thread that reads it: neither waits for all of it."""

import asyncio
import queue
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from trainbox.serving.bodies.request_errors import RequestError

#: Parts that have come and are not read, of 64 KiB and more each.
_MOST_PARTS = 16


class BodyPipe:
    """What has come of a body, as a file to read.

    Args:
        first: Its first part.
        loop: Of what feeds it.
        seconds: How long it may pause; the reading thread is blocked meanwhile.
    """

    def __init__(self, first: bytes, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._held = first
        self._loop = loop
        self._seconds = seconds
        self._end = RequestError("the body has not come to its end", status=HTTPStatus.BAD_REQUEST)
        self._parts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_MOST_PARTS)
        self._is_over = False

    async def feed(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        """Take the parts as they come, and no more than there is room for."""
        last: bytes | None = None  # the client has gone, or nobody reads any more
        try:
            while True:
                await self._room.acquire()
                message = await asyncio.wait_for(receive(), self._seconds)
                if message["type"] == "http.disconnect":
                    return
                if message["body"]:
                    self._parts.put(message["body"])
                if not message["more_body"]:
                    last = b""
                    return
        except TimeoutError:
            self._end = RequestError(f"the body has paused for {self._seconds:g} s", status=HTTPStatus.REQUEST_TIMEOUT)
        finally:
            self._parts.put(last)

    def read(self, size: int, /) -> bytes:
        """Return at most that many bytes; none at the end.

        Raises:
            RequestError: The client has gone, or sends nothing.
        """
        if not self._held and not self._is_over:
            part = self._parts.get()
            if part is None:
                raise self._end
            self._held, self._is_over = part, not part
            self._loop.call_soon_threadsafe(self._room.release)
        part, self._held = self._held[:size], self._held[size:]
        return part

    def close(self) -> None:
        """Nothing is open."""
