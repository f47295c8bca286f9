"""XGBoost's tracker as a child process of the leader, watched while the members need it.

XGBoost itself does not notice that its tracker has died until a member leaves, and never that it hangs: a member in a
collective then waits at least for the limit of the collective. So the tracker must answer heartbeats; if it does not,
the job ends with an error that names it.
"""

import json
import math
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from trainbox.clock import Clock
from trainbox.comm import Communicator
from trainbox.comm.failure_detector import FailureDetector
from trainbox.comm.heartbeat import REPORT_LEAVE_SECONDS, end_process
from trainbox.errors import TrainingError
from trainbox.log_lines import kept_words

#: For a disk that reads XGBoost for the first time.
_START_SECONDS = 120.0
_END_SECONDS = 5.0
#: Seconds between heartbeats.
ASK_SECONDS = 0.5
#: Time for the other members to receive the reason why the job ends, and to leave.
_OTHERS_SECONDS = REPORT_LEAVE_SECONDS + 1.0
_PROGRAM = Path(__file__).with_name("tracker.py")


class Tracker:
    """XGBoost's tracker as a child process of the leader; a context manager that ends it.

    Args:
        host: The name of the leader's host, on which it listens.
        members: How many connect.
        seconds: The limit for connecting.

    Raises:
        TrainingError: It does not start; with the last line of its stderr.
    """

    def __init__(self, host: str, members: int, seconds: float) -> None:
        # Its messages at the end are noise, and would be the last lines in the log of a failed job.
        self._errors = kept_words()
        #: For heartbeats, and to end it.
        self.line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", _PROGRAM, socket.gethostbyname(host), str(members), str(math.ceil(seconds))],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                process_group=0,  # a SIGTERM for the script's group asks it to save and leave, for which it needs this
            )
        self.pid = self._process.pid
        with ExitStack() as stack:
            stack.push(self)
            #: For `xgboost.collective.init`, on all members.
            self.arguments: Mapping[str, str | int] = json.loads(self._first_line())
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # it has ended already
            self.line.sendall(b"\n")
        self.line.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """Kill the tracker; does not wait for its end."""
        self._process.kill()

    def describe_end(self) -> str:
        """Describe how the tracker ended, as the rest of a sentence."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.returncode
        if code is None:
            return "closed its connection"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        line = self._last_line()
        return f"ended with exit code {code}" + (f": {line}" if line else "")

    def _first_line(self) -> bytes:
        self.line.settimeout(_START_SECONDS)
        # Unbuffered: heartbeats follow.
        with self.line.makefile("rb", buffering=0) as stdout, suppress(OSError):
            if (line := stdout.readline()).endswith(b"\n"):
                self.line.settimeout(None)
                return line
        raise TrainingError(f"XGBoost's tracker does not start: {self._last_line() or 'no output'}")

    def _last_line(self) -> str:
        self._errors.seek(0)
        return next(iter(self._errors.read().decode(errors="replace").strip().splitlines()[-1:]), "")


class TrackerWatch:
    """Ends the job when its tracker dies or hangs: reports the reason to the other members, then ends this process.

    The main thread may be inside a collective of XGBoost, which cannot be interrupted.

    Args:
        tracker: Of this process.
        communicator: The members.
        end: Ends this process with an error; takes its main thread, and what to do just before.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        tracker: Tracker,
        communicator: Communicator,
        *,
        end: Callable[[TrainingError, int, Callable[[], None]], None] = end_process,
        clock: Clock = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._communicator = communicator
        self._end = end
        self._clock = clock
        self._has_failed = threading.Event()
        self._main_thread = threading.get_ident()
        self._sleep, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="tracker watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.await_end()
        self._wake.close()
        self._thread.join()
        self._sleep.close()

    def await_end(self) -> None:
        """If the tracker has failed, wait until this process is ended: nothing can be closed in order any more."""
        if self._has_failed.is_set():
            self._thread.join()

    def _run(self) -> None:
        limit = self._communicator.limit
        detector = FailureDetector(limit=limit, interval=min(ASK_SECONDS, limit / 4))
        detector.hear("tracker", self._clock())
        line, poll = self._tracker.line, select.poll()
        for source in (line, self._sleep):
            poll.register(source, select.POLLIN)
        while True:
            now = self._clock()
            turn = detector.turn(now, watching=True)
            try:
                if turn.beats:
                    line.sendall(b"?")
                ready = {source for source, _ in poll.poll((turn.until - now) * 1000)}
                if self._sleep.fileno() in ready:
                    return
                if line.fileno() in ready:
                    if not line.recv(64):
                        raise ConnectionResetError
                    detector.hear("tracker", self._clock())
            except OSError:
                self._fail(self._tracker.describe_end(), "the kernel may have killed it for lack of memory")
                return
            if detector.silent(now):
                self._fail(f"made no progress for {limit:g} s", "the process is stopped, or the machine is overloaded")
                return

    def _fail(self, how: str, hint: str) -> None:
        self._has_failed.set()
        error = TrainingError(f"the XGBoost tracker on {self._communicator.members.name} {how}", hint=hint)
        self._communicator.fail(error)
        self._communicator.outlast(seconds=_OTHERS_SECONDS)
        self._end(error, self._main_thread, self._tracker.kill)
