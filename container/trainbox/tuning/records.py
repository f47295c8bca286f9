"""`tuning.json`: what a tuning job searches, and each of its trials; written after each change."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from trainbox.tuning.search_space import Goal, Objective, ParameterRange, Resource, Strategy

#: API HyperParameterTrainingJobSummary: TrainingJobStatus.
TrialStatus = Literal["InProgress", "Completed", "Failed", "Stopped"]
#: API DescribeHyperParameterTuningJob: HyperParameterTuningJobStatus.
TuningStatus = Literal["InProgress", "Completed", "Failed", "Stopped"]


class TrialRecord(msgspec.Struct, frozen=True):
    """One trial: a job with values of the search space."""

    #: Counted from 1.
    number: int
    job_name: str
    #: The directory of its result, relative to that of the tuning job.
    out: str
    #: By the name of a hyperparameter, as the script receives it.
    values: dict[str, str]
    status: TrialStatus
    #: The last value of the objective; None where it has not been logged.
    objective: float | None = None
    #: Whether early stopping ended it.
    is_stopped_early: bool = False
    #: Whether it was stopped with the tuning job: `--resume` goes on with it.
    is_interrupted: bool = False
    #: Why it failed.
    failure_reason: str = ""
    started: str = ""
    seconds: float = 0.0


class TuningRecord(msgspec.Struct, frozen=True):
    """A tuning job."""

    version: int
    name: str
    #: The script or algorithm, as the user gave it.
    program: str
    strategy: Strategy
    objective: Objective
    ranges: tuple[ParameterRange, ...]
    #: Hyperparameters that all trials share; values of secrets are left out.
    static: dict[str, str]
    #: Where the data of all trials is, by the name of the channel, as `job.json` has it.
    channels: dict[str, str]
    max_trials: int
    max_parallel: int
    seed: int
    early_stopping: bool
    resource: Resource = Resource()
    #: The directories of the tuning jobs that it learned from.
    warm_start: tuple[str, ...] = ()
    status: TuningStatus = "InProgress"
    #: Why it ended before `max_trials`.
    failure_reason: str = ""
    started: str = ""
    trials: tuple[TrialRecord, ...] = ()
    #: The number of the best trial; None as long as no trial has an objective.
    best: int | None = None

    @property
    def best_trial(self) -> TrialRecord | None:
        """The best trial, if there is one."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


def find_best(trials: Sequence[TrialRecord], goal: Goal) -> int | None:
    """Return the number of the best trial: of those that completed, or else of all that have ended."""
    sign = -1 if goal == "Maximize" else 1
    ended = [
        (trial.status != "Completed", sign * trial.objective, trial.number)
        for trial in trials
        if trial.objective is not None and trial.status in ("Completed", "Stopped")
    ]
    return min(ended)[2] if ended else None
