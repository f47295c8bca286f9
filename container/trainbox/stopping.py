"""SIGTERM becomes a flag and a deadline, so that a script can leave at the end of a step with its work saved.

Importing this does nothing. Until `install` is called SIGTERM keeps its action, which by default ends the process:
there is nothing to save yet. The state lives in the installed handler itself, where everyone who asks finds it.
"""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from trainbox.errors import Stopped
from trainbox.log_lines import emit


class StopFlag:
    """A signal handler that remembers when it was first called.

    A second signal changes nothing. Python calls a handler between two of its own instructions: while the main thread
    is inside one long call of a C library (a boosting round), the flag and the deadline wait for its end.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._deadline: float | None = None
        #: What the main thread does in the meantime, where it is to leave at once.
        self._doing = ""
        self._masks: dict[int, set[signal.Signals | int]] = {}

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        """Remember the moment of the first signal; where nothing is to be saved yet, leave."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.grace_seconds
            if self._doing:
                raise Stopped(f"stopped by SIGTERM while {self._doing}")

    @contextlib.contextmanager
    def leaving(self, doing: str) -> Iterator[None]:
        """See `leaving_at_once`."""
        self._leave(f"before {doing}")
        self._doing = doing
        try:
            yield
        finally:
            self._doing = ""
        # Python drops what a handler raises while a finalizer runs, and a library may catch it.
        self._leave(f"while {doing}")

    def _leave(self, when: str) -> None:
        if self.requested:
            raise Stopped(f"stopped by SIGTERM {when}")

    @property
    def requested(self) -> bool:
        """Whether SIGTERM has come."""
        return self._deadline is not None

    def seconds_left(self) -> float | None:
        """Seconds until this process will be killed, never below 0; None as long as nobody asked it to stop."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    # A forked worker must end on SIGTERM: multiprocessing's terminate() sends it and then waits, and in the worker
    # nobody looks at this flag. The signal is held back over the fork, because one that came before the worker is back
    # at the default action would be lost: CPython forgets in the child what is pending (_PySignal_AfterFork).

    def _before_fork(self) -> None:
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.pop(threading.get_ident()))

    def _after_fork_in_child(self) -> None:
        if isinstance(signal.getsignal(signal.SIGTERM), StopFlag):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._after_fork()

    def _install(self) -> None:
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
        )
        signal.signal(signal.SIGTERM, self)
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        """As it ends Python puts back the default action, while modules go, which with torch takes a moment."""
        if signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def install(grace_seconds: float) -> StopFlag:
    """The flag of this process: the first call installs it, later ones only return it, with the grace of the first.

    A handler that somebody else has set is replaced, not called, and that is said on stderr. Forked processes are back
    at the default action and may install a flag of their own.

    Raises:
        RuntimeError: The first call came from a thread other than the main one, where Python can set no handler.
    """
    current = signal.getsignal(signal.SIGTERM)
    if isinstance(current, StopFlag):
        return current
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "trainbox.stop_requested() or seconds_left() was first called outside the main thread, where Python cannot "
            "set a signal handler; call one of them once in the main thread before"
        )
    flag = StopFlag(grace_seconds)
    flag._install()  # noqa: SLF001 - of the same module: nobody else shall register it twice
    if current is not signal.SIG_DFL:
        replaced = "a handler set by a C library" if current is None else repr(current)
        emit(f"SIGTERM now asks for a stop; it had {replaced} before")
    return flag


@contextlib.contextmanager
def leaving_at_once(doing: str) -> Iterator[None]:
    """In this block, a wait or a long read with nothing to save, a stop raises in the main thread instead of waiting.

    A process without a flag (`install`) is left alone: there SIGTERM keeps its action.

    Args:
        doing: What the block does, as in "reading the rows".

    Raises:
        Stopped: SIGTERM has come, in the block or before.
    """
    flag = signal.getsignal(signal.SIGTERM)
    with flag.leaving(doing) if isinstance(flag, StopFlag) else contextlib.nullcontext():
        yield
