"""The trials that run: each is a job of `run_job` in a thread of its own, whose events come to the tuner's thread."""

import queue
import signal
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from trainbox.contract.job_spec import JobSpec
from trainbox.local.local_options import LocalOptions
from trainbox.local.results.outcome import JobOutcome
from trainbox.local.run_events.events import Event, MetricLogged, NoteGiven
from trainbox.local.run_job import run_job
from trainbox.local.stop_request import StopRequest


class TrialEvent(msgspec.Struct, frozen=True):
    """An event of a trial's job; None: the job has ended, in whatever way."""

    number: int
    event: MetricLogged | NoteGiven | None


class TrialRun:
    """A trial that runs.

    Args:
        lane: Which of the parallel trials it is.
        events: Where its events go.
        number: Of the trial.
        objective: The metric whose values are events.
    """

    def __init__(self, lane: int, events: "queue.SimpleQueue[TrialEvent]", number: int, objective: str) -> None:
        self.lane = lane
        self.stop = StopRequest()
        #: Whether it was asked to end because it falls behind.
        self.is_stopped_early = False
        self.future: Future[JobOutcome] | None = None
        self._events = events
        self._number = number
        self._objective = objective
        self._host = ""

    def on_event(self, event: Event) -> None:
        """Pass on what the tuner needs, in the thread of the job."""
        if isinstance(event, MetricLogged):
            # A metric is that of the first host to log it, as in `job.json`.
            if event.name != self._objective or (self._host and event.host != self._host):
                return
            self._host = event.host
            self._events.put(TrialEvent(self._number, event))
        elif isinstance(event, NoteGiven):
            self._events.put(TrialEvent(self._number, event))

    def start(self, pool: ThreadPoolExecutor, spec: JobSpec, options: LocalOptions) -> None:
        """Start the job."""
        self.future = pool.submit(run_job, spec, self, self.stop, options)
        self.future.add_done_callback(lambda _: self._events.put(TrialEvent(self._number, None)))

    def ask_to_stop(self, times: int, number: signal.Signals | None = None) -> None:
        """Ask the job to stop, until it has been asked so often: the second time it is killed."""
        for _ in range(times - self.stop.count):
            self.stop.ask(number)
