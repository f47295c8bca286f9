"""Torch elastic's agent with ranks forked from a server: its loop and its rendezvous, and our eyes and judgement."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)

from trainbox.contract.job import Job, read_environment
from trainbox.contract.verdict import RankFailure, Verdict
from trainbox.elastic import causes, progress
from trainbox.elastic.council import LOST_SECONDS, Alarm, Council, HostLost, Report
from trainbox.elastic.failures import read_failure
from trainbox.elastic.ranks import Ranks
from trainbox.elastic.variables import error_file, progress_file, rank_variables, stacks_file
from trainbox.elastic.watch import Watch
from trainbox.errors import Stopped, TrainboxError

#: How long ranks that survive a failure may take to leave: what they do can not be kept any more.
RESTART_GRACE_SECONDS = 2.0
#: How long to look for the cause where all that is known so far is a consequence of it.
_SETTLE_SECONDS = 2.0
#: The part of the grace that ranks have for themselves after SIGTERM; the rest is for ending and reporting.
_SHARE_OF_GRACE = 0.8
#: How long the first host waits for the reports of the others, and they for its verdict.
_REPORT_SECONDS = LOST_SECONDS + 5.0
_VERDICT_SECONDS = _REPORT_SECONDS + 10.0
#: How long the first host serves its store to hosts that live and have not said that they need it no more.
_LEAVE_SECONDS = 30.0
#: How often one host looks at its ranks, and several at their store.
_LOOK_SECONDS = 0.1
_LOOK_SECONDS_OF_SEVERAL = 0.25
_WAIT_SECONDS = 0.05


class Agent(SimpleElasticAgent):
    """The agent of one host.

    Args:
        spec: Torch elastic's description of the ranks.
        job: The contract.
        ranks: Those of this host.
        council: All hosts.
        scratch: The directory for what ranks and agent tell each other.
        note: Says a line in the log.
    """

    def __init__(
        self, spec: WorkerSpec, job: Job, ranks: Ranks, council: Council, *, scratch: Path, note: Callable[[str], None]
    ) -> None:
        super().__init__(spec, exit_barrier_timeout=_LEAVE_SECONDS)
        self.job = job
        self.ranks = ranks
        self.council = council
        self.scratch = scratch
        self.note = note
        self.env = read_environment()
        self.watch = Watch(job, council, ranks, note)
        self.history = causes.History()
        self.attempt = 0
        self.verdict: Verdict | None = None
        #: Whether it waits for other hosts, with no rank to pass a signal on to.
        self.is_meeting = True
        self._look_seconds = _LOOK_SECONDS if len(job.hosts) == 1 else _LOOK_SECONDS_OF_SEVERAL

    # -- what elastic asks for -------------------------------------------------------------------------------------

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.is_meeting = True
        if self.ranks.stop_signal:
            raise Stopped("stopped before the ranks were started")
        super()._rendezvous(worker_group)
        self.is_meeting = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        self.council.begin(self.attempt)
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
            pids[local_rank] = self.ranks.start(
                local_rank,
                rank_variables(worker_group, worker, self.job, self.scratch, attempt=self.attempt, env=self.env),
            )
        return pids

    # torch before 2.7 passes `is_restart` as well.
    def _stop_workers(self, worker_group: WorkerGroup, **_more: object) -> None:  # noqa: ARG002 - elastic's signature
        self.ranks.end(RESTART_GRACE_SECONDS)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30, **_more: object) -> None:  # noqa: ARG002
        with contextlib.suppress(TrainboxError):  # elastic calls it last: it must not hide why the agent ends
            self.ranks.end(RESTART_GRACE_SECONDS, death_sig)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.ranks.turn(self._look_seconds)
        self.watch.rehearse()
        try:
            alarm = self.council.alarm() or self._own_alarm() or self.watch.find_hanging()
            done = alarm is None and not self.ranks.alive and self._all_done()
        except HostLost:
            if any(rank.code != 0 for rank in self.ranks.all.values()):
                raise
            alarm, done = None, True  # what this host had to do is done, and the first host answers for its own end
        if alarm is not None:
            return self._end_attempt(alarm)
        if not done:
            return RunResult(state=WorkerState.HEALTHY)
        return RunResult(
            state=WorkerState.SUCCEEDED, return_values={one.global_rank: None for one in worker_group.workers}
        )

    def _all_done(self) -> bool:
        self.council.arrive("done")
        return self.council.all_at("done")

    def _exit_barrier(self) -> None:
        """The first host, which serves the store, leaves last."""
        self.leave()

    def leave(self) -> None:
        """Tell the others that this host needs the store no more; the first waits for them, for a bounded time."""
        self._worker_group.spec.rdzv_handler.shutdown()
        with contextlib.suppress(HostLost):  # the first host is gone already: nobody waits for this one
            self.council.arrive("left")
        lost = self.verdict.lost if self.verdict else ()
        until = time.monotonic() + _LEAVE_SECONDS
        while self.council.is_first and not self.council.all_at("left", lost) and time.monotonic() < until:
            time.sleep(_WAIT_SECONDS)

    # -- when something has failed ---------------------------------------------------------------------------------

    def _own_alarm(self) -> Alarm | None:
        """What has happened on this host, or to a host."""
        if any(self.ranks.all[local_rank].code for local_rank in self.ranks.all):
            return Alarm(self.council.host)
        if len(self.job.hosts) > 1 and self.council.is_first and self.council.silent():
            return Alarm(self.council.host)
        return None

    def _end_attempt(self, alarm: Alarm) -> RunResult:
        """End the ranks of this host, say how they ended, hear what is to be done, and have elastic do it."""
        self.council.raise_alarm(alarm)
        if alarm.hanging is not None:
            self.watch.end_hanging(alarm)
        own = self._settled()
        self.ranks.end(RESTART_GRACE_SECONDS)
        own = own or self._failures()
        self.council.report(Report(self.council.host, tuple(own), stopping=bool(self.ranks.stop_signal)))
        verdict = self.verdict = self._judge() if self.council.is_first else self._hear()
        if verdict.restart and not self.ranks.stop_signal:
            self.attempt += 1
            self.note(f"restart {verdict.restarts} of {self.job.settings.max_restarts}: {verdict.reason}")
        # Elastic starts again as long as it has restarts left; how many there are is decided here.
        self._remaining_restarts = int(verdict.restart and not self.ranks.stop_signal)
        return RunResult(state=WorkerState.FAILED)

    def _settled(self) -> list[RankFailure]:
        """The failures of this host, once the cause is among them or had time to be."""
        until = time.monotonic() + _SETTLE_SECONDS
        while True:
            found = self._failures()
            if self.ranks.stop_signal:  # who is still there may be saving, and has the grace for it
                until = self.ranks.stop_at + _SHARE_OF_GRACE * self.job.settings.grace_seconds
            elif not all(map(causes.is_consequence, found)):
                return found
            if not found or not self.ranks.alive or time.monotonic() >= until:
                return found
            self.ranks.turn(_WAIT_SECONDS)

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

    def _judge(self) -> Verdict:
        """The first host: gather the reports, find the cause, decide."""
        until = time.monotonic() + _REPORT_SECONDS
        while len(reports := self.council.reports()) < len(self.job.hosts) and time.monotonic() < until:
            lost = set(self.council.silent())
            if lost >= set(self.job.hosts) - {report.host for report in reports}:
                break
            time.sleep(_WAIT_SECONDS)
        missing = tuple(host for host in self.job.hosts if host not in {report.host for report in reports})
        verdict = self._decide(reports, missing)
        self.council.judge(verdict)
        return verdict

    def _decide(self, reports: list[Report], missing: tuple[str, ...]) -> Verdict:
        root = causes.find_root(failure for report in reports for failure in report.failures)
        if missing and (root is None or causes.is_consequence(root)):
            return Verdict(None, causes.lost_reason(missing), lost=missing)
        if root is None:
            return Verdict(None, "the ranks were ended")
        reason = causes.describe(root)
        if missing or any(report.stopping for report in reports):
            return Verdict(root, reason, lost=missing)
        now = time.monotonic()
        decision = causes.decide(root, self.history, most=self.job.settings.max_restarts, now=now)
        if not decision.restart:
            self.note(f"no restart{': ' * bool(decision.because)}{decision.because}")
            return Verdict(root, reason)
        self.history = causes.restarted(self.history, root, now)
        return Verdict(root, reason, restart=True, restarts=len(self.history.restarts))

    def _hear(self) -> Verdict:
        until = time.monotonic() + _VERDICT_SECONDS
        while time.monotonic() < until:
            verdict = self.council.verdict()
            if verdict is not None:
                return verdict
            time.sleep(_WAIT_SECONDS)
        raise HostLost(self.job.hosts[0])
