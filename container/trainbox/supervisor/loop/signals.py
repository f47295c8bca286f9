"""Signals of the supervisor: a stop calls a function at once, and every signal wakes the event loop."""

import contextlib
import os
import selectors
import signal
from collections.abc import Callable
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Handlers for SIGTERM, SIGINT and SIGCHLD, from `install` to `restore`.

    Args:
        selector: What a signal wakes; the key of the descriptor it waits on has no data.
        on_stop: What SIGTERM and SIGINT call.
        ignore_stops: Ignore SIGTERM and SIGINT from `restore` on; by default their former handlers come back. No
            signal arrives between the two.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_stop: Callable[[int, FrameType | None], None],
        *,
        ignore_stops: bool,
    ) -> None:
        self._selector = selector
        self._on_stop = on_stop
        self._ignore_stops = ignore_stops

    def install(self) -> None:
        """Install the handlers."""
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._selector.register(self._read, selectors.EVENT_READ)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._on_stop) for number in STOPS}
        # Without a handler SIGCHLD would not reach the wake-up pipe.
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def clear(self) -> None:
        """Empty the wake-up pipe."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def restore(self) -> None:
        """Restore the former handlers, and close the selector."""
        # A child that ends this very moment would find no handler, which CPython complains of ("ignored due to race
        # condition"): ours does as little as the default.
        if self._old_handlers[signal.SIGCHLD] == signal.SIG_DFL:
            del self._old_handlers[signal.SIGCHLD]
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_IGN if self._ignore_stops and number in STOPS else handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._selector.close()
        os.close(self._read)
        os.close(self._write)
