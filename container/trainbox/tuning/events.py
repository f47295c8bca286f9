"""The events of a tuning job: typed values, sent in order to the listener of `run_tuning`."""

from typing import Protocol

import msgspec

from trainbox.tuning.records import TrialRecord, TuningRecord


class TuningStarted(msgspec.Struct, frozen=True):
    """The tuning job starts or goes on; the first event."""

    record: TuningRecord


class TrialStarted(msgspec.Struct, frozen=True):
    """A trial starts, or goes on from its checkpoints."""

    trial: TrialRecord
    is_resumed: bool = False


class ObjectiveLogged(msgspec.Struct, frozen=True):
    """A trial logged a value of the objective; `step` is None for the selected value of a final line."""

    number: int
    step: int | None
    value: float


class TrialStopping(msgspec.Struct, frozen=True):
    """A trial is stopped because it falls behind the others."""

    number: int


class TrialEnded(msgspec.Struct, frozen=True):
    """A trial has ended and is recorded."""

    trial: TrialRecord
    is_best: bool


class NoteLogged(msgspec.Struct, frozen=True):
    """A choice made for the user, or a warning, in one sentence."""

    text: str


class TickPassed(msgspec.Struct, frozen=True):
    """About 0.1 s passed; a display can be redrawn."""


class TuningEnded(msgspec.Struct, frozen=True):
    """The tuning job has ended and is recorded; the last event."""

    record: TuningRecord


TuningEvent = (
    TuningStarted | TrialStarted | ObjectiveLogged | TrialStopping | TrialEnded | NoteLogged | TickPassed | TuningEnded
)


class TuningListener(Protocol):
    """Receives the events of a tuning job, in the thread that runs it."""

    def on_event(self, event: TuningEvent) -> None:
        """Handle one event; an exception ends the tuning job."""


class SilentTuningListener:
    """A listener that ignores all events."""

    def on_event(self, event: TuningEvent) -> None:
        """Do nothing."""
