"""The asynchronous writer: a process that writes the snapshots of a rank as checkpoints, and its client in the rank.

    python -P -m trainbox.torch.checkpoints.writer DIRECTORY KEEP      stdin: a socket (SOCK_SEQPACKET)

Each message is a `WriteRequest` in JSON with the descriptor of the memory; the answer is a `WriteReply`. It is another
process because digests and the disk need a processor of their own, and because it completes the checkpoint of a rank
that has died. It ends when the other end of the socket is closed.
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

from trainbox.checkpoint.store import Checkpoints
from trainbox.errors import CheckpointError
from trainbox.log_lines import emit, kept_words
from trainbox.system.procfs import LOOK_SECONDS, StoppedProcesses, is_stopped, process_state

#: The state manifest; and the size of the files of all tensors' bytes, so that several processors can digest them.
STATE = "state.json"
SHARD_BYTES = 256 << 20
_NICE = 5
_MESSAGE_BYTES = 1 << 16
_THREADS = 4
_TAIL_BYTES = 2000
#: A request is sent again if its writer dies, once: two writers do not die by accident.
_TRIES = 2


class WriteRequest(msgspec.Struct, frozen=True):
    """A request to write a checkpoint: bytes [0, size) of the memory are tensors, [size, size + text) `state.json`."""

    step: int
    size: int
    text: int
    info: dict[str, Any]
    #: To seal it with; in the message because every user of the host can see the arguments of a process.
    keys: tuple[bytes, ...] = ()


class WriteReply(msgspec.Struct, frozen=True):
    """The result of a request: seconds until the checkpoint was durable, or the error."""

    step: int
    seconds: float
    error: str | None = None
    hint: str | None = None


def shard_name(index: int) -> str:
    """Return the name of the file with the bytes [index * SHARD_BYTES, …)."""
    return f"state-{index:05d}.bin"


# ---- the process ----


def serve(store: Checkpoints, connection: socket.socket) -> None:
    """Serve requests until the other end of the connection is closed."""
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(connection, _MESSAGE_BYTES, 1)
        if not message:
            return
        request = msgspec.json.decode(message, type=WriteRequest)
        try:
            done = _write(store, request, *descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        with suppress(BrokenPipeError, ConnectionResetError):  # the rank has ended; its checkpoint is written
            connection.send(msgspec.json.encode(done))


def _write(store: Checkpoints, request: WriteRequest, memory: int) -> WriteReply:
    began = time.monotonic()
    try:
        sealing = Checkpoints(store.directory, keep=store.keep, keys=request.keys)
        with _busy(store.directory), sealing.writing(request.step, info=request.info) as path:
            pieces = [(path / STATE, request.size, request.text)]
            for offset in range(0, request.size, SHARD_BYTES):
                size = min(SHARD_BYTES, request.size - offset)
                pieces.append((path / shard_name(offset // SHARD_BYTES), offset, size))
            with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
                for _ in pool.map(lambda piece: _copy(memory, *piece), pieces):
                    pass
    except CheckpointError as error:
        return WriteReply(request.step, time.monotonic() - began, error.message, error.hint)
    except OSError as error:
        return WriteReply(request.step, time.monotonic() - began, f"the checkpoint of step {request.step}: {error}")
    return WriteReply(request.step, time.monotonic() - began)


def _copy(memory: int, path: Path, offset: int, size: int) -> None:
    """Write a range of the memory to a file, within the kernel; it reaches the disk while it is digested."""
    with path.open("wb") as file:
        end = offset + size
        while offset < end:
            sent = os.sendfile(file.fileno(), memory, offset, end - offset)
            if not sent:
                raise OSError(errno.EIO, "the memory of the rank is shorter than the request says", str(path))
            offset += sent


@contextmanager
def _busy(directory: Path) -> Iterator[None]:
    """Hold a shared lock on the directory, which tells ranks that start meanwhile that a checkpoint is coming."""
    with suppress(OSError):  # `writing` reports the error
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
    # The supervisor stops jobs with SIGTERM, and ^C reaches every process of a terminal: the rank handles both.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        serve(Checkpoints(Path(directory), keep=int(keep)), connection)


# ---- the client ----


def is_idle(directory: Path) -> bool:
    """Whether no writer, such as that of a rank that has died, is writing to this directory."""
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


class WriterClient:
    """The client of the writer: starts it, sends requests, one at a time, and starts another one if it dies.

    Args:
        directory: The directory of the checkpoints.
        keep: How many of them to keep.
        hang_seconds: A writer that is stopped (SIGSTOP) for longer is ended, and another one started; 0 never looks.
    """

    def __init__(self, directory: Path, keep: int, *, hang_seconds: float = 0.0) -> None:
        self._directory = directory
        self._keep = keep
        self._hang_seconds = hang_seconds
        # Not an `AwakeClock`: a rank with long steps looks rarely.
        self._stopped = StoppedProcesses(time.monotonic)
        self._look_at = 0.0
        self._why_ended = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors: IO[bytes] | None = None
        self._request: tuple[WriteRequest, int] | None = None
        self._tries = 0

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written: the memory of the request must not change."""
        return self._request is not None

    @property
    def process_id(self) -> int | None:
        """The process id of the writer, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the writer, unless it runs."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = kept_words()
        with theirs:
            # A new session, and none of the rank's pipes: what kills the rank's session, or waits for the end of its
            # output, must not reach the writer. -P: ignore a user's `json.py` in this directory.
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

    def submit(self, request: WriteRequest, memory: int) -> None:
        """Send a request; its memory may change when the client is no longer `busy`."""
        self._request, self._tries = (request, memory), 0
        self._send()

    def poll(self, seconds: float | None = 0.0) -> WriteReply | None:
        """Return the reply, or None if there is none within so many seconds; None waits without a limit."""
        until = float("inf") if seconds is None else time.monotonic() + seconds
        while self._request is not None:
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
                self._request = None
                return msgspec.json.decode(message, type=WriteReply)
            ended = self._reap()
            if self._tries >= _TRIES:
                return self._give_up(f"the writer ended twice: {ended}")
            emit(f"the writer of checkpoints has ended ({ended}): another one writes step {self._request[0].step}")
            self._send()
        return None

    def close(self, seconds: float) -> None:
        """End the writer after its last request; after so many seconds it is left running until that is done."""
        if self._process is None:
            return
        if self._socket is not None:
            self._socket.close()
        if self._request is None and is_stopped(process_state(self._process.pid)):
            self._process.kill()  # it has nothing to write, and would never exit
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            emit(f"the writer of checkpoints (process {self._process.pid}) is still writing and is left running")
        self._forget()

    def _send(self) -> None:
        while self._request is not None and self._tries < _TRIES:
            self._tries += 1
            self.start()
            if self._socket is None:  # pragma: no cover - `start` has set it
                return
            request, memory = self._request
            try:
                socket.send_fds(self._socket, [msgspec.json.encode(request)], [memory])
            except (BrokenPipeError, ConnectionResetError):
                emit(f"the writer of checkpoints has ended ({self._reap()}): starting another one")
            else:
                return

    def _end_stopped(self) -> None:
        """End a writer that has been stopped for too long; its socket reports that."""
        now = time.monotonic()
        if self._process is None or now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for seconds in self._stopped.find({self._process.pid: self._hang_seconds}).values():
            self._why_ended = f"process {self._process.pid} was stopped for {seconds:.1f} s and was ended"
            self._process.kill()

    def _give_up(self, reason: str) -> WriteReply | None:
        if self._request is None:
            return None
        step = self._request[0].step
        self._request = None
        return WriteReply(step, 0.0, f"the checkpoint of step {step} is not written: {reason}")

    def _reap(self) -> str:
        """Wait for a writer that has ended, and describe how."""
        if self._process is None or self._errors is None:
            return "it was not started"
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
