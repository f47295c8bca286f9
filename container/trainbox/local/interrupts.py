"""Ctrl-C and its relatives, counted instead of raised, so that a job is stopped in order."""

import signal
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Self

from trainbox.local.stop_request import StopRequest

#: Ctrl-C, `kill`, and a terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts(StopRequest):
    """A stop request by signals: while entered, in the main thread, those that would end it ask for a stop."""

    def __init__(self) -> None:
        super().__init__()
        self._former: list[tuple[signal.Signals, signal._HANDLER]] = []

    def __enter__(self) -> Self:
        for number in SIGNALS:
            former = signal.getsignal(number)
            # A signal that was ignored stays ignored: `nohup trainbox run …`.
            if former is not signal.SIG_IGN:
                self._former.append((number, former))
                signal.signal(number, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._former:
            signal.signal(*self._former.pop())

    def listening(self) -> AbstractContextManager[object]:
        """Return a context in which signals ask for a stop."""
        return self

    def _count(self, number: int, _frame: FrameType | None) -> None:
        self.ask(signal.Signals(number))
