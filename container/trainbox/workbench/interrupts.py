"""Ctrl-C and its relatives, counted instead of raised, so that a job is stopped in order."""

import signal
from types import FrameType, TracebackType
from typing import Self

#: Ctrl-C, `kill`, and a terminal that was closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While entered, the signals that would end this process are only counted.

    The first asks for an orderly stop, the second for an end at once; `first` says how this process shall exit.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: signal.Signals | None = None
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
        for number, former in self._former:
            signal.signal(number, former)

    def _count(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or signal.Signals(number)
