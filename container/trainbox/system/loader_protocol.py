"""What the supervisor of `serve` and the loader, which forks the workers, tell each other over a pair of sockets.

A message is one packet; a descriptor travels with it (unix(7), SCM_RIGHTS).
"""

import contextlib
import socket
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

_MOST_BYTES = 64 * 1024
#: What goes through the channel of a worker: a connection, with its descriptor, in both directions; the request to
#: retire: to give back what waits and to end once the rest is answered; and from the worker that it has begun to.
CONNECTION, RETIRE, RETIRING = b"c", b"r", b"e"


class ForkWorker(msgspec.Struct, frozen=True, tag="fork"):
    """To the loader: start this worker. The end of its channel, which connections come through, is with it."""

    worker: int


class ListenerClosed(msgspec.Struct, frozen=True, tag="closed"):
    """To the loader: nothing is accepted any more, and all that was has been handed over."""


class WorkersReplaced(msgspec.Struct, frozen=True, tag="replaced"):
    """To the loader, after `ModelsChanged`: from here on only workers that were forked since are given requests."""


class GiveUp(msgspec.Struct, frozen=True, tag="give up"):
    """To the loader: its workers end too often; leave with this exit code."""

    code: int


class ModelLoaded(msgspec.Struct, frozen=True, tag="loaded"):
    """From the loader: the model is there, and workers can be forked."""

    #: What it is, for the log.
    model: str
    seconds: float
    #: Of the loader, which its workers share.
    rss_bytes: int


class WorkerForked(msgspec.Struct, frozen=True, tag="forked"):
    """From the loader: a worker runs."""

    worker: int
    pid: int


class WorkerEnded(msgspec.Struct, frozen=True, tag="ended"):
    """From the loader: a worker has ended; its wait status."""

    worker: int
    pid: int
    status: int


class ServerIdle(msgspec.Struct, frozen=True, tag="idle"):
    """From the loader, after a request to stop: no request has come for a while, accept no more."""


class ModelsChanged(msgspec.Struct, frozen=True, tag="changed"):
    """From the loader of several models: what workers are forked with has changed, have others take their place."""


Message: TypeAlias = (
    ForkWorker
    | ListenerClosed
    | WorkersReplaced
    | GiveUp
    | ModelLoaded
    | WorkerForked
    | WorkerEnded
    | ServerIdle
    | ModelsChanged
)
_DECODER = msgspec.json.Decoder(Message)


class LoaderLink:
    """One end of the pair.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message.

        Raises:
            OSError: The other end has gone.
        """
        socket.send_fds(self._socket, [msgspec.json.encode(message)], list(descriptors))

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message with what came along; None where the other end has gone.

        Raises:
            BlockingIOError: There is none yet.
        """
        with contextlib.suppress(ConnectionResetError):
            content, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, 4)
            if content:
                return _DECODER.decode(content), descriptors
        return None

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def make_links() -> tuple[LoaderLink, socket.socket]:
    """Return the supervisor's end, and the socket that the loader inherits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return LoaderLink(ours), theirs
