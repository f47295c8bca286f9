"""A trial: a process that loads a model and ends, so that what the model does to it happens to nobody else."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import msgspec

from trainbox.errors import TrainboxError
from trainbox.log_lines import emit
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.hooks.calls import HookError
from trainbox.serving.multi.api import Reply, stopping
from trainbox.serving.multi.room import no_memory
from trainbox.system.memory import read_rss

T = TypeVar("T")
#: A report fits into the pipe, or the trial would wait for its reader.
_MOST_TEXT = 4_000
_MOST_REPORT = 64 * 1024
_OOM_SCORE = Path("/proc/self/oom_score_adj")


class Report(msgspec.Struct, frozen=True):
    """What a trial says before it ends."""

    #: None where the model can be loaded.
    refusal: Reply | None = None
    #: What it has needed.
    bytes: int = 0


class Trial:
    """A trial that runs.

    Args:
        load: Loads the model and answers its sample rows.
        close: Closes, in the trial, what belongs to the loader.
        seconds: How long it may take.
    """

    def __init__(self, load: Callable[[], object], close: Callable[[], None], seconds: float) -> None:
        self.began = time.monotonic()
        self._seconds = seconds
        self._is_late = self._is_stopped = False
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe, report = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _be_trial(load, close, report)
        os.close(report)
        os.set_blocking(self._pipe, False)

    def look(self, *, is_stopping: bool = False) -> None:
        """End it if it takes too long, or if the server stops."""
        is_late = time.monotonic() - self.began > self._seconds
        if (is_late or is_stopping) and not (self._is_late or self._is_stopped):
            self._is_late, self._is_stopped = is_late, is_stopping
            os.kill(self.pid, signal.SIGKILL)

    def conclude(self, status: int, *, memory_kills: int) -> Report:
        """Return what it has said, or what its end says.

        Args:
            status: Of its process.
            memory_kills: How many processes of the container the kernel has killed for memory since it began.
        """
        with os.fdopen(self._pipe, "rb", buffering=0) as pipe:
            content = pipe.read(_MOST_REPORT) or b""
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(content, type=Report)
        if self._is_stopped:
            return Report(stopping())
        return Report(explain_end(status, is_late=self._is_late, seconds=self._seconds, memory_kills=memory_kills))


def explain_end(status: int, *, is_late: bool, seconds: float, memory_kills: int) -> Reply:
    """Return what is answered where a trial has ended without a report. Pure."""
    code = os.waitstatus_to_exitcode(status)
    error = HTTPStatus.INTERNAL_SERVER_ERROR
    if is_late:
        hint = "SAGEMAKER_STARTUP_TIMEOUT sets the limit"
        return Reply(error, f"the model could not be loaded within {seconds:g} s", hint)
    if code == -signal.SIGKILL and memory_kills:
        return no_memory("the kernel has ended its trial")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return Reply(error, f"the process that loaded the model on trial {how}", "the log has its output")


def explain_error(error: BaseException) -> Reply:
    """Return what is answered where a model cannot be loaded: 400 for its files, 500 for its code, 507 for memory."""
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return no_memory(str(error) or "MemoryError")
    if isinstance(error, TrainboxError):
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, HookError):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        elif isinstance(error, RequestError):
            status = error.status
        return Reply(status, error.message[:_MOST_TEXT], error.hint[:_MOST_TEXT])
    text = f"the model cannot be loaded: {type(error).__name__}: {error}"[:_MOST_TEXT]
    return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, text, "the log has the traceback")


def _be_trial(load: Callable[[], object], close: Callable[[], None], pipe: int) -> None:
    """Load the model, report, and end this process."""
    try:
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        close()
        with contextlib.suppress(OSError):  # where memory runs out, this process is the one to end
            _OOM_SCORE.write_text("1000")
        _write(pipe, _try(load))
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _try(load: Callable[[], object]) -> Report:
    before = read_rss()
    _kept, refusal = attempt(load)
    return Report(refusal, max(0, read_rss() - before))


def attempt(load: Callable[[], T]) -> tuple[T | None, Reply | None]:
    """Load a model; what it raises is an answer, and its traceback is in the log where its code is at fault."""
    try:
        return load(), None
    except BaseException as error:  # noqa: BLE001 - no exception of a model may end its loader
        if not isinstance(error, TrainboxError):  # that of a hook has been told
            emit(traceback.format_exc().rstrip())
        return None, explain_error(error)


def _write(pipe: int, report: Report) -> None:
    os.write(pipe, msgspec.json.encode(report))
