"""Run a tuning job on this machine: `run_tuning`, for any program; `trainbox tune` is one.

The thread that calls it decides everything: which point comes next, which trial is stopped, what is recorded. Each
trial is a job of `run_job` in a thread of its own.
"""

import datetime as dt
import errno
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from trainbox.contract.credentials.secrets import hidden_values, without_secrets
from trainbox.errors import RunError, TrainboxError
from trainbox.files import keep_out_of_git
from trainbox.local.request import RESULTS
from trainbox.local.results.outcome import JobOutcome
from trainbox.local.results.record import Curve, JobRecord, read_record
from trainbox.local.run_events.events import MetricLogged, NoteGiven
from trainbox.local.stop_request import StopRequest
from trainbox.tuning.events import (
    NoteLogged,
    ObjectiveLogged,
    TickPassed,
    TrialEnded,
    TrialStarted,
    TrialStopping,
    TuningEnded,
    TuningListener,
    TuningStarted,
)
from trainbox.tuning.records import TrialRecord, TuningRecord, TuningStatus, find_best
from trainbox.tuning.search.search import TrialSearch
from trainbox.tuning.trial_end import break_off, curve_of, end_trial, has_failed, mentions_no_number
from trainbox.tuning.trial_runs import TrialEvent, TrialRun
from trainbox.tuning.tuning_file import claimed, read_tuning, remove_tuning, write_tuning
from trainbox.tuning.tuning_plan import TuningPlan, first_trial, trial_job

#: So many trials in a row that fail end the search.
MOST_FAILURES = 5
#: How often a person's Ctrl-C is looked at; events of trials are seen at once.
_TICK_SECONDS = 0.1
#: The disk, or a quota of it.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_tuning(plan: TuningPlan, listener: TuningListener, stop: StopRequest) -> TuningRecord:
    """Run a tuning job; return its record when all its trials have ended.

    Args:
        plan: What is done.
        listener: Receives the events, in this thread.
        stop: Ends the tuning job with its trials; any thread may ask.

    Raises:
        RunError: The directory cannot be used, or the record cannot be written; what was recorded stays.
    """
    if plan.out.parent.name == RESULTS.name:
        keep_out_of_git(plan.out.parent)
    with claimed(plan.out):
        if plan.overwrite:
            remove_tuning(plan.out)
        elif read_tuning(plan.out) != plan.previous:
            raise RunError(f"another trainbox tune has just used {plan.out}", hint="start this one again")
        return _Tuner(plan, listener, stop).run()


class _Tuner:
    """A tuning job while it runs.

    Args:
        plan: What is done.
        listener: Of the tuning job.
        stop: Asks for its end.
    """

    def __init__(self, plan: TuningPlan, listener: TuningListener, stop: StopRequest) -> None:
        self.plan = plan
        self.listener = listener
        self.stop = stop
        self.search = TrialSearch(plan.settings)
        self.record = plan.record if plan.previous else msgspec.structs.replace(plan.record, started=_now())
        self.trials = {trial.number: trial for trial in self.record.trials}
        self.running: dict[int, TrialRun] = {}
        self.began: dict[int, float] = {}
        self.to_resume: list[TrialRecord] = []
        #: Those whose end is not written yet: it comes with the start of the next one. Until then, `job.json` has it.
        self.ended: list[TrialRecord] = []
        self.events: queue.SimpleQueue[TrialEvent] = queue.SimpleQueue()
        self.noted: set[str] = set()
        self.secrets = hidden_values(plan.options.env or {}, plan.spec.hyper_parameters, also=plan.hide)
        self.failures = 0
        self.failure_reason = ""
        #: Whether any trial has logged the objective.
        self.is_logged = any(trial.objective is not None for trial in self.trials.values())
        #: Whether trials that run can come to nothing, either.
        self.is_pointless = False
        self.error: TrainboxError | None = None

    def run(self) -> TuningRecord:
        """Run all trials."""
        self.listener.on_event(TuningStarted(self.record))
        for text in self.plan.notes:
            self._note(text)
        self._learn()
        self._write("InProgress")
        with ThreadPoolExecutor(self.plan.settings.max_parallel, "trial") as pool, self.stop.listening():
            try:
                self._run_trials(pool)
            finally:
                for run in self.running.values():  # after an error of this thread: the pool waits for them
                    run.ask_to_stop(1)
        return self._end()

    def _run_trials(self, pool: ThreadPoolExecutor) -> None:
        while True:
            while len(self.running) < self.plan.settings.max_parallel and self._start_next(pool):
                pass
            if self.ended:
                self._keep()
            if not self.running:
                return
            self._await_event()
            asked = self.stop.count
            if asked or self.error is not None or self.is_pointless:
                for run in self.running.values():
                    run.ask_to_stop(max(asked, 1), self.stop.first)

    # -- what was done before --

    def _learn(self) -> None:
        """Tell the search of earlier trials: those of other tuning jobs, and those of this one that have ended."""
        for each in self.plan.learned:
            self.search.learn(each.values, each.objective)
        for number, trial in sorted(self.trials.items()):
            job = read_record(self.plan.out / trial.out)
            if trial.status == "InProgress" and job is not None and job.status != "InProgress":
                trial = self._ended(trial, job)  # noqa: PLW2901 - it ended before its end could be recorded
                self.trials[number] = trial
            self.search.resume(number, trial.values)
            for step, value in _pairs(Curve((), ()) if job is None else curve_of(job, self.record.objective.name)):
                self.search.is_hopeless(number, step, value)
            if trial.status == "InProgress" or trial.is_interrupted:
                self.to_resume.append(trial)
            else:
                self._tell(trial)

    def _ended(self, trial: TrialRecord, job: JobRecord) -> TrialRecord:
        seconds = job.seconds.prepare + job.seconds.train + job.seconds.collect
        is_stopped = job.secondary_status == "Stopped"
        return end_trial(trial, job, self.record.objective, seconds, is_stopped_early=False, is_interrupted=is_stopped)

    # -- trials --

    def _start_next(self, pool: ThreadPoolExecutor) -> bool:
        """Start a trial; return whether there was one to start."""
        if self.stop.count or self.error is not None or self.failure_reason:
            return False
        is_resumed = bool(self.to_resume)
        if is_resumed:
            trial = msgspec.structs.replace(self.to_resume.pop(0), status="InProgress", is_interrupted=False)
        else:
            number = len(self.trials) + 1
            values = self.search.ask(number) if number <= self.record.max_trials else None
            if values is None:
                if number <= self.record.max_trials and not self.running:
                    self._note(f"all points of the search space were tried: {number - 1} trials")
                return False
            trial = first_trial(self.plan, number, values, _now())
        self.trials[trial.number] = trial
        if not self._keep():
            return False
        lane = next(lane for lane in range(self.record.max_parallel) if lane not in self._lanes())
        run = TrialRun(lane, self.events, trial.number, self.record.objective.name)
        self.running[trial.number] = run
        self.began[trial.number] = time.monotonic()
        self.listener.on_event(TrialStarted(trial, is_resumed))
        run.start(pool, *trial_job(self.plan, trial, lane, resume=is_resumed))
        return True

    def _lanes(self) -> set[int]:
        return {run.lane for run in self.running.values()}

    def _await_event(self) -> None:
        try:
            found = self.events.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            self.listener.on_event(TickPassed())
            return
        match found.event:
            case None:
                self._end_trial(found.number)
            case NoteGiven(text):
                self._note(text, of=found.number)
            case MetricLogged(step=step, value=value):
                self.is_logged = True
                self.listener.on_event(ObjectiveLogged(found.number, step, value))
                if step is not None:
                    self._judge(found.number, step, value)

    def _judge(self, number: int, step: int, value: float) -> None:
        """Stop a trial that falls behind."""
        run = self.running[number]
        if self.search.is_hopeless(number, step, value) and not run.stop.count:
            run.is_stopped_early = True
            run.ask_to_stop(1)
            self.listener.on_event(TrialStopping(number))

    def _end_trial(self, number: int) -> None:
        run, trial = self.running.pop(number), self.trials[number]
        seconds = trial.seconds + time.monotonic() - self.began[number]  # of all attempts
        assert run.future is not None  # noqa: S101 - it has ended
        is_interrupted = run.stop.count > 0 and not run.is_stopped_early
        try:
            outcome = run.future.result()
        except TrainboxError as error:
            if _is_disk_full(error):
                self.error = error
                is_interrupted = True  # no fault of its values
            reason = without_secrets(f"{type(error).__name__}: {error.message}", self.secrets)
            trial = break_off(trial, reason, seconds, is_interrupted=is_interrupted)
        else:
            trial = end_trial(
                trial,
                outcome,
                self.record.objective,
                seconds,
                is_stopped_early=run.is_stopped_early,
                is_interrupted=is_interrupted,
            )
            self._note_useless_stopping(trial, outcome)
        self.trials[number] = trial
        self.ended.append(trial)
        self._tell(trial)
        self._count_failures(trial)

    def _note_useless_stopping(self, trial: TrialRecord, outcome: JobOutcome) -> None:
        """Say that trials cannot be stopped early: they log the objective once, at their end."""
        settings = self.plan.settings
        if not (settings.early_stopping or settings.strategy == "Hyperband") or trial.status != "Completed":
            return
        if trial.objective is not None and len(curve_of(outcome, settings.objective.name).steps) < 2:  # noqa: PLR2004
            self._note(f"no trial can be stopped early: {settings.objective.name!r} is logged once, not in each epoch")

    def _tell(self, trial: TrialRecord) -> None:
        objective = None if trial.status == "Failed" else trial.objective
        self.search.tell(trial.number, objective, is_stopped_early=trial.is_stopped_early)

    def _count_failures(self, trial: TrialRecord) -> None:
        if trial.is_interrupted:
            return
        self.failures = self.failures + 1 if has_failed(trial) else 0
        if self.failures >= MOST_FAILURES:
            self.failure_reason = f"{self.failures} trials in a row failed, the last one: {trial.failure_reason}"
        if not self.is_logged and trial.status == "Completed" and not mentions_no_number(self.plan.out / trial.out):
            self.failure_reason = f"trial {trial.number} completed, and {trial.failure_reason}"
            self.is_pointless = True

    # -- the record --

    def _note(self, text: str, *, of: int | None = None) -> None:
        """Log a note once: trials have the same ones."""
        if text not in self.noted:
            self.noted.add(text)
            self.listener.on_event(NoteLogged(text if of is None else f"trial {of}: {text}"))

    def _write(self, status: TuningStatus) -> None:
        trials = tuple(trial for _, trial in sorted(self.trials.items()))
        best = find_best(trials, self.record.objective.goal)
        self.record = msgspec.structs.replace(
            self.record, trials=trials, best=best, status=status, failure_reason=self.failure_reason
        )
        write_tuning(self.record, self.plan.out)

    def _keep(self) -> bool:
        """Write the record, with the ends and starts since; where that is not possible, all trials are ended first."""
        try:
            self._write("InProgress")
        except RunError as error:
            self.error = self.error or error
            return False
        for trial in self.ended:
            self.listener.on_event(TrialEnded(trial, is_best=self.record.best == trial.number))
        self.ended.clear()
        return True

    def _end(self) -> TuningRecord:
        if self.error is not None:
            raise self.error
        status: TuningStatus = "Stopped" if self.stop.count else "Failed" if self.failure_reason else "Completed"
        self._write(status)
        self.listener.on_event(TuningEnded(self.record))
        return self.record


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _pairs(curve: Curve) -> Iterator[tuple[int, float]]:
    return zip(curve.steps, curve.values, strict=True)


def _is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
