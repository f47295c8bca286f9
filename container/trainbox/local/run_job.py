"""Run a training job on this machine: `run_job`, for any program; `trainbox run` is one.

It uses no command line, no terminal and no signal handlers, and works in any thread; several jobs can run at once.
"""

import datetime as dt
import time
from collections.abc import Sequence

import msgspec

from trainbox.contract.credentials.secrets import without_secrets
from trainbox.contract.job import read_environment
from trainbox.contract.job_spec import JobSpec
from trainbox.errors import INTERNAL_EXIT_CODE, RunError
from trainbox.files import disarm, keep_out_of_git
from trainbox.local.backends.hosts import Ended
from trainbox.local.backends.process import await_earlier
from trainbox.local.inputs.pipes import pipes_written
from trainbox.local.inputs.place import fetch_inputs
from trainbox.local.local_options import LocalOptions
from trainbox.local.metrics.curves import Curves, joined
from trainbox.local.opt_ml import prepare
from trainbox.local.overlays.install import run_hosts_of
from trainbox.local.overlays.overlay import find_overlay
from trainbox.local.plan import RunPlan, plan_run
from trainbox.local.request import RESULTS, read_request
from trainbox.local.results.built_result import build_result, no_archive
from trainbox.local.results.first_record import first_record, host_records, next_steps_of
from trainbox.local.results.folder import claimed, keep_earlier_logs, remove
from trainbox.local.results.host_logs import find_failure, is_told, stopped_by_others
from trainbox.local.results.outcome import JobOutcome, outcome_of
from trainbox.local.results.overwriting import remove_result
from trainbox.local.results.record import JobRecord, Seconds, keep_record, write_record
from trainbox.local.results.result import ARCHIVE, MODEL, OUTPUT, commit, install, may_replace, put_aside
from trainbox.local.run_events.events import HostFinished, JobFinished, JobStarted, Listener, SilentListener
from trainbox.local.run_events.job_end import JobEnd, conclude
from trainbox.local.run_events.job_events import JobEvents
from trainbox.local.stop_request import StopRequest

#: 128 + SIGINT, what a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


def run_job(
    spec: JobSpec,
    listener: Listener | None = None,
    stop: StopRequest | None = None,
    options: LocalOptions | None = None,
) -> JobOutcome:
    """Run a job; return when it has ended and its result is in place.

    Args:
        spec: What runs.
        listener: Receives the events, in this thread.
        stop: Ends the job; any thread may ask, also before the start.
        options: How it runs on this machine; by default in processes, with the environment of this process.

    Raises:
        TrainboxError: What was asked for cannot be done, and nothing was started; or the job could not be started, or
            its result not be kept. In the last two cases `job.json` and the last event say so, too.
        KeyboardInterrupt: Ctrl-C in the main thread, with no handler but Python's, while the result was collected.
    """
    plan = plan_job(spec, options or LocalOptions())
    return run_plan(plan, listener or SilentListener(), stop or StopRequest())[0]


def plan_job(spec: JobSpec, options: LocalOptions) -> RunPlan:
    """Plan a job; nothing is written or started.

    Raises:
        TrainboxError: What was asked for cannot be done.
    """
    if options.env is None:
        options = msgspec.structs.replace(options, env=read_environment())
    request = read_request(spec, options, now=dt.datetime.now(dt.UTC))
    return plan_run(request, find_overlay(request, fresh=options.fresh))


def run_plan(plan: RunPlan, listener: Listener, stop: StopRequest) -> tuple[JobOutcome, JobRecord]:
    """Execute a plan; return the outcome and the record of the job.

    Raises:
        TrainboxError: As `run_job`.
    """
    request = plan.request
    if request.out.parent.name == RESULTS.name:
        keep_out_of_git(request.out.parent)
    with claimed(request.out, request.previous or request.replaced):
        install(request.out)
        run = _JobRun(plan, listener, stop)
        run.run()
        return run.outcome, run.record


class _JobRun:
    """One attempt of a job, from its first file to its record.

    Args:
        plan: What is done.
        listener: Of the job.
        stop: Asks for its end.
    """

    def __init__(self, plan: RunPlan, listener: Listener, stop: StopRequest) -> None:
        self.plan = plan
        self.out = plan.request.out
        self.stop = stop
        self.record = first_record(plan)
        self.curves = Curves(next_steps_of(self.record))
        self.listener = listener
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self.is_told = False

    @property
    def outcome(self) -> JobOutcome:
        """The outcome, after the end of the job."""
        return msgspec.structs.replace(outcome_of(self.record, self.out), is_reason_in_log=self.is_told)

    def run(self) -> None:
        """Run all phases; `job.json` says how the job ended, also after an error."""
        plan, request = self.plan, self.plan.request
        hosts = tuple(host.name for host in plan.hosts)
        self.listener.on_event(JobStarted(request.job_name, plan.attempt, self.out, hosts))
        self.events = JobEvents(self.listener, hosts, self.curves, request.metric_definitions)
        self.events.status("InProgress", "Starting")
        if request.replaced is not None:
            with self.stop.listening():
                self._take_over()
            remove_result(self.out)
        self._note_choices()
        if request.previous is not None:
            keep_record(request.previous, self.out)
            keep_earlier_logs(self.out, plan.attempt)
        write_record(self.record, self.out)
        try:
            self._run_phases()
        except BaseException as error:
            if self.record.status == "InProgress":  # a listener raised, or Ctrl-C without a handler
                self._record_end(_broken_off(error))
            raise

    def _run_phases(self) -> None:
        request = self.plan.request
        try:
            end = self._train()
        except RunError as error:
            # Not the script's doing: the job was never started, or could not be kept.
            reason = without_secrets(f"InternalServerError: {error.message}", request.secrets)
            self._finish(JobEnd("Failed", "Failed", RunError.exit_code, reason))
            raise
        self._collect_and_finish(end)

    def _collect_and_finish(self, end: JobEnd) -> None:
        self.events.status("InProgress" if end.status != "Stopped" else "Stopping", "Uploading")
        try:
            problem = self._collect(end)
        except RunError:
            self._finish(msgspec.structs.replace(end, exit_code=RunError.exit_code))
            raise
        except KeyboardInterrupt:  # of the main thread alone, where nobody has its signals counted
            self.events.note(f"interrupted while collecting: what the hosts left is in {self.plan.work}")
            self._finish(msgspec.structs.replace(end, exit_code=INTERRUPTED))
            raise
        self._tell_end()
        if problem is not None:
            raise problem

    def _note_choices(self) -> None:
        request, note = self.plan.request, self.events.note
        note(request.isolation.sentence)
        for text in (*request.notes, *self.plan.notes):
            note(text)
        if self.plan.removed:
            note(f"not passed on, being another job's: {', '.join(self.plan.removed)}")
        if request.previous is not None:
            note(f"attempt {self.plan.attempt} of {request.job_name}, on its checkpoints")
        elif request.replaced is not None:
            note(f"the result of job {request.replaced.job_name!r} ({request.replaced.status}) was removed")
        elif request.resume:
            note(f"there is nothing to resume in {self.out}: this is attempt 1")

    def _train(self) -> JobEnd:
        started = time.monotonic()
        with self.stop.listening():
            if self.plan.request.previous is not None:
                self._take_over()
            self.events.status("InProgress", "Downloading")
            fetch_inputs(self.plan, self.events, lambda: bool(self.stop.count))
            prepare(self.plan, has_inputs=not self.stop.count)
            self.seconds["prepare"] = time.monotonic() - started
            started = time.monotonic()
            try:
                ended = Ended(hosts=(), stop="interrupt") if self.stop.count else self._run_hosts()
            finally:
                self.events.close()
                self.seconds["train"] = time.monotonic() - started
                self._disarm()
        for host in ended.hosts:
            self.events.tell(HostFinished(host.name, host.exit_code, host.reason))
        self.record = msgspec.structs.replace(self.record, hosts=host_records(ended))
        self.failed = ended.failed
        code = 128 + self.stop.first if self.stop.first is not None else None
        stops = stopped_by_others(ended, self.out)
        for name, number in stops.items():
            self.events.note(f"{name} was stopped by {number}, which trainbox run did not send: the job is stopped")
        failure = find_failure(self.plan, ended)
        self.is_told = is_told(self.plan, failure)
        return conclude(ended, failure, interrupt_exit_code=code, was_stopped=bool(stops))

    def _disarm(self) -> None:
        # Not what hosts cannot have written: a shard may be another name of the user's own file.
        for place in (*(host.tree for host in self.plan.hosts), self.plan.checkpoints):
            try:
                disarm(place)
            except OSError as error:
                self.events.note(f"error: files in {place} may run as their owner: {error.filename}: {error.strerror}")

    def _take_over(self) -> None:
        """Wait for, or remove, hosts that an earlier attempt may have left running."""
        image = self.plan.request.isolation.image
        if image is None:
            await_earlier(self.plan, self.events, self.stop)
        else:
            from trainbox.local.backends.docker_resources import remove_earlier  # noqa: PLC0415 - loads docker

            remove_earlier(self.plan, image, self.events)

    def _run_hosts(self) -> Ended:
        isolation = self.plan.request.isolation
        self.events.status("InProgress", "Training")
        with pipes_written(self.plan, self.events) as listener:
            if isolation.image is None or isolation.confinement is None:
                return run_hosts_of(self.plan, listener, self.stop)
            from trainbox.local.backends.docker import run_containers  # noqa: PLC0415 - loads docker

            return run_containers(self.plan, isolation.image, isolation.confinement, listener, self.stop)

    def _collect(self, end: JobEnd) -> RunError | None:
        """Build the result and put it in place, or aside where that of an earlier attempt is better.

        Returns:
            Why there is no archive of the model, where there is none.
        """
        started = time.monotonic()
        built = build_result(self.plan, self.failed, self.events.note)
        self.record = msgspec.structs.replace(self.record, clashes=built.clashes)
        kept = not may_replace(end.status, has_model=built.model is not None, record=self.record)
        if not kept:
            self.record = msgspec.structs.replace(self.record, result=self.plan.attempt, model=built.model)
        self.seconds["collect"] = time.monotonic() - started
        if built.problem is not None:
            end = msgspec.structs.replace(end, exit_code=RunError.exit_code)
        self.record = self._ended(end)
        # Here a signal would come between two renames.
        with self.stop.listening():
            if kept:
                aside = put_aside(self.out, self.plan.attempt)
                write_record(self.record, self.out)
                self._note_kept(end, aside)
            else:
                commit(self.record, self.out)
                install(self.out)
        # A container that is kept can be started again: it needs what is mounted into it.
        if not self.plan.request.keep:
            remove(self.plan.work)
        if built.problem is None:
            return None
        return no_archive(
            built.problem, self.out, self.out / (f"{MODEL}.attempt-{self.plan.attempt}" if kept else MODEL)
        )

    def _note_kept(self, end: JobEnd, aside: Sequence[str]) -> None:
        earlier, attempt = self.record.result, self.plan.attempt
        left = f"; what attempt {attempt} left is in {' and '.join(aside)}" if aside else ""
        self.events.note(
            f"attempt {attempt} ({end.status}) left no better model:"
            f" {MODEL}, {ARCHIVE} and {OUTPUT} are still those of attempt {earlier}{left}"
        )

    def _finish(self, end: JobEnd) -> None:
        self._record_end(end)
        self._tell_end()

    def _record_end(self, end: JobEnd) -> None:
        self.record = self._ended(end)
        write_record(self.record, self.out)

    def _tell_end(self) -> None:
        outcome = self.outcome
        self.events.status(outcome.status, outcome.secondary_status)
        self.events.tell(JobFinished(outcome))

    def _ended(self, end: JobEnd) -> JobRecord:
        return msgspec.structs.replace(
            self.record,
            status=end.status,
            secondary_status=end.secondary_status,
            exit_code=end.exit_code,
            failure_reason=end.failure_reason,
            seconds=Seconds(**{phase: round(seconds, 3) for phase, seconds in self.seconds.items()}),
            metrics=joined(self.record.metrics, self.curves.all()),
            final=self.curves.final,
        )


def _broken_off(error: BaseException) -> JobEnd:
    """Return the end of a job whose listener or program raised; the text of the error may be secret."""
    reason = f"InternalServerError: {type(error).__name__} in the program that ran the job, which ended it"
    code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else INTERNAL_EXIT_CODE
    return JobEnd("Failed", "Failed", code, reason)
