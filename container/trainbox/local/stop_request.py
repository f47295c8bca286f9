"""Ask a job to stop, from any thread and also before its start; signals are one source (`interrupts`)."""

import signal
from contextlib import AbstractContextManager, nullcontext


class StopRequest:
    """Asks a job to stop: the first time as StopTrainingJob does, the second time with SIGKILL."""

    def __init__(self) -> None:
        # Appending needs no lock, which a signal handler could not take: it runs between two statements of a thread.
        self._asked: list[signal.Signals | None] = []

    def ask(self, number: signal.Signals | None = None) -> None:
        """Ask the job to stop.

        Args:
            number: The signal that caused the request; it determines the exit code.
        """
        self._asked.append(number)

    @property
    def count(self) -> int:
        """How often a stop was requested."""
        return len(self._asked)

    @property
    def first(self) -> signal.Signals | None:
        """The first signal, if there was one."""
        return next((number for number in self._asked if number is not None), None)

    def listening(self) -> AbstractContextManager[object]:
        """Return a context in which the sources of the request are active; here only callers of `ask` are."""
        return nullcontext()
