"""Asks a running job to stop: from any thread, before its start too; signals are one source (`interrupts`)."""

import signal
from contextlib import AbstractContextManager, nullcontext


class StopRequest:
    """Whether a job is asked to stop: the first time in order, as StopTrainingJob does, the second time at once."""

    def __init__(self) -> None:
        # Only appended to, which no lock has to guard: a handler of a signal may come between two statements.
        self._asked: list[signal.Signals | None] = []

    def ask(self, number: signal.Signals | None = None) -> None:
        """Ask for the end.

        Args:
            number: The signal that this program was asked with; it decides the exit code.
        """
        self._asked.append(number)

    @property
    def count(self) -> int:
        """How often it was asked."""
        return len(self._asked)

    @property
    def first(self) -> signal.Signals | None:
        """The signal that came first, if one did."""
        return next((number for number in self._asked if number is not None), None)

    def listening(self) -> AbstractContextManager[object]:
        """While entered, the request's own sources ask; here there are none but the callers of `ask`."""
        return nullcontext()
