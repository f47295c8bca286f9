"""The rank's end of the writer: start it, hand it what is to be written, hear how it went, start another if it dies."""

import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from trainbox.procfs import LOOK_SECONDS, StoppedProcesses, is_stopped, process_state
from trainbox.say import kept_words, say
from trainbox.torch.checkpoints.writer import Done, Order

_TAIL_BYTES = 2000
_MESSAGE_BYTES = 1 << 16
#: A state is handed over once more if its writer dies; two writers do not die by accident.
_TRIES = 2


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
