"""What workers ask the loader, through a socket that all of them share; each request brings what its answer goes to."""

import asyncio
import contextlib
import os
import socket
from http import HTTPStatus
from typing import TypeAlias

import msgspec

from trainbox.serving.multi.api import LoadModel, Reply, UnloadModel

Change: TypeAlias = LoadModel | UnloadModel
_MOST_BYTES = 64 * 1024
_CHANGES = msgspec.json.Decoder(Change)
_REPLIES = msgspec.json.Decoder(Reply)
_HINT = "try again"


class Ticket(msgspec.Struct, frozen=True):
    """A request of a worker, and where its answer goes."""

    change: Change
    worker: socket.socket

    def answer(self, reply: Reply) -> None:
        """Say what became of it; whether the worker still wants to know does not matter."""
        with contextlib.suppress(OSError):
            self.worker.send(msgspec.json.encode(reply))
        self.worker.close()


class Exchange:
    """Both ends: the loader keeps one, the workers inherit the other."""

    def __init__(self) -> None:
        self._workers, self._loader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._workers, self._loader):
            end.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that the loader waits for."""
        return self._loader.fileno()

    def close_loader(self) -> None:
        """Close the end of the loader, in a process that it has forked."""
        self._loader.close()

    def receive(self) -> Ticket | None:
        """Return the next request; None if there is none yet."""
        try:
            content, descriptors, _, _ = socket.recv_fds(self._loader, _MOST_BYTES, 1)
        except BlockingIOError:
            return None
        if not descriptors:  # too many are open here: the worker is told by the end of its socket
            return None
        return Ticket(_CHANGES.decode(content), socket.socket(fileno=descriptors[0]))

    async def ask(self, change: Change) -> Reply:
        """Have the loader do something, from a worker, and return what became of it."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                os.set_inheritable(theirs.fileno(), False)
                try:
                    socket.send_fds(self._workers, [msgspec.json.encode(change)], [theirs.fileno()])
                except OSError as error:  # full, or too many descriptors are on their way
                    text = f"too many models are being loaded and unloaded: {error.strerror}"
                    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, text, _HINT)
            content = b""
            with contextlib.suppress(ConnectionResetError):
                content = await loop.sock_recv(ours, _MOST_BYTES)
        if not content:
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE, "the loader has ended meanwhile", _HINT)
        return _REPLIES.decode(content)
