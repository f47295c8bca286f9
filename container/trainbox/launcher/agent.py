"""The agent of a host: torch elastic's loop, with ranks forked from a server, hang detection and attribution."""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

from trainbox.contract.cluster import progress
from trainbox.contract.failures.diagnosis import diagnose_error
from trainbox.contract.job import Job
from trainbox.diagnostics.finding import Finding
from trainbox.diagnostics.monitor_protocol import look
from trainbox.diagnostics.verdict import RankFailure, Verdict
from trainbox.errors import TrainboxError
from trainbox.launcher import attempt_verdict, attribution
from trainbox.launcher.attribution import AttemptReport
from trainbox.launcher.coordination import (
    LEAVE_SECONDS,
    LOST_SECONDS,
    Alarm,
    CoordinationStore,
    HostsLost,
    JobEndedElsewhere,
)
from trainbox.launcher.fault_injection import FaultInjector
from trainbox.launcher.hang_detector import HangDetector
from trainbox.launcher.ranks.failures import read_failures
from trainbox.launcher.ranks.processes import RankProcesses, stopped_early
from trainbox.launcher.ranks.variables import error_file, progress_file, rank_variables, read_versions, stacks_file
from trainbox.system import network

#: How long ranks that survive a failure may take to exit: nothing that they do can be kept.
RESTART_GRACE_SECONDS = 2.0
#: How long to look for the cause where all that is known so far is a consequence of it.
_SETTLE_SECONDS = 2.0
#: The part of the grace period that ranks have after SIGTERM; the rest is for ending them and reporting.
_SHARE_OF_GRACE = 0.8
#: Timeouts: of the first host for the reports of the others, and of the others for its verdict.
_REPORT_SECONDS = LOST_SECONDS + 5.0
_VERDICT_SECONDS = _REPORT_SECONDS + 10.0
#: Polling intervals: one host looks at its ranks, several hosts at their store as well.
_LOOK_SECONDS = 0.1
_LOOK_SECONDS_OF_SEVERAL = 0.25
_WAIT_SECONDS = 0.05


class Agent(SimpleElasticAgent):
    """The agent of one host.

    Args:
        spec: Torch elastic's description of the ranks.
        job: The contract.
        ranks: Those of this host.
        coordination: All hosts.
        scratch: The directory of the files that ranks and agent exchange.
        note: Logs a line.
        env: The environment of this process, which the ranks have, too.
        clock: The time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        job: Job,
        ranks: RankProcesses,
        coordination: CoordinationStore,
        *,
        scratch: Path,
        note: Callable[[str], None],
        env: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(spec, exit_barrier_timeout=LEAVE_SECONDS)
        self.job = job
        self.ranks = ranks
        self.coordination = coordination
        self.scratch = scratch
        self.note = note
        self.env = env
        self.detector = HangDetector(job, coordination, ranks, note, clock=clock)
        self.faults = FaultInjector(job.settings.drills, ranks, self.detector.step, note)
        self._clock = clock
        self._sleep = sleep
        self.history = attempt_verdict.RestartHistory()
        self.attempt = 0
        self.verdict: Verdict | None = None
        #: The signal by which a host was stopped, where the ranks of all hosts ended well; else 0.
        self.stopped_by = 0
        #: How many findings there were at the last look.
        self._seen = 0
        #: Whether it waits for other hosts, with no rank to forward a signal to.
        self.is_meeting = True
        self._look_seconds = _LOOK_SECONDS if len(job.hosts) == 1 else _LOOK_SECONDS_OF_SEVERAL

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.is_meeting = True
        if self.ranks.stop_signal:
            raise stopped_early(self.ranks.stop_signal)
        self.end_with_job()
        super()._rendezvous(worker_group)
        self.is_meeting = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        self.ranks.forget()
        progress.create(progress_file(self.scratch), worker_group.spec.local_world_size)
        numbers = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        self.detector.begin(numbers, progress_file(self.scratch))
        self.faults.begin(numbers)
        pids = {}
        for worker in worker_group.workers:
            local_rank = worker.local_rank
            error_file(self.scratch, local_rank).unlink(missing_ok=True)
            stacks_file(self.scratch, local_rank).unlink(missing_ok=True)
            variables = rank_variables(worker_group, worker, self.job, self.scratch, attempt=self.attempt, env=self.env)
            due = self.faults.due(worker.global_rank)
            pause = {} if due is None else {progress.PAUSE_VARIABLE: str(due)}
            pids[local_rank] = self.ranks.start(local_rank, {**variables, **pause})
        return pids

    # torch before 2.7 passes `is_restart` as well.
    def _stop_workers(self, worker_group: WorkerGroup, **_more: object) -> None:  # noqa: ARG002 - elastic's signature
        self.ranks.end(RESTART_GRACE_SECONDS)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30, **_more: object) -> None:  # noqa: ARG002
        with contextlib.suppress(TrainboxError):  # elastic calls it last: it must not hide why the agent ends
            self.ranks.end(RESTART_GRACE_SECONDS, death_sig)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.ranks.turn(self._look_seconds)
        self._require_server()
        self.end_with_job()
        self.faults.inject()
        try:
            alarm = self.coordination.alarm() or self._own_alarm() or self.detector.find_hanging()
            done = alarm is None and not self.ranks.alive and self._all_done()
            alarm = alarm or self._stopped_in_vain()
        except HostsLost:
            if any(rank.code != 0 for rank in self.ranks.all.values()):
                raise
            alarm, done = None, True  # what this host had to do is done, and the first host answers for its own end
        if alarm is not None:
            return self._end_attempt(alarm)
        if not done:
            return RunResult(state=WorkerState.HEALTHY)
        if self._has_missed_drills():
            self._remaining_restarts = 0
            return RunResult(state=WorkerState.FAILED)
        values = {one.global_rank: None for one in worker_group.workers}
        return RunResult(state=WorkerState.SUCCEEDED, return_values=values)

    def _all_done(self) -> bool:
        if self.ranks.stop_signal:
            self.coordination.arrive("stopping")
        if self.job.settings.drills:
            self.coordination.report_missed(self.faults.missed())
        self.coordination.arrive("done")
        if not self.coordination.all_at("done"):
            return False
        was_told = self.coordination.any_at("stopping")
        self.stopped_by = self.ranks.stop_signal or (signal.SIGTERM if was_told else 0)
        return True

    def _has_missed_drills(self) -> bool:
        """Whether the job completes without a fault that was to be injected: then it fails for that."""
        if not self.job.settings.drills:
            return False
        try:
            missed = self.coordination.missed()
        except HostsLost:  # the first host has left, and reports the end of the job
            return False
        if missed and self.stopped_by:
            self.note(f"not rehearsed, because the job was stopped before: {'; '.join(missed)}")
            return False
        if missed:
            self.verdict = Verdict(diagnose_error(attribution.not_rehearsed(missed)))
        return bool(missed)

    def _exit_barrier(self) -> None:
        """Leave the store; the first host, which serves it, leaves last."""
        self.leave()

    def leave(self) -> None:
        """Report that this host no longer needs the store; the first host waits for the others, for a bounded time."""
        with contextlib.suppress(HostsLost):  # the first host has left already, and does not wait for this one
            self.coordination.leave(self.verdict.lost if self.verdict else ())

    def end_with_job(self) -> None:
        """End the ranks of this host if another one has ended the job.

        Raises:
            JobEndedElsewhere: It has.
        """
        ended = self.coordination.ended
        if ended is not None:
            if ended.stopped:
                self.ranks.stop(ended.stopped)
            self._end_ranks()
            raise JobEndedElsewhere(ended)

    def _require_server(self) -> None:
        if self.ranks.lost:
            raise self.ranks.lost

    def _stopped_in_vain(self) -> Alarm | None:
        """Detect ranks that, after a stop, wait for ranks that have ended, and have nothing to save."""
        waiting = self.ranks.alive
        if not self.ranks.stop_signal or not waiting or not all(map(self.detector.has_nothing_to_save, waiting)):
            return None
        some_left = any(rank.code == 0 for rank in self.ranks.all.values()) or self.coordination.any_at("done")
        return Alarm(self.coordination.host) if some_left else None

    def _own_alarm(self) -> Alarm | None:
        """Raise an alarm for a rank of this host that has failed, or, on the first host, for a lost host."""
        is_wrong = any(rank.code for rank in self.ranks.all.values())
        if not is_wrong and len(self.job.hosts) > 1 and self.coordination.is_first:
            is_wrong = bool(self.coordination.silent())
        return Alarm(self.coordination.host) if is_wrong else None

    def _end_attempt(self, alarm: Alarm) -> RunResult:
        """End the ranks of this host, report how they ended, get the verdict, and have elastic act on it."""
        self._end_of_grace()  # other hosts that see the alarm must know whether it follows from a stop
        self.coordination.raise_alarm(alarm)
        if alarm.hanging is not None:
            self.detector.end_hanging(alarm)
        own = self._settled()
        self._end_ranks()
        self._require_server()
        own = own or self._failures()
        self.coordination.report(self._report(own))
        verdict = self.verdict = self._decide() if self.coordination.is_first else self._await_verdict()
        if verdict.restart and not self.ranks.stop_signal:
            self.attempt += 1
            reason = "; ".join(filter(None, [verdict.diagnosis.cause, verdict.diagnosis.hint]))
            self.note(f"restart {verdict.restarts} of {self.job.settings.max_restarts}: {reason}")
        # Elastic starts again as long as it has restarts left; how many there are is decided here.
        self._remaining_restarts = int(verdict.restart and not self.ranks.stop_signal)
        return RunResult(state=WorkerState.FAILED)

    def _settled(self) -> list[RankFailure]:
        """Return the failures of this host once the cause is among them, or had time to appear."""
        until = self._clock() + _SETTLE_SECONDS
        while True:
            found = self._failures()
            grace = self._end_of_saving()
            if not grace and not (found and all(map(attribution.is_consequence, found))):
                return found
            # After a stop a rank that still runs may be saving, even if others have failed.
            if not self.ranks.alive or self._clock() >= (grace or until):
                return found
            self.ranks.turn(_WAIT_SECONDS)

    def _end_ranks(self) -> None:
        """End the ranks that still run: soon, or if the job is being stopped, after their grace period."""
        until = self._clock() + RESTART_GRACE_SECONDS
        self.ranks.ask(signal.SIGTERM)
        while self.ranks.alive and self._clock() < (self._end_of_saving() or until):
            self.ranks.turn(_WAIT_SECONDS)
        self.ranks.end(0.0)

    def _end_of_saving(self) -> float:
        """Return until when running ranks of this host may be saving because the job is being stopped; else 0.0.

        Those that had yet to make a step when another died of the stop have nothing to save, and wait for that one.
        """
        grace = self._end_of_grace()
        return 0.0 if all(map(self.detector.has_nothing_to_save, self.ranks.alive)) else grace

    def _end_of_grace(self) -> float:
        """Return until when the ranks of this host have their grace period because the job is being stopped; else 0.0.

        The signals of its hosts come within moments of each other. A host that has not had its own yet, and sees that
        the ranks of another are gone, must not take that for a failure.
        """
        with contextlib.suppress(HostsLost):  # ranks that are saving have the grace period all the same
            if not self.ranks.stop_signal and self.coordination.any_at("stopping"):
                self.ranks.stop(signal.SIGTERM)
            if self.ranks.stop_signal:
                self.coordination.arrive("stopping")
        return self.ranks.stop_at + _SHARE_OF_GRACE * self.job.settings.grace_seconds if self.ranks.stop_signal else 0.0

    def _failures(self) -> list[RankFailure]:
        """Return the failures of this host, without ranks that ended because they were told to."""
        numbers, host = self.detector.ranks, self.coordination.host
        return read_failures(self.ranks, self.scratch, numbers=numbers, host=host, step=self.detector.step)

    def _report(self, failures: list[RankFailure]) -> AttemptReport:
        backend = next((found for one in failures if (found := attribution.backend_of(one))), None)
        ranks = self._worker_group.spec.local_world_size
        return AttemptReport(
            self.coordination.host,
            tuple(failures),
            stopping=self.ranks.stop_signal,
            findings=self._find_findings(),
            facts=network.gather(backend, hosts=len(self.job.hosts), ranks=ranks, env=self.env) if backend else None,
            versions=read_versions(),
        )

    def _find_findings(self) -> tuple[Finding, ...]:
        """Return what the GPUs of this host have reported: all hard faults, and the other findings of this attempt."""
        seen = look(self.scratch)
        if seen.silence:
            self.note(f"the watch over the GPUs could not be asked: {seen.silence}")
        earlier, self._seen = self._seen, len(seen.findings)
        return tuple(one for place, one in enumerate(seen.findings) if one.is_hard or place >= earlier)

    def _decide(self) -> Verdict:
        """On the first host: gather the reports, decide, and publish the verdict."""
        began, hosts = self._clock(), self.job.hosts
        while len(reports := self.coordination.reports()) < len(hosts) and self._may_wait(began, _REPORT_SECONDS):
            self.end_with_job()
            lost = set(self.coordination.silent())
            if lost >= set(hosts) - {report.host for report in reports}:
                break
            self._sleep(_WAIT_SECONDS)
        missing = tuple(host for host in hosts if host not in {report.host for report in reports})
        restarts = self.job.settings.max_restarts
        ruling = attempt_verdict.rule(reports, missing, self.history, max_restarts=restarts, now=self._clock())
        for note in ruling.notes:
            self.note(note)
        self.history = ruling.history
        self.coordination.publish_verdict(ruling.verdict)
        return ruling.verdict

    def _await_verdict(self) -> Verdict:
        began = self._clock()
        while self._may_wait(began, _VERDICT_SECONDS):
            verdict = self.coordination.verdict()
            if verdict is not None:
                return verdict
            self.end_with_job()
            self._sleep(_WAIT_SECONDS)
        raise HostsLost(self.job.hosts[0])

    def _may_wait(self, began: float, seconds: float) -> bool:
        """Whether another host may take longer: after a stop its ranks have their grace period first."""
        return self._clock() < max(began, self._end_of_grace()) + seconds
