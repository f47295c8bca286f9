"""The process that writes checkpoints: it gets the memory into which a rank has copied its state.

    python -P -m trainbox.torch.checkpoints.writer DIRECTORY KEEP      stdin: a socket (SOCK_SEQPACKET)

Each message is one `Order` in JSON with the descriptor of the memory beside it; the answer is one `Done`. Apart from
the rank because digests and the disk want a processor of their own, and because a rank that dies has handed over what
is whole: it is written to the end. When nobody is left at the other end of the socket, this ends.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from trainbox.checkpointing import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.procfs import LOOK_SECONDS, StoppedProcesses, is_stopped, process_state
from trainbox.say import kept_words, say

#: The tree and the tables, and the bytes of all tensors, cut into files so that several processors can digest them.
STATE = "state.json"
SHARD_BYTES = 256 << 20
_NICE = 5
_MESSAGE_BYTES = 1 << 16
_THREADS = 4
_TAIL_BYTES = 2000
#: A state is handed over once more if its writer dies; two writers do not die by accident.
_TRIES = 2


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


# ---- the process ----


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


def main() -> None:
    """Serve the socket that is stdin."""
    directory, keep = sys.argv[1:]
    # The supervisor stops jobs with SIGTERM, and ^C reaches every process of a terminal: both are the rank's business.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        serve(Checkpoints(Path(directory), keep=int(keep)), connection)


# ---- the rank ----


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


class Handover:
    """At most one checkpoint at a time is being written; the writer is started with the first one.

    Args:
        directory: Of the checkpoints.
        keep: How many of them.
        hang_seconds: A writer that is stopped (SIGSTOP) for longer is ended, and another one started; 0 never looks.
    """

    def __init__(self, directory: Path, keep: int, *, hang_seconds: float = 0.0) -> None:
        self._directory = directory
        self._keep = keep
        self._hang_seconds = hang_seconds
        # All seconds count: a rank whose steps are long looks rarely.
        self._stopped = StoppedProcesses(time.monotonic)
        self._look_at = 0.0
        self._why_ended = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors: IO[bytes] | None = None
        self._order: tuple[Order, int] | None = None
        self._tries = 0

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written: the memory that was handed over must not change."""
        return self._order is not None

    @property
    def process_id(self) -> int | None:
        """The writer, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the writer, unless it is there."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = kept_words()
        with theirs:
            # A session of its own, and none of the rank's pipes: what kills the rank, or waits for the end of its
            # output, must not meet the writer. -P: a `json.py` of the user's in this directory is not for us.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "trainbox.torch.checkpoints.writer",
                    str(self._directory.absolute()),
                    str(self._keep),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        self._socket = ours

    def submit(self, order: Order, memory: int) -> None:
        """Hand over a state: it may change again when it is no longer `busy`."""
        self._order, self._tries = (order, memory), 0
        self._send()

    def answer(self, seconds: float | None = 0.0) -> Done | None:
        """How the write went, if it is over; waits so long for it, or with None as long as it takes."""
        until = float("inf") if seconds is None else time.monotonic() + seconds
        while self._order is not None:
            if self._socket is None:
                return self._give_up("no writer could be reached")
            self._end_stopped()
            waiting = select.poll()
            waiting.register(self._socket, select.POLLIN)
            left = max(0.0, until - time.monotonic())
            if not waiting.poll(1000 * min(left, LOOK_SECONDS)):
                if left <= LOOK_SECONDS:
                    return None
                continue
            try:
                message = self._socket.recv(_MESSAGE_BYTES)
            except ConnectionResetError:
                message = b""
            if message:
                self._order = None
                return msgspec.json.decode(message, type=Done)
            ended = self._bury()
            if self._tries >= _TRIES:
                return self._give_up(f"the writer ended twice: {ended}")
            say(f"the writer of checkpoints has ended ({ended}): another one writes step {self._order[0].step}")
            self._send()
        return None

    def close(self, seconds: float) -> None:
        """End the writer when it has written what it has; after so many seconds it is left to do so alone."""
        if self._process is None:
            return
        if self._socket is not None:
            self._socket.close()
        if self._order is None and is_stopped(process_state(self._process.pid)):
            self._process.kill()  # it has nothing to write, and would never leave
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            say(f"the writer of checkpoints (process {self._process.pid}) is still at it and is left alone")
        self._forget()

    def _send(self) -> None:
        while self._order is not None and self._tries < _TRIES:
            self._tries += 1
            self.start()
            if self._socket is None:  # pragma: no cover - `start` has set it
                return
            order, memory = self._order
            try:
                socket.send_fds(self._socket, [msgspec.json.encode(order)], [memory])
            except (BrokenPipeError, ConnectionResetError):
                say(f"the writer of checkpoints has ended ({self._bury()}): starting another one")
            else:
                return

    def _end_stopped(self) -> None:
        """End a writer that has been stopped for too long; its socket tells the rest."""
        now = time.monotonic()
        if self._process is None or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for seconds in self._stopped.find({self._process.pid: self._hang_seconds}).values():
            self._why_ended = f"process {self._process.pid} was stopped for {seconds:.1f} s and was ended"
            self._process.kill()

    def _give_up(self, reason: str) -> Done | None:
        if self._order is None:
            return None
        step = self._order[0].step
        self._order = None
        return Done(step, 0.0, f"the checkpoint of step {step} is not written: {reason}")

    def _bury(self) -> str:
        """How the writer ended, which is no longer there."""
        if self._process is None or self._errors is None:
            return "it was never started"
        code, why = self._process.wait(), self._why_ended
        self._why_ended = ""
        self._errors.seek(0)
        said = self._errors.read()[-_TAIL_BYTES:].decode(errors="replace").strip()
        self._forget()
        return (why or f"exit code {code}") + (f": {said}" if said else "")

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._errors is not None:
            self._errors.close()
        self._process = self._socket = self._errors = None


if __name__ == "__main__":
    main()
