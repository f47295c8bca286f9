"""Torch elastic's agent with ranks forked from a server: its loop, and our rendezvous, eyes and judgement."""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

from trainbox.contract.diagnosis import diagnose_error
from trainbox.contract.finding import Finding, as_hint, blame
from trainbox.contract.job import Job
from trainbox.contract.lookout import look
from trainbox.contract.verdict import RankFailure, Verdict
from trainbox.elastic import attribution, progress
from trainbox.elastic.coordination import LEAVE_SECONDS, LOST_SECONDS, Alarm, Council, HostLost, Report
from trainbox.elastic.failures import read_failure
from trainbox.elastic.hang_detector import Watch
from trainbox.elastic.rank_processes import Ranks, stopped_early
from trainbox.elastic.variables import error_file, progress_file, rank_variables, read_versions, stacks_file
from trainbox.errors import TrainboxError
from trainbox.launch import network

#: How long ranks that survive a failure may take to leave: what they do can not be kept any more.
RESTART_GRACE_SECONDS = 2.0
#: How long to look for the cause where all that is known so far is a consequence of it.
_SETTLE_SECONDS = 2.0
#: The part of the grace that ranks have for themselves after SIGTERM; the rest is for ending and reporting.
_SHARE_OF_GRACE = 0.8
#: How long the first host waits for the reports of the others, and they for its verdict.
_REPORT_SECONDS = LOST_SECONDS + 5.0
_VERDICT_SECONDS = _REPORT_SECONDS + 10.0
#: How often one host looks at its ranks, and several at their store.
_LOOK_SECONDS = 0.1
_LOOK_SECONDS_OF_SEVERAL = 0.25
_WAIT_SECONDS = 0.05


class JobEnded(Exception):  # noqa: N818 - what has happened, not a defect
    """Another host has ended the job.

    Args:
        verdict: How.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.diagnosis.cause)
        self.verdict = verdict


class Agent(SimpleElasticAgent):
    """The agent of one host.

    Args:
        spec: Torch elastic's description of the ranks.
        job: The contract.
        ranks: Those of this host.
        council: All hosts.
        scratch: The directory for what ranks and agent tell each other.
        note: Says a line in the log.
        env: The environment of this process, which the ranks have, too.
        clock: The time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        job: Job,
        ranks: Ranks,
        council: Council,
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
        self.council = council
        self.scratch = scratch
        self.note = note
        self.env = env
        self.watch = Watch(job, council, ranks, note, clock=clock)
        self._clock = clock
        self._sleep = sleep
        self.history = attribution.History()
        self.attempt = 0
        self.verdict: Verdict | None = None
        #: The signal by which a host was stopped, where the ranks of all have ended well; else 0.
        self.stopped_by = 0
        #: How many findings there were when last asked for.
        self._seen = 0
        #: Whether it waits for other hosts, with no rank to pass a signal on to.
        self.is_meeting = True
        self._look_seconds = _LOOK_SECONDS if len(job.hosts) == 1 else _LOOK_SECONDS_OF_SEVERAL

    # -- what elastic asks for -------------------------------------------------------------------------------------

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.is_meeting = True
        if self.ranks.stop_signal:
            raise stopped_early(self.ranks.stop_signal)
        self.end_with_job()
        super()._rendezvous(worker_group)
        self.is_meeting = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        spec = worker_group.spec
        self.ranks.forget()
        progress.create(progress_file(self.scratch), spec.local_world_size)
        self.watch.begin(
            {worker.local_rank: worker.global_rank for worker in worker_group.workers}, progress_file(self.scratch)
        )
        pids = {}
        for worker in worker_group.workers:
            local_rank = worker.local_rank
            error_file(self.scratch, local_rank).unlink(missing_ok=True)
            stacks_file(self.scratch, local_rank).unlink(missing_ok=True)
            variables = rank_variables(worker_group, worker, self.job, self.scratch, attempt=self.attempt, env=self.env)
            due = self.watch.due(worker.global_rank)
            drill = {} if due is None else {progress.PAUSE_VARIABLE: str(due)}
            pids[local_rank] = self.ranks.start(local_rank, {**variables, **drill})
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
        self.watch.rehearse()
        try:
            alarm = self.council.alarm() or self._own_alarm() or self.watch.find_hanging()
            done = alarm is None and not self.ranks.alive and self._all_done()
            alarm = alarm or self._stopped_in_vain()
        except HostLost:
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
        return RunResult(
            state=WorkerState.SUCCEEDED, return_values={one.global_rank: None for one in worker_group.workers}
        )

    def _all_done(self) -> bool:
        if self.ranks.stop_signal:
            self.council.arrive("stopping")
        if self.job.settings.drills:
            self.council.tell_missed(self.watch.missed())
        self.council.arrive("done")
        if not self.council.all_at("done"):
            return False
        was_told = self.council.any_at("stopping")
        self.stopped_by = self.ranks.stop_signal or (signal.SIGTERM if was_told else 0)
        return True

    def _has_missed_drills(self) -> bool:
        """Whether the job completes without a fault that was to be rehearsed: then nothing was, and it fails for it."""
        if not self.job.settings.drills:
            return False
        try:
            missed = self.council.missed()
        except HostLost:  # the first host has left, and answers for the end of the job
            return False
        if missed and self.stopped_by:
            self.note(f"not rehearsed, because the job was stopped before: {'; '.join(missed)}")
            return False
        if missed:
            self.verdict = Verdict(diagnose_error(attribution.not_rehearsed(missed)))
        return bool(missed)

    def _exit_barrier(self) -> None:
        """The first host, which serves the store, leaves last."""
        self.leave()

    def leave(self) -> None:
        """Tell the others that this host needs the store no more; the first waits for them, for a bounded time."""
        with contextlib.suppress(HostLost):  # the first host is gone already: nobody waits for this one
            self.council.leave(self.verdict.lost if self.verdict else ())

    # -- when something has failed ---------------------------------------------------------------------------------

    def end_with_job(self) -> None:
        """End the ranks of this host if another one has ended the job.

        Raises:
            JobEnded: It has.
        """
        ended = self.council.ended
        if ended is not None:
            if ended.stopped:
                self.ranks.stop(ended.stopped)
            self._end_ranks()
            raise JobEnded(ended)

    def _require_server(self) -> None:
        if self.ranks.lost:
            raise self.ranks.lost

    def _stopped_in_vain(self) -> Alarm | None:
        """After a stop: the ranks that are left wait for ranks that have ended, and have nothing to save."""
        waiting = self.ranks.alive
        if not self.ranks.stop_signal or not waiting or not all(map(self.watch.has_nothing_to_save, waiting)):
            return None
        some_left = any(rank.code == 0 for rank in self.ranks.all.values()) or self.council.any_at("done")
        return Alarm(self.council.host) if some_left else None

    def _own_alarm(self) -> Alarm | None:
        """What has happened on this host, or to a host."""
        if any(self.ranks.all[local_rank].code for local_rank in self.ranks.all):
            return Alarm(self.council.host)
        if len(self.job.hosts) > 1 and self.council.is_first and self.council.silent():
            return Alarm(self.council.host)
        return None

    def _end_attempt(self, alarm: Alarm) -> RunResult:
        """End the ranks of this host, say how they ended, hear what is to be done, and have elastic do it."""
        self._end_of_grace()  # who sees the alarm must know whether it is that of a stop
        self.council.raise_alarm(alarm)
        if alarm.hanging is not None:
            self.watch.end_hanging(alarm)
        own = self._settled()
        self._end_ranks()
        self._require_server()
        own = own or self._failures()
        self.council.report(self._report(own))
        verdict = self.verdict = self._judge() if self.council.is_first else self._hear()
        if verdict.restart and not self.ranks.stop_signal:
            self.attempt += 1
            reason = "; ".join(filter(None, [verdict.diagnosis.cause, verdict.diagnosis.hint]))
            self.note(f"restart {verdict.restarts} of {self.job.settings.max_restarts}: {reason}")
        # Elastic starts again as long as it has restarts left; how many there are is decided here.
        self._remaining_restarts = int(verdict.restart and not self.ranks.stop_signal)
        return RunResult(state=WorkerState.FAILED)

    def _settled(self) -> list[RankFailure]:
        """The failures of this host, once the cause is among them or had time to be."""
        until = self._clock() + _SETTLE_SECONDS
        while True:
            found = self._failures()
            grace = self._end_of_saving()
            if not grace and not (found and all(map(attribution.is_consequence, found))):
                return found
            # After a stop whoever is still there may be saving, whatever the others did.
            if not self.ranks.alive or self._clock() >= (grace or until):
                return found
            self.ranks.turn(_WAIT_SECONDS)

    def _end_ranks(self) -> None:
        """End those that still run: soon, or if the job is being stopped, when their grace is over."""
        until = self._clock() + RESTART_GRACE_SECONDS
        self.ranks.ask(signal.SIGTERM)
        while self.ranks.alive and self._clock() < (self._end_of_saving() or until):
            self.ranks.turn(_WAIT_SECONDS)
        self.ranks.end(0.0)

    def _end_of_saving(self) -> float:
        """Until when ranks of this host that still run may be saving, because the job is being stopped; else 0.0.

        Those that had yet to make a step when another died of the stop have nothing to save, and wait for that one.
        """
        grace = self._end_of_grace()
        return 0.0 if all(map(self.watch.has_nothing_to_save, self.ranks.alive)) else grace

    def _end_of_grace(self) -> float:
        """Until when the ranks of this host have time for themselves, because the job is being stopped; else 0.0.

        The signals of its hosts come within moments of each other. A host that has not had its own yet, and sees that
        the ranks of another are gone, must not take that for a failure.
        """
        with contextlib.suppress(HostLost):  # who still saves has the grace all the same
            if not self.ranks.stop_signal and self.council.any_at("stopping"):
                self.ranks.stop(signal.SIGTERM)
            if self.ranks.stop_signal:
                self.council.arrive("stopping")
        return self.ranks.stop_at + _SHARE_OF_GRACE * self.job.settings.grace_seconds if self.ranks.stop_signal else 0.0

    def _failures(self) -> list[RankFailure]:
        """The ranks of this host that have failed, but for those that ended because they were told to."""
        failures = []
        for local_rank, rank in self.ranks.all.items():
            code = rank.code
            asked = code is not None and code < 0 and -code in rank.asked and not rank.why_killed
            if code and not (asked and not self.ranks.stop_signal):
                failures.append(
                    read_failure(
                        rank,
                        error_file(self.scratch, local_rank),
                        number=self.watch.ranks[local_rank],
                        host=self.council.host,
                        step=self.watch.step(local_rank),
                    )
                )
        return failures

    def _report(self, failures: list[RankFailure]) -> Report:
        backend = next((found for one in failures if (found := attribution.backend_of(one))), None)
        ranks = self._worker_group.spec.local_world_size
        return Report(
            self.council.host,
            tuple(failures),
            stopping=self.ranks.stop_signal,
            findings=self._look(),
            facts=network.gather(backend, hosts=len(self.job.hosts), ranks=ranks, env=self.env) if backend else None,
            versions=read_versions(),
        )

    def _look(self) -> tuple[Finding, ...]:
        """What the GPUs of this host have reported: all that is hard, and what else came in this attempt."""
        seen = look(self.scratch)
        if seen.silence:
            self.note(f"the watch over the GPUs could not be asked: {seen.silence}")
        earlier, self._seen = self._seen, len(seen.findings)
        return tuple(one for place, one in enumerate(seen.findings) if one.is_hard or place >= earlier)

    def _judge(self) -> Verdict:
        """The first host: gather the reports, find the cause, decide."""
        began = self._clock()
        while len(reports := self.council.reports()) < len(self.job.hosts) and self._may_wait(began, _REPORT_SECONDS):
            self.end_with_job()
            lost = set(self.council.silent())
            if lost >= set(self.job.hosts) - {report.host for report in reports}:
                break
            self._sleep(_WAIT_SECONDS)
        missing = tuple(host for host in self.job.hosts if host not in {report.host for report in reports})
        verdict = self._decide(reports, missing)
        self.council.judge(verdict)
        return verdict

    def _decide(self, reports: list[Report], missing: tuple[str, ...]) -> Verdict:
        failures = [failure for report in reports for failure in report.failures]
        findings = [finding for report in reports for finding in report.findings]
        root = attribution.find_root(failures)
        stopping = next((report.stopping for report in reports if report.stopping), 0)
        faults = attribution.find_faults(findings, root, stopping=bool(stopping))
        if faults and (root or missing):
            self.note("no restart: the node must be repaired")
            victim = attribution.find_victim(failures, faults)
            followed = attribution.diagnose(victim) if victim else attribution.diagnose_lost(missing)
            return Verdict(blame(faults, followed=followed), victim, lost=missing)
        if (
            root is None
            or (stopping and attribution.follows_stop(root))
            or (missing and attribution.is_consequence(root))
        ):
            return _of_no_rank(root, missing, stopping)
        hints = (*_hints_of_network(root, reports), *(as_hint(one) for one in findings if one.host == root.host))
        diagnosis = attribution.diagnose(root, hints)
        if missing or stopping:
            return Verdict(diagnosis, root, lost=missing)
        now = self._clock()
        decision = attribution.decide(root, self.history, most=self.job.settings.max_restarts, now=now)
        if not decision.restart:
            self.note(f"no restart{': ' * bool(decision.because)}{decision.because}")
            return Verdict(diagnosis, root)
        self.history = attribution.restarted(self.history, root, now)
        return Verdict(diagnosis, root, restart=True, restarts=len(self.history.restarts))

    def _hear(self) -> Verdict:
        began = self._clock()
        while self._may_wait(began, _VERDICT_SECONDS):
            verdict = self.council.verdict()
            if verdict is not None:
                return verdict
            self.end_with_job()
            self._sleep(_WAIT_SECONDS)
        raise HostLost(self.job.hosts[0])

    def _may_wait(self, began: float, seconds: float) -> bool:
        """Whether another host may take longer: after a stop its ranks have their grace first."""
        return self._clock() < max(began, self._end_of_grace()) + seconds


def _of_no_rank(root: RankFailure | None, missing: tuple[str, ...], stopping: int) -> Verdict:
    """No rank has failed by itself: the job was stopped, or a host is lost."""
    if stopping:
        return Verdict(attribution.diagnose_stop(stopping, root), root, lost=missing)
    return Verdict(attribution.diagnose_lost(missing) if missing else attribution.ENDED, lost=missing)


def _hints_of_network(root: RankFailure, reports: list[Report]) -> tuple[str, ...]:
    """Where the cause is an error of NCCL or gloo: what the facts of its host, and the versions of all, say to it."""
    facts = next((report.facts for report in reports if report.host == root.host), None)
    backend = attribution.backend_of(root)
    if facts is None or backend is None:
        return ()
    versions = {report.host: report.versions for report in reports}
    # Several ranks of a host may have failed, some of NCCL and some of gloo: the cause decides.
    return network.find_hints(msgspec.structs.replace(facts, backend=backend, versions=versions))
