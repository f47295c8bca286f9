"""Pure: what a tuning job will do, and the job of each of its trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from trainbox.contract.credentials.secrets import redact
from trainbox.contract.job_spec import JobSpec
from trainbox.local.local_options import LocalOptions, MachineShare
from trainbox.tuning.records import TrialRecord, TuningRecord
from trainbox.tuning.search_space import SearchSettings
from trainbox.tuning.tuning_file import TRIAL, VERSION

T = TypeVar("T")
#: By which SageMaker tells a script what is tuned.
OBJECTIVE_HYPERPARAMETER = "_tuning_objective_metric"


class WarmStart(msgspec.Struct, frozen=True):
    """A trial of an earlier tuning job that this one learns from."""

    values: Mapping[str, str]
    objective: float


class TuningPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `trainbox tune` will do."""

    name: str
    #: As the user gave it.
    program: str
    out: Path
    settings: SearchSettings
    #: The job of each trial, without what is tuned.
    spec: JobSpec
    options: LocalOptions
    #: Where the data of all trials is, by the name of the channel.
    channels: Mapping[str, str] = {}
    #: Names whose values are secret.
    hide: tuple[str, ...] = ()
    #: The tuning job that goes on.
    previous: TuningRecord | None = None
    #: Whether what lies in `out` is removed first.
    overwrite: bool = False
    #: The directories of earlier tuning jobs, and what is learned from them.
    warm_start: tuple[str, ...] = ()
    learned: tuple[WarmStart, ...] = ()
    #: By parallel trial, what it has of this machine; empty where one has it all.
    shares: tuple[MachineShare, ...] = ()
    #: Choices made for the user, in sentences.
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> TuningRecord:
        """The record of the tuning job as it begins or goes on."""
        settings = self.settings
        return TuningRecord(
            version=VERSION,
            name=self.name,
            program=self.program,
            strategy=settings.strategy,
            objective=settings.objective,
            ranges=settings.ranges,
            static=public_values(self.spec.hyper_parameters, self.hide),
            channels=dict(self.channels),
            max_trials=settings.max_trials,
            max_parallel=settings.max_parallel,
            seed=settings.seed,
            early_stopping=settings.early_stopping,
            resource=settings.resource,
            warm_start=self.warm_start,
            started="" if self.previous is None else self.previous.started,
            trials=() if self.previous is None else self.previous.trials,
            best=None if self.previous is None else self.previous.best,
        )


def public_values(values: Mapping[str, str], hide: Sequence[str]) -> dict[str, str]:
    """Return the hyperparameters that are not secret."""
    return {name: value for name, value in values.items() if redact({name: value}, hide)[name] == value}


def first_trial(plan: TuningPlan, number: int, values: Mapping[str, str], started: str) -> TrialRecord:
    """Return the record of a trial that starts."""
    return TrialRecord(
        number=number,
        job_name=f"{plan.name}-{number:03d}",
        out=f"{TRIAL}{number:03d}",
        values=dict(values),
        status="InProgress",
        started=started,
    )


def trial_job(plan: TuningPlan, trial: TrialRecord, lane: int, *, resume: bool) -> tuple[JobSpec, LocalOptions]:
    """Return the job of a trial.

    Args:
        plan: Of the tuning job.
        trial: Its record.
        lane: Which of the parallel trials it is: that has processors and GPUs of its own.
        resume: Whether it goes on from its checkpoints.
    """
    given = {**plan.spec.hyper_parameters, **trial.values}
    spec = msgspec.structs.replace(
        plan.spec,
        training_job_name=trial.job_name,
        hyper_parameters={**given, OBJECTIVE_HYPERPARAMETER: plan.settings.objective.name},
    )
    options = msgspec.structs.replace(
        plan.options,
        out=plan.out / trial.out,
        resume=resume,
        overwrite=False,
        # The requirements that are installed anew for the first trial are those of all.
        fresh=plan.options.fresh and trial.number == 1,
        owns_children=False,
        share=plan.shares[lane] if plan.shares else MachineShare(),
    )
    return spec, options


def divide_machine(processors: Sequence[int], gpus: Sequence[str], parallel: int) -> tuple[MachineShare, ...]:
    """Divide processors and GPUs among parallel trials, one to each at least; empty where one trial has them all."""
    if parallel == 1:
        return ()
    parts = zip(divide(processors, parallel), divide(gpus, parallel), strict=True)
    return tuple(MachineShare(*part) for part in parts)


def divide(whole: Sequence[T], parallel: int) -> tuple[tuple[T, ...], ...]:
    """Divide something into so many parts, with one each at least: where there is less, several have the same.

    >>> divide((0, 1, 2, 3, 4), 2), divide((0, 1), 3), divide((), 2)
    (((0, 1, 2), (3, 4)), ((0,), (1,), (0,)), ((), ()))
    """
    count = len(whole)
    if 0 < count < parallel:
        return tuple((whole[part % count],) for part in range(parallel))
    each, more = divmod(count, parallel)
    ends = [(part + 1) * each + min(part + 1, more) for part in range(parallel)]
    return tuple(tuple(whole[begin:end]) for begin, end in zip([0, *ends], ends, strict=False))
