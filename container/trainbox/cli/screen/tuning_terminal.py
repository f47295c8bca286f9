"""The listener of `trainbox tune`: a line for each trial, and on a terminal a table of those that run."""

import time
from collections.abc import Mapping
from typing import TextIO, cast

from trainbox.cli.screen.live import Screen
from trainbox.cli.screen.pens import find_pen
from trainbox.cli.screen.tuning_texts import ended_line, progress_line, running_table, started_line, tuning_line
from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.text import visible
from trainbox.tuning.events import (
    NoteLogged,
    ObjectiveLogged,
    TrialEnded,
    TrialStarted,
    TrialStopping,
    TuningEnded,
    TuningEvent,
    TuningStarted,
)
from trainbox.tuning.records import TrialRecord, TuningRecord

_STDOUT = 1
_STDERR = 2
_PREFIX = "trainbox tune: "
_REDRAW_SECONDS = 0.25


class RunningTrial:
    """What is shown of a trial that runs.

    Args:
        trial: Its record.
    """

    def __init__(self, trial: TrialRecord) -> None:
        self.trial = trial
        self.began = time.monotonic()
        self.step: int | None = None
        self.value: float | None = None
        self.is_stopping = False


class TuningTerminal:
    """Shows trials on stderr where lines are kept, and a table on stdout where it is a terminal.

    Args:
        env: The environment of this program.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.screen = Screen(_STDOUT)
        self.pen = find_pen(cast("TextIO", self.screen), env)
        #: What is drawn while the table moves must not be taken for lines above it: another pen draws it.
        self._table_pen = find_pen(cast("TextIO", self.screen), env)
        self._notes = Screen(_STDERR)
        self._running: dict[int, RunningTrial] = {}
        self._record: TuningRecord | None = None
        self._objective = ""
        self._ended: list[TrialRecord] = []
        self._began = time.monotonic()
        self._redrawn = 0.0
        self._shown = ""
        self._live = self.pen.live(lambda: self._shown)

    def note(self, text: str) -> None:
        """Show a line of our own, on stderr."""
        self._live.hide()  # stderr may be the same terminal
        self._notes.write(f"{_PREFIX}{visible(without_secrets(text, ()))}\n")

    def on_event(self, event: TuningEvent) -> None:
        """Show an event."""
        match event:
            case TuningStarted(record):
                self._record, self._objective = record, record.objective.name
                self.note(tuning_line(record))
            case TrialStarted(trial, is_resumed):
                self._running[trial.number] = RunningTrial(trial)
                if not self.pen.can_redraw:
                    self.note(started_line(trial, is_resumed=is_resumed))
            case ObjectiveLogged(number, step, value):
                running = self._running[number]
                running.step, running.value = running.step if step is None else step, value
            case TrialStopping(number):
                self._running[number].is_stopping = True
            case TrialEnded(trial, is_best):
                self._running.pop(trial.number, None)
                self._ended.append(trial)
                self.note(ended_line(trial, self._objective, is_best=is_best))
            case NoteLogged(text):
                self.note(text)
            case TuningEnded():
                self._live.hide()
            case _:
                pass  # time passed
        self._redraw()

    def _redraw(self) -> None:
        now = time.monotonic()
        if not self.pen.can_redraw or now - self._redrawn < _REDRAW_SECONDS:
            return
        if not self._running or self._record is None:
            return
        self._redrawn = now
        lines = running_table(self._table_pen, self._record, list(self._running.values()), now)
        seconds = now - self._began
        self._shown = "\n".join([*lines, progress_line(self._record, self._ended, len(self._running), seconds)])
        self._live.show()

    def close(self) -> None:
        """Take the table away."""
        self._live.hide()
