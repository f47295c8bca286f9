"""The process that writes checkpoints: it gets the memory into which a rank has copied its state.

    python -P -m trainbox.torch.checkpoints.writer DIRECTORY KEEP      stdin: a socket (SOCK_SEQPACKET)

Each message is one `Order` in JSON with the descriptor of the memory beside it; the answer is one `Done`. Apart from
the rank because digests and the disk want a processor of their own, and because a rank that dies has handed over what
is whole: it is written to the end. When nobody is left at the other end of the socket, this ends.
"""

import errno
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from trainbox.checkpointing import Checkpoints
from trainbox.errors import CheckpointError

#: The tree and the tables, and the bytes of all tensors, cut into files so that several processors can digest them.
STATE = "state.json"
SHARD_BYTES = 256 << 20
_NICE = 5
_MESSAGE_BYTES = 1 << 16
_THREADS = 4


class Order(msgspec.Struct, frozen=True):
    """One checkpoint to write: bytes [0, size) of the memory are tensors, [size, size + text) is `state.json`."""

    step: int
    size: int
    text: int
    info: dict[str, Any]
    #: To seal it with; it comes this way because everybody on the host can see the arguments of a process.
    keys: tuple[bytes, ...] = ()


class Done(msgspec.Struct, frozen=True):
    """How it went: seconds until it was durable, or what went wrong."""

    step: int
    seconds: float
    error: str | None = None
    hint: str | None = None


def shard_name(index: int) -> str:
    """What the file with bytes [index * SHARD_BYTES, …) is called."""
    return f"state-{index:05d}.bin"


def serve(store: Checkpoints, connection: socket.socket) -> None:
    """Write what is ordered until nobody is there to order."""
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(connection, _MESSAGE_BYTES, 1)
        if not message:
            return
        order = msgspec.json.decode(message, type=Order)
        try:
            done = _write(store, order, *descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with suppress(BrokenPipeError, ConnectionResetError):  # the rank is gone; its checkpoint is written
            connection.send(msgspec.json.encode(done))


def _write(store: Checkpoints, order: Order, memory: int) -> Done:
    began = time.monotonic()
    try:
        sealing = Checkpoints(store.directory, keep=store.keep, keys=order.keys)
        with _busy(store.directory), sealing.writing(order.step, info=order.info) as path:
            pieces = [(path / STATE, order.size, order.text)]
            for offset in range(0, order.size, SHARD_BYTES):
                size = min(SHARD_BYTES, order.size - offset)
                pieces.append((path / shard_name(offset // SHARD_BYTES), offset, size))
            with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
                for _ in pool.map(lambda piece: _copy(memory, *piece), pieces):
                    pass
    except CheckpointError as error:
        return Done(order.step, time.monotonic() - began, error.message, error.hint)
    except OSError as error:
        return Done(order.step, time.monotonic() - began, f"the checkpoint of step {order.step}: {error}")
    return Done(order.step, time.monotonic() - began)


def _copy(memory: int, path: Path, offset: int, size: int) -> None:
    """Write a range of the memory to a file, within the kernel; to the disk it goes while it is digested."""
    with path.open("wb") as file:
        end = offset + size
        while offset < end:
            sent = os.sendfile(file.fileno(), memory, offset, end - offset)
            if not sent:
                raise OSError(errno.EIO, "the memory of the rank is shorter than it said", str(path))
            offset += sent


@contextmanager
def _busy(directory: Path) -> Iterator[None]:
    """Show whoever starts meanwhile that a checkpoint is about to be there: the directory is locked, shared."""
    with suppress(OSError):  # `writing` says what is wrong with it
        directory.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):  # no locks there, e.g. NFS
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_idle(directory: Path) -> bool:
    """Whether no writer, such as that of a rank that has died, is at a checkpoint of this directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def main() -> None:
    """Serve the socket that is stdin."""
    directory, keep = sys.argv[1:]
    # The supervisor stops jobs with SIGTERM, and ^C reaches every process of a terminal: both are the rank's business.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        serve(Checkpoints(Path(directory), keep=int(keep)), connection)


if __name__ == "__main__":
    main()
