"""Clients that send one request again and again over connections that stay open, and look at each answer."""

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Loaded(msgspec.Struct, frozen=True):
    """What came of it."""

    answers: int
    seconds: float
    #: The quickest and the median, in seconds.
    quickest: float
    median: float


class Client(asyncio.Protocol):
    """One connection.

    Args:
        request: What is sent.
        expected: The body of every answer.
        until: When to stop, by the clock of the loop.
        done: Called with the seconds of each answer, and whether it was the last.
    """

    def __init__(self, request: bytes, expected: bytes, until: float, done: Callable[[float], None]) -> None:
        self._request, self._expected, self._until, self._done = request, expected, until, done
        self._seen = b""
        self._sent_at = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent_at = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Check an answer once it is whole, and send the next."""
        self._seen += data
        head, found, body = self._seen.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is None:
            raise RuntimeError(f"an answer without a length: {head!r}")
        if len(body) < int(length[1]):
            return
        if b" 200 " not in head.partition(b"\r\n")[0] or body != self._expected:
            sys.exit(f"not what was expected: {head!r} {body[:200]!r}")
        self._seen = b""
        now = time.monotonic()
        self._done(now - self._sent_at)
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Say whether it was closed by us."""
        if time.monotonic() < self._until:
            sys.exit(f"the server has closed a connection: {error}")
        if not self.closed.done():
            self.closed.set_result(None)


async def send_for(port: int, request: bytes, expected: bytes, connections: int, seconds: float) -> Loaded:
    """Send requests for some time."""
    loop, times = asyncio.get_running_loop(), list[float]()
    began = time.monotonic()
    clients = []
    for _ in range(connections):
        made = await loop.create_connection(
            lambda: Client(request, expected, began + seconds, times.append), "127.0.0.1", port
        )
        clients.append(made[1])
    await asyncio.gather(*(client.closed for client in clients))
    took, times = time.monotonic() - began, sorted(times)
    return Loaded(len(times), took, times[0], times[len(times) // 2])


def main() -> None:
    """Send what stands in two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path)
    parser.add_argument("expected", type=Path)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    request, expected = given.request.read_bytes(), given.expected.read_bytes()
    loaded = uvloop.run(send_for(given.port, request, expected, given.connections, given.seconds))
    print(json.dumps(msgspec.to_builtins(loaded)))


if __name__ == "__main__":
    main()
