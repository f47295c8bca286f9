"""Launch the ranks of this host: make the agent, run it, and turn its end into a verdict and an exit code."""

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec

from trainbox.contract.failures.diagnosis import Diagnosis, diagnose_error
from trainbox.contract.job import Job
from trainbox.diagnostics.verdict import Verdict, write_verdict
from trainbox.errors import ProgramError, Stopped, TrainboxError
from trainbox.launcher import attribution
from trainbox.launcher.agent import RESTART_GRACE_SECONDS, Agent
from trainbox.launcher.coordination import LEAVE_SECONDS, CoordinationStore, HostsLost, JobEndedElsewhere
from trainbox.launcher.hang_rules import HangLimits
from trainbox.launcher.ranks.forkserver import STOP_SIGNALS, ForkServer
from trainbox.launcher.ranks.processes import RankProcesses, stopped_early
from trainbox.launcher.ranks.variables import hang_directory
from trainbox.launcher.rendezvous import Rendezvous, open_store
from trainbox.log_lines import emit
from trainbox.system.relay import Sink

_ROLE = "rank"
#: Wakes the main thread when another host has ended the job.
_END_SIGNAL = signal.SIGUSR1
#: The hosts of a job that is stopped get their signals within moments: a host that leaves may be the first sign of it.
_STOP_SECONDS = 2.0
#: How long a host that is stopped before the rendezvous tries to tell the others: they may be importing torch.
_TELL_SECONDS = 10.0
_WAIT_SECONDS = 0.05


def launch(job: Job, processes: int, scratch: Path, server: ForkServer, env: Mapping[str, str]) -> int:
    """Run the ranks of this host to their end.

    Args:
        job: The contract.
        processes: How many ranks this host has.
        scratch: Where the verdict is written for the supervisor.
        server: The fork server.
        env: The environment of this process, which the ranks have, too.

    Returns:
        0; the exit code of the rank that failed first, if it was one of this host; else that of `PeerError`.
    """
    limits = HangLimits(step=job.settings.hang_seconds, long=job.settings.start_seconds)
    ranks = RankProcesses(server, (Sink(1), Sink(2)), limits=limits)
    launched = _Launch(job, ranks, env)
    try:
        verdict = launched.run(processes, scratch)
    except JobEndedElsewhere as ended:  # it came while this host was about to end anyway
        verdict = ended.verdict
    except TrainboxError as error:
        verdict = launched.explain(error)
    finally:
        with contextlib.suppress(TrainboxError):  # reported above, where it is why the agent ends
            ranks.end(RESTART_GRACE_SECONDS)
        # Python takes the handlers away as it ends: a stop would kill this process, and its job would have failed.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    if verdict is None:
        if launched.stopped_by:  # another host was, and the ranks of all hosts have saved and exited together
            write_verdict(scratch, Verdict(attribution.diagnose_stop(launched.stopped_by, None)))
        return 0
    write_verdict(scratch, verdict)
    return verdict.diagnosis.seen_from(job.current_host).exit_code


class AgentError(TrainboxError):
    """The agent of this host lacks something that it needs."""

    fault = "AlgorithmError"
    exit_code = 1


class _Launch:
    """The state that signal handlers and the agent share."""

    def __init__(self, job: Job, ranks: RankProcesses, env: Mapping[str, str]) -> None:
        self.job = job
        self.env = env
        self.ranks = ranks
        self.agent: Agent | None = None
        #: Once it is set, a stop is reported to the other hosts.
        self.coordination: CoordinationStore | None = None
        #: The signal by which this host or another was stopped, where the job has ended well; else 0.
        self.stopped_by = 0
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_stop)
        signal.signal(_END_SIGNAL, self._on_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def note(self, text: str) -> None:
        """Log a line between the lines of the ranks."""
        self.ranks.sinks[1].end_line()
        emit(text, hidden=self.job.secrets)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.ranks.stop(number)
        if self.coordination is not None and (self.agent is None or self.agent.is_meeting):
            self.check()

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        """End a wait for other hosts; the other loops of the agent look by themselves."""
        if self.agent is not None and self.agent.is_meeting:
            self.agent.end_with_job()

    def check(self) -> None:
        """End a wait for other hosts if this host was asked to stop."""
        if self.ranks.stop_signal:
            raise stopped_early(self.ranks.stop_signal)

    def _check_alone(self) -> None:
        """The same while no other host can be told: wait for one for a bounded time."""
        if len(self.job.hosts) == 1 or time.monotonic() >= self.ranks.stop_at + self._tell_seconds:
            self.check()

    @property
    def _tell_seconds(self) -> float:
        return min(_TELL_SECONDS, self.job.settings.grace_seconds / 2)

    def explain(self, error: TrainboxError) -> Verdict:
        """Return the verdict for an error of this host."""
        stopped = self.ranks.stop_signal if isinstance(error, Stopped) else 0
        if stopped:
            return Verdict(Diagnosis("stopped", error.message, 128 + stopped, host=self.job.current_host))
        return Verdict(diagnose_error(error, self.job.current_host))

    def run(self, processes: int, scratch: Path) -> Verdict | None:
        """Connect to the other hosts and run the agent; None where all went well."""
        job = self.job
        patience = job.settings.start_seconds
        store = open_store(job.hosts, job.host_rank, job.port, timeout=patience, check=self._check_alone)
        with contextlib.closing(
            CoordinationStore(store, job.hosts, job.host_rank, on_end=_wake_main_thread)
        ) as coordination:
            try:
                self.coordination = coordination
                self.check()
                verdict = self._run_agent(store, coordination, processes, scratch)
            except JobEndedElsewhere as ended:
                self._stop_meeting()
                verdict = ended.verdict
                with contextlib.suppress(HostsLost):
                    coordination.leave(verdict.lost)
            except (HostsLost, TrainboxError) as error:
                self._stop_meeting()
                verdict = self._end_job(coordination, error)
            except OSError as error:  # no memory, space or threads on this host, and the others wait for it
                self._stop_meeting()
                verdict = self._end_job(coordination, AgentError(f"the agent, which starts the ranks, failed: {error}"))
            if verdict is not None and verdict.lost and coordination.pause:
                verdict = Verdict(attribution.diagnose_pause(coordination.pause, job.current_host))
        return verdict

    def _run_agent(
        self, store: TCPStore, coordination: CoordinationStore, processes: int, scratch: Path
    ) -> Verdict | None:
        job = self.job
        _require_temporary_directory()
        self._make_hang_directory()
        run_id = job.name or "trainbox"
        rendezvous = Rendezvous(coordination, store, run_id, first_join=job.settings.start_seconds)
        spec = WorkerSpec(
            role=_ROLE,
            local_world_size=processes,
            rdzv_handler=rendezvous,
            entrypoint=_ROLE,
            max_restarts=job.settings.max_restarts,
            monitor_interval=1e-6,  # the agent itself waits, for the first event
        )
        self.agent = Agent(spec, job, self.ranks, coordination, scratch=scratch, note=self.note, env=self.env)
        self.check()
        result = self.agent.run()
        if result is not None and not result.is_failed():
            self.stopped_by = self.agent.stopped_by
            return None
        self.agent.leave()
        return self.agent.verdict or Verdict(attribution.ENDED)

    def _stop_meeting(self) -> None:
        """From here on no signal interrupts a wait."""
        if self.agent is not None:
            self.agent.is_meeting = False

    def _end_job(self, coordination: CoordinationStore, error: HostsLost | TrainboxError) -> Verdict:
        """Tell the other hosts why this one ends, and serve the store until they have read it."""
        verdict = self._without_host(error) if isinstance(error, HostsLost) else self.explain(error)
        with contextlib.suppress(HostsLost):  # no host is left to be told
            if not (verdict.lost and coordination.pause):
                verdict = coordination.end(verdict)
            with contextlib.suppress(TrainboxError):
                self.ranks.end(RESTART_GRACE_SECONDS)
            coordination.leave(verdict.lost, come_seconds=self._tell_seconds if verdict.stopped else LEAVE_SECONDS)
        return verdict

    def _without_host(self, lost: HostsLost) -> Verdict:
        """Return the verdict for a lost host: not lost if the job is being stopped."""
        until = time.monotonic() + _STOP_SECONDS
        while not self.ranks.stop_signal and time.monotonic() < until:
            time.sleep(_WAIT_SECONDS)
        stop = self.ranks.stop_signal
        if stop:
            names = ", ".join(lost.hosts)
            reason = f"stopped by {signal.Signals(stop).name}: {names} had left before"
            return Verdict(Diagnosis("stopped", reason, 128 + stop, host=self.job.current_host))
        return Verdict(attribution.diagnose_lost(lost.hosts), lost=lost.hosts)

    def _make_hang_directory(self) -> None:
        if any(Path("/dev").glob("nvidia[0-9]*")):  # NCCL's flight recorder does not create it
            directory = hang_directory(self.job)
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self.note(f"cannot create {directory} ({error.strerror}): a hang leaves no records of NCCL")


def _wake_main_thread() -> None:
    identity = threading.main_thread().ident
    if identity is not None:
        signal.pthread_kill(identity, _END_SIGNAL)


def _require_temporary_directory() -> None:
    """Check that there is a directory for temporary files: parts of torch cannot be imported without one.

    Raises:
        ProgramError: There is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise ProgramError(
            f"no directory for temporary files can be written ({error.strerror or error}): torch needs one",
            hint="mount one in a container whose file system is read-only: docker run --tmpfs /tmp, or set TMPDIR",
        ) from error
